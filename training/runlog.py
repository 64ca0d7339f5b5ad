"""What a run leaves behind for people: log lines, curves.csv, TensorBoard scalars and pictures, run.json."""
import contextlib
import csv
import json
import logging
import os
import shlex
import subprocess
import sys
import time

import cv2
import numpy as np
import tensorflow.compat.v1 as tf

import pose_cli
import pose_draw
from networks.about import skeleton_of
from pose_cli import UserError
from pose_skeleton import RUN_FILE

from .board import TRAIN, VALIDATION, Board
from .curves import CURVES_FILE, read_curves
from .recovery import set_aside

LASTING_FLAGS = ('model', 'input_width', 'input_height', 'optimizer')  # what a run cannot change when it resumes
EARLIER_FLAGS = {'optimizer': 'adam'}  # what runs did before there was a flag
LOSSES = ('loss', 'loss_ll', 'loss_ll_paf', 'loss_ll_heat')
CURVE_COLUMNS = (('kind', 'step', 'epoch', 'examples_per_sec', 'lr') + LOSSES
                 + ('loss_ll_background', 'queue', 'data_wait', 'AP'))
FAR_ABOVE, FAR_ABOVE_STEPS = 3.0, 200  # times the loss of predicting only background, for so many steps


class LogLines:
    """Logs the line of each training interval, and writes no file."""

    def __init__(self, steps_per_epoch):
        self._steps_per_epoch = steps_per_epoch

    def training(self, step, figures, note=''):
        """Log the line of a training interval.

        Args:
            figures: CURVE_COLUMNS -> number, means over the interval.  note: to put at its end.
        """
        logging.info('epoch=%.2f step=%d, %.4f examples/sec lr=%f, %s, q=%d, data_wait=%.0f%%%s',
                     step / self._steps_per_epoch, step, figures['examples_per_sec'], figures['lr'],
                     _losses_text(figures), figures['queue'], 100 * figures['data_wait'], note)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class RunLog(LogLines):
    """Writes each logged figure to the log, to curves.csv and to TensorBoard.

    Args:
        logpath: folder; created by the caller.
        first_step: where this run starts: figures of later steps, left by a run that was killed, are dropped.
        steps_per_epoch: to tell the epoch of a step.
    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, logpath, first_step, steps_per_epoch):
        super().__init__(steps_per_epoch)
        self.logpath, self._failed, self._watch = logpath, False, LossWatch()
        try:
            self._open(first_step)
        except (OSError, tf.errors.OpError) as error:
            raise UserError('cannot write in --logpath=%s: %s; mend that, or choose another folder'
                            % (logpath, pose_cli.reason_of(error)))

    def _open(self, first_step):
        self._board = Board(self.logpath, first_step)
        path = os.path.join(self.logpath, CURVES_FILE)
        rows = [row for row in _earlier_curves(path) if int(row['step']) <= first_step]
        with open(path + '.tmp', 'w', newline='') as file:
            writer = csv.DictWriter(file, CURVE_COLUMNS, extrasaction='ignore')
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path + '.tmp', path)
        self._file = open(path, 'a', newline='', buffering=1)
        self._curves = csv.DictWriter(self._file, CURVE_COLUMNS)

    def start(self, step, flags, output):
        """Show the flags, a dictionary, and the graph of the network's output in TensorBoard."""
        self._try(self._board.start, step, flags, output)

    def training(self, step, figures, note=''):
        super().training(step, figures, note)
        self._write('train', step, figures)
        self._watch(step, figures['loss_ll'] / max(figures['loss_ll_background'], 1e-9))

    def validation(self, step, images, tag, figures):
        """Log the line of a validation over `images` images."""
        logging.info('validation(%d) %s %s', images, tag, _losses_text(figures))
        self._write('validation', step, figures)

    def evaluation(self, step, average_precision):
        """Log a COCO keypoint AP."""
        logging.info('evaluation step=%d AP=%.4f', step, average_precision)
        self._write('evaluation', step, {'AP': average_precision})

    def picture(self, step, name, image):
        """Write a uint8 (H, W, 3) BGR picture to TensorBoard, and as the latest NAME.png to the log folder."""
        encoded = cv2.imencode('.png', image)[1].tobytes()
        self._try(pose_cli.write_file, os.path.join(self.logpath, name + '.png'), encoded)
        self._try(self._board.picture, VALIDATION, step, name, encoded, *image.shape[:2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._try(self._file.close)
        self._try(self._board.close)

    def _write(self, kind, step, figures):
        self._try(self._curves.writerow, dict({name: '%.6g' % value for name, value in figures.items()},
                                              kind=kind, step=step, epoch='%.4f' % (step / self._steps_per_epoch)))
        self._try(self._board.figures, TRAIN if kind == 'train' else VALIDATION, step, figures)

    def _try(self, write, *args, **kwargs):
        """Write; what fails, as on a full disk, is told once and does not end the run."""
        try:
            write(*args, **kwargs)
        except (OSError, UserError, tf.errors.OpError) as error:
            if not self._failed:
                logging.warning('cannot write in --logpath=%s: %s; the run goes on, its curves have a gap',
                                self.logpath, pose_cli.reason_of(error))
            self._failed = True


class LossWatch:
    """Says so, once, when the loss stays far above that of predicting only background."""

    def __init__(self):
        self._since, self._said = None, False

    def __call__(self, step, ratio):
        """ratio: loss_ll in times of the background's, at this step."""
        if ratio <= FAR_ABOVE:
            self._since, self._said = None, False
        elif self._since is None:
            self._since = step
        elif step - self._since >= FAR_ABOVE_STEPS and not self._said:
            self._said = True
            logging.warning('for %d steps loss_ll has been far above that of predicting only background (now %.3g '
                            'times): a lower --lr or more --warmup-steps may help', step - self._since, ratio)


def _has_numbers(row):
    try:
        for name, value in row.items():
            if name != 'kind':
                float(value or 0)
    except ValueError:
        return False
    return True


def _earlier_curves(path):
    """The rows that earlier starts left; a file that cannot be read is set aside."""
    if not os.path.lexists(path):
        return []
    try:
        return [row for row in read_curves(path) if _has_numbers(row)]
    except UserError as error:
        logging.warning('%s: kept as %s; the curves start anew', error, set_aside(path))
        return []


def _losses_text(figures):
    return ', '.join('%s=%.6g' % (name, figures[name]) for name in LOSSES)


class Interval:
    """Means of the figures of the steps since the last log line.

    Args:
        waited: a function: the seconds that the trainer has waited for data in all.
    """

    def __init__(self, waited):
        self._waited = waited
        self.restart()

    def restart(self):
        self._start, self._start_waited, self._sums, self._steps = time.monotonic(), self._waited(), {}, 0

    def add(self, metrics):
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def means(self, batchsize):
        """The mean of each figure, with examples_per_sec and data_wait, the share of the time spent waiting."""
        seconds = time.monotonic() - self._start
        return dict({name: total / self._steps for name, total in self._sums.items()},
                    examples_per_sec=self._steps * batchsize / seconds,
                    data_wait=(self._waited() - self._start_waited) / seconds)


def comparison_row(image, heatmap, paf, predicted_heatmap, predicted_paf):
    """One image's truth beside the prediction: true and predicted heatmap, true and predicted PAF."""
    return [pose_draw.caption(pose_draw.overlay_heatmap(image, heatmap), 'heatmap: truth'),
            pose_draw.caption(pose_draw.overlay_heatmap(image, predicted_heatmap), 'heatmap: predicted'),
            pose_draw.caption(pose_draw.overlay_paf(image, paf), 'PAF: truth'),
            pose_draw.caption(pose_draw.overlay_paf(image, predicted_paf), 'PAF: predicted')]


def versions():
    """Versions of what computes here, and the revision of this code, for run.json."""
    build = getattr(tf.sysconfig, 'get_build_info', dict)()
    return {'python': sys.version.split()[0], 'tensorflow': tf.__version__, 'numpy': np.__version__,
            'opencv': cv2.__version__, 'cuda': build.get('cuda_version', 'unknown'), 'git': _git_revision()}


def _git_revision():
    try:
        return subprocess.check_output(['git', 'describe', '--always', '--dirty', '--abbrev=40'],
                                       cwd=os.path.dirname(os.path.abspath(__file__)), stderr=subprocess.DEVNULL,
                                       universal_newlines=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def note_start(modelpath, flags, skeleton, resumes, samples=None):
    """Add the exact command, flags (a dict) and versions to run.json; without `resumes` the run is a new one.

    skeleton: what the network learns to find, which pose_eval.py and freezing read from there.
    samples: of the training data; when a run that is resumed had another number, a line says what follows.
    Raises UserError when the run that is resumed learned other keypoints.
    """
    path = os.path.join(modelpath, RUN_FILE)
    before = skeleton_of(modelpath) if resumes else None
    if before and not before.finds_the_same(skeleton):
        raise UserError('%s holds a run on the keypoints %s, and the data has %s; choose another --modelpath, and give '
                        'the checkpoint with --checkpoint' % (modelpath, *(', '.join(each.keypoints)
                                                                           for each in (before, skeleton))))
    earlier = read_run(modelpath).get('starts', []) if resumes else []
    start = {'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': flags, 'versions': versions(),
             'samples': samples}
    had = earlier[-1].get('samples') if earlier and isinstance(earlier[-1], dict) else None
    if had and samples and had != samples:
        logging.warning('the training data has %d samples, and had %s at the last start of this run: epochs and what '
                        'follows from them, as the learning rate, have another length now; if that is a mistake, stop '
                        'this run and mend the data', samples, had)
    run = {'flags': flags, 'starts': earlier + [start], 'skeleton': skeleton.to_json()}
    pose_cli.write_json(path, run, indent=1)


def forget_start(modelpath):
    """Remove the run.json of a start that failed before there was anything else of its run."""
    with contextlib.suppress(OSError):
        os.remove(os.path.join(modelpath, RUN_FILE))


def read_run(modelpath):
    """The content of run.json, {} when there is none. Raises UserError when it is damaged."""
    path = os.path.join(modelpath, RUN_FILE)
    try:
        with open(path) as file:
            run = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not isinstance(run.get('flags', {}), dict) \
            or not isinstance(run.get('starts', []), list):
        raise UserError('%s is damaged; choose another --modelpath, and give the checkpoint with --checkpoint' % path)
    return run


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
