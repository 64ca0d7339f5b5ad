"""What the ways to run one network cost, and how far their maps are apart. No TensorFlow: it works on predict_maps."""
import collections
import statistics
import time

import numpy as np

from pose_cli import UserError

WARM_UP_RUNS = 2  # TensorFlow rewrites the graph in the first one
TIME_LIMIT = 20  # seconds for the timed runs of one way, after LEAST_RUNS
LEAST_RUNS = 3


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
            if len(seconds[name]) >= WARM_UP_RUNS + LEAST_RUNS and sum(seconds[name]) > TIME_LIMIT:
                continue
            start = time.perf_counter()
            networks[name](image, None)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[WARM_UP_RUNS:]) for name, values in seconds.items()}


def validation_loss(predict_maps, samples):
    """The mean over samples (image, heatmap, paf, mask) of the training loss of the last stage."""
    return float(np.mean([loss(predict_maps(sample[0][None], None)[0], sample) for sample in samples]))


def loss(maps, sample):
    """The training loss of one sample's last stage: l2_loss(mask * (prediction - label)) over both branches."""
    _, heatmap, paf, mask = sample
    labels = np.concatenate([heatmap, paf], axis=2)
    return float(np.sum(np.square(mask * (maps - labels)), dtype=np.float64) / 2)


def _outputs(predict_maps, images):
    return np.concatenate([predict_maps(image[None], None) for image in images])


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
