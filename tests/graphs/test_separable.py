"""Separable layers over concatenated and doubled features, on small graphs made by hand."""
import pytest

import tensorflow.compat.v1 as tf
from small_graphs import check, conv, depthwise, depthwise_inputs, fused_norm, ops


@pytest.mark.parametrize('widths, parts', [
    ((1, 5, 3), [5, 3, 1]), ((1, 9, 2), [9, 3]), ((7, 4), [7, 4]), ((3, 3), [3])])
def test_separable_layers_take_large_parts_of_a_concatenation_by_themselves(widths, parts):
    def build(image):
        x = tf.concat([tf.nn.relu(conv(image, width)) for width in widths], axis=-1)
        return fused_norm(conv(depthwise(x), 4, 1)) + tf.nn.relu(conv(depthwise(x, 5), 4, 1))
    optimized = check(build, None)
    found = ops(optimized)
    assert depthwise_inputs(optimized) == {(16, 16, channels) for channels in parts}
    assert found.get('ConcatV2', 0) == (3 in parts and 9 in parts)
    split_layers = 2 * (len(widths) - found.get('ConcatV2', 0))
    assert (found['DepthwiseConv2dNative'], found['Conv2D']) == (split_layers, len(widths) + split_layers)


def test_parts_of_parts_are_not_copied_for_separable_layers():
    def build(image):
        features = tf.concat([tf.nn.relu(conv(image, 8)), tf.nn.relu(conv(image, 6))], axis=3)
        maps = conv(depthwise(features), 1, 1)
        return conv(depthwise(tf.concat([maps, features], axis=3)), 4, 1)
    optimized = check(build, None)
    assert 'ConcatV2' not in ops(optimized)
    assert depthwise_inputs(optimized) == {(16, 16, 8), (16, 16, 6), (16, 16, 1)}


@pytest.mark.parametrize('build', [
    lambda x: tf.concat([conv(depthwise(x), 4, 1), x], axis=3),
    lambda x: conv(depthwise(x, multiplier=2), 4, 1),
    lambda x: conv(depthwise(x, stride=2), 4, 1),
    lambda x: conv(depthwise(x), 4, 1, strides=[1, 2, 2, 1]),
    lambda x: conv(depthwise(x), 4, 3),
    lambda x: tf.nn.relu(depthwise(x)),
    lambda x: conv(tf.nn.relu(depthwise(x)), 4, 1),
    lambda x: conv(depthwise(x), 4, 1) + conv(x, 4)],
    ids=['part of the output', 'multiplier', 'depthwise stride', 'stride', '3x3', 'no convolution', 'relu between',
         'convolution beside'])
def test_concatenations_that_others_need_whole_stay(build):
    def concat_first(image):
        return build(tf.concat([tf.nn.relu(conv(image, 6)), tf.nn.relu(conv(image, 3))], axis=3))
    assert ops(check(concat_first, None))['DepthwiseConv2dNative'] == 1


def test_concatenated_rows_are_not_taken_for_channels():
    optimized = check(lambda image: conv(depthwise(tf.concat([conv(image, 6), conv(image, 6)], axis=1)), 4, 1), None)
    assert ops(optimized)['ConcatV2'] == 1


def bilinear(x, times=2, **kwargs):
    return tf.image.resize_bilinear(x, [times * int(size) for size in x.shape[1:3]], **kwargs)


def beside_doubled(image, kernel, double=bilinear):
    """Two separable layers over features, of which six channels have half the resolution and are doubled."""
    low = double(tf.nn.relu(conv(image, 6, strides=[1, 2, 2, 1])))
    x = tf.concat([tf.nn.relu(conv(image, 2))[:, :low.shape[1], :low.shape[2]], low], axis=3)
    return tf.nn.relu(conv(depthwise(x, kernel), 4, 1)) + conv(depthwise(x, kernel), 4, 1)


@pytest.mark.parametrize('kernel, size', [(5, (28, 32)), (7, (28, 32)), (9, (56, 48)), (11, (48, 56))])
@pytest.mark.parametrize('double', [bilinear, lambda x: bilinear(x)[:, :100, :100]], ids=['', 'nothing cut off'])
def test_doubled_features_are_convolved_at_their_own_resolution(kernel, size, double):
    optimized = check(lambda image: beside_doubled(image, kernel, double), None, size=size)
    found = ops(optimized)
    assert (found['DepthToSpace'], found['ResizeBilinear'], found['Pad']) == (2, 1, 1)
    assert (*size, 6) not in depthwise_inputs(optimized)


@pytest.mark.parametrize('kernel, double', [
    (3, bilinear), (9, bilinear), (6, bilinear),
    (7, lambda x: bilinear(x, align_corners=True)),
    (7, lambda x: bilinear(x, half_pixel_centers=True)),
    (7, lambda x: bilinear(x, 1)),
    (7, lambda x: bilinear(x)[:, :27]),
    (7, lambda x: bilinear(x)[:, ::-1]),
    (7, lambda x: tf.image.resize_nearest_neighbor(x, [28, 32]))],
    ids=['small kernel', 'large for these features', 'even kernel', 'align_corners', 'half_pixel_centers', 'same size',
         'odd size', 'turned', 'nearest neighbour'])
def test_other_features_are_convolved_as_they_are(kernel, double):
    optimized = check(lambda image: beside_doubled(image, kernel, double), None, size=(28, 32))
    assert 'DepthToSpace' not in ops(optimized)
