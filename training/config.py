"""The flags of train.py: what they are, what cannot work, and what they say of an update.

Without TensorFlow, whose import takes seconds: wrong flags are told at once.
"""
import argparse
import collections
import json
import logging
import math
import os

import networks
import networks.pretrained
import pose_cli
import pose_files
from annotations.skeleton import COCO_SKELETON, RUN_FILE
from annotations.splits import find_split, part_name
from batches.batch import batch_layout, check_memory
from batches.mixture import check_more_data
from pose_cli import is_given, non_negative_int, positive_int, positive_process_count
from pose_dataset import add_augmentation_flags, check_input_size
from pose_errors import UserError, reason_of

from .cluster import read_cluster

# Measured from scratch (etcs/experiments.md): vgg at 0.001 then does not explode in its first steps.
WARMUP_STEPS = 50

# What the flags leave open, by --recipe. `paper` is the solver of the original's authors: their rate falls to 0.333 of
# itself every 136,106 steps of 10 samples. `cmu2019` is how they prepare samples since, `original` how the original
# TensorFlow trainer did.
DEFAULTS = {'optimizer': 'adam', 'lr': [0.001], 'momentum': 0.9, 'weight_decay': 0.0, 'warmup_steps': WARMUP_STEPS,
            'augment': 'cmu', 'negatives': 0.0}
RECIPES = {'default': DEFAULTS,
           'paper': dict(DEFAULTS, optimizer='sgd', lr=[4e-5], weight_decay=5e-4, warmup_steps=0),
           'cmu2019': dict(DEFAULTS, augment='cmu2019', negatives=0.02),
           'original': dict(DEFAULTS, augment='original', warmup_steps=0)}
PAPER_MODELS = ('cmu', 'vgg')
PAPER_DECAY, PAPER_DECAY_SAMPLES = 0.333, 1361060
PAPER_LATER_STAGES, PAPER_BIASES = 4.0, 2.0  # factors on the learning rate
FEW_STEPS = 500  # a run of fewer learns next to nothing

# What a flag takes the place of in the run that --config names, where that is not the flag's own value alone.
INSTEAD_OF = {'--add-data': 'add_data',  # argparse would add to those of the run
              '--max-epoch': 'max_steps', '--valid-split': 'valid_share',  # these would win
              '--checkpoint': 'pretrained', '--pretrained': 'checkpoint'}

# optimizer, momentum, weight_decay, warmup_steps: as the flags.  factors: whether layers have the paper's own rates.
# decay_steps: one rate falls to PAPER_DECAY of itself every so many steps; 0: it follows a cosine.
# accumulate: batches per update.  loss_scale: where an optimizer.LossScale starts, 0: none.
# backbone_rate: a factor on the learning rate of the variables whose names start with one of `backbone`.
# freeze_batch_norm: theirs stays as it is.  clip_norm: of all gradients, 0: any.  ema: decay of the averages, 0: none.
# teacher: the file of a network that completes labels, or None.
Recipe = collections.namedtuple('Recipe', 'optimizer momentum weight_decay warmup_steps factors decay_steps accumulate '
                                          'loss_scale backbone_rate backbone freeze_batch_norm clip_norm ema teacher',
                                defaults=('adam', 0.9, 0.0, 0, False, 0, 1, 0.0, 1.0, (), False, 0.0, 0.0, None))

# How far a run goes, in steps of its batch. steps_per_epoch, max_steps: the last step.  by_steps: whether --max-steps
# says so.  offset: what has to be added to the global step to get the samples that were trained in batches of now; 0
# but in runs that were resumed with another batch size.
Schedule = collections.namedtuple('Schedule', 'steps_per_epoch max_steps by_steps offset')


def read_command(environment):
    """What the command line and the environment say of a run, in which signals now only ask it to stop.

    Returns:
        (flags, the cluster.Cluster, the pose_cli.StopSignal).
    Raises:
        UserError: flags that cannot work.
    """
    flags = parse_flags()
    pose_cli.require_linux('training')
    pose_cli.log_to_stderr()
    stop = pose_cli.StopSignal()
    cluster = read_cluster(environment)
    check_flags(flags, cluster)
    if flags.max_hours is not None:
        stop.after(3600 * flags.max_hours)
    return flags, cluster, stop


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Train a pose network on COCO keypoints.')
    add = parser.add_argument
    add('--config', metavar='run.json', help='the flags of that run, but for its folders; other flags here change them')
    add('--model', type=networks.model_name, default='mobilenet_thin', help='one of ' + ', '.join(networks.NAMES))
    pose_cli.add_data_flags(parser)
    add('--train-split', default='train2017', help='split of --datapath, or a path to its annotation file')
    add('--valid-split', default='val2017', help='the same for validation')
    pose_cli.add_valid_share(parser, 'the share of the images of --train-split that are for validation, instead of '
                                     'those of --valid-split')
    pose_cli.add_more_data(parser)
    add('--category', help='of the annotations, where several have keypoints, or all')
    add('--batchsize', type=positive_int, default=64, help='samples per step, over all GPUs')
    add('--gpus', type=positive_process_count, default=1, help='GPUs of each process')
    add('--towers-per-gpu', type=positive_process_count, default=1, help='towers that share each GPU (default 1)')
    add('--all-reduce', choices=('nccl', 'ring'), help='what GPUs reduce gradients with (default: nccl; ring where '
        'towers share a GPU; give ring where processes do)')
    add('--max-epoch', type=positive_int, default=30, help='passes through the training samples')
    add('--max-steps', type=positive_int, help='end after this many steps, whatever --max-epoch says')
    add('--modelpath', default='models/train', help='folder of the checkpoints of this run')
    add('--logpath', help='folder for TensorBoard and curves.csv (default: logs in --modelpath)')
    add('--checkpoint', help='start a new run from these weights (a checkpoint or its folder)')
    add('--pretrained', help="weights to start from, or none (default: the model's own file)")
    add('--tag', default='', help='a name for this run in the log')
    add('--remote-data', help='listen for data workers here, tcp://0.0.0.0:PORT')
    add('--curve-keys', help='with --remote-data: folder of the keys made by scripts/make_curve_keys.py')
    add('--input-width', type=positive_int, default=368, help='of the images that the network sees, in pixels')
    add('--input-height', type=positive_int, default=368, help='the same for the height')
    add('--log-every', type=positive_int, default=20, help='steps between log lines')
    add('--valid-every', type=non_negative_int, default=2000, help='steps between validations; 0: no validation')
    add('--eval-every', type=non_negative_int, default=0, help='steps between COCO AP evaluations; 0: none')
    add('--save-every', type=positive_int, default=1000, help='steps between checkpoints')
    add('--patience', type=non_negative_int, default=0, metavar='N', help='end after so many validations, or AP '
        'evaluations with --eval-every, without a better one (0: never)')
    add('--max-hours', type=pose_cli.real_number(0, 1e6), metavar='HOURS', help='stop and save after so many hours; '
        'the same command goes on')
    add('--keep', type=positive_int, default=5, help='checkpoints to keep, besides the best')
    add('--workers', type=positive_process_count, default=pose_files.usable_cores(),
        help='loader processes, one per core that this process may use unless told otherwise')
    add('--seed', type=pose_cli.seed, default=0, help='of the order of samples, augmentation and initial weights')
    add('--negatives', type=fraction, help='share of the samples from images without people (default 0)')
    add_augmentation_flags(parser)
    add_optimizer_flags(add)
    parser.set_defaults(**flags_of_run(parser))
    flags = parser.parse_args()
    if flags.valid_share:
        if is_given('--valid-split'):
            raise UserError('--valid-share takes the validation images from --train-split: leave one of --valid-share '
                            'and --valid-split out')
        flags.valid_split = part_name(flags.train_split, 'valid', flags.valid_share)
        flags.train_split = part_name(flags.train_split, 'train', flags.valid_share)
    flags.logpath = flags.logpath or os.path.join(flags.modelpath, 'logs')
    return flags


def flags_of_run(parser):
    """{name: value} of the flags of the run that --config names, {} without it. Raises UserError."""
    config = pose_cli.ArgumentParser(add_help=False)
    config.add_argument('--config')
    path = config.parse_known_args()[0].config
    if path is None:
        return {}
    path = os.path.expanduser(path)
    try:
        with open(os.path.join(path, RUN_FILE) if os.path.isdir(path) else path, encoding='utf-8') as file:
            flags = dict(json.load(file)['flags'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError('--config=%s is no run.json of a run (%s); give that of the folder of its --modelpath'
                        % (path, reason_of(error)))
    # What belongs to a run or to its machine is not taken over.
    known = {action.dest for action in parser._actions} - {'modelpath', 'logpath', 'config', 'tag', 'help', 'workers'}
    known -= {name for flag, name in INSTEAD_OF.items() if is_given(flag)}
    completed = RECIPES.get(flags.get('recipe'), DEFAULTS)  # what a recipe says, it says again
    return {name: value for name, value in flags.items() if name in known and completed.get(name) != value}


def add_optimizer_flags(add):
    """The flags of an update. add: the add_argument of a parser."""
    add('--lr', type=learning_rates, help='one value: cosine decay; a,b,c: a step every 5 epochs (default 0.001)')
    add('--backbone-lr', type=pose_cli.real_number(0, 1), default=1.0, metavar='FACTOR',
        help='times the learning rate is that of the layers that come from ImageNet; 0.1 keeps more of what they know, '
             '0 freezes them (default 1)')
    add('--freeze-batch-norm', action='store_true', help='batch norm of these layers uses the statistics of ImageNet')
    add('--clip-norm', type=pose_cli.real_number(1e-6, 1e12), metavar='NORM',
        help='the largest norm of all gradients together; larger ones are scaled to it (default: any)')
    add('--ema', type=fraction, default=0.0, metavar='DECAY', help='of a moving average of the weights, as 0.999; that '
        'is then validated and exported (0: none)')
    add('--teacher', metavar='FILE', help='a trained network, as weights (.npy) or a graph frozen with '
        '--input-size=dynamic, whose maps stand where labels are empty or masked, in images that show people')
    add('--warmup-steps', type=non_negative_int, help='steps in which the learning rate rises from 0 (default %d; 0: '
                                                      'none)' % WARMUP_STEPS)
    add('--optimizer', choices=('adam', 'sgd'), help='what changes the weights (default adam)')
    add('--momentum', type=fraction, help='of --optimizer=sgd (default 0.9)')
    add('--weight-decay', type=fraction,
        help='times the weights is added to their gradients; not to biases (default 0)')
    add('--recipe', choices=sorted(RECIPES), default='default',
        help="paper: the authors' solver, for %s, where other flags do not say otherwise; cmu2019: the later samples "
             "of theirs; original: the original TensorFlow trainer's" % ' and '.join(PAPER_MODELS))
    add('--precision', choices=('float32', 'mixed'), default='float32',
        help='mixed: 16 bits where that is safe; needs a GPU, or a CPU with AVX512-BF16 or AMX on TensorFlow 2')
    add('--accumulate', type=positive_int, default=1, help='batches per update: their gradients are averaged')


def learning_rates(text):
    """'0.001' -> [0.001], '0.001,0.0001' -> [0.001, 0.0001]."""
    rates = [pose_cli.number(part) for part in text.split(',')]
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError('%r is not a learning rate like 0.001, or several like 0.001,0.0001' % text)
    return rates


def fraction(text):
    """A flag's value from 0 to below 1."""
    value = pose_cli.number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError('%r is not a number from 0 to below 1' % text)
    return value


def check_flags(flags, cluster):
    """Complete the flags, and refuse what cannot work before any data is read. Raises UserError."""
    check_input_size(flags.input_width, flags.input_height, networks.stride(flags.model))
    complete_flags(flags)
    if flags.batchsize % (flags.gpus * flags.towers_per_gpu * cluster.size):
        raise UserError('--batchsize=%d cannot be split over --gpus=%d%s%s; take a multiple' % (
            flags.batchsize, flags.gpus,
            ' with --towers-per-gpu=%d' % flags.towers_per_gpu if flags.towers_per_gpu > 1 else '',
            ' of %d processes' % cluster.size if cluster.size > 1 else ''))
    if flags.all_reduce == 'nccl' and flags.towers_per_gpu > 1:
        raise UserError('--all-reduce=nccl works between whole GPUs only; leave it out with --towers-per-gpu=%d'
                        % flags.towers_per_gpu)
    # One batch's images and masks: whoever makes batches counts the maps too, and how many batches it holds.
    layout = batch_layout(samples_per_process(flags, cluster), flags.input_width, flags.input_height,
                          networks.stride(flags.model), COCO_SKELETON)
    check_memory(layout[:2], 1)
    if not flags.datapath and not flags.remote_data:
        raise UserError('no training data: give --datapath=DIR (or $COCO_DIR), or --remote-data=tcp://0.0.0.0:PORT')
    if flags.eval_every and not (flags.datapath and flags.valid_every):
        raise UserError('--eval-every needs validation images: give --datapath=DIR, and --valid-every above 0')
    if flags.patience and not (flags.datapath and flags.valid_every):
        raise UserError('--patience needs validation images: give --datapath=DIR, and --valid-every above 0')
    if flags.add_data and not flags.datapath:
        raise UserError('--add-data adds to --datapath: give that too, or both to the data workers')
    if not flags.remote_data or flags.add_keypoints:  # the validation images get these keypoints, too
        check_more_data(flags.add_data, flags.add_keypoints)
    if flags.curve_keys and not flags.remote_data:
        raise UserError('--curve-keys is for data workers: give --remote-data too')
    if flags.checkpoint and flags.pretrained not in (None, 'none'):
        raise UserError('--checkpoint and --pretrained both name weights to start from: give one of them')
    if flags.datapath:
        if not flags.remote_data:
            find_split(flags.datapath, flags.train_split, flags.imgpath)
        if flags.valid_every and cluster.is_first:
            try:
                find_split(flags.datapath, flags.valid_split, flags.imgpath)
            except UserError as error:
                raise UserError('%s, or validate on a tenth of the training images: --valid-share=0.1, or train '
                                'without validation: --valid-every=0' % error)
    if flags.teacher and not (os.path.isfile(flags.teacher) and flags.teacher.endswith(('.npy', '.pb'))):
        raise UserError('--teacher=%s is no file of weights (.npy) or frozen graph (.pb); give one' % flags.teacher)
    for name in ('modelpath', 'logpath', 'checkpoint', 'pretrained'):
        path = getattr(flags, name)
        if path and not networks.pretrained.is_weights_file(path):
            pose_files.check_tensorflow_path(path, '--' + name)
    if cluster.is_first:
        pose_files.check_folder(flags.modelpath)
        pose_files.check_folder(flags.logpath)
        if not os.path.isdir(flags.modelpath) or not os.listdir(flags.modelpath):
            networks.pretrained.find_start(flags.model, flags.checkpoint, flags.pretrained)


def schedule_of(flags, samples, step=0, done=0):
    """The Schedule of a run.

    Args:
        samples: of the data set.
        step: that the run starts or resumes at.  done: samples that were trained until then.
    """
    batchsize = flags.batchsize * flags.accumulate
    steps_per_epoch = max(1, samples // batchsize)
    offset = done / batchsize - step
    max_steps = flags.max_steps or math.ceil(flags.max_epoch * steps_per_epoch - offset)
    return Schedule(steps_per_epoch, max_steps, bool(flags.max_steps), offset)


def warn_of_short_run(flags, samples, schedule):
    """Say so before a run that is too short for a network to learn anything, where nobody asked for that."""
    if not schedule.by_steps and schedule.max_steps + schedule.offset < FEW_STEPS:
        logging.warning('%d samples in batches of %d are %d steps an epoch, so that --max-epoch=%d ends at step %d, '
                        'with %d steps of warm-up: too few to learn from; give --max-steps=2000 or a smaller '
                        '--batchsize (etcs/own_data.md)', samples, flags.batchsize * flags.accumulate,
                        schedule.steps_per_epoch, flags.max_epoch, schedule.max_steps, flags.warmup_steps)


def samples_per_process(flags, cluster):
    """How many samples a process takes in for each update."""
    return flags.batchsize * flags.accumulate // cluster.size


def complete_flags(flags):
    """Set what the flags left open to what the recipe says. Raises UserError where they contradict each other."""
    if flags.recipe == 'paper':
        if flags.model not in PAPER_MODELS:
            raise UserError('--recipe=paper is that of %s; give --recipe=default for --model=%s'
                            % (' and '.join(PAPER_MODELS), flags.model))
        if flags.optimizer == 'adam':
            raise UserError('--recipe=paper means --optimizer=sgd; leave one of --recipe and --optimizer out')
    if flags.momentum is not None and 'sgd' not in (flags.optimizer, RECIPES[flags.recipe]['optimizer']):
        raise UserError('--momentum is for --optimizer=sgd; give that too')
    if flags.backbone_lr != 1 and '' in networks.entry(flags.model).pretrained.prefixes:
        raise UserError('--backbone-lr: all layers of %s come from its pretrained weights; lower --lr instead'
                        % flags.model)
    if flags.freeze_batch_norm and flags.model in PAPER_MODELS:
        raise UserError('--freeze-batch-norm: %s has no batch norm; leave it out' % flags.model)
    for name, value in RECIPES[flags.recipe].items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)


def recipe_of(flags, loss_scale=0.0):
    """The Recipe of flags that complete_flags has completed."""
    paper = flags.recipe == 'paper'
    return Recipe(flags.optimizer, flags.momentum, flags.weight_decay, flags.warmup_steps, paper,
                  paper and max(1, PAPER_DECAY_SAMPLES // (flags.batchsize * flags.accumulate)), flags.accumulate,
                  loss_scale, flags.backbone_lr, networks.entry(flags.model).pretrained.prefixes,
                  flags.freeze_batch_norm, flags.clip_norm or 0.0, flags.ema, flags.teacher)
