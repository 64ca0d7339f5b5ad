"""Graphs made by hand, checkpoints of real networks, and what graphs compute: for tests."""
import collections

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from graphs import graphdef, optimize

SIZE = 64
RNG = np.random.RandomState(0)
HAS_TRANSFORMS = tf.__version__.startswith('1.')
needs_transforms = pytest.mark.skipif(not HAS_TRANSFORMS, reason='TensorFlow %s has no TransformGraph' % tf.__version__)


def values(*shape):
    return tf.constant(RNG.standard_normal(shape).astype(np.float32))


def positive(*shape):
    return tf.constant(RNG.uniform(0.5, 2, shape).astype(np.float32))


def conv(x, filters, kernel=3, **kwargs):
    strides = kwargs.pop('strides', [1, 1, 1, 1])
    return tf.nn.conv2d(x, values(kernel, kernel, int(x.shape[3]), filters), strides, 'SAME', **kwargs)


def depthwise(x, kernel=3, multiplier=1, stride=1):
    channels = int(x.shape[3])
    return tf.nn.depthwise_conv2d(x, values(kernel, kernel, channels, multiplier), [1, stride, stride, 1], 'SAME')


def fused_norm(x, is_training=False, name='norm'):
    c = int(x.shape[3])
    if is_training:
        return tf.nn.fused_batch_norm(x, positive(c), values(c), epsilon=0.001, name=name)[0]
    return tf.nn.fused_batch_norm(x, positive(c), values(c), values(c), positive(c), epsilon=0.001, is_training=False,
                                  name=name)[0]


def plain_norm(x, name='norm'):
    c = int(x.shape[3])
    with tf.name_scope(name):
        return tf.nn.batch_normalization(x, tf.identity(values(c)), positive(c), values(c), positive(c), 0.001)


def write_graph(path, maps, image_shape=(None, None, None, 3)):
    """A frozen graph that gives the same maps (B, h, w, 57) whatever the image is."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, image_shape, name='image')
        tf.add(tf.constant(np.asarray(maps, np.float32)), 0 * tf.reduce_mean(image), name='Openpose/concat_stage7')
        path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def frozen_graph(build, shape=(1, 16, 16, 3), version=None):
    """The GraphDef of build(image) with its result called as the networks call it."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, shape, name=graphdef.INPUT)
        tf.multiply(1.0, build(image), name=graphdef.OUTPUT)
        graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if version and node.op == 'FusedBatchNormV3':
            node.op = version
            if version == 'FusedBatchNorm':
                del node.attr['U']
            if 'exponential_avg_factor' in node.attr:
                del node.attr['exponential_avg_factor']
    return graph_def


def outputs(graph, images, as_written=False):
    """as_written: without TensorFlow's own rewriting, which TF 2.21 does not survive on some graphs."""
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = as_written
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
        with tf.Session(graph=tf_graph, config=config) as session:
            return session.run(graphdef.OUTPUT + ':0', {graphdef.INPUT + ':0': images})


def ops(graph):
    counts = collections.Counter(node.op for node in graph.node)
    for op in ('Const', 'Placeholder'):
        counts.pop(op, None)
    return dict(counts)


def assert_same_outputs(graph, other, size=(16, 16), tolerance=1e-5):
    images = RNG.uniform(-1, 1, (1,) + size + (3,)).astype(np.float32)
    expected = outputs(graph, images, as_written=True)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(outputs(other, images), expected, atol=tolerance * np.abs(expected).max())


def check(build, expected_ops, version=None, unfolded=(), size=(16, 16)):
    """Optimize build's graph: the same outputs, these ops, and these (name, part of the reason) left over."""
    shape = (1,) + size + (3,)
    graph = frozen_graph(build, shape, version)
    optimized = optimize.optimize(graph, shape)
    assert_same_outputs(graph, optimized, size)
    found = ops(optimized)
    if expected_ops is not None:
        assert found == expected_ops
    left = optimize.find_unfolded(optimized)
    assert [node.name for node in left] == [name for name, _ in unfolded], left
    for node, (_, reason) in zip(left, unfolded):
        assert reason in node.reason
    return optimized


def depthwise_inputs(graph):
    """The set of (height, width, channels) that depthwise convolutions take."""
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
        return {tuple(op.inputs[0].shape.as_list()[1:]) for op in tf_graph.get_operations()
                if op.type == 'DepthwiseConv2dNative'}


def save_checkpoint(name, prefix, training_steps):
    """Save a checkpoint as train.py does, with the optimizer's variables, after so many real training steps.

    Without training steps only the moving averages of batch norm move, which is quick.
    """
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        network = networks.get_network(name, tf.constant(RNG.uniform(0, 255, (2, SIZE, SIZE, 3)), tf.float32), True)
        loss = sum(tf.nn.l2_loss(maps - 0.1) for stage in network.stages for maps in stage)
        step = tf.train.get_or_create_global_step()
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            update = tf.assign_add(step, 1)
        if training_steps:
            with tf.control_dependencies([update]):
                update = tf.train.AdamOptimizer(1e-3).minimize(loss)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for _ in range(max(training_steps, 2)):
                session.run(update)
            return tf.train.Saver().save(session, str(prefix), global_step=step)
