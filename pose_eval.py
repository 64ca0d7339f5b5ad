"""Network output -> people, COCO AP and pictures.

    python3 pose_eval.py --graph=graph_opt.pb --datapath=COCO                     AP of a frozen graph
    python3 pose_eval.py --checkpoint=DIR --model=mobilenet_thin --datapath=COCO  AP of a checkpoint
    python3 pose_eval.py --oracle --datapath=COCO                                 AP of perfect maps: the upper bound
    python3 pose_eval.py --graph=graph_opt.pb --images=DIR --output-dir=DIR       skeletons on photographs

How the figures come about is in pose_metrics.py, how people are found in pose_decode.py. TensorFlow is only imported to
run a network.
"""
import json
import logging
import os

import cv2
import numpy as np
from tqdm import tqdm

import pose_annotations
import pose_cli
import pose_draw
from graphs.predict import load_network
from pose_cli import UserError
from pose_decode import MIN_PARTS, decode_people  # noqa: F401 (decode_people is what others import from here)
from pose_labels import PART_NAMES, PARTS
from pose_metrics import (DEFAULT_SIZE, SIZE_MULTIPLE, evaluate, find_people, labelled_people, letterbox, load_coco,
                          oracle_maps)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


def evaluate_data_set(predict_maps, args):
    """AP on a data set: table, results file and picture; the summary is the last line on stdout."""
    annotation_file, image_folder = pose_annotations.find_split(args.datapath, args.split, args.imgpath)
    summary, results, table = evaluate(predict_maps, annotation_file, image_folder, args.input_size, args.scale,
                                       args.limit)
    if args.oracle:
        summary['network_ms'] = None  # there is no network
    results_file = os.path.join(args.output_dir, 'keypoints_%s_results.json' % args.split)
    pose_cli.write_json(results_file, results, sort_keys=False)
    picture = os.path.join(args.output_dir, 'people_%s.png' % args.split)
    write_image(picture, draw_results(load_coco(annotation_file), image_folder, results, args.pictures, args.limit))
    print(table, end='')
    print('results: %s' % results_file)
    print('picture: %s' % picture)
    print(json.dumps(summary))


def draw_results(coco, image_folder, results, count, limit=None):
    """A contact sheet of the first images with people: labelled people on the left, found people on the right."""
    found, labelled = {}, {}
    for result in results:
        found.setdefault(result['image_id'], []).append(result['keypoints'])
    for person in labelled_people(coco, sorted(coco.getImgIds())[:limit]):
        labelled.setdefault(person['image_id'], []).append(person['keypoints'])
    cells = []
    for image_id in sorted(labelled or found)[:count]:
        pixels = cv2.imread(os.path.join(image_folder, coco.loadImgs(image_id)[0]['file_name']),
                            cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        for people, title in ((labelled, 'labelled'), (found, 'found')):
            joints = pose_annotations.coco_to_joints(people.get(image_id, []))
            joints = joints[np.isfinite(joints[:, :, 0]).sum(axis=1) >= MIN_PARTS]
            cells.append(pose_draw.caption(pose_draw.draw_skeletons(pixels, joints), '%s %s' % (image_id, title)))
    return pose_draw.contact_sheet([cells[i:i + 4] for i in range(0, len(cells), 4)])


def draw_photographs(predict_maps, args):
    """Skeletons on each photograph of a folder, and a JSON file beside each in the manner of OpenPose."""
    names = find_photographs(args.images)[:args.limit]
    stems = [os.path.splitext(name)[0] for name in names]
    summary = {'images': 0, 'people': 0}
    seconds = []
    for name, stem in zip(tqdm(names, desc='finding people', unit='image', disable=None), stems):
        pixels = cv2.imread(os.path.join(args.images, name))
        if pixels is None:
            logging.warning('skipped %s: OpenCV cannot read it', os.path.join(args.images, name))
            continue
        image, matrix = letterbox(pixels, args.input_size, args.scale)
        nobody = np.zeros((0, PARTS, 2))
        [(keypoints, scores)], network, decode = find_people(predict_maps, image[None], [nobody], [matrix])
        seconds.append((network, decode))
        summary['images'] += 1
        summary['people'] += len(scores)
        output = os.path.join(args.output_dir, stem if stems.count(stem) == 1 else name)
        write_image(output + '_rendered.png', pose_draw.draw_skeletons(pixels, keypoints))
        pose_cli.write_json(output + '_keypoints.json', openpose_json(name, pixels.shape, keypoints, scores),
                            sort_keys=False)
    if not seconds:
        raise UserError('none of the %d files in --images=%s could be read' % (len(names), args.images))
    network_ms, decode_ms = 1000 * np.mean(seconds[1:] or seconds, axis=0)
    summary.update(decode_ms=round(float(decode_ms), 3), network_ms=round(float(network_ms), 3))
    print('pictures and keypoints: %s' % args.output_dir)
    print(json.dumps(summary))


def find_photographs(folder):
    """The sorted names of the image files in a folder. Raises UserError when there are none."""
    if not os.path.isdir(folder):
        raise UserError('--images=%s is not a folder; give a folder of photographs' % folder)
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise UserError('no photographs in --images=%s (looked for %s)' % (folder, ' '.join(IMAGE_SUFFIXES)))
    return names


def openpose_json(name, shape, keypoints, scores):
    """People as OpenPose's JSON: 18 times x, y, score in image pixels in one list, 0, 0, 0 where a part is absent."""
    flat = np.round(np.nan_to_num(keypoints.astype(np.float64)), 3).reshape(-1, 3 * PARTS)
    return {'image': name, 'width': shape[1], 'height': shape[0], 'part_names': list(PART_NAMES),
            'people': [{'score': round(float(score), 4), 'pose_keypoints_2d': person.tolist()}
                       for person, score in zip(flat, scores)]}


def write_image(path, image):
    pose_cli.write_file(path, cv2.imencode('.png', image)[1].tobytes())


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Find people with a network: COCO AP, or pictures and JSON files.')
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--graph', help='frozen graph (.pb) to evaluate')
    network.add_argument('--checkpoint', help='checkpoint to evaluate: its prefix or its folder; needs --model')
    network.add_argument('--oracle', nargs='?', type=int, const=8, choices=(4, 8), metavar='STRIDE',
                         help='evaluate the label maps themselves, at output stride 8 or 4, instead of a network')
    parser.add_argument('--model', help='network of the checkpoint')
    task = parser.add_mutually_exclusive_group()
    task.add_argument('--images', help='folder of photographs, for pictures and JSON files')
    pose_cli.add_data_flags(parser, task)
    parser.add_argument('--split', default='val2017', help='split of --datapath')
    parser.add_argument('--limit', type=pose_cli.positive_int, help='only the first so many images')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--input-size', type=pose_cli.size, metavar='WxH',
                      help="of the network's input, as 432x368; images are letterboxed into it (the graph's own, or "
                           '%dx%d)' % DEFAULT_SIZE)
    size.add_argument('--scale', type=pose_cli.positive_int, metavar='PIXELS',
                      help='short edge of the input; each image keeps its shape')
    parser.add_argument('--output-dir', default=os.path.join('logs', 'eval'), help='where results and pictures go')
    parser.add_argument('--pictures', type=pose_cli.positive_int, default=8,
                        help='number of images in the picture beside the results')
    args = parser.parse_args()
    if args.images:
        args.datapath = None  # $COCO_DIR is not meant
    elif not args.datapath:
        parser.error('give --datapath=DIR (or $COCO_DIR) for AP, or --images=DIR for pictures')
    if args.checkpoint and not args.model:
        parser.error('--checkpoint needs --model, the network it was trained with')
    if args.model and not args.checkpoint:
        parser.error('--model goes with --checkpoint; a graph needs none')
    if args.oracle and args.images:
        parser.error('--oracle needs labels: give --datapath')
    for side in args.input_size or ():
        if side % SIZE_MULTIPLE:
            parser.error('--input-size=%dx%d: both sides must be multiples of %d' % (*args.input_size, SIZE_MULTIPLE))
    if args.images and os.path.realpath(args.images) == os.path.realpath(args.output_dir):
        parser.error('--output-dir is the folder of the photographs; give another one')
    return args


def main():
    args = parse_flags()
    pose_cli.log_to_stderr()
    # What is missing shows before TensorFlow takes its time.
    if args.datapath:
        pose_annotations.find_split(args.datapath, args.split, args.imgpath)
    else:
        find_photographs(args.images)
    if args.oracle:
        predict_maps, fixed_size = oracle_maps(args.oracle), None
    else:
        predict_maps, fixed_size = load_network(args.graph, args.checkpoint, args.model)
    if fixed_size:
        if args.scale or (args.input_size or fixed_size) != fixed_size:
            raise UserError('the input of %s is fixed to %dx%d; leave out --input-size and --scale, or freeze the '
                            'graph with --input-size=dynamic' % (args.graph, *fixed_size))
        args.input_size = fixed_size
    pose_cli.make_folder(args.output_dir)
    if args.datapath:
        evaluate_data_set(predict_maps, args)
    else:
        draw_photographs(predict_maps, args)


if __name__ == '__main__':
    pose_cli.run(main)
