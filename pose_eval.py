"""Network output -> people, COCO AP and pictures.

    python3 pose_eval.py --graph=graph_opt.pb --datapath=COCO                     AP of a frozen graph, or of a .tflite
    python3 pose_eval.py --checkpoint=DIR --model=mobilenet_thin --datapath=COCO  AP of a checkpoint
    python3 pose_eval.py --oracle --datapath=COCO                                 AP of perfect maps: the upper bound
    python3 pose_eval.py --graph=graph_opt.pb --images=DIR --output-dir=DIR       skeletons on photographs
    python3 pose_eval.py --graph=graph_opt.pb --video=FILE --output-dir=DIR       people in a video, numbered
    python3 pose_eval.py ... --scales=0.5,1,1.5,2 --flip                          maps averaged over sizes and mirrored

How the metrics come about is in inference/metrics.py, the page about them in inference/report.py; photographs are the
matter of inference/photographs.py, films of inference/video.py. inference/predictor.py reads images, runs the network,
averages the maps of several sizes and decodes them side by side; inference/decode.py turns maps into people. TensorFlow
is only imported to run a network.
"""
import argparse
import io
import json
import logging
import os
import re
import zipfile

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

import numpy as np

import networks
import pose_draw
import pose_files
from annotations.arrays import log_turned_images
from annotations.coco import read_dataset, summary_of
from annotations.images import write_picture
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split, image_paths, part_name
from inference import open_network, photographs, read_skeleton, report, video
from inference.decode import PEAK_THRESHOLD
from inference.decode import decode_people, least_parts  # noqa: F401 (decode_people is for others)
from inference.metrics import evaluate, keypoints_by_image, labelled_people, table_of
from inference.predictor import DEFAULT_SIZE, SIZE_MULTIPLE, start_decoders
from networks.pretrained import find_checkpoint, is_weights_file, model_of
from pose_errors import UserError

DEFAULT_MODEL = 'mobilenet_thin'
TEST_SET = 'image_info_'  # how the annotation files of COCO's test sets begin: they list images alone
SHEET_SIDE = 640  # pixels of the longer side of a picture on the contact sheet, at most
OUTPUT_DIR = os.path.join('logs', 'eval')
# What such a flag goes with; all others go with every task.
TASKS_OF_FLAGS = dict(dict.fromkeys(('--split', '--imgpath', '--category', '--valid-share', '--pictures', '--oracle'),
                                    ('--datapath',)),
                      **{'--no-pictures': ('--images', '--datapath'), '--maps': ('--images',),
                         '--show': ('--video',), '--smooth': ('--video',)})
# What the report's table of settings takes from the options and from the summary.
SETTING = ('input', 'scales', 'flip', 'threshold', 'min_score', 'batchsize', 'network_ms', 'decode_ms', 'waiting')


def evaluate_data_set(predict_maps, dataset, annotation_file, image_folder, output_dir, split, pictures, limit, network,
                      **options):
    """AP on a data set: table and summary, which is the last line on stdout, results file, picture and report.

    split: gives the files of output_dir their names.  pictures: the number of images in the picture; 0 for no picture
        and no report.  network: its name, for the report.  The others: as for inference.metrics.evaluate.
    """
    summary, results, evaluation = evaluate(predict_maps, annotation_file, image_folder, limit=limit, dataset=dataset,
                                            **options)
    if predict_maps is None:
        summary['network_ms'] = None
    name = os.path.splitext(os.path.basename(split))[0]
    original = {image['id']: image['original_id'] for image in dataset.images}
    results_file = os.path.join(output_dir, results_name(name, network))
    pose_files.write_json(results_file, [dict(result, image_id=original[result['image_id']],
                                              category_id=dataset.category_id) for result in results])
    picture, page = (os.path.join(output_dir, file) for file in ('people_%s.png' % name, 'report.html'))
    print(table_of(evaluation), end='')
    print('results: %s' % results_file)
    if name.startswith(TEST_SET):
        archive_file, content = os.path.splitext(results_file)[0] + '.zip', io.BytesIO()
        with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.write(results_file, os.path.basename(results_file))
        pose_files.write_file(archive_file, content.getbuffer())
        print('for the evaluation server of COCO, which alone has the labels: %s' % archive_file)
    if pictures:
        print('picture: %s\nreport: %s' % (picture, page))
    print(json.dumps(summary), flush=True)
    if pictures:
        write_picture(picture, draw_results(evaluation.cocoGt, image_folder, results, pictures, limit,
                                            dataset.skeleton))
        setting = {'network': network, 'annotations': annotation_file, 'images': image_folder}
        setting.update((key, dict(options, **summary)[key]) for key in SETTING)
        pose_files.write_file(page, report.evaluation_page(
            summary, results, evaluation, dataset.skeleton, image_folder,
            '%s on %s' % (os.path.basename(os.path.normpath(network)), name), setting))


def results_name(name, network):
    """The name of a results file; of a test set of COCO the one that its evaluation server asks for."""
    if not name.startswith(TEST_SET):
        return 'keypoints_%s_results.json' % name
    algorithm = re.sub('[^A-Za-z0-9.-]+', '-', os.path.splitext(os.path.basename(os.path.normpath(network)))[0])
    return 'person_keypoints_%s_%s_results.json' % (name[len(TEST_SET):], algorithm)


def draw_results(coco, image_folder, results, count, limit, skeleton):
    """A contact sheet of the first images with people: labelled people on the left, found people on the right."""
    image_ids, path_of = sorted(coco.getImgIds())[:limit], image_paths(image_folder)
    found, labelled = keypoints_by_image(results), keypoints_by_image(labelled_people(coco, image_ids))
    cells = []
    for image_id in sorted(labelled or found or image_ids)[:count]:
        pixels, scale = report.read_shrunk(coco.loadImgs(image_id)[0], path_of, SHEET_SIDE)
        for people, title in ((labelled, 'labelled'), (found, 'found')):
            joints = skeleton.joints(people.get(image_id, []))
            joints = joints[np.isfinite(joints[:, :, 0]).sum(axis=1) >= least_parts(len(skeleton.parts))] * scale
            drawn = pose_draw.draw_skeletons(pixels, joints, skeleton)
            cells.append(pose_draw.caption(drawn, '%s %s' % (image_id, title)))
    return pose_draw.contact_sheet([cells[i:i + 4] for i in range(0, len(cells), 4)])


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
    task.add_argument('--images', help="photographs, for pictures and JSON files: a folder, a file, or a pattern as "
                                       "'photos/**/*.jpg'")
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
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument('--pictures', type=pose_cli.positive_int, default=8,
                          help='number of images in the picture beside the results of --datapath')
    pictures.add_argument('--no-pictures', dest='pictures', action='store_const', const=0,
                          help='no pictures and no report, only JSON files')
    pictures.add_argument('--maps', action='store_true',
                          help="with --images, also a picture of the network's output over each photograph")
    args = parser.parse_args()
    if args.images or args.video:
        args.datapath = None  # $COCO_DIR is not meant
    elif not args.datapath:
        parser.error('give --datapath=DIR (or $COCO_DIR) for AP, or --images=DIR or --video=FILE for pictures')
    parser.check_company(args, TASKS_OF_FLAGS)
    if args.model and not (args.checkpoint or args.weights):
        parser.error('--model goes with --checkpoint and --weights; a graph needs none')
    if any(side % SIZE_MULTIPLE for side in args.input_size or ()):
        parser.error('--input-size=%dx%d: both sides must be multiples of %d' % (*args.input_size, SIZE_MULTIPLE))
    check_network(parser, args)
    if args.output_dir is None:
        args.output_dir = pose_files.free_folder(OUTPUT_DIR)
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
        given = photographs.find_photographs(args.images, args.output_dir)
    elif args.video:
        video.Frames(args.video).close()
        if args.show:
            video.check_display()
    with start_decoders(args.decoders) as decoders:
        own = None if args.oracle else read_skeleton(args.graph, args.checkpoint)
        dataset = read_labels(*files, args.category, own) if files else None
        skeleton = own or (dataset.skeleton if dataset else COCO_SKELETON)
        predict_maps = None
        if not args.oracle:
            predict_maps, fixed_size = open_network(args.graph, args.checkpoint, args.model, args.threads, skeleton)
            args.input_size = choose_size(args.graph, fixed_size, args.input_size, args.scale, args.scales)
        options = dict(decoders=decoders, batchsize=args.batchsize, limit=args.limit, input_size=args.input_size,
                       short_edge=args.scale, scales=args.scales, flip=args.flip, threshold=args.threshold,
                       min_score=args.min_score)
        if os.path.isdir(args.output_dir) and os.listdir(args.output_dir):
            logging.warning('--output-dir=%s is not empty: files of the same names are replaced', args.output_dir)
        with pose_files.output_folder(args.output_dir):
            if args.datapath:
                network = args.graph or args.checkpoint or 'oracle at stride %d' % args.oracle
                evaluate_data_set(predict_maps, dataset, *files, args.output_dir, args.split, args.pictures,
                                  network=network, oracle_stride=args.oracle, **options)
            elif args.images:
                summary = photographs.draw_photographs(predict_maps, skeleton, given, args.output_dir,
                                                       pictures=args.pictures > 0, maps=args.maps, **options)
                print('pictures and keypoints: %s' % args.output_dir)
                print(json.dumps(summary))
            else:
                *paths, summary = video.find_people_in_video(predict_maps, skeleton, args.video, args.output_dir,
                                                             pose_cli.StopSignal(), show=args.show,
                                                             smooth=args.smooth, **options)
                print('video: %s\njson lines: %s' % tuple(paths))
                print(json.dumps(summary))


def read_labels(annotation_file, image_folder, category, own):
    """The annotations.coco.Dataset of a file, with the keypoints of the network's own Skeleton if that is known; what
    was inferred and skipped is logged."""
    dataset = read_dataset(annotation_file, category, image_folder)
    if own and (own.keypoints != dataset.skeleton.keypoints or not own.finds_the_same(dataset.skeleton)):
        differ = own.keypoints != dataset.skeleton.keypoints
        dataset = read_dataset(annotation_file, category, image_folder, own)
        if differ:
            logging.info('%s labels %d of the %d keypoints of the network: AP is over these', annotation_file,
                         dataset.keypoint_count, len(own.keypoints))
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
