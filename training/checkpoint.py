"""Checkpoints that survive being killed, a full disk, a diverging loss and damaged files.

A checkpoint counts once the file `checkpoint` of its folder names it, and that file is replaced in one move after all
else is written: a run that dies at any moment resumes from the last one that is complete. A checkpoint carries a
checksum of each array, so reading all of it once, when a run starts, finds a cut file as well as a single wrong bit;
then the newest whole one is used, and the damaged one is kept under another name.
"""
import contextlib
import errno
import glob
import itertools
import json
import logging
import os
import re
import shutil

import numpy as np

from networks.pretrained import STATE_FILE, named_checkpoints
from networks.tensorflow import tf
from pose_errors import UserError, disk_trouble, reason_of
from pose_files import write_file, write_json

from .coordinator import DIVERGED_EXIT_CODE

BASENAME = 'model'
DAMAGED = 'damaged-'  # a quarantined file keeps its name behind this
# What tf.train.Saver writes, and what it writes first; nothing else in a run folder is ever removed.
OF_A_SAVE = re.compile(BASENAME + r'-\d{1,18}(\.(index|meta|data-\d+-of-\d+)(\.tempstate\d*)?|_temp(_[0-9a-f]+)?)')


def latest_checkpoint(folder):
    """The checkpoint that a run in this folder resumes from, or None. recover makes sure that it is whole."""
    named = named_checkpoints(folder)
    return named[-1] if named else None


def saved_step(folder):
    """The step that a run in this folder resumes from, 0 for a new run."""
    return step_of(latest_checkpoint(folder) or '') or 0


def explain_failure(folder, error):
    """Raise UserError, with the remedy, when an exception comes from a full memory, or a full or broken disk."""
    saved = latest_checkpoint(folder)
    state = 'it resumes from %s' % saved if saved else 'nothing was saved yet'
    reason = disk_trouble(error)  # first: TensorFlow reports a full disk as ResourceExhaustedError, too
    if reason:
        full = reason == os.strerror(errno.ENOSPC)
        raise UserError('%s and run the same command again: %s' % (
            'the disk of %s is full; free some space' % folder if full else
            'cannot write in %s: %s; mend that' % (folder, reason), state))
    if isinstance(error, tf.errors.ResourceExhaustedError):
        raise UserError('the memory of a device is full (%s); take a smaller --batchsize, with --accumulate=N for as '
                        'many samples an update, a smaller input, more --gpus, or --precision=mixed, and start the run '
                        'again: %s' % (reason_of(error)[:150], state))


def create_saver(keep, variables=None, like=None):
    """A tf.train.Saver that keeps the last `keep` checkpoints; with `like`, it shares that saver's operations."""
    definition = None
    if like:
        definition = tf.train.SaverDef()
        definition.CopyFrom(like.as_saver_def())
        definition.max_to_keep = keep
    return tf.train.Saver(variables, saver_def=definition, max_to_keep=keep, save_relative_paths=True)


def remove_leftovers(folder):
    """Remove what a killed save left behind: temporary files, and files later than the last complete checkpoint."""
    latest = latest_checkpoint(folder)
    last_step = step_of(latest) if latest else np.inf
    for name in sorted(os.listdir(folder)):
        of_a_save = OF_A_SAVE.fullmatch(name) and ('temp' in name or step_of(name) > last_step)
        if of_a_save or name.startswith('checkpoint.tmp'):
            path = os.path.join(folder, name)
            logging.info('removing %s, left by a save that was cut short', path)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def step_of(path):
    """The step in the name of a checkpoint, or of one of its files; None for other names."""
    match = re.match(BASENAME + r'-(\d{1,18})(?!\d)', os.path.basename(path))
    return int(match.group(1)) if match else None


class CheckpointHook(tf.train.SessionRunHook):
    """Saves every `every` steps and at the end, and ends the run before anything that is not finite gets saved.

    tf.train.CheckpointSaverHook would first write the checkpoint again that it resumes from, and the graph into each.

    Args:
        saver: see create_saver.  folder: --modelpath.  every: steps between checkpoints.
        training: a towers.Training, of which step, rate, finite_check and network.variables are watched.
        writes: whether this process saves. The others of a cluster only watch, and end at the same step.
        note_progress: function (session, step, alone), called in all processes before a checkpoint is saved; alone:
            the others take no part, as after an error.
        first_step: an attribute, the step that the session starts at.
    Raises UserError, with DIVERGED_EXIT_CODE, from a session's run().
    """

    def __init__(self, saver, folder, every, training, writes=True, note_progress=lambda session, step, alone: None):
        self._writes, self._note_progress = writes, note_progress
        self._saver, self._folder, self._every = saver, folder, every
        self._watched = {'step': training.step, 'rate': training.rate, 'finite_check': training.finite_check}
        # A sum is finite only if all its parts are. (0 * sum would be 0 always: TensorFlow's optimizer folds it.)
        self._state = tf.train.get_global_step(), tf.add_n([tf.reduce_sum(v) for v in training.network.variables])
        self._identity = _identity(folder)
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
        step, rate, finite_check = (run_values.results[name] for name in ('step', 'rate', 'finite_check'))
        if not np.isfinite(finite_check):
            self._diverged('loss or a gradient', step, 'with lr=%g' % rate)
        if step % self._every == 0:
            self._save(run_context.session, 'with lr=%g' % rate)

    def end(self, session, alone=False):
        if session.run(self._state)[0] != self._saved_step:
            self._save(session, 'at the end', alone)

    def save_on_error(self, session, error):
        """Save what an error that is about to end the run would lose, unless weights went bad or memory is full."""
        if not self._writes or getattr(error, 'exit_code', None) == DIVERGED_EXIT_CODE \
                or isinstance(error, tf.errors.ResourceExhaustedError):  # a device in that state may never answer
            return
        try:
            session.run_step_fn(lambda step_context: self.end(step_context.session, alone=True))
        except (UserError, OSError, RuntimeError, ValueError, tf.errors.OpError) as failure:
            logging.warning('could not save before the run ends: %s', reason_of(failure))

    def _save(self, session, when, alone=False):
        step, weights = session.run(self._state)
        if not np.isfinite(weights):
            self._diverged('weight', step, when)
        self._saved_step = step
        if self._writes and _identity(self._folder) != self._identity:
            raise UserError('the run folder %s was moved or removed while training; put it back and start the same '
                            'command again: it resumes from the last checkpoint in it' % self._folder)
        self._note_progress(session, int(step), alone)
        if not self._writes:
            return
        self._saver.save(session, os.path.join(self._folder, BASENAME), step, write_meta_graph=False)
        logging.info('saved the checkpoint of step %d', step)

    def _diverged(self, what, step, when):
        good = latest_checkpoint(self._folder) if self._writes else "worker 0's"
        raise UserError('a %s became NaN or infinite at step %d, %s; %s; start again with %s' % (
            what, step, when, 'the last good checkpoint is %s' % good if good else 'nothing was saved yet',
            'a lower --lr' if good else 'other weights, or a lower --lr'), DIVERGED_EXIT_CODE)


def _identity(folder):
    """What tells a folder from another one of the same name; None where there is none."""
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        return status.st_dev, status.st_ino


class BestCheckpoint:
    """Keeps the checkpoint with the lowest validation loss_ll, or the highest AP, in a folder `best` in modelpath.

    saver: of the other checkpoints, whose operations it shares.  metric: 'loss_ll' or 'AP'.
    """

    def __init__(self, saver, modelpath, metric='loss_ll'):
        self._metric, self._sign = metric, -1 if metric == 'loss_ll' else 1
        self._folder = os.path.join(modelpath, 'best')
        self._record = os.path.join(self._folder, 'best.json')
        self._saver = create_saver(keep=1, like=saver)
        self._kept = None  # {step, metric} of the checkpoint in the folder
        try:
            self._resume()
        except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logging.warning('%s is damaged (%s), kept as %s; the next validation is the best so far', self._folder,
                            reason_of(error), quarantine(self._folder))
            self._kept = None

    @property
    def step(self):
        """Of the best so far, 0 before the first validation."""
        return self._kept['step'] if self._kept else 0

    @property
    def value(self):
        """The best so far, infinitely bad before the first validation."""
        return self._kept[self._metric] if self._kept else -self._sign * np.inf

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
            record = json.load(file)
        if record['step'] != saved_step(self._folder):  # killed between the record and its checkpoint
            record = record['previous']
        if self._metric not in record and set(record) & {'loss_ll', 'AP'}:
            logging.info('%s was chosen by another measure; the next %s is the best so far', self._folder, self._metric)
            return
        self._kept = {'step': int(record['step']), self._metric: float(record[self._metric])}
        if self._kept['step'] != saved_step(self._folder) or not np.isfinite(self.value):
            raise ValueError('it tells of step %d with %s=%s' % (self._kept['step'], self._metric, self.value))

    def update(self, session, step, value):
        """Keep the session's weights if the value is the best so far. Returns whether it is."""
        better = self._sign * value > self._sign * self.value
        if better:
            if not os.path.isdir(self._folder):
                os.mkdir(self._folder)  # not its parents: the run folder may have been moved
            now = {'step': int(step), self._metric: float(value)}
            # The record comes first, and knows the one before: a run that is killed here finds both.
            write_json(self._record, dict(now, **({'previous': self._kept} if self._kept else {})), indent=1)
            self._saver.save(session, os.path.join(self._folder, BASENAME), step, write_meta_graph=False)
            self._kept = now
            logging.info('best validation so far: %s=%.6g at step %d, kept in %s', self._metric, value, step,
                         self._folder)
        return better


def recover(folder):
    """Make the file `checkpoint` of a folder name the newest checkpoint that reads whole, and set newer ones aside.

    Does nothing when the one that it names is whole, or when there is none yet. Says in one line what it did.

    Returns the prefix of the checkpoint to go on from, or None for a folder without any. Raises UserError when
    checkpoints were there and none of them reads whole, or one cannot be read for want of rights.
    """
    latest = latest_checkpoint(folder)
    if latest and fault(latest) is None:
        return latest
    steps = checkpoint_steps(folder)
    if latest is None and not steps:
        # A file `checkpoint` that names nothing: of a new run that was cut short, or the rest of an old one.
        if os.path.exists(os.path.join(folder, STATE_FILE)) and any(
                re.match(BASENAME + r'-\d+\.data-', name) for name in os.listdir(folder)):
            raise UserError('%s holds a damaged checkpoint and no whole one; bring its files back, or choose another '
                            '--modelpath' % folder)
        return None
    last_named, faults = step_of(latest or ''), []
    if latest and last_named not in steps:
        faults.append((latest, fault(latest)))
    # Later ones are of a save that was cut short before it counted; remove_leftovers takes them away.
    steps = sorted(step for step in steps if last_named is None or step <= last_named)
    while steps:
        prefix = os.path.join(folder, '%s-%d' % (BASENAME, steps[-1]))
        reason = fault(prefix)
        if reason is None:
            return _go_on_from(prefix, faults, steps)
        faults.append((prefix, reason))
        steps.pop()
    raise UserError('no checkpoint in %s reads whole (%s: %s); bring its files back, or choose another --modelpath'
                    % (folder, os.path.basename(faults[0][0]), faults[0][1]))


def fault(prefix):
    """Why a checkpoint cannot be used, in a few words; None when all of it can be read. Raises UserError for files that
    are there, but that this user may not read."""
    files = _files(prefix)
    for path in files:
        if not os.access(path, os.R_OK):
            raise UserError('cannot read %s: Permission denied; mend its rights' % path)
    if prefix + '.index' not in files or not any('.data-' in path for path in files):
        return 'its files are not all there'
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except MemoryError:
        raise UserError('not enough memory to read %s' % prefix)
    except Exception as error:  # damaged bytes fail in many ways, which differ between TensorFlows
        return reason_of(error)[:200]
    return None


def quarantine(path, mark=DAMAGED):
    """Rename a file or folder to its name behind a mark, with a number where that is taken. Returns the new path."""
    folder, name = os.path.split(path)
    numbers = itertools.chain([''], ('%d-' % number for number in itertools.count(2)))
    targets = (os.path.join(folder, mark + number + name) for number in numbers)
    target = next(target for target in targets if not os.path.lexists(target))
    try:
        os.rename(path, target)
    except OSError as error:
        raise UserError('cannot rename %s: %s; choose another --modelpath' % (path, error.strerror))
    return target


def _go_on_from(prefix, faults, steps):
    """Set the damaged ones aside, then name this one the latest. Killed in between, the next start does the rest."""
    folder = os.path.dirname(prefix)
    kept = [quarantine(path) for damaged, _ in faults for path in _files(damaged)]
    names = ['%s-%d' % (BASENAME, step) for step in steps]
    lines = ['model_checkpoint_path: "%s"' % names[-1]] + ['all_model_checkpoint_paths: "%s"' % name for name in names]
    write_file(os.path.join(folder, STATE_FILE), ('\n'.join(lines) + '\n').encode())
    what = '%s is damaged (%s)' % (' and '.join(damaged for damaged, _ in faults), faults[0][1]) if faults else \
        'the file %s was damaged or gone' % os.path.join(folder, STATE_FILE)
    what += ', kept as %s*' % os.path.join(folder, DAMAGED) if kept else ''
    logging.warning('%s; going on from %s, the newest checkpoint that reads whole', what, prefix)
    return prefix


def checkpoint_steps(folder):
    """The steps of the checkpoints in a folder that have an index."""
    matches = (re.match(BASENAME + r'-(\d{1,18})\.index$', os.path.basename(path))
               for path in glob.glob(os.path.join(glob.escape(folder), '*.index')))
    return {int(match.group(1)) for match in matches if match}


def _files(prefix):
    return sorted(path for path in glob.glob(glob.escape(prefix) + '.*')
                  if re.match(r'\.(index|data-\d+-of-\d+|meta)$', path[len(prefix):]))
