"""How good the network is while it trains: losses and pictures of the validation images, and their AP."""
import contextlib
import logging

import numpy as np

import networks
import pose_draw
from annotations.coco import read_dataset
from annotations.splits import find_split
from batches.batch import Batch, batch_layout, encode_batch
from inference.metrics import evaluate, last_stage_loss
from networks.network_base import build_losses
from networks.tensorflow import tf
from pose_dataset import validation_samples
from pose_errors import Stopped, UserError, reason_of
from pose_files import usable_cores

from .run_log import EVALUATION, VALIDATION, comparison_row
from .towers import dense_maps

PICTURED_IMAGES = 4


class Validator:
    """The network in inference mode, on the variables of training, and one pass over the validation images.

    Args:
        model, device: name of the network and where it runs.
        dataset: a PoseDataset of the validation split.
        batchsize: images per step; the last batch may be smaller.
        averages: {name of a variable: what is to stand for it}, as from towers.Training.
    Attributes:
        network: the networks.Network.  input_size: its (width, height).
    """

    def __init__(self, model, device, dataset, batchsize, averages=None):
        self._dataset, self._batchsize = dataset, batchsize
        self.input_size = dataset.input_width, dataset.input_height
        layout = batch_layout(batchsize, dataset.input_width, dataset.input_height, dataset.stride, dataset.skeleton)

        def averaged(getter, name, *args, **kwargs):
            variable = getter(name, *args, **kwargs)
            return (averages or {}).get(variable.op.name, variable)

        with tf.device(device), tf.name_scope('validation'), \
                tf.variable_scope(tf.get_variable_scope(), reuse=True, custom_getter=averaged):
            self._batch = Batch(*(tf.placeholder(dtype, (None,) + shape[1:]) for _, dtype, shape in layout))
            image, heatmap, paf, mask = dense_maps(self._batch, dataset.skeleton)
            self.network = networks.get_network(model, image, is_training=False, skeleton=dataset.skeleton)
            self._losses = build_losses(self.network.stages, heatmap, paf, mask, batchsize=1.0)

    def predict_maps(self, session, images, stop):
        """uint8 images (B, H, W, 3) -> float32 maps (B, h, w, channels)."""
        stop.check()
        return session.run(self.network.output, {self._batch.image: images})

    def batches(self):
        """All validation images in order, as lists of dense image, heatmap, paf, mask and labelled parts."""
        rows = []
        for sample in validation_samples(self._dataset, usable_cores()):
            rows.append(sample[:5])
            if len(rows) == self._batchsize:
                yield [np.stack(field) for field in zip(*rows)]
                rows = []
        if rows:
            yield [np.stack(field) for field in zip(*rows)]

    def run(self, session, stop):
        """Losses over the validation images, per image, and pictures of the first ones.

        Returns:
            (metrics: dict of means, number of images, picture).
        Raises:
            Stopped: a signal came meanwhile.
        """
        heat = self.network.skeleton.heatmap_channels
        totals, images, rows = dict.fromkeys(self._losses, 0.0), 0, []
        for batch in self.batches():
            stop.check()
            losses, maps = session.run([self._losses, self.network.output],
                                       dict(zip(self._batch, encode_batch(*batch))))
            images += len(batch[0])
            totals = {name: totals[name] + float(losses[name]) for name in totals}
            for image, heatmap, paf, output in list(zip(*batch[:3], maps))[:PICTURED_IMAGES - len(rows)]:
                rows.append(comparison_row(image, heatmap, paf, output[..., :heat], output[..., heat:]))
        return {name: total / images for name, total in totals.items()}, images, pose_draw.contact_sheet(rows)


def validate(session, validator, tag, step, log, stop):
    """One validation: log line and pictures. Returns loss_ll, or None where a signal or an error ended it."""
    with only_reporting('validation', step):
        metrics, images, picture = validator.run(session, stop)
        log.validation(step, images, tag, metrics)
        log.picture(step, 'validation', picture)
        return metrics['loss_ll']


@contextlib.contextmanager
def only_reporting(what, step):
    """Around what only tells how training goes: an error there becomes a line in the log; a signal ends it quietly.

    A full disk is told as well, and ends the run at the next checkpoint if that finds no room either.
    """
    try:
        yield
    except Stopped:
        pass
    except Exception as error:  # odd images, labels and libraries fail in many ways; none is worth the run
        name = '' if isinstance(error, UserError) else type(error).__name__ + ': '
        logging.warning('%s at step %d left out: %s%s', what, step, name, reason_of(error)[:300])


def evaluate_ap(session, validator, flags, step, log, stop):
    """Log the COCO keypoint AP of the network as it is now, on the validation images, and return it; or as validate."""
    with only_reporting('AP evaluation', step):
        annotation_file, image_folder = find_split(flags.datapath, flags.valid_split, flags.imgpath)
        summary, _, _ = evaluate(
            lambda images: validator.predict_maps(session, images, stop), annotation_file, image_folder,
            input_size=validator.input_size, progress=False,
            dataset=read_dataset(annotation_file, flags.category, image_folder, validator.network.skeleton))
        log.evaluation(step, summary['AP'])
        return summary['AP']


def log_background_loss(validation, stop):
    """Log the loss of predicting an empty image, which a network must get below to have learned anything."""
    total, images = 0.0, 0
    skeleton = validation.skeleton
    background = np.eye(skeleton.map_channels)[skeleton.background]
    for sample in validation_samples(validation, usable_cores()):
        stop.check()
        mask = sample.mask * skeleton.labelled_channels(sample.labelled)
        total += last_stage_loss(background, sample.heatmap, sample.paf, mask)
        images += 1
    logging.info('predicting only background: validation(%d) loss_ll=%.6g', images, total / images)


def is_due(every, step, max_steps):
    """Whether something is due that happens every so many steps (0: never), and at the end."""
    return bool(every) and (step % every == 0 or step == max_steps)


class Checks:
    """Validation and AP evaluation between steps, when they are due, and the best checkpoint by the last of the two.

    Args:
        best: a BestCheckpoint.  log: a RunLog. Without a validator neither is used, and nothing is due.
        coordinator: is told when the run has to end.
    Attributes:
        exhausted: whether the last --patience of them, also in earlier starts of the run, found nothing better.
    """

    def __init__(self, flags, validator, best, log, max_steps, coordinator):
        self._flags, self._validator, self._best, self._log = flags, validator, best, log
        self._max_steps, self._coordinator = max_steps, coordinator
        judged = EVALUATION if flags.eval_every else VALIDATION
        self._worse = sum(step > best.step for step in log.checked[judged]) if validator and best.step else 0

    def _due(self, step):
        """Which of the two are due and were not done, as a start that was stopped meanwhile left them."""
        if self._validator is None or not step:
            return []
        intervals = {VALIDATION: self._flags.valid_every, EVALUATION: self._flags.eval_every}
        return [kind for kind, every in intervals.items()
                if is_due(every, step, self._max_steps) and step not in self._log.checked[kind]]

    @property
    def exhausted(self):
        return 0 < self._flags.patience <= self._worse

    def __call__(self, session, step):
        """Do what is due at a step, and end the run when --patience says so. Returns whether anything was due."""
        due = self._due(step)
        if due:  # in the plain session, whose runs are no training steps
            session.run_step_fn(lambda step_context: self._run(due, step_context.session, step))
        if self.exhausted:
            self._coordinator.stop()
        return bool(due)

    def _run(self, due, session, step):
        flags = self._flags
        if VALIDATION in due:
            loss = validate(session, self._validator, flags.tag or flags.model, step, self._log, self._coordinator)
            if not flags.eval_every:
                self._judge(session, step, loss)
        if EVALUATION in due:
            precision = evaluate_ap(session, self._validator, flags, step, self._log, self._coordinator)
            self._judge(session, step, precision)

    def _judge(self, session, step, value):
        if value is not None:
            with only_reporting('the best checkpoint', step):
                self._worse = 0 if self._best.update(session, step, value) else self._worse + 1
