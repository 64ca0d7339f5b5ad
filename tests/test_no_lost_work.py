"""Runs that are killed, stopped, starved of data, that diverge or fill the disk: what they leave goes on.

The real train.py in real processes. benchmarks/check_kill_resume.py does the same with as many kills as one likes.
"""
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import psutil
import pytest
import tensorflow.compat.v1 as tf

from training import checkpoint
from training import feed
import pose_loader
import train
from conftest import ROOT
from pose_cli import UserError
from pose_dataset import PoseDataset

SAVE_EVERY = 2


class Run:
    """train.py in a process group of its own, as under a terminal; its log goes to a file."""

    def __init__(self, data, model, *flags):
        self.model, self.log_path = model, '%s.log' % model
        with open(self.log_path, 'w') as log:
            self.process = subprocess.Popen(
                [sys.executable, 'train.py', '--datapath=%s' % data, '--modelpath=%s' % model, '--pretrained=none',
                 '--batchsize=2', '--input-width=64', '--input-height=64', '--workers=1', '--log-every=1']
                + list(flags), cwd=str(ROOT), stderr=log, preexec_fn=os.setsid)

    def log(self):
        with open(self.log_path) as file:
            return file.read()

    def wait_until(self, happened, seconds=300):
        """Poll until happened() is true, or the process ends."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.001)

    def last_logged_step(self):
        return int(([0] + re.findall(r' step=(\d+),', self.log()))[-1])

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
        assert self.process.wait(timeout=300) == 0, self.log()


def saved_step(model):
    """The step that a run in this folder resumes from."""
    return int(tf.train.latest_checkpoint(str(model)).rsplit('-', 1)[1])


def load_all(prefix):
    reader = tf.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('no_lost_work')


@pytest.fixture(scope='module')
def full_disk(sample_coco, folder):
    """A run on a file system with room for one checkpoint and no second one, or why there is none."""
    path = folder / 'disk'
    path.mkdir()
    mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', str(path)], stderr=subprocess.PIPE)
    if mount.returncode:
        yield mount.stderr.decode().strip()
        return
    yield Run(sample_coco, path / 'model', '--max-steps=1000', '--save-every=2', '--valid-every=0')
    subprocess.run(['umount', '-l', str(path)], check=True)


@pytest.fixture(scope='module')
def first_run(sample_coco, folder, full_disk):  # full_disk goes on meanwhile
    """A run that was killed twice, the second time in the middle of a save, and the step it had reached."""
    model = folder / 'killed'
    flags = ['--max-steps=1000', '--save-every=%d' % SAVE_EVERY, '--valid-every=0']
    early = Run(sample_coco, model, *flags)
    early.wait_until(lambda: 'no GPU' in early.log())  # while the graph is built
    early.kill()
    run = Run(sample_coco, model, *flags)
    run.wait_until(lambda: run.last_logged_step() >= 5)
    run.wait_until(lambda: any('temp' in name for name in os.listdir(str(model))))
    run.kill()
    return model, run.last_logged_step()


@pytest.fixture(scope='module')
def resumed(sample_coco, first_run):
    """The run after the kills: where it resumed; stopped by SIGTERM to its group; the log."""
    model, _ = first_run
    leftovers = [name for name in os.listdir(str(model)) if 'temp' in name]
    before = saved_step(model)
    run = Run(sample_coco, model, '--max-steps=1000', '--save-every=100000', '--valid-every=1')
    run.wait_until(lambda: run.last_logged_step() >= before + 3)
    last = run.last_logged_step()
    run.stop(signal.SIGTERM)
    return model, leftovers, before, last, run.log()


def test_a_killed_run_resumes_within_one_save_interval(first_run, resumed):
    _, reached = first_run
    _, _, before, _, log = resumed
    assert reached - before <= SAVE_EVERY
    assert 'resuming from %s-%d' % (resumed[0] / 'model', before) in log
    assert re.findall(r' step=(\d+),', log)[0] == str(before + 1)


def test_leftovers_of_a_killed_save_are_removed(resumed):
    model, leftovers, _, _, log = resumed
    if not leftovers:
        pytest.skip('the kill came after the save; test_leftovers covers the same by hand-made files')
    assert not [name for name in os.listdir(str(model)) if 'temp' in name]
    assert 'left by a save that was cut short' in log


def test_sigterm_saves_within_one_step(resumed):
    """While training with a validation after each step."""
    model, _, _, last, log = resumed
    steps = [int(step) for step in re.findall(r' step=(\d+),', log)]
    assert 'stopped by a signal at step %d' % steps[-1] in log
    assert saved_step(model) == steps[-1] <= last + 2


def test_curves_have_each_step_once(resumed):
    with open(str(resumed[0] / 'logs' / 'curves.csv')) as file:
        steps = [int(line.split(',')[1]) for line in file if line.startswith('train')]
    assert steps == list(range(1, saved_step(resumed[0]) + 1))


@pytest.fixture(scope='module')
def diverging(sample_coco, folder, resumed):
    """A new run from the weights of another, with an absurd learning rate; and those weights."""
    source = tf.train.latest_checkpoint(str(resumed[0]))
    run = Run(sample_coco, folder / 'diverged', '--checkpoint=%s' % source, '--lr=1e30', '--max-steps=1000',
              '--save-every=100000', '--valid-every=0')
    return run, source


def test_ctrl_c_while_waiting_for_data(sample_coco, resumed, diverging):  # diverging goes on meanwhile
    """Loader processes that stand still: the trainer waits, and Ctrl-C, to all of them, still saves."""
    model, before = resumed[0], saved_step(resumed[0])
    run = Run(sample_coco, model, '--max-steps=1000', '--save-every=100000', '--valid-every=0')
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


def test_divergence_ends_the_run_with_code_3(diverging, folder):
    run, _ = diverging
    assert run.process.wait(timeout=300) == 3 and 'Traceback' not in run.log()
    message, = [line for line in run.log().splitlines() if line.startswith('error: ')]
    assert re.search(r'NaN or infinite at step %d, with lr=[\d.]+e\+(29|30);' % (run.last_logged_step() + 1), message)
    assert str(folder / 'diverged' / 'model-0') in message


def test_checkpoint_flag_starts_a_new_run_from_given_weights(diverging, folder):
    """They are also what is still there after the divergence."""
    run, source = diverging
    run.process.wait(timeout=300)
    assert 'Restore pretrained weights... %s' % source in run.log()
    source, good = load_all(source), load_all(str(folder / 'diverged' / 'model-0'))
    assert good['global_step'] == 0 and source['global_step'] > 0
    for name in good:
        if 'Adam' not in name and name.startswith(('MobilenetV1', 'Openpose')):
            np.testing.assert_array_equal(good[name], source[name])


def test_full_disk_leaves_the_previous_checkpoint(full_disk):
    if isinstance(full_disk, str):
        pytest.skip('mounting a small file system needs root: %s' % full_disk)
    assert full_disk.process.wait(timeout=300) == 2 and 'Traceback' not in full_disk.log()
    message, = [line for line in full_disk.log().splitlines() if line.startswith('error: ')]
    assert 'disk of %s is full' % full_disk.model in message and 'model-0' in message
    weights = load_all(tf.train.latest_checkpoint(str(full_disk.model)))
    assert weights['global_step'] == 0 and all(np.isfinite(value).all() for value in weights.values())


# The same parts in this process, where every moment can be had.

class TinyTraining:
    """A session with a CheckpointHook around one variable that grows by `rate` a step."""

    def __init__(self, folder, every=2, keep=5):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(tf.Graph().as_default())
        global_step = tf.train.get_or_create_global_step()
        self.weight = tf.get_variable('weight', initializer=np.zeros(1000, np.float32), use_resource=False)
        self.amount = tf.placeholder_with_default(1.0, ())
        with tf.control_dependencies([tf.assign_add(self.weight, tf.fill([1000], self.amount))]):
            self.step = tf.assign_add(global_step, 1)
        self.finite = tf.placeholder_with_default(0.0, ())
        self.saver = checkpoint.create_saver(keep)
        self.best = checkpoint.BestCheckpoint(self.saver, folder)
        network = types.SimpleNamespace(variables=[self.weight])
        hook = checkpoint.CheckpointHook(self.saver, folder, every, train.Training(
            network, tf.identity(self.step), tf.constant(0.25), {}, self.finite))
        self.session = self._stack.enter_context(
            train.open_session(folder, tf.train.Scaffold(saver=self.saver), [hook], None))

    def run(self, steps=1, **feed):
        for _ in range(steps):
            self.session.run(self.step, {getattr(self, name): value for name, value in feed.items()})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)


def modification_times(folder):
    return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder) if entry.is_file()}


def test_resuming_does_not_write_over_the_checkpoint_it_resumes_from(tmp_path):
    with TinyTraining(str(tmp_path)) as training:
        training.run(3)
    before = modification_times(str(tmp_path))
    assert 'model-3.index' in before
    with TinyTraining(str(tmp_path)):
        pass
    assert modification_times(str(tmp_path)) == before


@pytest.mark.parametrize('feed, what', [({'finite': np.nan}, 'loss or a gradient'),
                                        ({'finite': np.inf}, 'loss or a gradient'), ({'amount': np.inf}, 'weight')])
def test_nothing_that_is_not_finite_gets_saved(tmp_path, feed, what):
    with pytest.raises(UserError, match='a %s became NaN or infinite at step 4, with lr=0.25' % what) as caught:
        with TinyTraining(str(tmp_path)) as training:
            training.run(3)
            training.run(1, **feed)
    assert caught.value.exit_code == 3 and 'model-2' in str(caught.value)
    assert saved_step(tmp_path) == 2
    with TinyTraining(str(tmp_path)) as training:
        np.testing.assert_array_equal(train.without_hooks(training.session, tf.Session.run, training.weight), 2)


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    for start in (0, 10):  # the second time it has to know what the first one left
        with TinyTraining(str(tmp_path), keep=3) as training:
            for step in range(start + 1, start + 11):
                training.run()
                train.without_hooks(training.session, training.best.update, step, abs(step - 13))
    assert sorted(path.stem for path in tmp_path.glob('*.index')) == ['model-16', 'model-18', 'model-20']
    assert [path.name for path in (tmp_path / 'best').glob('*.index')] == ['model-13.index']
    np.testing.assert_array_equal(load_all(str(tmp_path / 'best' / 'model-13'))['weight'], 13)


def test_leftovers(tmp_path):
    with TinyTraining(str(tmp_path)) as training:
        training.run(2)
    kept = modification_times(str(tmp_path))
    (tmp_path / 'model-4_temp_0123' / 'part').mkdir(parents=True)
    for name in ('model-4.data-00000-of-00001', 'model-2.index.tempstate77', 'checkpoint.tmp0123'):
        (tmp_path / name).write_text('half')
    (tmp_path / 'notes.txt').write_text('mine')
    checkpoint.remove_leftovers(str(tmp_path))
    assert set(os.listdir(str(tmp_path))) == set(kept) | {'notes.txt'}


@pytest.fixture()
def loader(sample_coco):
    with pose_loader.BatchLoader(PoseDataset(str(sample_coco), 'train2017', 64, 64, 8), 2, workers=1, seed=0) as loader:
        yield loader


def layout():
    return pose_loader.batch_layout(2, 64, 64, 8)


def test_stalled_data_is_reported(loader, caplog):
    """Loader processes that stand still, then go on."""
    caplog.set_level(logging.WARNING)
    with tf.Graph().as_default():
        tf.train.get_or_create_global_step()
        feed = feed.FeedHook(loader, layout(), hint='look at the disk', report_seconds=0.5)
        with tf.train.MonitoredSession(hooks=[feed]) as session:
            assert feed.wait_for_batch(lambda: False)
            assert session.run(feed.batch)[0].shape == (2, 64, 64, 3)
            supervisor, = psutil.Process().children()
            worker, = supervisor.children()
            worker.suspend()
            threading.Timer(5, worker.resume).start()
            for _ in range(12):  # more than any queue holds
                assert feed.wait_for_batch(lambda: False)
                session.run(feed.batch)
    reports = [record.getMessage() for record in caplog.records if 'waiting for data' in record.getMessage()]
    assert 2 <= len(reports) <= 10
    assert re.match(r'waiting for data: no batch for \d+ s; look at the disk', reports[0])
    assert feed.wait_seconds > 2


class FailingSource:
    """Two batches, then an error, as from a loader whose processes keep dying."""

    def __init__(self):
        self.batches = 2

    def get(self, timeout):
        self.batches -= 1
        if self.batches < 0:
            raise UserError('no more')
        return [np.zeros(shape, dtype) for _, dtype, shape in layout()]

    def ready(self):
        return 0


def test_batches_before_a_failure_are_used(tmp_path):
    with tf.Graph().as_default():
        tf.train.get_or_create_global_step()
        feed = feed.FeedHook(FailingSource(), layout(), hint='')
        with tf.train.MonitoredSession(hooks=[feed]) as session:
            used = 0
            while feed.wait_for_batch(lambda: False):
                session.run(feed.batch)
                used += 1
        assert used == 2
        with pytest.raises(UserError, match='no more'):
            feed.check()


def test_a_signal_before_the_first_step_ends_the_run_at_once(sample_coco, tmp_path):
    run = Run(sample_coco, tmp_path / 'model', '--valid-every=0')
    run.wait_until(lambda: 'no GPU' in run.log())  # the graph is being built
    run.stop(signal.SIGTERM)
    assert 'stopped by a signal before the first step' in run.log()
    assert not list((tmp_path / 'model').glob('model*'))


def test_two_signals_at_once_are_one():
    """`timeout` and others signal a process and then its group; only a later signal kills."""
    code = ('import os, signal, sys, time, train\n'
            'stop = train.StopSignal()\n'
            'for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):\n'
            '    os.kill(os.getpid(), number)\n'
            'assert stop()\n'
            'print("alive", flush=True)\n'
            'time.sleep(1.1)\n'
            'os.kill(os.getpid(), signal.SIGTERM)\n'
            'time.sleep(10)\n')
    result = subprocess.run([sys.executable, '-c', code], cwd=str(ROOT), stdout=subprocess.PIPE)
    assert result.stdout == b'alive\n' and result.returncode == -signal.SIGTERM
