"""What the trainer has to tell about its data workers: who came and went, how fast they are, what was dropped."""
import collections
import logging
import threading
import time

NAMED_SENDERS = 20  # bad senders that are told apart in one log interval


class SenderLog:
    """Written to by the thread that receives, read by the one that logs."""

    def __init__(self):
        self._lock = threading.Lock()
        self._events = []
        self._samples = collections.OrderedDict()  # name of a worker that is there -> samples since the last report
        self._bad = {}  # sender -> [number of bad messages since the last report, the last one's fault]
        self._reported = time.monotonic()

    def joined(self, peer):
        with self._lock:
            self._events.append('data worker joined: %s' % peer)
            self._samples[peer] = 0

    def left(self, peer):
        with self._lock:
            self._events.append('data worker left: %s' % peer)
            self._samples.pop(peer, None)

    def received(self, peer, samples):
        with self._lock:
            self._samples[peer] = self._samples.get(peer, 0) + samples

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
                    '%s %.1f' % (peer.name, samples / seconds) for peer, samples in self._samples.items()))
            self._samples = collections.OrderedDict((peer, 0) for peer in self._samples)
            bad, self._bad = self._bad, {}
        return lines + ['dropped %d bad messages from %s (last: %s)' % (count, sender, fault)
                        for sender, (count, fault) in sorted(bad.items())]
