"""Label maps written out in the graph: bit by bit what numpy makes of them, whole or in parts."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from batches.batch import Batch, decode_batch, encode_batch
from made_up_arrays import made_up_arrays
from training.towers import dense_maps, split_batch


def placeholders(batch, samples):
    """For Batches like this one; samples: how many, None when that is not known."""
    return Batch(*(tf.placeholder(field.dtype, (samples if k < 3 else None,) + field.shape[1:])
                   for k, field in enumerate(batch)))


@pytest.mark.parametrize('stride, people', [(8, 3), (4, 2), (8, 0)])
def test_dense_maps_are_those_of_numpy(stride, people):
    with tf.Graph().as_default(), tf.Session() as session:
        fields = placeholders(encode_batch(*made_up_arrays(0, stride=stride)), None)
        maps = dense_maps(fields, COCO_SKELETON)
        assert [tensor.shape.as_list()[1:] for tensor in maps[1:]] == [[96 // stride, 64 // stride, c]
                                                                       for c in (19, 38, 57)]
        for seed, batchsize in ((1, 4), (2, 1)):
            batch = encode_batch(*made_up_arrays(seed, batchsize, stride=stride, people=people))
            for got, expected in zip(session.run(maps, dict(zip(fields, batch))), decode_batch(batch, COCO_SKELETON)):
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('parts', [1, 2, 3, 6])
def test_parts_are_the_samples_in_order(parts):
    batch = encode_batch(*made_up_arrays(5, batchsize=6))
    with tf.Graph().as_default(), tf.Session() as session:
        fields = placeholders(batch, 6)
        maps = [dense_maps(part, COCO_SKELETON) for part in split_batch(fields, parts, COCO_SKELETON)]
        assert maps[0][1].shape.as_list() == [6 // parts, 12, 8, 19]
        for got, whole in zip(zip(*session.run(maps, dict(zip(fields, batch)))), decode_batch(batch, COCO_SKELETON)):
            np.testing.assert_array_equal(np.concatenate(got), whole)
