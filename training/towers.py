"""One training step as a graph: a tower on each device with a replica of the variables, and their all-reduce.

A tower is a tower wherever it runs: all towers of all processes reduce their gradients together and apply the same
update, so that their variables stay alike. What the processes decide together travels with the gradients.

TensorFlow's collectives of one step may start in any order on each device, and wait for each other for ever where the
orders differ. So what is reduced is packed into few buckets, and each bucket waits for the one before it.
"""
import collections
import contextlib

import numpy as np

import networks
from batches.batch import FIXED_POINT, Batch, mask_steps
from networks.network_base import build_losses
from networks.tensorflow import tf

from .cluster import ALONE
from .config import Recipe
from .optimizer import Optimizer, average_weights, kept_share, learning_rate_schedule
from .teacher import completed_labels, read_teacher

AVERAGES = '/moving_mean', '/moving_variance'  # of batch norm: how the names of their variables end
BUCKET_BYTES = 1 << 24
FIRST_COPY = 0  # the instance keys of one graph must differ: those that copy variables, and those of a step
FIRST_STEP = 1 << 16

# step: steps done, with the one that is running. metrics: what is logged; between processes also `stop`, above 0 when
# one of them was told to stop. finite_check: a number that is NaN or infinite when the loss or a gradient is.
# variables: what a checkpoint holds. copy: the operation that makes all replicas like the first one. stop: between
# processes, a placeholder, 1 when this one was told to stop. busy_seconds: from a batch's arrival to its gradients,
# computed only in steps that fetch it. wire_bytes: what a tower sends a step. loss_scale: of mixed precision, or 0.
# averages: {name of a variable of the network: its moving average}, where the recipe wants them.
Training = collections.namedtuple(
    'Training', 'network step rate metrics finite_check variables copy stop busy_seconds wire_bytes loss_scale '
    'averages', defaults=({},))
# network: a networks.Network. losses: {name: scalar}, see network_base.build_losses. gradients: [(gradient, own
# variable)]. updates: the operations that update the moving averages of batch norm.
Tower = collections.namedtuple('Tower', 'network losses gradients updates')
# Of each tower: gradients [(mean gradient, variable)] and averages [(variable of batch norm, mean)].
Reduced = collections.namedtuple('Reduced', 'gradients averages metrics stop wire_bytes')
# Who reduces together. size: members, over all processes. key: of the group, one for each set of members.
# communication: 'nccl', between GPUs alone, or 'ring'. final: what the sum becomes, 'Div' the mean, 'Id'
# itself.
Group = collections.namedtuple('Group', 'size key communication final')


def build_training(model, batch, devices, rates, schedule, skeleton, recipe=Recipe(), cluster=ALONE,
                   communication='ring'):
    """The whole graph of one training step, see Training.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: a batches.batch.Batch of tensors, as from input_queue.InputQueueHook: this process's share.
        devices: one for each tower of this process.  cluster: the processes.
        rates, schedule: see optimizer.learning_rate_schedule.  recipe: a config.Recipe.
        communication: how towers reduce, see devices.tower_devices.
    """
    global_step = tf.train.get_or_create_global_step()
    rate = learning_rate_schedule(rates, global_step, schedule, recipe)
    teacher = read_teacher(recipe.teacher, skeleton, len(devices) * recipe.accumulate) if recipe.teacher else None
    towers, optimizers, replicas, averaged = [], [], [[] for _ in devices], []
    with tf.device('/cpu:0'):
        parts = split_batch(batch, len(devices), skeleton)
    for k, (device, part) in enumerate(zip(devices, parts)):
        with tower_scope(k, device), collected(replicas[k]):
            optimizers.append(Optimizer(rate, recipe))
            towers.append(tower_gradients(model, part, optimizers[k], skeleton, recipe.accumulate,
                                          recipe.freeze_batch_norm, teacher))

    if len(devices) * cluster.size == 1:
        reduced = Reduced([towers[0].gradients], [[]], towers[0].losses, None, 0)
    else:
        reduced = reduce_towers(towers, devices, cluster, communication)
    updates, kept = [], [kept_share(recipe.ema, global_step)] if recipe.ema else []
    for k, device in enumerate(devices):
        with tf.device(device), collected(replicas[k]):
            # What averages keep is read before this counts the step: after it, TensorFlow 1.15 reads either value.
            with tf.control_dependencies(towers[k].updates + kept):
                updates.append(optimizers[k].apply_gradients(reduced.gradients[k], None if k else global_step))
            updates += [tf.assign(variable, value) for variable, value in reduced.averages[k]]
    for k, device in enumerate(devices if recipe.ema else ()):
        with tf.device(device), collected(replicas[k]):
            averaged.append(average_weights(towers[k].network.variables, kept[0], updates))
    with tf.device(devices[0]):
        finite_check = optimizers[0].finite_check(reduced.metrics['loss'], reduced.gradients[0])
    with tf.control_dependencies(updates + [operation for operations, _ in averaged for operation in operations]):
        step = tf.identity(global_step)

    others = {variable.op.name for replica in replicas[1:] for variable in replica}
    return Training(
        towers[0].network, step, rate, dict(reduced.metrics, lr=rate), finite_check,
        variables=[variable for variable in tf.global_variables() if variable.op.name not in others],
        copy=copy_variables([global_step], replicas, devices, cluster, communication), stop=reduced.stop,
        busy_seconds=busy_seconds(batch, towers[0].gradients), wire_bytes=reduced.wire_bytes,
        loss_scale=optimizers[0].loss_scale, averages=averaged[0][1] if averaged else {})


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


def reduce_towers(towers, devices, cluster, communication):
    """Reduce over all towers of all processes, see Reduced.

    The averages of batch norm become the means of what all towers measured, so that all replicas stay alike and any
    one can be saved; of the variances, too, it is the mean (as in other frameworks' data-parallel training).
    """
    gradients, averages, reports = [], [], []
    names = list(towers[0].losses)
    stop = tf.placeholder(tf.float32, (), 'stop') if cluster.size > 1 else None
    for tower, device in zip(towers, devices):
        with tf.device(device):
            latest_first = tower.gradients[::-1]  # the order in which they are worked out
            variables = [v for v in tower.network.variables if v.op.name.endswith(AVERAGES)]
            with tf.control_dependencies(tower.updates):
                updated = [variable.read_value() for variable in variables]
            report = tf.stack([tower.losses[name] for name in names] + ([] if stop is None else [stop]))
            tensors = [gradient for gradient, _ in latest_first] + updated + [report]
            means = all_reduce(tensors, step_group(devices, cluster.size, communication), FIRST_STEP)
        gradients.append(list(zip(means, [variable for _, variable in latest_first]))[::-1])
        averages.append(list(zip(variables, means[len(latest_first):])))
        reports.append(means[-1])
    metrics = dict(zip(names + ([] if stop is None else ['stop']), tf.unstack(reports[0])))
    return Reduced(gradients, averages, metrics, stop,
                   bytes_on_the_wire(tensors, len(devices) * cluster.size) if cluster.size > 1 else 0)


def busy_seconds(batch, gradients):
    """The seconds from a batch's arrival to its gradients, before anything waits for other processes."""
    with tf.device('/cpu:0'):
        with tf.control_dependencies(batch):
            start = tf.timestamp()
        with tf.control_dependencies([gradient for gradient, _ in gradients]):
            return tf.cast(tf.timestamp() - start, tf.float32)


def tower_gradients(model, batch, optimizer, skeleton, accumulate=1, freeze_batch_norm=False,
                    teacher=None):
    """Build a tower on the current device.

    Args:
        model: one of networks.NAMES.  skeleton: what it looks for.
        batch: its part of the batch, a batches.batch.Batch of tensors.
        optimizer: an optimizer.Optimizer, for its compute_gradients.
        accumulate: in so many slices, one after the other, so that memory is that of one. Losses and gradients are the
            means over them, which for losses that are means over samples are those of the whole; batch norm sees each
            slice by itself.
        freeze_batch_norm: see networks.get_network.  teacher: a teacher.Teacher that completes labels.
    Returns:
        a Tower.
    """
    tower = None
    with tf.device('/cpu:0'):
        slices = split_batch(batch, accumulate, skeleton)
    for number, fields in enumerate(slices):
        done = [] if tower is None else [*tower.losses.values(), *(gradient for gradient, _ in tower.gradients)]
        with tf.control_dependencies(done):
            # The identities make each field cross to this device once, and no slice begin before the last one ended.
            fields = Batch(*(tf.identity(field) for field in fields))
        with tf.variable_scope(tf.get_variable_scope(), reuse=number > 0 or None):
            next_slice = _slice_gradients(model, fields, optimizer, skeleton, freeze_batch_norm, teacher)
        tower = next_slice if tower is None else _sum(tower, next_slice)
    if accumulate == 1:
        return tower
    return tower._replace(losses={name: loss / accumulate for name, loss in tower.losses.items()},
                          gradients=[(gradient / accumulate, variable) for gradient, variable in tower.gradients])


def _slice_gradients(model, batch, optimizer, skeleton, freeze_batch_norm, teacher):
    image, heatmap, paf, mask = dense_maps(batch, skeleton)
    if teacher:
        heatmap, paf, mask = completed_labels(teacher, image, heatmap, paf, mask)
    earlier = set(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    network = networks.get_network(model, image, is_training=True, skeleton=skeleton,
                                   freeze_batch_norm=freeze_batch_norm)
    losses = build_losses(network.stages, heatmap, paf, mask, image.shape.as_list()[0],
                          last=network.stage_count - 1)
    gradients = optimizer.compute_gradients(losses['loss'], network.variables)
    updates = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in earlier]
    return Tower(network, losses, gradients, updates)


def _sum(tower, other):
    """Losses and gradients of both; batch norm is updated by the last slice, once a step as without slices."""
    return Tower(tower.network, {name: loss + other.losses[name] for name, loss in tower.losses.items()},
                 [(gradient + more, variable) for (gradient, variable), (more, _) in
                  zip(tower.gradients, other.gradients)], other.updates)


def split_batch(batch, parts, skeleton):
    """Cut a Batch of tensors into `parts` Batches of as many samples each, on the current device.

    The batch size must be known, and a multiple of parts.
    """
    batch = Batch(*batch)
    if parts == 1:
        return [batch]
    with tf.name_scope('split'):
        images, masks, labelled = (tf.split(field, parts) for field in (batch.image, batch.mask, batch.labelled))
        heatmaps = _split_items(batch.heatmap_positions, batch.heatmap_values, parts,
                                masks[0].shape.num_elements() * skeleton.heatmap_channels)
        pafs = _split_items(batch.paf_positions, batch.paf_values, parts,
                            masks[0].shape.num_elements() * len(skeleton.limbs))
        return [Batch(image, mask, known, *heatmap, *paf)
                for image, mask, known, heatmap, paf in zip(images, masks, labelled, heatmaps, pafs)]


def _split_items(positions, values, parts, items):
    """[(positions, values)] of each part, of which each has `items` positions in all."""
    ends = tf.searchsorted(positions, [items * part for part in range(parts + 1)])
    return [(positions[ends[k]:ends[k + 1]] - items * k, values[ends[k]:ends[k + 1]]) for k in range(parts)]


def dense_maps(batch, skeleton):
    """A Batch of tensors -> (image uint8, heatmap, paf and mask float32), bit by bit as batches.batch.decode_batch.

    The shapes of image and mask but for the number of samples must be known.
    """
    with tf.name_scope('maps'):
        _, height, width, _ = batch.mask.shape.as_list()
        cells = tf.shape(batch.mask)[0] * (height * width)
        empty = tf.tile(tf.one_hot(skeleton.background, skeleton.heatmap_channels), [cells])
        heatmap = tf.tensor_scatter_nd_update(empty, batch.heatmap_positions[:, None],
                                              _decode_values(batch.heatmap_values))
        paf = tf.scatter_nd(batch.paf_positions[:, None], _decode_values(batch.paf_values),
                            [cells * len(skeleton.limbs), 2])
        samples = batch.mask.shape.as_list()[0]
        heatmap, paf = (tf.reshape(maps, [samples or -1, height, width, channels]) for maps, channels in
                        ((heatmap, skeleton.heatmap_channels), (paf, skeleton.paf_channels)))
        mask = tf.cast(batch.mask, tf.float32) / mask_steps(batch.image, batch.mask)
        unknown = tf.matmul(1 - tf.cast(batch.labelled, tf.float32),
                            tf.constant(skeleton.parts_of_channels.T, tf.float32))
        return batch.image, heatmap, paf, mask * tf.cast(unknown < 0.5, tf.float32)[:, None, None]


def _decode_values(values):
    return (tf.cast(values, tf.float32) - FIXED_POINT) * (1 / FIXED_POINT)


def step_group(devices, processes, communication='ring'):
    """The group of all towers of all processes. devices: of this process."""
    return Group(len(devices) * processes, 1, communication, 'Div')


def process_group(processes, communication='ring'):
    """The group of the first towers of all processes."""
    return Group(processes, 2, communication, 'Id')


def buckets_of(tensors, limit=BUCKET_BYTES):
    """Numbers of the tensors, in order, as lists: each of one type and, where it has several, at most `limit` bytes."""
    buckets, room, dtype = [], 0, None
    for number, tensor in enumerate(tensors):
        size = int(np.prod(tensor.shape.as_list())) * tensor.dtype.size
        if tensor.dtype.base_dtype != dtype or size > room:
            buckets.append([])
            room, dtype = limit, tensor.dtype.base_dtype
        buckets[-1].append(number)
        room -= size
    return buckets


def all_reduce(tensors, group, first_key):
    """Reduce tensors of fixed shapes over a group, in chained buckets, on the current device.

    Every member of the group calls this for tensors of the same shapes, in the same order, with the same first_key.

    Returns:
        the reduced tensors, alike at all members to the last bit.
    """
    reduced, before = [], []
    for key, bucket in enumerate(buckets_of(tensors), first_key):
        flat = tf.concat([tf.reshape(tensors[k], [-1]) for k in bucket], 0)
        with tf.control_dependencies(before):
            flat = tf.raw_ops.CollectiveReduce(
                input=flat, group_size=group.size, group_key=group.key, instance_key=key, merge_op='Add',
                final_op=group.final, subdiv_offsets=[0], communication_hint=group.communication)
        before = [flat]
        shapes = [tensors[k].shape.as_list() for k in bucket]
        parts = tf.split(flat, [int(np.prod(shape)) for shape in shapes])
        reduced += [tf.reshape(part, shape) for part, shape in zip(parts, shapes)]
    return reduced


def bytes_on_the_wire(tensors, members):
    """Bytes that a member of a ring sends a step, and receives, to reduce these."""
    size = sum(int(np.prod(tensor.shape.as_list())) * tensor.dtype.size for tensor in tensors)
    return int(2 * size * (members - 1) / members)


def copy_variables(shared, replicas, devices, cluster, communication='ring'):
    """An operation that gives all replicas the values of the first replica of the first process.

    Args:
        shared: variables that each process has once.
        replicas: [[variable] of each replica of this process], alike.  devices: theirs.
        cluster: the processes, a cluster.Cluster.  communication: of a Group.
    """
    if len(replicas) * cluster.size == 1:
        return tf.no_op('copy_variables')
    first = sorted(shared + replicas[0], key=lambda variable: variable.dtype.base_dtype.as_datatype_enum)
    values, assigned = {variable.op.name: variable.value() for variable in first}, []
    if cluster.size > 1:
        with tf.device(devices[0]), tf.name_scope('copy_variables'):
            # Of the sum all terms but one are zero, so that it is exact.
            terms = [values[variable.op.name] if cluster.is_first else
                     tf.zeros(variable.shape, variable.dtype.base_dtype) for variable in first]
            sums = all_reduce(terms, process_group(cluster.size, communication), FIRST_COPY)
        values = {variable.op.name: value for variable, value in zip(first, sums)}
        assigned = [tf.assign(variable, values[variable.op.name]) for variable in first]
    for replica in replicas[1:]:
        assigned += [tf.assign(copy, values[variable.op.name]) for copy, variable in zip(replica, replicas[0])]
    return tf.group(*assigned, name='copy_variables_all')
