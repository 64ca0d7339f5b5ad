"""The weights that a run starts from: a checkpoint to resume, or a file made elsewhere."""
import contextlib
import logging
import os

import networks.pretrained
import pose_cli
from pose_cli import UserError
from pose_skeleton import RUN_FILE

from . import runlock
from .checkpoint import latest_checkpoint
from .recovery import checkpoint_steps, recover
from .runlog import check_resume, forget_start


def check_start(flags):
    """Raise UserError unless there is a run in --modelpath that goes on with these flags, or weights for a new one."""
    if latest_checkpoint(flags.modelpath):
        check_resume(flags.modelpath, vars(flags))
    elif not checkpoint_steps(flags.modelpath):
        check_weights(flags)


@contextlib.contextmanager
def run_folder(flags):
    """Hold --modelpath for this process, with a whole checkpoint to resume from if there are any. Raises UserError.

    A start that fails before it has saved or logged anything leaves nothing behind.
    """
    with pose_cli.output_folder(flags.modelpath), runlock.hold(flags.modelpath), \
            pose_cli.output_folder(flags.logpath):
        if recover(flags.modelpath):
            check_resume(flags.modelpath, vars(flags))
        else:
            check_weights(flags)
        try:
            yield
        except BaseException:
            if not _anything_made(flags):
                forget_start(flags.modelpath)
            raise


def _anything_made(flags):
    """Whether there is more in the folders of a run than the notes of a start."""
    others = [name for name in os.listdir(flags.modelpath) if name not in (runlock.LOCK_FILE, RUN_FILE)]
    return bool(os.listdir(flags.logpath)) or any(
        not os.path.samefile(os.path.join(flags.modelpath, name), flags.logpath) for name in others)


def check_weights(flags):
    """Raise UserError when there are no weights for a new run to start from, or they cannot be read."""
    path = flags.checkpoint or networks.pretrained.resolve(flags.model, flags.pretrained)
    if path:
        networks.pretrained.read_weights(path)


def initial_weights(flags, network):
    """The weights to start from, as a function for tf.train.Scaffold(init_fn), or None for the initial values."""
    latest = latest_checkpoint(flags.modelpath)
    if latest:
        logging.info('resuming from %s', latest)
        return None
    path = flags.checkpoint or networks.pretrained.resolve(flags.model, flags.pretrained)
    if path is None:
        logging.info('--pretrained=none: training starts from scratch')
        return None
    logging.info('Restore pretrained weights... %s', path)
    match = networks.pretrained.fit(network, path, '--checkpoint' if flags.checkpoint else '--pretrained')
    if flags.checkpoint and set(match.new) - set(match.renewed):
        raise UserError('--checkpoint=%s lacks %d variables of %s (%s, ...); give a checkpoint of this model'
                        % (path, len(match.new), flags.model, match.new[0]))
    logging.info(str(match))
    return match.init_fn
