"""The training step in mixed precision against float32, for each network, as ratios measured in one run.

    python3 benchmarks/bench_precision.py [--models=NAME,NAME] [--json]

Both are the train op of train.py on a batch that lies in memory, each a process of its own; they take turns for a few
steps each. `ratio`, below 1 when mixed precision is faster, is the median over the rounds. `loss_difference` is that of
the two losses after equally many steps from the same weights, as a share of float32's. Where mixed precision is not to
be had, see training/devices.py, this ends with exit code 2.
"""
import json

import numpy as np

from bench_inputs import flag_parser
import networks
import pose_cli
from bare_processes import BareProcesses, compare, take_turns
from pose_dataset import check_input_size


def measure(model, flags):
    """The figures of one network."""
    arguments = ['--model=' + model, '--input-size=%dx%d' % flags.input_size, '--batchsize=%d' % flags.batchsize]
    with BareProcesses(1, '--precision=mixed', *arguments) as mixed, BareProcesses(1, *arguments) as float32:
        times = take_turns(mixed, float32, flags.rounds, flags.steps)
        losses = [side.steps(1)[1] for side in (mixed, float32)]
    milliseconds = 1000 * np.median(times, axis=0)
    return {'mixed_ms': milliseconds[0], 'float32_ms': milliseconds[1], 'tensorflow': mixed.ready['tensorflow'],
            'loss_difference': abs(losses[0] / losses[1] - 1), **compare(times)}


def parse_flags(args=None):
    parser = flag_parser('Compare training in mixed precision with float32.')
    parser.add_argument('--models', default=','.join(networks.NAMES), help='names, separated by commas')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=4)
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=5)
    parser.add_argument('--steps', type=pose_cli.positive_int, default=2, help='steps of each side in a round')
    flags = parser.parse_args(args)
    flags.models = flags.models.split(',')
    for model in flags.models:
        check_input_size(*flags.input_size, stride=networks.stride(model), flag='--input-size')
    from training.devices import check_precision  # imports TensorFlow
    check_precision()
    return flags


def main():
    flags = parse_flags()
    print('%dx%d, batch %d, %d rounds of %d steps'
          % (flags.input_size + (flags.batchsize, flags.rounds, flags.steps)), flush=True)
    figures = {}
    for model in flags.models:
        figures[model] = row = measure(model, flags)
        print('%-20s mixed / float32 %.2f (%.2f to %.2f in single rounds), %.0f / %.0f ms a step, losses differ by %.2g'
              % (model, row['ratio'], row['lowest_ratio'], row['highest_ratio'], row['mixed_ms'], row['float32_ms'],
                 row['loss_difference']), flush=True)
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
