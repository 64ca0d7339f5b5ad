"""The networks: names, shapes and topology of the published checkpoints, sizes, batch norm, towers, initial values."""
import json
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import networks

PUBLISHED = ('cmu', 'mobilenet', 'mobilenet_thin', 'mobilenet_fast', 'mobilenet_accurate')


def oracle_value(name, shape):
    """The stored outputs were made with each variable set from its own name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.split('/')[-1]
    if leaf == 'moving_variance':
        return random.uniform(.5, 1.5, shape)
    if leaf in ('beta', 'moving_mean', 'biases'):
        return 0.1 * random.standard_normal(shape)
    height, width, channels, _ = shape
    return random.standard_normal(shape) * np.sqrt(2 / (height * width * (1 if leaf == 'depthwise_weights' else channels)))


def set_from_names(session, variables):
    session.run([v.initializer for v in variables],
                {v.initializer.inputs[1]: oracle_value(v.op.name, v.shape.as_list()) for v in variables})


@pytest.mark.parametrize('name', PUBLISHED)
def test_variables_are_the_published_ones(name, oracles):
    published = json.loads((oracles / ('variables_%s.json' % name)).read_text())['variables']
    with tf.Graph().as_default():
        network = networks.get_network(name, tf.placeholder(tf.float32, [None, None, None, 3], 'image'), False)
        ours = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
        assert ours == published
        assert {v.op.name for v in network.variables} == set(published)


@pytest.mark.parametrize('name', ('cmu', 'mobilenet', 'mobilenet_thin'))
def test_outputs_agree_with_the_reference(name, oracles):
    oracle = np.load(str(oracles / ('network_%s.npz' % name)))
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [None, None, None, 3], 'image')
        network = networks.get_network(name, image, False)
        set_from_names(session, network.variables)
        feed = {image: oracle['image']} if name == 'cmu' else {network.scaled: oracle['network_input']}
        output = session.run('Openpose/concat_stage7:0', feed)
        assert network.output.name == 'Openpose/concat_stage7:0'
    expected = oracle['concat_stage7']
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()
