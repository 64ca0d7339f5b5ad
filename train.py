"""Train a pose network on COCO keypoints.

    python3 train.py --model=cmu --datapath=DIR --batchsize=64 --lr=0.001 --modelpath=DIR

Flags -> data -> towers -> training loop. The same command, run again, resumes from the last checkpoint in --modelpath.
"""
import contextlib
import json
import logging
import os
import shlex
import signal
import sys

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
import pose_remote
from pose_cli import UserError, non_negative_int, positive_int
from pose_dataset import PoseDataFlow, PoseDataset, check_input_size
from pose_feed import FeedHook
from pose_runlog import LOSSES, Interval, RunLog, comparison_row, versions, write_json

EPOCHS_PER_LR = 5  # of --lr=a,b,c
PICTURED_IMAGES = 4
NAN_EXIT_CODE = 3


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
    rates = [float(part) for part in text.split(',')]
    if not all(0 < rate < np.inf for rate in rates):
        raise ValueError(text)
    return rates


def check_flags(flags):
    """Refuse what cannot work, before any data is read. Raises UserError."""
    check_input_size(flags.input_width, flags.input_height, networks.stride(flags.model))
    if flags.batchsize % flags.gpus:
        raise UserError('--batchsize=%d cannot be split over --gpus=%d; take a multiple' % (flags.batchsize, flags.gpus))
    if not flags.datapath and not flags.remote_data:
        raise UserError('no training data: give --datapath=DIR (or $COCO_DIR), or --remote-data=tcp://0.0.0.0:PORT')
    if flags.eval_every and not (flags.datapath and flags.valid_every):
        raise UserError('--eval-every needs validation images: give --datapath=DIR, and --valid-every above 0')
    if flags.curve_keys and not flags.remote_data:
        raise UserError('--curve-keys is for data workers: give --remote-data too')
    if flags.datapath:
        if not flags.remote_data:
            pose_annotations.find_split(flags.datapath, 'train2017', flags.imgpath)
        if flags.valid_every:
            pose_annotations.find_split(flags.datapath, 'val2017', flags.imgpath)
    pose_cli.make_folder(flags.modelpath)
    pose_cli.make_folder(flags.logpath)
    if tf.train.latest_checkpoint(flags.modelpath):
        check_resume(flags)
    else:
        networks.pretrained.resolve(flags.model, flags.checkpoint or flags.pretrained)


def check_resume(flags):
    """A run resumes with the model and input size it was started with."""
    path = os.path.join(flags.modelpath, 'run.json')
    if not os.path.exists(path):
        raise UserError('%s holds a checkpoint of another program (no run.json); choose another --modelpath, or give it '
                        'with --checkpoint' % flags.modelpath)
    with open(path) as file:
        started = json.load(file)['flags']
    for name in ('model', 'input_width', 'input_height'):
        if started[name] != getattr(flags, name):
            raise UserError('%s holds a run with --%s=%s, which cannot go on with %s; choose another --modelpath'
                            % (flags.modelpath, name.replace('_', '-'), started[name], getattr(flags, name)))


def tower_devices(towers):
    """One device name per tower, and the session's configuration."""
    gpus = tf.config.experimental.list_physical_devices('GPU')
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if gpus:
        if towers > len(gpus):
            raise UserError('--gpus=%d, but TensorFlow sees only %d; lower --gpus or check nvidia-smi'
                            % (towers, len(gpus)))
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
    """Apply the gradients, then the batch norm updates; also a tensor that is NaN when a gradient is not finite."""
    with tf.control_dependencies(updates):
        train_op = optimizer.apply_gradients(gradients, global_step)
    return train_op, 0.0 * tf.global_norm([gradient for gradient, _ in gradients])


class Validator:
    """The network in inference mode, on the variables of training, and one pass over the validation images.

    Args:
        model, device: name of the network and where it runs.
        dataset: a PoseDataset of the validation split.
        batchsize: images per step; the last batch may be smaller.
    """

    def __init__(self, model, device, dataset, batchsize):
        self._dataset, self._batchsize = dataset, batchsize
        shapes = [shape for _, _, shape in pose_loader.batch_layout(
            batchsize, dataset.input_width, dataset.input_height, dataset.stride)]
        with tf.device(device), tf.name_scope('validation'), tf.variable_scope(tf.get_variable_scope(), reuse=True):
            self._fields = [tf.placeholder(dtype, (None,) + shape[1:])
                            for dtype, shape in zip((tf.uint8,) + (tf.float32,) * 3, shapes)]
            image, heatmap, paf, mask = self._fields
            self.network = networks.get_network(model, image, is_training=False)
            self._losses = build_losses(self.network.stages, heatmap, paf, mask, batchsize=1.0)

    def predict_maps(self, session, images):
        """uint8 images (B, H, W, 3) -> float32 maps (B, h, w, 57)."""
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
            (figures: dict of means, number of images, picture), or None when is_stopping() turned True meanwhile.
        """
        totals, images, rows = dict.fromkeys(self._losses, 0.0), 0, []
        for batch in self.batches():
            if is_stopping():
                return None
            losses, maps = session.run([self._losses, self.network.output], dict(zip(self._fields, batch)))
            images += len(batch[0])
            totals = {name: totals[name] + losses[name] for name in totals}
            for image, heatmap, paf, output in list(zip(*batch[:3], maps))[:PICTURED_IMAGES - len(rows)]:
                rows.append(comparison_row(image, heatmap, paf, output[..., :19], output[..., 19:]))
        return {name: total / images for name, total in totals.items()}, images, pose_draw.contact_sheet(rows)


class BestCheckpoint:
    """Keeps the checkpoint with the lowest validation loss_ll, in a folder `best` of its own."""

    def __init__(self, modelpath):
        self._folder = os.path.join(modelpath, 'best')
        self._saver = tf.train.Saver(max_to_keep=1)
        self._record = os.path.join(self._folder, 'best.json')
        self.loss_ll = np.inf
        if os.path.exists(self._record):
            with open(self._record) as file:
                self.loss_ll = json.load(file)['loss_ll']

    def update(self, session, step, loss_ll):
        if loss_ll < self.loss_ll:
            self.loss_ll = loss_ll
            os.makedirs(self._folder, exist_ok=True)
            self._saver.save(session, os.path.join(self._folder, 'model'), step, write_meta_graph=False)
            write_json(self._record, {'step': int(step), 'loss_ll': float(loss_ll)})
            logging.info('best validation so far: loss_ll=%.6g at step %d, kept in %s', loss_ll, step, self._folder)


class SaveListener(tf.train.CheckpointSaverListener):
    """Refuses to save weights that are not finite, so that the last checkpoint is always a good one; logs the others."""

    def __init__(self):
        self._sum = tf.add_n([0.0 * tf.reduce_sum(variable) for variable in tf.trainable_variables()])

    def before_save(self, session, global_step_value):
        if not np.isfinite(session.run(self._sum)):
            raise tf.train.NanLossDuringTrainingError

    def after_save(self, session, global_step_value):
        logging.info('saved the checkpoint of step %d', global_step_value)


def initial_weights(flags, network):
    """The weights to start from, as a function for tf.train.Scaffold(init_fn), or None for the initial values."""
    if tf.train.latest_checkpoint(flags.modelpath):
        return None
    path = networks.pretrained.resolve(flags.model, flags.checkpoint or flags.pretrained)
    if path is None:
        logging.info('--pretrained=none: training starts from scratch')
        return None
    logging.info('Restore pretrained weights... %s', path)
    match = networks.pretrained.fit(network, path)
    if flags.checkpoint and match.new:
        raise UserError('--checkpoint=%s lacks %d variables of %s (%s, ...); give a checkpoint of this model'
                        % (path, len(match.new), flags.model, match.new[0]))
    logging.info(str(match))
    return match.init_fn


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step; a second one kills as usual."""

    def __init__(self):
        self.received = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def __call__(self):
        return self.received is not None

    def _receive(self, number, _):
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


def train(flags, source, samples, validation, is_stopping):
    """Build the graph and run the training loop.

    Args:
        source: a batch source (see pose_feed.py).  samples: number of training samples, for the epochs.
        validation: a PoseDataset, or None.  is_stopping: a function; training saves and ends when it returns True.
    """
    steps_per_epoch = max(1, samples // flags.batchsize)
    max_steps = flags.max_steps or flags.max_epoch * steps_per_epoch
    devices, config = tower_devices(flags.gpus)
    tf.set_random_seed(flags.seed)
    layout = pose_loader.batch_layout(flags.batchsize, flags.input_width, flags.input_height,
                                      networks.stride(flags.model))
    feed = FeedHook(source, layout, hint='start data workers: python3 pose_dataworker.py --master=%s' % flags.remote_data
                    if flags.remote_data else 'the disk of --datapath or the loader processes are slow')
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(flags.lr, global_step, steps_per_epoch, max_steps)
    optimizer = tf.train.AdamOptimizer(rate, epsilon=1e-8)
    network, losses, gradients, updates = build_towers(flags.model, feed.batch, devices, optimizer)
    train_op, not_finite = build_train_op(optimizer, gradients, updates, global_step)
    metrics = dict(losses, lr=rate)
    validator = validation and Validator(flags.model, devices[0], validation, max(1, flags.batchsize // flags.gpus))
    best = BestCheckpoint(flags.modelpath)
    scaffold = tf.train.Scaffold(saver=tf.train.Saver(max_to_keep=flags.keep), init_fn=initial_weights(flags, network))
    hooks = [tf.train.NanTensorHook(losses['loss'] * 0.0 + not_finite), feed,
             tf.train.CheckpointSaverHook(flags.modelpath, save_steps=flags.save_every, scaffold=scaffold,
                                          checkpoint_basename='model', listeners=[SaveListener()])]
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(tf.train.MonitoredTrainingSession(
            checkpoint_dir=flags.modelpath, scaffold=scaffold, hooks=hooks, config=config, save_checkpoint_steps=None,
            save_checkpoint_secs=None, save_summaries_steps=None, save_summaries_secs=None, log_step_count_steps=None))
        step = int(session.run_step_fn(lambda step_context: step_context.session.run(global_step)))
        log = RunLog(flags.logpath, step)
        stack.callback(log.close)
        logging.info('%s: %d samples, %d steps per epoch, step %d of %d', flags.model, samples, steps_per_epoch, step,
                     max_steps)
        progress = stack.enter_context(tqdm.tqdm(total=max_steps, initial=step, unit='step', disable=None))
        stack.enter_context(tqdm.contrib.logging.logging_redirect_tqdm())
        interval, waited = Interval(), feed.wait_seconds
        while step < max_steps and not is_stopping() and feed.wait_for_batch(is_stopping):
            _, step, figures = session.run([train_op, global_step, metrics])
            step = int(step)
            progress.update()
            interval.add(figures)
            if step % flags.log_every == 0 or step == max_steps:
                means = interval.means(flags.batchsize, feed.wait_seconds - waited)
                log.training(step, step / steps_per_epoch, dict(means, lr=figures['lr'], queue=feed.ready()))
                for line in source.report():
                    logging.info(line)
                interval, waited = Interval(), feed.wait_seconds
            if validator and (step % flags.valid_every == 0 or step == max_steps):
                session.run_step_fn(lambda step_context: validate(step_context.session, validator, step, step / steps_per_epoch,
                                                             log, best, flags.tag or flags.model, is_stopping))
                interval, waited = Interval(), feed.wait_seconds
            if validator and flags.eval_every and (step % flags.eval_every == 0 or step == max_steps):
                session.run_step_fn(lambda step_context: log.evaluation(
                    step, step / steps_per_epoch, average_precision(step_context.session, validator, flags)))
                interval, waited = Interval(), feed.wait_seconds
    if is_stopping():
        logging.info('stopped by a signal at step %d; saved in %s; the same command resumes there', step,
                     flags.modelpath)
    else:
        logging.info('done: step %d, checkpoints in %s, TensorBoard log and %s in %s', step, flags.modelpath,
                     'curves.csv', flags.logpath)


def validate(session, validator, step, epoch, log, best, tag, is_stopping):
    """One validation: log line, pictures, and the best checkpoint."""
    result = validator.run(session, is_stopping)
    if result is not None:
        figures, images, picture = result
        log.validation(step, epoch, images, tag, figures)
        log.picture(step, 'validation', picture)
        best.update(session, step, figures['loss_ll'])


def average_precision(session, validator, flags):
    """COCO keypoint AP of the network as it is now, on the validation images."""
    summary, _, _ = pose_eval.evaluate(lambda images, joints: validator.predict_maps(session, images),
                                       *pose_annotations.find_split(flags.datapath, 'val2017', flags.imgpath),
                                       input_size=(flags.input_width, flags.input_height))
    return summary['AP']


def log_background_loss(validation):
    """Log the loss of predicting an empty image, which a network must get below to have learned anything."""
    total, images = 0.0, 0
    dataflow = PoseDataFlow(validation, is_train=False)
    dataflow.reset_state()
    background = np.eye(19)[18]
    for _, heatmap, paf, mask in dataflow:
        total += ((mask * paf) ** 2).sum() / 2 + ((mask * (heatmap - background)) ** 2).sum() / 2
        images += 1
    logging.info('predicting only background: validation(%d) loss_ll=%.6g', images, total / images)


def start_run(flags):
    """Note the exact command, flags and versions in run.json, one entry per start."""
    path = os.path.join(flags.modelpath, 'run.json')
    earlier = []
    if os.path.exists(path) and tf.train.latest_checkpoint(flags.modelpath):
        with open(path) as file:
            earlier = json.load(file)['starts']
    start = {'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': vars(flags), 'versions': versions()}
    write_json(path, {'flags': vars(flags), 'starts': earlier + [start]})


def open_source(flags, stride):
    """(batch source, number of training samples) of local data or of data workers."""
    dataset = PoseDataset(flags.datapath, 'train2017', flags.input_width, flags.input_height, stride, flags.imgpath)
    return pose_loader.BatchLoader(dataset, flags.batchsize, flags.workers, flags.seed), len(dataset)


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
    source, samples = open_source(flags, stride)
    try:
        with source, tf.Graph().as_default():
            if validation:
                log_background_loss(validation)
            start_run(flags)
            train(flags, source, samples, validation, is_stopping)
    except tf.train.NanLossDuringTrainingError:
        raise UserError('the loss or a weight is NaN or infinite; the last good checkpoint is %s; start again with a '
                        'lower --lr' % tf.train.latest_checkpoint(flags.modelpath), NAN_EXIT_CODE)
    except (OSError, tf.errors.OpError) as error:
        if 'No space left' not in str(error):
            raise
        raise UserError('the disk of %s is full; free some space and run the same command again: it resumes from %s'
                        % (flags.modelpath, tf.train.latest_checkpoint(flags.modelpath)))


if __name__ == '__main__':
    pose_cli.run(main)
