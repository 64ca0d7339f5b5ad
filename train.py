"""Train a pose network on COCO keypoints.

    python3 train.py --model=cmu --datapath=DIR --batchsize=64 --lr=0.001 --modelpath=DIR

Flags -> data -> towers -> training loop. The same command, run again, resumes from the last checkpoint in --modelpath.
A run of several processes is this same script in each of them (training/coordinator.py).
"""
import collections
import contextlib
import logging
import os

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

from training.config import read_command, recipe_of, samples_per_process, schedule_of, warn_of_short_run

if __name__ == '__main__':  # before TensorFlow is imported, which takes seconds: wrong flags are told at once
    with pose_cli.errors_in_one_line():
        COMMAND = read_command(os.environ)

import tqdm
import tqdm.contrib.logging

import networks
from annotations.skeleton import COCO_SKELETON, parse_skeleton
from batches import Sequence, compressed, expanded, remaining, samples_done, shortened
from batches.loader import BatchLoader
from batches.mixture import merged_skeleton, open_samples
from networks.tensorflow import tf
from pose_dataset import PoseDataset, ranges_of
from pose_errors import Stopped, UserError, disk_trouble
from pose_files import file_digest, sources_digest
from remote.receiver import BatchReceiver
from training.checkpoint import BestCheckpoint, CheckpointHook, create_saver, explain_failure, latest_checkpoint, \
    saved_step
from training.cluster import common_flags
from training.coordinator import open_coordinator
from training.devices import check_precision, enable_mixed, start_server, tower_devices
from training.input_queue import InputQueueHook, LastBatchRepeater, wait_for_samples
from training.optimizer import LARGEST_SCALE
from training.run_folder import StartWeights, check_start, hold_run_folder, note_progress, note_start, read_progress, \
    versions
from training.run_log import Interval, LogLines, RunLog
from training.towers import build_training
from training.validation import Checks, Validator, is_due, log_background_loss

# What all processes of a run start from. step: of the checkpoint.  sequence: the batches.Sequence that is left.
# loss_scale: of mixed precision, or 0.  skeleton: of the labels.
Start = collections.namedtuple('Start', 'step sequence loss_scale skeleton')
STEP_SOURCES = ('*.py', 'annotations/*.py', 'batches/*.py', 'networks/*.py', 'remote/*.py', 'training/*.py')


def main(flags, cluster, stop):
    """Hold the run's folder while it trains, and say how it ended. Raises UserError."""
    if flags.precision == 'mixed':
        check_precision()
    weights = StartWeights(flags.model, flags.checkpoint, flags.pretrained)
    if cluster.is_first:
        check_start(flags.modelpath, vars(flags), weights)
    try:
        with contextlib.ExitStack() as stack:
            coordinator = stack.enter_context(open_coordinator(cluster, stop))
            if cluster.is_first:
                stack.enter_context(hold_run_folder(flags.modelpath, flags.logpath, vars(flags), weights))
            train(flags, weights, coordinator)
    except Stopped as stopped:
        logging.info(str(stopped))
    except UserError:
        raise
    except Exception as error:
        explain_failure(flags.modelpath, error)
        raise


def train(flags, weights, coordinator):
    """Open the data, build the graph, and run the training loop in a session.

    Args:
        weights: StartWeights of a new run.
    Raises:
        Stopped: after it has saved. Data workers then wait for the run to go on; only its end ends them.
        UserError: also for what the processes of a run have different.
    """
    first = coordinator.cluster.is_first
    coordinator.assert_same('start', lambda: dict(common_flags(vars(flags)), code=sources_digest(*STEP_SOURCES),
                                                  teacher=flags.teacher and file_digest(flags.teacher)))
    validation = open_validation(flags) if first else None
    samples = open_training(flags)
    start = where_to_start(flags, validation or samples, coordinator)
    # The loader processes are forked here, before TensorFlow starts threads, which do not survive a fork.
    with open_source(flags, samples, start, coordinator) as source:
        check_keypoints(source.skeleton, validation)
        coordinator.assert_same('data', lambda: {
            'samples': source.samples, 'digest': source.digest, 'skeleton': source.skeleton.to_json(),
            'TensorFlow': versions()['tensorflow']})
        if validation:
            log_background_loss(validation, coordinator)
        if first:
            note_start(flags.modelpath, vars(flags), source.skeleton,
                       resumes=latest_checkpoint(flags.modelpath) is not None, samples=source.samples)
        schedule = schedule_of(flags, source.samples, start.step, samples_done(start.sequence))
        warn_of_short_run(flags, source.samples, schedule)
        with tf.Graph().as_default():
            step, exhausted = build_and_run(flags, weights, source, validation, start, schedule, coordinator)
        if exhausted:
            logging.info('%d validations in a row were no better: --patience ends the run', flags.patience)
        elif step < schedule.max_steps:  # told here, where data workers learn from it to wait for the run to go on
            raise Stopped('stopped by a signal%s at step %d; saved in %s; the same command resumes there'
                          % (' or --max-hours' if flags.max_hours is not None else '', step, flags.modelpath))
    logging.info('done: step %d, checkpoints in %s, TensorBoard log and curves.csv in %s; a higher --max-steps or '
                 '--max-epoch trains on', step, flags.modelpath, flags.logpath)


def where_to_start(flags, samples, coordinator):
    """What worker 0 says of the run that all resume, or begin. samples: that it has itself, or None."""
    own = {}
    if coordinator.cluster.is_first:
        step = saved_step(flags.modelpath)
        sequence, loss_scale = read_progress(flags.modelpath, step)
        skeleton = samples.skeleton if samples else COCO_SKELETON
        own = {'step': step, 'sequence': sequence, 'loss_scale': loss_scale, 'skeleton': skeleton.to_json()}
    start = coordinator.all_gather('where to start', own)[0]
    gaps, after = start['sequence']
    sequence = Sequence(tuple(map(tuple, gaps)), after)
    return Start(start['step'], shortened(sequence) if flags.remote_data else sequence, start['loss_scale'],
                 parse_skeleton(start['skeleton'], 'worker 0'))


# Data: loader processes on this machine, or data workers on others.

def open_training(flags):
    """The training samples in --datapath and --add-data, a PoseDataset or a Mixture; with data workers, who must have
    the same, None where there are none."""
    if flags.remote_data and not flags.datapath:
        return None
    try:
        return open_samples(flags.datapath, flags.train_split, (flags.input_width, flags.input_height),
                            networks.stride(flags.model), flags.imgpath, ranges_of(flags), flags.category,
                            flags.negatives, flags.add_data, flags.add_keypoints)
    except UserError as error:
        if not flags.remote_data:
            raise
        logging.info("the data workers' samples cannot be compared with the trainer's own: %s", error)
        return None


def open_validation(flags):
    """The PoseDataset of the validation images, or None without them."""
    if not flags.datapath or not flags.valid_every:
        logging.info('validation is off: it needs --datapath=DIR, and --valid-every above 0')
        return None
    added = flags.add_data if flags.add_keypoints else ()
    skeleton = merged_skeleton(flags.datapath, flags.train_split, flags.imgpath, flags.category, added)
    return PoseDataset(flags.datapath, flags.valid_split, flags.input_width, flags.input_height,
                       networks.stride(flags.model), flags.imgpath, category=flags.category, skeleton=skeleton)


def open_source(flags, samples, start, coordinator):
    """The batch source (see training/input_queue.py) of this process's shard of every batch.

    Args:
        samples: of open_training.
        start: a Start; data workers make maps of its skeleton.
        coordinator: a stop ends the wait for data workers.
    """
    cluster = coordinator.cluster
    batchsize = samples_per_process(flags, cluster)
    if not flags.remote_data:
        return BatchLoader(samples, batchsize, flags.workers, flags.seed, shard=cluster.index,
                           num_shards=cluster.size, sequence=start.sequence)
    settings = {'batchsize': batchsize, 'input_width': flags.input_width, 'input_height': flags.input_height,
                'stride': networks.stride(flags.model), 'seed': flags.seed, 'category': flags.category or '',
                'skeleton': start.skeleton.to_json(), 'negatives': flags.negatives,
                'augmentation': dict(ranges_of(flags)._asdict()), 'sequence': start.sequence}
    # Data workers know no shards: to them, the shards of all batches are a sequence of smaller batches.
    source = BatchReceiver(flags.remote_data, settings, flags.curve_keys, first=cluster.index, every=cluster.size,
                           data=(len(samples), samples.digest) if samples else None)
    try:
        wait_for_samples(source, coordinator)
    except BaseException:
        source.close(ended=False)
        raise
    return source


def check_keypoints(skeleton, validation):
    """Raise UserError when training and validation images have different keypoints labelled."""
    if validation and not validation.skeleton.finds_the_same(skeleton):
        raise UserError('the training images have the keypoints %s, the validation images %s; give both the same'
                        % (', '.join(skeleton.keypoints), ', '.join(validation.skeleton.keypoints)))


# Graph, session and loop.

def build_and_run(flags, weights, source, validation, start, schedule, coordinator):
    """Build the graph of a step, connect the processes, and train in a session.

    Returns (the last step, whether --patience ended the run).

    Args:
        source: a batch source.  validation: a PoseDataset, or None.  start: a Start.  schedule: a config.Schedule.
    """
    cluster = coordinator.cluster
    gpus = len(tf.config.experimental.list_physical_devices('GPU'))
    devices, config, reduction = tower_devices(flags.gpus, gpus, cluster, flags.towers_per_gpu, flags.all_reduce)
    scaled = flags.precision == 'mixed' and enable_mixed(config, gpus)
    loss_scale = (start.loss_scale or LARGEST_SCALE) if scaled else 0.0
    with tf.device(tf.DeviceSpec.from_string(devices[0]).replace(device_type=None, device_index=None).to_string()):
        tf.set_random_seed(flags.seed)
        queue = InputQueueHook(LastBatchRepeater(source, coordinator) if cluster.size > 1 else source)
        training = build_training(flags.model, queue.batch, devices, flags.lr, schedule, source.skeleton,
                                  recipe_of(flags, loss_scale), cluster, reduction)
        validator = validation and Validator(flags.model, devices[0], validation,
                                             max(1, flags.batchsize // cluster.size // len(devices)), training.averages)
        saver = create_saver(flags.keep, training.variables)
        latest = latest_checkpoint(flags.modelpath) if cluster.is_first else None
        if latest:
            logging.info('resuming from %s', latest)
        init_fn = weights.init_fn(training.network) if cluster.is_first and not latest else None
        coordinator.check()  # here: TensorFlow complains of a Scaffold's operations that nobody used
        # All replicas get a copy of the first one's values, from a checkpoint or initial ones.
        scaffold = tf.train.Scaffold(
            saver=saver, init_fn=init_fn, init_op=tf.variables_initializer(training.variables),
            ready_for_local_init_op=tf.report_uninitialized_variables(training.variables),
            local_init_op=tf.group(tf.train.Scaffold.default_local_init_op(), training.copy))

        def note(session, step, alone):
            left = what_is_left(flags, queue, start, step, coordinator, alone)
            if cluster.is_first:
                note_progress(flags.modelpath, step, left, session.run(training.loss_scale))

        checkpoints = CheckpointHook(saver, flags.modelpath, flags.save_every, training, cluster.is_first, note)
        target = start_server(cluster, config)
        coordinator.all_gather('ready', {}, barrier=True)
        try:
            # Not tf.train.MonitoredTrainingSession, which tries again after an error: that would leave the others.
            with tf.train.SingularMonitoredSession(
                    [queue, checkpoints], scaffold, target, config,
                    checkpoint_dir=flags.modelpath if cluster.is_first else None) as session, \
                    open_log(flags, checkpoints.first_step, schedule, training, cluster) as log:
                logging.info('%s: %d samples, %d steps per epoch, step %d of %d', flags.model, source.samples,
                             schedule.steps_per_epoch, checkpoints.first_step, schedule.max_steps)
                best = BestCheckpoint(saver, flags.modelpath, 'AP' if flags.eval_every else 'loss_ll') \
                    if cluster.is_first else None
                check = Checks(flags, validator, best, log, schedule.max_steps, coordinator)
                try:
                    step = run_steps(flags, session, training, queue, checkpoints.first_step, schedule.max_steps, log,
                                     check, coordinator)
                except Exception as error:
                    checkpoints.save_on_error(session, error)
                    explain_failure(flags.modelpath, error)  # a session hides an OutOfRangeError: a file too large, too
                    raise
        except tf.errors.OpError as error:
            if not disk_trouble(error):
                coordinator.wait_for_failure()  # TensorFlow, too, may have noticed that a process is gone, not which
            raise
    queue.check()
    return step, any(coordinator.all_gather('--patience ends the run', check.exhausted, barrier=True))


def what_is_left(flags, queue, start, step, coordinator, alone=False):
    """The Sequence that is left to train after a step.

    Local loaders deliver their batches in order. Data workers do not: what they have not delivered is left. alone: the
    other processes are not asked what theirs delivered; nor are they before the first step, when only one saves.
    """
    cluster, steps = coordinator.cluster, step - start.step
    if not flags.remote_data or (alone and cluster.size > 1) or not steps:
        return remaining(start.sequence, flags.batchsize * flags.accumulate, range(steps))
    own = compressed(queue.taken(steps), cluster.index, cluster.size)
    trained = [number for every in coordinator.all_gather('progress@%d' % step, own, barrier=True)
               for number in expanded(every, cluster.size)]
    return remaining(start.sequence, samples_per_process(flags, cluster), trained)


@contextlib.contextmanager
def open_log(flags, step, schedule, training, cluster):
    """The log of this process, for a block: that of the first one is also curves.csv and TensorBoard's files."""
    if not cluster.is_first:
        yield LogLines(schedule)
        return
    with RunLog(flags.logpath, step, schedule) as log:
        log.start(step, vars(flags), training.network.output)
        yield log


def run_steps(flags, session, training, queue, step, max_steps, log, check, coordinator):
    """The training loop: from step to max_steps, or until a signal or the end of the data. Returns the last step."""
    check(session, step)  # what a stop kept an earlier start from
    interval = Interval(waited=lambda: queue.wait_seconds)
    with tqdm.tqdm(total=max_steps, initial=step, unit='step', disable=None) as progress, \
            tqdm.contrib.logging.logging_redirect_tqdm():
        while step < max_steps and not coordinator.should_stop() \
                and queue.wait_for_batch(coordinator.should_stop_waiting):
            logs = is_due(flags.log_every, step + 1, max_steps)
            fetches = {'step': training.step, 'metrics': training.metrics}
            if logs and training.stop is not None:
                fetches['busy'] = training.busy_seconds
            results = session.run(fetches, coordinator.feed_dict(training))
            step, metrics = results['step'], coordinator.pop_control(results['metrics'])
            progress.update()
            interval.add(metrics)
            if logs:
                means = interval.means(flags.batchsize * flags.accumulate)
                note = coordinator.straggler_note(interval.waited(), results.get('busy', 0) * interval.steps)
                log.training(step, dict(means, lr=metrics['lr'], queue=queue.ready()), note)
                for line in queue.report():
                    logging.info(line)
                interval.restart()
            if check(session, step):
                interval.restart()
    return step


if __name__ == '__main__':
    pose_cli.run(main, *COMMAND)
