"""Checkpoints that survive being killed, a full disk and a diverging loss.

A checkpoint counts once the file `checkpoint` of its folder names it, and that file is replaced in one move after all
else is written. So a run that dies at any moment resumes from the last one that is complete.
"""
import glob
import json
import logging
import os
import re
import shutil

import numpy as np
import tensorflow.compat.v1 as tf

from networks.checkpoints import named_checkpoints
from pose_cli import UserError, reason_of, write_json

from .liveness import DIVERGED_EXIT_CODE
from .recovery import BASENAME, recover, set_aside


def latest_checkpoint(folder):
    """The checkpoint that a run in this folder resumes from, or None. recovery.recover makes sure that it is whole."""
    named = named_checkpoints(folder)
    return named[-1] if named else None


def saved_step(folder):
    """The step that a run in this folder resumes from, 0 for a new run."""
    return _step(os.path.basename(latest_checkpoint(folder) or ''), 0)


def create_saver(keep, variables=None, like=None):
    """A tf.train.Saver that keeps the last `keep` checkpoints; with `like`, it shares that saver's operations.

    variables: what it saves (default: all).
    """
    definition = None
    if like:
        definition = tf.train.SaverDef()
        definition.CopyFrom(like.as_saver_def())
        definition.max_to_keep = keep
    return tf.train.Saver(variables, saver_def=definition, max_to_keep=keep, save_relative_paths=True)


def remove_leftovers(folder):
    """Remove what a killed save left behind: temporary files, and files later than the last complete checkpoint."""
    last_step = _step(os.path.basename(latest_checkpoint(folder) or ''), np.inf)
    for path in glob.glob(os.path.join(folder, BASENAME + '-*')) + glob.glob(os.path.join(folder, 'checkpoint.tmp*')):
        name = os.path.basename(path)
        if 'temp' in name or name.startswith('checkpoint.tmp') or _step(name, 0) > last_step:
            logging.info('removing %s, left by a save that was cut short', path)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def _step(name, otherwise):
    match = re.match(BASENAME + r'-(\d+)', name)
    return int(match.group(1)) if match else otherwise


class CheckpointHook(tf.train.SessionRunHook):
    """Saves every `every` steps and at the end, and ends the run before anything that is not finite gets saved.

    tf.train.CheckpointSaverHook would first write the checkpoint again that it resumes from, over itself, and add
    the whole graph to each one, which takes seconds.

    Args:
        saver: see create_saver.
        folder: --modelpath.
        every: steps between checkpoints.
        training: a towers.Training, of which step, rate, health and network.variables are watched.
        writes: whether this process saves. The others of a cluster only watch, and end at the same step.
    Attributes:
        first_step: the step that the session starts at.
    Raises:
        UserError, with DIVERGED_EXIT_CODE, from a session's run().
    """

    def __init__(self, saver, folder, every, training, writes=True):
        self._writes = writes
        self._saver, self._folder, self._every = saver, folder, every
        self._watched = {'step': training.step, 'rate': training.rate, 'health': training.health}
        # A sum is finite only if all its parts are. (0 * sum would be 0 always: TensorFlow's optimizer folds it.)
        self._state = tf.train.get_global_step(), tf.add_n([tf.reduce_sum(v) for v in training.network.variables])
        self.first_step = self._saved_step = None

    def after_create_session(self, session, coord):
        self.first_step = self._saved_step = int(session.run(self._state)[0])
        if not self._writes:
            return
        remove_leftovers(self._folder)
        if latest_checkpoint(self._folder) is None:
            self._save(session, 'at the start')

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._watched)

    def after_run(self, run_context, run_values):
        step, rate, health = (run_values.results[name] for name in ('step', 'rate', 'health'))
        if not np.isfinite(health):
            self._diverged('loss or a gradient', step, 'with lr=%g' % rate)
        if step % self._every == 0:
            self._save(run_context.session, 'with lr=%g' % rate)

    def end(self, session):
        if session.run(self._state)[0] != self._saved_step:
            self._save(session, 'at the end')

    def rescue(self, session, error):
        """Save what an error that is about to end the run would lose, unless it tells of weights gone bad."""
        if not self._writes or getattr(error, 'exit_code', None) == DIVERGED_EXIT_CODE:
            return
        try:
            session.run_step_fn(lambda step_context: self.end(step_context.session))
        except (UserError, OSError, RuntimeError, ValueError, tf.errors.OpError) as failure:
            logging.warning('could not save before the run ends: %s', reason_of(failure))

    def _save(self, session, when):
        step, weights = session.run(self._state)
        if not np.isfinite(weights):
            self._diverged('weight', step, when)
        self._saved_step = step
        if not self._writes:
            return
        self._saver.save(session, os.path.join(self._folder, BASENAME), step, write_meta_graph=False)
        logging.info('saved the checkpoint of step %d', step)

    def _diverged(self, what, step, when):
        good = latest_checkpoint(self._folder) if self._writes else "worker 0's"
        raise UserError('a %s became NaN or infinite at step %d, %s; %s; start again with %s' % (
            what, step, when, 'the last good checkpoint is %s' % good if good else 'nothing was saved yet',
            'a lower --lr' if good else 'other weights, or a lower --lr'), DIVERGED_EXIT_CODE)


class BestCheckpoint:
    """Keeps the checkpoint with the lowest validation loss_ll, in a folder `best` of its own.

    Args:
        saver: the saver of the other checkpoints, whose operations it shares.
        modelpath: where to put the folder.
    Attributes:
        loss_ll: the lowest so far, infinite before the first validation.
    """

    def __init__(self, saver, modelpath):
        self._folder = os.path.join(modelpath, 'best')
        self._record = os.path.join(self._folder, 'best.json')
        self._saver = create_saver(keep=1, like=saver)
        self.loss_ll = np.inf
        try:
            self._resume()
        except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            kept = set_aside(self._folder)
            logging.warning('%s is damaged (%s), kept as %s; the next validation is the best so far', self._folder,
                            reason_of(error), kept)
            self.loss_ll = np.inf

    def _resume(self):
        """Take up what an earlier start left. Raises many things when it is damaged."""
        if not os.path.lexists(self._folder):
            return
        if not os.path.isdir(self._folder):
            raise UserError('it is no folder')
        if recover(self._folder) is None:
            return
        remove_leftovers(self._folder)
        self._saver.recover_last_checkpoints(named_checkpoints(self._folder))
        with open(self._record) as file:
            self.loss_ll = float(json.load(file)['loss_ll'])
        if not np.isfinite(self.loss_ll):
            raise ValueError('loss_ll is %s' % self.loss_ll)

    def update(self, session, step, loss_ll):
        """Keep the session's weights if loss_ll is the lowest so far."""
        if loss_ll < self.loss_ll:
            os.makedirs(self._folder, exist_ok=True)
            self._saver.save(session, os.path.join(self._folder, BASENAME), step, write_meta_graph=False)
            self.loss_ll = loss_ll
            write_json(self._record, {'step': int(step), 'loss_ll': float(loss_ll)}, indent=1)
            logging.info('best validation so far: loss_ll=%.6g at step %d, kept in %s', loss_ll, step, self._folder)
