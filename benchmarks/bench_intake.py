"""How fast the trainer takes in batches that cost nothing to make: from the source to the tower, without a network.

    python3 benchmarks/bench_intake.py [--strides=8,4] [--json]

A few batches of made-up people lie in memory and are given again and again. `intake` is from there through the input
queue (training/input_queue.py), cut into the parts of two towers; with `dense` the label maps are also written out, as
a tower on the CPU does at the start of its step. On a GPU that part is the GPU's, whose memory is not fresh each time.
"""
import json
import os
import statistics
import time

from bench_inputs import made_up_batches, throughput_parser
from networks.tensorflow import tf

import pose_cli
from annotations.skeleton import COCO_SKELETON
from batches.batch import batch_layout, encode_batch
from pose_dataset import check_input_size
from pose_errors import UserError
from training.input_queue import InputQueueHook
from training.towers import dense_maps, split_batch

TOWERS = 2
WARM_UP = 10  # batches


class BatchesInMemory:
    """A batch source that costs nothing."""

    def __init__(self, batches, layout):
        self.layout, self._batches, self.number = layout, batches, 0

    def get(self, timeout):
        self.number += 1
        return self._batches[self.number % len(self._batches)]

    def ready(self):
        return 0


def samples_per_second(flags, batches, stride, dense):
    """(samples/s that arrive, samples per second of CPU time); dense: whether the maps are written out."""
    with tf.Graph().as_default():
        layout = batch_layout(flags.batchsize, *flags.input_size, stride, COCO_SKELETON)
        feed = InputQueueHook(BatchesInMemory(batches, layout))
        with tf.device('/cpu:0'):
            arrived = split_batch(feed.batch, TOWERS, COCO_SKELETON)
            if dense:
                arrived = [dense_maps(part, COCO_SKELETON) for part in arrived]
            # One value of each is fetched: TensorFlow leaves out what nobody asks for.
            arrived = [tf.reshape(field, [-1])[:1] for part in arrived for field in part]
        with tf.train.MonitoredSession(hooks=[feed]) as session:
            def take(batches):
                for _ in range(batches):
                    if not feed.wait_for_batch(lambda: False):
                        feed.check()
                    session.run(arrived)

            take(WARM_UP)
            start, start_cpu, samples = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - start < flags.seconds:
                take(1)
                samples += flags.batchsize
            return samples / (time.perf_counter() - start), samples / (time.process_time() - start_cpu)


def measure(flags):
    """{name: samples/s}, the median over rounds in which all take turns.

    Those per second of CPU time tell more where the machine has other work.
    """
    batches = {stride: [encode_batch(*batch) for batch in
                        made_up_batches(flags.batchsize, *flags.input_size, stride, flags.people)]
               for stride in flags.strides}
    rates = {}
    for _ in range(flags.rounds):
        for stride in flags.strides:
            for name, dense in (('intake', False), ('dense', True)):
                for unit, rate in zip(('s', 'cpu_s'), samples_per_second(flags, batches[stride], stride, dense)):
                    rates.setdefault('%s_stride_%d_samples_per_%s' % (name, stride, unit), []).append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def strides(text):
    """'8,4' -> [8, 4]."""
    return [pose_cli.positive_int(part) for part in text.split(',')]


def parse_flags(args=None):
    parser = throughput_parser(__doc__.splitlines()[0], batchsize=64)
    parser.add_argument('--strides', type=strides, default=[8, 4], help='separated by commas')
    flags = parser.parse_args(args)
    for stride in flags.strides:
        check_input_size(*flags.input_size, stride=stride, flag='--input-size')
    if flags.batchsize % TOWERS:
        raise UserError('--batchsize=%d is not even; take %d' % (flags.batchsize, flags.batchsize + 1))
    return flags


def main():
    flags = parse_flags()
    figures = measure(flags)
    print('%dx%d, batches of %d, %d people per sample, TensorFlow %s, %d cores' % (
        flags.input_size + (flags.batchsize, flags.people, tf.__version__, os.cpu_count())))
    for name, value in figures.items():
        print('%-34s %10.0f' % (name, value))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
