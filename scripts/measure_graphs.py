"""What graphs cost and compute: latency, differences from the first of them, validation loss and AP, as a table."""
import collections
import logging
import statistics
import time

import numpy as np

from annotations.coco import read_dataset
from annotations.splits import find_split
from graphs import optimize
from inference import graph_kind, onnx_runtime, tflite_runtime
from inference.metrics import evaluate, last_stage_loss
from pose_errors import UserError

SLOW = 10  # times the frozen graph's latency: too slow to run on all validation images
WARM_UP_RUNS = 2  # TensorFlow rewrites the graph in the first one
TIME_LIMIT = 20  # seconds for the timed runs of one way, after MIN_RUNS
MIN_RUNS = 3
MIN_SPREAD = 0.02  # of maps, where theirs is less
AP_LOSS = 0.02  # that is told

COLUMNS = [('bytes', 'MB', lambda value: '%.2f' % (value / 1e6)), ('nodes', 'nodes', str),
           ('batch_norms', 'batch norms', str), ('latency_ms', 'latency ms', '{:.1f}'.format),
           ('latency_ratio', 'ratio', '{:.2f}'.format), ('max_abs_diff', 'max diff', '{:.2g}'.format),
           ('mean_abs_diff', 'mean diff', '{:.2g}'.format), ('max_rel_diff', 'max rel. diff', '{:.2g}'.format),
           ('validation_loss', 'validation loss', '{:.4f}'.format), ('AP', 'AP', '{:.3f}'.format),
           ('runtime', 'runtime', str)]


def measure(networks, images, runs):
    """Run all networks on the same images. The first is the one that the others are compared with.

    Latency: the networks take turns, in one order and the other, so that whatever else the machine does meets all of
    them. One that has used up TIME_LIMIT runs no more.

    Args:
        networks: {name: predict_maps}, see inference.open_network.
        images: uint8 (N, height, width, 3).
        runs: timed runs of each network.
    Returns:
        {name: {latency_ms, latency_ratio, max_abs_diff, mean_abs_diff, max_rel_diff}}, in the order of networks;
        latencies are medians. The rest, and the second value, are as from `compare`.
    """
    median = latencies(networks, images, runs)
    reference = median[next(iter(networks))]
    differences, shares = compare(networks, images)
    rows = collections.OrderedDict(
        (name, collections.OrderedDict(latency_ms=1e3 * median[name], latency_ratio=median[name] / reference,
                                       **differences[name])) for name in networks)
    return rows, shares


def compare(networks, images):
    """The differences of networks from the first of them, over all images.

    Returns:
        {name: {max_abs_diff, mean_abs_diff, max_rel_diff: a share of the first one's largest output}} and
        {name: root mean square of the differences, as a share of that of the maps, without their channels' means}.
    Raises:
        UserError: two give maps of different shapes.
    """
    reference, *_ = networks
    expected = _outputs(networks[reference], images)
    spread = max(MIN_SPREAD, float(np.sqrt(np.square(expected - expected.mean(axis=(0, 1, 2))).mean())))
    rows, shares = collections.OrderedDict(), {}
    for name, predict_maps in networks.items():
        maps = expected if name == reference else _outputs(predict_maps, images)
        if maps.shape != expected.shape:
            raise UserError('%s gives maps of shape %s, %s of shape %s; they are not of the same network'
                            % (name, maps.shape[1:], reference, expected.shape[1:]))
        difference = np.abs(maps - expected)
        rows[name] = collections.OrderedDict(
            max_abs_diff=float(difference.max()), mean_abs_diff=float(difference.mean()),
            max_rel_diff=float(difference.max() / max(np.abs(expected).max(), 1e-30)))
        shares[name] = float(np.sqrt(np.square(difference).mean())) / spread
    return rows, shares


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
    return float(np.mean([last_stage_loss(predict_maps(image[None])[0], *labels) for image, *labels in samples]))


def _outputs(predict_maps, images):
    return np.concatenate([predict_maps(image[None]) for image in images])


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


def describe(graph, path):
    """What a graph consists of, and what runs it; graph is the GraphDef of a .pb file."""
    if graph is None:
        is_onnx = graph_kind(path) == '.onnx'
        ops = onnx_runtime.count_ops(path) if is_onnx else tflite_runtime.count_ops(path)
        return {'nodes': sum(ops.values()), 'ops': ops,
                'runtime': 'ONNX Runtime' if is_onnx else tflite_runtime.runtime_name()}
    return {'nodes': len(graph.node),
            'ops': dict(collections.Counter(node.op for node in graph.node).most_common()),
            'batch_norms': len(optimize.find_batch_norms(optimize.simplify(graph))),
            'runtime': 'TensorFlow'}


def add_accuracy(rows, predictors, samples, sources, input_size, skeleton):
    """Add validation_loss and AP to the rows of a report, with --datapath; a loss of AP by 8 bits is told."""
    annotation_file, image_folder = find_split(sources.datapath, sources.split, sources.imgpath)
    dataset = read_dataset(annotation_file, sources.category, image_folder, skeleton)
    for name, row in rows.items():
        if row['latency_ratio'] > SLOW and row['runtime'] != 'TensorFlow':
            logging.warning('%s takes %.0f times as long as graph_frozen with %s: its validation loss and AP are left '
                            'out. Measure them on Python 3.10 or newer: pose_eval.py --graph=%s.tflite',
                            name, row['latency_ratio'], row['runtime'], name)
            continue
        logging.info('validation loss and AP of %s on %d images', name, len(samples))
        row['validation_loss'] = validation_loss(predictors[name], samples)
        summary, _, _ = evaluate(predictors[name], annotation_file, image_folder, input_size=input_size,
                                 limit=sources.max_samples, progress=False, dataset=dataset)
        row['AP'] = summary['AP']
        if row['AP'] < rows['graph_frozen']['AP'] - AP_LOSS:
            logging.warning('%s has AP %.3f where graph_frozen has %.3f', name, row['AP'], rows['graph_frozen']['AP'])
