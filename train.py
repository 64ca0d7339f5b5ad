"""Train a pose network on COCO keypoints.

    python3 train.py --model=cmu --datapath=DIR --batchsize=64 --lr=0.001 --modelpath=DIR

Flags -> data -> towers -> training loop. The same command, run again, resumes from the last checkpoint in --modelpath.
"""
import argparse
import collections
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time

import pose_cli  # before TensorFlow, to quieten its import
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
import tqdm.contrib.logging

import networks
import networks.pretrained
import pose_annotations
import pose_draw
import pose_eval
import pose_loader
import pose_samples
from remote import trainer
from training.checkpoint import BestCheckpoint, CheckpointHook, create_saver, latest_checkpoint
from pose_cli import UserError, non_negative_int, positive_int
from pose_dataset import PoseDataFlow
from pose_samples import PoseDataset, check_input_size
from training.feed import FeedHook
from training.runlog import Interval, RunLog, comparison_row, versions, write_json

EPOCHS_PER_LR = 5  # of --lr=a,b,c
PICTURED_IMAGES = 4

# step: steps done, with the one that is running. figures: what is logged. finite: NaN or infinite when the loss or a
# gradient is.
Training = collections.namedtuple('Training', 'network step rate figures finite')


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Train a pose network on COCO keypoints.')
    add = parser.add_argument
    add('--model', default='mobilenet_thin', help='one of ' + ', '.join(networks.NAMES))
    add('--datapath', default=os.environ.get('COCO_DIR'), help='COCO root or its annotations folder ($COCO_DIR)')
    add('--imgpath', help='where the image folders are, if elsewhere')
    add('--batchsize', type=positive_int, default=64, help='samples per step, over all GPUs')
    add('--lr', type=learning_rates, default='0.001', help='one value: cosine decay; a,b,c: a step every 5 epochs')
    add('--gpus', type=positive_int, default=1, help='number of towers, one per GPU')
    add('--max-epoch', type=positive_int, default=30)
    add('--max-steps', type=positive_int, help='end after this many steps, whatever --max-epoch says')
    add('--modelpath', default='models/train', help='folder of the checkpoints of this run')
    add('--logpath', help='folder for TensorBoard and curves.csv (default: logs in --modelpath)')
    add('--checkpoint', help='start a new run from these weights (a checkpoint or its folder)')
    add('--pretrained', help="weights to start from, or none (default: the model's own file)")
    add('--tag', default='', help='a name for this run in the log')
    add('--remote-data', help='listen for data workers here, tcp://0.0.0.0:PORT')
    add('--curve-keys', help='with --remote-data: folder of the keys made by scripts/make_curve_keys.py')
    add('--input-width', type=positive_int, default=368)
    add('--input-height', type=positive_int, default=368)
    add('--log-every', type=positive_int, default=20, help='steps between log lines')
    add('--valid-every', type=non_negative_int, default=2000, help='steps between validations; 0: no validation')
    add('--eval-every', type=non_negative_int, default=0, help='steps between COCO AP evaluations; 0: none')
    add('--save-every', type=positive_int, default=1000, help='steps between checkpoints')
    add('--keep', type=positive_int, default=5, help='checkpoints to keep, besides the best')
    add('--workers', type=positive_int, default=os.cpu_count(), help='loader processes')
    add('--seed', type=non_negative_int, default=0)
    return parser.parse_args()


def learning_rates(text):
    """'0.001' -> [0.001], '0.001,0.0001' -> [0.001, 0.0001]."""
    try:
        rates = [float(part) for part in text.split(',')]
    except ValueError:
        rates = [np.nan]
    if not all(0 < rate < np.inf for rate in rates):
        raise argparse.ArgumentTypeError('%r is not a learning rate like 0.001, or several like 0.001,0.0001' % text)
    return rates


def check_flags(flags):
    """Refuse what cannot work, before any data is read. Raises UserError."""
    check_input_size(flags.input_width, flags.input_height, networks.stride(flags.model))
    if flags.batchsize % flags.gpus:
        raise UserError('--batchsize=%d cannot be split over --gpus=%d; take a multiple'
                        % (flags.batchsize, flags.gpus))
    if not flags.datapath and not flags.remote_data:
        raise UserError('no training data: give --datapath=DIR (or $COCO_DIR), or --remote-data=tcp://0.0.0.0:PORT')
    if flags.eval_every and not (flags.datapath and flags.valid_every):
        raise UserError('--eval-every needs validation images: give --datapath=DIR, and --valid-every above 0')
    if flags.curve_keys and not flags.remote_data:
        raise UserError('--curve-keys is for data workers: give --remote-data too')
    if flags.checkpoint and flags.pretrained not in (None, 'none'):
        raise UserError('--checkpoint and --pretrained both name weights to start from: give one of them')
    if flags.datapath:
        if not flags.remote_data:
            pose_annotations.find_split(flags.datapath, 'train2017', flags.imgpath)
        if flags.valid_every:
            pose_annotations.find_split(flags.datapath, 'val2017', flags.imgpath)
    if latest_checkpoint(flags.modelpath):
        check_resume(flags)
    elif flags.checkpoint:
        networks.pretrained.read_weights(flags.checkpoint)
    else:
        networks.pretrained.resolve(flags.model, flags.pretrained)
    pose_cli.make_folder(flags.modelpath)
    pose_cli.make_folder(flags.logpath)


def check_resume(flags):
    """A run resumes with the model and input size it was started with."""
    path = os.path.join(flags.modelpath, 'run.json')
    try:
        with open(path) as file:
            started = json.load(file)['flags']
        differing = [name for name in ('model', 'input_width', 'input_height') if started[name] != getattr(flags, name)]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError('%s holds a checkpoint, but no run.json that tells its model and input size; choose another '
                        '--modelpath, or give the checkpoint with --checkpoint' % flags.modelpath)
    for name in differing:
        raise UserError('%s holds a run with --%s=%s, which cannot go on with %s; choose another --modelpath'
                        % (flags.modelpath, name.replace('_', '-'), started[name], getattr(flags, name)))


def tower_devices(towers, gpus):
    """One device name per tower, and the session's configuration. gpus: how many TensorFlow sees."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if gpus:
        if towers > gpus:
            raise UserError('--gpus=%d, but TensorFlow sees only %d; lower --gpus or check nvidia-smi' % (towers, gpus))
        return ['/gpu:%d' % k for k in range(towers)], config
    logging.warning('TensorFlow sees no GPU: %s', 'training on the CPU' if towers == 1 else
                    'the %d towers run on CPU devices of this machine' % towers)
    config.device_count['CPU'] = towers
    return ['/cpu:%d' % k for k in range(towers)], config


def build_losses(stages, heatmap, paf, mask, batchsize):
    """The losses of all stages: l2_loss(mask * (prediction - label)) / batchsize (Cao et al., equation 5).

    Returns:
        dict of scalars: loss (all stages and branches), loss_ll (last stage), loss_ll_paf, loss_ll_heat, and
        loss_ll_background, the loss_ll of predicting an empty image.
    """
    def l2(prediction, label):
        return tf.nn.l2_loss(mask * (prediction - label)) / batchsize

    with tf.name_scope('losses'):
        per_stage = [(l2(stage_paf, paf), l2(stage_heat, heatmap)) for stage_paf, stage_heat in stages]
        loss_ll_paf, loss_ll_heat = per_stage[-1]
        background = tf.one_hot(heatmap.shape[-1] - 1, heatmap.shape[-1])
        return {'loss': tf.add_n([loss for pair in per_stage for loss in pair]),
                'loss_ll': loss_ll_paf + loss_ll_heat, 'loss_ll_paf': loss_ll_paf, 'loss_ll_heat': loss_ll_heat,
                'loss_ll_background': l2(0.0, paf) + l2(background, heatmap)}


def variables_on(variable_device, other_device):
    """A device function: variables on one device, all other operations of a tower on its own."""
    def place(op):
        return variable_device if op.type in ('VariableV2', 'Variable', 'VarHandleOp') else other_device
    return place


def build_towers(model, batch, devices, optimizer):
    """One copy of the network per device, each with its slice of the batch, its own losses and gradients.

    Variables are shared; with several towers they live on the CPU. The slices are cut on the CPU, so that each one
    travels once to its device, the image as uint8.

    Returns:
        (network of the first tower, losses averaged over towers, averaged gradients and their variables, update ops of
        the first tower's batch norm).
    """
    batchsize = batch[0].shape.as_list()[0] // len(devices)
    variable_device = devices[0] if len(devices) == 1 else '/cpu:0'
    with tf.device('/cpu:0'):
        slices = list(zip(*(tf.split(field, len(devices)) for field in batch)))
    towers, tower_gradients, updates = [], [], None
    for k, (device, fields) in enumerate(zip(devices, slices)):
        with tf.device(variables_on(variable_device, device)), tf.name_scope('tower_%d' % k), \
                tf.variable_scope(tf.get_variable_scope(), reuse=k > 0):
            image, heatmap, paf, mask = (tf.identity(field) for field in fields)
            network = networks.get_network(model, image, is_training=True)
            losses = build_losses(network.stages, heatmap, paf, mask, batchsize)
            tower_gradients.append(optimizer.compute_gradients(losses['loss']))
            updates = updates or tf.get_collection(tf.GraphKeys.UPDATE_OPS)
            towers.append((network, losses))
    with tf.device(variable_device):
        losses = {name: tf.add_n([losses[name] for _, losses in towers]) / len(towers) for name in towers[0][1]}
        return towers[0][0], losses, average_gradients(tower_gradients), updates


def average_gradients(tower_gradients):
    """[[(gradient, variable)] per tower] -> [(mean gradient, variable)]."""
    if len(tower_gradients) == 1:
        return tower_gradients[0]
    return [(tf.add_n([gradient for gradient, _ in same]) / len(same), same[0][1]) for same in zip(*tower_gradients)]


def learning_rate_schedule(rates, step, steps_per_epoch, max_steps):
    """One rate: cosine decay to 0 over max_steps; several: the next one every EPOCHS_PER_LR epochs."""
    if len(rates) == 1:
        return tf.train.cosine_decay(rates[0], step, max_steps)
    boundaries = [EPOCHS_PER_LR * steps_per_epoch * k for k in range(1, len(rates))]
    return tf.train.piecewise_constant(step, boundaries, rates)


def build_train_op(optimizer, gradients, updates, global_step):
    """Apply the gradients, then the batch norm updates. The returned tensor is the step after that."""
    with tf.control_dependencies(updates):
        train_op = optimizer.apply_gradients(gradients, global_step)
    with tf.control_dependencies([train_op]):
        return tf.identity(global_step)


def build_training(flags, batch, devices, steps_per_epoch, max_steps):
    """The whole graph of one training step, see Training."""
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(flags.lr, global_step, steps_per_epoch, max_steps)
    optimizer = tf.train.AdamOptimizer(rate, epsilon=1e-8)
    network, losses, gradients, updates = build_towers(flags.model, batch, devices, optimizer)
    finite = losses['loss'] + tf.global_norm([gradient for gradient, _ in gradients])
    step = build_train_op(optimizer, gradients, updates, global_step)
    return Training(network, step, rate, dict(losses, lr=rate), finite)


class Validator:
    """The network in inference mode, on the variables of training, and one pass over the validation images.

    Args:
        model, device: name of the network and where it runs.
        dataset: a PoseDataset of the validation split.
        batchsize: images per step; the last batch may be smaller.
    """

    def __init__(self, model, device, dataset, batchsize):
        self._dataset, self._batchsize = dataset, batchsize
        shapes = [shape for _, _, shape in pose_samples.batch_layout(
            batchsize, dataset.input_width, dataset.input_height, dataset.stride)]
        with tf.device(device), tf.name_scope('validation'), tf.variable_scope(tf.get_variable_scope(), reuse=True):
            self._fields = [tf.placeholder(dtype, (None,) + shape[1:])
                            for dtype, shape in zip((tf.uint8,) + (tf.float32,) * 3, shapes)]
            image, heatmap, paf, mask = self._fields
            self.network = networks.get_network(model, image, is_training=False)
            self._losses = build_losses(self.network.stages, heatmap, paf, mask, batchsize=1.0)

    def predict_maps(self, session, images, is_stopping):
        """uint8 images (B, H, W, 3) -> float32 maps (B, h, w, 57)."""
        is_stopping.check()
        return session.run(self.network.output, {self._fields[0]: images})

    def batches(self):
        """All validation images in order, as lists of four arrays."""
        rows = []
        dataflow = PoseDataFlow(self._dataset, is_train=False)
        dataflow.reset_state()
        for sample in dataflow:
            rows.append(sample)
            if len(rows) == self._batchsize:
                yield [np.stack(field) for field in zip(*rows)]
                rows = []
        if rows:
            yield [np.stack(field) for field in zip(*rows)]

    def run(self, session, is_stopping):
        """Losses over the validation images, per image, and pictures of the first ones.

        Returns:
            (figures: dict of means, number of images, picture).
        Raises:
            Stopped: a signal came meanwhile.
        """
        totals, images, rows = dict.fromkeys(self._losses, 0.0), 0, []
        for batch in self.batches():
            is_stopping.check()
            losses, maps = session.run([self._losses, self.network.output], dict(zip(self._fields, batch)))
            images += len(batch[0])
            totals = {name: totals[name] + float(losses[name]) for name in totals}
            for image, heatmap, paf, output in list(zip(*batch[:3], maps))[:PICTURED_IMAGES - len(rows)]:
                rows.append(comparison_row(image, heatmap, paf, output[..., :19], output[..., 19:]))
        return {name: total / images for name, total in totals.items()}, images, pose_draw.contact_sheet(rows)


def initial_weights(flags, network):
    """The weights to start from, as a function for tf.train.Scaffold(init_fn), or None for the initial values."""
    latest = latest_checkpoint(flags.modelpath)
    if latest:
        logging.info('resuming from %s', latest)
        return None
    path = flags.checkpoint or networks.pretrained.resolve(flags.model, flags.pretrained)
    if path is None:
        logging.info('--pretrained=none: training starts from scratch')
        return None
    logging.info('Restore pretrained weights... %s', path)
    match = networks.pretrained.fit(network, path, '--checkpoint' if flags.checkpoint else '--pretrained')
    if flags.checkpoint and match.new:
        raise UserError('--checkpoint=%s lacks %d variables of %s (%s, ...); give a checkpoint of this model'
                        % (path, len(match.new), flags.model, match.new[0]))
    logging.info(str(match))
    return match.init_fn


class Stopped(Exception):
    """Ends the run, or what goes on between two steps, because of a signal."""


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step; one more, later, kills as usual."""

    def __init__(self):
        self._received = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def __call__(self):
        """Whether to stop."""
        return self._received is not None

    def check(self):
        """Raise Stopped if a signal came."""
        if self():
            raise Stopped('stopped by a signal before the first step')

    def _receive(self, number, _):
        if self._received is None:
            self._received = time.monotonic()
        elif time.monotonic() - self._received > 1:  # `timeout` and others signal both the process and its group
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def train(flags, source, samples, validation, is_stopping):
    """Build the graph and run the training loop.

    Args:
        source: a batch source (see training/feed.py).  samples: number of training samples, for the epochs.
        validation: a PoseDataset, or None.  is_stopping: a StopSignal; training saves and ends when it says so.
    Raises:
        Stopped: after it has saved. Data workers then wait for the run to go on; only its end ends them.
    """
    steps_per_epoch = max(1, samples // flags.batchsize)
    max_steps = flags.max_steps or flags.max_epoch * steps_per_epoch
    devices, config = tower_devices(flags.gpus, len(tf.config.experimental.list_physical_devices('GPU')))
    tf.set_random_seed(flags.seed)
    feed = open_feed(flags, source)
    training = build_training(flags, feed.batch, devices, steps_per_epoch, max_steps)
    validator = validation and Validator(flags.model, devices[0], validation, max(1, flags.batchsize // flags.gpus))
    saver = create_saver(flags.keep)
    best = BestCheckpoint(saver, flags.modelpath)
    scaffold = tf.train.Scaffold(saver=saver, init_fn=initial_weights(flags, training.network))
    checkpoints = CheckpointHook(saver, flags.modelpath, flags.save_every, training)
    is_stopping.check()

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(flags.modelpath, scaffold, [feed, checkpoints], config))
        step = checkpoints.first_step
        log = stack.enter_context(RunLog(flags.logpath, step, steps_per_epoch))
        logging.info('%s: %d samples, %d steps per epoch, step %d of %d', flags.model, samples, steps_per_epoch, step,
                     max_steps)
        progress = stack.enter_context(tqdm.tqdm(total=max_steps, initial=step, unit='step', disable=None))
        stack.enter_context(tqdm.contrib.logging.logging_redirect_tqdm())
        interval = Interval(waited=lambda: feed.wait_seconds)

        def is_due(every):
            return every and (step % every == 0 or step == max_steps)

        while step < max_steps and not is_stopping() and feed.wait_for_batch(is_stopping):
            step, figures = session.run([training.step, training.figures])
            progress.update()
            interval.add(figures)
            if is_due(flags.log_every):
                log.training(step, dict(interval.means(flags.batchsize), lr=figures['lr'], queue=feed.ready()))
                for line in source.report():
                    logging.info(line)
                interval.restart()
            if validator and is_due(flags.valid_every):
                without_hooks(session, validate, flags, validator, step, log, best, is_stopping)
                interval.restart()
            if validator and is_due(flags.eval_every):
                without_hooks(session, evaluate, flags, validator, step, log, is_stopping)
                interval.restart()
    feed.check()
    if step < max_steps:
        raise Stopped('stopped by a signal at step %d; saved in %s; the same command resumes there'
                      % (step, flags.modelpath))
    logging.info('done: step %d, checkpoints in %s, TensorBoard log and %s in %s; a higher --max-steps or --max-epoch '
                 'trains on', step, flags.modelpath, 'curves.csv', flags.logpath)


def open_session(modelpath, scaffold, hooks, config):
    """A session that resumes from the last checkpoint or initializes; all that is written is written by the hooks."""
    return tf.train.MonitoredTrainingSession(
        checkpoint_dir=modelpath, scaffold=scaffold, hooks=hooks, config=config, save_checkpoint_steps=None,
        save_checkpoint_secs=None, save_summaries_steps=None, save_summaries_secs=None, log_step_count_steps=None)


def without_hooks(session, function, *args):
    """Call function(session, *args) with the plain session, whose runs are no training steps."""
    return session.run_step_fn(lambda step_context: function(step_context.session, *args))


def open_feed(flags, source):
    """The queue that training takes its batches from."""
    layout = pose_samples.batch_layout(flags.batchsize, flags.input_width, flags.input_height,
                                      networks.stride(flags.model))
    hint = 'the disk of --datapath or the loader processes are slow'
    if flags.remote_data:
        hint = 'start data workers: python3 pose_dataworker.py --master=%s' % flags.remote_data
    return FeedHook(source, layout, hint)


def validate(session, flags, validator, step, log, best, is_stopping):
    """One validation: log line, pictures, and the best checkpoint."""
    with contextlib.suppress(Stopped):
        figures, images, picture = validator.run(session, is_stopping)
        log.validation(step, images, flags.tag or flags.model, figures)
        log.picture(step, 'validation', picture)
        best.update(session, step, figures['loss_ll'])


def evaluate(session, flags, validator, step, log, is_stopping):
    """Log the COCO keypoint AP of the network as it is now, on the validation images."""
    with contextlib.suppress(Stopped):
        summary, _, _ = pose_eval.evaluate(
            lambda images, joints: validator.predict_maps(session, images, is_stopping),
            *pose_annotations.find_split(flags.datapath, 'val2017', flags.imgpath),
            input_size=(flags.input_width, flags.input_height), progress=False)
        log.evaluation(step, summary['AP'])


def log_background_loss(validation, is_stopping):
    """Log the loss of predicting an empty image, which a network must get below to have learned anything."""
    total, images = 0.0, 0
    dataflow = PoseDataFlow(validation, is_train=False)
    dataflow.reset_state()
    background = np.eye(19)[18]
    for _, heatmap, paf, mask in dataflow:
        is_stopping.check()
        total += ((mask * paf) ** 2).sum() / 2 + ((mask * (heatmap - background)) ** 2).sum() / 2
        images += 1
    logging.info('predicting only background: validation(%d) loss_ll=%.6g', images, total / images)


def start_run(flags):
    """Note the exact command, flags and versions in run.json, one entry per start."""
    path = os.path.join(flags.modelpath, 'run.json')
    earlier = []
    if os.path.exists(path) and tf.train.latest_checkpoint(flags.modelpath):
        with open(path) as file:
            earlier = json.load(file).get('starts', [])
    start = {'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': vars(flags), 'versions': versions()}
    write_json(path, {'flags': vars(flags), 'starts': earlier + [start]})


def open_source(flags, stride):
    """The batch source: loader processes on this machine, or data workers on others."""
    if flags.remote_data:
        settings = {'batchsize': flags.batchsize, 'input_width': flags.input_width,
                    'input_height': flags.input_height, 'stride': stride, 'seed': flags.seed}
        return trainer.BatchReceiver(flags.remote_data, settings, flags.curve_keys)
    dataset = PoseDataset(flags.datapath, 'train2017', flags.input_width, flags.input_height, stride, flags.imgpath)
    return pose_loader.BatchLoader(dataset, flags.batchsize, flags.workers, flags.seed)


def count_samples(source, is_stopping):
    """The number of training samples; of data workers the first one to join knows it."""
    if source.samples is None:
        logging.info('waiting for the first data worker')
    while source.samples is None:
        is_stopping.check()
        source.wait_for_worker(timeout=0.5)
    return source.samples


def main():
    flags = parse_flags()
    flags.logpath = flags.logpath or os.path.join(flags.modelpath, 'logs')
    pose_cli.log_to_stderr()
    is_stopping = StopSignal()
    check_flags(flags)
    stride = networks.stride(flags.model)
    validation = None
    if flags.datapath and flags.valid_every:
        validation = PoseDataset(flags.datapath, 'val2017', flags.input_width, flags.input_height, stride,
                                 flags.imgpath)
    else:
        logging.info('validation is off: it needs --datapath=DIR, and --valid-every above 0')
    try:
        with open_source(flags, stride) as source, tf.Graph().as_default():
            samples = count_samples(source, is_stopping)
            if validation:
                log_background_loss(validation, is_stopping)
            start_run(flags)
            train(flags, source, samples, validation, is_stopping)
    except Stopped as stopped:
        logging.info(str(stopped))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        if 'No space left' not in str(error):
            raise
        raise UserError('the disk of %s is full; free some space and run the same command again: it resumes from %s'
                        % (flags.modelpath, tf.train.latest_checkpoint(flags.modelpath)))


if __name__ == '__main__':
    pose_cli.run(main)
