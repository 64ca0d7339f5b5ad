"""Checkpoints where every moment can be had: a session around one variable, in this process."""
import contextlib
import os
import types

import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from pose_errors import UserError
from saved_weights import load_all, saved_step
from training import checkpoint
from training.towers import Training


@contextlib.contextmanager
def tiny_training(folder, every=2, keep=5):
    """A session with a CheckpointHook around one variable that grows by `amount` a step.

    run(steps, **values of placeholders); between_steps(function) calls function(session), with a session whose runs are
    no training steps.
    """
    with tf.Graph().as_default():
        global_step = tf.train.get_or_create_global_step()
        weight = tf.get_variable('weight', initializer=np.zeros(1000, np.float32), use_resource=False)
        feeds = {'amount': tf.placeholder_with_default(1.0, ()), 'finite_check': tf.placeholder_with_default(0.0, ())}
        with tf.control_dependencies([tf.assign_add(weight, tf.fill([1000], feeds['amount']))]):
            step = tf.assign_add(global_step, 1)
        saver = checkpoint.create_saver(keep)
        best = checkpoint.BestCheckpoint(saver, folder)
        network = types.SimpleNamespace(variables=[weight])
        hook = checkpoint.CheckpointHook(saver, folder, every, Training(
            network, tf.identity(step), tf.constant(0.25), {}, feeds['finite_check'], [], tf.no_op(), None, None, 0,
            None))
        with tf.train.SingularMonitoredSession([hook], tf.train.Scaffold(saver=saver),
                                               checkpoint_dir=folder) as session:
            def run(steps=1, **values):
                for _ in range(steps):
                    session.run(step, {feeds[name]: value for name, value in values.items()})

            def between_steps(function):
                return session.run_step_fn(lambda step_context: function(step_context.session))

            yield types.SimpleNamespace(run=run, between_steps=between_steps, session=session, weight=weight, hook=hook,
                                        best=best)


def modification_times(folder):
    return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder) if entry.is_file()}


def test_resuming_does_not_write_over_the_checkpoint_it_resumes_from(tmp_path):
    with tiny_training(str(tmp_path)) as training:
        training.run(3)
    before = modification_times(str(tmp_path))
    assert 'model-3.index' in before
    with tiny_training(str(tmp_path)):
        pass
    assert modification_times(str(tmp_path)) == before


@pytest.mark.parametrize('feed, what', [
    ({'finite_check': np.nan}, 'loss or a gradient'), ({'finite_check': np.inf}, 'loss or a gradient'),
    ({'amount': np.inf}, 'weight')])
def test_nothing_that_is_not_finite_gets_saved(tmp_path, feed, what):
    with pytest.raises(UserError, match='a %s became NaN or infinite at step 4, with lr=0.25' % what) as caught:
        with tiny_training(str(tmp_path)) as training:
            training.run(3)
            training.run(1, **feed)
    assert caught.value.exit_code == 3 and 'model-2' in str(caught.value)
    assert saved_step(tmp_path) == 2
    with tiny_training(str(tmp_path)) as training:
        np.testing.assert_array_equal(training.between_steps(lambda session: session.run(training.weight)), 2)


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    for start in (0, 10):  # the second time it has to know what the first one left
        with tiny_training(str(tmp_path), keep=3) as training:
            for step in range(start + 1, start + 11):
                training.run()
                training.between_steps(lambda session: training.best.update(session, step, abs(step - 13)))
    assert sorted(path.stem for path in tmp_path.glob('*.index')) == ['model-16', 'model-18', 'model-20']
    assert [path.name for path in (tmp_path / 'best').glob('*.index')] == ['model-13.index']
    np.testing.assert_array_equal(load_all(str(tmp_path / 'best' / 'model-13'))['weight'], 13)


def test_leftovers(tmp_path):
    with tiny_training(str(tmp_path)) as training:
        training.run(2)
    kept = modification_times(str(tmp_path))
    (tmp_path / 'model-4_temp_0123' / 'part').mkdir(parents=True)
    for name in ('model-4.data-00000-of-00001', 'model-2.index.tempstate77', 'checkpoint.tmp0123'):
        (tmp_path / name).write_text('half')
    own = {'notes.txt', 'model-template.txt', 'model-5000.npy'}
    for name in own:
        (tmp_path / name).write_text('mine')
    for name in ('model-attempt2', 'model-2026', 'model-9_temporary'):
        (tmp_path / name).mkdir()
        own.add(name)
    checkpoint.remove_leftovers(str(tmp_path))
    assert set(os.listdir(str(tmp_path))) == set(kept) | own


@pytest.mark.parametrize('replaced', [False, True])
def test_a_folder_that_was_moved_ends_the_run_in_one_line(replaced, tmp_path):
    folder, moved = tmp_path / 'run', tmp_path / 'moved'
    folder.mkdir()
    with pytest.raises(UserError, match='run was moved or removed while training; put it back'):
        with tiny_training(str(folder), every=2) as training:
            training.run(2)
            folder.rename(moved)
            if replaced:
                folder.mkdir()
            training.run(2)
    assert saved_step(moved) == 2 and (not folder.exists() or not list(folder.iterdir()))


def test_nothing_is_saved_from_a_device_whose_memory_is_full(tmp_path):
    full = tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor with shape[64,46,46,128]')
    with tiny_training(str(tmp_path), every=2) as training:
        training.run(3)
        training.hook.save_on_error(training.session, full)
        assert saved_step(tmp_path) == 2
        training.hook.save_on_error(training.session, ValueError('another error'))
        assert saved_step(tmp_path) == 3
    with pytest.raises(UserError, match='OOM when allocating.*smaller --batchsize.*resumes from .*model-3'):
        checkpoint.explain_failure(str(tmp_path), full)
    checkpoint.explain_failure(str(tmp_path), ValueError('another error'))


def test_a_full_disk_is_not_taken_for_a_full_device(tmp_path):
    with pytest.raises(tf.errors.ResourceExhaustedError) as full:
        with tf.gfile.GFile('/dev/full', 'w') as file:
            file.write('weights')
    with pytest.raises(UserError, match='the disk of .* is full; free some space'):
        checkpoint.explain_failure(str(tmp_path), full.value)
