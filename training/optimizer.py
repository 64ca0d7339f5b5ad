"""How gradients change the weights: the learning rate over time, the optimizer, and what is particular to a layer."""
import re

from networks.pretrained import AVERAGE
from networks.tensorflow import tf

from .config import PAPER_BIASES, PAPER_DECAY, PAPER_LATER_STAGES, Recipe

EPOCHS_PER_LR = 5  # of several learning rates
LARGEST_SCALE, SMALLEST_SCALE, GROWTH_STEPS = 2.0 ** 15, 1.0, 2000  # of the loss


def learning_rate_schedule(rates, step, schedule, recipe=Recipe()):
    """The learning rate at a step, a scalar tensor.

    One rate: cosine decay to 0 over the run, or the recipe's steps; several: the next one every EPOCHS_PER_LR epochs.
    In the first recipe.warmup_steps it rises linearly to that: a run that is resumed is past them.

    Args:
        step: the global step, an integer tensor.
        schedule: a config.Schedule.
    """
    passed = tf.cast(step, tf.float32) + schedule.offset if schedule.offset else step
    if len(rates) > 1:
        boundaries = [EPOCHS_PER_LR * schedule.steps_per_epoch * k for k in range(1, len(rates))]
        rate = tf.train.piecewise_constant(tf.cast(passed, tf.float32), [float(at) for at in boundaries], rates)
    elif recipe.decay_steps:
        rate = tf.train.exponential_decay(rates[0], passed, recipe.decay_steps, PAPER_DECAY, staircase=True)
    elif schedule.by_steps:
        rate = tf.train.cosine_decay(rates[0], step, schedule.max_steps)
    else:
        rate = tf.train.cosine_decay(rates[0], passed, schedule.max_steps + schedule.offset)
    if recipe.warmup_steps:
        rate *= tf.minimum(1.0, (tf.cast(step, tf.float32) + 1) / recipe.warmup_steps)
    return rate


class Optimizer:
    """TensorFlow's optimizer, with what is particular to a layer, and the scale of the loss where it is needed.

    Args:
        rate: learning rate, a scalar tensor.
        recipe: a Recipe.
    """

    def __init__(self, rate, recipe=Recipe()):
        self._rate, self._recipe = rate, recipe
        self._scale = LossScale(recipe.loss_scale) if recipe.loss_scale else None
        self._optimizer = (tf.train.MomentumOptimizer(lambda: self._rate, recipe.momentum) if recipe.optimizer == 'sgd'
                           else LayerwiseAdam(lambda: self._rate, recipe))

    @property
    def loss_scale(self):
        """The scale of the loss, a scalar tensor; 0 where there is none."""
        return self._scale.value if self._scale else tf.constant(0.0)

    def compute_gradients(self, loss, variables):
        """[(gradient, variable)] of those variables that are trained and that the loss depends on."""
        trained = {variable.op.name for variable in tf.trainable_variables()}
        pairs = self._optimizer.compute_gradients(loss * self._scale.value if self._scale else loss,
                                                  [variable for variable in variables if variable.op.name in trained])
        return [(gradient / self._scale.value if self._scale else gradient, variable)
                for gradient, variable in pairs if gradient is not None]

    def finite_check(self, loss, gradients):
        """A number that is NaN or infinite when the loss or a gradient is; an overflow that the scale mends is not."""
        norm = tf.global_norm([gradient for gradient, _ in gradients])
        return loss + (tf.where(self._scale.overflowed(norm), 0.0, norm) if self._scale else norm)

    def apply_gradients(self, gradients, global_step):
        """The operation that changes the variables and counts the step.

        After an overflow the weights stay, the optimizer's averages go on as after gradients of 0, and the step counts:
        its samples are used up.
        """
        changes = [(self._of_layer(*pair), pair[1]) for pair in self._clipped(gradients)]
        if not self._scale:
            return self._optimizer.apply_gradients(changes, global_step)
        overflowed = self._scale.overflowed(tf.global_norm([gradient for gradient, _ in gradients]))
        self._rate = tf.where(overflowed, 0.0, self._rate)
        changes = [(tf.where(tf.fill(tf.shape(change), overflowed), tf.zeros_like(change), change), variable)
                   for change, variable in changes]
        with tf.control_dependencies([self._scale.update(overflowed)]):
            return self._optimizer.apply_gradients(changes, global_step)

    def _clipped(self, gradients):
        if not self._recipe.clip_norm:
            return gradients
        clipped, _ = tf.clip_by_global_norm([gradient for gradient, _ in gradients], self._recipe.clip_norm)
        return [(gradient, variable) for gradient, (_, variable) in zip(clipped, gradients)]

    def _of_layer(self, gradient, variable):
        """The gradient with weight decay and, in SGD, times the factor on the layer's rate, which there is the same."""
        decay, factor = layer_factors(published_name(variable.op.name), self._recipe)
        if decay:
            gradient += decay * variable
        return gradient if factor == 1 or self._recipe.optimizer != 'sgd' else factor * gradient


class LayerwiseAdam(tf.train.AdamOptimizer):
    """Adam (Kingma and Ba 2015) whose rate is each layer's own, see layer_factors.

    Its state has the names and values that TensorFlow's Adam gives it: a run can be resumed with other factors.
    """

    def __init__(self, rate, recipe):
        super().__init__(rate, epsilon=1e-8)
        self._recipe = recipe

    def _apply_dense(self, grad, var):
        return self._at_own_rate(super()._apply_dense, grad, var)

    def _resource_apply_dense(self, grad, var):
        return self._at_own_rate(super()._resource_apply_dense, grad, var)

    def _at_own_rate(self, apply, gradient, variable):
        _, factor = layer_factors(published_name(variable.op.name), self._recipe)
        rate = self._lr_t  # TensorFlow's: set before the first variable is updated, read for each
        self._lr_t = rate if factor == 1 else factor * rate
        update = apply(gradient, variable)
        self._lr_t = rate
        return update


def published_name(name):
    """The name that a variable has in checkpoints, whichever tower's replica it is of (see towers.tower_scope)."""
    return re.sub(r'^replica_\d+/', '', name)


def layer_factors(name, recipe):
    """(weight decay, factor on the learning rate) of the variable called `name`."""
    layer, _, kind = name.rpartition('/')
    decay = recipe.weight_decay if kind.endswith('weights') else 0.0
    factor = recipe.backbone_rate if name.startswith(recipe.backbone) else 1.0
    if recipe.factors:
        factor *= ((PAPER_LATER_STAGES if layer.startswith('Mconv') else 1.0)
                   * (PAPER_BIASES if kind == 'biases' else 1.0))
    return decay, factor


def kept_share(decay, step):
    """The share that moving averages keep of themselves in a step: `decay`, but less in the first steps, which are soon
    forgotten. step: the global step; read before the step changes it, whatever depends on this."""
    steps = tf.cast(step, tf.float32) + 1
    return tf.where(steps > 1, tf.minimum(decay, (1 + steps) / (10 + steps)), 0.0)


def average_weights(variables, kept, updates):
    """Keep moving averages of variables (Polyak and Juditsky 1992).

    Not tf.train.ExponentialMovingAverage: it reads the variables of graph mode at no fixed moment of a step.

    Args:
        kept: as from kept_share.  updates: the operations of a step that change the variables.
    Returns:
        ([operation that updates an average], {name of a variable: its average}).
    """
    operations, averages = [], {}
    with tf.control_dependencies(updates):
        for variable in variables:
            average = tf.get_variable('%s/%s' % (variable.op.name, AVERAGE), variable.shape.as_list(), tf.float32,
                                      tf.zeros_initializer(), trainable=False, use_resource=False)
            operations.append(tf.assign_sub(average, (average.read_value() - variable.read_value()) * (1 - kept)))
            averages[variable.op.name] = average
    return operations, averages


class LossScale:
    """The factor on the loss: halved when a gradient overflows, doubled after GROWTH_STEPS steps in which none did.

    TensorFlow's own DynamicLossScale keeps its state in checkpoints, so that a run could not be resumed in another
    precision. Here it is local to the session; run.json keeps the scale of each checkpoint.

    start: the first scale.
    """

    def __init__(self, start=LARGEST_SCALE):
        def variable(name, value):
            return tf.get_variable('loss_scale/' + name, initializer=value, trainable=False, use_resource=True,
                                   collections=[tf.GraphKeys.LOCAL_VARIABLES])
        self._scale, self._good = variable('scale', start), variable('good_steps', 0.0)
        self.value = self._scale.read_value()  # in this step

    def overflowed(self, norm):
        """Whether the step must be skipped, for the norm of all gradients. At the smallest scale it need not."""
        return tf.logical_and(tf.logical_not(tf.is_finite(norm)), self.value > SMALLEST_SCALE)

    def update(self, overflowed):
        """The operation that sets the scale of the next step."""
        good = tf.where(overflowed, 0.0, self._good.read_value() + 1)
        grown = tf.where(good >= GROWTH_STEPS, tf.minimum(2 * self.value, LARGEST_SCALE), self.value)
        scale = tf.where(overflowed, tf.maximum(self.value / 2, SMALLEST_SCALE), grown)
        return tf.group(self._scale.assign(scale), self._good.assign(tf.where(good >= GROWTH_STEPS, 0.0, good)))
