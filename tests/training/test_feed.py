"""The input queue: batches reach the graph as the source gave them."""
import numpy as np
import tensorflow.compat.v1 as tf

from training.feed import QUEUE_BATCHES, FeedHook
from pose_loader import batch_layout

LAYOUT = batch_layout(2, 64, 64, 8)


class ReusingSource:
    """Batch k is filled with k, always in the same arrays, as the batch sources do."""

    def __init__(self):
        self._arrays = [np.empty(shape, dtype) for _, dtype, shape in LAYOUT]
        self._number = 0

    def get(self, timeout):
        self._number += 1
        for array in self._arrays:
            array[...] = self._number
        return self._arrays

    def ready(self):
        return 0


def test_queued_batches_do_not_change_when_the_source_reuses_its_arrays():
    with tf.Graph().as_default():
        feed = FeedHook(ReusingSource(), LAYOUT, hint='')
        with tf.train.MonitoredTrainingSession(hooks=[feed]) as session:
            for number in range(1, 3 * QUEUE_BATCHES):
                assert feed.wait_for_batch(lambda: False)
                for field in session.run(feed.batch):
                    assert (field == number).all()
