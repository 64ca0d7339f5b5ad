"""The passes together, and the proof that nothing is left over: on small graphs made by hand, and on every network."""
import re

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from graphs import freeze, graphdef, optimize
from pose_errors import UserError
from small_graphs import RNG, assert_same_outputs, check, conv, frozen_graph, fused_norm, ops, outputs, plain_norm, \
    positive, save_checkpoint, values


def test_shapes_become_constant_at_a_fixed_size_only():
    def build(image):
        return tf.image.resize_bilinear(tf.nn.relu(conv(image, 4)), 2 * tf.shape(image)[1:3])
    graph = frozen_graph(build, shape=(None, None, None, 3))
    fixed, dynamic = optimize.optimize(graph, [1, 16, 16, 3]), optimize.optimize(graph)
    assert 'Shape' not in ops(fixed) and 'Shape' in ops(dynamic)
    assert_same_outputs(graph, fixed)
    assert outputs(dynamic, np.zeros((2, 8, 12, 3))).shape == (2, 16, 24, 4)


def test_nodes_that_pass_their_input_on_go_also_at_the_output():
    with tf.Graph().as_default() as tf_graph:
        image = tf.placeholder(tf.float32, (None, None, None, 3), name=graphdef.INPUT)
        keep = tf.placeholder_with_default(values(8), [8])
        with tf.control_dependencies([tf.Assert(tf.reduce_all(image < 300), [image])]):
            x = tf.nn.relu(tf.check_numerics(conv(tf.identity(image), 8), 'x') + keep)
        tf.identity(x, name=graphdef.OUTPUT)
    graph = tf_graph.as_graph_def()
    optimized = optimize.optimize(graph, [1, 16, 16, 3])
    assert ops(optimized) == {'Conv2D': 1, 'BiasAdd': 1, 'Relu': 1}
    assert_same_outputs(graph, optimized)


# What must not fold, and is named.

@pytest.mark.parametrize('norm, name', [(fused_norm, 'norm'), (plain_norm, 'norm/batchnorm/mul_1')])
def test_norm_after_concat_and_of_an_output_that_others_use_is_left_and_named(norm, name):
    def build(image):
        x = conv(image, 4, name='shared')
        return tf.concat([tf.nn.relu(norm(x)), x], axis=3)
    check(build, None, unfolded=[(name, 'the output of shared is also used elsewhere')])
    check(lambda image: tf.nn.relu(norm(tf.concat([conv(image, 4), conv(image, 4)], axis=3))), None,
          unfolded=[(name, 'it follows concat (ConcatV2)')])


@pytest.mark.parametrize('version', ['FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'])
def test_norm_in_training_mode_is_left_and_named(version):
    optimized = check(lambda image: fused_norm(conv(image, 4), is_training=True), None, version,
                      unfolded=[('norm', 'is_training is true')])
    assert ops(optimized)[version] == 1
    for node in optimized.node:
        if node.op == version:
            del node.attr['is_training']  # true is the default
    assert [left.name for left in optimize.find_unfolded(optimize.optimize(optimized))] == ['norm']


def test_plain_norm_with_the_statistics_of_the_batch_and_random_nodes_are_named():
    def build(image):
        x = conv(image, 4)
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, values(4), positive(4), 0.001)
    check(build, None, unfolded=[('moments/SquaredDifference', 'statistics of the batch')])
    graph = frozen_graph(lambda image: conv(image, 4) + tf.random_uniform([4], name='noise'))
    assert [node.op for node in optimize.find_unfolded(optimize.optimize(graph))] == ['RandomUniform']


def test_scaled_images_and_parametric_relu_are_no_norms():
    def build(image):
        x = conv((image / 255.0 - values(3)) / positive(3), 4)
        return tf.nn.relu(x) + values(4) * (x - tf.abs(x)) * 0.5
    check(build, None)


def test_branches_at_run_time_are_named():
    graph = frozen_graph(lambda image: tf.cond(tf.placeholder(tf.bool, name='train'), lambda: conv(image, 4),
                                               lambda: conv(image, 4)))
    with pytest.raises(UserError, match=r'cond.*\((Switch|StatelessIf)\)') as error:
        optimize.optimize(graph)
    assert error.value.exit_code == 4


# Every network.

def optimized_network(name, checkpoint, height, width):
    frozen = freeze.freeze(freeze.network_graph(name, COCO_SKELETON, (width, height) if height else None), checkpoint)
    return frozen, optimize.optimize(frozen, [1, height, width, 3] if height else None)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    'cmu', 'mobilenet_fast', 'mobilenet_thin', 'mobilenet_light', 'mobilenet_v2_small'])  # others: other widths
def test_every_network_folds(name, tmp_path):
    checkpoint = save_checkpoint(name, tmp_path / 'model', training_steps=0)
    height, width = 112, 128
    frozen, optimized = optimized_network(name, checkpoint, height, width)
    assert optimize.find_unfolded(optimized) == []
    before, after = ops(frozen), ops(optimized)
    norms = before.get('FusedBatchNorm', 0)
    is_mobilenet = name.startswith('mobilenet')
    assert (norms > 0) == is_mobilenet
    assert len(optimize.find_batch_norms(optimize.simplify(frozen))) == norms
    assert after['BiasAdd'] == norms + before.get('BiasAdd', 0)
    # The two branches of each stage read the features where they are, and with large kernels before they are doubled.
    first_layers = sum(bool(re.search('MConv_Stage._L._1_depthwise/depthwise$', node.name)) for node in frozen.node)
    assert after.get('AddN', 0) == first_layers
    assert after.get('DepthToSpace', 0) == (first_layers - 2 if networks.stride(name) == 4 else 0)
    assert 'feat_concat' not in {node.name for node in optimized.node}
    assert set(after) <= {'Add', 'AddN', 'AddV2', 'Conv2D', 'BiasAdd', 'DepthwiseConv2dNative', 'Relu', 'Relu6', 'Sub',
                          'MaxPool', 'ConcatV2', 'RealDiv', 'ResizeBilinear', 'Pad', 'StridedSlice', 'DepthToSpace'}
    images = RNG.uniform(0, 255, (1, height, width, 3)).astype(np.float32)
    expected = outputs(frozen, images)
    np.testing.assert_allclose(outputs(optimized, images), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_dynamic_size(tmp_path):
    """One graph takes images of any size and gives what the graphs of those sizes give."""
    checkpoint = save_checkpoint('mobilenet_thin', tmp_path / 'model', training_steps=0)
    frozen, dynamic = optimized_network('mobilenet_thin', checkpoint, None, None)
    assert optimize.find_unfolded(dynamic) == []
    for height, width in ((64, 96), (128, 64)):
        images = RNG.uniform(0, 255, (1, height, width, 3)).astype(np.float32)
        expected = outputs(frozen, images)
        assert expected.shape == (1, height // 8, width // 8, 57)
        np.testing.assert_allclose(outputs(dynamic, images), expected, atol=1e-4 * np.abs(expected).max())
