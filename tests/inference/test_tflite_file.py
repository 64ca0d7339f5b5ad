"""Files of TensorFlow Lite from strangers: refused before an interpreter follows what is in them."""
import random

import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from graphs import graphdef, tflite
from inference import tflite_runtime
from pose_errors import UserError


@pytest.fixture(scope='module')
def good():
    """The bytes of a small network."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (1, 16, 16, 3), name=graphdef.INPUT)
        tf.nn.relu(tf.nn.conv2d(image, tf.constant(np.ones((8, 8, 3, 57), np.float32)), [1, 8, 8, 1], 'SAME'),
                   name=graphdef.OUTPUT)
    return tflite.convert(graph.as_graph_def(), [1, 16, 16, 3])


def check(data, folder):
    (folder / 'a.tflite').write_bytes(bytes(data))
    tflite_runtime.check_file(str(folder / 'a.tflite'))


def patched(data, at, number, size=4):
    return data[:at] + number.to_bytes(size, 'little', signed=number < 0) + data[at + size:]


def test_numbers_that_lead_nowhere(good, tmp_path):
    check(good, tmp_path)
    model = tflite_runtime.find_target(good, 0)
    subgraph, = tflite_runtime.find_tables(good, model, tflite_runtime.SUBGRAPHS)
    operator = tflite_runtime.find_tables(good, subgraph, tflite_runtime.OPERATORS)[0]
    tensor = tflite_runtime.find_tables(good, subgraph, tflite_runtime.TENSORS)[0]
    code = tflite_runtime.find_tables(good, model, tflite_runtime.OPERATOR_CODES)[0]
    inputs, _ = tflite_runtime.find_vector(good, operator, tflite_runtime.OPERATOR_INPUTS, '<i')
    shape, _ = tflite_runtime.find_vector(good, tensor, tflite_runtime.SHAPE, '<i')
    for changed, mention in (
            (patched(good, inputs, 9999), 'damaged'), (patched(good, inputs, -2), 'damaged'),
            (patched(good, shape, -5), 'has the shape'), (patched(good, shape, 10 ** 9), 'has the shape'),
            (patched(good, inputs - 4, 2 ** 31), 'damaged'),
            (patched(good, tflite_runtime.find_field(good, code, tflite_runtime.OLD_CODE), 119, 1), 'the operator WHILE'),
            (patched(good, tflite_runtime.find_field(good, code, tflite_runtime.OLD_CODE), 32, 1), 'the operator CUSTOM')):
        assert changed != good and len(changed) == len(good)
        with pytest.raises(UserError, match='a.tflite .*' + mention):
            check(changed, tmp_path)


def test_any_bytes_changed(good, tmp_path):
    """The structure lies at both ends, the weights between: a file passes or is refused, nothing else."""
    rng, refused = random.Random(0), 0
    ends = [at for at in range(len(good)) if at < 1000 or at > len(good) - 1500]
    for _ in range(1500):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            changed[rng.choice(ends)] = rng.randrange(256)
        try:
            check(changed, tmp_path)
        except UserError:
            refused += 1
    assert 300 < refused < 1500
