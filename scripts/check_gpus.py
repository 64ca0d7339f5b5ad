"""Do several GPUs train as one, and how much faster: see check_gpus.sh, which starts this.

Each tower gets the same samples, so that the losses must be the same however many there are, with batch norm too; the
batch of a tower stays, so that images/s should grow with their number. Then each gets samples of its own: the
all-reduce must add up, and all replicas must stay the same to the last bit.
"""
import json
import os
import subprocess
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), name)
                for name in ('', 'benchmarks')]
import pose_cli

pose_cli.prepare_process()

import networks
from bare_processes import BareProcesses
from pose_cli import positive_int
from pose_dataset import check_input_size
from pose_errors import UserError

WARM_UP, AGREE = 2, 1e-3


def count_gpus():
    """How many GPUs nvidia-smi lists, of those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return len([number for number in visible.split(',') if number.strip() not in ('', '-1')])
    try:
        listed = subprocess.run(['nvidia-smi', '--list-gpus'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return 0
    return len([line for line in listed.stdout.splitlines() if line.startswith(b'GPU ')])


def settings(towers, per_gpu):
    """[(processes, towers of each)]: 1, 2, 4, ... towers and all of them in one process; then two processes. Where
    towers share a GPU: one tower, all of them in one process, and two processes with a tower each."""
    if per_gpu > 1:
        return [(1, 1), (1, per_gpu), (2, 1)]
    counts = sorted({1 << k for k in range(towers.bit_length())} | {towers})
    return [(1, count) for count in counts] + ([(2, towers // 2)] if towers > 1 else [])


def visible(gpus, process, towers, per_gpu):
    """The variables with which a process sees GPUs of its own, or the first one alone, which all share."""
    names = (os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(gpus)))).split(',')
    own = names[:1] if per_gpu > 1 else names[process * towers:(process + 1) * towers]
    return {'CUDA_VISIBLE_DEVICES': ','.join(own)} if gpus else {}


def measure(flags, model, processes, towers, gpus):
    """Images/s, the loss after the steps, what is wrong with the all-reduce (or None), and how many GPUs were seen."""
    arguments = ['--model=' + model, '--input-size=%dx%d' % flags.input_size, '--towers=%d' % towers,
                 '--batchsize=%d' % (flags.batchsize * towers)]
    if flags.towers_per_gpu > 1:
        arguments += ['--towers-per-gpu=%d' % towers, '--all-reduce=ring']
    environments = [visible(gpus, k, towers, flags.towers_per_gpu) for k in range(processes)]
    with BareProcesses(processes, *arguments, environments=environments) as training:
        training.steps(WARM_UP)
        seconds, loss = training.steps(flags.steps)
        images = flags.batchsize * towers * processes * len(seconds)
        return images / sum(seconds), loss, training.verify(), training.ready['gpus']


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Check that several GPUs train as one.')
    parser.add_argument('--models', default='mobilenet_thin,cmu', help='names, with commas between them')
    parser.add_argument('--towers', type=positive_int, help='at most so many (default: all GPUs, or 2 CPU devices)')
    parser.add_argument('--towers-per-gpu', type=positive_int, default=1,
                        help='above 1: so many towers, and two processes, share the first GPU')
    parser.add_argument('--batchsize', type=positive_int, default=8, help='images of a tower')
    parser.add_argument('--steps', type=positive_int, default=8, help='of each measurement')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--json', action='store_true', help='print one JSON object of the figures on the last line')
    flags = parser.parse_args()
    for model in flags.models.split(','):
        check_input_size(*flags.input_size, stride=networks.stride(model), flag='--input-size')
    if flags.towers and flags.towers_per_gpu > 1:
        raise UserError('--towers=%d and --towers-per-gpu=%d: give one of them' % (flags.towers, flags.towers_per_gpu))
    return flags


def check(flags, model, gpus, towers):
    """Print the table of a model. Returns its rows."""
    rows, expected = [], None
    for processes, each in settings(towers, flags.towers_per_gpu):
        images, loss, fault, seen = measure(flags, model, processes, each, gpus)
        if gpus and not seen:
            raise UserError('nvidia-smi lists %d GPUs, but TensorFlow sees none: train.py says which library is '
                            'missing; GPU=1 TF=2 bash scripts/setup_env.sh installs CUDA' % gpus)
        expected = loss if expected is None else expected
        row = {'model': model, 'processes': processes, 'towers': processes * each, 'images_per_s': images, 'loss': loss,
               'scaling': images / rows[0]['images_per_s'] if rows else 1.0,
               'reduction': 'none' if processes * each == 1 else
               'nccl' if gpus and flags.towers_per_gpu == 1 else 'ring',
               'agrees': fault is None and abs(loss - expected) <= AGREE * abs(expected)}
        rows.append(row)
        print('%-20s %10d %8d %10s %10.2f %8.2f %12.6g  %s' % (
            model, processes, row['towers'], row['reduction'], images, row['scaling'], loss,
            'agrees' if row['agrees'] else fault or 'DIFFERS from one tower'), flush=True)
    return rows


def main():
    flags = parse_flags()
    gpus = count_gpus()
    towers = flags.towers or gpus or 2
    if gpus and towers > gpus:
        raise UserError('--towers=%d, but there are only %d GPUs; lower it' % (towers, gpus))
    print('%d GPUs: up to %d towers on %s' % (
        gpus, max(towers, flags.towers_per_gpu),
        'CPU devices, which share the cores' if not gpus else 'the first' if flags.towers_per_gpu > 1 else 'them'))
    print('%-20s %10s %8s %10s %10s %8s %12s' % ('model', 'processes', 'towers', 'reduction', 'images/s', 'scaling',
                                                 'loss'))
    rows = [row for model in flags.models.split(',') for row in check(flags, model, gpus, towers)]
    if flags.json:
        print(json.dumps({'gpus': gpus, 'rows': rows}))
    return 0 if all(row['agrees'] for row in rows) else 1


if __name__ == '__main__':
    pose_cli.run(main)
