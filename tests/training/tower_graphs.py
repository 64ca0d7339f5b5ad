"""Training graphs of the tests, with a session, fed by placeholders; in one process or as one of a cluster.

As a program, tower_graphs.py TOWERS FILE: one process of TF_CONFIG's cluster; worker 0 writes its weights.
"""
import os
import sys

import numpy as np

import small_network
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from batches.batch import Batch, batch_layout, encode_batch
from training.cluster import ALONE, read_cluster
from training.config import Schedule
from training.devices import start_server, tower_devices
from training.towers import build_training

SIZE = 64


def random_batch(batchsize, stride=8, seed=0):
    """Dense arrays (image, heatmap, paf, mask) as for batches.batch.encode_batch."""
    rng = np.random.RandomState(seed)
    cells = (batchsize, SIZE // stride, SIZE // stride)
    return [rng.randint(0, 256, (batchsize, SIZE, SIZE, 3)).astype(np.uint8),
            rng.uniform(0, 1, cells + (19,)).astype(np.float32), rng.uniform(-1, 1, cells + (38,)).astype(np.float32),
            rng.randint(0, 2, cells + (1,)).astype(np.float32)]


class Towers:
    """A training graph with a session, on `towers` CPU devices.

    batchsize: of this process.
    """

    def __init__(self, model, towers, batchsize, rate, cluster=ALONE, **kwargs):
        self.graph = tf.Graph()
        with self.graph.as_default():
            fixed = 'image', 'mask', 'labelled'
            self.fields = Batch(*(tf.placeholder(dtype, shape if name in fixed else (None,) + shape[1:])
                                  for name, dtype, shape in batch_layout(batchsize, SIZE, SIZE, 8, COCO_SKELETON)))
            devices, config, _ = tower_devices(towers, 0, cluster)
            self.cluster = cluster
            self.training = build_training(model, self.fields, devices, [rate], Schedule(10, 100, True, 0),
                                           COCO_SKELETON, cluster=cluster, **kwargs)
            self.session = tf.Session(start_server(cluster, config), config=config)
            self.variables = {v.op.name: v for v in tf.global_variables()}
            self.session.run(tf.global_variables_initializer())

    def set_weights(self, weights):
        """Set variables of the first replica in one run, {variable name: array}, then copy them to the others."""
        initializers = [self.variables[name].initializer for name in weights]
        self.session.run(initializers, {op.inputs[1]: value for op, value in zip(initializers, weights.values())})
        self.session.run(self.training.copy)

    def run(self, fetches, batch, **kwargs):
        """Run on this process's share of a batch; nobody stops."""
        share = len(batch[0]) // self.cluster.size
        feed = dict(zip(self.fields, encode_batch(*(part[self.cluster.index * share:][:share] for part in batch))))
        if self.cluster.size > 1:
            feed[self.training.stop] = 0
        return self.session.run(fetches, feed, **kwargs)


def random_weights(variables):
    """The same weights for every graph of a network.

    Small ones, and biases of 1, keep every ReLU away from zero. At zero the last bit, which depends on how a sum is
    split among threads, would decide whether a gradient passes.
    """
    rng, weights = np.random.RandomState(0), {}
    for name, variable in sorted(variables.items()):
        shape = variable.shape.as_list()
        if name.endswith(('/weights', '/biases')) and not name.startswith('replica_'):
            noise = rng.standard_normal(shape).astype(np.float32)
            he_scale = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
            weights[name] = 1 + 0.1 * noise if name.endswith('biases') else 0.2 * he_scale * noise
    return weights


def five_steps(towers, cluster=ALONE, **kwargs):
    """The weights of a network without batch norm after five steps from the same start on batches of 4."""
    graph = Towers(small_network.PLAIN, towers, 4 // cluster.size, rate=4e-5, cluster=cluster, **kwargs)
    names = sorted(random_weights(graph.variables)) if cluster.is_first else []
    if cluster.is_first:
        graph.set_weights(random_weights(graph.variables))
    else:
        graph.session.run(graph.training.copy)
    for step in range(5):
        assert graph.run(graph.training.step, random_batch(4, seed=step)) == step + 1
    weights = graph.session.run({name: graph.variables[name] for name in names})
    graph.session.close()
    return weights


if __name__ == '__main__':
    own_cluster = read_cluster(os.environ)
    result = five_steps(int(sys.argv[1]), own_cluster)
    if own_cluster.is_first:
        np.savez(sys.argv[2], **result)
