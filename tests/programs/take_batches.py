"""A trainer that takes batches until a line comes on stdin, and prints a JSON object twice a second: how it goes.

    take_batches.py ADDRESS SETTINGS LINK_TIMEOUT      SETTINGS: of the BatchReceiver, as JSON
"""
import json
import sys
import threading
import time

import psutil

import pose_cli
from remote.trainer import BatchReceiver


def main():
    address, settings, link_timeout = sys.argv[1:]
    pose_cli.log_to_stderr()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    with BatchReceiver(address, json.loads(settings), link_timeout=float(link_timeout)) as receiver:
        batches, last = 0, 0
        while not stop.is_set():
            batches += receiver.get(0.2) is not None
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                print(json.dumps({'batches': batches, 'rss': psutil.Process().memory_info().rss,
                                  'report': receiver.report()}), flush=True)


pose_cli.run(main)
