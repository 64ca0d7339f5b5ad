"""What a run leaves behind for people: log lines, curves.csv, TensorBoard scalars and pictures.

TensorBoard shows two "runs", train and validation, whose curves of the same name share a chart. It sorts charts by
name: the first page has the AP, then the losses, the last stage's first as a share of what predicting only background
costs; then that cost, learning rate and speed. Pictures, flags and graph have pages of their own.
"""
import contextlib
import csv
import logging
import math
import os
import socket
import time

import cv2

import pose_draw
import pose_files
from networks.tensorflow import tf
from pose_errors import UserError, reason_of

from .checkpoint import quarantine
from .curves import CURVES_FILE, read_curves

LOSSES = ('loss', 'loss_ll', 'loss_ll_paf', 'loss_ll_heat')
CURVE_COLUMNS = (('kind', 'step', 'epoch', 'examples_per_sec', 'lr') + LOSSES
                 + ('loss_ll_background', 'queue', 'data_wait', 'AP'))
FAR_ABOVE, FAR_ABOVE_STEPS = 3.0, 200  # times the loss of predicting only background, for so many steps
TRAIN, VALIDATION, EVALUATION = 'train', 'validation', 'evaluation'
GROUPS = {'AP': 'AP', 'lr': 'schedule', 'examples_per_sec': 'speed', 'queue': 'speed', 'data_wait': 'speed',
          'loss_ll_background': 'reference'}
SHARE = 'loss/0_share_of_background'
EARLIER = 'earlier-'  # the curves of another run keep their name behind this


class LogLines:
    """Logs the line of each training interval, and writes no file."""

    def __init__(self, schedule):
        self._schedule = schedule

    def _epoch(self, step):
        return (step + self._schedule.offset) / self._schedule.steps_per_epoch

    def training(self, step, metrics, note=''):
        """Log the line of a training interval. metrics: CURVE_COLUMNS -> number, means over it.  note: for its end."""
        rate = metrics['lr']
        decimals = max(6, 2 - math.floor(math.log10(rate))) if rate > 0 else 6  # three digits of a small one, too
        logging.info('epoch=%.2f step=%d, %.4f examples/sec lr=%.*f, %s, q=%d, data_wait=%.0f%%%s',
                     self._epoch(step), step, metrics['examples_per_sec'],
                     decimals, rate, _losses_text(metrics), metrics['queue'], 100 * metrics['data_wait'], note)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class RunLog(LogLines):
    """Writes each logged figure to the log, and to curves.csv and TensorBoard's files in the folder logpath; raises
    UserError when nothing can be written there.

    TensorBoard's are not written by a tf.summary.FileWriter, whose thread ends in a traceback on a full disk.

    first_step: where this run starts: metrics of later steps, left by a run that was killed, are dropped; a new run
        keeps the whole file of an earlier one under another name.
    schedule: a config.Schedule, which gives the epoch of a step.
    checked: an attribute, {VALIDATION or EVALUATION: the steps at which earlier starts did that}.
    """

    def __init__(self, logpath, first_step, schedule):
        super().__init__(schedule)
        self.logpath, self._failed = logpath, False
        self._far_above_since, self._warned = None, False
        path, self._events = os.path.join(logpath, CURVES_FILE), {}
        name = 'events.out.tfevents.%d.%s.%d' % (time.time(), socket.gethostname(), os.getpid())
        try:
            for run in (TRAIN, VALIDATION):
                os.makedirs(os.path.join(logpath, run), exist_ok=True)
                self._events[run] = tf.io.TFRecordWriter(os.path.join(logpath, run, name))
                self._write_event(run, file_version='brain.Event:2')
                # TensorBoard drops what has this step or a later one; the start before ended with first_step.
                self._write_event(run, step=first_step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
            rows = _earlier_curves(path, is_new=not first_step)
            rows = [row for row in rows if int(row['step']) <= first_step]
            self.checked = {kind: [int(row['step']) for row in rows if row['kind'] == kind]
                            for kind in (VALIDATION, EVALUATION)}
            with open(path + '.tmp', 'w', newline='') as file:
                writer = csv.DictWriter(file, CURVE_COLUMNS, extrasaction='ignore')
                writer.writeheader()
                writer.writerows(rows)
            os.replace(path + '.tmp', path)
            self._file = open(path, 'a', newline='', buffering=1)
        except (OSError, tf.errors.OpError) as error:
            raise UserError('cannot write in --logpath=%s: %s; mend that, or choose another folder'
                            % (logpath, reason_of(error)))
        self._curves = csv.DictWriter(self._file, CURVE_COLUMNS)

    def start(self, step, flags, output):
        """Show the flags, a dictionary, as a table under run/flags, and the graph of the network's output."""
        rows = ['| flag | value |', '|---|---|']
        rows += ['| --%s | %s |' % (name.replace('_', '-'), '' if value is None else str(value).replace('|', '\\|'))
                 for name, value in sorted(flags.items())]
        text = tf.make_tensor_proto('\n'.join(rows).encode())
        metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
        self._summarize(TRAIN, step, tf.Summary.Value(tag='run/flags', tensor=text, metadata=metadata))
        network = tf.graph_util.extract_sub_graph(output.graph.as_graph_def(), [output.op.name])
        self._try(self._write_event, TRAIN, graph_def=network.SerializeToString())

    def training(self, step, metrics, note=''):
        super().training(step, metrics, note)
        self._write(TRAIN, step, metrics)
        ratio = metrics['loss_ll'] / max(metrics['loss_ll_background'], 1e-9)
        if ratio <= FAR_ABOVE:
            self._far_above_since, self._warned = None, False
        elif self._far_above_since is None:
            self._far_above_since = step
        elif step - self._far_above_since >= FAR_ABOVE_STEPS and not self._warned:
            self._warned = True
            logging.warning('for %d steps loss_ll has been far above that of predicting only background (now %.3g '
                            'times): a lower --lr or more --warmup-steps may help', step - self._far_above_since, ratio)

    def validation(self, step, images, tag, metrics):
        """Log the line of a validation over `images` images."""
        logging.info('validation(%d) %s %s', images, tag, _losses_text(metrics))
        self._write(VALIDATION, step, metrics)

    def evaluation(self, step, average_precision):
        """Log a COCO keypoint AP."""
        logging.info('evaluation step=%d AP=%.4f', step, average_precision)
        self._write(EVALUATION, step, {'AP': average_precision})

    def picture(self, step, name, image):
        """Write a uint8 (H, W, 3) BGR picture to TensorBoard, and as the latest NAME.png to the log folder."""
        encoded = cv2.imencode('.png', image)[1].tobytes()
        self._try(pose_files.write_file, os.path.join(self.logpath, name + '.png'), encoded)
        png = tf.Summary.Image(height=image.shape[0], width=image.shape[1], colorspace=3, encoded_image_string=encoded)
        self._summarize(VALIDATION, step, tf.Summary.Value(tag='pictures/' + name, image=png))

    def __exit__(self, *_):
        for file in (self._file, *self._events.values()):
            self._try(file.close)

    def _write(self, kind, step, metrics):
        self._try(self._curves.writerow, dict({name: '%.6g' % value for name, value in metrics.items()},
                                              kind=kind, step=step, epoch='%.4f' % self._epoch(step)))
        values = {tag(name): value for name, value in metrics.items()}
        if metrics.get('loss_ll_background'):
            values[SHARE] = metrics['loss_ll'] / metrics['loss_ll_background']
        self._summarize(TRAIN if kind == TRAIN else VALIDATION, step,
                        *(tf.Summary.Value(tag=name, simple_value=value) for name, value in values.items()))

    def _summarize(self, run, step, *values):
        self._try(self._write_event, run, step=step, summary=tf.Summary(value=values))

    def _write_event(self, run, **fields):
        self._events[run].write(tf.Event(wall_time=time.time(), **fields).SerializeToString())
        self._events[run].flush()

    def _try(self, write, *args, **kwargs):
        """Write; what fails, as on a full disk, is told once and does not end the run."""
        try:
            write(*args, **kwargs)
        except (OSError, UserError, tf.errors.OpError) as error:
            if not self._failed:
                logging.warning('cannot write in --logpath=%s: %s; the run goes on, its curves have a gap',
                                self.logpath, reason_of(error))
            self._failed = True


def _earlier_curves(path, is_new):
    """The rows that earlier starts left; a file that cannot be read is set aside, and that of another run."""
    rows = []
    try:
        for row in read_curves(path) if os.path.lexists(path) else ():
            with contextlib.suppress(ValueError):  # a row with something else than numbers is left out
                for name in set(row) - {'kind'}:
                    float(row[name] or 0)
                rows.append(row)
    except UserError as error:
        logging.warning('%s: kept as %s; the curves start anew', error, quarantine(path))
    if is_new and rows:
        logging.info('%s is of an earlier run: kept as %s', path, quarantine(path, EARLIER))
    return rows


def _losses_text(metrics):
    return ', '.join('%s=%.6g' % (name, metrics[name]) for name in LOSSES)


class Interval:
    """Means of the metrics of the `steps` since the last log line. waited: a function: the seconds that the trainer has
    waited for data in all."""

    def __init__(self, waited):
        self._waited = waited
        self.restart()

    def restart(self):
        self._start, self._start_waited, self._sums, self.steps = time.monotonic(), self._waited(), {}, 0

    def add(self, metrics):
        self.steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def waited(self):
        """Seconds of the interval in which the trainer waited for data."""
        return self._waited() - self._start_waited

    def means(self, batchsize):
        """The mean of each figure, with examples_per_sec and data_wait, the share of the time spent waiting."""
        seconds = time.monotonic() - self._start
        return dict({name: total / self.steps for name, total in self._sums.items()},
                    examples_per_sec=self.steps * batchsize / seconds,
                    data_wait=self.waited() / seconds)


def comparison_row(image, heatmap, paf, predicted_heatmap, predicted_paf):
    """One image's truth beside the prediction: true and predicted heatmap, true and predicted PAF."""
    return [pose_draw.caption(overlay(image, maps), '%s: %s' % (kind, whose))
            for overlay, kind, pair in ((pose_draw.overlay_heatmap, 'heatmap', (heatmap, predicted_heatmap)),
                                        (pose_draw.overlay_paf, 'PAF', (paf, predicted_paf)))
            for maps, whose in zip(pair, ('truth', 'predicted'))]


def tag(name):
    """The tag of a figure of curves.csv: its group and its name."""
    return '%s/%s' % (GROUPS.get(name, 'loss'), name)
