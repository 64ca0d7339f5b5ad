"""Whether training's memory stays flat: train.py's resident memory over some thousand steps.

    python3 benchmarks/bench_memory.py [--steps=2000] [--json]

A small network input, with validations, checkpoints and log lines all along. Memory that grows by a little each step
would show here as well as in a run of a week.
"""
import json
import os
import sys
import tempfile
import time

import numpy as np
import psutil

from bench_inputs import ROOT, flag_parser, render_sample_data
import pose_cli
from pose_errors import UserError
from training.run_log import read_curves

POLL_SECONDS = 0.5
WARM_UP = 0.25  # of the steps: buffers, caches and the allocator's pools settle


def last_step(folder):
    path = os.path.join(folder, 'logs', 'curves.csv')
    rows = read_curves(path) if os.path.exists(path) else []
    return int(rows[-1]['step']) if rows else 0


def measure(steps, folder):
    """float64 (N, 3): step, MiB of the trainer, MiB of its loader processes (shared pages counted in each)."""
    data = render_sample_data(os.path.join(folder, 'data'), train=32, val=8)
    with open(os.path.join(folder, 'log'), 'w') as log:
        process = psutil.Popen(
            [sys.executable, os.path.join(ROOT, 'train.py'), '--pretrained=none', '--datapath=' + data,
             '--modelpath=' + folder, '--batchsize=2', '--input-width=64', '--input-height=64', '--workers=1',
             '--log-every=10', '--valid-every=100', '--save-every=200', '--max-steps=%d' % steps], stderr=log)
    rows = []
    while process.poll() is None:
        step = last_step(folder)
        try:
            if step:
                rows.append((step, process.memory_info().rss,
                             sum(child.memory_info().rss for child in process.children(recursive=True))))
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    if process.wait():
        raise UserError('train.py ended with exit code %d' % process.returncode)
    # Processes that have just ended have no memory left.
    return np.array([row for row in rows if all(row)], np.float64) / (1, 2 ** 20, 2 ** 20)


def parse_flags(args=None):
    parser = flag_parser("Measure train.py's memory over many steps.")
    parser.add_argument('--steps', type=pose_cli.positive_int, default=2000)
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(flags.steps, folder)
    print('%8s %12s %12s' % ('step', 'trainer MiB', 'loaders MiB'))
    for row in rows[np.linspace(0, len(rows) - 1, min(11, len(rows))).astype(int)]:
        print('%8d %12.0f %12.0f' % tuple(row))
    steady = rows[rows[:, 0] >= WARM_UP * flags.steps]
    slope = [float(np.polyfit(steady[:, 0], steady[:, column], 1)[0]) * 1000 for column in (1, 2)]
    print('from step %d on: trainer %+.2f MiB, loaders %+.2f MiB per 1000 steps' % (steady[0, 0], *slope))
    if flags.json:
        print(json.dumps({'steps': flags.steps, 'first_mib': rows[0, 1], 'last_mib': rows[-1, 1],
                          'trainer_mib_per_1000_steps': slope[0], 'loaders_mib_per_1000_steps': slope[1]}))


if __name__ == '__main__':
    pose_cli.run(main)
