"""One training step as a graph: towers with a replica of the variables each, the mean of their gradients, the update.

A tower is a tower wherever it runs: all towers of all processes reduce their gradients together and apply the same
update, so that their variables stay alike. What the processes decide together travels with the gradients.
"""
import collections
import contextlib
import logging

import tensorflow.compat.v1 as tf

import pose_skeleton
from pose_cli import UserError

from .cluster import ALONE
from .cuda import why_no_gpu
from .gradients import tower_gradients
from .maps import split_batch
from .optimizer import Optimizer, learning_rate_schedule
from .recipes import Recipe
from .replicas import FIRST_STEP, all_reduce, bytes_on_the_wire, copy_variables, step_group

AVERAGES = '/moving_mean', '/moving_variance'  # of batch norm: how the names of their variables end

# step: steps done, with the one that is running. figures: what is logged; between processes also `stop`, above 0 when
# one of them was told to stop, and `seconds` (processes, 2): of waiting for data, of computing. health: a number that
# is NaN or infinite when the loss or a gradient is. variables: what a checkpoint holds. copy: the operation that makes
# all replicas like the first one. stop, waited: between processes, placeholders of what each tells: 1 when it was told
# to stop, and for how many seconds it waited for data. wire_bytes: what a tower sends a step.
Training = collections.namedtuple('Training', 'network step rate figures health variables copy stop waited wire_bytes')
# Of each tower: gradients [(mean gradient, variable)] and averages [(variable of batch norm, mean)].
Reduced = collections.namedtuple('Reduced', 'gradients averages figures stop waited wire_bytes')


def tower_devices(towers, gpus, cluster=ALONE):
    """One device name per tower, and the session's configuration. gpus: how many TensorFlow sees."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    process = ''
    if cluster.size > 1:
        process = '/job:worker/task:%d' % cluster.index
        config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        config.device_filters.append(process)  # else /cpu:0 is that of the first process
    if gpus:
        if towers > gpus:
            raise UserError('--gpus=%d, but TensorFlow sees only %d; lower --gpus or check nvidia-smi' % (towers, gpus))
        return ['%s/gpu:%d' % (process, k) for k in range(towers)], config
    logging.warning('TensorFlow sees no GPU%s: %s', why_no_gpu(tf.__version__),
                    'training on the CPU' if towers == 1 else
                    'the %d towers run on CPU devices of this machine' % towers)
    config.device_count['CPU'] = towers
    return ['%s/cpu:%d' % (process, k) for k in range(towers)], config


def build_training(model, batch, devices, rates, steps_per_epoch, max_steps, skeleton=pose_skeleton.COCO,
                   recipe=Recipe(), cluster=ALONE):
    """The whole graph of one training step, see Training.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: a pose_batches.Batch of tensors, as from feed.FeedHook: this process's share.
        devices: one for each tower of this process.  cluster: the processes.
        rates: learning rates, see learning_rate_schedule.  recipe: a recipes.Recipe.
    """
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(rates, global_step, steps_per_epoch, max_steps, recipe)
    towers, optimizers, replicas = [], [], [[] for _ in devices]
    with tf.device('/cpu:0'):
        parts = split_batch(batch, len(devices), skeleton)
    for k, (device, part) in enumerate(zip(devices, parts)):
        with tower_scope(k, device), collected(replicas[k]):
            optimizers.append(Optimizer(rate, recipe))
            towers.append(tower_gradients(model, part, optimizers[k], skeleton, recipe.accumulate))

    if len(devices) * cluster.size == 1:
        reduced = Reduced([towers[0].gradients], [[]], towers[0].losses, None, None, 0)
    else:
        reduced = reduce_towers(towers, devices, batch, cluster)
    updates = []
    for k, device in enumerate(devices):
        with tf.device(device), collected(replicas[k]):
            with tf.control_dependencies(towers[k].updates):
                updates.append(optimizers[k].apply_gradients(reduced.gradients[k], None if k else global_step))
            updates += [tf.assign(variable, value) for variable, value in reduced.averages[k]]
    with tf.device(devices[0]):
        health = optimizers[0].health(reduced.figures['loss'], reduced.gradients[0])
    with tf.control_dependencies(updates):
        step = tf.identity(global_step)

    others = {variable.op.name for replica in replicas[1:] for variable in replica}
    return Training(
        towers[0].network, step, rate, dict(reduced.figures, lr=rate), health,
        variables=[variable for variable in tf.global_variables() if variable.op.name not in others],
        copy=copy_variables([global_step], replicas, devices, cluster), stop=reduced.stop, waited=reduced.waited,
        wire_bytes=reduced.wire_bytes)


@contextlib.contextmanager
def tower_scope(k, device):
    """Where tower k is built. The first one's variables have the published names, the others' a prefix."""
    scope = tf.variable_scope('replica_%d' % k, auxiliary_name_scope=False) if k else \
        tf.variable_scope(tf.get_variable_scope())
    with tf.device(device), tf.name_scope('tower_%d' % k), scope:
        yield


@contextlib.contextmanager
def collected(variables):
    """Append the global variables that are made meanwhile to a list."""
    before = len(tf.global_variables())
    yield
    variables += tf.global_variables()[before:]


def reduce_towers(towers, devices, batch, cluster):
    """Reduce over all towers of all processes, see Reduced.

    The averages of batch norm become the means of what all towers measured, so that all replicas stay alike and any
    one can be saved; of the variances, too, it is the mean (as in other frameworks' data-parallel training).
    """
    gradients, averages, told = [], [], []
    names, stop, waited = list(towers[0].losses), None, None
    reports = [tf.stack([tower.losses[name] for name in names]) for tower in towers]
    if cluster.size > 1:
        stop, waited = tf.placeholder(tf.float32, (), 'stop'), tf.placeholder(tf.float32, (), 'waited')
        with tf.device(devices[0]):
            seconds = tf.stack([waited, busy_seconds(batch, towers[0].gradients)])
            own = tf.one_hot(cluster.index, cluster.size)[:, None] * seconds * len(devices) * cluster.size
            zeros = tf.zeros([2 * cluster.size])
        reports = [tf.concat([report, [stop], zeros if k else tf.reshape(own, [-1])], 0)
                   for k, report in enumerate(reports)]
    for tower, device, report in zip(towers, devices, reports):
        with tf.device(device):
            latest_first = tower.gradients[::-1]  # the order in which they are worked out
            variables = [v for v in tower.network.variables if v.op.name.endswith(AVERAGES)]
            with tf.control_dependencies(tower.updates):
                updated = [variable.read_value() for variable in variables]
            tensors = [gradient for gradient, _ in latest_first] + updated + [report]
            means = all_reduce(tensors, step_group(devices, cluster.size), FIRST_STEP)
        gradients.append(list(zip(means, [variable for _, variable in latest_first]))[::-1])
        averages.append(list(zip(variables, means[len(latest_first):])))
        told.append(means[-1])
    figures = dict(zip(names, tf.unstack(told[0][:len(names)])))
    if cluster.size > 1:
        figures['stop'] = told[0][len(names)]
        figures['seconds'] = tf.reshape(told[0][len(names) + 1:], [cluster.size, 2])
    return Reduced(gradients, averages, figures, stop, waited,
                   bytes_on_the_wire(tensors, len(devices) * cluster.size) if cluster.size > 1 else 0)


def busy_seconds(batch, gradients):
    """The seconds from a batch's arrival to its gradients, before anything waits for other processes."""
    with tf.control_dependencies(batch):
        start = tf.timestamp()
    with tf.control_dependencies([gradient for gradient, _ in gradients]):
        return tf.cast(tf.timestamp() - start, tf.float32)
