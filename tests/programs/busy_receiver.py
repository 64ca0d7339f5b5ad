"""A trainer that takes no batches, as in a long validation, until it reads a line; then it closes.

busy_receiver.py SETTINGS ADDRESS KEYS

It prints `open`, then `awake` when it looks again, then in how many seconds it has closed.
"""
import json
import sys
import time

from remote.receiver import BatchReceiver

settings, address, keys = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] or None
receiver = BatchReceiver(address, settings, keys)
print('open', flush=True)
sys.stdin.readline()
receiver.get(0)
print('awake', flush=True)
start = time.monotonic()
receiver.close()
print('closed in %.1f s' % (time.monotonic() - start), flush=True)
