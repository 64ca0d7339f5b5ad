"""hold_folder.py FOLDER: hold a run folder until killed."""
import signal
import sys

from training.run_folder import lock_folder

with lock_folder(sys.argv[1]):
    print('held', flush=True)
    signal.pause()
