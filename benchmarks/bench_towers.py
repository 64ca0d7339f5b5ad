"""What towers and the training loop cost, as ratios measured in one run.

    python3 benchmarks/bench_towers.py [--datapath=DIR] [--json]

- two towers on two CPU devices against one, at the same total batch. The same work is split in two, so that what is
  lost is the split, the second copy of small operations, the second update, and the averaging of gradients.
- two processes on one core each against one process on both, at the same total batch; bytes that a tower sends.
- the all-reduce alone, for the gradients of cmu between two CPU devices, in times of copying as many bytes.
- the memory that a second tower takes.
- train.py, a real run on real images, against its bare train op in a loop, on a batch that lies in memory. What is lost
  is the input queue, logging, and the share of the cores that the loader takes. With GPUs the cores are the loader's.
- train.py --remote-data against the same, fed over loopback with batches that cost their sender nothing to make.

Both sides of a ratio take turns for a few seconds each (the other one is stopped), so that other load meets both alike.
"""
import json
import os
import tempfile
import time

import numpy as np
from bench_inputs import flag_parser, made_up_batches, render_sample_data
from networks.tensorflow import tf

import bench_remote
import networks
import pose_cli
from bare_processes import BareProcesses, take_turns
from bare_training import BareTraining
from batches.batch import encode_batch
from pose_dataset import check_input_size
from pose_errors import UserError
from real_training import RealTraining
from training.towers import all_reduce, step_group

MAX_TOWER_OVERHEAD, MAX_PROCESS_OVERHEAD, MAX_TRAINER_OVERHEAD = 0.05, 0.10, 0.03
CMU_PARAMETERS = 52311446


def compare(candidate, reference, rounds, steps):
    """Median seconds a step of both, and the median over rounds of candidate / reference - 1."""
    times = take_turns(candidate, reference, rounds, steps)
    return tuple(float(x) for x in (*np.median(times, axis=0), np.median(times[:, 0] / times[:, 1]) - 1))


def measure_processes(flags):
    """((median seconds a step of two processes with a core each, of one on both, overhead), bytes sent a step)."""
    arguments = ['--model=' + flags.model, '--input-size=%dx%d' % flags.input_size]
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError('two processes with a core each need two cores; this machine gives one')
    with BareProcesses(2, '--batchsize=%d' % (flags.batchsize // 2), '--threads=1', *arguments,
                       prefixes=[['taskset', '-c', str(core)] for core in cores]) as two, \
            BareProcesses(1, '--batchsize=%d' % flags.batchsize, '--threads=2', *arguments,
                          prefixes=[['taskset', '-c', ','.join(map(str, cores))]]) as one:
        return compare(two, one, flags.rounds, flags.steps), two.ready['wire_bytes']


def measure_memory(flags):
    """Bytes that the second of two towers adds to a process, at the same batch of each."""
    used = []
    for towers in (1, 2):
        with BareProcesses(1, '--model=' + flags.model, '--input-size=%dx%d' % flags.input_size, '--towers=%d' % towers,
                           '--batchsize=%d' % (flags.batchsize // 2 * towers)) as training:
            training.steps(2)
            used.append(training.memory())
    return used[1] - used[0]


def measure_all_reduce(rounds):
    """(median seconds to reduce cmu's gradients between two CPU devices, to copy as many bytes, their ratio)."""
    config = tf.ConfigProto(device_count={'CPU': 2})
    devices = ['/cpu:0', '/cpu:1']
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        reduced = []
        for device in devices:
            with tf.device(device):
                layers = [tf.get_variable('%s_%d' % (device[-1], k), [CMU_PARAMETERS // 92], use_resource=False,
                                          initializer=tf.ones_initializer()) for k in range(92)]
                reduced += [part.op for part in all_reduce([layer.value() for layer in layers],
                                                           step_group(devices, 1), 1)]
        session.run(tf.global_variables_initializer())
        source, target = np.ones(CMU_PARAMETERS, np.float32), np.ones(CMU_PARAMETERS, np.float32)
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            session.run(reduced)
            middle = time.perf_counter()
            np.copyto(target, source)
            seconds.append((middle - start, time.perf_counter() - middle))
    seconds = np.array(seconds[1:])
    return tuple(map(float, (*np.median(seconds, axis=0), np.median(seconds[:, 0] / seconds[:, 1]))))


def compare_trainer(flags, source, folder, bare):
    """`compare` for a train.py with that source against the bare train op."""
    with RealTraining(flags.model, flags.input_size, flags.batchsize, folder, source,
                      warm_up=flags.warm_up) as real:
        return compare(real, bare, flags.rounds, flags.steps)


def measure(flags):
    """(median seconds a step, those of its reference, overhead) of two towers, train.py, train.py on remote data."""
    one, two = [BareTraining(flags.model, flags.input_size, flags.batchsize, towers) for towers in (1, 2)]
    towers = compare(two, one, flags.rounds, flags.steps)
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
    parser.add_argument('--model', type=networks.model_name, default='mobilenet_thin')
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
    processes, wire_bytes = measure_processes(flags)
    memory = measure_memory(flags)
    reduce_seconds, copy_seconds, reduce_ratio = measure_all_reduce(flags.rounds)
    towers, local, remote = measure(flags)
    print('%s, %dx%d, batch %d' % ((flags.model,) + flags.input_size + (flags.batchsize,)))
    print('%-26s %12s %12s %10s %8s' % ('', 'examples/s', 'reference', 'overhead', 'at most'))
    for name, (seconds, reference, overhead), limit in (
            ('2 CPU towers / 1 tower', towers, MAX_TOWER_OVERHEAD),
            ('2 processes / 1 process', processes, MAX_PROCESS_OVERHEAD),
            ('train.py / bare train op', local, MAX_TRAINER_OVERHEAD),
            ('the same on remote data', remote, MAX_TRAINER_OVERHEAD)):
        print('%-26s %12.3f %12.3f %9.1f%% %7.0f%%'
              % (name, flags.batchsize / seconds, flags.batchsize / reference, 100 * overhead, 100 * limit))
    print('a tower of two sends %.2f MB a step; the second one adds %.0f MiB of memory; reducing the gradients of cmu '
          'takes %.0f ms, %.1f times as long as copying them' % (wire_bytes / 1e6, memory / 2 ** 20,
                                                                 1000 * reduce_seconds, reduce_ratio))
    if flags.json:
        (two_seconds, one_seconds, tower_overhead), (real_seconds, bare_seconds, trainer_overhead) = towers, local
        print(json.dumps({'model': flags.model, 'size': flags.input_size[0], 'batchsize': flags.batchsize,
                          'towers_1_examples_per_s': flags.batchsize / one_seconds,
                          'towers_2_examples_per_s': flags.batchsize / two_seconds, 'tower_overhead': tower_overhead,
                          'process_overhead': processes[2], 'wire_bytes': wire_bytes, 'tower_memory_bytes': memory,
                          'all_reduce_s': reduce_seconds, 'copy_s': copy_seconds, 'all_reduce_to_copy': reduce_ratio,
                          'bare_examples_per_s': flags.batchsize / bare_seconds,
                          'trainer_examples_per_s': flags.batchsize / real_seconds,
                          'trainer_overhead': trainer_overhead,
                          'remote_trainer_examples_per_s': flags.batchsize / remote[0],
                          'remote_trainer_overhead': remote[2]}))


if __name__ == '__main__':
    pose_cli.run(main)
