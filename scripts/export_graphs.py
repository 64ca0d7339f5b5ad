"""From a checkpoint to the files for inference and their report: what scripts/freeze_and_optimize.py does."""
import collections
import itertools
import json
import logging
import os
import statistics
import time

import numpy as np
from networks.tensorflow import tf

import pose_augment
import pose_dataset
import pose_files
from annotations.images import BadSample, find_split, image_paths, read_photograph, shrink_for_warp
from annotations.skeleton import COCO_SKELETON
from graphs import freeze, graphdef, optimize, tflite
from inference import tflite_runtime
from inference import SKELETON_FILE, load_network, read_skeleton
from inference.metrics import evaluate
from inference.predictor import SIZE_MULTIPLE
from inference.tensorflow_runtime import limit_threads
from networks.pretrained import find_checkpoint
from pose_dataset import check_input_size
from pose_errors import UserError

DEFAULT_SIZE = (368, 368)
OPTIMIZED_TOLERANCE = 1e-4  # of the frozen graph's largest output
SLOW = 10  # times the frozen graph's latency: too slow to run on all validation images

# The weights become 8 bit and are expanded when they are used; `nodes` also computes in 8 bit.
QUANTIZE_WEIGHTS = ['add_default_attributes', 'quantize_weights', 'strip_unused_nodes', 'sort_by_execution_order']
QUANTIZE_NODES = ['add_default_attributes', 'quantize_weights', 'quantize_nodes', 'strip_unused_nodes',
                  'sort_by_execution_order']
QUANTIZE = {'weights': QUANTIZE_WEIGHTS, 'nodes': QUANTIZE_NODES}


def make_graphs(args):
    """Write, measure and compare what the flags of scripts/freeze_and_optimize.py ask for, and print the report.

    Raises:
        UserError: a file is not what it should be; with exit code 4 when something could not be folded.
    """
    limit_threads(args.threads)
    logging.info('freezing %s', args.graph or args.checkpoint)
    graphs = collections.OrderedDict()
    if args.graph:
        graphs['graph_frozen'] = freeze.load_frozen(args.graph)
        skeleton = read_skeleton(args.graph) or COCO_SKELETON
    else:
        checkpoint = find_checkpoint(args.checkpoint)
        size = None if args.input_size == 'dynamic' else args.input_size or DEFAULT_SIZE
        skeleton = read_skeleton(checkpoint=args.checkpoint) or COCO_SKELETON
        inference_graph = freeze.network_graph(args.model, size, skeleton)
        graphs['graph_frozen'] = freeze.freeze(inference_graph, checkpoint)
    width, height = measured_size(graphs['graph_frozen'], args.input_size)
    images, samples = read_images(args, width, height, stride_at(graphs['graph_frozen'], width, height))
    calibration = read_calibration_images(args, width, height) if args.quantize == 'int8' else None

    input_shape = None if args.input_size == 'dynamic' else [1, height, width, 3]
    logging.info('optimizing')
    graphs['graph_opt'] = optimize.optimize(graphs['graph_frozen'], input_shape)
    if args.quantize in QUANTIZE:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                  QUANTIZE[args.quantize])
    marked = collections.OrderedDict((name, freeze.with_skeleton(graph, skeleton)) for name, graph in graphs.items())
    pose_files.make_folder(args.output_dir)
    pose_files.write_file(os.path.join(args.output_dir, SKELETON_FILE), skeleton.to_json().encode())
    files = write_graphs(marked, args.output_dir)
    if args.checkpoint:
        freeze.save_graph(inference_graph, os.path.join(args.output_dir, 'graph.pb'), text=True)
    files.update(write_tflite(graphs['graph_frozen'], args, [1, height, width, 3], calibration))
    if args.saved_model:
        # Any number of images at once, whatever graph_opt.pb takes.
        freeze.save_saved_model(optimize.optimize(graphs['graph_frozen']), os.path.join(args.output_dir, 'saved_model', '1'))

    logging.info('measuring latency: %d runs of each of %d graphs', args.runs, len(files))
    predictors = {name: load_network(path, threads=args.threads)[0] for name, path in files.items()}
    rows = measure(predictors, images, args.runs)
    for name, row in rows.items():
        row.update(bytes=os.path.getsize(files[name]), **describe(marked.get(name), files[name]))
    add_accuracy(rows, predictors, samples, args, width, height)
    pose_files.write_file(os.path.join(args.output_dir, 'report.json'), json.dumps(rows, indent=2).encode('ascii'))
    print(format_table(rows, '%s at %dx%d, %d image(s), %s thread(s), TensorFlow %s'
                              % (args.graph or checkpoint, width, height, len(images), args.threads or pose_files.usable_cores(),
                                 tf.__version__)))
    check_optimized(graphs['graph_opt'], rows['graph_opt']['max_rel_diff'])


def check_optimized(graph, difference):
    """Raises UserError, with exit code 4, when something was left that should have been folded, or outputs differ."""
    unfolded = optimize.find_unfolded(graph)
    if unfolded:
        raise UserError('graph_opt.pb is not fully optimized: %s' % optimize.list_unfolded(unfolded), exit_code=4)
    if not difference <= OPTIMIZED_TOLERANCE:
        raise UserError('the output of graph_opt.pb differs from that of graph_frozen.pb by %.2g of its largest value, '
                        'more than %g; use graph_frozen.pb' % (difference, OPTIMIZED_TOLERANCE), exit_code=4)


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
        logging.info('converting to 8 bits, calibrated on %d images', len(calibration))
        files['graph_int8'] = tflite.quantize(graph, calibration)
    for name, data in files.items():
        files[name] = os.path.join(args.output_dir, name + '.tflite')
        pose_files.write_file(files[name], data)
    return files


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
    annotation_file, image_folder = find_split(args.datapath, 'val2017', args.imgpath)
    for name, row in rows.items():
        if row['latency_ratio'] > SLOW and row['runtime'] != 'TensorFlow':
            logging.warning('%s takes %.0f times as long as graph_frozen with %s: its validation loss and AP are left '
                            'out. Measure them on Python 3.10 or newer: pose_eval.py --graph=%s.tflite',
                            name, row['latency_ratio'], row['runtime'], name)
            continue
        logging.info('validation loss and AP of %s on %d images', name, len(samples))
        row['validation_loss'] = validation_loss(predictors[name], samples)
        summary, _, _ = evaluate(predictors[name], annotation_file, image_folder, input_size=(width, height),
                                 limit=args.max_samples, progress=False)
        row['AP'] = summary['AP']


MAX_COMPARED_IMAGES = 16


def read_images(args, width, height, stride):
    """Images to compare on, uint8 (N, height, width, 3) BGR, and validation samples or None without --datapath."""
    samples = None
    if args.datapath:
        samples = read_validation_samples(args, width, height, stride)
    if args.images:
        return read_folder(args.images, width, height, MAX_COMPARED_IMAGES), samples
    if samples:
        return np.stack([sample[0] for sample in samples[:MAX_COMPARED_IMAGES]]), samples
    import matplotlib
    photograph = os.path.join(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    return fitted_images([photograph], width, height), None


def read_calibration_images(args, width, height):
    """Images for quantization to measure activations on: of --images, else training images; as read_images's."""
    if args.images:
        return read_folder(args.images, width, height, args.calibration_images)
    dataset = pose_dataset.PoseDataset(args.datapath, 'train2017', width, height, SIZE_MULTIPLE, args.imgpath)
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
    paths = image_paths(folder)
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
        image, reduction = shrink_for_warp(image, pose_augment.matrix_scale(matrix))
        images.append(pose_augment.warp_image(image, pose_augment.reduced_matrix(matrix, reduction), width, height))
    return np.stack(images)


def read_validation_samples(args, width, height, stride):
    """The first validation samples of --datapath: lists of image, heatmap, paf and mask."""
    dataset = pose_dataset.PoseDataset(args.datapath, 'val2017', width, height, stride, args.imgpath)
    found = pose_dataset.validation_samples(dataset)
    samples = [list(sample[:4]) for sample in itertools.islice(found, args.max_samples)]
    if not samples:
        raise UserError('no validation image with people in --datapath=%s' % args.datapath)
    return samples


WARM_UP_RUNS = 2  # TensorFlow rewrites the graph in the first one
TIME_LIMIT = 20  # seconds for the timed runs of one way, after MIN_RUNS
MIN_RUNS = 3


def measure(networks, images, runs):
    """Run all networks on the same images. The first is the one that the others are compared with.

    Latency: the networks take turns, in one order and the other, so that whatever else the machine does meets all of
    them. One that has used up TIME_LIMIT runs no more.

    Args:
        networks: {name: predict_maps}, see graphs.predict.load_network.
        images: uint8 (N, height, width, 3).
        runs: timed runs of each network.
    Returns:
        {name: {latency_ms, latency_ratio, max_abs_diff, mean_abs_diff, max_rel_diff}}, in the order of networks;
        latencies are medians, differences over all images, max_rel_diff a share of the reference's largest output.
    """
    median = latencies(networks, images, runs)
    reference = next(iter(networks))
    expected = _outputs(networks[reference], images)
    largest = np.abs(expected).max()
    report = collections.OrderedDict()
    for name, predict_maps in networks.items():
        maps = _outputs(predict_maps, images)
        if maps.shape != expected.shape:
            raise UserError('%s gives maps of shape %s, %s of shape %s; they are not of the same network'
                            % (name, maps.shape[1:], reference, expected.shape[1:]))
        difference = np.abs(maps - expected)
        report[name] = collections.OrderedDict(
            latency_ms=1e3 * median[name],
            latency_ratio=median[name] / median[reference],
            max_abs_diff=float(difference.max()),
            mean_abs_diff=float(difference.mean()),
            max_rel_diff=float(difference.max() / largest))
    return report


def latencies(networks, images, runs):
    """{name: median seconds for one image}; see measure."""
    names = list(networks)
    seconds = {name: [] for name in names}
    for run in range(WARM_UP_RUNS + runs):
        image = images[run % len(images)][None]
        for name in names if run % 2 else names[::-1]:
            if len(seconds[name]) >= WARM_UP_RUNS + MIN_RUNS and sum(seconds[name]) > TIME_LIMIT:
                continue
            start = time.perf_counter()
            networks[name](image)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[WARM_UP_RUNS:]) for name, values in seconds.items()}


def validation_loss(predict_maps, samples):
    """The mean over samples (image, heatmap, paf, mask) of the training loss of the last stage."""
    return float(np.mean([last_stage_loss(predict_maps(sample[0][None])[0], sample) for sample in samples]))


def last_stage_loss(maps, sample):
    """The training loss of one sample's last stage: l2_loss(mask * (prediction - label)) over both branches."""
    _, heatmap, paf, mask = sample
    labels = np.concatenate([heatmap, paf], axis=2)
    return float(np.sum(np.square(mask * (maps - labels)), dtype=np.float64) / 2)


def _outputs(predict_maps, images):
    return np.concatenate([predict_maps(image[None]) for image in images])


COLUMNS = [('bytes', 'MB', lambda value: '%.2f' % (value / 1e6)), ('nodes', 'nodes', str),
           ('batch_norms', 'batch norms', str), ('latency_ms', 'latency ms', '{:.1f}'.format),
           ('latency_ratio', 'ratio', '{:.2f}'.format), ('max_abs_diff', 'max diff', '{:.2g}'.format),
           ('mean_abs_diff', 'mean diff', '{:.2g}'.format), ('max_rel_diff', 'max rel. diff', '{:.2g}'.format),
           ('validation_loss', 'validation loss', '{:.4f}'.format), ('AP', 'AP', '{:.3f}'.format),
           ('runtime', 'runtime', str)]


def format_table(report, title):
    """The report as lines of text: one row for each network, then its ops; a value that it has not is a dash."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in report.values())]
    lines = [title, '%-13s' % '' + ''.join(' %15s' % heading for _, heading, _ in columns)]
    for name, row in report.items():
        values = [text(row[key]) if row.get(key) is not None else '-' for key, _, text in columns]
        lines.append('%-13s' % name + ''.join(' %15s' % value for value in values))
    for name, row in report.items():
        lines.append('%s: %s' % (name, ', '.join('%d %s' % (count, op) for op, count in row['ops'].items())))
    return '\n'.join(lines)
