"""From a training checkpoint to a graph that is ready for inference, with proof of each step.

Writes to --output-dir: graph.pb (inference graph, text), graph_frozen.pb (with the checkpoint's values), graph_opt.pb
(folded), with --quantize graph_q.pb (8 bit), and report.json, whose figures are also printed. With --graph, a frozen
graph made elsewhere takes the place of the first two. Exit code 4: something could not be folded; the error names it.
"""
import argparse
import collections
import glob
import itertools
import os
import statistics
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import matplotlib
import numpy as np
import tensorflow.compat.v1 as tf

import networks
import pose_augment
import pose_cli
import pose_samples
from graphs import freeze, graphdef, optimize
from graphs.predict import graph_network
from networks.pretrained import find_checkpoint
from pose_cli import UserError

DEFAULT_SIZE = (368, 368)
OPTIMIZED_TOLERANCE = 1e-4  # of the frozen graph's largest output
WARM_UP_RUNS = 2  # TensorFlow rewrites the graph in the first one
MAX_COMPARED_IMAGES = 16

# The weights become 8 bit and are expanded when they are used; `nodes` also computes in 8 bit.
QUANTIZE_WEIGHTS = ['add_default_attributes', 'quantize_weights', 'strip_unused_nodes', 'sort_by_execution_order']
QUANTIZE_NODES = ['add_default_attributes', 'quantize_weights', 'quantize_nodes', 'strip_unused_nodes',
                  'sort_by_execution_order']
QUANTIZE = {'weights': QUANTIZE_WEIGHTS, 'nodes': QUANTIZE_NODES}


def main():
    flags = parse_flags()
    if flags.graph:
        source, inference_graph, frozen = flags.graph, None, freeze.load_frozen(flags.graph)
    else:
        source = find_checkpoint(flags.checkpoint)
        inference_graph = freeze.inference_graph(flags.model, built_size(flags.input_size))
        frozen = freeze.freeze(inference_graph, source)
    graphs = collections.OrderedDict(graph_frozen=frozen)
    width, height = measured_size(frozen, flags.input_size)
    images, samples = read_images(flags, width, height, stride_at(frozen, width, height))

    pose_cli.make_folder(flags.output_dir)

    input_shape = None if flags.input_size == 'dynamic' else [1, height, width, 3]
    graphs['graph_opt'] = optimize.optimize(frozen, input_shape)
    if flags.quantize:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                  QUANTIZE[flags.quantize])
    files = {name: os.path.join(flags.output_dir, name + '.pb') for name in graphs}
    for name, graph in graphs.items():
        freeze.save_graph(graph, files[name])
    if inference_graph:
        freeze.save_graph(inference_graph, os.path.join(flags.output_dir, 'graph.pb'), text=True)

    report = measure(graphs, images, samples, flags.runs)
    for name, row in report.items():
        row.update(bytes=os.path.getsize(files[name]), **describe(graphs[name]))
    pose_cli.write_json(os.path.join(flags.output_dir, 'report.json'), report, indent=2, sort_keys=False)
    print_table(report, '%s at %dx%d, %d image(s), TensorFlow %s'
                % (source, width, height, len(images), tf.__version__))
    check_optimized(graphs['graph_opt'], report['graph_opt']['max_rel_diff'])


def check_optimized(graph, difference):
    """Raise UserError when something was not folded, or when the output differs by more than OPTIMIZED_TOLERANCE."""
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
    parser.add_argument('--quantize', nargs='?', const='nodes', choices=sorted(QUANTIZE),
                        help='also write graph_q.pb: weights and computation in 8 bit, or the weights alone (TF 1.x)')
    parser.add_argument('--datapath', help='COCO folder; the validation loss of each graph goes into the report')
    parser.add_argument('--imgpath', help='where the image folders are, if not in --datapath')
    parser.add_argument('--images', help='folder of images to compare the graphs on; without it validation images of '
                        '--datapath, or a photograph that comes with matplotlib')
    parser.add_argument('--max-samples', type=pose_cli.positive_int, default=200,
                        help='so many validation images at most')
    parser.add_argument('--runs', type=pose_cli.positive_int, default=20, help='timed runs of each graph')
    flags = parser.parse_args()
    if bool(flags.graph) == bool(flags.checkpoint):
        raise UserError('give either --checkpoint (with --model) or --graph')
    if flags.checkpoint and not flags.model:
        raise UserError('--checkpoint needs the --model that was trained: one of %s' % ', '.join(networks.NAMES))
    if flags.quantize and not freeze.can_transform():
        raise UserError('--quantize needs the transforms of TensorFlow 1.x, and this is %s; use TF 1.15 (TF=1 bash '
                        'scripts/setup_env.sh), or set $TRANSFORM_GRAPH to a transform_graph binary' % tf.__version__)
    if flags.model and flags.input_size not in (None, 'dynamic'):
        pose_samples.check_input_size(*flags.input_size, stride=networks.stride(flags.model), flag='--input-size')
    return flags


def size_or_dynamic(text):
    """argparse type: 'dynamic', or a size as (width, height)."""
    if text == 'dynamic':
        return text
    try:
        return pose_cli.size(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError('%s, nor dynamic' % error)


# The graphs.

def built_size(asked):
    """The (width, height) that the inference graph is for, from the flag --input-size; None: any."""
    return None if asked == 'dynamic' else asked or DEFAULT_SIZE


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
    pose_samples.check_input_size(width, height, stride, flag='--input-size')
    return stride


# Measurements.

def read_images(flags, width, height, stride):
    """Images to compare on, uint8 (N, height, width, 3) BGR, and validation samples or None without --datapath."""
    samples = None
    if flags.datapath:
        samples = validation_samples(flags, width, height, stride)
    if flags.images:
        paths = sorted(path for path in glob.glob(os.path.join(glob.escape(flags.images), '*'))
                       if path.lower().endswith(('.jpg', '.jpeg', '.png')))[:MAX_COMPARED_IMAGES]
        if not paths:
            raise UserError('no .jpg or .png in --images=%s; give a folder of images' % flags.images)
    elif samples:
        return np.stack([sample.image for sample in samples[:MAX_COMPARED_IMAGES]]), samples
    else:
        paths = [os.path.join(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')]
    images = []
    for path in paths:
        image = cv2.imread(path)
        if image is None:
            raise UserError('%s is not an image that OpenCV can read; remove it' % path)
        matrix = pose_augment.fit_matrix(image.shape[1], image.shape[0], width, height)
        images.append(pose_augment.warp_image(image, matrix, width, height))
    return np.stack(images), samples


def validation_samples(flags, width, height, stride):
    """The first validation samples of --datapath, as a list."""
    dataset = pose_samples.PoseDataset(flags.datapath, 'val2017', width, height, stride, flags.imgpath)
    samples = list(itertools.islice(pose_samples.validation_samples(dataset), flags.max_samples))
    if not samples:
        raise UserError('no validation image with people in --datapath=%s' % flags.datapath)
    return samples


def measure(graphs, images, samples, runs):
    """Run all graphs on the same images. The first graph is the one that the others are compared with.

    Latency: the graphs take turns, in one order and the other, so that whatever else the machine does meets them all.
    Returns {name: {latency_ms, latency_ratio, max_abs_diff, mean_abs_diff, max_rel_diff, validation_loss if samples}}.
    """
    predict = {name: predictor(graph, name) for name, graph in graphs.items()}
    names = list(graphs)
    seconds = {name: [] for name in graphs}
    for run in range(WARM_UP_RUNS + runs):
        for name in names if run % 2 else names[::-1]:
            start = time.perf_counter()
            predict[name](images[run % len(images)])
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[WARM_UP_RUNS:]) for name, values in seconds.items()}

    reference = names[0]
    expected = [predict[reference](image) for image in images]
    report = collections.OrderedDict()
    for name in names:
        differences = np.abs([predict[name](image) - wanted for image, wanted in zip(images, expected)])
        report[name] = collections.OrderedDict(
            latency_ms=1e3 * median[name],
            latency_ratio=median[name] / median[reference],
            max_abs_diff=float(differences.max()),
            mean_abs_diff=float(differences.mean()),
            max_rel_diff=float(differences.max() / np.max(np.abs(expected))))
        if samples:
            report[name]['validation_loss'] = float(np.mean([loss(predict[name](sample.image), sample)
                                                             for sample in samples]))
    return report


def predictor(graph, name):
    """A function: image (H, W, 3) uint8 -> maps (h, w, C) of a graph."""
    predict_maps, _ = graph_network(graph, name)
    return lambda image: predict_maps(image[None], None)[0]


def loss(maps, sample):
    """The training loss of one sample's last stage: l2_loss(mask * (prediction - label)) over both branches."""
    labels = np.concatenate([sample.heatmap, sample.paf], axis=2)
    return float(np.sum(np.square(sample.mask * (maps - labels)), dtype=np.float64) / 2)


def describe(graph):
    """What a graph consists of."""
    return {'nodes': len(graph.node),
            'ops': dict(collections.Counter(node.op for node in graph.node).most_common()),
            'batch_norms': len(optimize.find_batch_norms(optimize.simplify(graph)))}


def print_table(report, title):
    columns = [('bytes', 'MB', lambda v: '%.2f' % (v / 1e6)), ('nodes', 'nodes', str),
               ('batch_norms', 'batch norms', str),
               ('latency_ms', 'latency ms', '{:.1f}'.format), ('latency_ratio', 'ratio', '{:.2f}'.format),
               ('max_abs_diff', 'max diff', '{:.2g}'.format), ('mean_abs_diff', 'mean diff', '{:.2g}'.format),
               ('max_rel_diff', 'max rel. diff', '{:.2g}'.format),
               ('validation_loss', 'validation loss', '{:.4f}'.format)]
    columns = [column for column in columns if column[0] in report['graph_frozen']]
    print(title)
    print('%-13s' % '' + ''.join(' %15s' % heading for _, heading, _ in columns))
    for name, row in report.items():
        print('%-13s' % name + ''.join(' %15s' % text(row[key]) for key, _, text in columns))
    for name, row in report.items():
        print('%s: %s' % (name, ', '.join('%d %s' % (count, op) for op, count in row['ops'].items())))


if __name__ == '__main__':
    pose_cli.run(main)
