"""Gradients of a tower: slices, one after the other, give those of the whole."""
import numpy as np
import pytest

import small_network
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from batches.batch import Batch, encode_batch
from made_up_arrays import made_up_arrays
from training.optimizer import Optimizer
from training.towers import tower_gradients


@pytest.fixture(scope='module')
def whole_and_slices():
    """A network without batch norm, on 4 samples at once and in 4 slices: (graph, largest relative differences)."""
    batch = encode_batch(*made_up_arrays(0, 4, 16, 16))
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        fields = Batch(*(tf.placeholder(field.dtype, field.shape) for field in batch))
        optimizer = Optimizer(tf.constant(0.1))
        with tf.name_scope('whole'):
            whole = tower_gradients(small_network.PLAIN, fields, optimizer, COCO_SKELETON)
        with tf.name_scope('slices'), tf.variable_scope(tf.get_variable_scope(), reuse=True):
            slices = tower_gradients(small_network.PLAIN, fields, optimizer, COCO_SKELETON, accumulate=4)
        assert [v for _, v in whole.gradients] == [v for _, v in slices.gradients] and len(whole.gradients) == 2 * 11
        differences = {
            'gradients': [tf.norm(a - b) / tf.norm(a) for (a, _), (b, _) in zip(whole.gradients, slices.gradients)],
            'losses': [abs(whole.losses[name] - slices.losses[name]) / whole.losses[name] for name in whole.losses]}
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            found = session.run(differences, dict(zip(fields, batch)))
    return graph, {name: float(np.max(values)) for name, values in found.items()}


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(whole_and_slices):
    _, differences = whole_and_slices
    assert differences['gradients'] < 1e-4 and differences['losses'] < 1e-5


@pytest.mark.slow
def test_a_slice_waits_for_the_one_before(whole_and_slices):
    """So that memory is that of one slice: what a slice reads depends on all gradients of the one before."""
    graph, _ = whole_and_slices
    images = [op for op in graph.get_operations() if op.name.startswith('slices/') and op.type == 'Identity'
              and op.outputs[0].dtype == tf.uint8 and op.outputs[0].shape.as_list() == [1, 16, 16, 3]]
    assert len(images) == 4 and not images[0].control_inputs
    for image in images[1:]:
        assert len(image.control_inputs) >= 2 * 11
