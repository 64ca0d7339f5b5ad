"""One training step as a graph: towers, the mean of their gradients, the update."""
import collections
import logging

import tensorflow.compat.v1 as tf

import networks
import pose_skeleton
from networks.losses import build_losses
from pose_cli import UserError

EPOCHS_PER_LR = 5  # of several learning rates

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
    batchsize = batch[0].shape.as_list()[0] // len(devices)
    variable_device = devices[0] if len(devices) == 1 else '/cpu:0'
    with tf.device('/cpu:0'):
        slices = list(zip(*(tf.split(field, len(devices)) for field in batch)))
    towers, tower_gradients, updates = [], [], None
    for k, (device, fields) in enumerate(zip(devices, slices)):
        with tf.device(variables_on(variable_device, device)), tf.name_scope('tower_%d' % k), \
                tf.variable_scope(tf.get_variable_scope(), reuse=k > 0):
            image, heatmap, paf, mask = (tf.identity(field) for field in fields)
            network = networks.get_network(model, image, is_training=True, skeleton=skeleton)
            losses = build_losses(network.stages, heatmap, paf, mask, batchsize)
            tower_gradients.append(optimizer.compute_gradients(losses['loss']))
            updates = updates or tf.get_collection(tf.GraphKeys.UPDATE_OPS)
            towers.append((network, losses))
    with tf.device(variable_device):
        losses = {name: tf.add_n([losses[name] for _, losses in towers]) / len(towers) for name in towers[0][1]}
        return towers[0][0], losses, average_gradients(tower_gradients), updates


def average_gradients(tower_gradients):
    """[[(gradient, variable)] per tower] -> [(mean gradient, variable)]."""
    if len(tower_gradients) == 1:
        return tower_gradients[0]
    return [(tf.add_n([gradient for gradient, _ in same]) / len(same), same[0][1]) for same in zip(*tower_gradients)]


def learning_rate_schedule(rates, step, steps_per_epoch, max_steps):
    """One rate: cosine decay to 0 over max_steps; several: the next one every EPOCHS_PER_LR epochs."""
    if len(rates) == 1:
        return tf.train.cosine_decay(rates[0], step, max_steps)
    boundaries = [EPOCHS_PER_LR * steps_per_epoch * k for k in range(1, len(rates))]
    return tf.train.piecewise_constant(step, boundaries, rates)


def build_train_op(optimizer, gradients, updates, global_step):
    """Apply the gradients, then the batch norm updates. The returned tensor is the step after that."""
    with tf.control_dependencies(updates):
        train_op = optimizer.apply_gradients(gradients, global_step)
    with tf.control_dependencies([train_op]):
        return tf.identity(global_step)


def build_training(model, batch, devices, rates, steps_per_epoch, max_steps, skeleton=pose_skeleton.COCO):
    """The whole graph of one training step, see Training.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: tensors as from feed.FeedHook.  devices: one for each tower.
        rates: learning rates, see learning_rate_schedule.
    """
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(rates, global_step, steps_per_epoch, max_steps)
    optimizer = tf.train.AdamOptimizer(rate, epsilon=1e-8)
    network, losses, gradients, updates = build_towers(model, batch, devices, optimizer, skeleton)
    health = losses['loss'] + tf.global_norm([gradient for gradient, _ in gradients])
    step = build_train_op(optimizer, gradients, updates, global_step)
    return Training(network, step, rate, dict(losses, lr=rate), health)
