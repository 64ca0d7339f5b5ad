"""Train a pose network on COCO keypoints.

    python3 train.py --model=cmu --datapath=DIR --batchsize=64 --lr=0.001 --modelpath=DIR

Flags -> data -> towers -> training loop. The same command, run again, resumes from the last checkpoint in --modelpath.
"""
import contextlib
import errno
import logging
import os

import pose_cli  # before TensorFlow, to quieten its import
import tensorflow.compat.v1 as tf
import tqdm
import tqdm.contrib.logging

import networks
import pose_annotations
from pose_cli import StopSignal, Stopped, UserError, non_negative_int, positive_int
from pose_samples import batch_layout, check_input_size
from training import optimizer, runlock
from training.checkpoint import BestCheckpoint, CheckpointHook, create_saver, latest_checkpoint
from training.feed import FeedHook
from training.recovery import checkpoint_steps, recover
from training.runlog import Interval, RunLog, check_resume, note_start
from training.sources import check_keypoints, open_source, open_validation
from training.towers import build_training, tower_devices
from training.validation import Checks, Validator, is_due, log_background_loss
from training.weights import check_weights, initial_weights


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Train a pose network on COCO keypoints.')
    add = parser.add_argument
    add('--model', default='mobilenet_thin', help='one of ' + ', '.join(networks.NAMES))
    pose_cli.add_data_flags(parser)
    add('--train-split', default='train2017', help='split of --datapath, or a path to its annotation file')
    add('--valid-split', default='val2017', help='the same for validation')
    add('--category', help='of the annotations, where several have keypoints')
    add('--batchsize', type=positive_int, default=64, help='samples per step, over all GPUs')
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
    optimizer.add_flags(add)
    flags = parser.parse_args()
    flags.logpath = flags.logpath or os.path.join(flags.modelpath, 'logs')
    return flags


def check_flags(flags):
    """Refuse what cannot work, before any data is read. Raises UserError."""
    check_input_size(flags.input_width, flags.input_height, networks.stride(flags.model))
    optimizer.complete_flags(flags)
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
            pose_annotations.find_split(flags.datapath, flags.train_split, flags.imgpath)
        if flags.valid_every:
            pose_annotations.find_split(flags.datapath, flags.valid_split, flags.imgpath)
    for name in ('modelpath', 'logpath', 'checkpoint', 'pretrained'):
        if not pose_cli.is_utf8(getattr(flags, name) or ''):
            raise UserError('--%s=%s is not UTF-8, which TensorFlow needs; choose another name'
                            % (name, getattr(flags, name)))
    if latest_checkpoint(flags.modelpath):
        check_resume(flags.modelpath, vars(flags))
    elif not checkpoint_steps(flags.modelpath):
        check_weights(flags)
    pose_cli.make_folder(flags.modelpath)
    pose_cli.make_folder(flags.logpath)


@contextlib.contextmanager
def run_folder(flags):
    """Hold --modelpath for this process, with a whole checkpoint to resume from if there are any. Raises UserError."""
    with runlock.hold(flags.modelpath):
        if recover(flags.modelpath):
            check_resume(flags.modelpath, vars(flags))
        else:
            check_weights(flags)
        yield


def train(flags, source, validation, stop):
    """Build the graph and run the training loop.

    Args:
        source: a batch source (see training/feed.py).  validation: a PoseDataset, or None.
        stop: a StopSignal; training saves and ends when it says so.
    Raises:
        Stopped: after it has saved. Data workers then wait for the run to go on; only its end ends them.
    """
    steps_per_epoch = max(1, source.samples // flags.batchsize)
    max_steps = flags.max_steps or flags.max_epoch * steps_per_epoch
    devices, config = tower_devices(flags.gpus, len(tf.config.experimental.list_physical_devices('GPU')))
    tf.set_random_seed(flags.seed)
    feed = FeedHook(source, batch_layout(flags.batchsize, flags.input_width, flags.input_height,
                                         networks.stride(flags.model), source.skeleton))
    training = build_training(flags.model, feed.batch, devices, flags.lr, steps_per_epoch, max_steps, source.skeleton,
                              optimizer.recipe_of(flags))
    validator = validation and Validator(flags.model, devices[0], validation, max(1, flags.batchsize // flags.gpus))
    saver = create_saver(flags.keep)
    scaffold = tf.train.Scaffold(saver=saver, init_fn=initial_weights(flags, training.network))
    checkpoints = CheckpointHook(saver, flags.modelpath, flags.save_every, training)
    stop.check()

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(flags.modelpath, scaffold, [feed, checkpoints], config))
        log = stack.enter_context(RunLog(flags.logpath, checkpoints.first_step, steps_per_epoch))
        logging.info('%s: %d samples, %d steps per epoch, step %d of %d', flags.model, source.samples, steps_per_epoch,
                     checkpoints.first_step, max_steps)
        check = Checks(flags, validator, BestCheckpoint(saver, flags.modelpath), log, max_steps, stop)
        try:
            step = run_steps(flags, session, training, feed, source, checkpoints.first_step, max_steps, log, check,
                             stop)
        except Exception as error:
            checkpoints.rescue(session, error)
            raise
    feed.check()
    if step < max_steps:
        raise Stopped('stopped by a signal at step %d; saved in %s; the same command resumes there'
                      % (step, flags.modelpath))
    logging.info('done: step %d, checkpoints in %s, TensorBoard log and curves.csv in %s; a higher --max-steps or '
                 '--max-epoch trains on', step, flags.modelpath, flags.logpath)


def run_steps(flags, session, training, feed, source, step, max_steps, log, check, stop):
    """The training loop: from step to max_steps, or until a signal or the end of the data. Returns the last step."""
    interval = Interval(waited=lambda: feed.wait_seconds)
    with tqdm.tqdm(total=max_steps, initial=step, unit='step', disable=None) as progress, \
            tqdm.contrib.logging.logging_redirect_tqdm():
        while step < max_steps and not stop() and feed.wait_for_batch(stop):
            step, figures = session.run([training.step, training.figures])
            progress.update()
            interval.add(figures)
            if is_due(flags.log_every, step, max_steps):
                log.training(step, dict(interval.means(flags.batchsize), lr=figures['lr'], queue=feed.ready()))
                for line in source.report():
                    logging.info(line)
                interval.restart()
            if check.is_due(step):
                session.run_step_fn(lambda step_context: check(step_context.session, step))
                interval.restart()
    return step


def open_session(modelpath, scaffold, hooks, config):
    """A session that resumes from the last checkpoint or initializes; all that is written is written by the hooks."""
    return tf.train.MonitoredTrainingSession(
        checkpoint_dir=modelpath, scaffold=scaffold, hooks=hooks, config=config, save_checkpoint_steps=None,
        save_checkpoint_secs=None, save_summaries_steps=None, save_summaries_secs=None, log_step_count_steps=None)


def main():
    flags = parse_flags()
    pose_cli.log_to_stderr()
    stop = StopSignal()
    check_flags(flags)
    try:
        with run_folder(flags):
            prepare_and_train(flags, stop)
    except Stopped as stopped:
        logging.info(str(stopped))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        reason = pose_cli.disk_trouble(error)
        if not reason:
            raise
        full = reason == os.strerror(errno.ENOSPC)
        raise UserError('%s and run the same command again: it resumes from %s' % (
            'the disk of %s is full; free some space' % flags.modelpath if full else
            'cannot write in %s: %s; mend that' % (flags.modelpath, reason), latest_checkpoint(flags.modelpath)))


def prepare_and_train(flags, stop):
    """Open the data, then train. Raises as train does."""
    validation = open_validation(flags)
    with open_source(flags, validation, stop) as source, tf.Graph().as_default():
        check_keypoints(source.skeleton, validation)
        if validation:
            log_background_loss(validation, stop)
        note_start(flags.modelpath, vars(flags), source.skeleton,
                   resumes=latest_checkpoint(flags.modelpath) is not None)
        train(flags, source, validation, stop)


if __name__ == '__main__':
    pose_cli.run(main)
