"""From a training checkpoint to a graph that is ready for inference, with proof of each step.

Writes to --output-dir: graph.pb (inference graph, text), graph_frozen.pb (with the checkpoint's values), graph_opt.pb
(folded), with --quantize graph_q.pb (8 bit), and report.json, whose figures are also printed. With --graph, a frozen
graph made elsewhere takes the place of the first two. Exit code 4: something could not be folded; the error names it.
"""
import argparse
import collections
import glob
import json
import os
import statistics
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow.compat.v1 as tf  # noqa: E402

import networks  # noqa: E402
import pose_augment  # noqa: E402
import pose_cli  # noqa: E402
from graphs import freeze, graphdef, optimize  # noqa: E402
from networks.pretrained import find_checkpoint  # noqa: E402
from pose_cli import UserError  # noqa: E402
from pose_samples import check_input_size  # noqa: E402

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
    args = parse_flags()
    if args.quantize and not freeze.can_transform():
        raise UserError('--quantize needs the transforms of TensorFlow 1.x, and this is %s; use TF 1.15 (TF=1 bash '
                        'scripts/setup_env.sh), or set $TRANSFORM_GRAPH to a transform_graph binary' % tf.__version__)
    if args.model and args.input_size not in (None, 'dynamic'):
        check_input_size(*args.input_size, networks.stride(args.model))
    graphs = collections.OrderedDict()
    if args.graph:
        graphs['graph_frozen'] = freeze.load_frozen(args.graph)
    else:
        checkpoint = find_checkpoint(args.checkpoint)
        size = None if args.input_size == 'dynamic' else args.input_size or DEFAULT_SIZE
        inference_graph = freeze.network_graph(args.model, size)
        graphs['graph_frozen'] = freeze.freeze(inference_graph, checkpoint)
    width, height = measured_size(graphs['graph_frozen'], args.input_size)
    images, samples = read_images(args, width, height, stride_at(graphs['graph_frozen'], width, height))

    pose_cli.make_folder(args.output_dir)

    input_shape = None if args.input_size == 'dynamic' else [1, height, width, 3]
    graphs['graph_opt'] = optimize.optimize(graphs['graph_frozen'], input_shape)
    if args.quantize:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                      QUANTIZE[args.quantize])
    files = {name: os.path.join(args.output_dir, name + '.pb') for name in graphs}
    for name, graph in graphs.items():
        freeze.save_graph(graph, files[name])
    if args.checkpoint:
        freeze.save_graph(inference_graph, os.path.join(args.output_dir, 'graph.pb'), text=True)

    report = measure(graphs, images, samples, args.runs)
    for name, row in report.items():
        row.update(bytes=os.path.getsize(files[name]), **describe(graphs[name]))
    pose_cli.write_file(os.path.join(args.output_dir, 'report.json'), json.dumps(report, indent=2).encode('ascii'))
    print_table(report, '%s at %dx%d, %d image(s), TensorFlow %s'
                % (args.graph or checkpoint, width, height, len(images), tf.__version__))

    leftovers = optimize.find_leftovers(graphs['graph_opt'])
    if leftovers:
        raise UserError('graph_opt.pb is not fully optimized: %s' % optimize.list_leftovers(leftovers), exit_code=4)
    difference = report['graph_opt']['max_rel_diff']
    if not difference <= OPTIMIZED_TOLERANCE:
        raise UserError('the output of graph_opt.pb differs from that of graph_frozen.pb by %.2g of its largest value, more '
                        'than %g; use graph_frozen.pb' % (difference, OPTIMIZED_TOLERANCE), exit_code=4)


def parse_flags():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0], epilog='\n'.join(__doc__.splitlines()[2:]))
    parser.add_argument('--model', choices=networks.NAMES, help='the network that was trained')
    parser.add_argument('--checkpoint', help='prefix of a checkpoint, or its folder (then the newest in it)')
    parser.add_argument('--graph', help='optimize this frozen graph, made elsewhere, instead of a checkpoint')
    parser.add_argument('--output-dir', required=True)
    parser.add_argument('--input-size', type=size_or_dynamic, help='width x height of the input that graph_opt.pb takes, '
                        'or dynamic for any; without it the size that the graph has, or 368x368')
    parser.add_argument('--quantize', nargs='?', const='nodes', choices=sorted(QUANTIZE),
                        help='also write graph_q.pb: weights and computation in 8 bit, or the weights alone (TF 1.x)')
    parser.add_argument('--datapath', help='COCO folder; the validation loss of each graph goes into the report')
    parser.add_argument('--imgpath', help='where the image folders are, if not in --datapath')
    parser.add_argument('--images', help='folder of images to compare the graphs on; without it validation images of '
                        '--datapath, or a photograph that comes with matplotlib')
    parser.add_argument('--max-samples', type=pose_cli.positive_int, default=200,
                        help='so many validation images at most')
    parser.add_argument('--runs', type=pose_cli.positive_int, default=20, help='timed runs of each graph')
    args = parser.parse_args()
    if bool(args.graph) == bool(args.checkpoint):
        raise UserError('give either --checkpoint (with --model) or --graph')
    if args.checkpoint and not args.model:
        raise UserError('--checkpoint needs the --model that was trained: one of %s' % ', '.join(networks.NAMES))
    return args


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


# Measurements.

def read_images(args, width, height, stride):
    """Images to compare on, uint8 (N, height, width, 3) BGR, and validation samples or None without --datapath."""
    samples = None
    if args.datapath:
        samples = validation_samples(args, width, height, stride)
    if args.images:
        paths = sorted(path for path in glob.glob(os.path.join(glob.escape(args.images), '*'))
                       if path.lower().endswith(('.jpg', '.jpeg', '.png')))[:MAX_COMPARED_IMAGES]
        if not paths:
            raise UserError('no .jpg or .png in --images=%s; give a folder of images' % args.images)
    elif samples:
        return np.stack([sample[0] for sample in samples[:MAX_COMPARED_IMAGES]]), samples
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


def validation_samples(args, width, height, stride):
    import pose_dataset  # imports tensorpack, which takes seconds
    dataflow = pose_dataset.get_dataflow(args.datapath, 'val2017', width, height, stride, is_train=False,
                                         imgpath=args.imgpath)
    dataflow.reset_state()
    samples = []
    for sample in dataflow:
        samples.append(sample)
        if len(samples) == args.max_samples:
            break
    if not samples:
        raise UserError('no validation image with people in --datapath=%s' % args.datapath)
    return samples


def measure(graphs, images, samples, runs):
    """Run all graphs on the same images. The first graph is the one that the others are compared with.

    Latency: the graphs take turns, in one order and the other, so that whatever else the machine does meets all of them.
    Returns {name: {latency_ms, latency_ratio, max_abs_diff, mean_abs_diff, max_rel_diff, validation_loss if samples}}.
    """
    sessions = collections.OrderedDict((name, open_session(graph)) for name, graph in graphs.items())
    names = list(graphs)
    seconds = {name: [] for name in graphs}
    for run in range(WARM_UP_RUNS + runs):
        for name in names if run % 2 else names[::-1]:
            start = time.perf_counter()
            predict(sessions[name], images[run % len(images)])
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[WARM_UP_RUNS:]) for name, values in seconds.items()}

    reference = names[0]
    expected = [predict(sessions[reference], image) for image in images]
    report = collections.OrderedDict()
    for name, session in sessions.items():
        differences = np.abs([predict(session, image) - wanted for image, wanted in zip(images, expected)])
        report[name] = collections.OrderedDict(
            latency_ms=1e3 * median[name],
            latency_ratio=median[name] / median[reference],
            max_abs_diff=float(differences.max()),
            mean_abs_diff=float(differences.mean()),
            max_rel_diff=float(differences.max() / np.max(np.abs(expected))))
        if samples:
            report[name]['validation_loss'] = float(np.mean([loss(predict(session, sample[0]), sample)
                                                             for sample in samples]))
    return report


def open_session(graph):
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
    return tf.Session(graph=tf_graph)


def predict(session, image):
    """image (H, W, 3) uint8 -> maps (h, w, 57)."""
    return session.run(graphdef.OUTPUT + ':0', {graphdef.INPUT + ':0': image[None]})[0]


def loss(maps, sample):
    """The training loss of one sample's last stage: l2_loss(mask * (prediction - label)) over both branches."""
    _, heatmap, paf, mask = sample
    labels = np.concatenate([heatmap, paf], axis=2)
    return float(np.sum(np.square(mask * (maps - labels)), dtype=np.float64) / 2)


def describe(graph):
    """What a graph consists of."""
    return {'nodes': len(graph.node),
            'ops': dict(collections.Counter(node.op for node in graph.node).most_common()),
            'batch_norms': len(optimize.find_batch_norms(optimize.simplify(graph)))}


def print_table(report, title):
    columns = [('bytes', 'MB', lambda v: '%.2f' % (v / 1e6)), ('nodes', 'nodes', str), ('batch_norms', 'batch norms', str),
               ('latency_ms', 'latency ms', '{:.1f}'.format), ('latency_ratio', 'ratio', '{:.2f}'.format),
               ('max_abs_diff', 'max diff', '{:.2g}'.format), ('mean_abs_diff', 'mean diff', '{:.2g}'.format),
               ('max_rel_diff', 'max rel. diff', '{:.2g}'.format), ('validation_loss', 'validation loss', '{:.4f}'.format)]
    columns = [column for column in columns if column[0] in report['graph_frozen']]
    print(title)
    print('%-13s' % '' + ''.join(' %15s' % heading for _, heading, _ in columns))
    for name, row in report.items():
        print('%-13s' % name + ''.join(' %15s' % text(row[key]) for key, _, text in columns))
    for name, row in report.items():
        print('%s: %s' % (name, ', '.join('%d %s' % (count, op) for op, count in row['ops'].items())))


if __name__ == '__main__':
    pose_cli.run(main)
