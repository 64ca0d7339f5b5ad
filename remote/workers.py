"""The data workers as the trainer sees them: which makes which batch, and how fast each is.

Each batch number is asked for once, and requeued when its worker is gone.
"""
import heapq
import logging
import threading
import time

from .protocol import MAX_CREDIT

# Bounds of what is on the way from one worker: bytes, but at least MIN_CREDIT batches and at most MAX_CREDIT.
CREDIT_BYTES, MIN_CREDIT = 1 << 24, 2
TOTAL_CREDIT_BYTES = 1 << 30  # from all workers together, but at least MIN_CREDIT batches from each
NAMED_SENDERS = 20  # bad senders that one log interval names


class WorkerState:
    """A worker as the trainer sees it."""

    def __init__(self, route, descriptor, name, host):
        self.route, self.descriptor, self.name, self.host = route, descriptor, name, host
        self.ready = False  # it has a loader and may be given credit
        self.wanted = set()  # numbers of the batches that it may still send
        self.queued = 0  # batches of it that nobody has taken yet
        self.bad = 0  # messages of it that did not fit
        self.pings = 0  # that it has not answered

    def __str__(self):
        return '%s (%s)' % (self.name, self.host)


class BatchScheduler:
    """The numbers first, first + every, ... of batches, handed out to workers.

    batch_bytes: about how much one takes on the way.  max_credit: batches that may be on the way from one worker.
    """

    def __init__(self, first, every, batch_bytes):
        self.max_credit = max(MIN_CREDIT, min(MAX_CREDIT, CREDIT_BYTES // batch_bytes))
        self._batch_bytes = batch_bytes
        self._next, self._every = first, every  # the next batch to ask for ...
        self._retries = []  # ... but before it these, a heap

    def grant(self, worker, num_workers):
        """Numbers that a worker, one of so many, is to make beside those it has; none before half its limit is free."""
        limit = max(MIN_CREDIT, min(self.max_credit, TOTAL_CREDIT_BYTES // num_workers // self._batch_bytes))
        count = limit - len(worker.wanted) - worker.queued
        numbers = []
        for _ in range(count if count >= limit // 2 else 0):
            if self._retries:
                numbers.append(heapq.heappop(self._retries))
            else:
                numbers.append(self._next)
                self._next += self._every
        worker.wanted.update(numbers)
        return numbers

    def requeue(self, worker, numbers):
        """Batches that a worker will not send are to be made by others."""
        for number in [number for number in numbers if number in worker.wanted]:
            worker.wanted.remove(number)
            self.retry(number)

    def retry(self, number):
        """This batch is to be made again: by another worker, or because it came and was bad."""
        heapq.heappush(self._retries, number)


class WorkerStats:
    """Counts of samples and bad messages by worker; written by the thread that receives, read by the one that logs."""

    def __init__(self):
        self._lock = threading.Lock()
        self._events = []
        self._samples = {}  # name of a worker that is there -> samples since the last report
        self._bad = {}  # sender -> [number of bad messages since the last report, the last one's fault]
        self._reported = time.monotonic()

    def joined(self, worker):
        with self._lock:
            self._events.append('data worker joined: %s' % worker)
            self._samples[worker] = 0

    def left(self, worker):
        with self._lock:
            self._events.append('data worker left: %s' % worker)
            self._samples.pop(worker, None)

    def received(self, worker, samples):
        with self._lock:
            self._samples[worker] = self._samples.get(worker, 0) + samples

    def dropped(self, sender, fault):
        """Count a bad message; the first of a sender in each interval goes to the log at once."""
        with self._lock:
            if sender not in self._bad and len(self._bad) >= NAMED_SENDERS:
                sender = 'others'
            if sender not in self._bad:
                logging.warning('dropped a bad message from %s: %s', sender, fault)
            self._bad[sender] = [self._bad.get(sender, (0,))[0] + 1, str(fault)]

    def lines(self):
        """Lines for the trainer's log, on the time since the last call."""
        with self._lock:
            now = time.monotonic()
            seconds, self._reported = max(now - self._reported, 1e-3), now
            lines, self._events = self._events, []
            if self._samples:
                lines.append('data workers, samples/s: ' + ', '.join(
                    '%s %.1f' % (worker.name, samples / seconds) for worker, samples in self._samples.items()))
            self._samples = dict.fromkeys(self._samples, 0)
            bad, self._bad = self._bad, {}
        return lines + ['dropped %d bad messages from %s (last: %s)' % (count, sender, fault)
                        for sender, (count, fault) in sorted(bad.items())]
