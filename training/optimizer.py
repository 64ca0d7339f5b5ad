"""How gradients change the weights: the learning rate over time, the optimizer, and what is particular to a layer."""
import argparse
import collections
import math
import re

from pose_cli import UserError, non_negative_int, positive_int

EPOCHS_PER_LR = 5  # of several learning rates
# Measured from scratch (etcs/experiments.md): enough for vgg at 0.001, and no loss for the others.
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
# accumulate: batches per update.  loss_scaling: a precision.LossScale's work is needed.
Recipe = collections.namedtuple('Recipe', 'optimizer momentum weight_decay warmup_steps factors decay_steps accumulate '
                                          'loss_scaling', defaults=('adam', 0.9, 0.0, 0, False, 0, 1, False))


def add_flags(add):
    """The flags of this module. add: the add_argument of a parser."""
    add('--lr', type=learning_rates, help='one value: cosine decay; a,b,c: a step every 5 epochs (default 0.001)')
    add('--warmup-steps', type=non_negative_int, help='steps in which the learning rate rises from 0 (default %d; 0: '
                                                      'none)' % WARMUP_STEPS)
    add('--optimizer', choices=('adam', 'sgd'), help='(default adam)')
    add('--momentum', type=share, help='of --optimizer=sgd (default 0.9)')
    add('--weight-decay', type=share, help='times the weights is added to their gradients; not to biases (default 0)')
    add('--recipe', choices=sorted(RECIPES), default='default',
        help="paper: the authors' solver, for %s, where other flags do not say otherwise" % ' and '.join(PAPER_MODELS))
    add('--accumulate', type=positive_int, default=1, help='batches per update: their gradients are averaged')


def learning_rates(text):
    """'0.001' -> [0.001], '0.001,0.0001' -> [0.001, 0.0001]."""
    try:
        rates = [float(part) for part in text.split(',')]
    except ValueError:
        rates = [math.nan]
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError('%r is not a learning rate like 0.001, or several like 0.001,0.0001' % text)
    return rates


def share(text):
    """A flag's value from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError('%r is not a number from 0 to below 1' % text)
    return value


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
    for name, value in RECIPES[flags.recipe].items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)


def recipe_of(flags, loss_scaling=False):
    """The Recipe of flags that complete_flags has completed."""
    paper = flags.recipe == 'paper'
    return Recipe(flags.optimizer, flags.momentum, flags.weight_decay, flags.warmup_steps, paper,
                  paper and max(1, PAPER_DECAY_SAMPLES // (flags.batchsize * flags.accumulate)), flags.accumulate,
                  loss_scaling)


def learning_rate_schedule(rates, step, steps_per_epoch, max_steps, recipe=Recipe()):
    """The learning rate at a step, a scalar tensor.

    One rate: cosine decay to 0 over max_steps, or the recipe's steps; several: the next one every EPOCHS_PER_LR epochs.
    In the first recipe.warmup_steps it rises linearly to that: a run that is resumed is past them.
    """
    import tensorflow.compat.v1 as tf  # not above: this module's flags are checked without it
    if len(rates) > 1:
        boundaries = [EPOCHS_PER_LR * steps_per_epoch * k for k in range(1, len(rates))]
        rate = tf.train.piecewise_constant(step, boundaries, rates)
    elif recipe.decay_steps:
        rate = tf.train.exponential_decay(rates[0], step, recipe.decay_steps, PAPER_DECAY, staircase=True)
    else:
        rate = tf.train.cosine_decay(rates[0], step, max_steps)
    if recipe.warmup_steps:
        rate *= tf.minimum(1.0, (tf.cast(step, tf.float32) + 1) / recipe.warmup_steps)
    return rate


def create_optimizer(rate, recipe=Recipe()):
    """An Optimizer with the learning rate `rate`, a scalar tensor."""
    import tensorflow.compat.v1 as tf  # as above
    if recipe.optimizer == 'sgd':
        return Optimizer(tf.train.MomentumOptimizer(rate, recipe.momentum), recipe)
    return Optimizer(tf.train.AdamOptimizer(rate, epsilon=1e-8), recipe)


class Optimizer:
    """A tf.train.Optimizer to which a layer's own decay and rate are added.

    Args:
        optimizer: a tf.train.Optimizer.
        recipe: a Recipe.
    """

    def __init__(self, optimizer, recipe):
        self._optimizer, self._recipe = optimizer, recipe

    def compute_gradients(self, loss):
        """[(gradient, variable)] of all trainable variables."""
        return self._optimizer.compute_gradients(loss)

    def apply_gradients(self, gradients, global_step):
        """The operation that changes the variables and counts the step."""
        return self._optimizer.apply_gradients([(self._of_layer(*pair), pair[1]) for pair in gradients], global_step)

    def _of_layer(self, gradient, variable):
        """The gradient with weight decay, times the factor on the layer's rate (which, in SGD, is the same)."""
        decay, factor = layer_factors(published_name(variable.op.name), self._recipe)
        if decay:
            gradient += decay * variable
        return gradient if factor == 1 else factor * gradient


def published_name(name):
    """The name that a variable has in checkpoints, whichever tower's replica it is of (see towers.tower_scope)."""
    return re.sub(r'^replica_\d+/', '', name)


def layer_factors(name, recipe):
    """(weight decay, factor on the learning rate) of the variable called `name`."""
    layer, _, kind = name.rpartition('/')
    decay = recipe.weight_decay if kind.endswith('weights') else 0.0
    if not recipe.factors:
        return decay, 1.0
    return decay, ((PAPER_LATER_STAGES if layer.startswith('Mconv') else 1.0)
                   * (PAPER_BIASES if kind == 'biases' else 1.0))
