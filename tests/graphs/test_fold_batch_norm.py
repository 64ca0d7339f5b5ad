"""Folding what scales and shifts channels into the weights beside it, on small graphs made by hand."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from graphs.fold_batch_norm import estimate_batch_norm
from graphs.graphdef import training_batch_norms
from graphs.optimize import find_unfolded, optimize
from inference.tensorflow_runtime import graph_network
from small_graphs import RNG, check, conv, depthwise, frozen_graph, fused_norm, ops, outputs, plain_norm, positive, \
    values

# What folds. The final multiplication by a scalar that frozen_graph adds goes into the weights, too, where it can.


@pytest.mark.parametrize('version', ['FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'])
def test_fused_norm_folds(version):
    def build(image):
        return fused_norm(conv(image, 8))
    assert ops(frozen_graph(build, version=version))[version] == 1
    check(build, {'Conv2D': 1, 'BiasAdd': 1}, version)


def twice_the_same_weights(image):
    weights = values(3, 3, 3, 8)
    return tf.concat([fused_norm(tf.nn.conv2d(image, weights, [1, 1, 1, 1], 'SAME'), name='norm%d' % i)
                      for i in range(2)], axis=3)


def used_by_others(image):
    x = depthwise(image, 1)
    return tf.concat([conv(x, 8), x], axis=3)


@pytest.mark.parametrize('build, expected', [
    (lambda image: tf.nn.relu(plain_norm(conv(depthwise(image), 8, 1))) * tf.identity(1.0),
     {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'BiasAdd': 1, 'Relu': 1, 'Mul': 1 + 1}),
    (lambda image: fused_norm(depthwise(image, multiplier=2)), {'DepthwiseConv2dNative': 1, 'BiasAdd': 1}),
    (lambda image: plain_norm(depthwise(image, multiplier=2)), {'DepthwiseConv2dNative': 1, 'BiasAdd': 1}),
    (lambda image: fused_norm(tf.nn.bias_add(conv(image, 8), values(8))), {'Conv2D': 1, 'BiasAdd': 1}),
    (twice_the_same_weights, {'Conv2D': 2, 'BiasAdd': 2, 'ConcatV2': 1, 'Mul': 1}),
    (lambda image: fused_norm(conv(depthwise(image, 1), 8, 3)), {'Conv2D': 1, 'BiasAdd': 1}),
    (lambda image: conv(depthwise(image, 1, stride=2), 8), {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'BiasAdd': 1}),
    (lambda image: conv(depthwise(image, 1, multiplier=2), 8), {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'BiasAdd': 1}),
    (used_by_others, {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'ConcatV2': 1, 'Mul': 1})],
    ids=['separable', 'fused after depthwise', 'plain after depthwise', 'after a bias', 'own norms', 'depthwise 1x1',
         '1x1 with a stride stays', '1x1 that multiplies stays', '1x1 that others use stays'])
def test_norms_and_depthwise_1x1_fold_into_the_weights_beside_them(build, expected):
    check(build, expected)


def test_norm_after_a_matrix_product_folds():
    def build(image):
        x = tf.matmul(tf.reduce_max(image, [1, 2]), values(8, 3), transpose_b=True)
        return tf.reshape((x - values(8)) * positive(8) + values(8), [1, 1, 1, 8])
    optimized = check(build, None)
    assert ops(optimized)['MatMul'] == ops(optimized)['BiasAdd'] == 1


@pytest.mark.parametrize('seed', range(4))
def test_any_chain_of_scales_and_shifts_folds(seed):
    steps = [lambda x: x + values(6), lambda x: values(1, 1, 6) - x, lambda x: x - values(1, 1, 1, 6),
             lambda x: x * values(6), lambda x: positive(1) * x, lambda x: x / positive(6), fused_norm,
             lambda x: tf.nn.bias_add(x, values(6)), lambda x: tf.check_numerics(x, 'x'), tf.stop_gradient]

    def build(image):
        x = conv(image, 6)
        for step in np.random.RandomState(seed).permutation(len(steps)):
            x = steps[step](x)
        return x
    check(build, {'Conv2D': 1, 'BiasAdd': 1})


# Training mode.

@pytest.mark.parametrize('version', ['FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'])
def test_statistics_of_images_take_a_graph_out_of_training_mode(version):
    """Of one image the result is what the graph gave for it in training mode, layer for layer; of several, that for all
    of them at once."""
    def build(image):
        x = tf.nn.relu(fused_norm(conv(image / 255., 4), is_training=True, name='first'))
        branches = [fused_norm(conv(x, 4), is_training=True, name=name) for name in ('left', 'right')]
        return fused_norm(conv(tf.nn.relu(tf.concat(branches, 3)), 5), is_training=True, name='last')
    graph = frozen_graph(build, (None, 16, 16, 3), version)
    images = RNG.randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    for count in (1, 3):
        sound = estimate_batch_norm(graph, images[:count])
        assert not training_batch_norms(sound) and len(training_batch_norms(graph)) == 4
        expected = outputs(graph, images[:count])
        np.testing.assert_allclose(outputs(sound, images[:count]), expected, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(outputs(sound, images[:1]), expected[:1], atol=1e-4 * np.abs(expected).max())
        assert find_unfolded(optimize(sound)) == []


def test_what_is_found_does_not_depend_on_the_size_of_the_batch(caplog):
    """Of a graph in training mode."""
    graph = frozen_graph(lambda image: fused_norm(conv(image, 5), is_training=True), (None, 16, 16, 3))
    images = RNG.randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    predict_maps, _ = graph_network(graph, 'foreign.pb')
    assert 'training mode (norm, ...)' in caplog.text and '--batch-norm-from' in caplog.text
    assert np.array_equal(predict_maps(images)[1:2], predict_maps(images[1:2]))
