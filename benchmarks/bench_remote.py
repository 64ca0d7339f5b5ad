"""How fast batches travel from a data worker to the trainer, on loopback.

    python3 benchmarks/bench_remote.py [--seconds=5] [--datapath=DIR] [--json]

The same batches, in the same run and in turns, go through tensorpack's send_dataflow_zmq / RemoteDataZMQ and through
remote/receiver.py, one sender each. With --datapath, real data workers with 1 and 2 loader processes follow: what they
reach together with reading, augmenting and drawing label maps. The last line of --json holds the figures of the table.
"""
import collections
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

from bench_inputs import ROOT, made_up_batches, throughput_parser
import pose_cli
import pose_dataworker
from annotations.skeleton import COCO_SKELETON
from batches.batch import encode_batch
from pose_dataset import check_input_size
from pose_errors import UserError
from remote import protocol
from remote.receiver import BatchReceiver

WARM_UP = 10
GIVE_UP_SECONDS = 60


class RepeatedBatches:
    """A loader that costs nothing: the same few batches in turn, whatever is asked for."""

    samples = 1

    def __init__(self, batches):
        self.batches, self.requests, self.number = batches, collections.deque(), None

    def forget(self):
        self.requests.clear()

    def request(self, numbers):
        self.requests.extend(numbers)

    def get(self, timeout=None):
        if not self.requests:
            return None
        self.number = self.requests.popleft()
        return self.batches[self.number % len(self.batches)]

    def report(self):
        return []

    def close(self):
        pass


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def settings(flags):
    width, height = flags.input_size
    return {'input_width': width, 'input_height': height, 'stride': flags.stride, 'batchsize': flags.batchsize,
            'seed': 0, 'skeleton': COCO_SKELETON.to_json()}


def samples_per_second(next_batch, seconds):
    """next_batch() -> number of samples; the rate over `seconds` after a warm-up."""
    for _ in range(WARM_UP):
        next_batch()
    start, samples = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        samples += next_batch()
    return samples / (time.perf_counter() - start)


def send_with_tensorpack(batches, address, quiet):
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    from tensorpack.dataflow import DataFromList, send_dataflow_zmq

    # A long list: a progress bar starts with each pass over it.
    send_dataflow_zmq(DataFromList([list(batch) for batch in batches] * 10000, shuffle=False), address, hwm=8)


def receive_with_tensorpack(address, seconds, pipe):
    from tensorpack.dataflow import RemoteDataZMQ
    flow = RemoteDataZMQ(address, hwm=8)
    flow.reset_state()
    points = iter(flow)
    pipe.send(samples_per_second(lambda: len(next(points)[0]), seconds))
    signal.pause()  # its generator hangs when it is closed; the parent kills this process


def measure_tensorpack(batches, seconds):
    address = 'tcp://127.0.0.1:%d' % free_port()
    ours, theirs = multiprocessing.Pipe()
    with open(os.devnull, 'w') as quiet, child(send_with_tensorpack, batches, address, quiet.fileno()):
        with child(receive_with_tensorpack, address, seconds, theirs):
            if not ours.poll(GIVE_UP_SECONDS + 2 * seconds):
                raise UserError("no batch comes through tensorpack's wire; is tensorpack 0.11 installed?")
            return ours.recv()


def sending(batches, address, keys=None):
    """A data worker in a child process, which sends the batches to the trainer at `address` over and over."""
    return child(pose_dataworker.serve_trainers, address, lambda settings: (RepeatedBatches(batches), '0' * 32),
                 keys)


def measure_wire(flags, batches, keys=None):
    address = 'tcp://127.0.0.1:%d' % free_port()
    with BatchReceiver(address, settings(flags), keys) as receiver, sending(batches, address, keys):
        return samples_per_second(lambda: len(next_batch(receiver)[0]), flags.seconds)


def next_batch(receiver):
    batch = receiver.get(GIVE_UP_SECONDS)
    if batch is None:
        raise UserError('the data worker has stopped sending')
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


def measure_data_worker(flags, workers):
    """Samples/s of `pose_dataworker.py --workers=N` on real images."""
    address = 'tcp://127.0.0.1:%d' % free_port()
    command = [sys.executable, os.path.join(ROOT, 'pose_dataworker.py'), '--master=' + address,
               '--datapath=' + flags.datapath, '--workers=%d' % workers]
    with BatchReceiver(address, settings(flags)) as receiver:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                while receiver.get(1) is None:
                    if process.poll() is not None:
                        raise UserError(process.stderr.read().decode().strip().split('error: ')[-1])
                return samples_per_second(lambda: len(next_batch(receiver)[0]), 2 * flags.seconds)
            finally:
                process.kill()


def bytes_per_sample(batch):
    """Bytes of the frames that a batch becomes, headers included."""
    header = protocol.batch_header([(name, array.dtype.str, array.shape) for name, array in batch._asdict().items()])
    return (len(header) + sum(array.nbytes for array in batch)) / len(batch.image)


def measure_wires(flags, batches):
    """{name: samples/s}, the median over rounds in which all take turns; batches: dense ones."""
    encoded = [encode_batch(*batch) for batch in batches]
    halved = [tuple(a if a.dtype == np.uint8 else a.astype(np.float16) for a in batch) for batch in batches]
    rates = {name: [] for name in ('tensorpack_samples_per_s', 'tensorpack_float16_samples_per_s', 'samples_per_s',
                                   'curve_samples_per_s')}
    with tempfile.TemporaryDirectory() as keys:
        subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_curve_keys.py'), '--output-dir=' + keys],
                       stdout=subprocess.DEVNULL, check=True)
        for _ in range(flags.rounds):
            rates['tensorpack_samples_per_s'].append(measure_tensorpack(batches, flags.seconds))
            rates['samples_per_s'].append(measure_wire(flags, encoded))
            rates['tensorpack_float16_samples_per_s'].append(measure_tensorpack(halved, flags.seconds))
            rates['curve_samples_per_s'].append(measure_wire(flags, encoded, keys))
    return {name: statistics.median(values) for name, values in rates.items()}


def measure_data_workers(flags):
    """{name: value} for real data workers with 1 and 2 loader processes, the median over rounds."""
    rounds = [[measure_data_worker(flags, workers) for workers in (1, 2)] for _ in range(flags.rounds)]
    return {'worker_1_process_samples_per_s': statistics.median(one for one, _ in rounds),
            'worker_2_processes_samples_per_s': statistics.median(two for _, two in rounds),
            'speedup_2_processes': statistics.median(two / one for one, two in rounds)}


def parse_flags(args=None):
    parser = throughput_parser(__doc__.splitlines()[0], batchsize=10)
    parser.add_argument('--stride', type=pose_cli.positive_int, default=8)
    parser.add_argument('--datapath', help='COCO folder for the measurement with real data workers')
    flags = parser.parse_args(args)
    check_input_size(*flags.input_size, stride=flags.stride, flag='--input-size')
    return flags


def main():
    flags = parse_flags()
    batches = made_up_batches(flags.batchsize, *flags.input_size, flags.stride, flags.people)
    figures = measure_wires(flags, batches)
    figures['ratio'] = figures['samples_per_s'] / figures['tensorpack_samples_per_s']
    figures['bytes_per_sample'] = round(bytes_per_sample(encode_batch(*batches[0])))
    if flags.datapath:
        figures.update(measure_data_workers(flags))
    print('%dx%d, stride %d, batches of %d, %d people per sample, %d cores' % (
        flags.input_size + (flags.stride, flags.batchsize, flags.people, os.cpu_count())))
    for name, value in figures.items():
        print('%-34s %10.4g' % (name, value) if value < 1000 else '%-34s %10.0f' % (name, value))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
