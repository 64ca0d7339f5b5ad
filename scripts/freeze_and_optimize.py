"""From a training checkpoint to a graph that is ready for inference, with proof of each step.

Writes to --output-dir: graph.pb (inference graph, text), graph_frozen.pb (with the checkpoint's values), graph_opt.pb
(folded), and report.json, whose figures are also printed. --tflite adds graph_float.tflite, --quantize=int8
graph_int8.tflite (8 bit), --quantize=nodes or weights graph_q.pb (8 bit, TF 1.x only), --saved-model saved_model/1.
With --graph, a frozen graph made elsewhere takes the place of the first two. Exit code 4: something could not be
folded; the error names it.
"""
import argparse
import collections
import glob
import itertools
import json
import logging
import os
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow.compat.v1 as tf  # noqa: E402

import networks  # noqa: E402
import pose_annotations  # noqa: E402
import pose_augment  # noqa: E402
import pose_cli  # noqa: E402
import pose_samples  # noqa: E402
import pose_skeleton  # noqa: E402
from graphs import freeze, graphdef, optimize, report, saved_model, tflite, tflite_runtime  # noqa: E402
from graphs.predict import SKELETON_FILE, limit_threads, load_network, read_skeleton  # noqa: E402
from networks.pretrained import find_checkpoint  # noqa: E402
from pose_average import SIZE_MULTIPLE  # noqa: E402
from pose_cli import UserError  # noqa: E402
from pose_image import BadSample, read_photograph  # noqa: E402
from pose_metrics import evaluate  # noqa: E402
from pose_samples import check_input_size  # noqa: E402

DEFAULT_SIZE = (368, 368)
OPTIMIZED_TOLERANCE = 1e-4  # of the frozen graph's largest output
MAX_COMPARED_IMAGES = 16
CALIBRATION_IMAGES = 32
SLOW = 10  # times the frozen graph's latency: too slow to run on all validation images

# The weights become 8 bit and are expanded when they are used; `nodes` also computes in 8 bit.
QUANTIZE_WEIGHTS = ['add_default_attributes', 'quantize_weights', 'strip_unused_nodes', 'sort_by_execution_order']
QUANTIZE_NODES = ['add_default_attributes', 'quantize_weights', 'quantize_nodes', 'strip_unused_nodes',
                  'sort_by_execution_order']
QUANTIZE = {'weights': QUANTIZE_WEIGHTS, 'nodes': QUANTIZE_NODES}


def main():
    args = parse_flags()
    check_flags(args)
    limit_threads(args.threads)
    graphs = collections.OrderedDict()
    if args.graph:
        graphs['graph_frozen'] = freeze.load_frozen(args.graph)
        skeleton = read_skeleton(args.graph) or pose_skeleton.COCO
    else:
        checkpoint = find_checkpoint(args.checkpoint)
        size = None if args.input_size == 'dynamic' else args.input_size or DEFAULT_SIZE
        skeleton = read_skeleton(checkpoint=args.checkpoint) or pose_skeleton.COCO
        inference_graph = freeze.network_graph(args.model, size, skeleton)
        graphs['graph_frozen'] = freeze.freeze(inference_graph, checkpoint)
    width, height = measured_size(graphs['graph_frozen'], args.input_size)
    images, samples = read_images(args, width, height, stride_at(graphs['graph_frozen'], width, height))
    calibration = read_calibration_images(args, width, height) if args.quantize == 'int8' else None

    pose_cli.make_folder(args.output_dir)

    input_shape = None if args.input_size == 'dynamic' else [1, height, width, 3]
    graphs['graph_opt'] = optimize.optimize(graphs['graph_frozen'], input_shape)
    if args.quantize in QUANTIZE:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                  QUANTIZE[args.quantize])
    marked = collections.OrderedDict((name, freeze.with_skeleton(graph, skeleton)) for name, graph in graphs.items())
    pose_cli.write_file(os.path.join(args.output_dir, SKELETON_FILE), skeleton.to_json().encode())
    files = write_graphs(marked, args.output_dir)
    if args.checkpoint:
        freeze.save_graph(inference_graph, os.path.join(args.output_dir, 'graph.pb'), text=True)
    files.update(write_tflite(graphs['graph_frozen'], args, [1, height, width, 3], calibration))
    if args.saved_model:
        # Any number of images at once, whatever graph_opt.pb takes.
        saved_model.save(optimize.optimize(graphs['graph_frozen']), os.path.join(args.output_dir, 'saved_model', '1'))

    predictors = {name: load_network(path, threads=args.threads)[0] for name, path in files.items()}
    rows = report.measure(predictors, images, args.runs)
    for name, row in rows.items():
        row.update(bytes=os.path.getsize(files[name]), **describe(marked.get(name), files[name]))
    add_accuracy(rows, predictors, samples, args, width, height)
    pose_cli.write_file(os.path.join(args.output_dir, 'report.json'), json.dumps(rows, indent=2).encode('ascii'))
    print(report.format_table(rows, '%s at %dx%d, %d image(s), %s thread(s), TensorFlow %s'
                              % (args.graph or checkpoint, width, height, len(images), args.threads or os.cpu_count(),
                                 tf.__version__)))
    check_optimized(graphs['graph_opt'], rows['graph_opt']['max_rel_diff'])


def check_optimized(graph, difference):
    """Raises UserError, with exit code 4, when something was left that should have been folded, or outputs differ."""
    leftovers = optimize.find_leftovers(graph)
    if leftovers:
        raise UserError('graph_opt.pb is not fully optimized: %s' % optimize.list_leftovers(leftovers), exit_code=4)
    if not difference <= OPTIMIZED_TOLERANCE:
        raise UserError('the output of graph_opt.pb differs from that of graph_frozen.pb by %.2g of its largest value, '
                        'more than %g; use graph_frozen.pb' % (difference, OPTIMIZED_TOLERANCE), exit_code=4)


def parse_flags():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0], epilog='\n'.join(__doc__.splitlines()[2:]))
    parser.add_argument('--model', choices=networks.NAMES, help='the network that was trained')
    parser.add_argument('--checkpoint', help='prefix of a checkpoint, or its folder (then the newest in it)')
    parser.add_argument('--graph', help='optimize this frozen graph, made elsewhere, instead of a checkpoint')
    parser.add_argument('--output-dir', required=True)
    parser.add_argument('--input-size', type=size_or_dynamic, help='width x height of the input that graph_opt.pb '
                        'takes, or dynamic for any; without it the size that the graph has, or 368x368')
    parser.add_argument('--tflite', action='store_true', help='also write graph_float.tflite, for TensorFlow Lite')
    parser.add_argument('--quantize', nargs='?', const='nodes', choices=sorted(QUANTIZE) + ['int8'],
                        help='int8: also write graph_int8.tflite, weights and computation in 8 bit, calibrated on '
                        'training images of --datapath or on --images; nodes (or no value) and weights: graph_q.pb, '
                        'weights and computation or the weights alone (TF 1.x)')
    parser.add_argument('--calibration-images', type=pose_cli.positive_int, default=CALIBRATION_IMAGES,
                        help='so many at most')
    parser.add_argument('--saved-model', action='store_true', help='also write saved_model/1, for TensorFlow Serving')
    parser.add_argument('--datapath', help='COCO folder; the validation loss and AP of each graph go into the report')
    parser.add_argument('--imgpath', help='where the image folders are, if not in --datapath')
    parser.add_argument('--images', help='folder of images to compare the graphs on; without it validation images of '
                        '--datapath, or a photograph that comes with matplotlib')
    parser.add_argument('--max-samples', type=pose_cli.positive_int, default=200,
                        help='so many validation images at most')
    parser.add_argument('--threads', type=pose_cli.positive_int,
                        help='of the processor, for each runtime; all by default')
    parser.add_argument('--runs', type=pose_cli.positive_int, default=20, help='timed runs of each graph')
    args = parser.parse_args()
    if bool(args.graph) == bool(args.checkpoint):
        raise UserError('give either --checkpoint (with --model) or --graph')
    if args.checkpoint and not args.model:
        raise UserError('--checkpoint needs the --model that was trained: one of %s' % ', '.join(networks.NAMES))
    return args


def check_flags(args):
    """Raises UserError for what is known to be impossible before anything is read."""
    if args.quantize in QUANTIZE and not freeze.can_transform():
        raise UserError('--quantize=%s needs the transforms of TensorFlow 1.x, and this is %s; use --quantize=int8, '
                        'TF 1.15 (TF=1 bash scripts/setup_env.sh), or set $TRANSFORM_GRAPH to a transform_graph binary'
                        % (args.quantize, tf.__version__))
    if args.model and args.input_size not in (None, 'dynamic'):
        check_input_size(*args.input_size, networks.stride(args.model))
    if args.tflite or args.quantize == 'int8':
        flag = '--tflite' if args.tflite else '--quantize=int8'
        if args.input_size == 'dynamic':
            raise UserError('%s needs a fixed size, as in --input-size=368x368: TensorFlow Lite plans its memory ahead'
                            % flag)
        tflite_runtime.interpreter_class()
    if args.quantize == 'int8' and not (args.datapath or args.images):
        raise UserError('--quantize=int8 needs images to calibrate on: give --datapath=COCO or --images=FOLDER, with '
                        'pictures like those that the network will see')


def size_or_dynamic(text):
    """argparse type: 'dynamic', or a size as (width, height)."""
    if text == 'dynamic':
        return text
    try:
        return pose_cli.size(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError('%s, nor dynamic' % error)


# The graphs.

def measured_size(graph, asked):
    """The (width, height) to measure at: the size asked for, or the graph's own, or the default."""
    if asked not in (None, 'dynamic'):
        return asked
    shape = graphdef.input_shape(graph)
    height, width = shape.as_list()[1:3] if shape.rank else (None, None)
    return width or DEFAULT_SIZE[0], height or DEFAULT_SIZE[1]


def stride_at(graph, width, height):
    """Input pixels per output cell. Raises UserError when the size is not a multiple of it."""
    _, columns = optimize.output_shape(graph, [1, height, width, 3])
    stride = int(round(width / columns))
    check_input_size(width, height, stride)
    return stride


def write_graphs(graphs, folder):
    """Save frozen graphs; {name: path}."""
    files = collections.OrderedDict((name, os.path.join(folder, name + '.pb')) for name in graphs)
    for name, path in files.items():
        freeze.save_graph(graphs[name], path)
    return files


def write_tflite(graph, args, input_shape, calibration):
    """Save the .tflite files that the flags ask for; {name: path}."""
    files = collections.OrderedDict()
    if args.tflite:
        files['graph_float'] = tflite.convert(graph, input_shape)
    if args.quantize == 'int8':
        files['graph_int8'] = tflite.quantize(graph, calibration)
    for name, data in files.items():
        files[name] = os.path.join(args.output_dir, name + '.tflite')
        pose_cli.write_file(files[name], data)
    return files


# Images.

def read_images(args, width, height, stride):
    """Images to compare on, uint8 (N, height, width, 3) BGR, and validation samples or None without --datapath."""
    samples = None
    if args.datapath:
        samples = read_validation_samples(args, width, height, stride)
    if args.images:
        return read_folder(args.images, width, height, MAX_COMPARED_IMAGES), samples
    if samples:
        return np.stack([sample[0] for sample in samples[:MAX_COMPARED_IMAGES]]), samples
    photograph = os.path.join(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    return fitted_images([photograph], width, height), None


def read_calibration_images(args, width, height):
    """Images for quantization to measure activations on: of --images, else training images; as read_images's."""
    if args.images:
        return read_folder(args.images, width, height, args.calibration_images)
    dataset = pose_samples.PoseDataset(args.datapath, 'train2017', width, height, SIZE_MULTIPLE, args.imgpath)
    count = len(dataset.validation_images)
    images = []
    for index in np.linspace(0, count - 1, min(count, args.calibration_images)).astype(int):
        try:
            images.append(dataset.validation_sample(index).image)
        except BadSample as error:
            logging.warning('not calibrated on %s', error)
    if not images:
        raise UserError('--quantize=int8: no training image of --datapath=%s can be read; give --images=FOLDER'
                        % args.datapath)
    return np.stack(images)


def read_folder(folder, width, height, limit):
    """The first images of a folder, evenly chosen, fitted into the input: uint8 (N, height, width, 3) BGR."""
    paths = sorted(path for path in glob.glob(os.path.join(glob.escape(folder), '*'))
                   if path.lower().endswith(('.jpg', '.jpeg', '.png')))
    if not paths:
        raise UserError('no .jpg or .png in --images=%s; give a folder of images' % folder)
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), limit)).astype(int)
    return fitted_images([paths[index] for index in chosen], width, height)


def fitted_images(paths, width, height):
    images = []
    for path in paths:
        try:
            image = read_photograph(path)
        except BadSample as error:
            raise UserError('%s; remove it' % error)
        matrix = pose_augment.fit_matrix(image.shape[1], image.shape[0], width, height)
        images.append(pose_augment.warp_image(image, matrix, width, height))
    return np.stack(images)


def read_validation_samples(args, width, height, stride):
    """The first validation samples of --datapath: lists of image, heatmap, paf and mask."""
    dataset = pose_samples.PoseDataset(args.datapath, 'val2017', width, height, stride, args.imgpath)
    found = pose_samples.validation_samples(dataset)
    samples = [list(sample[:4]) for sample in itertools.islice(found, args.max_samples)]
    if not samples:
        raise UserError('no validation image with people in --datapath=%s' % args.datapath)
    return samples


# Measurements.

def describe(graph, path):
    """What a graph consists of, and what runs it; graph is the GraphDef of a .pb file."""
    if graph is None:
        ops = tflite_runtime.count_ops(path)
        return {'nodes': sum(ops.values()), 'ops': ops, 'runtime': tflite_runtime.runtime_name()}
    return {'nodes': len(graph.node),
            'ops': dict(collections.Counter(node.op for node in graph.node).most_common()),
            'batch_norms': len(optimize.find_batch_norms(optimize.simplify(graph))),
            'runtime': 'TensorFlow'}


def add_accuracy(rows, predictors, samples, args, width, height):
    """Add validation_loss and AP to the rows of a report, with --datapath."""
    if not samples:
        return
    annotation_file, image_folder = pose_annotations.find_split(args.datapath, 'val2017', args.imgpath)
    for name, row in rows.items():
        if row['latency_ratio'] > SLOW and row['runtime'] != 'TensorFlow':
            logging.warning('%s takes %.0f times as long as graph_frozen with %s: its validation loss and AP are left '
                            'out. Measure them on Python 3.10 or newer: pose_eval.py --graph=%s.tflite',
                            name, row['latency_ratio'], row['runtime'], name)
            continue
        row['validation_loss'] = report.validation_loss(predictors[name], samples)
        summary, _, _ = evaluate(predictors[name], annotation_file, image_folder, input_size=(width, height),
                                 limit=args.max_samples, progress=False)
        row['AP'] = summary['AP']


if __name__ == '__main__':
    pose_cli.run(main)
