"""How fast batches travel from a data worker to the trainer, on loopback.

    python3 benchmarks/bench_remote.py [--seconds=5] [--datapath=DIR] [--json]

The same arrays, in the same run and in turns, go through tensorpack's send_dataflow_zmq / RemoteDataZMQ and through
remote/trainer.py, one sender each. With --datapath, real data workers with 1 and 2 loader processes follow: what they
reach together with reading, augmenting and drawing label maps. The last line of --json holds the figures of the table.
"""
import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import pose_cli
import pose_dataworker
import pose_labels
from remote import trainer

BATCHES = 4  # different ones that a sender repeats
WARM_UP = 10
GIVE_UP_SECONDS = 60
# A standing person, in units of its height: 18 parts in CMU's order.
STANDING = np.array([(0, .08), (0, .18), (-.1, .18), (-.14, .34), (-.15, .48), (.1, .18), (.14, .34), (.15, .48),
                     (-.07, .5), (-.08, .73), (-.08, .95), (.07, .5), (.08, .73), (.08, .95), (-.02, .06),
                     (.02, .06), (-.05, .07), (.05, .07)])


class RepeatedBatches:
    """A batch source that costs nothing: the same few batches in turn."""

    samples = 1

    def __init__(self, batches):
        self.batches, self.next = batches, 0

    def get(self, timeout=None):
        self.next += 1
        return self.batches[self.next % len(self.batches)]

    def report(self):
        return []

    def close(self):
        pass


def made_up_batch(rng, batchsize, side, stride, people):
    """A batch of standing people at random places, as large as training samples show them, on a noise image."""
    cells = side // stride
    heatmap = np.empty((batchsize, cells, cells, 19), np.float32)
    paf = np.empty((batchsize, cells, cells, 38), np.float32)
    for row in range(batchsize):
        height = side * 0.6 * rng.uniform(0.5, 1.1, (people, 1, 1))
        joints = rng.uniform(0, 0.6 * side, (people, 1, 2)) + (STANDING + rng.normal(0, 0.02, (people, 18, 2))) * height
        heatmap[row] = pose_labels.render_heatmaps(joints, cells, cells, stride)
        paf[row] = pose_labels.render_pafs(joints, cells, cells, stride)
    image = rng.randint(0, 256, (batchsize, side, side, 3)).astype(np.uint8)
    return image, heatmap, paf, np.ones((batchsize, cells, cells, 1), np.float32)


def made_up_batches(*args):
    """The batches that a sender repeats, for (batchsize, side, stride, people)."""
    rng = np.random.RandomState(0)
    return [made_up_batch(rng, *args) for _ in range(BATCHES)]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def settings(args, batchsize):
    return {'input_width': args.side, 'input_height': args.side, 'stride': args.stride, 'batchsize': batchsize,
            'seed': 0}


def samples_per_second(next_batch, seconds):
    """next_batch() -> number of samples; the rate over `seconds` after a warm-up."""
    for _ in range(WARM_UP):
        next_batch()
    start, samples = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        samples += next_batch()
    return samples / (time.perf_counter() - start)


def _send_with_tensorpack(batches, address, quiet):
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    from tensorpack.dataflow import DataFromList, send_dataflow_zmq
    # A long list: a progress bar starts with each pass over it.
    send_dataflow_zmq(DataFromList([list(batch) for batch in batches] * 10000, shuffle=False), address, hwm=8)


def _receive_with_tensorpack(address, seconds, pipe):
    from tensorpack.dataflow import RemoteDataZMQ
    flow = RemoteDataZMQ(address, hwm=8)
    flow.reset_state()
    points = iter(flow)
    pipe.send(samples_per_second(lambda: len(next(points)[0]), seconds))
    signal.pause()  # its generator hangs when it is closed; the parent kills this process


def measure_tensorpack(batches, seconds):
    address = 'tcp://127.0.0.1:%d' % free_port()
    ours, theirs = multiprocessing.Pipe()
    with open(os.devnull, 'w') as quiet, child(_send_with_tensorpack, batches, address, quiet.fileno()):
        with child(_receive_with_tensorpack, address, seconds, theirs):
            if not ours.poll(GIVE_UP_SECONDS + 2 * seconds):
                raise pose_cli.UserError("no batch comes through tensorpack's wire; is tensorpack 0.11 installed?")
            return ours.recv()


def send_with_pose_remote(batches, address, keys):
    """Send the batches to the trainer at `address`, over and over."""
    source = RepeatedBatches(batches)
    pose_dataworker.serve_trainers(address, lambda settings: source, keys)


def measure_pose_remote(args, batches, keys=None):
    address = 'tcp://127.0.0.1:%d' % free_port()
    with trainer.BatchReceiver(address, settings(args, len(batches[0][0])), keys) as receiver:
        with child(send_with_pose_remote, batches, address, keys):
            return samples_per_second(lambda: len(next_batch(receiver)[0]), args.seconds)


def next_batch(receiver):
    batch = receiver.get(GIVE_UP_SECONDS)
    if batch is None:
        raise pose_cli.UserError('the data worker has stopped sending')
    return batch


@contextlib.contextmanager
def child(function, *args):
    """Run function in a child process, for the length of the block."""
    process = multiprocessing.get_context('fork').Process(target=function, args=args, daemon=True)
    process.start()
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def measure_data_worker(args, workers):
    """Samples/s of `pose_dataworker.py --workers=N` on real images."""
    address = 'tcp://127.0.0.1:%d' % free_port()
    command = [sys.executable, os.path.join(ROOT, 'pose_dataworker.py'), '--master=' + address,
               '--datapath=' + args.datapath, '--workers=%d' % workers]
    with trainer.BatchReceiver(address, settings(args, args.batchsize)) as receiver:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                while receiver.get(1) is None:
                    if process.poll() is not None:
                        raise pose_cli.UserError(process.stderr.read().decode().strip().split('error: ')[-1])
                return samples_per_second(lambda: len(next_batch(receiver)[0]), 2 * args.seconds)
            finally:
                process.kill()


def bytes_per_sample(batch):
    """Bytes of the frames that a batch becomes, headers included."""
    arrays = trainer.encode_batch(batch)
    header = trainer.batch_header([(name, array.dtype.str, array.shape) for name, array in arrays])
    return (len(header) + sum(array.nbytes for _, array in arrays)) / len(batch[0])


def main():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--seconds', type=pose_cli.positive_int, default=5, help='per measurement')
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=3, help='the table shows the median of so many')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=10)
    parser.add_argument('--side', type=pose_cli.positive_int, default=368, help='of the input, in pixels')
    parser.add_argument('--stride', type=pose_cli.positive_int, default=8)
    parser.add_argument('--people', type=pose_cli.positive_int, default=3, help='per sample')
    parser.add_argument('--datapath', help='COCO folder for the measurement with real data workers')
    parser.add_argument('--json', action='store_true', help='print one JSON object on the last line')
    args = parser.parse_args()

    batches = made_up_batches(args.batchsize, args.side, args.stride, args.people)
    halved = [tuple(a if a.dtype == np.uint8 else a.astype(np.float16) for a in batch) for batch in batches]
    figures = {name: [] for name in ('tensorpack_samples_per_s', 'tensorpack_float16_samples_per_s', 'samples_per_s',
                                     'curve_samples_per_s')}
    with tempfile.TemporaryDirectory() as keys:
        subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_curve_keys.py'), '--output-dir=' + keys],
                       stdout=subprocess.DEVNULL, check=True)
        for _ in range(args.rounds):
            figures['tensorpack_samples_per_s'].append(measure_tensorpack(batches, args.seconds))
            figures['samples_per_s'].append(measure_pose_remote(args, batches))
            figures['tensorpack_float16_samples_per_s'].append(measure_tensorpack(halved, args.seconds))
            figures['curve_samples_per_s'].append(measure_pose_remote(args, batches, keys))
    figures = {name: statistics.median(rates) for name, rates in figures.items()}
    figures['ratio'] = figures['samples_per_s'] / figures['tensorpack_samples_per_s']
    figures['bytes_per_sample'] = round(bytes_per_sample(batches[0]))
    if args.datapath:
        rounds = [[measure_data_worker(args, workers) for workers in (1, 2)] for _ in range(args.rounds)]
        figures['worker_1_process_samples_per_s'] = statistics.median(one for one, _ in rounds)
        figures['worker_2_processes_samples_per_s'] = statistics.median(two for _, two in rounds)
        figures['speedup_2_processes'] = statistics.median(two / one for one, two in rounds)

    print('%dx%d, stride %d, batches of %d, %d people per sample, %d cores' % (
        args.side, args.side, args.stride, args.batchsize, args.people, os.cpu_count()))
    for name, value in figures.items():
        print('%-34s %10.4g' % (name, value) if value < 1000 else '%-34s %10.0f' % (name, value))
    if args.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
