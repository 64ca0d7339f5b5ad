"""A data worker that sends a file's batches in turn, whatever their numbers.

sender.py MASTER FILE KEYS DELAY LINK_TIMEOUT
"""
import collections
import itertools
import sys
import time

sys.modules['tensorflow'] = None  # a helper node has none

import numpy  # noqa: E402

import pose_cli  # noqa: E402
import pose_dataworker  # noqa: E402
from batches.batch import Batch  # noqa: E402


class Source:
    """Stands in for a BatchLoader."""
    samples = 100

    def __init__(self, batches, delay):
        self.batches, self.delay = itertools.cycle(batches), delay
        self.requests = collections.deque()
        self.number = None

    def forget(self):
        self.requests.clear()

    def request(self, numbers):
        self.requests.extend(numbers)

    def get(self, timeout=None):
        time.sleep(self.delay)
        if not self.requests:
            return None
        self.number = self.requests.popleft()
        return next(self.batches)

    def report(self):
        return []

    def close(self):
        pass


master, path, keys, delay, link_timeout = sys.argv[1:]
with numpy.load(path) as file:
    batches = [Batch(*(file['%s%d' % (name, n)] for name in Batch._fields))
               for n in range(len(file.files) // len(Batch._fields))]
pose_cli.log_to_stderr()
pose_cli.run(lambda: pose_dataworker.serve_trainers(master, lambda settings: (Source(batches, float(delay)), '0' * 32),
                                                    keys or None, float(link_timeout)))
