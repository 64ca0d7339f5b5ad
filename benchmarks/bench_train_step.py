"""The training step of mobilenet_thin against the published trainer's, as a ratio measured in one run.

    python3 benchmarks/bench_train_step.py [--precision=mixed] [--reference-python=PYTHON] [--json]

Ours is the train op of train.py (forward, backward, Adam, moving averages) on a batch that lies in memory in the form
in which it reaches the tower. The reference is reference_thin.py: the same layers and losses in float32 as one would
build them after the published description, fed with dense maps. Each is a process of its own, and they take turns for a
few steps each. `ratio`, below 1 when ours is faster, is the median over the rounds. `cpu_ratio`, that of the processor
time of all rounds, tells more where the machine has other work.

The published trainer runs on TensorFlow 1.15: with --reference-python, such an environment's interpreter, ours on this
TensorFlow is compared with the reference on that one.
"""
import json
import shutil
import sys

import numpy as np

from bench_inputs import flag_parser
import networks
import pose_cli
from bare_processes import BareProcesses, compare, take_turns
from pose_dataset import check_input_size
from pose_errors import UserError

MODEL = 'mobilenet_thin'


class WithCpuSeconds:
    """A BareProcesses, and the processor seconds of each call of its `steps`."""

    def __init__(self, processes):
        self._processes = processes
        self.cpu_seconds = []

    def steps(self, count):
        before = self._processes.cpu_seconds()
        result = self._processes.steps(count)
        self.cpu_seconds.append(self._processes.cpu_seconds() - before)
        return result


def measure(flags):
    """The figures that --json prints."""
    arguments = ['--input-size=%dx%d' % flags.input_size, '--batchsize=%d' % flags.batchsize]
    with BareProcesses(1, '--model=' + MODEL, '--precision=' + flags.precision, *arguments) as ours, \
            BareProcesses(1, *arguments, program='reference_thin.py', python=flags.reference_python) as reference:
        sides = WithCpuSeconds(ours), WithCpuSeconds(reference)
        times = take_turns(*sides, flags.rounds, flags.steps)
    milliseconds = 1000 * np.median(times, axis=0)
    warm = [sum(side.cpu_seconds[1:]) for side in sides]  # without the steps that warm up
    return {'model': MODEL, 'input_size': flags.input_size, 'batchsize': flags.batchsize, 'precision': flags.precision,
            'tensorflow': ours.ready['tensorflow'], 'reference_tensorflow': reference.ready['tensorflow'],
            'step_ms': milliseconds[0], 'reference_ms': milliseconds[1], 'cpu_ratio': warm[0] / warm[1],
            **compare(times)}


def parse_flags(args=None):
    parser = flag_parser("Compare the training step with the published trainer's.")
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4)
    parser.add_argument('--precision', choices=('float32', 'mixed'), default='float32', help='of ours')
    parser.add_argument('--reference-python', default=sys.executable, metavar='PYTHON',
                        help='the interpreter that runs the reference (default: this one)')
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=5)
    parser.add_argument('--steps', type=pose_cli.positive_int, default=2, help='steps of each side in a round')
    flags = parser.parse_args(args)
    check_input_size(*flags.input_size, stride=networks.stride(MODEL), flag='--input-size')
    if not shutil.which(flags.reference_python):
        raise UserError('--reference-python=%s is not a program; give the path of a Python with TensorFlow'
                        % flags.reference_python)
    if flags.precision == 'mixed':
        from training.devices import check_precision  # imports TensorFlow
        check_precision()
    return flags


def main():
    flags = parse_flags()
    figures = measure(flags)
    print('%s, %dx%d, batch %d, %d rounds of %d steps'
          % ((MODEL,) + flags.input_size + (flags.batchsize, flags.rounds, flags.steps)))
    print('%-10s TensorFlow %-8s %-8s %8.0f ms a step' % ('ours', figures['tensorflow'], flags.precision,
                                                          figures['step_ms']))
    print('%-10s TensorFlow %-8s %-8s %8.0f ms a step' % ('reference', figures['reference_tensorflow'], 'float32',
                                                          figures['reference_ms']))
    print('ours / reference %.2f (%.2f to %.2f in single rounds), in processor time %.2f'
          % (figures['ratio'], figures['lowest_ratio'], figures['highest_ratio'], figures['cpu_ratio']))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
