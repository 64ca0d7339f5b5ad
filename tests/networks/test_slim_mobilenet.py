"""Slim's ImageNet weights as starts: what has a place, and that the function of the pixels stays."""
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from conftest import reference_data
from networks import pretrained
from networks.formats.slim_mobilenet import dilated

RANDOM = np.random.RandomState(5)


def variable(network, name):
    return next(v for v in network.variables if v.op.name == name)


def test_every_variable_of_imagenet_has_a_place_in_light():
    """Of those layers that are there: the last ones of MobileNet v1 (stride 32) are not."""
    path = reference_data('backbone') / networks.entry('mobilenet_light').pretrained.paths[0]
    with tf.Graph().as_default(), tf.Session() as session:
        network = networks.get_network('mobilenet_light', tf.placeholder(tf.float32, [1, 64, 64, 3]), True)
        match = pretrained.fit(network, str(path))
        match.init_fn(None, session)
        first, widened = session.run([variable(network, name) for name in (
            'MobilenetV1/Conv2d_0/weights', 'MobilenetV1/Conv2d_7_depthwise/depthwise_weights')])
    assert match.missing_pretrained == []
    assert all(name.startswith(('MobilenetV1/Conv2d_12_', 'MobilenetV1/Conv2d_13_', 'MobilenetV1/Logits/'))
               for name in match.unmatched)
    reader = tf.train.NewCheckpointReader(str(path))
    np.testing.assert_array_equal(first, reader.get_tensor('MobilenetV1/Conv2d_0/weights')[:, :, ::-1])
    np.testing.assert_array_equal(
        widened[::2, ::2], reader.get_tensor('MobilenetV1/Conv2d_7_depthwise/depthwise_weights'))


def test_dilated():
    x = RANDOM.normal(size=(1, 12, 13, 4)).astype(np.float32)
    weights = RANDOM.normal(size=(3, 3, 4, 1)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        expected = tf.nn.depthwise_conv2d(x, weights, [1, 1, 1, 1], 'SAME', rate=[2, 2])
        larger = tf.nn.depthwise_conv2d(x, dilated(weights, (5, 5, 4, 1)), [1, 1, 1, 1], 'SAME')
        np.testing.assert_allclose(*session.run([larger, expected]), atol=1e-5)
    for shape in (None, (3, 3, 4, 1), (5, 5, 8, 1)):
        assert dilated(weights, shape) is weights


@pytest.mark.parametrize('name, first', [('mobilenet_v2_small', 'MobilenetV2/Conv'),
                                         ('mobilenet_light', 'MobilenetV1/Conv2d_0')])
def test_the_first_layer_sees_what_it_was_trained_on(name, first, tmp_path):
    """RGB pixels of -1..1, whatever range and order the network here takes; but for the zeros around the image."""
    pixels = RANDOM.randint(0, 256, (1, 32, 32, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [1, 32, 32, 3])
        network = networks.get_network(name, image, False)
        values = {leaf: RANDOM.uniform(0.1, 1, variable(network, '%s/%s' % (first, leaf)).shape.as_list())
                  .astype(np.float32) for leaf in ('weights', 'BatchNorm/gamma', 'BatchNorm/beta',
                                                   'BatchNorm/moving_mean', 'BatchNorm/moving_variance')}
        np.save(str(tmp_path / 'slim.npy'), {'%s/%s' % (first, leaf): value for leaf, value in values.items()})
        match = pretrained.fit(network, str(tmp_path / 'slim.npy'))
        match.init_fn(None, session)
        output = session.run(first + '/BatchNorm/FusedBatchNorm:0', {image: pixels})
        rgb = pixels[..., ::-1] / 127.5 - 1
        x = tf.nn.conv2d(rgb.astype(np.float32), values['weights'], [1, 2, 2, 1], 'SAME')
        expected = session.run(tf.nn.fused_batch_norm(x, *(values['BatchNorm/' + leaf] for leaf in (
            'gamma', 'beta', 'moving_mean', 'moving_variance')), epsilon=0.001, is_training=False)[0])
    np.testing.assert_allclose(output[:, :-1, :-1], expected[:, :-1, :-1], rtol=1e-4, atol=1e-4)
