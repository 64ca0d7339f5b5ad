"""Freezing, folding and quantizing: on small graphs made by hand, on every network, and through the command."""
import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import networks
import pose_cli
import pose_dataset
from graphs import freeze, graphdef, optimize
from networks.pretrained import find_checkpoint
from conftest import ROOT, assert_user_error, run_command

SIZE = 64
RNG = np.random.RandomState(0)
HAS_TRANSFORMS = tf.__version__.startswith('1.')
needs_transforms = pytest.mark.skipif(not HAS_TRANSFORMS, reason='TensorFlow %s has no TransformGraph' % tf.__version__)


def values(*shape):
    return tf.constant(RNG.standard_normal(shape).astype(np.float32))


def positive(*shape):
    return tf.constant(RNG.uniform(0.5, 2, shape).astype(np.float32))


def conv(x, filters, kernel=3, **kwargs):
    strides = kwargs.pop('strides', [1, 1, 1, 1])
    return tf.nn.conv2d(x, values(kernel, kernel, int(x.shape[3]), filters), strides, 'SAME', **kwargs)


def depthwise(x, kernel=3, multiplier=1, stride=1):
    channels = int(x.shape[3])
    return tf.nn.depthwise_conv2d(x, values(kernel, kernel, channels, multiplier), [1, stride, stride, 1], 'SAME')


def fused_norm(x, is_training=False, name='norm'):
    c = int(x.shape[3])
    if is_training:
        return tf.nn.fused_batch_norm(x, positive(c), values(c), epsilon=0.001, name=name)[0]
    return tf.nn.fused_batch_norm(x, positive(c), values(c), values(c), positive(c), epsilon=0.001, is_training=False,
                                  name=name)[0]


def plain_norm(x, name='norm'):
    c = int(x.shape[3])
    with tf.name_scope(name):
        return tf.nn.batch_normalization(x, tf.identity(values(c)), positive(c), values(c), positive(c), 0.001)


def frozen_graph(build, shape=(1, 16, 16, 3), version=None):
    """The GraphDef of build(image) with its result called as the networks call it."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, shape, name=graphdef.INPUT)
        tf.multiply(1.0, build(image), name=graphdef.OUTPUT)
        graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if version and node.op == 'FusedBatchNormV3':
            node.op = version
            if version == 'FusedBatchNorm':
                del node.attr['U']
            if 'exponential_avg_factor' in node.attr:
                del node.attr['exponential_avg_factor']
    return graph_def


def outputs(graph, images, as_written=False):
    """as_written: without TensorFlow's own rewriting, which TF 2.21 does not survive on some graphs."""
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = as_written
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
        with tf.Session(graph=tf_graph, config=config) as session:
            return session.run(graphdef.OUTPUT + ':0', {graphdef.INPUT + ':0': images})


def ops(graph):
    counts = collections.Counter(node.op for node in graph.node)
    for op in ('Const', 'Placeholder'):
        counts.pop(op, None)
    return dict(counts)


def assert_same_outputs(graph, other, size=(16, 16), tolerance=1e-5):
    images = RNG.uniform(-1, 1, (1,) + size + (3,)).astype(np.float32)
    expected = outputs(graph, images, as_written=True)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(outputs(other, images), expected, atol=tolerance * np.abs(expected).max())


def check(build, expected_ops, version=None, leftovers=(), size=(16, 16)):
    """Optimize build's graph: the same outputs, these ops, and these (name, part of the reason) left over."""
    shape = (1,) + size + (3,)
    graph = frozen_graph(build, shape, version)
    optimized = optimize.optimize(graph, shape)
    assert_same_outputs(graph, optimized, size)
    found = ops(optimized)
    if expected_ops is not None:
        assert found == expected_ops
    left = optimize.find_leftovers(optimized)
    assert [leftover.name for leftover in left] == [name for name, _ in leftovers], left
    for leftover, (_, reason) in zip(left, leftovers):
        assert reason in leftover.reason
    return optimized


# What folds. The final multiplication by a scalar that frozen_graph adds goes into the weights, too, where it can.

@pytest.mark.parametrize('version', ['FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'])
def test_fused_norm_folds(version):
    def build(image):
        return fused_norm(conv(image, 8))
    assert ops(frozen_graph(build, version=version))[version] == 1
    check(build, {'Conv2D': 1, 'BiasAdd': 1}, version)


def test_norm_of_a_separable_layer_folds_into_its_pointwise_weights():
    check(lambda image: tf.nn.relu(plain_norm(conv(depthwise(image), 8, 1))) * tf.identity(1.0),
          {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'BiasAdd': 1, 'Relu': 1, 'Mul': 1 + 1})


@pytest.mark.parametrize('norm', [fused_norm, plain_norm])
def test_norm_after_a_depthwise_convolution_folds(norm):
    check(lambda image: norm(depthwise(image, multiplier=2)), {'DepthwiseConv2dNative': 1, 'BiasAdd': 1})


def test_norm_after_a_bias_folds():
    check(lambda image: fused_norm(tf.nn.bias_add(conv(image, 8), values(8))), {'Conv2D': 1, 'BiasAdd': 1})


def test_norm_after_a_matrix_product_folds():
    def build(image):
        x = tf.matmul(tf.reduce_max(image, [1, 2]), values(8, 3), transpose_b=True)
        return tf.reshape((x - values(8)) * positive(8) + values(8), [1, 1, 1, 8])
    optimized = check(build, None)
    assert ops(optimized)['MatMul'] == ops(optimized)['BiasAdd'] == 1


@pytest.mark.parametrize('seed', range(4))
def test_any_chain_of_scales_and_shifts_folds(seed):
    steps = [lambda x: x + values(6), lambda x: values(1, 1, 6) - x, lambda x: x - values(1, 1, 1, 6),
             lambda x: x * values(6), lambda x: positive(1) * x, lambda x: x / positive(6), fused_norm,
             lambda x: tf.nn.bias_add(x, values(6)), lambda x: tf.check_numerics(x, 'x'), tf.stop_gradient]

    def build(image):
        x = conv(image, 6)
        for step in np.random.RandomState(seed).permutation(len(steps)):
            x = steps[step](x)
        return x
    check(build, {'Conv2D': 1, 'BiasAdd': 1})


def test_two_convolutions_with_the_same_weights_keep_their_own_norms():
    def build(image):
        weights = values(3, 3, 3, 8)
        return tf.concat([fused_norm(tf.nn.conv2d(image, weights, [1, 1, 1, 1], 'SAME'), name='norm%d' % i)
                          for i in range(2)], axis=3)
    check(build, {'Conv2D': 2, 'BiasAdd': 2, 'ConcatV2': 1, 'Mul': 1})


def test_depthwise_1x1_folds_into_the_convolution_after_it():
    check(lambda image: fused_norm(conv(depthwise(image, 1), 8, 3)), {'Conv2D': 1, 'BiasAdd': 1})


@pytest.mark.parametrize('changes', [dict(stride=2), dict(multiplier=2)])
def test_depthwise_1x1_that_does_more_than_scale_stays(changes):
    check(lambda image: conv(depthwise(image, 1, **changes), 8), {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'BiasAdd': 1})


def test_depthwise_1x1_that_others_use_stays():
    def build(image):
        x = depthwise(image, 1)
        return tf.concat([conv(x, 8), x], axis=3)
    check(build, {'DepthwiseConv2dNative': 1, 'Conv2D': 1, 'ConcatV2': 1, 'Mul': 1})


def depthwise_inputs(graph):
    """The set of (height, width, channels) that depthwise convolutions take."""
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
        return {tuple(op.inputs[0].shape.as_list()[1:]) for op in tf_graph.get_operations()
                if op.type == 'DepthwiseConv2dNative'}


@pytest.mark.parametrize('widths, parts', [((1, 5, 3), [5, 3, 1]), ((1, 9, 2), [9, 3]), ((7, 4), [7, 4]), ((3, 3), [3])])
def test_separable_layers_take_large_parts_of_a_concatenation_by_themselves(widths, parts):
    def build(image):
        x = tf.concat([tf.nn.relu(conv(image, width)) for width in widths], axis=-1)
        return fused_norm(conv(depthwise(x), 4, 1)) + tf.nn.relu(conv(depthwise(x, 5), 4, 1))
    optimized = check(build, None)
    found = ops(optimized)
    assert depthwise_inputs(optimized) == {(16, 16, channels) for channels in parts}
    assert found.get('ConcatV2', 0) == (3 in parts and 9 in parts)
    split_layers = 2 * (len(widths) - found.get('ConcatV2', 0))
    assert (found['DepthwiseConv2dNative'], found['Conv2D']) == (split_layers, len(widths) + split_layers)


def test_parts_of_parts_are_not_copied_for_separable_layers():
    def build(image):
        features = tf.concat([tf.nn.relu(conv(image, 8)), tf.nn.relu(conv(image, 6))], axis=3)
        maps = conv(depthwise(features), 1, 1)
        return conv(depthwise(tf.concat([maps, features], axis=3)), 4, 1)
    optimized = check(build, None)
    assert 'ConcatV2' not in ops(optimized)
    assert depthwise_inputs(optimized) == {(16, 16, 8), (16, 16, 6), (16, 16, 1)}


@pytest.mark.parametrize('build', [
    lambda x: tf.concat([conv(depthwise(x), 4, 1), x], axis=3),
    lambda x: conv(depthwise(x, multiplier=2), 4, 1),
    lambda x: conv(depthwise(x, stride=2), 4, 1),
    lambda x: conv(depthwise(x), 4, 1, strides=[1, 2, 2, 1]),
    lambda x: conv(depthwise(x), 4, 3),
    lambda x: tf.nn.relu(depthwise(x)),
    lambda x: conv(tf.nn.relu(depthwise(x)), 4, 1),
    lambda x: conv(depthwise(x), 4, 1) + conv(x, 4)],
    ids=['part of the output', 'multiplier', 'depthwise stride', 'stride', '3x3', 'no convolution', 'relu between',
         'convolution beside'])
def test_concatenations_that_others_need_whole_stay(build):
    def concat_first(image):
        return build(tf.concat([tf.nn.relu(conv(image, 6)), tf.nn.relu(conv(image, 3))], axis=3))
    assert ops(check(concat_first, None))['DepthwiseConv2dNative'] == 1


def test_concatenated_rows_are_not_taken_for_channels():
    optimized = check(lambda image: conv(depthwise(tf.concat([conv(image, 6), conv(image, 6)], axis=1)), 4, 1), None)
    assert ops(optimized)['ConcatV2'] == 1


def bilinear(x, times=2, **kwargs):
    return tf.image.resize_bilinear(x, [times * int(size) for size in x.shape[1:3]], **kwargs)


def beside_doubled(image, kernel, double=bilinear):
    """Two separable layers over features, of which six channels have half the resolution and are doubled."""
    low = double(tf.nn.relu(conv(image, 6, strides=[1, 2, 2, 1])))
    x = tf.concat([tf.nn.relu(conv(image, 2))[:, :low.shape[1], :low.shape[2]], low], axis=3)
    return tf.nn.relu(conv(depthwise(x, kernel), 4, 1)) + conv(depthwise(x, kernel), 4, 1)


@pytest.mark.parametrize('kernel, size', [(5, (28, 32)), (7, (28, 32)), (9, (56, 48)), (11, (48, 56))])
@pytest.mark.parametrize('double', [bilinear, lambda x: bilinear(x)[:, :100, :100]], ids=['', 'nothing cut off'])
def test_doubled_features_are_convolved_at_their_own_resolution(kernel, size, double):
    optimized = check(lambda image: beside_doubled(image, kernel, double), None, size=size)
    found = ops(optimized)
    assert (found['DepthToSpace'], found['ResizeBilinear'], found['Pad']) == (2, 1, 1)
    assert (*size, 6) not in depthwise_inputs(optimized)


@pytest.mark.parametrize('kernel, double', [
    (3, bilinear), (9, bilinear), (6, bilinear),
    (7, lambda x: bilinear(x, align_corners=True)),
    (7, lambda x: bilinear(x, half_pixel_centers=True)),
    (7, lambda x: bilinear(x, 1)),
    (7, lambda x: bilinear(x)[:, :27]),
    (7, lambda x: bilinear(x)[:, ::-1]),
    (7, lambda x: tf.image.resize_nearest_neighbor(x, [28, 32]))],
    ids=['small kernel', 'large for these features', 'even kernel', 'align_corners', 'half_pixel_centers', 'same size',
         'odd size', 'turned', 'nearest neighbour'])
def test_other_features_are_convolved_as_they_are(kernel, double):
    optimized = check(lambda image: beside_doubled(image, kernel, double), None, size=(28, 32))
    assert 'DepthToSpace' not in ops(optimized)


def test_shapes_become_constant_at_a_fixed_size_only():
    def build(image):
        return tf.image.resize_bilinear(tf.nn.relu(conv(image, 4)), 2 * tf.shape(image)[1:3])
    graph = frozen_graph(build, shape=(None, None, None, 3))
    fixed, dynamic = optimize.optimize(graph, [1, 16, 16, 3]), optimize.optimize(graph)
    assert 'Shape' not in ops(fixed) and 'Shape' in ops(dynamic)
    assert_same_outputs(graph, fixed)
    assert outputs(dynamic, np.zeros((2, 8, 12, 3))).shape == (2, 16, 24, 4)


def test_nodes_that_pass_their_input_on_go_also_at_the_output():
    with tf.Graph().as_default() as tf_graph:
        image = tf.placeholder(tf.float32, (None, None, None, 3), name=graphdef.INPUT)
        keep = tf.placeholder_with_default(values(8), [8])
        with tf.control_dependencies([tf.Assert(tf.reduce_all(image < 300), [image])]):
            x = tf.nn.relu(tf.check_numerics(conv(tf.identity(image), 8), 'x') + keep)
        tf.identity(x, name=graphdef.OUTPUT)
    graph = tf_graph.as_graph_def()
    optimized = optimize.optimize(graph, [1, 16, 16, 3])
    assert ops(optimized) == {'Conv2D': 1, 'BiasAdd': 1, 'Relu': 1}
    assert_same_outputs(graph, optimized)


# What must not fold, and is named.

@pytest.mark.parametrize('norm, name', [(fused_norm, 'norm'), (plain_norm, 'norm/batchnorm/mul_1')])
def test_norm_after_concat_is_left_and_named(norm, name):
    check(lambda image: tf.nn.relu(norm(tf.concat([conv(image, 4), conv(image, 4)], axis=3))), None,
          leftovers=[(name, 'it follows concat (ConcatV2)')])


@pytest.mark.parametrize('norm, name', [(fused_norm, 'norm'), (plain_norm, 'norm/batchnorm/mul_1')])
def test_norm_of_an_output_that_others_use_is_left_and_named(norm, name):
    def build(image):
        x = conv(image, 4, name='shared')
        return tf.concat([tf.nn.relu(norm(x)), x], axis=3)
    check(build, None, leftovers=[(name, 'the output of shared is also used elsewhere')])


@pytest.mark.parametrize('version', ['FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'])
def test_norm_in_training_mode_is_left_and_named(version):
    optimized = check(lambda image: fused_norm(conv(image, 4), is_training=True), None, version,
                      leftovers=[('norm', 'is_training is true')])
    assert ops(optimized)[version] == 1
    for node in optimized.node:
        if node.op == version:
            del node.attr['is_training']  # true is the default
    assert [left.name for left in optimize.find_leftovers(optimize.optimize(optimized))] == ['norm']


def test_plain_norm_with_the_statistics_of_the_batch_is_named():
    def build(image):
        x = conv(image, 4)
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, values(4), positive(4), 0.001)
    check(build, None, leftovers=[('moments/SquaredDifference', 'statistics of the batch')])


def test_random_nodes_are_named():
    graph = frozen_graph(lambda image: conv(image, 4) + tf.random_uniform([4], name='noise'))
    left = optimize.find_leftovers(optimize.optimize(graph))
    assert [leftover.op for leftover in left] == ['RandomUniform']


def test_scaled_images_and_parametric_relu_are_no_norms():
    def build(image):
        x = conv((image / 255.0 - values(3)) / positive(3), 4)
        return tf.nn.relu(x) + values(4) * (x - tf.abs(x)) * 0.5
    check(build, None)


def test_branches_at_run_time_are_named():
    graph = frozen_graph(lambda image: tf.cond(tf.placeholder(tf.bool, name='train'), lambda: conv(image, 4),
                                               lambda: conv(image, 4)))
    with pytest.raises(pose_cli.UserError, match=r'cond.*\((Switch|StatelessIf)\)') as error:
        optimize.optimize(graph)
    assert error.value.exit_code == 4


# Every network.

def save_checkpoint(name, prefix, training_steps):
    """Save a checkpoint as train.py does, with the optimizer's variables, after so many real training steps.

    Without training steps only the moving averages of batch norm move, which is quick.
    """
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        network = networks.get_network(name, tf.constant(RNG.uniform(0, 255, (2, SIZE, SIZE, 3)), tf.float32), True)
        loss = sum(tf.nn.l2_loss(maps - 0.1) for stage in network.stages for maps in stage)
        step = tf.train.get_or_create_global_step()
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            update = tf.assign_add(step, 1)
        if training_steps:
            with tf.control_dependencies([update]):
                update = tf.train.AdamOptimizer(1e-3).minimize(loss)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for _ in range(max(training_steps, 2)):
                session.run(update)
            return tf.train.Saver().save(session, str(prefix), global_step=step)


@pytest.fixture(scope='module')
def thin(tmp_path_factory):
    """The folder of a checkpoint of mobilenet_thin."""
    folder = tmp_path_factory.mktemp('thin')
    save_checkpoint('mobilenet_thin', folder / 'model', training_steps=3)
    return folder


def optimized_network(name, checkpoint, height, width):
    def build():
        networks.get_network(name, tf.placeholder(tf.float32, [None, height, width, 3], name=graphdef.INPUT), False)
    frozen = freeze.freeze(freeze.inference_graph(build), checkpoint)
    return frozen, optimize.optimize(frozen, [1, height, width, 3] if height else None)


@pytest.mark.parametrize('name', [name for name in networks.NAMES if name != 'vgg'])  # vgg has the layers of cmu
def test_every_network_folds(name, tmp_path):
    checkpoint = save_checkpoint(name, tmp_path / 'model', training_steps=0)
    height, width = 112, 128
    frozen, optimized = optimized_network(name, checkpoint, height, width)
    assert optimize.find_leftovers(optimized) == []
    before, after = ops(frozen), ops(optimized)
    norms = before.get('FusedBatchNorm', 0)
    is_mobilenet = name.startswith('mobilenet')
    assert (norms > 0) == is_mobilenet
    assert len(optimize.find_batch_norms(optimize.simplify(frozen))) == norms
    assert after['BiasAdd'] == before['Conv2D']
    # The two branches of each stage read the features where they are, and with large kernels before they are doubled.
    first_layers = sum(node.name.endswith('_1_depthwise/depthwise') and 'Stage' in node.name for node in frozen.node)
    assert after.get('AddN', 0) == first_layers
    assert after.get('DepthToSpace', 0) == (first_layers - 2 if is_mobilenet and name != 'mobilenet_thin' else 0)
    assert 'feat_concat' not in {node.name for node in optimized.node}
    assert set(after) <= {'AddN', 'Conv2D', 'BiasAdd', 'DepthwiseConv2dNative', 'Relu', 'MaxPool', 'ConcatV2', 'RealDiv',
                          'Sub', 'ResizeBilinear', 'Pad', 'StridedSlice', 'DepthToSpace'}
    images = RNG.uniform(0, 255, (1, height, width, 3)).astype(np.float32)
    expected = outputs(frozen, images)
    np.testing.assert_allclose(outputs(optimized, images), expected, atol=1e-4 * np.abs(expected).max())


# The command.

OTHER_PROCESS = '''
import sys
import numpy as np
import tensorflow.compat.v1 as tf
images = np.load(sys.argv[1])
results = []
for path in sys.argv[3:]:
    graph_def = tf.GraphDef()
    with open(path, 'rb') as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name='')
        with tf.Session() as session:
            results.append([session.run('Openpose/concat_stage7:0', {'image:0': image[None]})[0] for image in images])
np.save(sys.argv[2], results)
'''


def outputs_elsewhere(folder, images, *graphs):
    """The outputs of graph files, computed by a process that imports TensorFlow and numpy alone."""
    np.save(str(folder / 'images.npy'), images)
    subprocess.run([sys.executable, '-c', OTHER_PROCESS, str(folder / 'images.npy'), str(folder / 'outputs.npy')]
                   + [str(graph) for graph in graphs], check=True, cwd=str(folder))
    return np.load(str(folder / 'outputs.npy'))


def freeze_and_optimize(*args, **environment):
    """Run the shell script as a user does, with this interpreter."""
    env = dict(os.environ, PYTHON=sys.executable, **environment)
    return subprocess.run(['bash', str(ROOT / 'scripts' / 'freeze_and_optimize.sh')] + [str(arg) for arg in args],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=env, cwd='/')


@pytest.fixture(scope='module')
def run_folder(thin, sample_coco, tmp_path_factory):
    """What one run of the command leaves, with --quantize where that exists."""
    folder = tmp_path_factory.mktemp('graphs')
    flags = ['--model=mobilenet_thin', '--checkpoint=%s' % thin, '--output-dir=%s' % folder, '--runs=3',
             '--input-size=%dx%d' % (SIZE, SIZE), '--datapath=%s' % sample_coco]
    result = freeze_and_optimize(*flags + ['--quantize'] * HAS_TRANSFORMS)
    assert result.returncode == 0, result.stderr
    (folder / 'stdout').write_text(result.stdout)
    return folder


def validation_samples(sample_coco):
    dataflow = pose_dataset.get_dataflow(str(sample_coco), 'val2017', SIZE, SIZE, 8, is_train=False)
    dataflow.reset_state()
    return list(dataflow)


def test_graphs_run_in_a_process_without_the_project(run_folder, sample_coco, tmp_path):
    names = ['graph_frozen', 'graph_opt'] + ['graph_q'] * HAS_TRANSFORMS
    samples = validation_samples(sample_coco)
    results = outputs_elsewhere(tmp_path, np.array([sample[0] for sample in samples]),
                                *[run_folder / (name + '.pb') for name in names])
    report = json.loads((run_folder / 'report.json').read_text())
    assert list(report) == names
    largest = np.abs(results[0]).max()
    for name, result in zip(names, results):
        row = report[name]
        difference = np.abs(result - results[0])
        assert difference.max() <= {'graph_frozen': 0, 'graph_opt': 1e-4, 'graph_q': 0.2}[name] * largest
        np.testing.assert_allclose(row['max_abs_diff'], difference.max(), rtol=0.1, atol=1e-6 * largest)
        np.testing.assert_allclose(row['mean_abs_diff'], difference.mean(), rtol=0.1, atol=1e-6 * largest)
        np.testing.assert_allclose(row['max_rel_diff'], difference.max() / largest, rtol=0.1, atol=1e-6)
        losses = [np.sum((mask * (maps[:, :, :19] - heatmap)) ** 2 + 0.0) / 2
                  + np.sum((mask * (maps[:, :, 19:] - paf)) ** 2) / 2
                  for maps, (_, heatmap, paf, mask) in zip(result, samples)]
        np.testing.assert_allclose(row['validation_loss'], np.mean(losses), rtol=1e-4)


def test_report_and_table(run_folder):
    report = json.loads((run_folder / 'report.json').read_text())
    printed = (run_folder / 'stdout').read_text()
    for name, row in report.items():
        assert row['bytes'] == (run_folder / (name + '.pb')).stat().st_size
        graph = freeze.load_graph(str(run_folder / (name + '.pb')))
        assert row['ops'] == dict(collections.Counter(node.op for node in graph.node))
        assert row['nodes'] == sum(row['ops'].values())
        assert row['latency_ms'] > 0
        assert row['latency_ratio'] == pytest.approx(row['latency_ms'] / report['graph_frozen']['latency_ms'])
        assert '\n' + name in printed
    assert report['graph_frozen']['batch_norms'] == 72
    assert report['graph_opt']['batch_norms'] == 0
    placeholder = [node for node in freeze.load_graph(str(run_folder / 'graph_opt.pb')).node if node.op == 'Placeholder']
    assert [[dim.size for dim in node.attr['shape'].shape.dim] for node in placeholder] == [[1, SIZE, SIZE, 3]]
    assert not [path.name for path in run_folder.iterdir() if path.name.startswith('.')]


@needs_transforms
def test_quantized_graph_is_smaller(run_folder):
    report = json.loads((run_folder / 'report.json').read_text())
    assert report['graph_q']['bytes'] < 0.4 * report['graph_frozen']['bytes']
    assert report['graph_q']['ops']['QuantizedConv2D'] == report['graph_opt']['ops']['Conv2D']
    weights = freeze.run_transforms(freeze.load_graph(str(run_folder / 'graph_opt.pb')), ['image'],
                                        [graphdef.OUTPUT], ['add_default_attributes', 'quantize_weights'])
    assert weights.ByteSize() < 0.3 * report['graph_frozen']['bytes']


@pytest.mark.skipif(HAS_TRANSFORMS, reason='TensorFlow 1.x can quantize')
def test_quantize_says_that_it_needs_tensorflow_1(thin, tmp_path):
    result = freeze_and_optimize('--model=mobilenet_thin', '--checkpoint=%s' % thin, '--output-dir=%s' % (tmp_path / 'out'),
                                 '--quantize')
    assert_user_error(result, '--quantize', 'TF=1', tf.__version__)
    assert not (tmp_path / 'out').exists()


BY_HAND = ('strip_unused_nodes(type=float, shape="1,%d,%d,3") remove_nodes(op=Identity, op=CheckNumerics) '
           'fold_constants(ignore_errors=true) fold_old_batch_norms fold_batch_norms' % (SIZE, SIZE))


def test_evaluating_a_graph_without_weights_is_refused(run_folder, coco_photos, tmp_path):
    result = run_command('pose_eval.py', '--graph=%s' % (run_folder / 'graph.pb'), '--datapath=%s' % coco_photos,
                         '--split=val2017', '--output-dir=%s' % tmp_path)
    assert_user_error(result, 'is not frozen', 'graph_frozen.pb')


def test_steps_by_hand(run_folder, thin, tmp_path):
    frozen = tmp_path / 'frozen.pb'
    result = run_command('-m', 'tensorflow.python.tools.freeze_graph', '--input_graph=%s' % (run_folder / 'graph.pb'),
                         '--input_checkpoint=%s' % find_checkpoint(str(thin)), '--output_graph=%s' % frozen,
                         '--output_node_names=Openpose/concat_stage7')
    assert result.returncode == 0, result.stderr
    images = RNG.uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)
    expected = outputs(freeze.load_graph(str(run_folder / 'graph_frozen.pb')), images)
    np.testing.assert_array_equal(outputs(freeze.load_graph(str(frozen)), images), expected)
    result = run_command('scripts/transform_graph.py', '--in_graph=%s' % frozen, '--out_graph=%s' % (tmp_path / 'opt.pb'),
                         '--inputs=image:0', '--outputs=Openpose/concat_stage7:0', '--transforms', BY_HAND)
    if not HAS_TRANSFORMS:
        assert_user_error(result, 'TRANSFORM_GRAPH')
        return
    assert result.returncode == 0, result.stderr
    by_hand = freeze.load_graph(str(tmp_path / 'opt.pb'))
    assert optimize.find_leftovers(by_hand) == []
    assert ops(by_hand)['Conv2D'] == ops(by_hand)['BiasAdd'] == 72
    np.testing.assert_allclose(outputs(by_hand, images), expected, atol=1e-4 * np.abs(expected).max())


@needs_transforms
def test_transform_graph_binary(run_folder, tmp_path, monkeypatch):
    """Any program with the flags of transform_graph will do: here the project's own."""
    binary = tmp_path / 'transform_graph'
    binary.write_text('#!/bin/sh\nunset TRANSFORM_GRAPH\nexec %s %s "$@"\n'
                      % (sys.executable, ROOT / 'scripts' / 'transform_graph.py'))
    binary.chmod(0o755)
    monkeypatch.setenv('TRANSFORM_GRAPH', str(binary))
    graph = freeze.load_graph(str(run_folder / 'graph_frozen.pb'))
    transformed = freeze.run_transforms(graph, ['image'], [graphdef.OUTPUT],
                                            ['remove_nodes(op=Identity, op=CheckNumerics)'])
    assert ops(graph)['Identity'] and 'Identity' not in ops(transformed)


@pytest.mark.parametrize('binary', ['/bin/false', '/no/such/program'])
def test_transform_graph_binary_that_fails(binary, monkeypatch):
    monkeypatch.setenv('TRANSFORM_GRAPH', binary)
    with pytest.raises(pose_cli.UserError, match=binary):
        freeze.run_transforms(frozen_graph(lambda image: conv(image, 4)), ['image'], [graphdef.OUTPUT], ['x'])


def test_dynamic_size(thin, tmp_path):
    """One graph takes images of any size and gives what the graphs of those sizes give."""
    checkpoint = find_checkpoint(str(thin))
    frozen, dynamic = optimized_network('mobilenet_thin', checkpoint, None, None)
    assert optimize.find_leftovers(dynamic) == []
    for height, width in ((64, 96), (128, 64)):
        images = RNG.uniform(0, 255, (1, height, width, 3)).astype(np.float32)
        expected = outputs(frozen, images)
        assert expected.shape == (1, height // 8, width // 8, 57)
        np.testing.assert_allclose(outputs(dynamic, images), expected, atol=1e-4 * np.abs(expected).max())


def test_graph_made_elsewhere_with_a_norm_in_training_mode_exits_4(tmp_path):
    def build(image):
        x = tf.nn.relu(fused_norm(conv(image, 8, strides=[1, 2, 2, 1]), name='folds'))
        return tf.nn.relu(fused_norm(conv(x, 57, strides=[1, 2, 2, 1]), is_training=True, name='stays'))
    freeze.save_graph(frozen_graph(build), str(tmp_path / 'foreign.pb'))
    result = freeze_and_optimize('--graph=%s' % (tmp_path / 'foreign.pb'), '--output-dir=%s' % (tmp_path / 'out'),
                                 '--runs=1')
    assert result.returncode == 4, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'stays' in errors[0] and 'is_training' in errors[0] and 'folds' not in errors[0]
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert (report['graph_frozen']['batch_norms'], report['graph_opt']['batch_norms']) == (2, 1)


# Bad input. Most of it in this process: importing TensorFlow takes seconds.

@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Call main with flags; returns the one-line error, after checking that no file was written."""
    monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
    import freeze_and_optimize as script

    def call(*flags):
        out = tmp_path / 'out'
        monkeypatch.setattr(sys, 'argv', ['freeze_and_optimize.py', '--output-dir=%s' % out] + list(flags))
        with pytest.raises(pose_cli.UserError) as error:
            script.main()
        assert error.value.exit_code == 2
        assert not out.exists() or not list(out.iterdir())
        return str(error.value)
    return call


def test_checkpoint_of_another_model(thin, refused):
    message = refused('--model=mobilenet', '--checkpoint=%s' % thin)
    assert 'Openpose/MConv_Stage1_L1_1_depthwise/depthwise_weights' in message or 'MobilenetV1' in message
    assert 'shape' in message
    assert 'conv1_1/weights is missing' in refused('--model=cmu', '--checkpoint=%s' % thin)


def test_no_checkpoint(refused, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'no checkpoint in the folder' in refused('--model=cmu', '--checkpoint=%s' % (tmp_path / 'empty'))
    assert 'no checkpoint' in refused('--model=cmu', '--checkpoint=%s' % (tmp_path / 'model-5'))


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_damaged_checkpoint(thin, refused, tmp_path, suffix):
    prefix = find_checkpoint(str(thin))
    for end in ('.index', '.data-00000-of-00001'):
        with open(prefix + end, 'rb') as file:
            data = file.read()
        (tmp_path / ('model' + end)).write_bytes(data[:len(data) // 2] if end == suffix else data)
    assert 'damaged' in refused('--model=mobilenet_thin', '--checkpoint=%s' % (tmp_path / 'model'))


def test_folder_whose_checkpoint_file_is_gone_or_that_was_moved(thin, tmp_path):
    prefix = find_checkpoint(str(thin))
    assert find_checkpoint(prefix + '.index') == prefix
    moved = tmp_path / 'model-7.index'
    moved.write_bytes(b'')
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'model-7')


def test_size_that_is_not_a_multiple_of_the_stride(thin, refused, run_folder):
    message = refused('--model=mobilenet_thin', '--checkpoint=%s' % thin, '--input-size=100x64')
    assert '100' in message and '96 or 104' in message
    message = refused('--graph=%s' % (run_folder / 'graph_opt.pb'), '--input-size=72x72')
    assert '72' in message and str(SIZE) in message


@pytest.mark.parametrize('flags, mention', [
    ([], '--checkpoint'), (['--checkpoint=x'], '--model'), (['--model=resnet', '--checkpoint=x'], 'resnet'),
    (['--model=cmu', '--checkpoint=x', '--graph=y'], 'either'), (['--graph=y', '--input-size=12'], '12'),
    (['--graph=/no/such.pb'], '/no/such.pb'), (['--graph=y', '--quantize=4'], '4')])
def test_flags(refused, flags, mention):
    assert mention in refused(*flags)


def test_output_folder_that_cannot_be_written(run_folder, tmp_path):
    (tmp_path / 'file').write_text('')
    result = freeze_and_optimize('--graph=%s' % (run_folder / 'graph_opt.pb'), '--output-dir=%s' % (tmp_path / 'file' / 'x'))
    assert_user_error(result, tmp_path / 'file' / 'x')


@pytest.mark.parametrize('share', [0, 0.3, 0.9999])
def test_truncated_graph(run_folder, refused, tmp_path, share):
    data = (run_folder / 'graph_opt.pb').read_bytes()
    (tmp_path / 'cut.pb').write_bytes(data[:int(share * len(data))])
    assert 'again' in refused('--graph=%s' % (tmp_path / 'cut.pb'))


def test_graph_of_something_else(refused, run_folder, tmp_path):
    (tmp_path / 'photo.pb').write_bytes(b'\xff\xd8\xff\xe0 this is a JPEG file')
    assert 'not a TensorFlow graph' in refused('--graph=%s' % (tmp_path / 'photo.pb'))
    assert 'is a variable' in refused('--graph=%s' % (run_folder / 'graph.pb'))
    graph = freeze.load_graph(str(run_folder / 'graph_opt.pb'))
    graph.node[[node.name for node in graph.node].index(graphdef.INPUT)].name = 'picture'
    freeze.save_graph(graph, str(tmp_path / 'renamed.pb'))
    assert 'no node image' in refused('--graph=%s' % (tmp_path / 'renamed.pb'))


def test_missing_data_and_images(refused, run_folder, tmp_path):
    graph = '--graph=%s' % (run_folder / 'graph_opt.pb')
    assert '/no/such' in refused(graph, '--datapath=/no/such')
    assert 'no .jpg or .png' in refused(graph, '--images=%s' % tmp_path)
    (tmp_path / 'broken.jpg').write_bytes(b'')
    assert 'broken.jpg' in refused(graph, '--images=%s' % tmp_path)
