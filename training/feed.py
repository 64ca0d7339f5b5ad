"""Keeps TensorFlow's input queue filled from a batch source, and knows how long the trainer waited for data.

A batch source is a context manager with get(timeout) -> (image, heatmap, paf, mask) or None, ready(), report() and
close(): pose_loader.BatchLoader for local data, trainer.BatchReceiver for data workers.
"""
import logging
import threading
import time

import tensorflow.compat.v1 as tf

QUEUE_BATCHES = 4
REPORT_SECONDS = 30


class FeedHook(tf.train.SessionRunHook):
    """Moves batches from a source into a TensorFlow queue, in a thread of its own.

    Args:
        source: a batch source.
        layout: [(name, dtype, shape)] of its batches, see pose_loader.batch_layout.
        hint: what may help when no data comes; it ends the line that is logged then.
        report_seconds: how often it is logged.
    Attributes:
        batch: the next batch, a list of tensors on the CPU.
        wait_seconds: how long wait_for_batch has waited in all.
    """

    def __init__(self, source, layout, hint, report_seconds=REPORT_SECONDS):
        self._source, self._hint, self._report_seconds = source, hint, report_seconds
        self._available = threading.Semaphore(0)
        self._in_queue = 0
        self._stop = threading.Event()
        self._error = None
        self.wait_seconds = 0.0
        dtypes, shapes = zip(*((tf.as_dtype(dtype), shape) for _, dtype, shape in layout))
        with tf.device('/cpu:0'), tf.name_scope('feed'):
            self._placeholders = [tf.placeholder(dtype, shape) for dtype, shape in zip(dtypes, shapes)]
            queue = tf.FIFOQueue(QUEUE_BATCHES, dtypes, shapes)
            self._enqueue = queue.enqueue(self._placeholders)
            self._close_queue = queue.close(cancel_pending_enqueues=True)
            self.batch = queue.dequeue()

    def after_create_session(self, session, coord):
        self._thread = threading.Thread(target=self._fill, args=(session,), daemon=True)
        self._thread.start()

    def end(self, session):
        self._stop.set()
        session.run(self._close_queue)
        self._thread.join()

    def wait_for_batch(self, is_stopping):
        """Wait until the queue holds a batch; the caller then runs the step that takes it.

        Logs every report_seconds what it is waiting for.

        Args:
            is_stopping: a function; when it returns True the wait ends.
        Returns:
            True, or False when the wait ended because of is_stopping, or because the source failed (see check).
        """
        start = last_report = time.monotonic()
        while not self._available.acquire(timeout=0.2):
            now = time.monotonic()
            if self._error or is_stopping():
                return False
            if now - last_report >= self._report_seconds:
                last_report = now
                logging.warning('waiting for data: no batch for %.0f s; %s', now - start, self._hint)
        self._in_queue -= 1
        self.wait_seconds += time.monotonic() - start
        return True

    def check(self):
        """Raise what the source raised, if it did: UserError, for example."""
        if self._error:
            raise self._error

    def ready(self):
        """Batches that are ready: in TensorFlow's queue and at the source."""
        return self._in_queue + self._source.ready()

    def _fill(self, session):
        try:
            while not self._stop.is_set():
                batch = self._source.get(timeout=0.5)
                if batch is not None:
                    # A copy: TensorFlow takes over the memory of what is fed, and the source will reuse it.
                    session.run(self._enqueue, {placeholder: field.copy()
                                                for placeholder, field in zip(self._placeholders, batch)})
                    self._in_queue += 1
                    self._available.release()
        except tf.errors.CancelledError:
            pass  # the queue was closed: training ended
        except BaseException as error:
            self._error = error
