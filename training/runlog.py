"""What a run leaves behind for people: log lines, curves.csv, TensorBoard scalars and pictures, run.json."""
import csv
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import tensorflow.compat.v1 as tf

import pose_cli
import pose_draw
from pose_cli import UserError

from .recovery import set_aside

CURVES_FILE, RUN_FILE = 'curves.csv', 'run.json'
MAX_CURVE_LINE = 10000
LASTING_FLAGS = ('model', 'input_width', 'input_height')  # what a run cannot change when it resumes
LOSSES = ('loss', 'loss_ll', 'loss_ll_paf', 'loss_ll_heat')
CURVE_COLUMNS = (('kind', 'step', 'epoch', 'examples_per_sec', 'lr') + LOSSES
                 + ('loss_ll_background', 'queue', 'data_wait', 'AP'))


class RunLog:
    """Writes each logged figure to the log, to curves.csv and to TensorBoard.

    Args:
        logpath: folder; created by the caller.
        first_step: where this run starts: figures of later steps, left by a run that was killed, are dropped.
        steps_per_epoch: to tell the epoch of a step.
    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, logpath, first_step, steps_per_epoch):
        self.logpath, self._steps_per_epoch, self._failed = logpath, steps_per_epoch, False
        try:
            self._open(first_step)
        except (OSError, tf.errors.OpError) as error:
            raise UserError('cannot write in --logpath=%s: %s; mend that, or choose another folder'
                            % (logpath, pose_cli.disk_trouble(error) or str(error).splitlines()[0]))

    def _open(self, first_step):
        logpath = self.logpath
        # Not a tf.summary.FileWriter: it writes in a thread, where a full disk ends in a traceback.
        self._events = tf.io.TFRecordWriter(os.path.join(logpath, 'events.out.tfevents.%d.%s.%d' % (
            time.time(), socket.gethostname(), os.getpid())))
        self._write_event(file_version='brain.Event:2')
        # So that TensorBoard, too, drops what a killed run left of later steps.
        self._write_event(step=first_step, session_log=tf.SessionLog(status=tf.SessionLog.START))
        path = os.path.join(logpath, CURVES_FILE)
        rows = [row for row in _earlier_curves(path) if int(row['step']) <= first_step]
        with open(path + '.tmp', 'w', newline='') as file:
            writer = csv.DictWriter(file, CURVE_COLUMNS, extrasaction='ignore')
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path + '.tmp', path)
        self._file = open(path, 'a', newline='', buffering=1)
        self._curves = csv.DictWriter(self._file, CURVE_COLUMNS)

    def training(self, step, figures):
        """Log the line of a training interval. figures: CURVE_COLUMNS -> number, means over the interval."""
        logging.info('epoch=%.2f step=%d, %.4f examples/sec lr=%f, %s, q=%d, data_wait=%.0f%%',
                     step / self._steps_per_epoch, step, figures['examples_per_sec'], figures['lr'],
                     _losses_text(figures), figures['queue'], 100 * figures['data_wait'])
        self._write('train', step, figures)

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
        value = tf.Summary.Value(tag=name, image=tf.Summary.Image(
            height=image.shape[0], width=image.shape[1], colorspace=3, encoded_image_string=encoded))
        self._try(self._write_event, step=step, summary=tf.Summary(value=[value]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._try(self._file.close)
        self._try(self._events.close)

    def _write(self, kind, step, figures):
        self._try(self._curves.writerow, dict({name: '%.6g' % value for name, value in figures.items()},
                                              kind=kind, step=step, epoch='%.4f' % (step / self._steps_per_epoch)))
        values = [tf.Summary.Value(tag='%s/%s' % (kind, name), simple_value=value) for name, value in figures.items()]
        self._try(self._write_event, step=step, summary=tf.Summary(value=values))

    def _try(self, write, *args, **kwargs):
        """Write; what fails, as on a full disk, is told once and does not end the run."""
        try:
            write(*args, **kwargs)
        except (OSError, UserError, tf.errors.OpError) as error:
            if not self._failed:
                logging.warning('cannot write in --logpath=%s: %s; the run goes on, its curves have a gap',
                                self.logpath, str(error).splitlines()[0])
            self._failed = True

    def _write_event(self, **fields):
        self._events.write(tf.Event(wall_time=time.time(), **fields).SerializeToString())
        self._events.flush()


def read_curves(path):
    """The rows of a curves.csv as dictionaries of strings; lines that a killed run or a bad disk cut are left out.

    Raises:
        UserError: the file cannot be read, or its first line does not name the columns kind and step.
    """
    try:
        with open(path, newline='', encoding='ascii', errors='replace') as file:
            head = file.readline(MAX_CURVE_LINE).split(',')
            lines = (line for line in file if len(line) < MAX_CURVE_LINE and '\0' not in line)
            rows = [row for row in csv.DictReader(lines, [name.strip() for name in head], quoting=csv.QUOTE_NONE)
                    if None not in row and None not in row.values()
                    and re.match(r'[0-9]{1,15}$', row.get('step', ''))]
    except (OSError, csv.Error) as error:
        raise UserError('cannot read %s: %s; move it elsewhere' % (path, getattr(error, 'strerror', None) or error))
    if not {'kind', 'step'} <= {name.strip() for name in head}:
        raise UserError('%s is not a curves.csv: its first line names no columns; move it elsewhere' % path)
    return rows


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


def note_start(modelpath, flags, skeleton, resumes):
    """Add the exact command, flags (a dict) and versions to run.json; without `resumes` the run is a new one.

    skeleton: what the network learns to find, which pose_eval.py and freezing read from there.
    """
    path = os.path.join(modelpath, RUN_FILE)
    earlier = read_run(modelpath).get('starts', []) if resumes else []
    start = {'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': flags, 'versions': versions()}
    run = {'flags': flags, 'starts': earlier + [start], 'skeleton': skeleton.to_json()}
    pose_cli.write_json(path, run, indent=1)


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
    """Raise UserError unless the run in modelpath can go on with these flags (a dict): model and input size stay."""
    started = read_run(modelpath).get('flags', {})
    if any(name not in started for name in LASTING_FLAGS):
        raise UserError('%s holds a checkpoint, but no run.json that tells its model and input size; choose another '
                        '--modelpath, or give the checkpoint with --checkpoint' % modelpath)
    for name in LASTING_FLAGS:
        if started[name] != flags[name]:
            raise UserError('%s holds a run with --%s=%s, which cannot go on with %s; choose another --modelpath'
                            % (modelpath, name.replace('_', '-'), started[name], flags[name]))
