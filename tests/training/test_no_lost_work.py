"""Runs that are killed, stopped, starved of data, that diverge or fill the disk: what they leave goes on.

The real train.py in real processes, with a network whose saves take long enough to be killed.
"""
import json
import os
import re
import resource
import signal
import sys
import time

import numpy as np
import psutil
import pytest

import tensorflow.compat.v1 as tf
from conftest import program_environment
from saved_weights import load_all, saved_step
from train_runs import SMALL_NETWORK, TrainRun, folders
from training.run_log import read_curves

pytestmark = pytest.mark.slow
SAVE_EVERY = 2


class Run(TrainRun):
    """One train.py."""
    poll_seconds = 0.001  # a save is short

    def __init__(self, data, model, *flags):
        command = [*SMALL_NETWORK, '--model=wide', *folders(data, model), '--batchsize=2', *flags]
        super().__init__(model, [[sys.executable] + command], [program_environment()])
        self.process, = self.processes

    def last_logged_step(self):
        return ([0] + self.logged_steps())[-1]

    def kill(self):
        """kill -9 of the trainer alone: its loader processes have to notice."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive

    def stop(self, number):
        """Signal the whole process group; the run has to end well."""
        os.killpg(self.process.pid, number)
        assert self.process.wait(timeout=600) == 0, self.log()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('no_lost_work')


@pytest.fixture(scope='module')
def start_run(sample_coco, close_at_end):
    """start_run(model, *flags) starts a Run, which ends with this file's tests."""
    return lambda model, *flags: close_at_end(Run(sample_coco, model, *flags))


@pytest.fixture(scope='module')
def first_run(start_run, folder):
    """A run that was killed twice, the second time in the middle of a save, and the step it had reached."""
    model = folder / 'killed'
    flags = ['--max-steps=100000', '--save-every=%d' % SAVE_EVERY]
    early = start_run(model, *flags)
    early.wait_until(lambda: 'no GPU' in early.log())  # while the graph is built
    early.kill()
    run = start_run(model, *flags)
    run.wait_until(lambda: run.last_logged_step() >= 5)
    run.wait_until(lambda: any('temp' in name for name in os.listdir(str(model))))
    run.kill()
    return model, run.last_logged_step()


@pytest.fixture(scope='module')
def resumed(start_run, first_run):
    """The run after the kills: where it resumed; its last step before SIGTERM came to its group; the log."""
    model, _ = first_run
    (model / 'model-9_temp_0123').mkdir()  # should the kill have come after the save
    before = saved_step(model)
    run = start_run(model, '--max-steps=100000', '--save-every=100000', '--valid-every=1')
    run.wait_until(lambda: run.last_logged_step() >= before + 3)
    last = run.last_logged_step()
    run.stop(signal.SIGTERM)
    return model, before, last, run


def test_a_killed_run_resumes_within_one_save_interval_and_sigterm_saves_within_one_step(first_run, resumed):
    """While training with a validation after each step; curves have each step once."""
    model, before, last, run = resumed
    assert first_run[1] - before <= SAVE_EVERY
    assert 'resuming from %s-%d' % (model / 'model', before) in run.log()
    assert 'left by a save that was cut short' in run.log()
    assert not [name for name in os.listdir(str(model)) if 'temp' in name]
    steps = run.logged_steps()
    assert 'stopped by a signal at step %d' % steps[-1] in run.log()
    assert steps[0] == before + 1 and saved_step(model) == steps[-1] <= last + 2
    curves = read_curves(str(model / 'logs' / 'curves.csv'))
    assert [int(row['step']) for row in curves if row['kind'] == 'train'] == list(range(1, steps[-1] + 1))


@pytest.fixture(scope='module')
def diverging(start_run, folder, resumed):
    """A new run from the weights of another, with an absurd learning rate; and those weights."""
    source = tf.train.latest_checkpoint(str(resumed[0]))
    run = start_run(folder / 'diverged', '--checkpoint=%s' % source, '--lr=1e30', '--max-steps=100000',
                    '--save-every=100000')
    return run, source


def test_ctrl_c_while_waiting_for_data(start_run, resumed, diverging):  # diverging goes on meanwhile
    """Loader processes that stand still: the trainer waits, and Ctrl-C, to all of them, still saves."""
    model, before = resumed[0], saved_step(resumed[0])
    run = start_run(model, '--max-steps=100000', '--save-every=100000')
    run.wait_until(lambda: run.last_logged_step() > before)
    supervisor, = psutil.Process(run.process.pid).children()
    for worker in supervisor.children():
        worker.suspend()
    quiet_since, step = time.monotonic(), run.last_logged_step()
    while time.monotonic() - quiet_since < 2:
        if run.last_logged_step() != step:
            quiet_since, step = time.monotonic(), run.last_logged_step()
        time.sleep(0.1)
    run.stop(signal.SIGINT)
    assert 'stopped by a signal at step %d' % step in run.log()
    assert saved_step(model) == step > before
    # The run that was killed first had not come to a checkpoint.
    assert len(json.loads((model / 'run.json').read_text())['starts']) == 3


def test_a_stopped_or_killed_supervisor_costs_nothing(start_run, tmp_path):
    """Of the loader processes: with it stopped SIGTERM ends the run; when it is killed the run saves and says so."""
    model = tmp_path / 'model'
    flags = ['--model=small', '--max-steps=100000', '--save-every=100000']
    run = start_run(model, *flags)
    run.wait_until(lambda: run.last_logged_step() > 0)
    supervisor, = psutil.Process(run.process.pid).children()
    supervisor.suspend()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=120) == 0, run.log()
    before = saved_step(model)
    run = start_run(model, *flags)
    run.wait_until(lambda: run.last_logged_step() > before)
    psutil.Process(run.process.pid).children()[0].kill()
    assert run.process.wait(timeout=120) == 2, run.log()
    assert run.errors() == ['error: the loader processes were killed; start the command again']
    assert saved_step(model) == run.last_logged_step() > before


def test_divergence_ends_a_run_from_given_weights_with_code_3_and_leaves_these(diverging, folder):
    run, source = diverging
    assert run.process.wait(timeout=600) == 3 and 'Traceback' not in run.log()
    message, = run.errors()
    assert re.search(r'NaN or infinite at step %d, with lr=[\d.]+e\+\d\d;' % (run.last_logged_step() + 1), message)
    assert str(folder / 'diverged' / 'model-0') in message
    assert 'Restore pretrained weights... %s' % source in run.log()
    source, good = load_all(source), load_all(str(folder / 'diverged' / 'model-0'))
    assert good['global_step'] == 0 and source['global_step'] > 0
    for name in good:
        if 'Adam' not in name and 'power' not in name and name != 'global_step':
            np.testing.assert_array_equal(good[name], source[name])


def test_a_disk_that_takes_no_more_leaves_the_previous_checkpoint(start_run, tmp_path):
    """After the first save no file of the run may grow beyond 100,000 bytes: that is room for logs, not for weights."""
    model = tmp_path / 'model'
    run = start_run(model, '--max-steps=1000', '--save-every=100', '--log-every=100')
    run.wait_until(lambda: 'saved the checkpoint of step 0' in run.log())
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (100000, 100000))
    assert run.process.wait(timeout=600) == 2 and 'Traceback' not in run.log()
    message, = run.errors()
    assert 'cannot write in %s: File too large' % model in message and 'model-0' in message
    weights = load_all(tf.train.latest_checkpoint(str(model)))
    assert weights['global_step'] == 0 and all(np.isfinite(value).all() for value in weights.values())


def test_a_signal_before_the_first_step_ends_the_run_at_once(start_run, tmp_path):
    run = start_run(tmp_path / 'model', '--model=mobilenet_thin')
    run.wait_until(lambda: 'no GPU' in run.log())  # the graph is being built
    run.stop(signal.SIGTERM)
    assert 'stopped by a signal before the first step' in run.log()
    assert not list((tmp_path / 'model').glob('model*'))
