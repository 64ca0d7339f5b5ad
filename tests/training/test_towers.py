"""Towers: the same training whatever their number and wherever they run, each with its variables on its own device."""
import json
import subprocess
import sys
import types

import numpy as np
import pytest

import small_network
import tensorflow.compat.v1 as tf
from conftest import free_ports, program_environment, wait_for
from annotations.skeleton import COCO_SKELETON
from batches.batch import Batch, batch_layout
from pose_errors import UserError
from tower_graphs import SIZE, Towers, five_steps, random_batch
from training.cluster import Cluster
from training.config import Recipe, Schedule
from training import devices as devices_of
from training.devices import tower_devices
from training.towers import build_training


def assert_same_weights(weights, expected):
    """To 1e-4 of each variable's largest value."""
    assert sorted(weights) == sorted(expected) and len(expected) == 2 * 11
    worst = max((np.abs(weights[name] - expected[name]).max() / np.abs(expected[name]).max(), name)
                for name in expected)
    assert worst < (1e-4, '')


@pytest.fixture(scope='module')
def one_tower():
    return five_steps(1)


@pytest.mark.slow
@pytest.mark.parametrize('towers, accumulate', [(4, 1), (1, 4), (2, 2)])
def test_towers_and_accumulated_batches_train_as_one(one_tower, towers, accumulate):
    assert_same_weights(five_steps(towers, recipe=Recipe(accumulate=accumulate)), one_tower)


@pytest.mark.slow
def test_two_processes_with_two_towers_train_as_one(one_tower, tmp_path):
    workers = ['127.0.0.1:%d' % port for port in free_ports(2)]
    processes = []
    try:
        for k in range(2):
            config = {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': k}}
            processes.append(subprocess.Popen(
                [sys.executable, __file__.replace('test_towers', 'tower_graphs'), '2', str(tmp_path / 'weights.npz')],
                env=program_environment(TF_CONFIG=json.dumps(config))))
        wait_for(lambda: all(process.poll() is not None for process in processes), 'two processes still run', 600)
        assert [process.returncode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    with np.load(str(tmp_path / 'weights.npz')) as weights:
        assert_same_weights(dict(weights), one_tower)


@pytest.fixture(scope='module')
def two_towers():
    """The small network on 2 CPU devices: its state before and after a step, and what ran where in it."""
    towers = Towers(small_network.NAME, 2, batchsize=4, rate=1e-3)
    towers.session.run(towers.training.copy)
    saved = {variable.op.name: variable for variable in towers.training.variables}
    before = towers.session.run(saved)
    metadata = tf.RunMetadata()
    towers.run([towers.training.step, towers.training.metrics], random_batch(4),
               options=tf.RunOptions(output_partition_graphs=True), run_metadata=metadata)
    partitions = {graph.node[0].device.rsplit('/', 1)[1].lower(): list(graph.node)
                  for graph in metadata.partition_graphs}
    copies = {name: towers.variables['replica_1/' + name] for name in saved
              if 'replica_1/' + name in towers.variables}
    return types.SimpleNamespace(before=before, after=towers.session.run(saved), graph=towers.graph,
                                 copies=towers.session.run(copies), partitions=partitions)


@pytest.fixture(scope='module')
def per_tower(two_towers):
    """[(gradients, batch norm's averages after the step)] of each half of the batch, on a graph of one tower."""
    single = Towers(small_network.NAME, 1, batchsize=2, rate=1e-3)
    trained = single.training.network.variables
    results = []
    for part in (slice(0, 2), slice(2, 4)):
        single.set_weights(two_towers.before)
        single.run(single.training.step, [field[part] for field in random_batch(4)])
        moments = {v.op.name: single.variables[v.op.name + '/Adam'] for v in trained if v.trainable}
        averages = {v.op.name: v for v in trained if v.op.name.endswith(('moving_mean', 'moving_variance'))}
        results.append(single.session.run([moments, averages]))
    return results


@pytest.mark.slow
def test_the_update_is_that_of_the_mean_of_the_towers_gradients(two_towers, per_tower):
    """Adam by hand: its first moment is 0.1 of the gradient after one step, its second 0.001 of the square."""
    for name in per_tower[0][0]:
        gradient = 10 * (per_tower[0][0][name] + per_tower[1][0][name]) / 2
        moment = two_towers.after[name + '/Adam']
        np.testing.assert_allclose(moment, 0.1 * gradient, rtol=0, atol=1e-4 * np.abs(moment).max() + 1e-12,
                                   err_msg=name)
        step = 1e-3 * moment / 0.1 / (np.sqrt(two_towers.after[name + '/Adam_1'] / 0.001) + 1e-8 / 0.001 ** 0.5)
        np.testing.assert_allclose(two_towers.after[name], two_towers.before[name] - step, rtol=1e-4, atol=2e-6,
                                   err_msg=name)


@pytest.mark.slow
def test_batch_norm_averages_are_the_mean_over_the_towers(two_towers, per_tower):
    assert len(per_tower[0][1]) == 2 * 10
    for name in per_tower[0][1]:
        expected = (per_tower[0][1][name] + per_tower[1][1][name]) / 2
        np.testing.assert_allclose(two_towers.after[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_replicas_stay_alike_to_the_last_bit(two_towers):
    assert len(two_towers.copies) == len([name for name in two_towers.before if 'power' not in name]) - 1
    for name, value in two_towers.copies.items():
        np.testing.assert_array_equal(value, two_towers.after[name], err_msg=name)


@pytest.mark.slow
def test_a_checkpoint_has_the_published_names_alone(two_towers):
    assert not [name for name in two_towers.before if 'replica' in name or 'tower' in name]
    assert {'global_step', 'beta1_power', 'First/weights'} <= set(two_towers.before)


@pytest.mark.slow
def test_each_tower_computes_on_its_own_device(two_towers):
    assert set(two_towers.partitions) == {'device:cpu:0', 'device:cpu:1'}
    for k in range(2):
        nodes = two_towers.partitions['device:cpu:%d' % k]
        scopes = {part for node in nodes if node.op in ('Conv2DBackpropFilter', 'L2Loss')
                  for part in node.name.split('/') if part.startswith('tower_')}
        assert scopes == {'tower_%d' % k}
        assert len([node for node in nodes if node.op == 'L2Loss']) == 2 * 2 + 2  # in two stages, and background
        # ... and changes its own variables.
        assert {node.name.startswith('replica_') for node in nodes
                if node.op == 'VariableV2' and node.name.endswith('weights')} == {k > 0}
        assert len([node for node in nodes if node.op == 'ApplyAdam']) == 31


@pytest.mark.slow
def test_nothing_but_its_slice_and_scalars_is_sent_to_a_tower(two_towers):
    nodes = [node for node in two_towers.partitions['device:cpu:0'] if node.op in ('_Send', '_HostSend')]
    names = [node.attr['tensor_name'].s.decode() for node in nodes]
    assert [node.attr['T'].type for node in nodes].count(tf.uint8.as_datatype_enum) == 3  # image, mask, labelled
    assert len([name for name in names if 'split' in name.lower()]) == 7, names  # these, positions and values
    assert not [name for name in names if 'weights' in name or 'Grad' in name], names


@pytest.mark.slow
def test_collectives_are_chained(two_towers):
    """Each waits for the one before it; else two devices could start them in different orders, and wait for ever."""
    for nodes in two_towers.partitions.values():
        keys = {node.name: node.attr['instance_key'].i for node in nodes if node.op == 'CollectiveReduce'}
        assert keys and len(set(keys.values())) == len(keys)
    chained = [op for op in two_towers.graph.get_operations() if op.type == 'CollectiveReduce']
    first = min(op.get_attr('instance_key') for op in chained)
    for op in chained:
        if op.get_attr('instance_key') > first:
            before, = [control for control in op.control_inputs if control.type == 'CollectiveReduce']
            assert before.get_attr('instance_key') == op.get_attr('instance_key') - 1


@pytest.mark.slow
def test_one_tower_reduces_nothing():
    graph = Towers(small_network.NAME, 1, batchsize=2, rate=1e-3).graph
    assert not [op for op in graph.get_operations() if 'Collective' in op.type or 'replica' in op.name]


@pytest.mark.slow
def test_layers_with_rates_of_their_own_have_them_in_all_replicas():
    towers = Towers(small_network.NAME, 2, batchsize=2, rate=1e-3,
                    recipe=Recipe('sgd', 0.9, 5e-4, factors=True))
    towers.session.run(towers.training.copy)
    for seed in range(3):
        towers.run(towers.training.step, random_batch(2, seed=seed))
    values = towers.session.run(towers.variables)
    copies = [name for name in values if name.startswith('replica_1/')]
    assert copies
    for name in copies:
        np.testing.assert_array_equal(values[name], values[name[len('replica_1/'):]], err_msg=name)


def test_what_reduces_is_what_was_chosen():
    """In the step, and where processes get the first one's variables."""
    import small_network
    with tf.Graph().as_default() as graph:
        fields = Batch(*(tf.placeholder(dtype, shape) for _, dtype, shape in
                         batch_layout(2, SIZE, SIZE, 8, COCO_SKELETON)))
        build_training(small_network.NAME, fields, ['/gpu:0', '/gpu:1'], [1e-3], Schedule(10, 100, True, 0),
                       COCO_SKELETON, cluster=Cluster(('a:1', 'b:1'), 0), communication='nccl')
    reduces = [op for op in graph.get_operations() if op.type == 'CollectiveReduce']
    assert {op.get_attr('communication_hint') for op in reduces} == {b'nccl'}
    assert {op.get_attr('group_size') for op in reduces} == {2, 4}


def test_devices_of_a_cluster_are_those_of_the_own_process():
    cluster = Cluster(('node1:2222', 'node2:2222'), 1)
    devices, config, communication = tower_devices(2, 2, cluster)
    assert devices == ['/job:worker/task:1/gpu:0', '/job:worker/task:1/gpu:1'] and communication == 'nccl'
    assert list(config.device_filters) == ['/job:worker/task:1']


@pytest.mark.parametrize('workers, index, towers, gpus, visible', [
    (('a:1',), 0, 1, 8, '0'), (('a:1',), 0, 2, 8, '0,1'), (('a:1', 'a:3'), 1, 2, 8, '2,3'),
    (('a:1', 'b:1', 'a:3'), 2, 4, 8, '4,5,6,7'), (('a:1', 'a:3'), 1, 1, 1, '0')])
def test_other_gpus_of_the_machine_stay_free(workers, index, towers, gpus, visible):
    """In the last case each process was given GPUs of its own, as by CUDA_VISIBLE_DEVICES."""
    devices, config, _ = tower_devices(towers, gpus, Cluster(workers, index))
    assert config.gpu_options.visible_device_list == visible
    assert [device.rpartition('/')[2] for device in devices] == ['gpu:%d' % k for k in range(towers)]


def test_gpu_towers_need_as_many_gpus():
    with pytest.raises(UserError, match='--gpus=8, but TensorFlow sees only 2'):
        tower_devices(8, gpus=2)
    devices, _, communication = tower_devices(2, gpus=2)
    assert devices == ['/gpu:0', '/gpu:1'] and communication == 'nccl'


@pytest.mark.parametrize('workers, index, gpus, visible, limits', [
    (('a:1',), 0, 1, '0', [[7680] * 2]), (('a:1', 'a:3'), 1, 1, '0', [[7680] * 2]),
    (('a:1', 'a:3'), 1, 2, '1', [[11520] * 2])])
def test_towers_that_share_a_gpu_are_virtual_devices_and_reduce_in_a_ring(monkeypatch, workers, index, gpus, visible,
                                                                          limits):
    """The second case: two processes with two towers each on one GPU."""
    cards = [devices_of.Card('A', 16 << 30), devices_of.Card('B', 24 << 30)]
    monkeypatch.setattr(devices_of, 'gpu_cards', lambda: cards)
    devices, config, communication = tower_devices(1, gpus, Cluster(workers, index), towers_per_gpu=2)
    assert [device.rpartition('/')[2] for device in devices] == ['gpu:0', 'gpu:1'] and communication == 'ring'
    options = config.gpu_options
    assert options.visible_device_list == visible and options.allow_growth
    assert not options.per_process_gpu_memory_fraction  # TensorFlow refuses both
    # As many entries as there are GPUs in the list, else TensorFlow refuses them.
    assert [list(gpu.memory_limit_mb) for gpu in options.experimental.virtual_devices] == limits


def test_processes_that_share_a_gpu_reduce_in_a_ring_when_told():
    devices, config, communication = tower_devices(1, 1, Cluster(('a:1', 'a:3'), 1), communication='ring')
    assert communication == 'ring' and config.gpu_options.allow_growth
    assert not config.gpu_options.experimental.virtual_devices


def test_cpu_towers_warn_once(caplog):
    devices, config, communication = tower_devices(1, gpus=0, towers_per_gpu=2)
    assert devices == ['/cpu:0', '/cpu:1'] and config.device_count['CPU'] == 2 and communication == 'ring'
    assert [record.getMessage() for record in caplog.records] == [
        'TensorFlow sees no GPU: the 2 towers run on CPU devices of this machine']
