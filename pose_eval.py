"""Network output -> people, COCO AP and pictures.

    python3 pose_eval.py --graph=graph_opt.pb --datapath=COCO                     AP of a frozen graph, or of a .tflite
    python3 pose_eval.py --checkpoint=DIR --model=mobilenet_thin --datapath=COCO  AP of a checkpoint
    python3 pose_eval.py --oracle --datapath=COCO                                 AP of perfect maps: the upper bound
    python3 pose_eval.py --graph=graph_opt.pb --images=DIR --output-dir=DIR       skeletons on photographs
    python3 pose_eval.py --graph=graph_opt.pb --video=FILE --output-dir=DIR       people in a video, numbered
    python3 pose_eval.py ... --scales=0.5,1,1.5,2 --flip                          maps averaged over sizes and mirrored

How the metrics come about is in inference/metrics.py. inference/predictor.py reads images, runs the network, averages
the maps of several sizes and decodes them side by side; inference/decode.py turns maps into people. TensorFlow is only
imported to run a network.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import json
import logging
import os

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

import numpy as np
from tqdm import tqdm

import networks
import pose_draw
import pose_files
from annotations.arrays import log_turned_images
from annotations.coco import as_pycocotools, read_dataset, summary_of
from annotations.images import BadSample, find_split, image_finder, image_paths, part_name, read_image, \
    read_photograph, write_picture
from inference import choose_skeleton, open_network, read_skeleton, video
from inference.decode import MIN_PARTS, PEAK_THRESHOLD, keypoint_lists
from inference.decode import decode_people  # noqa: F401 (for others)
from inference.metrics import evaluate, keypoints_by_image, labelled_people
from inference.predictor import DEFAULT_SIZE, MAX_HELD_BYTES, SIZE_MULTIPLE, InputImage, Predictor, Request, \
    make_transforms, start_decoders
from networks.pretrained import find_checkpoint, is_weights_file, model_of
from pose_errors import UserError

WRITERS = 2  # threads
DEFAULT_MODEL = 'mobilenet_thin'
OUTPUT_DIR = os.path.join('logs', 'eval')


def evaluate_data_set(predict_maps, dataset, annotation_file, image_folder, output_dir, split, pictures, limit,
                      **options):
    """AP on a data set: table and summary, which is the last line on stdout, results file and picture.

    split: gives the files of output_dir their names.  pictures: the number of images in the picture.  The others: as
        for inference.metrics.evaluate.
    """
    summary, results, table = evaluate(predict_maps, annotation_file, image_folder, limit=limit, dataset=dataset,
                                       **options)
    if predict_maps is None:
        summary['network_ms'] = None
    name = os.path.splitext(os.path.basename(split))[0]
    original = {image['id']: image['original_id'] for image in dataset.images}
    results_file = os.path.join(output_dir, 'keypoints_%s_results.json' % name)
    pose_files.write_json(results_file, [dict(result, image_id=original[result['image_id']],
                                              category_id=dataset.category_id) for result in results])
    picture = os.path.join(output_dir, 'people_%s.png' % name)
    print(table, end='')
    print('results: %s' % results_file)
    print('picture: %s' % picture)
    print(json.dumps(summary), flush=True)
    write_picture(picture, draw_results(as_pycocotools(dataset), image_folder, results, pictures, limit,
                                        dataset.skeleton))


def draw_results(coco, image_folder, results, count, limit, skeleton):
    """A contact sheet of the first images with people: labelled people on the left, found people on the right."""
    image_ids, find = sorted(coco.getImgIds())[:limit], image_finder(image_folder)
    found, labelled = keypoints_by_image(results), keypoints_by_image(labelled_people(coco, image_ids))
    cells = []
    for image_id in sorted(labelled or found or image_ids)[:count]:
        entry = coco.loadImgs(image_id)[0]
        path = os.path.join(image_folder, find(entry['file_name']) or entry['file_name'])
        pixels, _ = read_image(path, (entry['width'], entry['height']), scale=1.0)
        for people, title in ((labelled, 'labelled'), (found, 'found')):
            joints = skeleton.joints(people.get(image_id, []))
            joints = joints[np.isfinite(joints[:, :, 0]).sum(axis=1) >= MIN_PARTS]
            drawn = pose_draw.draw_skeletons(pixels, joints, skeleton)
            cells.append(pose_draw.caption(drawn, '%s %s' % (image_id, title)))
    return pose_draw.contact_sheet([cells[i:i + 4] for i in range(0, len(cells), 4)])


def draw_photographs(predict_maps, skeleton, paths, root, output_dir, decoders=None, batchsize=1, limit=None,
                     threshold=PEAK_THRESHOLD, min_score=0.0, **setting):
    """Skeletons on each photograph, and a JSON file beside each in the manner of OpenPose; prints a summary.

    paths: of the photographs, below root.  setting: as for inference.predictor.make_transforms, the others for
        Predictor.
    """
    paths = paths[:limit]
    outputs = output_prefixes(paths, root, output_dir)
    predictor = Predictor(predict_maps, skeleton, batchsize, decoders, threshold=threshold, min_score=min_score)
    summary = {'images': 0, 'people': 0}
    requests = (Request(path, photograph_reader(path, setting)) for path in paths)
    # Drawing and compressing a picture takes as long as a small network: threads do it meanwhile.
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as writers, \
            contextlib.closing(predictor.find_people(requests)) as found:
        writing = collections.deque()
        for path, image, keypoints, scores in tqdm(found, 'finding people', len(paths), unit='image', disable=None):
            summary['images'] += 1
            summary['people'] += len(scores)
            future = writers.submit(write_photograph, *outputs[path], image.pixels, keypoints, scores, skeleton)
            writing.append((image.pixels.nbytes, future))
            while len(writing) > 2 * WRITERS or sum(size for size, _ in writing) > MAX_HELD_BYTES:
                writing.popleft()[1].result()
        for _, future in writing:
            future.result()
    if not summary['images']:
        raise UserError('none of the %d photographs in %s could be read; give JPEG, PNG, BMP or WebP files'
                        % (len(paths), root))
    summary.update(predictor.timings(), scales=list(setting['scales']), flip=setting['flip'])
    print('pictures and keypoints: %s' % output_dir)
    print(json.dumps(summary))


def output_prefixes(paths, root, output_dir):
    """{path of a photograph: (prefix of the paths of its outputs, its name below root)}.

    Outputs lie in output_dir as the photographs do below root; two that differ in their endings alone keep these.
    """
    names = [os.path.relpath(path, root) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    count = collections.Counter(stems)
    return {path: (os.path.join(output_dir, name if count[stem] > 1 else stem), name)
            for path, name, stem in zip(paths, names, stems)}


def photograph_reader(path, setting):
    """The function that reads a photograph, for an inference.predictor.Request."""
    def read():
        try:
            pixels = read_photograph(path)
        except BadSample as error:
            logging.warning('skipped: %s', error)
            return None
        return InputImage(pixels, 1, make_transforms(pixels.shape[1], pixels.shape[0], **setting), None)
    return read


def write_photograph(prefix, name, pixels, keypoints, scores, skeleton):
    """A picture with skeletons, and people as OpenPose's JSON, in image pixels."""
    pose_files.make_folder(os.path.dirname(prefix))
    write_picture(prefix + '_rendered.png', pose_draw.draw_skeletons(pixels, keypoints, skeleton))
    pose_files.write_json(prefix + '_keypoints.json', {
        'image': name, 'width': pixels.shape[1], 'height': pixels.shape[0], 'part_names': list(skeleton.parts),
        'people': [{'score': round(float(score), 4), 'pose_keypoints_2d': person}
                   for person, score in zip(keypoint_lists(keypoints), scores)]})


def scales(text):
    """argparse type: '0.5,1' -> (0.5, 1.0)."""
    try:
        values = tuple(float(part) for part in text.split(','))
    except ValueError:
        values = ()
    if not values or not all(0.1 <= value <= 4 for value in values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError('%r is not a list of different factors from 0.1 to 4, like 0.5,1,1.5,2' % text)
    return values


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Find people with a network: COCO AP, or pictures and JSON files.')
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--graph', help='frozen graph (.pb) or TensorFlow Lite file (.tflite)')
    network.add_argument('--checkpoint', help='checkpoint to evaluate: its prefix or its folder, or weights from '
                                              'elsewhere (.caffemodel, .h5, .npy, .pb)')
    network.add_argument('--weights', help='weights that know their network, as scripts/export_weights.py writes them '
                                           '(.npy); others are those of --model')
    network.add_argument('--oracle', nargs='?', type=int, const=8, choices=(4, 8), metavar='STRIDE',
                         help='evaluate the label maps themselves, at output stride 8 or 4, instead of a network')
    parser.add_argument('--model', type=networks.model_name,
                        help='network of the checkpoint (its own run.json, if there, or %s for --weights)'
                             % DEFAULT_MODEL)
    parser.add_argument('--threads', type=pose_cli.positive_process_count,
                        help='of the processor, for the network (all)')
    task = parser.add_mutually_exclusive_group()
    pose_cli.add_data_flags(parser, task)
    task.add_argument('--images', help='folder of photographs, or one, for pictures and JSON files')
    task.add_argument('--video', help='video file, URL, or number or device of a camera, for an annotated video and '
                                      'JSON lines')
    parser.add_argument('--show', action='store_true', help='show the frames of --video in a window; q ends')
    parser.add_argument('--smooth', action='store_true', help='steady the keypoints of --video from frame to frame')
    parser.add_argument('--split', default='val2017', help='split of --datapath, or a path to its annotation file')
    pose_cli.add_valid_share(parser, "only the images of --split that train.py's --valid-share left for validation")
    parser.add_argument('--category', help='of the annotations, where several have keypoints, or all')
    parser.add_argument('--limit', type=pose_cli.positive_int, help='only the first so many images or frames')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--input-size', type=pose_cli.size, metavar='WxH',
                      help="of the network's input, as 432x368; images are letterboxed into it (the graph's own, or "
                           '%dx%d)' % DEFAULT_SIZE)
    size.add_argument('--scale', type=pose_cli.positive_int, metavar='PIXELS',
                      help='short edge of the input; each image keeps its shape')
    parser.add_argument('--scales', type=scales, default=(1.0,), metavar='A,B,...',
                        help='average the maps of the input at these scales, as 0.5,1,1.5,2 (1)')
    parser.add_argument('--flip', action='store_true', help='also average in the maps of the mirrored images')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4,
                        help='images of equal size that go through the network at once')
    parser.add_argument('--threshold', type=pose_cli.real_number(0, 1), default=PEAK_THRESHOLD,
                        help='least height of a peak in the heatmaps that counts as a part')
    parser.add_argument('--min-score', type=pose_cli.real_number(0, 1), default=0.0,
                        help='people of a lower score are left out')
    parser.add_argument('--decoders', type=pose_cli.process_count,
                        help='processes that decode maps, besides the one that runs the network (one a spare core)')
    parser.add_argument('--output-dir', help='where results and pictures go (%s, or the next free %s-N)'
                        % (OUTPUT_DIR, OUTPUT_DIR))
    parser.add_argument('--pictures', type=pose_cli.positive_int, default=8,
                        help='number of images in the picture beside the results')
    args = parser.parse_args()
    if args.images or args.video:
        args.datapath = None  # $COCO_DIR is not meant
    elif not args.datapath:
        parser.error('give --datapath=DIR (or $COCO_DIR) for AP, or --images=DIR or --video=FILE for pictures')
    if args.model and not (args.checkpoint or args.weights):
        parser.error('--model goes with --checkpoint and --weights; a graph needs none')
    if args.show and not args.video:
        parser.error('--show goes with --video')
    if args.smooth and not args.video:
        parser.error('--smooth goes with --video')
    if args.oracle and (args.images or args.video):
        parser.error('--oracle needs labels: give --datapath')
    if any(side % SIZE_MULTIPLE for side in args.input_size or ()):
        parser.error('--input-size=%dx%d: both sides must be multiples of %d' % (*args.input_size, SIZE_MULTIPLE))
    if args.images and args.output_dir and os.path.realpath(args.images) == os.path.realpath(args.output_dir):
        parser.error('--output-dir is the folder of the photographs; give another one')
    check_network(parser, args)
    if args.output_dir is None:
        args.output_dir = pose_files.free_folder(OUTPUT_DIR)
    elif os.path.isdir(args.output_dir) and os.listdir(args.output_dir):
        logging.warning('--output-dir=%s is not empty: files of the same names are replaced', args.output_dir)
    return args


def check_network(parser, args):
    """What can be known of the flags' network without TensorFlow. Sets checkpoint and model for weights."""
    if args.graph and not os.path.isfile(args.graph):
        raise UserError('there is no graph %s; give the path of a frozen graph (.pb) or a .tflite file' % args.graph)
    if args.weights and not is_weights_file(args.weights):
        raise UserError('there is no file of weights %s; give one that scripts/export_weights.py wrote, or a '
                        'checkpoint with --checkpoint' % args.weights)
    if args.checkpoint or args.weights:
        args.checkpoint = args.checkpoint or args.weights
        find_checkpoint(args.checkpoint)
        args.model = args.model or model_of(args.checkpoint) or args.weights and DEFAULT_MODEL
        if not args.model:
            parser.error('--checkpoint needs --model, the network it was trained with')
        networks.entry(args.model)


def main():
    pose_cli.log_to_stderr()
    args = parse_flags()
    # What is missing shows before TensorFlow takes its time.
    split = part_name(args.split, 'valid', args.valid_share)
    files = find_split(args.datapath, split, args.imgpath) if args.datapath else None
    if args.images:
        photographs = image_paths(args.images, skip=args.output_dir)
    elif args.video:
        video.Frames(args.video).close()
        if args.show:
            video.check_display()
    with start_decoders(args.decoders) as decoders:
        dataset = read_labels(files[0], args.category, files[1]) if files else None
        own = None if args.oracle else read_skeleton(args.graph, args.checkpoint)
        skeleton = choose_skeleton(own, dataset and dataset.skeleton, args.datapath)
        predict_maps = None
        if not args.oracle:
            predict_maps, fixed_size = open_network(args.graph, args.checkpoint, args.model, args.threads, skeleton)
            args.input_size = choose_size(args.graph, fixed_size, args.input_size, args.scale, args.scales)
        options = dict(decoders=decoders, batchsize=args.batchsize, limit=args.limit, input_size=args.input_size,
                       short_edge=args.scale, scales=args.scales, flip=args.flip, threshold=args.threshold,
                       min_score=args.min_score)
        with pose_files.output_folder(args.output_dir):
            if args.datapath:
                evaluate_data_set(predict_maps, dataset, *files, args.output_dir, args.split, args.pictures,
                                  oracle_stride=args.oracle, **options)
            elif args.images:
                root = args.images if os.path.isdir(args.images) else os.path.dirname(os.path.abspath(args.images))
                draw_photographs(predict_maps, skeleton, photographs, root, args.output_dir, **options)
            else:
                *paths, summary = video.find_people_in_video(predict_maps, skeleton, args.video, args.output_dir,
                                                             pose_cli.StopSignal(), show=args.show,
                                                             smooth=args.smooth, **options)
                print('video: %s\njson lines: %s' % tuple(paths))
                print(json.dumps(summary))


def read_labels(annotation_file, category, image_folder):
    """The annotations.coco.Dataset of a file; what was inferred and skipped is logged."""
    dataset = read_dataset(annotation_file, category, image_folder)
    if summary_of(dataset):
        logging.warning('%s: %s', annotation_file, summary_of(dataset))
    log_turned_images(image_folder, [image['file_name'] for image in dataset.images],
                      [(image['width'], image['height']) for image in dataset.images])
    return dataset


def choose_size(graph, fixed_size, input_size, short_edge, scales):
    """The network's input size: the one that it is fixed to, else the one that is asked for. Raises UserError."""
    if fixed_size and (short_edge or set(scales) != {1.0} or (input_size or fixed_size) != fixed_size):
        raise UserError('the input of %s is fixed to %dx%d; leave out --input-size, --scale and --scales, or '
                        'freeze the graph with --input-size=dynamic' % (graph, *fixed_size))
    return fixed_size or input_size


if __name__ == '__main__':
    pose_cli.run(main)
