"""hold_decoders.py: start decoding processes and hold them until killed."""
import os
import signal

from inference.predictor import start_decoders

if __name__ == '__main__':
    with start_decoders(2) as executor:
        executor.submit(os.getpid).result()
        print('started', flush=True)
        signal.pause()
