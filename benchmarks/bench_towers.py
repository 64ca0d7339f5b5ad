"""What towers and the training loop cost, as ratios measured in one run.

    python3 benchmarks/bench_towers.py [--datapath=DIR] [--json]

- two towers on two CPU devices against one, at the same total batch. The same work is split in two, so that what is
  lost is the split, the second copy of small operations, and the averaging of gradients.
- train.py, a real run on real images, against its bare train op in a loop, on a batch that lies in memory. What is lost
  is the input queue, logging, and the share of the cores that the loader takes. With GPUs the cores are the loader's.
- train.py --remote-data against the same, fed over loopback with batches that cost their sender nothing to make.

Both sides of a ratio take turns for a few seconds each (the other one is stopped), so that other load meets both alike.
"""
import json
import os
import signal
import sys
import tempfile
import time

from bench_inputs import ROOT, flag_parser, made_up_batch, made_up_batches, render_sample_data
import bench_remote
import pose_cli
import numpy as np
import psutil
import tensorflow.compat.v1 as tf

import networks
from pose_batches import Batch, encode_batch
from pose_samples import check_input_size
from training.runlog import read_curves
from training.towers import build_training, tower_devices

MAX_TOWER_OVERHEAD, MAX_TRAINER_OVERHEAD = 0.10, 0.03


class BareTraining:
    """The train op of train.py in a session of its own, on one random batch that lies in TensorFlow's memory."""

    def __init__(self, flags, towers):
        stride = networks.stride(flags.model)
        dense = made_up_batch(np.random.RandomState(0), flags.batchsize, *flags.input_size, stride, people=3)
        with tf.Graph().as_default():
            with tf.device('/cpu:0'):
                batch = Batch(*(tf.get_variable(name, initializer=value, trainable=False, use_resource=False)
                                for name, value in encode_batch(*dense)._asdict().items()))
            devices, config = tower_devices(towers, gpus=0)
            training = build_training(flags.model, batch, devices, [1e-4], steps_per_epoch=1000, max_steps=10000)
            self._step = training.step
            self._session = tf.Session(config=config)
            self._session.run(tf.global_variables_initializer())

    def step_seconds(self, steps):
        """How long each of `steps` steps took."""
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self._session.run(self._step)
            seconds.append(time.perf_counter() - start)
        return seconds


class RealTraining:
    """A train.py process that runs only when asked; `source` is the flag that says where its data come from."""

    def __init__(self, flags, source, folder):
        self._curves, self._log = os.path.join(folder, 'logs', 'curves.csv'), folder + '.log'
        self._batchsize = flags.batchsize
        with open(self._log, 'w') as log:
            self._process = psutil.Popen(
                [sys.executable, os.path.join(ROOT, 'train.py'), '--model=' + flags.model, '--pretrained=none',
                 '--lr=0.0001', source, '--modelpath=' + folder, '--batchsize=%d' % flags.batchsize,
                 '--input-width=%d' % flags.input_size[0], '--input-height=%d' % flags.input_size[1], '--log-every=1',
                 '--valid-every=0', '--max-steps=1000000', '--save-every=1000000'], stderr=log, stdout=log)
        self._wait_for(flags.warm_up)
        self._pause()

    def step_seconds(self, steps):
        """How long each of `steps` steps took, without the one that the pause fell into."""
        first = len(self._logged())
        self._continue()
        self._wait_for(first + 1 + steps)
        self._pause()
        return self._logged()[first + 1:first + 1 + steps]

    def close(self):
        self._continue()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _logged(self):
        rows = read_curves(self._curves) if os.path.exists(self._curves) else []
        return [self._batchsize / float(row['examples_per_sec']) for row in rows]

    def _wait_for(self, steps):
        while len(self._logged()) < steps:
            if self._process.poll() is not None:
                with open(self._log) as log:
                    raise pose_cli.UserError('train.py ended: ' + ' '.join(log.read().splitlines()[-1:]))
            time.sleep(0.05)

    def _family(self):
        return [self._process] + self._process.children(recursive=True)

    def _pause(self):
        for process in self._family():
            process.suspend()

    def _continue(self):
        for process in self._family():
            process.resume()


def compare(candidate, reference, rounds, steps):
    """Median seconds a step of both, and the median over rounds of candidate / reference - 1."""
    candidate.step_seconds(2), reference.step_seconds(2)  # warm up
    times = [[np.median(side.step_seconds(steps)) for side in (candidate, reference)] for _ in range(rounds)]
    overheads = [a / b - 1 for a, b in times]
    return tuple(float(x) for x in (*np.median(times, axis=0), np.median(overheads)))


def compare_trainer(flags, source, folder, bare):
    """`compare` for a train.py with that source against the bare train op."""
    real = RealTraining(flags, source, folder)
    try:
        return compare(real, bare, flags.rounds, flags.steps)
    finally:
        real.close()


def measure(flags):
    """(median seconds a step, those of its reference, overhead) of two towers, train.py, train.py on remote data."""
    one = BareTraining(flags, towers=1)
    towers = compare(BareTraining(flags, towers=2), one, flags.rounds, flags.steps)
    with tempfile.TemporaryDirectory() as folder:
        datapath = flags.datapath or render_sample_data(os.path.join(folder, 'data'), train=64, val=4)
        local = compare_trainer(flags, '--datapath=' + datapath, os.path.join(folder, 'local'), one)
        address = 'tcp://127.0.0.1:%d' % bench_remote.free_port()
        batches = [encode_batch(*batch) for batch in
                   made_up_batches(flags.batchsize, *flags.input_size, networks.stride(flags.model), 3)]
        with bench_remote.sending(batches, address):
            remote = compare_trainer(flags, '--remote-data=' + address, os.path.join(folder, 'remote'), one)
    return towers, local, remote


def parse_flags(args=None):
    parser = flag_parser('Measure what towers and the training loop cost.')
    parser.add_argument('--model', choices=networks.NAMES, default='mobilenet_thin')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4)
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=7)
    parser.add_argument('--steps', type=pose_cli.positive_int, default=3, help='steps of each side in a round')
    parser.add_argument('--warm-up', type=pose_cli.positive_int, default=6, help='first steps of train.py, not counted')
    parser.add_argument('--datapath', help='COCO root (default: rendered people)')
    flags = parser.parse_args(args)
    check_input_size(*flags.input_size, stride=networks.stride(flags.model), flag='--input-size')
    return flags


def main():
    flags = parse_flags()
    towers, local, remote = measure(flags)
    print('%s, %dx%d, batch %d' % ((flags.model,) + flags.input_size + (flags.batchsize,)))
    print('%-26s %12s %12s %10s %8s' % ('', 'examples/s', 'reference', 'overhead', 'at most'))
    for name, (seconds, reference, overhead), limit in (
            ('2 CPU towers / 1 tower', towers, MAX_TOWER_OVERHEAD),
            ('train.py / bare train op', local, MAX_TRAINER_OVERHEAD),
            ('the same on remote data', remote, MAX_TRAINER_OVERHEAD)):
        print('%-26s %12.3f %12.3f %9.1f%% %7.0f%%'
              % (name, flags.batchsize / seconds, flags.batchsize / reference, 100 * overhead, 100 * limit))
    if flags.json:
        (two_seconds, one_seconds, tower_overhead), (real_seconds, bare_seconds, trainer_overhead) = towers, local
        print(json.dumps({'model': flags.model, 'size': flags.input_size[0], 'batchsize': flags.batchsize,
                          'towers_1_examples_per_s': flags.batchsize / one_seconds,
                          'towers_2_examples_per_s': flags.batchsize / two_seconds, 'tower_overhead': tower_overhead,
                          'bare_examples_per_s': flags.batchsize / bare_seconds,
                          'trainer_examples_per_s': flags.batchsize / real_seconds,
                          'trainer_overhead': trainer_overhead,
                          'remote_trainer_examples_per_s': flags.batchsize / remote[0],
                          'remote_trainer_overhead': remote[2]}))


if __name__ == '__main__':
    pose_cli.run(main)
