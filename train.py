"""Train a pose network on COCO keypoints.

    python3 train.py --model=cmu --datapath=DIR --batchsize=64 --lr=0.001 --modelpath=DIR

Flags -> data -> towers -> training loop. The same command, run again, resumes from the last checkpoint in --modelpath.
"""
import contextlib
import errno
import logging
import os

import pose_cli  # first: it names a missing package
import tqdm
import tqdm.contrib.logging

import networks.pretrained
import pose_annotations
import pose_batches
import pose_skeleton
from pose_cli import StopSignal, Stopped, UserError, non_negative_int, positive_int
from pose_samples import check_input_size
from training import recipes
from training.agreement import code_version, common_flags
from training.cluster import ALONE, read_cluster
from training.liveness import Peers


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
    add('--negatives', type=recipes.share, default=0.0, help='share of the samples from images without people')
    recipes.add_flags(add)
    flags = parser.parse_args()
    flags.logpath = flags.logpath or os.path.join(flags.modelpath, 'logs')
    return flags


def check_flags(flags, cluster=ALONE):
    """Refuse what cannot work, before any data is read. Raises UserError."""
    check_input_size(flags.input_width, flags.input_height, networks.stride(flags.model))
    recipes.complete_flags(flags)
    if flags.batchsize % (flags.gpus * cluster.size):
        raise UserError('--batchsize=%d cannot be split over --gpus=%d%s; take a multiple' % (
            flags.batchsize, flags.gpus, ' of %d processes' % cluster.size if cluster.size > 1 else ''))
    # One batch's images and masks: whoever makes batches counts the maps too, and how many batches it holds.
    layout = pose_batches.batch_layout(flags.batchsize * flags.accumulate // cluster.size, flags.input_width,
                                       flags.input_height, networks.stride(flags.model))
    pose_batches.check_memory(layout[:2], 1)
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
        if flags.valid_every and cluster.is_first:
            pose_annotations.find_split(flags.datapath, flags.valid_split, flags.imgpath)
    for name in ('modelpath', 'logpath', 'checkpoint', 'pretrained'):
        if not pose_cli.is_utf8(getattr(flags, name) or ''):
            raise UserError('--%s=%s is not UTF-8, which TensorFlow needs; choose another name'
                            % (name, getattr(flags, name)))
    if cluster.is_first:
        pose_cli.check_folder(flags.modelpath)
        pose_cli.check_folder(flags.logpath)
        if not os.path.isdir(flags.modelpath) or not os.listdir(flags.modelpath):
            networks.pretrained.find_start(flags.model, flags.checkpoint, flags.pretrained)
        from training.weights import check_start  # imports TensorFlow, which takes seconds: only for good flags
        check_start(flags)


def main():
    flags = parse_flags()
    pose_cli.log_to_stderr()
    stop = StopSignal()
    cluster = read_cluster(os.environ)
    check_flags(flags, cluster)
    from training.weights import run_folder  # as above
    try:
        with Peers(cluster, stop) as peers, run_folder(flags) if cluster.is_first else contextlib.nullcontext():
            prepare_and_train(flags, peers)
    except Stopped as stopped:
        logging.info(str(stopped))
    except UserError:
        raise
    except Exception as error:
        check_disk(flags, error)
        raise


def check_disk(flags, error):
    """Raise UserError when an exception was raised because the disk of --modelpath is full or broken."""
    from training.checkpoint import latest_checkpoint  # as above
    reason = pose_cli.disk_trouble(error)
    if reason:
        full = reason == os.strerror(errno.ENOSPC)
        saved = latest_checkpoint(flags.modelpath)
        raise UserError('%s and run the same command again: %s' % (
            'the disk of %s is full; free some space' % flags.modelpath if full else
            'cannot write in %s: %s; mend that' % (flags.modelpath, reason),
            'it resumes from %s' % saved if saved else 'nothing was saved yet'))


def prepare_and_train(flags, peers):
    """Open the data, agree with the other processes on where to start, then train. Raises as train does."""
    from training.checkpoint import latest_checkpoint, saved_step  # as above
    from training.runlog import note_start, versions
    from training.sources import check_keypoints, open_source, open_validation
    from training.validation import log_background_loss
    first = peers.cluster.is_first
    peers.agree('start', dict(common_flags(vars(flags)), code=code_version()))
    validation = open_validation(flags) if first else None
    own = {'step': saved_step(flags.modelpath) if first else 0,
           'skeleton': (validation.skeleton if validation else pose_skeleton.COCO).to_json()}
    start = peers.exchange('where to start', own)[0]
    skeleton = pose_skeleton.from_json(start['skeleton'], 'worker 0')
    with open_source(flags, skeleton, start['step'], peers.cluster, peers) as source:
        check_keypoints(source.skeleton, validation)
        peers.agree('data', {'samples': source.samples, 'skeleton': source.skeleton.to_json(),
                             'TensorFlow': versions()['tensorflow']})
        if validation:
            log_background_loss(validation, peers)
        if first:
            note_start(flags.modelpath, vars(flags), source.skeleton,
                       resumes=latest_checkpoint(flags.modelpath) is not None, samples=source.samples)
        train(flags, source, validation, peers)


def train(flags, source, validation, peers):
    """Build the graph and run the training loop.

    Args:
        source: a batch source (see training/feed.py).  validation: a PoseDataset, or None.
        peers: a liveness.Peers; training saves and ends when it says so.
    Raises:
        Stopped: after it has saved. Data workers then wait for the run to go on; only its end ends them.
    """
    from training.checkpoint import BestCheckpoint  # as above
    from training.runlog import LogLines, RunLog
    from training.session import open_run
    from training.validation import Checks
    steps_per_epoch = max(1, source.samples // (flags.batchsize * flags.accumulate))
    max_steps = flags.max_steps or flags.max_epoch * steps_per_epoch
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(flags, source, validation, steps_per_epoch, max_steps, peers))
        step = run.checkpoints.first_step
        log = LogLines(steps_per_epoch)
        if peers.cluster.is_first:
            log = stack.enter_context(RunLog(flags.logpath, step, steps_per_epoch))
            log.start(step, vars(flags), run.training.network.output)
        logging.info('%s: %d samples, %d steps per epoch, step %d of %d', flags.model, source.samples, steps_per_epoch,
                     step, max_steps)
        best = BestCheckpoint(run.saver, flags.modelpath) if peers.cluster.is_first else None
        check = Checks(flags, run.validator, best, log, max_steps, peers)
        try:
            step = run_steps(flags, run, source, step, max_steps, log, check)
        except Exception as error:
            run.checkpoints.rescue(run.session, error)
            raise
    run.feed.check()
    if step < max_steps:
        raise Stopped('stopped by a signal at step %d; saved in %s; the same command resumes there'
                      % (step, flags.modelpath))
    logging.info('done: step %d, checkpoints in %s, TensorBoard log and curves.csv in %s; a higher --max-steps or '
                 '--max-epoch trains on', step, flags.modelpath, flags.logpath)


def run_steps(flags, run, source, step, max_steps, log, check):
    """The training loop: from step to max_steps, or until a signal or the end of the data. Returns the last step."""
    from training.runlog import Interval  # as above
    from training.validation import is_due
    session, training, feed, team = run.session, run.training, run.feed, run.team
    interval = Interval(waited=lambda: feed.wait_seconds)
    with tqdm.tqdm(total=max_steps, initial=step, unit='step', disable=None) as progress, \
            tqdm.contrib.logging.logging_redirect_tqdm():
        while step < max_steps and not team.ended() and feed.wait_for_batch(team.waits_in_vain):
            step, figures = session.run([training.step, training.figures], team.tells(feed.wait_seconds))
            figures = team.hears(figures)
            progress.update()
            interval.add(figures)
            if is_due(flags.log_every, step, max_steps):
                means = interval.means(flags.batchsize * flags.accumulate)
                log.training(step, dict(means, lr=figures['lr'], queue=feed.ready()), team.note())
                for line in source.report():
                    logging.info(line)
                interval.restart()
            if check.is_due(step):
                session.run_step_fn(lambda step_context: check(step_context.session, step))
                interval.restart()
    return step


if __name__ == '__main__':
    pose_cli.run(main)
