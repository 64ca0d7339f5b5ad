"""A damaged run folder: find the newest checkpoint that reads whole, and go on from there. Nothing is thrown away.

A checkpoint carries a checksum of each array, so reading all of it once, when a run starts, finds a cut file as well as
a single wrong bit.
"""
import logging
import os
import re

import tensorflow.compat.v1 as tf

from networks.checkpoints import STATE_FILE, named_checkpoints
from pose_cli import UserError, write_file

BASENAME = 'model'
DAMAGED = 'damaged-'  # what is set aside keeps its name behind this


def recover(folder):
    """Make the file `checkpoint` of a folder name the newest checkpoint that reads whole, and set newer ones aside.

    Does nothing when the one that it names is whole, or when there is none yet. Says in one line what it did.

    Returns:
        the prefix of the checkpoint to go on from, or None for a folder without any.
    Raises:
        UserError: checkpoints were there and none of them reads whole, or one cannot be read for want of rights.
    """
    named = named_checkpoints(folder)
    latest = named[-1] if named else None
    if latest and fault(latest) is None:
        return latest
    steps = checkpoint_steps(folder)
    if latest is None and not steps:
        # A file `checkpoint` that names nothing: of a new run that was cut short, or the rest of an old one.
        if os.path.exists(os.path.join(folder, STATE_FILE)) and _remains(folder):
            raise UserError('%s holds a damaged checkpoint and no whole one; bring its files back, or choose another '
                            '--modelpath' % folder)
        return None
    last_named = _step(latest) if latest else None
    faults = []
    if latest and _step(latest) not in steps:
        faults.append((latest, fault(latest)))
    for step in sorted(steps, reverse=True):
        if last_named is not None and step > last_named:
            continue  # a save that was cut short before it counted; remove_leftovers takes it away
        prefix = os.path.join(folder, '%s-%d' % (BASENAME, step))
        reason = fault(prefix)
        if reason is None:
            return _go_on_from(prefix, faults, sorted(s for s in steps if s <= step))
        faults.append((prefix, reason))
    raise UserError('no checkpoint in %s reads whole (%s: %s); bring its files back, or choose another --modelpath'
                    % (folder, os.path.basename(faults[0][0]), faults[0][1]))


def fault(prefix):
    """Why a checkpoint cannot be used, in a few words; None when all of it can be read.

    Raises:
        UserError: its files are there, but this user may not read them.
    """
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
        return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return None


def set_aside(path):
    """Rename a file or folder to damaged-NAME beside it, with a number where that is taken. Returns the new path."""
    folder, name = os.path.split(path)
    target, number = os.path.join(folder, DAMAGED + name), 1
    while os.path.lexists(target):
        number += 1
        target = os.path.join(folder, '%s%d-%s' % (DAMAGED, number, name))
    try:
        os.rename(path, target)
    except OSError as error:
        raise UserError('cannot rename the damaged %s: %s; choose another --modelpath' % (path, error.strerror))
    return target


def _go_on_from(prefix, faults, steps):
    """Set the damaged ones aside, then name this one the latest. Killed in between, the next start does the rest."""
    folder = os.path.dirname(prefix)
    kept = [set_aside(path) for damaged, _ in faults for path in _files(damaged)]
    names = ['%s-%d' % (BASENAME, step) for step in steps]
    lines = ['model_checkpoint_path: "%s"' % names[-1]] + ['all_model_checkpoint_paths: "%s"' % name for name in names]
    write_file(os.path.join(folder, STATE_FILE), ('\n'.join(lines) + '\n').encode())
    what = 'the file %s was damaged or gone' % os.path.join(folder, STATE_FILE)
    if faults:
        what = '%s is damaged (%s)' % (' and '.join(damaged for damaged, _ in faults), faults[0][1])
        if kept:
            what += ', kept as %s*' % os.path.join(folder, DAMAGED)
    logging.warning('%s; going on from %s, the newest checkpoint that reads whole', what, prefix)
    return prefix


def checkpoint_steps(folder):
    """The steps of the checkpoints in a folder that have an index."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = (re.match(BASENAME + r'-(\d{1,18})\.index$', name) for name in names)
    return {int(match.group(1)) for match in matches if match}


def _remains(folder):
    return any(re.match(BASENAME + r'-\d+\.data-', name) for name in os.listdir(folder))


def _step(prefix):
    match = re.search(r'-(\d{1,18})$', prefix)
    return int(match.group(1)) if match else None


def _files(prefix):
    folder, name = os.path.split(prefix)
    if not os.path.isdir(folder):
        return []
    return sorted(os.path.join(folder, other) for other in os.listdir(folder)
                  if re.match(re.escape(name) + r'\.(index|data-\d+-of-\d+|meta)$', other))
