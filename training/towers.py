"""One training step as a graph: towers, the mean of their gradients, the update."""
import collections
import logging

import tensorflow.compat.v1 as tf

import pose_skeleton
from pose_cli import UserError

from .gradients import tower_gradients
from .optimizer import Recipe, create_optimizer, learning_rate_schedule

# step: steps done, with the one that is running. figures: what is logged. health: a number that is NaN or infinite when
# the loss or a gradient is.
Training = collections.namedtuple('Training', 'network step rate figures health')


def tower_devices(towers, gpus):
    """One device name per tower, and the session's configuration. gpus: how many TensorFlow sees."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if gpus:
        if towers > gpus:
            raise UserError('--gpus=%d, but TensorFlow sees only %d; lower --gpus or check nvidia-smi' % (towers, gpus))
        return ['/gpu:%d' % k for k in range(towers)], config
    logging.warning('TensorFlow sees no GPU: %s', 'training on the CPU' if towers == 1 else
                    'the %d towers run on CPU devices of this machine' % towers)
    config.device_count['CPU'] = towers
    return ['/cpu:%d' % k for k in range(towers)], config


def variables_on(variable_device, other_device):
    """A device function: variables on one device, all other operations of a tower on its own."""
    def place(op):
        return variable_device if op.type in ('VariableV2', 'Variable', 'VarHandleOp') else other_device
    return place


def build_towers(model, batch, devices, optimizer, skeleton=pose_skeleton.COCO):
    """One copy of the network per device, each with its slice of the batch, its own losses and gradients.

    Variables are shared; with several towers they live on the CPU. The slices are cut on the CPU, so that each one
    travels once to its device, the image as uint8.

    Returns:
        (network of the first tower, losses averaged over towers, averaged gradients and their variables, update ops of
        the first tower's batch norm).
    """
    variable_device = devices[0] if len(devices) == 1 else '/cpu:0'
    with tf.device('/cpu:0'):
        slices = list(zip(*(tf.split(field, len(devices)) for field in batch)))
    towers = []
    for k, (device, fields) in enumerate(zip(devices, slices)):
        with tf.device(variables_on(variable_device, device)), tf.name_scope('tower_%d' % k), \
                tf.variable_scope(tf.get_variable_scope(), reuse=k > 0):
            towers.append(tower_gradients(model, [tf.identity(field) for field in fields], optimizer, skeleton))
    with tf.device(variable_device):
        losses = {name: tf.add_n([tower.losses[name] for tower in towers]) / len(towers) for name in towers[0].losses}
        return (towers[0].network, losses, average_gradients([tower.gradients for tower in towers]),
                towers[0].updates)


def average_gradients(tower_gradients):
    """[[(gradient, variable)] per tower] -> [(mean gradient, variable)]."""
    if len(tower_gradients) == 1:
        return tower_gradients[0]
    return [(tf.add_n([gradient for gradient, _ in same]) / len(same), same[0][1]) for same in zip(*tower_gradients)]


def build_train_op(optimizer, gradients, updates, global_step):
    """Apply the gradients, then the batch norm updates. The returned tensor is the step after that."""
    with tf.control_dependencies(updates):
        train_op = optimizer.apply_gradients(gradients, global_step)
    with tf.control_dependencies([train_op]):
        return tf.identity(global_step)


def build_training(model, batch, devices, rates, steps_per_epoch, max_steps, skeleton=pose_skeleton.COCO,
                   recipe=Recipe()):
    """The whole graph of one training step, see Training.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: tensors as from feed.FeedHook.  devices: one for each tower.
        rates: learning rates, see learning_rate_schedule.  recipe: an optimizer.Recipe.
    """
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(rates, global_step, steps_per_epoch, max_steps, recipe)
    optimizer = create_optimizer(rate, recipe)
    network, losses, gradients, updates = build_towers(model, batch, devices, optimizer, skeleton)
    health = losses['loss'] + tf.global_norm([gradient for gradient, _ in gradients])
    step = build_train_op(optimizer, gradients, updates, global_step)
    return Training(network, step, rate, dict(losses, lr=rate), health)
