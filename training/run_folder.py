"""The folder of a run, --modelpath: its lock, run.json, and the weights that the run starts from."""
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import subprocess
import sys

import cv2
import numpy as np

import networks.pretrained
import pose_files
from annotations.skeleton import RUN_FILE
from batches import Sequence
from networks.pretrained import skeleton_of
from networks.tensorflow import tf
from pose_errors import UserError

from .checkpoint import checkpoint_steps, latest_checkpoint, recover
from .curves import read_run

LASTING_FLAGS = ('model', 'input_width', 'input_height', 'optimizer', 'ema')  # what a run cannot change when it resumes
START_FLAGS = ('checkpoint', 'pretrained')  # that only a new run reads
EARLIER_FLAGS = {'optimizer': 'adam', 'ema': 0.0}  # what runs did before there was a flag
LOCK_FILE = '.lock'
HELD = (errno.EACCES, errno.EAGAIN)


class StartWeights:
    """The weights that a new run starts from: a file that is read at most once, when it is first asked for.

    Args:
        model: one of networks.NAMES.  checkpoint, pretrained: the flags, see networks.pretrained.resolve.
    """

    def __init__(self, model, checkpoint=None, pretrained=None):
        self._model, self._checkpoint, self._pretrained = model, checkpoint, pretrained
        self._read = None

    @property
    def path(self):
        """Of the file, or None for --pretrained=none. Raises UserError when it is missing."""
        return self._checkpoint or networks.pretrained.resolve(self._model, self._pretrained)

    def read(self):
        """Raise UserError when there are no weights, or they cannot be read."""
        if self._read is None and self.path:
            self._read = networks.pretrained.read_with_metadata(self.path)

    def init_fn(self, network):
        """For tf.train.Scaffold: a function that sets the network's variables, or None for initial values."""
        if self.path is None:
            logging.info('--pretrained=none: training starts from scratch')
            return None
        logging.info('Restore pretrained weights... %s', self.path)
        self.read()
        flag = '--checkpoint' if self._checkpoint else '--pretrained'
        match = networks.pretrained.fit(network, self.path, flag, self._read)
        self._read = None  # its memory is needed now
        needed = {variable.op.name for variable in network.inference_variables} - set(match.reinitialized)
        lacking = [name for name in match.missing if name in needed]
        if self._checkpoint and lacking:
            raise UserError('--checkpoint=%s lacks %d variables of %s (%s, ...); give a checkpoint of this model'
                            % (self.path, len(lacking), self._model, lacking[0]))
        logging.info(str(match))
        return match.init_fn


def check_start(modelpath, flags, weights):
    """Raise UserError unless there is a run in modelpath that goes on with these flags (a dict), or StartWeights."""
    if latest_checkpoint(modelpath):
        check_resume(modelpath, flags)
    elif not checkpoint_steps(modelpath):
        weights.read()


@contextlib.contextmanager
def hold_run_folder(modelpath, logpath, flags, weights):
    """Hold a run's folder for this process, with a whole checkpoint to resume from if there are any; raises what
    check_start does. A start that fails before it has saved or logged anything leaves nothing behind."""
    with pose_files.output_folder(modelpath), lock_folder(modelpath), pose_files.output_folder(logpath):
        if recover(modelpath):
            check_resume(modelpath, flags)
        else:
            weights.read()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # folders may be gone by now
                others = [os.path.join(modelpath, name) for name in os.listdir(modelpath)
                          if name not in (LOCK_FILE, RUN_FILE)]
                if not os.listdir(logpath) and all(os.path.samefile(path, logpath) for path in others):
                    os.remove(os.path.join(modelpath, RUN_FILE))
            raise


def versions():
    """Versions of what computes here, and the revision of this code, for run.json."""
    try:
        revision = subprocess.check_output(['git', 'describe', '--always', '--dirty', '--abbrev=40'],
                                           cwd=os.path.dirname(os.path.abspath(__file__)), stderr=subprocess.DEVNULL,
                                           universal_newlines=True).strip()
    except (OSError, subprocess.CalledProcessError):
        revision = 'unknown'
    build = getattr(tf.sysconfig, 'get_build_info', dict)()
    return {'python': sys.version.split()[0], 'tensorflow': tf.__version__, 'numpy': np.__version__,
            'opencv': cv2.__version__, 'cuda': build.get('cuda_version', 'unknown'), 'git': revision}


def note_start(modelpath, flags, skeleton, resumes, samples=None):
    """Add the exact command, flags (a dict) and versions to run.json; without `resumes` the run is a new one.

    skeleton: what the network learns to find, which pose_eval.py and freezing read from there; UserError when the run
        that is resumed learned another.  samples: of the training data; when it had another number, a line says so.
    """
    path = os.path.join(modelpath, RUN_FILE)
    before = skeleton_of(modelpath) if resumes else None
    if before and not before.finds_the_same(skeleton):
        raise UserError('%s holds a run on the keypoints %s, and the data has %s; choose another --modelpath, and give '
                        'the checkpoint with --checkpoint' % (modelpath, *(', '.join(each.keypoints)
                                                                           for each in (before, skeleton))))
    run = read_run(modelpath) if resumes else {}
    earlier = run.get('starts', [])
    start = {'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': flags, 'versions': versions(),
             'samples': samples}
    last = earlier[-1] if earlier and isinstance(earlier[-1], dict) else {}
    had = last.get('samples')
    if had and samples and had != samples:
        logging.warning('the training data has %d samples, and had %s at the last start of this run: epochs and what '
                        'follows from them, as the learning rate, have another length now; if that is a mistake, stop '
                        'this run and mend the data', samples, had)
    if isinstance(last.get('flags'), dict):
        old, new = last['flags'], json.loads(json.dumps(flags))  # as JSON keeps them: a tuple comes back as a list
        changed = {flag: '--%s=%s' % (flag.replace('_', '-'), value) for flag, value in sorted(new.items())
                   if flag in old and old[flag] != value}
        if changed:
            logging.info('changed since the last start: %s', ', '.join('%s (was %s)' % (text, old[flag])
                                                                       for flag, text in changed.items()))
        for flag in START_FLAGS:
            if flag in changed:
                logging.warning('%s has no effect: this run goes on from its own checkpoint; choose another '
                                '--modelpath to start from other weights', changed[flag])
    now = {'flags': flags, 'starts': earlier + [start], 'skeleton': skeleton.to_json()}
    if resumes:
        now['progress'] = run.get('progress', {})
    pose_files.write_json(path, now, indent=1)


def note_progress(modelpath, step, sequence, loss_scale):
    """Add to run.json what a run that resumes from the checkpoint of a step needs besides its variables: the
    batches.Sequence that is left, and the loss scale of mixed precision, or 0."""
    run = read_run(modelpath)
    kept = {str(other) for other in checkpoint_steps(modelpath)}
    progress = {other: each for other, each in run.get('progress', {}).items() if other in kept}
    progress[str(step)] = {'gaps': sequence.gaps, 'next': sequence.next, 'loss_scale': float(loss_scale)}
    pose_files.write_json(os.path.join(modelpath, RUN_FILE), dict(run, progress=progress), indent=1)


def read_progress(modelpath, step):
    """(the batches.Sequence that is left, the loss scale or 0) at the checkpoint of a step. Runs of before there was
    such a note had one batch size from the start."""
    run = read_run(modelpath) if step else {}
    try:
        noted = run['progress'][str(step)]
        sequence = Sequence(tuple((int(start), int(stop)) for start, stop in noted['gaps']), int(noted['next']))
        return sequence, float(noted['loss_scale'])
    except (KeyError, TypeError, ValueError):
        flags = run.get('flags', {})
        return Sequence((), step * flags.get('batchsize', 1) * flags.get('accumulate', 1)), 0.0


def check_resume(modelpath, flags):
    """Raise UserError unless the run in modelpath can go on with these flags (a dict): LASTING_FLAGS stay."""
    started = read_run(modelpath).get('flags', {})
    started = dict(EARLIER_FLAGS, **started) if started else {}
    if any(name not in started for name in LASTING_FLAGS):
        raise UserError('%s holds a checkpoint, but no run.json that tells its model and input size; choose another '
                        '--modelpath, or give the checkpoint with --checkpoint' % modelpath)
    for name in LASTING_FLAGS:
        if started[name] != flags[name]:
            raise UserError('%s holds a run with --%s=%s, which cannot go on with %s; choose another --modelpath'
                            % (modelpath, name.replace('_', '-'), started[name], flags[name]))


@contextlib.contextmanager
def lock_folder(folder):
    """Hold a run folder while the block runs. Raises UserError when another process holds it, and says which.

    A record lock (fcntl): the system releases it when the process dies, forked processes do not inherit it, and NFS
    passes it on to other machines. Where a file system has no locks, a line says so and the run goes on. Where nothing
    came beside the lock's file, that goes as well.
    """
    path = os.path.join(folder, LOCK_FILE)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError('cannot open %s: %s; remove it, or choose another --modelpath' % (path, error.strerror))
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(path) or not os.path.samestat(os.fstat(handle), os.stat(path)):
                raise UserError('%s was in use until a moment ago; start again' % folder)
        except OSError as error:
            if error.errno in HELD:
                holder = os.read(handle, 200).decode('ascii', 'replace').strip() or 'another process'
                raise UserError('%s is in use by %s; wait for it, stop it, or choose another --modelpath'
                                % (folder, holder))
            logging.warning('%s cannot be locked (%s): do not start a second run there', folder, error.strerror)
        else:
            holder = 'process %d on %s, since %s' % (os.getpid(), socket.gethostname(),
                                                     datetime.datetime.now().isoformat(' ', 'seconds'))
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(handle, 0)
                os.pwrite(handle, holder.encode('ascii', 'replace') + b'\n', 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.listdir(folder) == [LOCK_FILE]:
                os.remove(path)
        os.close(handle)
