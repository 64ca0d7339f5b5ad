"""COCO images and annotations -> augmented samples with their label maps -> batches.

A sample is one main person of one image; the labels show all people of the image. One sample, start to end:
`PoseDataset.training_sample` draws the augmentation (pose_augment.py), reads the image, warps it, and renders the maps
(pose_labels.py). Batches for training are made by the processes of pose_loader.py.

    python3 pose_dataset.py --datapath=DIR --output-dir=DIR      draws augmented samples with their labels
"""
import collections
import contextlib
import io
import os

import cv2
import numpy as np

import pose_annotations
import pose_augment
import pose_cli
import pose_draw
import pose_labels
from pose_loader import BadSample, BadSampleCounter, BatchLoader

with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no TensorFlow, as is right on helper nodes
    from tensorpack.dataflow import DataFlow, RNGDataFlow

# joints (people, 18, 2) in input pixels; augmentation is None for validation samples; name: the image's file name.
Sample = collections.namedtuple('Sample', 'image heatmap paf mask joints augmentation name')

READ_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
              8: cv2.IMREAD_REDUCED_COLOR_8}
# Bilinear warping averages only 4 pixels: far below scale 1 fine patterns would alias. So the JPEG is decoded at 1/2,
# 1/4 or 1/8, whatever comes nearest to the size it gets (libjpeg averages while decoding, and is faster).
MAX_WARP_SCALE = 2 ** 0.5
JPEG_START, JPEG_END, JPEG_TAIL = b'\xff\xd8', b'\xff\xd9', 4096


class PoseDataset:
    """The samples of one split of a COCO folder, at one input size and output stride.

    Args:
        datapath, split, imgpath: as in pose_annotations.find_split.
        input_width, input_height: of the network's input, in pixels; multiples of stride.
        stride: the network's output stride.
        ranges: pose_augment.Ranges of the augmentation.
    Raises:
        UserError: from pose_annotations.
    """

    def __init__(self, datapath, split, input_width, input_height, stride, imgpath=None,
                 ranges=pose_augment.CMU_RANGES):
        annotation_file, self.image_folder = pose_annotations.find_split(datapath, split, imgpath)
        self.annotations = pose_annotations.read_annotations(annotation_file, self.image_folder)
        self.input_width, self.input_height, self.stride, self.ranges = input_width, input_height, stride, ranges
        # Validation sees each image with a main person once.
        self.validation_images = np.unique(self.annotations.sample_image)

    def __len__(self):
        return len(self.annotations.sample_image)

    def training_sample(self, index, rng):
        """Sample number index, 0 <= index < len(self), with an augmentation drawn from rng (a RandomState).

        Raises:
            BadSample: the image cannot be used.
        """
        image = self.annotations.sample_image[index]
        person = self.annotations.bbox[self.annotations.sample_person[index]]
        augmentation = pose_augment.draw_augmentation(rng, self.ranges)
        matrix = pose_augment.augmentation_matrix(augmentation, person.astype(np.float64),
                                                  self.input_width, self.input_height)
        return self._sample(image, matrix, augmentation)

    def validation_sample(self, index):
        """Image number index, 0 <= index < len(self.validation_images), fitted into the input without randomness.

        Raises:
            BadSample: the image cannot be used.
        """
        image = self.validation_images[index]
        width, height = self.annotations.image_size[image]
        return self._sample(image, pose_augment.fit_matrix(width, height, self.input_width, self.input_height), None)

    def _sample(self, image, matrix, augmentation):
        name = self.annotations.file_name[image].decode()
        pixels, reduction = read_image(os.path.join(self.image_folder, name), self.annotations.image_size[image],
                                       pose_augment.matrix_scale(matrix))
        people, _ = pose_annotations.people_of(self.annotations, image)
        joints = pose_augment.transform_joints(people.astype(np.float64), matrix)
        cells = (self.input_height // self.stride, self.input_width // self.stride, self.stride)
        return Sample(
            image=pose_augment.warp_image(pixels, pose_augment.reduced_matrix(matrix, reduction),
                                          self.input_width, self.input_height),
            heatmap=pose_labels.render_heatmaps(joints, *cells),
            paf=pose_labels.render_pafs(joints, *cells),
            mask=pose_labels.render_mask(*pose_annotations.ignored_regions(self.annotations, image), matrix, *cells),
            joints=joints, augmentation=augmentation, name=name)


def read_image(path, size, scale):
    """Read an image, reduced while decoding as far as a later warp by `scale` allows.

    The pixels are taken as stored, as COCO's annotations are: an EXIF rotation is not applied.

    Args:
        size: the (width, height) that the annotations give.
        scale: how many pixels one image pixel becomes in the warp that follows.
    Returns:
        (uint8 (H, W, 3) BGR, reduction): reduction 1, 2, 4 or 8 is the factor by which the image is smaller.
    Raises:
        BadSample: missing, empty, truncated, not an image, or not of that size.
    """
    try:
        with open(path, 'rb', buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise BadSample(path, error.strerror or 'cannot be read')
    if not data:
        raise BadSample(path, 'is empty')
    if data.startswith(JPEG_START) and JPEG_END not in data[-JPEG_TAIL:]:
        raise BadSample(path, 'is a truncated JPEG')
    reduction = max(r for r in READ_FLAGS if r == 1 or scale * r <= MAX_WARP_SCALE)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), READ_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadSample(path, 'is not an image that OpenCV can read')
    height, width = pixels.shape[:2]
    if abs(width * reduction - int(size[0])) >= reduction or abs(height * reduction - int(size[1])) >= reduction:
        raise BadSample(path, 'is not of the size %dx%d that the annotations give' % tuple(size))
    return pixels, reduction


class PoseDataFlow(RNGDataFlow):
    """A tensorpack DataFlow of [image, heatmap, paf, mask], one sample at a time in this process.

    Training goes once through all samples in random order, validation once through all images in their own order. Bad
    samples are skipped, counted and named.
    """

    def __init__(self, dataset, is_train, seed=None):
        self.dataset, self.is_train, self.seed, self._pid = dataset, is_train, seed, os.getpid()

    def __len__(self):
        return len(self.dataset) if self.is_train else len(self.dataset.validation_images)

    def reset_state(self):
        super().reset_state()
        if self.seed is not None:
            # A forked copy, as tensorpack's parallel runners make them, must not repeat this process's samples.
            copy = [] if os.getpid() == self._pid else [os.getpid()]
            self.rng = np.random.RandomState([self.seed % (1 << 32)] + copy)

    def __iter__(self):
        counter = BadSampleCounter(len(self))
        for index in self.rng.permutation(len(self)) if self.is_train else range(len(self)):
            try:
                sample = (self.dataset.training_sample(index, self.rng) if self.is_train
                          else self.dataset.validation_sample(index))
            except BadSample as error:
                counter.add_bad(error.path, error.reason)
            else:
                counter.add_good(1)
                yield list(sample[:4])


class BatchDataFlow(DataFlow):
    """A tensorpack DataFlow over a pose_loader.BatchLoader: endless batches [image, heatmap, paf, mask]."""

    def __init__(self, dataset, batchsize, workers, seed):
        self.dataset, self.batchsize, self.workers, self.seed = dataset, batchsize, workers, seed

    def __len__(self):
        return len(self.dataset) // self.batchsize

    def __iter__(self):
        with BatchLoader(self.dataset, self.batchsize, self.workers, self.seed) as loader:
            while True:
                batch = loader.get(timeout=1)
                if batch:
                    yield [field.copy() for field in batch]


def get_dataflow(datapath, split, input_width, input_height, stride, is_train, imgpath=None, seed=None):
    """Single samples as a DataFlow: [image uint8 (H,W,3), heatmap float32 (h,w,19), paf (h,w,38), mask (h,w,1)]."""
    dataset = PoseDataset(datapath, split, input_width, input_height, stride, imgpath)
    return PoseDataFlow(dataset, is_train, seed)


def get_dataflow_batch(datapath, split, batchsize, input_width, input_height, stride, imgpath=None, seed=None,
                       workers=1):
    """Endless training batches, made by `workers` processes, as a DataFlow.

    Each is [image uint8 (B,H,W,3), heatmap float32 (B,h,w,19), paf float32 (B,h,w,38), mask float32 (B,h,w,1)]. The
    same seed with one worker gives the same batches.
    """
    dataset = PoseDataset(datapath, split, input_width, input_height, stride, imgpath)
    return BatchDataFlow(dataset, batchsize, workers, seed)


def draw_sample(sample):
    """The pictures of one sample: people, heatmap, PAFs and mask; a list of uint8 (H, W, 3) arrays."""
    text = os.path.splitext(os.path.basename(sample.name))[0].lstrip('0')
    if sample.augmentation is not None:
        a = sample.augmentation
        text += ': scale %.2f, %+.0f deg, %+.0f %+.0f px%s' % (a.scale, a.angle, a.offset_x, a.offset_y,
                                                              ', flipped' if a.flip else '')
    pictures = [(pose_draw.draw_skeletons(sample.image, sample.joints), text),
                (pose_draw.overlay_heatmap(sample.image, sample.heatmap), 'heatmaps'),
                (pose_draw.overlay_paf(sample.image, sample.paf), 'PAFs'),
                (pose_draw.shade_mask(sample.image, sample.mask), 'mask (hatched: not in the loss)')]
    pictures = [pose_draw.caption(picture, text) for picture, text in pictures]
    height = max(len(picture) for picture in pictures)  # a long text is smaller and has a lower strip
    return [cv2.copyMakeBorder(picture, 0, height - len(picture), 0, 0, cv2.BORDER_CONSTANT, value=pose_draw.PAPER)
            for picture in pictures]


def main():
    parser = pose_cli.ArgumentParser(description='Draw augmented samples with their label maps.')
    parser.add_argument('--datapath', default=os.environ.get('COCO_DIR'), required='COCO_DIR' not in os.environ,
                        help='COCO root or its annotations folder ($COCO_DIR)')
    parser.add_argument('--imgpath', help='where the image folders are, if elsewhere')
    parser.add_argument('--output-dir', required=True, help='where the pictures go')
    parser.add_argument('--split', default='train2017', help='train2017 or val2017')
    parser.add_argument('--count', type=pose_cli.positive_int, default=8, help='number of samples')
    parser.add_argument('--input-width', type=pose_cli.positive_int, default=368)
    parser.add_argument('--input-height', type=pose_cli.positive_int, default=368)
    parser.add_argument('--stride', type=pose_cli.positive_int, default=8, help='output stride of the network')
    parser.add_argument('--seed', type=pose_cli.non_negative_int, default=0)
    args = parser.parse_args()
    pose_cli.log_to_stderr()
    check_input_size(args.input_width, args.input_height, args.stride)
    dataset = PoseDataset(args.datapath, args.split, args.input_width, args.input_height, args.stride, args.imgpath)
    pose_cli.make_folder(args.output_dir)
    counter = BadSampleCounter(len(dataset))
    rng = np.random.RandomState(args.seed)
    rows = []
    while len(rows) < args.count:
        for index in rng.permutation(len(dataset))[:args.count - len(rows)]:
            try:
                rows.append(draw_sample(dataset.training_sample(index, rng)))
                counter.add_good(1)
            except BadSample as error:
                counter.add_bad(error.path, error.reason)
    for number, row in enumerate(rows):
        cv2.imwrite(os.path.join(args.output_dir, 'sample_%02d.png' % number), pose_draw.contact_sheet([row]))
    sheet = os.path.join(args.output_dir, 'contact_sheet.png')
    cv2.imwrite(sheet, pose_draw.contact_sheet(rows))
    print('%d samples: %s' % (len(rows), sheet))


def check_input_size(input_width, input_height, stride):
    """Raise UserError when a side of the input is not a multiple of the output stride."""
    for name, side in (('--input-width', input_width), ('--input-height', input_height)):
        if side % stride:
            raise pose_cli.UserError('%s=%d is not a multiple of the output stride %d; take %d or %d'
                                     % (name, side, stride, side // stride * stride or stride,
                                        (side // stride + 1) * stride))


if __name__ == '__main__':
    pose_cli.run(main)
