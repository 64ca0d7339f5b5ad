"""The networks: names, shapes and topology of the published checkpoints, sizes, batch norm, towers, initial values."""
import json
import re
import zlib

import cv2
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import assert_user_error, reference_data, run_command
from graphs.fold_batch_norm import estimate_batch_norm
from graphs.freeze import load_frozen
from networks import network_base, pretrained
from pose_errors import UserError

PUBLISHED = ('cmu', 'mobilenet', 'mobilenet_thin', 'mobilenet_fast', 'mobilenet_accurate')


def oracle_value(name, shape):
    """The stored outputs were made with each variable set from its own name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.split('/')[-1]
    if leaf == 'moving_variance':
        return random.uniform(.5, 1.5, shape)
    if leaf in ('beta', 'moving_mean', 'biases'):
        return 0.1 * random.standard_normal(shape)
    height, width, channels, _ = shape
    fan_in = height * width * (1 if leaf == 'depthwise_weights' else channels)
    return random.standard_normal(shape) * np.sqrt(2 / fan_in)


def set_from_names(session, variables):
    session.run([v.initializer for v in variables],
                {v.initializer.inputs[1]: oracle_value(v.op.name, v.shape.as_list()) for v in variables})


@pytest.mark.parametrize('name', PUBLISHED)
def test_equals_the_published_network(name, oracles):
    """Variables by name and shape, and the output where one is stored."""
    published = json.loads((oracles / ('variables_%s.json' % name)).read_text())['variables']
    stored = oracles / ('network_%s.npz' % name)
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [None, None, None, 3], 'image')
        network = networks.get_network(name, image, False)
        assert {v.op.name: v.shape.as_list() for v in tf.global_variables()} == published
        assert {v.op.name for v in network.variables} == set(published)
        assert all(v.op.type == 'VariableV2' for v in network.variables)
        if not stored.exists():
            return
        set_from_names(session, network.variables)
        oracle = np.load(str(stored))
        feed = {image: oracle['image']} if name == 'cmu' else {network.scaled: oracle['network_input']}
        output = session.run('Openpose/concat_stage7:0', feed)
        scaled = oracle['image'] / 256.0 - 0.5 if name == 'cmu' else oracle['network_input']
        np.testing.assert_allclose(session.run(network.scaled, {image: oracle['image']}), scaled, atol=1e-5)
    assert network.output.name == 'Openpose/concat_stage7:0'
    expected = oracle['concat_stage7']
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_equals_the_published_mobilenet_v2(tmp_path):
    """All of the published graph's constants have a place, and with the statistics of a batch in its batch norm, which
    it takes from the batch itself, the network gives what the graph gives for that batch."""
    published = load_frozen(str(reference_data('published') / 'mobilenet_v2_small.pb'))
    photographs = sorted((reference_data('coco_mini') / 'train2017').glob('*.jpg'))[:4]
    images = np.stack([cv2.resize(cv2.imread(str(path)), (160, 128)) for path in photographs])
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(published, name='')
        expected = session.run('Openpose/concat_stage7:0', {'image:0': images})
    sound = tmp_path / 'sound.pb'
    sound.write_bytes(estimate_batch_norm(published, list(images)).SerializeToString())
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [None, None, None, 3], 'image')
        network = networks.get_network('mobilenet_v2_small', image, False)
        alone = pretrained.fit(network, str(reference_data('published') / 'mobilenet_v2_small.pb'))
        assert len(alone.values) == 417 and not alone.unmatched
        assert {name.rpartition('/')[2] for name in alone.missing} == {'moving_mean', 'moving_variance'}
        assert all(name.startswith('MobilenetV2/') for name in alone.missing)
        match = pretrained.fit(network, str(sound))
        assert match.missing == match.unmatched == []
        match.init_fn(None, session)
        output = session.run(network.output, {image: images})
    differences = np.abs(output - expected) / np.abs(expected).max()  # TensorFlow's variances of a batch are rounded
    assert differences.max() < 5e-4 and np.quantile(differences, 0.999) < 1e-4


def test_light_trains_stages_that_it_can_do_without():
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, [1, 64, 64, 3])
        training = networks.get_network('mobilenet_light', image, True)
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            inference = networks.get_network('mobilenet_light', image, False)
        assert len(training.stages) == 4 and len(inference.stages) == training.stage_count == 2
        assert inference.output.op.name.startswith('Openpose/concat_stage7')
        assert set(inference.variables) < set(training.variables)
        later = tf.gradients(training.output, [v for v in tf.trainable_variables() if 'Stage3' in v.op.name])
        assert set(later) == {None}


@pytest.mark.slow
def test_table_of_all_models():
    """`python3 -m networks` at 368x368."""
    result = run_command('-m', 'networks')
    assert result.returncode == 0, result.stderr
    rows = {row.split()[0]: row.split()[1:4] for row in result.stdout.splitlines()[1:]}
    parameters = {name: int(row[0].replace(',', '')) for name, row in rows.items()}
    assert tuple(parameters) == networks.NAMES
    assert {name: parameters[name] for name in ('cmu', 'vgg', 'mobilenet', 'mobilenet_thin', 'mobilenet_fast',
                                                'mobilenet_accurate', 'mobilenet_v2_small')} == {
        'cmu': 52311446, 'vgg': 52311446, 'mobilenet': 2205735, 'mobilenet_thin': 1944372, 'mobilenet_fast': 869199,
        'mobilenet_accurate': 2850815, 'mobilenet_v2_small': 489340}
    assert {name: int(row[2]) for name, row in rows.items()} == {name: networks.stride(name) for name in networks.NAMES}
    # VGG-19 to conv4_2, CPM 4_3 and 4_4, two stage-1 branches, ten 7x7 branches; two operations a multiply-add.
    full, half, quarter, cells = 368 ** 2, 184 ** 2, 92 ** 2, 46 ** 2
    backbone = 9 * (full * (3 * 64 + 64 * 64) + half * (64 * 128 + 128 * 128) + quarter * (128 * 256 + 3 * 256 * 256)
                    + cells * (256 * 512 + 512 * 512 + 512 * 256 + 256 * 128))
    stage_1 = cells * (2 * (27 * 128 * 128 + 128 * 512) + 512 * 57)
    later = 5 * cells * (2 * (49 * (185 + 4 * 128) * 128 + 128 * 128) + 128 * 57)
    assert abs(float(rows['cmu'][1]) - 2e-9 * (backbone + stage_1 + later)) < 0.1


def test_flags_are_checked_without_a_graph():
    assert networks.stride('mobilenet') == 4 and networks.stride('cmu') == networks.stride('openpose') == 8
    for alias, name in networks.ALIASES.items():
        assert networks.entry(alias) is networks.entry(name) and alias not in networks.NAMES
    for call in (networks.stride, lambda name: networks.get_network(name, None, False)):
        with pytest.raises(UserError) as error:
            call('openpos')
        assert 'openpos' in str(error.value) and all(name in str(error.value) for name in networks.NAMES)
    assert_user_error(run_command('-m', 'networks', '--input-size=100x96'), 'width', '100', '8')


class ThinInTwoStages(networks.network_class('mobilenet_thin')):
    """The later stages are the same code again; two are quicker to build."""
    stage_count = 2


class FastInTwoStages(networks.network_class('mobilenet_fast')):
    stage_count = 2


class VggInTwoStages(networks.network_class('vgg')):
    stage_count = 2


def test_vgg_is_cmu_with_another_start(oracles):
    published = json.loads((oracles / 'variables_cmu.json').read_text())['variables']
    with tf.Graph().as_default():
        network = VggInTwoStages('small', tf.placeholder(tf.float32, [1, 64, 64, 3]), False, COCO_SKELETON)
    assert {v.op.name: v.shape.as_list() for v in network.variables} == {
        name: shape for name, shape in published.items() if not re.search('stage[3456]', name)}
    assert {v.op.name for v in network.pretrained_variables} == {
        'conv%s/%s' % (layer, leaf) for leaf in ('weights', 'biases')
        for layer in '1_1 1_2 2_1 2_2 3_1 3_2 3_3 3_4 4_1 4_2'.split()}


def test_every_trainable_variable_gets_a_gradient():
    """Conv2d_8 is in the published checkpoints of the stride-4 networks, but no output depends on it."""
    with tf.Graph().as_default():
        network = FastInTwoStages('small', tf.placeholder(tf.float32, [1, 64, 64, 3]), True, COCO_SKELETON)
        trainable = tf.trainable_variables()
        assert all(gradient is not None for gradient in tf.gradients(network.output, trainable))
        left_out = {v.op.name for v in network.variables} - {v.op.name for v in trainable}
    assert {name for name in left_out if '/moving_' not in name} == {
        'MobilenetV1/Conv2d_8_' + name for name in ('depthwise/depthwise_weights', 'pointwise/weights',
                                                    'pointwise/BatchNorm/beta')}


@pytest.mark.parametrize('network_class, cells', [(FastInTwoStages, (9, 13)), (ThinInTwoStages, (5, 7))])
def test_any_size_that_is_a_multiple_of_the_stride(network_class, cells):
    """Odd numbers of cells too; a size unknown at construction gives what a known one gives; uint8 what float32 gives.
    """
    height, width = (network_class.stride * n for n in cells)
    pixels = np.random.RandomState(0).randint(0, 256, (2, height, width, 3))
    outputs = []
    for dtype, shape in ((tf.float32, [None, None, None, 3]), (tf.uint8, [2, height, width, 3])):
        with tf.Graph().as_default(), tf.Session() as session:
            image = tf.placeholder(dtype, shape, 'image')
            network = network_class('small', image, False, COCO_SKELETON)
            set_from_names(session, network.variables)
            stages, output = session.run([network.stages, network.output], {image: pixels})
            outputs.append(output)
        assert len(stages) == 2
        assert all(paf.shape == (2,) + cells + (38,) and heat.shape == (2,) + cells + (19,) for paf, heat in stages)
        assert np.array_equal(output, np.concatenate([stages[-1][1], stages[-1][0]], axis=3))
    assert network.output.shape.as_list() == [2] + list(cells) + [57]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4 * np.abs(outputs[0]).max())


@pytest.mark.slow
def test_batch_norm_trains_and_infers():
    random = np.random.RandomState(1)
    pixels = random.randint(0, 256, (3, 64, 64, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        image = tf.placeholder(tf.float32, [None, 64, 64, 3], 'image')
        training = ThinInTwoStages('thin', image, True, COCO_SKELETON)
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            inference = ThinInTwoStages('thin', image, False, COCO_SKELETON)
        assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == updates, 'inference mode updates nothing'
        assert [v.op.name for v in inference.variables] == [v.op.name for v in training.variables]

        averages = [v for v in training.variables if '/moving_' in v.op.name]
        assert len(updates) == len(averages) == 2 * (1 + 11 + 2 * 5 * 2)
        assert not set(averages) & set(tf.trainable_variables())
        target = random.normal(size=(3, 8, 8, 57))
        with tf.control_dependencies(updates):
            train = tf.train.GradientDescentOptimizer(1e-3).minimize(tf.reduce_mean((training.output - target) ** 2))
        session.run(tf.global_variables_initializer())
        before, output_before = session.run([averages, inference.output], {image: pixels})
        first = session.run('MobilenetV1/Conv2d_0/Conv2D:0', {image: pixels})
        session.run(train, {image: pixels})
        after = session.run(averages)
        assert all((a != b).any() for a, b in zip(after, before))
        assert averages[0].op.name == 'MobilenetV1/Conv2d_0/BatchNorm/moving_mean'
        np.testing.assert_allclose(after[0], 0.001 * first.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(after[1], 0.999 + 0.001 * first.var(axis=(0, 1, 2)), rtol=1e-4)

        output_after = session.run(inference.output, {image: pixels})
        assert np.abs(output_after - output_before).max() > 1e-6
        assert all(np.array_equal(a, b) for a, b in zip(session.run(averages), after)), 'inference changes nothing'
        alone = session.run(inference.output, {image: pixels[:1]})
        np.testing.assert_allclose(alone, output_after[:1], atol=1e-5)
        in_training = session.run(training.output, {image: pixels}), session.run(training.output, {image: pixels[:1]})
        assert np.abs(in_training[0][:1] - in_training[1]).max() > 1e-4, 'training uses the statistics of the batch'


def test_moving_averages_warm_up():
    """By the global step, where there is one."""
    with tf.Graph().as_default(), tf.Session() as session:
        assert network_base.batch_norm_decay() == 0.999
        step = tf.train.get_or_create_global_step()
        decay = network_base.batch_norm_decay()
        for n, expected in ((0, 0.1), (90, 0.91), (10 ** 6, 0.999)):
            step.load(n, session)
            assert abs(session.run(decay) - expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('network_class', (VggInTwoStages, ThinInTwoStages))
def test_untrained_output_is_near_the_mean_of_the_maps(network_class):
    """So the first loss is about that of background alone, in every stage, and not a hundred times as much."""
    pixels = np.random.RandomState(3).randint(0, 256, (2, 64, 64, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(3)
        image = tf.placeholder(tf.uint8, [2, 64, 64, 3], 'image')
        stages = []
        for is_training in (True, False):
            with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
                stages += network_class('small', image, is_training, COCO_SKELETON).stages
        session.run(tf.global_variables_initializer())
        for paf, heat in session.run(stages, {image: pixels}):
            assert 1e-7 < np.sqrt(np.mean(paf ** 2)) < 0.2
            assert 1e-7 < np.sqrt(np.mean((heat - ([0] * 18 + [0.97])) ** 2)) < 0.2


def test_a_near_miss_of_a_name_gets_a_hint():
    with pytest.raises(UserError, match='did you mean mobilenet_thin'):
        networks.stride('mobilnet_thin')
    with pytest.raises(UserError) as caught:
        networks.stride('resnet')
    assert 'did you mean' not in str(caught.value)
