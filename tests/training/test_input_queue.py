"""The input queue: batches reach the graph as the source gave them, and what is said when none come."""
import logging
import re
import threading
import types

import numpy as np
import psutil
import pytest

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from batches.batch import Batch, batch_layout
from conftest import descendants, wait_for
from pose_errors import Stopped, UserError
from training.input_queue import QUEUE_BATCHES, InputQueueHook, wait_for_samples
from watched_loaders import watched_loader

LAYOUT = batch_layout(2, 64, 64, 8, COCO_SKELETON)


class ReusingSource:
    """Batch k is filled with k and has k positions, always in the same arrays, as the batch sources do."""

    layout, number = LAYOUT, 0

    def __init__(self):
        self._arrays = [np.empty(shape, dtype) for _, dtype, shape in LAYOUT]
        self._number = 0

    def get(self, timeout):
        self._number += 1
        for array in self._arrays:
            array[...] = self._number
        return Batch(*self._arrays[:3], *(array[:self._number] for array in self._arrays[3:]))

    def ready(self):
        return 0


def test_queued_batches_do_not_change_when_the_source_reuses_its_arrays():
    with tf.Graph().as_default():
        feed = InputQueueHook(ReusingSource())
        with tf.train.MonitoredTrainingSession(hooks=[feed]) as session:
            for number in range(1, 3 * QUEUE_BATCHES):
                assert feed.wait_for_batch(lambda: False)
                batch = session.run(feed.batch)
                assert all((field == number).all() for field in batch)
                assert [len(field) for field in batch] == [2, 2, 2] + 4 * [number]


def test_ready_counts_what_is_in_the_queue():
    """It is full, and one batch less for each that is taken, until the next one comes."""
    source = ReusingSource()
    with tf.Graph().as_default():
        feed = InputQueueHook(source)
        with tf.train.MonitoredTrainingSession(hooks=[feed]) as session:
            for _ in range(3):
                wait_for(lambda: feed.ready() == QUEUE_BATCHES, 'the queue does not fill')
                assert feed.wait_for_batch(lambda: False)
                session.run(feed.batch)
            wait_for(lambda: feed.ready() == QUEUE_BATCHES, 'the queue does not fill again')


@pytest.mark.slow
def test_stalled_data_is_reported(caplog):
    """Loader processes that stand still, then go on."""
    caplog.set_level(logging.WARNING)
    with tf.Graph().as_default(), watched_loader(1000, workers=1) as (loader, supervisor):
        worker, = map(psutil.Process, descendants(supervisor))
        tf.train.get_or_create_global_step()
        feed = InputQueueHook(loader, report_seconds=0.5)
        with tf.train.MonitoredSession(hooks=[feed]) as session:
            assert feed.wait_for_batch(lambda: False)
            assert session.run(feed.batch)[0].shape == (4, 16, 16, 3)
            worker.suspend()
            threading.Timer(5, worker.resume).start()
            for _ in range(12):  # more than any queue holds
                assert feed.wait_for_batch(lambda: False)
                session.run(feed.batch)
    reports = [record.getMessage() for record in caplog.records if 'waiting for data' in record.getMessage()]
    assert 2 <= len(reports) <= 10
    assert re.match(r'waiting for data: no batch for \d+ s; ' + re.escape(loader.diagnosis()), reports[0])
    assert 'disk of --datapath' in reports[0]
    assert feed.wait_seconds > 2


class FailingSource(ReusingSource):
    """Two batches, then an error, as from a loader whose processes keep dying."""

    def get(self, timeout):
        if self._number == 2:
            raise UserError('no more')
        return super().get(timeout)


def test_batches_before_a_failure_are_used():
    with tf.Graph().as_default():
        tf.train.get_or_create_global_step()
        feed = InputQueueHook(FailingSource())
        with tf.train.MonitoredSession(hooks=[feed]) as session:
            used = 0
            while feed.wait_for_batch(lambda: False):
                session.run(feed.batch)
                used += 1
        assert used == 2
        with pytest.raises(UserError, match='no more'):
            feed.check()


class LateSource:
    """Knows its number of samples after so many waits."""

    def __init__(self, waits):
        self.samples, self._waits = None, waits

    def wait_for_worker(self, timeout):
        self._waits -= 1
        if self._waits < 0:
            self.samples = 7

    def report(self):
        return ['data worker joined: somebody']

    def diagnosis(self):
        return 'start one'


def test_waiting_for_the_first_data_worker_is_reported_like_any_other(caplog):
    caplog.set_level(logging.INFO)
    source, no_stop = LateSource(waits=2), types.SimpleNamespace(check=lambda: None)
    wait_for_samples(source, no_stop, report_seconds=0)
    assert source.samples == 7
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ['waiting for the first data worker', 'data worker joined: somebody']
    assert lines[2] == 'waiting for data: no batch for 0 s; start one'
    caplog.clear()
    wait_for_samples(source, no_stop)  # it knows its samples now
    assert not caplog.records


def test_a_signal_ends_the_wait_for_the_first_data_worker():
    def came():
        raise Stopped
    with pytest.raises(Stopped):
        wait_for_samples(LateSource(waits=10 ** 9), types.SimpleNamespace(check=came))
