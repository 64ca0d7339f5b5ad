"""From a training checkpoint to a graph that is ready for inference, with proof of each step.

Writes to --output-dir: graph.pb (inference graph, text), graph_frozen.pb (with the checkpoint's values), graph_opt.pb
(folded), and report.json, whose figures are also printed. --tflite adds graph_float.tflite and graph_float16.tflite,
--quantize=int8 graph_int8.tflite (8 bit), --quantize=nodes or weights graph_q.pb (8 bit, TF 1.x only), --saved-model
saved_model/1.
With --graph, a frozen graph made elsewhere takes the place of the first two. Exit code 4: something could not be
folded, or a file computes something else and was not written; the error names it.
"""
import argparse
import importlib.util
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli

pose_cli.prepare_process()

import networks
import pose_files
from annotations.splits import find_split
from inference import tflite_runtime
from inference.photographs import find_photographs
from networks.pretrained import find_checkpoint, model_of
from pose_dataset import check_input_size
from pose_errors import UserError

TRANSFORMS = ('nodes', 'weights')  # what --quantize does with transforms of TensorFlow 1.x
CALIBRATION_IMAGES = 32


def main():
    args = parse_flags()
    check_flags(args)
    pose_cli.log_to_stderr()
    import export_graphs  # TensorFlow comes with it
    sources = export_graphs.Sources(args.datapath, args.imgpath, args.category, args.split, args.calibration_split,
                                    args.images, args.max_samples, args.calibration_images)
    export_graphs.export(args.output_dir, sources, args.graph, args.checkpoint, args.model, args.input_size,
                         args.quantize, args.tflite, args.saved_model, args.threads, args.runs, args.batch_norm_from,
                         args.onnx)


def parse_flags():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0], epilog='\n'.join(__doc__.splitlines()[2:]))
    parser.add_argument('--model', type=networks.model_name,
                        help="the network that was trained (that of the weights or of the checkpoint's run.json)")
    parser.add_argument('--checkpoint', help='prefix of a checkpoint, its folder (then the newest in it), or a file of '
                        'weights')
    parser.add_argument('--graph', help='optimize this frozen graph, made elsewhere, instead of a checkpoint')
    parser.add_argument('--batch-norm-from', metavar='PHOTOS', help='for a --graph whose batch norm is in training '
                        'mode: take its statistics from photographs, of a folder or one')
    parser.add_argument('--output-dir', required=True, help='where the files go')
    parser.add_argument('--input-size', type=size_or_dynamic, help='width x height of the input that graph_opt.pb '
                        'takes, or dynamic for any; without it the size that the graph has, or 368x368')
    parser.add_argument('--tflite', action='store_true', help='also write graph_float.tflite and '
                        'graph_float16.tflite, whose weights take half the size, for TensorFlow Lite')
    parser.add_argument('--quantize', nargs='?', const='nodes', choices=TRANSFORMS + ('int8',),
                        help='int8: also write graph_int8.tflite, weights and computation in 8 bit, calibrated on '
                        'images of --calibration-split or on --images; nodes (or no value) and weights: graph_q.pb, '
                        'weights and computation or the weights alone (TF 1.x)')
    parser.add_argument('--onnx', action='store_true', help='also write graph.onnx, for ONNX Runtime (TensorFlow 2)')
    parser.add_argument('--saved-model', action='store_true', help='also write saved_model/1, for TensorFlow Serving')
    parser.add_argument('--datapath', help='COCO folder; the validation loss and AP of each graph go into the report')
    parser.add_argument('--imgpath', help='where the image folders are, if not in --datapath')
    parser.add_argument('--split', default='val2017', help='split of --datapath to measure on, or a path to its '
                        'annotation file')
    parser.add_argument('--category', help='of the annotations, where several have keypoints, or all')
    parser.add_argument('--calibration-split', default='train2017', help='the same, to calibrate on')
    parser.add_argument('--calibration-images', type=pose_cli.positive_int, default=CALIBRATION_IMAGES,
                        help='so many at most')
    parser.add_argument('--images', help='folder of images to compare the graphs and calibrate on; without it images '
                        'of --datapath, or to compare on a photograph that comes with matplotlib')
    parser.add_argument('--max-samples', type=pose_cli.positive_int, default=200,
                        help='so many validation images at most')
    parser.add_argument('--threads', type=pose_cli.positive_process_count,
                        help='of the processor, for each runtime; all by default')
    parser.add_argument('--runs', type=pose_cli.positive_int, default=20, help='timed runs of each graph')
    args = parser.parse_args()
    if bool(args.graph) == bool(args.checkpoint):
        raise UserError('give either --checkpoint or --graph')
    parser.check_company(args, dict.fromkeys(('--split', '--imgpath', '--category', '--calibration-split'),
                                             ('--datapath',)))
    if args.batch_norm_from and not args.graph:
        raise UserError('--batch-norm-from goes with --graph; checkpoints have the statistics of training')
    if args.checkpoint:
        args.model = args.model or model_of(args.checkpoint)
        if not args.model:
            raise UserError('no run.json beside --checkpoint=%s names the network: give --model, one of %s'
                            % (args.checkpoint, ', '.join(networks.NAMES)))
    return args


def check_flags(args):
    """Raises UserError for what is known to be impossible before anything is read."""
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError('freezing needs TensorFlow, which is not installed here; run bash scripts/setup_env.sh')
    if args.quantize in TRANSFORMS and not os.environ.get('TRANSFORM_GRAPH') and not has_transforms():
        raise UserError('--quantize=%s needs the transforms of TensorFlow 1.x, which is not installed here; use '
                        '--quantize=int8, TF 1.15 (TF=1 bash scripts/setup_env.sh), or set $TRANSFORM_GRAPH to a '
                        'transform_graph binary' % args.quantize)
    if args.onnx and not all(importlib.util.find_spec(name) for name in ('tf2onnx', 'onnxruntime')):
        raise UserError('--onnx needs tf2onnx and ONNX Runtime, which are not installed here; run TF=2 bash '
                        'scripts/setup_env.sh, and this in that environment')
    if args.model and args.input_size not in (None, 'dynamic'):
        check_input_size(*args.input_size, networks.stride(args.model), '--input-size')
    if args.tflite or args.quantize == 'int8':
        flag = '--tflite' if args.tflite else '--quantize=int8'
        if args.input_size == 'dynamic':
            raise UserError('%s needs a fixed size, as in --input-size=368x368: TensorFlow Lite plans its memory ahead'
                            % flag)
        tflite_runtime.interpreter_class()
    if args.quantize == 'int8' and not (args.datapath or args.images):
        raise UserError('--quantize=int8 needs images to calibrate on: give --datapath=COCO or --images=FOLDER, with '
                        'pictures like those that the network will see')
    pose_files.check_folder(args.output_dir)
    # What is missing shows before TensorFlow takes its time.
    if args.checkpoint:
        find_checkpoint(args.checkpoint)
    elif not os.path.isfile(args.graph):
        raise UserError('there is no graph %s; give the path of a frozen graph (.pb)' % args.graph)
    for folder in filter(None, (args.images, args.batch_norm_from)):
        find_photographs(folder)
    if args.datapath:
        find_split(args.datapath, args.split, args.imgpath)
        if args.quantize == 'int8' and not args.images:
            find_calibration_split(args.datapath, args.calibration_split, args.imgpath)


def find_calibration_split(datapath, split, imgpath):
    """find_split, with a remedy where there are no training images."""
    try:
        find_split(datapath, split, imgpath)
    except UserError as error:
        raise UserError('no images to calibrate --quantize=int8 on: %s; or give another with --calibration-split, or '
                        '--images=FOLDER' % error)


def has_transforms():
    """Whether the TensorFlow that is installed has graph transforms, as 1.x does; without importing it."""
    packages = [importlib.util.find_spec(name) for name in ('tensorflow', 'tensorflow_core')]
    folders = [folder for package in packages if package for folder in package.submodule_search_locations or ()]
    return any(os.path.isdir(os.path.join(folder, 'tools', 'graph_transforms')) for folder in folders)


def size_or_dynamic(text):
    """argparse type: 'dynamic', or a size as (width, height)."""
    if text == 'dynamic':
        return text
    try:
        return pose_cli.size(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError('%s, nor dynamic' % error)


if __name__ == '__main__':
    pose_cli.run(main)
