"""The weights that a run starts from: a checkpoint to resume, or a file made elsewhere."""
import logging

import networks.pretrained
import pose_skeleton
from pose_cli import UserError

from .checkpoint import latest_checkpoint


def check_weights(flags):
    """Raise UserError when there are no weights for a new run to start from."""
    if flags.checkpoint:
        networks.pretrained.read_weights(flags.checkpoint)
    else:
        networks.pretrained.resolve(flags.model, flags.pretrained)


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
    match = networks.pretrained.fit(network, path, '--checkpoint' if flags.checkpoint else '--pretrained',
                                    pose_skeleton.of_checkpoint(path))
    if flags.checkpoint and set(match.new) - set(match.renewed):
        raise UserError('--checkpoint=%s lacks %d variables of %s (%s, ...); give a checkpoint of this model'
                        % (path, len(match.new), flags.model, match.new[0]))
    logging.info(str(match))
    return match.init_fn
