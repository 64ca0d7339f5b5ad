"""Keeps TensorFlow's input queue filled from a batch source, and knows how long the trainer waited for data.

A batch source is a context manager with samples, layout (batch_layout of its batches), get(timeout) -> Batch or None,
number (of the batch that get gave last), ready(), report(), diagnosis() and close(): batches.loader.BatchLoader for
local data, remote.receiver.BatchReceiver for data workers.
"""
import logging
import threading
import time

from batches.batch import Batch, empty_batch
from networks.tensorflow import tf

QUEUE_BATCHES = 4
REPORT_SECONDS = 30
POLL_SECONDS = 0.2


class StallReporter:
    """Says from time to time that no data comes, and what may help."""

    def __init__(self, source, report_seconds):
        self._source, self._report_seconds = source, report_seconds
        self._start = self._reported = time.monotonic()

    def report(self):
        """Log the line if it is due."""
        now = time.monotonic()
        if now - self._reported >= self._report_seconds:
            self._reported = now
            for line in self._source.report():
                logging.info(line)
            logging.warning('waiting for data: no batch for %.0f s; %s', now - self._start, self._source.diagnosis())


def wait_for_samples(source, stop, report_seconds=REPORT_SECONDS):
    """Wait until data workers have told how many samples there are. Raises Stopped after a signal."""
    if source.samples is None:
        logging.info('waiting for the first data worker')
    stall = StallReporter(source, report_seconds)
    while source.samples is None:
        stop.check()
        source.wait_for_worker(timeout=POLL_SECONDS)
        stall.report()


class InputQueueHook(tf.train.SessionRunHook):
    """Moves batches from a source into a TensorFlow queue, in a thread of its own.

    Args:
        source: a batch source.
        report_seconds: how often it is logged that no data comes, with the source's diagnosis.
    Attributes:
        batch: the next one, a batches.batch.Batch of tensors on the CPU.
        wait_seconds: how long wait_for_batch has waited in all.
    """

    def __init__(self, source, report_seconds=REPORT_SECONDS):
        self._source, self._report_seconds = source, report_seconds
        self._filled = threading.Condition()
        self._in_queue = 0  # batches in TensorFlow's queue, changed under the condition's lock
        self._stop = threading.Event()
        self._error = None
        self._numbers = []  # of the batches, in the order in which steps take them
        self.wait_seconds = 0.0
        # How many positions and values there are differs from batch to batch.
        shapes = [(None if name.startswith(('heatmap', 'paf')) else shape[0],) + shape[1:]
                  for name, _, shape in source.layout]
        dtypes = [tf.as_dtype(dtype) for _, dtype, _ in source.layout]
        with tf.device('/cpu:0'), tf.name_scope('feed'):
            self._placeholders = [tf.placeholder(dtype, shape) for dtype, shape in zip(dtypes, shapes)]
            queue = tf.FIFOQueue(QUEUE_BATCHES, dtypes)
            self._enqueue = queue.enqueue(self._placeholders)
            self._close_queue = queue.close(cancel_pending_enqueues=True)
            self.batch = Batch(*queue.dequeue())
            for field, shape in zip(self.batch, shapes):
                field.set_shape(shape)

    def after_create_session(self, session, coord):
        self._thread = threading.Thread(target=self._fill, args=(session,), daemon=True)
        self._thread.start()

    def end(self, session):
        self._stop.set()
        session.run(self._close_queue)
        self._thread.join()

    def wait_for_batch(self, stop):
        """Wait until the queue holds a batch; the caller then runs the step that takes it.

        Logs every report_seconds what it is waiting for.

        Args:
            stop: a function; when it returns True the wait ends.
        Returns:
            True, or False when the wait ended because of stop, or because the source failed (see check).
        """
        start = time.monotonic()
        stall = StallReporter(self._source, self._report_seconds)
        while not self._take():
            if self._error or stop():
                return False
            stall.report()
        self.wait_seconds += time.monotonic() - start
        return True

    def _take(self):
        """Whether a batch is in the queue, waiting a moment for it; it then counts as taken."""
        with self._filled:
            if not self._filled.wait_for(lambda: self._in_queue > 0, timeout=POLL_SECONDS):
                return False
            self._in_queue -= 1
            return True

    def check(self):
        """Raise what the source raised, if it did: UserError, for example."""
        if self._error:
            raise self._error

    def ready(self):
        """Batches that are ready: in TensorFlow's queue and at the source."""
        return self._in_queue + self._source.ready()

    def taken(self, steps):
        """The numbers of the batches that the first so many steps of this session took."""
        return [number for number in self._numbers[:steps] if number is not None]

    def report(self):
        """Lines of the source for the log."""
        return self._source.report()

    def _fill(self, session):
        try:
            while not self._stop.is_set():
                batch = self._source.get(timeout=0.5)
                if batch is not None:
                    self._numbers.append(self._source.number)
                    # A copy: TensorFlow takes over the memory of what is fed, and the source will reuse it.
                    session.run(self._enqueue, {placeholder: field.copy()
                                                for placeholder, field in zip(self._placeholders, batch)})
                    with self._filled:
                        self._in_queue += 1
                        self._filled.notify()
        except tf.errors.CancelledError:
            pass  # the queue was closed: training ended
        except BaseException as error:
            self._error = error


class LastBatchRepeater:
    """A batch source that always has one more batch when training is about to stop.

    A process without data would keep the others waiting in the step in which all have to agree to stop: it takes its
    last batch once more, or one whose mask leaves everything out.

    Args:
        source: the batch source.  stop: a function, whether training is to stop.
    """

    def __init__(self, source, stop):
        self._source, self._stop, self.layout = source, stop, source.layout
        self._batch, self.number = empty_batch(source.layout), None
        self.ready, self.report, self.diagnosis = source.ready, source.report, source.diagnosis

    def get(self, timeout=None):
        """The next batch, or None when none came within timeout seconds."""
        batch = self._source.get(timeout)
        if batch is not None:
            self._batch, self.number = batch, self._source.number
        elif self._stop():
            self.number = None  # its samples count once
            return self._batch
        return batch
