"""How gradients change the weights: the learning rate over time, and the optimizer."""
import tensorflow.compat.v1 as tf

EPOCHS_PER_LR = 5  # of several learning rates


def learning_rate_schedule(rates, step, steps_per_epoch, max_steps):
    """One rate: cosine decay to 0 over max_steps; several: the next one every EPOCHS_PER_LR epochs."""
    if len(rates) == 1:
        return tf.train.cosine_decay(rates[0], step, max_steps)
    boundaries = [EPOCHS_PER_LR * steps_per_epoch * k for k in range(1, len(rates))]
    return tf.train.piecewise_constant(step, boundaries, rates)


def create_optimizer(rate):
    """Adam with the learning rate `rate`, a scalar tensor."""
    return tf.train.AdamOptimizer(rate, epsilon=1e-8)
