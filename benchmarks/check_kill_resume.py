"""Kill a training run again and again, at random moments, and see that each time the next one goes on.

    python3 benchmarks/check_kill_resume.py [--kills=20] [--save-every=2] [--seed=0]

Each run of train.py saves often and is killed (kill -9) a random time after its first step, every other time while a
checkpoint is being written. The next run must resume, and not more than one save interval back.
"""
import os
import random
import re
import subprocess
import sys
import tempfile
import time

from bench_inputs import ROOT, render_sample_data
import pose_cli
from pose_errors import UserError

LOGGED_STEP = re.compile(r' step=(\d+),')
RESUMED_STEP = re.compile(r'resuming from \S*model-(\d+)')
START_SECONDS, MOST_SECONDS_TO_LIVE = 900, 4


def read(path):
    with open(path) as file:
        return file.read()


def is_saving(model):
    """Whether a checkpoint is half written: TensorFlow writes it under a temporary name first."""
    return any('temp' in name for name in os.listdir(model))


def run_until_killed(datapath, model, log_path, save_every, lifetime, in_a_save):
    """Start train.py; once it has done a step, wait `lifetime` seconds and, with in_a_save, for a save; kill it.

    Returns:
        (step that it resumed at, 0 at first; last step that it logged; whether a save was cut short).
    """
    with open(log_path, 'w') as log:
        process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, 'train.py'), '--pretrained=none', '--datapath=' + datapath,
             '--modelpath=' + model, '--batchsize=2', '--input-width=64', '--input-height=64', '--workers=1',
             '--log-every=1', '--save-every=%d' % save_every, '--valid-every=0', '--max-steps=1000000'], stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not LOGGED_STEP.search(read(log_path)):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise UserError('train.py did not resume: ' + ' '.join(read(log_path).splitlines()[-3:]), 1)
            time.sleep(0.02)
        time.sleep(lifetime)
        while in_a_save and not is_saving(model) and process.poll() is None:
            pass
        process.kill()
        process.wait()
    text = read(log_path)
    resumed = RESUMED_STEP.search(text)
    return int(resumed.group(1)) if resumed else 0, int(LOGGED_STEP.findall(text)[-1]), is_saving(model)


def resumed_well(logged, resumed, save_every):
    """Whether a run that was killed after it had logged a step resumed no more than a save interval before it.

    It may resume one step after it: a step is saved before it is logged, and the kill may come between.
    """
    return logged - save_every <= resumed <= logged + 1


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description='Kill a training run again and again; see that it always resumes.')
    parser.add_argument('--kills', type=pose_cli.positive_int, default=20)
    parser.add_argument('--save-every', type=pose_cli.positive_int, default=2)
    parser.add_argument('--seed', type=pose_cli.seed, default=0)
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    rng = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = render_sample_data(os.path.join(folder, 'data'), train=16, val=4)
        model, log = (os.path.join(folder, name) for name in ('model', 'log'))
        reached = cut_short = 0
        for kill in range(flags.kills + 1):
            resumed, last, in_save = run_until_killed(data, model, log, flags.save_every,
                                                      rng.uniform(0, MOST_SECONDS_TO_LIVE), in_a_save=kill % 2 == 1)
            if not resumed_well(reached, resumed, flags.save_every):
                raise UserError('killed at step %d, resumed at step %d' % (reached, resumed), 1)
            reached, cut_short = last, cut_short + in_save
            print('run %d: resumed at step %d, killed at step %d%s'
                  % (kill, resumed, last, ', in a save' if in_save else ''), flush=True)
        print('%d kills, %d of them in a save: every run resumed, at most %d steps back'
              % (flags.kills, cut_short, flags.save_every))


if __name__ == '__main__':
    pose_cli.run(main)
