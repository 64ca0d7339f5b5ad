"""A real train.py that runs only when asked, so that others can take turns with it; and what it logs of its steps."""
import os
import signal
import sys
import time

import psutil
from bench_inputs import ROOT

from pose_errors import UserError
from training.curves import read_curves


class RealTraining:
    """A train.py process that trains from scratch.

    Args:
        folder: of the run.  flags: more flags of train.py, such as --datapath.
        warm_up: log lines that pass before it is first paused.  log_every: steps between log lines.
        environment: variables that it has besides this process's.
    """

    def __init__(self, model, input_size, batchsize, folder, *flags, warm_up, log_every=1, environment=()):
        self._curves, self._log = os.path.join(folder, 'logs', 'curves.csv'), folder + '.log'
        self._batchsize = batchsize
        with open(self._log, 'w') as log:
            self._process = psutil.Popen(
                [sys.executable, os.path.join(ROOT, 'train.py'), '--model=' + model, '--pretrained=none', '--lr=0.0001',
                 '--modelpath=' + folder, '--batchsize=%d' % batchsize, '--input-width=%d' % input_size[0],
                 '--input-height=%d' % input_size[1], '--log-every=%d' % log_every, '--valid-every=0',
                 '--max-steps=1000000', '--save-every=1000000', *flags],
                stderr=log, stdout=log, env=dict(os.environ, **dict(environment)))
        try:
            self._wait_for(warm_up)
        except BaseException:
            self.close()
            raise
        self._pause()

    def steps(self, lines):
        """Go on for so many log lines. Returns (seconds that a step of each took, without the line that the pause fell
        into, None)."""
        return [self._batchsize / float(row['examples_per_sec']) for row in self.rows(lines)], None

    def rows(self, lines):
        """The same as rows of curves.csv."""
        first = len(self._logged())
        self._continue()
        self._wait_for(first + 1 + lines)
        self._pause()
        return self._logged()[first + 1:first + 1 + lines]

    def close(self):
        if self._process.poll() is None:
            self._continue()
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _logged(self):
        return read_curves(self._curves) if os.path.exists(self._curves) else []

    def _wait_for(self, lines):
        while len(self._logged()) < lines:
            if self._process.poll() is not None:
                with open(self._log) as log:
                    raise UserError('train.py ended: ' + ' '.join(log.read().splitlines()[-1:]), 1)
            time.sleep(0.05)

    def _family(self):
        return [self._process] + self._process.children(recursive=True)

    def _pause(self):
        for process in self._family():
            process.suspend()

    def _continue(self):
        for process in self._family():
            process.resume()
