"""What the flags say of an update: learning rates, optimizer, precision.

Without TensorFlow, whose import takes seconds: bad flags are told at once.
"""
import argparse
import collections
import math

import networks
from pose_cli import UserError, non_negative_int, positive_int

# Measured from scratch (etcs/experiments.md): vgg at 0.001 then does not explode in its first steps.
WARMUP_STEPS = 50

# What the flags leave open, by --recipe. `paper` is the solver of the original's authors: their rate falls to 0.333 of
# itself every 136,106 steps of 10 samples.
RECIPES = {'default': {'optimizer': 'adam', 'lr': [0.001], 'momentum': 0.9, 'weight_decay': 0.0,
                       'warmup_steps': WARMUP_STEPS},
           'paper': {'optimizer': 'sgd', 'lr': [4e-5], 'momentum': 0.9, 'weight_decay': 5e-4, 'warmup_steps': 0}}
PAPER_MODELS = ('cmu', 'vgg')
PAPER_DECAY, PAPER_DECAY_SAMPLES = 0.333, 1361060
PAPER_LATER_STAGES, PAPER_BIASES = 4.0, 2.0  # factors on the learning rate

# optimizer, momentum, weight_decay, warmup_steps: as the flags.  factors: whether layers have the paper's own rates.
# decay_steps: one rate falls to PAPER_DECAY of itself every so many steps; 0: it follows a cosine.
# accumulate: batches per update.  loss_scaling: whether a precision.LossScale is needed.
# backbone_rate: a factor on the learning rate of the variables whose names start with one of `backbone`.
Recipe = collections.namedtuple('Recipe', 'optimizer momentum weight_decay warmup_steps factors decay_steps accumulate '
                                          'loss_scaling backbone_rate backbone',
                                defaults=('adam', 0.9, 0.0, 0, False, 0, 1, False, 1.0, ()))


def add_flags(add):
    """The flags of this module. add: the add_argument of a parser."""
    add('--lr', type=learning_rates, help='one value: cosine decay; a,b,c: a step every 5 epochs (default 0.001)')
    add('--backbone-lr', type=factor, default=1.0, metavar='FACTOR',
        help='times the learning rate is that of the layers that come from ImageNet; 0.1 keeps more of what they know '
             '(default 1)')
    add('--warmup-steps', type=non_negative_int, help='steps in which the learning rate rises from 0 (default %d; 0: '
                                                      'none)' % WARMUP_STEPS)
    add('--optimizer', choices=('adam', 'sgd'), help='(default adam)')
    add('--momentum', type=share, help='of --optimizer=sgd (default 0.9)')
    add('--weight-decay', type=share, help='times the weights is added to their gradients; not to biases (default 0)')
    add('--recipe', choices=sorted(RECIPES), default='default',
        help="paper: the authors' solver, for %s, where other flags do not say otherwise" % ' and '.join(PAPER_MODELS))
    add('--precision', choices=('float32', 'mixed'), default='float32',
        help='mixed: 16 bits where that is safe; needs a GPU, or a CPU with AVX512-BF16 or AMX on TensorFlow 2')
    add('--accumulate', type=positive_int, default=1, help='batches per update: their gradients are averaged')


def learning_rates(text):
    """'0.001' -> [0.001], '0.001,0.0001' -> [0.001, 0.0001]."""
    rates = [_number(part) for part in text.split(',')]
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError('%r is not a learning rate like 0.001, or several like 0.001,0.0001' % text)
    return rates


def share(text):
    """A flag's value from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError('%r is not a number from 0 to below 1' % text)
    return value


def factor(text):
    """A flag's value above 0, to 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError('%r is not a factor above 0, to 1' % text)
    return value


def _number(text):
    """A float; NaN, which is in no range, for text that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def complete_flags(flags):
    """Set what the flags left open to what the recipe says. Raises UserError where they contradict each other."""
    if flags.recipe == 'paper':
        if flags.model not in PAPER_MODELS:
            raise UserError('--recipe=paper is that of %s; leave it out for --model=%s'
                            % (' and '.join(PAPER_MODELS), flags.model))
        if flags.optimizer == 'adam':
            raise UserError('--recipe=paper means --optimizer=sgd; leave one of --recipe and --optimizer out')
    if flags.momentum is not None and 'sgd' not in (flags.optimizer, RECIPES[flags.recipe]['optimizer']):
        raise UserError('--momentum is for --optimizer=sgd; give that too')
    if flags.backbone_lr != 1 and '' in networks.entry(flags.model).pretrained.prefixes:
        raise UserError('--backbone-lr: all layers of %s come from its pretrained weights; lower --lr instead'
                        % flags.model)
    if flags.precision == 'mixed':
        from .precision import check_precision  # imports TensorFlow
        check_precision()
    for name, value in RECIPES[flags.recipe].items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)


def recipe_of(flags, loss_scaling=False):
    """The Recipe of flags that complete_flags has completed."""
    paper = flags.recipe == 'paper'
    return Recipe(flags.optimizer, flags.momentum, flags.weight_decay, flags.warmup_steps, paper,
                  paper and max(1, PAPER_DECAY_SAMPLES // (flags.batchsize * flags.accumulate)), flags.accumulate,
                  loss_scaling, flags.backbone_lr, networks.entry(flags.model).pretrained.prefixes)
