"""A trainer that takes batches until it reads a line, and says twice a second how it goes.

receiver.py SETTINGS ADDRESS KEYS LINK_TIMEOUT
"""
import json
import sys
import tempfile
import threading
import time

import psutil

import pose_cli
from remote.receiver import BatchReceiver

settings, address, keys, link_timeout = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] or None, float(sys.argv[4])
pose_cli.log_to_stderr()
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()


def can_open_files():
    try:
        for _ in range(20):
            tempfile.TemporaryFile().close()
        return True
    except OSError:
        return False


def train():
    with BatchReceiver(address, settings, keys, link_timeout=link_timeout) as receiver:
        batches, numbers, last = 0, [], 0  # numbers: of the batches since the last line
        files = True
        while not stop.is_set():
            files = can_open_files() and files
            if receiver.get(0.2) is not None:
                batches += 1
                numbers.append(receiver.number)
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                print(json.dumps({'batches': batches, 'numbers': numbers, 'files': files,
                                  'rss': psutil.Process().memory_info().rss, 'report': receiver.report()}), flush=True)
                numbers = []


pose_cli.run(train)
