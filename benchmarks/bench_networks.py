"""How fast the networks train and infer: images/s and ms a step of each model, with everything already in memory.

    python3 benchmarks/bench_networks.py [--models=cmu,mobilenet_thin] [--batchsize=4] [--input-size=368x368] [--json]
    python3 benchmarks/bench_networks.py --round-trip      # a full-size cmu .npy written and restored: time and memory

Each training step (forward, backward, Adam, batch norm updates) and each inference is timed against a plain graph of
the same layers: batch norm from tf.nn.moments and tf.nn.batch_normalization, biases added with +. The two take turns,
step by step, in one process. ms is the median; `plain/ours`, above 1 when ours is faster, compares the fastest step of
each, which other work on the machine disturbs least.
"""
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time

import numpy as np
from bench_inputs import flag_parser
from networks.tensorflow import tf

import networks
import networks.pretrained
import pose_cli
from annotations.skeleton import COCO_SKELETON
from networks import network_base
from pose_dataset import check_input_size


class Plain:
    """The layers as one would first write them. Mixed into a network's class, it replaces that class's own."""

    def conv(self, x, name, kernel, filters, mean=None):
        x = self._convolve(x, name, kernel, filters, 1, network_base.OUTPUT_WEIGHT_SCALE if mean else 1.0)
        x = x + self._variable(name + '/biases', [filters], tf.constant_initializer(mean or 0.0))
        return x if mean else tf.nn.relu(x)

    def _batch_norm(self, x, name, mean=None, gamma=False):
        shape = [x.shape.as_list()[3]]
        scale = self._variable(name + '/gamma', shape, tf.ones_initializer()) if gamma else None
        beta = self._variable(name + '/beta', shape, tf.constant_initializer(mean or 0.0))
        moving_mean = self._variable(name + '/moving_mean', shape, tf.zeros_initializer(), trainable=False)
        moving_variance = self._variable(name + '/moving_variance', shape, tf.ones_initializer(), trainable=False)
        if not self.is_training:
            return tf.nn.batch_normalization(x, moving_mean, moving_variance, beta, scale,
                                             network_base.BATCH_NORM_EPSILON)
        batch_mean, batch_variance = tf.nn.moments(x, [0, 1, 2])
        for average, value in ((moving_mean, batch_mean), (moving_variance, batch_variance)):
            update = tf.assign_sub(average, (average - value) * (1 - network_base.BATCH_NORM_DECAY))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
        return tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, scale, network_base.BATCH_NORM_EPSILON)


def plain_class(network_class):
    """The network with plain layers; `layer` is looked up by the name of the method it stands for."""
    methods = {'layer': Plain.conv} if network_class.layer is network_base.Network.conv else {}
    return type('Plain' + network_class.__name__, (Plain, network_class), methods)


def build(network_class, is_training, batchsize, width, height):
    """(session, what to run): a training step or an inference on a random batch that lies in variables."""
    random = np.random.RandomState(0)
    cells = (batchsize, height // network_class.stride, width // network_class.stride)
    values = {'image': random.randint(0, 256, (batchsize, height, width, 3)).astype(np.uint8),
              'heatmap': np.zeros(cells + (19,), np.float32), 'paf': np.zeros(cells + (38,), np.float32)}
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        image, heat, paf = (
            tf.get_variable('batch_' + name, initializer=values[name], trainable=False, use_resource=False)
            for name in ('image', 'heatmap', 'paf'))
        network = network_class('bench', image, is_training, COCO_SKELETON)
        run = network.output.op
        if is_training:
            loss = tf.add_n([tf.nn.l2_loss(prediction - label) / batchsize for stage in network.stages
                             for prediction, label in zip(stage, (paf, heat))])
            with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
                run = tf.train.AdamOptimizer(1e-4, epsilon=1e-8).minimize(loss)
        session = tf.Session()
        session.run(tf.global_variables_initializer())
        graph.finalize()
    return session, run


def time_in_turns(contestants, steps):
    """[(session, run)] -> the seconds of each step of each, after a step to warm up. Who goes first alternates."""
    seconds = [[] for _ in contestants]
    for step in range(steps + 1):
        turns = list(zip(seconds, contestants))
        for times, (session, run) in turns[::-1] if step % 2 else turns:
            start = time.perf_counter()
            session.run(run)
            if step:
                times.append(time.perf_counter() - start)
    for session, _ in contestants:
        session.close()
    return seconds


def bench(name, flags):
    """A row of the table: milliseconds, images/s, and ratios."""
    network_class, (width, height) = networks.network_class(name), flags.input_size
    row = {'model': name}
    for mode, is_training in (('train', True), ('infer', False)):
        ours, plain = time_in_turns([build(c, is_training, flags.batchsize, width, height)
                                     for c in (network_class, plain_class(network_class))], flags.steps)
        median, plain_median = statistics.median(ours), statistics.median(plain)
        row.update({mode + '_ms': 1000 * median, mode + '_images_per_s': flags.batchsize / median,
                    mode + '_plain_ms': 1000 * plain_median, mode + '_plain_to_ours': min(plain) / min(ours)})
    return row


def restore(path):
    """Build cmu, restore it from `path`, check every variable: seconds and memory in MiB of this process."""
    def peak():
        with open('/proc/self/status') as status:  # getrusage would count the parent process in
            return int(re.search(r'VmHWM:\s+(\d+) kB', status.read()).group(1)) / 1024

    with tf.Graph().as_default(), tf.Session() as session:
        network = networks.get_network('cmu', tf.placeholder(tf.uint8, [None, None, None, 3]), is_training=False)
        row = {'peak_mib_before': peak()}
        start = time.perf_counter()
        match = networks.pretrained.fit(network, path)
        row.update(read_seconds=time.perf_counter() - start, peak_mib_read=peak())
        start = time.perf_counter()
        match.init_fn(None, session)
        row.update(set_seconds=time.perf_counter() - start, peak_mib_set=peak())
        assert not match.new and not match.unfit
        assert all(np.array_equal(session.run(v), match.values[v.op.name]) for v in network.variables)
        return dict(row, variables=len(match.values), values=sum(value.size for value in match.values.values()))


def round_trip():
    """Write a .npy file of cmu's full layout, restore it in a process of its own."""
    with tf.Graph().as_default():
        network = networks.get_network('cmu', tf.placeholder(tf.uint8, [None, None, None, 3]), is_training=False)
        shapes = {v.op.name: v.shape.as_list() for v in network.variables}
    random = np.random.RandomState(0)
    tree = {}
    for name, shape in shapes.items():
        layer, leaf = name.split('/')
        tree.setdefault(layer, {})[leaf] = random.standard_normal(shape).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'openpose_coco.npy')
        start = time.perf_counter()
        np.save(path, np.array(tree, dtype=object), allow_pickle=True)
        row = {'write_seconds': time.perf_counter() - start, 'file_mib': os.path.getsize(path) / 2 ** 20}
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            row.update(pool.apply(restore, (path,)))
    return row


def bench_all(flags):
    """Print the table, line by line as the figures come; returns them."""
    print('%d images of %dx%d a step, median of %d steps, TensorFlow %s, %d CPUs'
          % ((flags.batchsize,) + flags.input_size + (flags.steps, tf.__version__, os.cpu_count())))
    print('%-20s %10s %10s %11s %10s %10s %11s' % ('', 'train ms', 'images/s', 'plain/ours',
                                                   'infer ms', 'images/s', 'plain/ours'))
    rows = []
    for name in flags.models:
        rows.append(bench(name, flags))
        print('%(model)-20s %(train_ms)10.1f %(train_images_per_s)10.2f %(train_plain_to_ours)11.2f '
              '%(infer_ms)10.1f %(infer_images_per_s)10.2f %(infer_plain_to_ours)11.2f' % rows[-1], flush=True)
    return {'batchsize': flags.batchsize, 'input_size': flags.input_size, 'tensorflow': tf.__version__, 'models': rows}


def parse_flags(args=None):
    parser = flag_parser('Time the networks.')
    parser.add_argument('--models', default=','.join(networks.NAMES), help='names, separated by commas')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4)
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--steps', type=pose_cli.positive_int, default=10, help='steps to time of each')
    parser.add_argument('--round-trip', action='store_true', help='instead: write and restore a full-size cmu .npy')
    flags = parser.parse_args(args)
    flags.models = flags.models.split(',')
    for name in flags.models:
        check_input_size(*flags.input_size, stride=networks.stride(name), flag='--input-size')
    return flags


def main():
    flags = parse_flags()
    tf.logging.set_verbosity(tf.logging.ERROR)
    if flags.round_trip:
        result = round_trip()
        print('%(variables)d variables, %(values)d values, %(file_mib).0f MiB: written in %(write_seconds).2f s, read '
              'in %(read_seconds).2f s, set in %(set_seconds).2f s; peak memory %(peak_mib_before).0f MiB with the '
              'graph, %(peak_mib_read).0f after reading, %(peak_mib_set).0f after setting' % result)
    else:
        result = bench_all(flags)
    if flags.json:
        print(json.dumps(result))


if __name__ == '__main__':
    pose_cli.run(main)
