"""One tower's part of a step: its network, its losses, and their gradients."""
import collections

import tensorflow.compat.v1 as tf

import networks
from networks.losses import build_losses

# network: a networks.Network. losses: {name: scalar}, see networks.losses. gradients: [(gradient, variable)].
# updates: the operations that update the moving averages of batch norm.
Tower = collections.namedtuple('Tower', 'network losses gradients updates')


def tower_gradients(model, fields, optimizer, skeleton):
    """Build a tower on the current device.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        fields: its part of the batch: tensors (image, heatmap, paf, mask), see pose_samples.batch_layout.
        optimizer: a tf.train.Optimizer, for its compute_gradients.
    Returns:
        a Tower.
    """
    image, heatmap, paf, mask = fields
    earlier = set(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    network = networks.get_network(model, image, is_training=True, skeleton=skeleton)
    losses = build_losses(network.stages, heatmap, paf, mask, image.shape.as_list()[0])
    gradients = optimizer.compute_gradients(losses['loss'])
    updates = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in earlier]
    return Tower(network, losses, gradients, updates)
