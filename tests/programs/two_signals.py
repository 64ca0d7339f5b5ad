"""Three signals at once, which count as one, then, a second later, one more, which kills."""
import os
import signal
import time

import pose_cli

stop = pose_cli.StopSignal()
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
assert stop()
print('alive', flush=True)
time.sleep(1.1)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
