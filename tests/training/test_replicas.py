"""Buckets and the all-reduce, between CPU devices of this process."""
import numpy as np

import tensorflow.compat.v1 as tf
from training.cluster import ALONE
from training.towers import all_reduce, buckets_of, bytes_on_the_wire, copy_variables, process_group, step_group

DEVICES = ['/cpu:0', '/cpu:1', '/cpu:2']


def session():
    return tf.Session(config=tf.ConfigProto(device_count={'CPU': len(DEVICES)}))


def test_buckets_hold_one_type_and_so_many_bytes_in_order():
    with tf.Graph().as_default():
        tensors = [tf.zeros([10]), tf.zeros([5, 3]), tf.zeros([], tf.int64), tf.zeros([4]), tf.zeros([1000])]
        assert buckets_of(tensors, limit=100) == [[0, 1], [2], [3], [4]]
        assert buckets_of(tensors[:2], limit=99) == [[0], [1]]


def test_the_mean_comes_to_all_devices_alike_to_the_last_bit():
    rng = np.random.RandomState(0)
    values = [[rng.standard_normal(shape).astype(np.float32) for shape in ((7, 3), (), (2, 5, 4))] for _ in DEVICES]
    with tf.Graph().as_default(), session() as running:
        reduced = []
        for device, own in zip(DEVICES, values):
            with tf.device(device):
                reduced.append(all_reduce([tf.constant(value) for value in own], step_group(DEVICES, 1), 5))
        results = running.run(reduced)
    for k, parts in enumerate(zip(*values)):
        np.testing.assert_allclose(results[0][k], np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)
        for result in results[1:]:
            np.testing.assert_array_equal(result[k], results[0][k])


def test_copies_get_the_first_replica_s_values():
    with tf.Graph().as_default(), session() as running:
        replicas = []
        for k, device in enumerate(DEVICES):
            with tf.device(device):
                replicas.append([tf.get_variable('a%d' % k, initializer=np.float32([k, 1]), use_resource=False),
                                 tf.get_variable('b%d' % k, initializer=np.int64(k), use_resource=False)])
        copy = copy_variables([], replicas, DEVICES, ALONE)
        running.run(tf.global_variables_initializer())
        running.run(copy)
        for a, b in running.run(replicas):
            assert a.tolist() == [0, 1] and b == 0


def test_groups_and_what_they_send():
    assert step_group(['/gpu:0', '/gpu:1'], 3, 'nccl') == (6, 1, 'nccl', 'Div')
    assert process_group(3) == (3, 2, 'ring', 'Id')
    with tf.Graph().as_default():
        assert bytes_on_the_wire([tf.zeros([1000]), tf.zeros([24])], members=2) == 4096
        assert bytes_on_the_wire([tf.zeros([1024])], members=4) == 6144
