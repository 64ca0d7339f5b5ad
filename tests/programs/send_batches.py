"""A data worker that sends the batches of a file, again and again, DELAY seconds after each other.

    send_batches.py MASTER FILE KEYS DELAY LINK_TIMEOUT      KEYS: a folder, or '' for none
"""
import itertools
import sys
import time

import numpy as np

import pose_cli
import pose_dataworker


class Source:
    samples = 100

    def __init__(self, batches, delay):
        self.batches, self.delay = itertools.cycle(batches), delay

    def get(self, timeout=None):
        time.sleep(self.delay)
        return next(self.batches)

    def report(self):
        return []

    def close(self):
        pass


def main():
    master, path, keys, delay, link_timeout = sys.argv[1:]
    with np.load(path) as file:
        batches = [[file['%s%d' % (name, n)] for name in ('image', 'heatmap', 'paf', 'mask')]
                   for n in range(len(file.files) // 4)]
    pose_cli.log_to_stderr()
    pose_dataworker.serve_trainers(master, lambda settings: Source(batches, float(delay)), keys or None,
                                   float(link_timeout))


pose_cli.run(main)
