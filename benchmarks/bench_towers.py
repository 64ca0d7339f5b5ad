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
import subprocess
import sys
import tempfile
import time
import types

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bench_remote
import pose_cli
import numpy as np
import psutil
import tensorflow.compat.v1 as tf

import networks
import pose_loader
import pose_samples
import train
from training.runlog import read_curves

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAX_TOWER_OVERHEAD, MAX_TRAINER_OVERHEAD = 0.10, 0.03


class BareTraining:
    """The train op of train.py in a session of its own, on one random batch that lies in TensorFlow's memory."""

    def __init__(self, args, towers):
        rng = np.random.RandomState(0)
        with tf.Graph().as_default():
            layout = pose_samples.batch_layout(args.batchsize, args.size, args.size, networks.stride(args.model))
            with tf.device('/cpu:0'):
                batch = [tf.get_variable(name, initializer=rng.randint(0, 2, shape).astype(dtype), trainable=False,
                                         use_resource=False) for name, dtype, shape in layout]
            devices, config = train.tower_devices(towers, gpus=0)
            flags = types.SimpleNamespace(model=args.model, lr=[1e-4])
            training = train.build_training(flags, batch, devices, steps_per_epoch=1000, max_steps=10000)
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

    def __init__(self, args, source, folder):
        self._curves, self._log = os.path.join(folder, 'logs', 'curves.csv'), folder + '.log'
        self._batchsize = args.batchsize
        with open(self._log, 'w') as log:
            self._process = psutil.Popen(
                [sys.executable, os.path.join(ROOT, 'train.py'), '--model=' + args.model, '--pretrained=none',
                 '--lr=0.0001', source, '--modelpath=' + folder, '--batchsize=%d' % args.batchsize,
                 '--input-width=%d' % args.size, '--input-height=%d' % args.size, '--log-every=1', '--valid-every=0',
                 '--max-steps=1000000', '--save-every=1000000'], stderr=log, stdout=log)
        self._wait_for(args.warm_up)
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


def compare_trainer(args, source, folder, bare):
    """`compare` for a train.py with that source against the bare train op."""
    real = RealTraining(args, source, folder)
    try:
        return compare(real, bare, args.rounds, args.steps)
    finally:
        real.close()


def main():
    parser = pose_cli.ArgumentParser(description='Measure what towers and the training loop cost.')
    parser.add_argument('--model', default='mobilenet_thin')
    parser.add_argument('--size', type=pose_cli.positive_int, default=368, help='width and height of the input')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4)
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=7)
    parser.add_argument('--steps', type=pose_cli.positive_int, default=3, help='steps of each side in a round')
    parser.add_argument('--warm-up', type=pose_cli.positive_int, default=6, help='first steps of train.py, not counted')
    parser.add_argument('--datapath', help='COCO root (default: rendered people)')
    parser.add_argument('--json', action='store_true', help='print one JSON object of the figures on the last line')
    args = parser.parse_args()
    one = BareTraining(args, towers=1)
    two = BareTraining(args, towers=2)
    two_seconds, one_seconds, tower_overhead = compare(two, one, args.rounds, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        datapath = args.datapath or os.path.join(folder, 'data')
        if not args.datapath:
            subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_sample_coco.py'), '--train=64',
                            '--val=4', '--output-dir=' + datapath], check=True, stdout=subprocess.DEVNULL)
        real_seconds, bare_seconds, trainer_overhead = compare_trainer(
            args, '--datapath=' + datapath, os.path.join(folder, 'local'), one)
        address = 'tcp://127.0.0.1:%d' % bench_remote.free_port()
        batches = bench_remote.made_up_batches(args.batchsize, args.size, networks.stride(args.model), 3)
        with bench_remote.child(bench_remote.send_with_pose_remote, batches, address, None):
            remote_seconds, remote_bare_seconds, remote_overhead = compare_trainer(
                args, '--remote-data=' + address, os.path.join(folder, 'remote'), one)
    rows = [('2 CPU towers / 1 tower', two_seconds, one_seconds, tower_overhead, MAX_TOWER_OVERHEAD),
            ('train.py / bare train op', real_seconds, bare_seconds, trainer_overhead, MAX_TRAINER_OVERHEAD),
            ('the same on remote data', remote_seconds, remote_bare_seconds, remote_overhead, MAX_TRAINER_OVERHEAD)]
    print('%s, %dx%d, batch %d' % (args.model, args.size, args.size, args.batchsize))
    print('%-26s %12s %12s %10s %8s' % ('', 'examples/s', 'reference', 'overhead', 'at most'))
    for name, seconds, reference, overhead, limit in rows:
        print('%-26s %12.3f %12.3f %9.1f%% %7.0f%%' % (name, args.batchsize / seconds, args.batchsize / reference,
                                                     100 * overhead, 100 * limit))
    if args.json:
        print(json.dumps({'model': args.model, 'size': args.size, 'batchsize': args.batchsize,
                          'towers_1_examples_per_s': args.batchsize / one_seconds,
                          'towers_2_examples_per_s': args.batchsize / two_seconds, 'tower_overhead': tower_overhead,
                          'bare_examples_per_s': args.batchsize / bare_seconds,
                          'trainer_examples_per_s': args.batchsize / real_seconds,
                          'trainer_overhead': trainer_overhead,
                          'remote_trainer_examples_per_s': args.batchsize / remote_seconds,
                          'remote_trainer_overhead': remote_overhead}))


if __name__ == '__main__':
    pose_cli.run(main)
