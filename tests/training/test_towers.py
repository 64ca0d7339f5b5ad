"""Towers: the same training whatever their number, each on its own device, and nothing crosses that need not."""
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from pose_batches import Batch, encode_batch
from pose_cli import UserError
from training.recipes import Recipe
from training.towers import build_training, tower_devices

SIZE = 64


def random_batch(batchsize, stride=8, seed=0):
    rng = np.random.RandomState(seed)
    cells = (batchsize, SIZE // stride, SIZE // stride)
    return encode_batch(rng.randint(0, 256, (batchsize, SIZE, SIZE, 3)).astype(np.uint8),
                        rng.uniform(0, 1, cells + (19,)).astype(np.float32),
                        rng.uniform(-1, 1, cells + (38,)).astype(np.float32),
                        rng.randint(0, 2, cells + (1,)).astype(np.float32))


class Towers:
    """A training graph with a session, on `towers` CPU devices, fed by placeholders."""

    def __init__(self, model, towers, batchsize, rate, optimize_graph=True, accumulate=1):
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.fields = Batch(*(tf.placeholder(field.dtype, field.shape) for field in random_batch(batchsize)))
            devices, config = tower_devices(towers, gpus=0)
            self.training = build_training(model, self.fields, devices, [rate], steps_per_epoch=10, max_steps=100,
                                           recipe=Recipe(accumulate=accumulate))
            config.graph_options.rewrite_options.disable_meta_optimizer = not optimize_graph
            self.session = tf.Session(config=config)
            self.variables = {v.op.name: v for v in tf.global_variables()}
            self.session.run(tf.global_variables_initializer())

    def set_weights(self, weights):
        """Set variables in one run: {variable name: array}."""
        initializers = [self.variables[name].initializer for name in weights]
        self.session.run(initializers, {op.inputs[1]: value for op, value in zip(initializers, weights.values())})

    def run(self, fetches, batch, **kwargs):
        return self.session.run(fetches, dict(zip(self.fields, batch)), **kwargs)


def random_weights(variables):
    """The same weights for every graph of a network.

    Small ones, and biases of 1, keep every ReLU away from zero. At zero the last bit, which depends on how a sum is
    split among threads, would decide whether a gradient passes.
    """
    rng, weights = np.random.RandomState(0), {}
    for name, variable in sorted(variables.items()):
        shape = variable.shape.as_list()
        if name.endswith(('/weights', '/biases')):
            noise = rng.standard_normal(shape).astype(np.float32)
            he_scale = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
            weights[name] = 1 + 0.1 * noise if name.endswith('biases') else 0.2 * he_scale * noise
    return weights


def three_steps(towers, accumulate=1):
    """Gradients of the first step, and weights after three, of cmu (which has no batch norm)."""
    # Without optimizing the graph, to save time.
    training = Towers('cmu', towers, batchsize=4, rate=4e-5, optimize_graph=False, accumulate=accumulate)
    weights = random_weights(training.variables)
    training.set_weights(weights)
    moments = {name: training.variables[name + '/Adam'] for name in weights}
    assert training.run(training.training.step, random_batch(4, seed=0)) == 1
    gradients = training.session.run(moments)  # after one step the first moment is 0.1 times the gradient
    for step in (1, 2):
        training.run(training.training.step, random_batch(4, seed=step))
    weights = training.session.run({name: training.variables[name] for name in weights})
    training.session.close()
    return gradients, weights


def largest_difference(a, b):
    """(difference relative to the norm, name) of the variable that differs most."""
    assert len(a) == len(b) == 2 * 92
    return max((float(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name])), name) for name in b)


@pytest.fixture(scope='module')
def one_tower():
    return three_steps(1)


@pytest.mark.slow
@pytest.mark.parametrize('towers, accumulate', [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_towers_and_accumulated_batches_train_as_one(one_tower, towers, accumulate):
    gradients, weights = three_steps(towers, accumulate)
    assert largest_difference(gradients, one_tower[0]) < (1e-5, '')
    assert largest_difference(weights, one_tower[1]) < (1e-5, '')


@pytest.fixture(scope='module')
def two_towers():
    """mobilenet_thin on 2 CPU devices; the averages before and after a step, and what ran where in it."""
    towers = Towers('mobilenet_thin', 2, batchsize=4, rate=1e-3)
    batch = random_batch(4)
    averages = {name: v for name, v in towers.variables.items() if name.endswith(('moving_mean', 'moving_variance'))}
    before = towers.session.run(averages)
    statistics = {}
    for name in averages:  # what tower 0's batch norm measures; mean and variance are its outputs 1 and 2
        output = 1 if name.endswith('mean') else 2
        statistics[name] = towers.graph.get_tensor_by_name(
            'tower_0/%s/FusedBatchNorm:%d' % (name.rsplit('/', 1)[0], output))
    metadata = tf.RunMetadata()
    measured, _, _ = towers.run([statistics, towers.training.step, towers.training.figures], batch,
                                options=tf.RunOptions(output_partition_graphs=True), run_metadata=metadata)
    partitions = {graph.node[0].device.rsplit('/', 1)[1].lower(): list(graph.node)
                  for graph in metadata.partition_graphs}
    return types.SimpleNamespace(graph=towers.graph, before=before, after=towers.session.run(averages),
                                 measured=measured, partitions=partitions)


@pytest.mark.slow
def test_batch_norm_averages_are_updated_once(two_towers):
    rate = 1 - 1 / 10  # the first step's decay, see network_base.batch_norm_decay
    for name, before in two_towers.before.items():
        expected = before + rate * (two_towers.measured[name] - before)
        np.testing.assert_allclose(two_towers.after[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    updates = [node for nodes in two_towers.partitions.values() for node in nodes if node.op == 'AssignSub']
    assert len(updates) == len(two_towers.before) == 2 * 72


def canonical(device):
    return device.lower().replace('/device:', '/')


@pytest.mark.slow
def test_each_tower_is_on_its_own_device(two_towers):
    for k in range(2):
        heavy = 'Conv2D', 'DepthwiseConv2dNative', 'L2Loss', 'Conv2DBackpropFilter', 'FusedBatchNormV3'
        ops = [op for op in two_towers.graph.get_operations()
               if ('/tower_%d/' % k) in '/' + op.name and op.type in heavy]
        assert len(ops) > 100
        assert {canonical(op.device) for op in ops} == {'/cpu:%d' % k}
    variables = [op for op in two_towers.graph.get_operations() if op.type == 'VariableV2']
    assert {canonical(op.device) for op in variables} <= {'/cpu:0', ''}  # '': Adam's slots, beside their variable


@pytest.mark.slow
def test_what_runs_where(two_towers):
    partitions = two_towers.partitions
    assert set(partitions) == {'device:cpu:0', 'device:cpu:1'}
    for k in range(2):
        nodes = partitions['device:cpu:%d' % k]
        scopes = {part for node in nodes if node.op in ('Conv2DBackpropFilter', 'L2Loss')
                  for part in node.name.split('/') if part.startswith('tower_')}
        assert scopes == {'tower_%d' % k}
    # State, and what changes it, is on one device.
    assert not [node.name for node in partitions['device:cpu:1'] if node.op in ('VariableV2', 'ApplyAdam', 'AssignSub')]


def sent(two_towers, start, end):
    """dtype numbers and names of the tensors that cross from one device to another."""
    return [(node.attr['T'].type, node.attr['tensor_name'].s.decode()) for node in two_towers.partitions[start]
            if node.op in ('_Send', '_HostSend') and node.attr['recv_device'].s.decode().lower().endswith(end)]


@pytest.mark.slow
def test_slices_cross_once_and_images_as_uint8(two_towers):
    to_tower_1 = sent(two_towers, 'device:cpu:0', 'device:cpu:1')
    images = [name for dtype, name in to_tower_1 if dtype == tf.uint8.as_datatype_enum]
    assert len(images) == 1, to_tower_1
    slices = [name for dtype, name in to_tower_1 if 'split' in name.lower()]
    assert len(slices) == 6, slices  # image, mask, positions and values


@pytest.mark.slow
def test_no_outputs_are_gathered(two_towers):
    """Back from tower 1 come its gradients and losses; the losses are computed there."""
    back = [name for _, name in sent(two_towers, 'device:cpu:1', 'device:cpu:0')]
    assert back
    assert not [name for name in back if 'concat_stage7' in name or 'Stage6' in name and 'gradients' not in name]
    losses = [node for node in two_towers.partitions['device:cpu:1'] if node.op == 'L2Loss']
    assert len(losses) == 2 * 6 + 2  # two branches in six stages, and the background


def test_gpu_towers_need_as_many_gpus():
    with pytest.raises(UserError, match='--gpus=8, but TensorFlow sees only 2'):
        tower_devices(8, gpus=2)
    devices, _ = tower_devices(2, gpus=2)
    assert devices == ['/gpu:0', '/gpu:1']


def test_cpu_towers_warn_once(caplog):
    devices, config = tower_devices(2, gpus=0)
    assert devices == ['/cpu:0', '/cpu:1'] and config.device_count['CPU'] == 2
    assert [record.getMessage() for record in caplog.records] == [
        'TensorFlow sees no GPU: the 2 towers run on CPU devices of this machine']
