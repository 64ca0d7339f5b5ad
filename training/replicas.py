"""Copies of the variables, one a tower, that stay alike: one all-reduce a step over all towers of all processes.

TensorFlow's collectives of one step may start in any order on each device, and wait for each other for ever where the
orders differ. So what is reduced is packed into few buckets, and each bucket waits for the one before it.
"""
import collections

import numpy as np
import tensorflow.compat.v1 as tf

BUCKET_BYTES = 1 << 24
FIRST_COPY = 0  # the instance keys of one graph must differ: those that copy variables, and those of a step
FIRST_STEP = 1 << 16

# Who reduces together. size: members, over all processes. key: of the group, one for each set of members. hint: 'nccl'
# where all of them are GPUs, else 'ring'. final: what the sum of all becomes, 'Div' the mean, 'Id' itself.
Group = collections.namedtuple('Group', 'size key hint final')


def step_group(devices, processes):
    """The group of all towers of all processes. devices: of this process."""
    return Group(len(devices) * processes, 1, 'nccl' if 'gpu' in devices[0].lower() else 'ring', 'Div')


def process_group(devices, processes):
    """The group of the first towers of all processes."""
    return step_group(devices, processes)._replace(size=processes, key=2, final='Id')


def pack(tensors, limit=BUCKET_BYTES):
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
    for key, bucket in enumerate(pack(tensors), first_key):
        flat = tf.concat([tf.reshape(tensors[k], [-1]) for k in bucket], 0)
        with tf.control_dependencies(before):
            flat = tf.raw_ops.CollectiveReduce(
                input=flat, group_size=group.size, group_key=group.key, instance_key=key, merge_op='Add',
                final_op=group.final, subdiv_offsets=[0], communication_hint=group.hint)
        before = [flat]
        shapes = [tensors[k].shape.as_list() for k in bucket]
        parts = tf.split(flat, [int(np.prod(shape)) for shape in shapes])
        reduced += [tf.reshape(part, shape) for part, shape in zip(parts, shapes)]
    return reduced


def bytes_on_the_wire(tensors, members):
    """Bytes that a member of a ring sends a step, and receives, to reduce these."""
    size = sum(int(np.prod(tensor.shape.as_list())) * tensor.dtype.size for tensor in tensors)
    return int(2 * size * (members - 1) / members)


def copy_variables(shared, replicas, devices, cluster):
    """An operation that gives all replicas the values of the first replica of the first process.

    Args:
        shared: variables that each process has once.
        replicas: [[variable] of each replica of this process], alike.  devices: theirs.
        cluster: the processes, a cluster.Cluster.
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
            sums = all_reduce(terms, process_group(devices, cluster.size), FIRST_COPY)
        values = {variable.op.name: value for variable, value in zip(first, sums)}
        assigned = [tf.assign(variable, values[variable.op.name]) for variable in first]
    for replica in replicas[1:]:
        assigned += [tf.assign(copy, values[variable.op.name]) for copy, variable in zip(replica, replicas[0])]
    return tf.group(*assigned, name='copy_variables_all')
