"""One tower's part of a step: its network, its losses, and their gradients."""
import collections

import tensorflow.compat.v1 as tf

import networks
from networks.losses import build_losses
from pose_batches import Batch

from .maps import dense_maps, split_batch

# network: a networks.Network. losses: {name: scalar}, see networks.losses. gradients: [(gradient, own variable)].
# updates: the operations that update the moving averages of batch norm.
Tower = collections.namedtuple('Tower', 'network losses gradients updates')


def tower_gradients(model, batch, optimizer, skeleton, accumulate=1):
    """Build a tower on the current device.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: its part of the batch, a pose_batches.Batch of tensors.
        optimizer: an optimizer.Optimizer, for its compute_gradients.
        accumulate: in so many slices, one after the other, so that memory is that of one. Losses and gradients are the
            means over them, which for losses that are means over samples are those of the whole; batch norm sees each
            slice by itself.
    Returns:
        a Tower.
    """
    tower = None
    with tf.device('/cpu:0'):
        slices = split_batch(batch, accumulate, skeleton)
    for number, fields in enumerate(slices):
        done = [] if tower is None else [*tower.losses.values(), *(gradient for gradient, _ in tower.gradients)]
        with tf.control_dependencies(done):
            # The identities make each field cross to this device once, and no slice begin before the last one ended.
            fields = Batch(*(tf.identity(field) for field in fields))
        with tf.variable_scope(tf.get_variable_scope(), reuse=number > 0 or None):
            next_slice = _slice_gradients(model, fields, optimizer, skeleton)
        tower = next_slice if tower is None else _sum(tower, next_slice)
    if accumulate == 1:
        return tower
    return tower._replace(losses={name: loss / accumulate for name, loss in tower.losses.items()},
                          gradients=[(gradient / accumulate, variable) for gradient, variable in tower.gradients])


def _slice_gradients(model, batch, optimizer, skeleton):
    image, heatmap, paf, mask = dense_maps(batch, skeleton)
    earlier = set(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    network = networks.get_network(model, image, is_training=True, skeleton=skeleton)
    losses = build_losses(network.stages, heatmap, paf, mask, image.shape.as_list()[0])
    gradients = optimizer.compute_gradients(losses['loss'], network.variables)
    updates = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in earlier]
    return Tower(network, losses, gradients, updates)


def _sum(tower, other):
    """Losses and gradients of both; batch norm is updated by the last slice, once a step as without slices."""
    return Tower(tower.network, {name: loss + other.losses[name] for name, loss in tower.losses.items()},
                 [(gradient + more, variable) for (gradient, variable), (more, _) in
                  zip(tower.gradients, other.gradients)], other.updates)
