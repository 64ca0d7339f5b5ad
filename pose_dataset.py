"""Pictures of augmented samples with their labels.

    python3 pose_dataset.py --datapath=DIR --output-dir=DIR      draws augmented samples with their labels

Samples are made in pose_samples.py, batches for training by the processes of pose_loader.py; get_dataflow gives
samples as a tensorpack DataFlow.
"""
import itertools
import os

import pose_cli  # first: it names a missing package
import cv2
import numpy as np

import pose_annotations
import pose_draw
import pose_skeleton
from pose_image import write_picture
from pose_samples import BadSampleCounter, PoseDataset, check_input_size, training_samples


def get_dataflow(datapath, split, input_width, input_height, stride, is_train, imgpath=None, seed=None):
    """Single samples as a DataFlow: [image uint8 (H,W,3), heatmap float32 (h,w,19), paf (h,w,38), mask (h,w,1)]."""
    from pose_dataflow import PoseDataFlow  # with it come tensorpack and TensorFlow, which the command does not need
    dataset = PoseDataset(datapath, split, input_width, input_height, stride, imgpath)
    return PoseDataFlow(dataset, is_train, seed)


def draw_sample(sample, skeleton=pose_skeleton.COCO):
    """The pictures of one sample: people, heatmap, PAFs and mask; a list of uint8 (H, W, 3) arrays."""
    text = os.path.splitext(os.path.basename(sample.name))[0].lstrip('0')
    if sample.augmentation is not None:
        a = sample.augmentation
        text += ': scale %.2f, %+.0f deg, %+.0f %+.0f px%s' % (
            a.scale, a.angle, a.offset_x, a.offset_y, ', flipped' if a.flip else '')
    pictures = [(pose_draw.draw_skeletons(sample.image, sample.joints, skeleton=skeleton), text),
                (pose_draw.overlay_heatmap(sample.image, sample.heatmap), 'heatmaps'),
                (pose_draw.overlay_paf(sample.image, sample.paf), 'PAFs'),
                (pose_draw.shade_mask(sample.image, sample.mask), 'mask (hatched: not in the loss)')]
    pictures = [pose_draw.caption(picture, text) for picture, text in pictures]
    height = max(len(picture) for picture in pictures)  # a long text is smaller and has a lower strip
    return [cv2.copyMakeBorder(picture, 0, height - len(picture), 0, 0, cv2.BORDER_CONSTANT, value=pose_draw.PAPER)
            for picture in pictures]


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Draw augmented samples with their label maps.')
    pose_cli.add_data_flags(parser)
    parser.add_argument('--output-dir', required=True, help='where the pictures go')
    parser.add_argument('--split', default='train2017', help='train2017, val2017, or a path to an annotation file')
    parser.add_argument('--category', help='of the annotations, where several have keypoints')
    parser.add_argument('--count', type=pose_cli.positive_int, default=8, help='number of samples')
    parser.add_argument('--input-width', type=pose_cli.positive_int, default=368)
    parser.add_argument('--input-height', type=pose_cli.positive_int, default=368)
    parser.add_argument('--stride', type=pose_cli.positive_int, default=8, help='output stride of the network')
    parser.add_argument('--seed', type=pose_cli.non_negative_int, default=0)
    flags = parser.parse_args()
    if not flags.datapath:
        parser.error('give --datapath=DIR or set $COCO_DIR')
    check_input_size(flags.input_width, flags.input_height, flags.stride)
    pose_annotations.find_split(flags.datapath, flags.split, flags.imgpath)
    return flags


def main():
    flags = parse_flags()
    pose_cli.log_to_stderr()
    dataset = PoseDataset(flags.datapath, flags.split, flags.input_width, flags.input_height, flags.stride,
                          flags.imgpath, category=flags.category)
    pose_cli.check_folder(flags.output_dir)
    counter = BadSampleCounter(len(dataset))
    rng = np.random.RandomState(flags.seed)
    rows = []
    while len(rows) < flags.count:
        for sample in itertools.islice(training_samples(dataset, rng, counter), flags.count - len(rows)):
            rows.append(draw_sample(sample, dataset.skeleton))
    pose_cli.make_folder(flags.output_dir)
    for number, row in enumerate(rows):
        write_picture(os.path.join(flags.output_dir, 'sample_%02d.png' % number), pose_draw.contact_sheet([row]))
    sheet = os.path.join(flags.output_dir, 'contact_sheet.png')
    write_picture(sheet, pose_draw.contact_sheet(rows))
    print('%d samples: %s' % (len(rows), sheet))


if __name__ == '__main__':
    pose_cli.run(main)
