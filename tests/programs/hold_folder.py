"""hold_folder.py FOLDER: hold a run folder until killed."""
import signal
import sys

from training import runlock

with runlock.hold(sys.argv[1]):
    print('held', flush=True)
    signal.pause()
