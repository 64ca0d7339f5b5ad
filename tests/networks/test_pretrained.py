"""Reading weights made elsewhere: .npy dictionaries, checkpoints, slim's files; hostile and broken files."""
import codecs
import json
import os
import pickle

import cv2
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
import tool_files
from annotations.common_keypoints import merge_skeletons
from annotations.skeleton import COCO_SKELETON, RUN_FILE, skeleton_of_category
from networks import pretrained
from networks.formats import vgg19
from pose_errors import UserError

# The true names and shapes of some of the layers.
LAYERS = {'conv1_1': (3, 3, 3, 64), 'conv1_2': (3, 3, 64, 64), 'conv4_4_CPM': (3, 3, 256, 128),
          'conv5_5_CPM_L2': (1, 1, 512, 19), 'Mconv7_stage6_L1': (1, 1, 128, 38)}


class OneStage(networks.network_class('cmu')):
    stage_count = 1


class FastOneStage(networks.network_class('mobilenet_fast')):
    stage_count = 1


def build(network_class, name='cmu'):
    return network_class(name, tf.placeholder(tf.uint8, [None, None, None, 3], 'image'), False, COCO_SKELETON)


def layer_weights(random=np.random.RandomState(0)):
    return {layer: {'weights': random.normal(size=shape).astype(np.float32),
                    'biases': random.normal(size=shape[3:]).astype(np.float32)} for layer, shape in LAYERS.items()}


def save_npy(path, tree):
    np.save(str(path), np.array(tree, dtype=object), allow_pickle=True)
    return str(path)


def save_checkpoint(path, values, **kwargs):
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, initializer=value, use_resource=False) for name, value in values.items()]
        session.run(tf.global_variables_initializer())
        return tf.train.Saver(variables, **kwargs).save(session, str(path), write_meta_graph=False)


@pytest.mark.parametrize('python_2', (False, True), ids=('str keys', 'bytes keys'))
def test_npy_dictionary(tmp_path, python_2):
    layers = layer_weights()
    tree = layers
    if python_2:
        tree = {name.encode(): {leaf.encode(): value for leaf, value in layer.items()}
                for name, layer in layers.items()}
    path = save_npy(tmp_path / 'w.npy', tree)
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(networks.network_class('cmu'))
        match = pretrained.fit(network, path)
        match.init_fn(None, session)
        assert len(match.values) == 2 * len(LAYERS) and len(match.missing) == 184 - 2 * len(LAYERS)
        assert not match.unmatched
        assert 'conv2_1/weights' in match.missing_pretrained
        for variable in network.variables:
            layer, leaf = variable.op.name.split('/')
            if layer in LAYERS:
                assert np.array_equal(session.run(variable), layers[layer][leaf])
    assert '10 variables restored, 174 new' in str(match)


def test_npy_written_by_python_2(tmp_path):
    """Protocol 2, as Python 2's numpy wrote it: strings of bytes for keys and for the arrays' memory."""
    array = np.arange(64, dtype=np.float32)

    class Python2Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)

        def save_string(self, value):  # Python 2 had one kind of string; text and bytes alike become BINSTRING
            value = value.encode('latin1') if isinstance(value, str) else value
            self.write(b'T' + len(value).to_bytes(4, 'little') + value)
        dispatch[bytes] = dispatch[str] = save_string

    path = tmp_path / 'w.npy'
    with open(str(path), 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
        Python2Pickler(file, protocol=2).dump(np.array({'conv1_1': {'biases': array}}, dtype=object))
    assert b'_codecs' not in path.read_bytes()
    weights = pretrained.read_weights(str(path))
    assert list(weights) == ['conv1_1/biases'] and np.array_equal(weights['conv1_1/biases'], array)


class Exploit:
    def __init__(self, callable_, *args):
        self.call = callable_, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('where', ('value', 'key', 'nested array', 'instead'))
@pytest.mark.parametrize('callable_name', ('system', 'eval', 'ndarray subclass', 'codec'))
def test_crafted_npy_runs_nothing(tmp_path, where, callable_name):
    trace = tmp_path / 'ran'
    command = 'touch %s' % trace
    exploit = {'system': Exploit(os.system, command),
               'eval': Exploit(eval, "__import__('os').system(%r)" % command),
               'ndarray subclass': Exploit(np.memmap, str(trace), 'uint8', 'w+', 0, (1,)),
               'codec': Exploit(codecs.encode, 'x', 'rot13')}[callable_name]
    tree = {'value': {'conv1_1': {'weights': exploit}}, 'key': {'conv1_1': {}, 'x': [(exploit,)]},
            'nested array': {'conv1_1': {'weights': np.array([exploit, 1], dtype=object)}}, 'instead': exploit}[where]
    path = save_npy(tmp_path / 'w.npy', tree)
    with pytest.raises(UserError) as error:
        pretrained.read_weights(path)
    assert 'refused' in str(error.value) and path in str(error.value)
    assert not trace.exists()
    if callable_name == 'system' and where == 'value':  # The file is a real exploit: numpy's own loader runs it.
        np.load(path, allow_pickle=True)
        assert trace.exists()


def test_files_that_are_not_weights(tmp_path):
    whole = save_npy(tmp_path / 'w.npy', layer_weights())
    content = open(whole, 'rb').read()
    page = b'<html>404</html>'
    cases = {'cut.npy': content[:len(content) // 2], 'header.npy': content[:9], 'page.npy': page, 'page.ckpt': page,
             'empty.npy': b'', 'empty': b'', 'noise.npy': content[:128] + bytes(range(256))}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    np.save(str(tmp_path / 'array.npy'), np.zeros((3, 3), np.float32))
    save_npy(tmp_path / 'list.npy', {'conv1_1': [np.zeros(3)]})
    (tmp_path / 'folder').mkdir()
    for name in list(cases) + ['array.npy', 'list.npy', 'folder', 'absent.ckpt']:
        with pytest.raises(UserError) as error:
            pretrained.read_weights(str(tmp_path / name))
        assert name in str(error.value)


def test_the_newest_checkpoint_of_a_folder_without_a_state_file(tmp_path):
    """As where single checkpoints were copied."""
    for time, name in ((30, 'model-7'), (20, 'model-9')):
        (tmp_path / (name + '.index')).write_bytes(b'')
        os.utime(str(tmp_path / (name + '.index')), (time, time))
    assert pretrained.find_checkpoint(str(tmp_path)) == str(tmp_path / 'model-7')


def mobilenet_v1(width=0.5):
    """Some variables of slim's checkpoint, with what slim has and we have not."""
    random = np.random.RandomState(4)
    channels = int(32 * width)
    shapes = {'MobilenetV1/Conv2d_0/weights': (3, 3, 3, channels), 'MobilenetV1/Conv2d_0/BatchNorm/gamma': (channels,),
              'MobilenetV1/Conv2d_0/BatchNorm/beta': (channels,),
              'MobilenetV1/Conv2d_0/BatchNorm/moving_mean': (channels,),
              'MobilenetV1/Conv2d_0/BatchNorm/moving_variance': (channels,),
              'MobilenetV1/Conv2d_1_depthwise/depthwise_weights': (3, 3, channels, 1),
              'MobilenetV1/Conv2d_1_depthwise/BatchNorm/beta': (channels,),
              'MobilenetV1/Logits/Conv2d_1c_1x1/biases': (1001,),
              'MobilenetV1/Conv2d_0/weights/RMSProp': (3, 3, 3, channels)}
    values = {name: random.uniform(0.1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return dict(values, global_step=np.int64(7))


@pytest.mark.parametrize('written', ('V1', 'V2'))
def test_slim_mobilenet_checkpoint(tmp_path, written):
    values = mobilenet_v1()
    expected = dict(values)  # slim's first layer takes RGB, ours BGR
    expected['MobilenetV1/Conv2d_0/weights'] = values['MobilenetV1/Conv2d_0/weights'][:, :, ::-1]
    path = save_checkpoint(tmp_path / 'mobilenet_v1_0.50_224.ckpt', values,
                           write_version=getattr(tf.train.SaverDef, written))
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(FastOneStage, 'mobilenet_fast')
        match = pretrained.fit(network, path)
        tf.get_default_graph().finalize()
        match.init_fn(None, session)
        for name in match.values:
            assert np.array_equal(session.run(name + ':0'), expected[name])
    assert len(match.values) == 5
    assert match.unmatched == ['MobilenetV1/Conv2d_0/BatchNorm/gamma', 'MobilenetV1/Conv2d_1_depthwise/BatchNorm/beta',
                               'MobilenetV1/Logits/Conv2d_1c_1x1/biases']
    assert all(name in str(match) for name in match.unmatched)
    backbone = {v.op.name for v in network.variables if v.op.name.startswith('MobilenetV1/')}
    assert set(match.missing_pretrained) == backbone - set(values)


@pytest.mark.slow
def test_own_checkpoint_comes_back_whole(tmp_path):
    """With an optimizer's slots in it; named by its prefix, one of its files or its folder; restored by a Scaffold."""
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(FastOneStage)
        tf.train.get_or_create_global_step()
        tf.train.AdamOptimizer().minimize(tf.reduce_sum(network.output), var_list=tf.trainable_variables()[-3:])
        session.run(tf.global_variables_initializer())
        expected = session.run({v.op.name: v for v in network.variables})
        path = tf.train.Saver().save(session, str(tmp_path / 'model'), global_step=10, write_meta_graph=False)
    with tf.Graph().as_default():
        network = build(FastOneStage)
        for given in (path, path + '.index', str(tmp_path)):
            match = pretrained.fit(network, given)
            assert not match.missing and not match.missing_pretrained and not match.unmatched
        scaffold = tf.train.Scaffold(init_fn=match.init_fn)
        with tf.train.MonitoredSession(tf.train.ChiefSessionCreator(scaffold)) as session:
            restored = session.run({v.op.name: v for v in network.variables})
        assert all(np.array_equal(restored[name], value) for name, value in expected.items())
        for part in tmp_path.glob('model-10.data*'):
            part.write_bytes(part.read_bytes()[:1000])
        with pytest.raises(UserError) as error:
            pretrained.fit(network, path)
        assert path in str(error.value)


def test_a_file_of_another_network(tmp_path):
    path = save_checkpoint(tmp_path / 'wide.ckpt', mobilenet_v1(1.0))
    with tf.Graph().as_default():
        with pytest.raises(UserError) as error:
            pretrained.fit(build(FastOneStage, 'mobilenet_fast'), path)
        for mention in (path, 'MobilenetV1/Conv2d_0/weights', '(3, 3, 3, 32)', '(3, 3, 3, 16)', '--pretrained=none'):
            assert mention in str(error.value)
        with pytest.raises(UserError) as error:
            pretrained.fit(build(OneStage), path)
        assert path in str(error.value) and 'cmu' in str(error.value)


class FastTwoStages(networks.network_class('mobilenet_fast')):
    stage_count = 2


@pytest.mark.slow
@pytest.mark.parametrize('known', (False, True), ids=('by shapes', 'by run.json'))
def test_weights_of_another_skeleton(tmp_path, known):
    """Hidden layers are restored; the layers that make maps or read them start anew and are named. Other keypoints in
    the same number show only in the run.json beside the file."""
    skeleton = skeleton_of_category(tool_files.category(name='dancer'), 'f')
    other = skeleton._replace(parts=tuple('other_' + name for name in skeleton.parts)) if known else COCO_SKELETON

    def build(skeleton):
        return FastTwoStages('mobilenet_fast', tf.placeholder(tf.uint8, [1, 32, 32, 3], 'image'), False, skeleton)
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(other)
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver().save(session, str(tmp_path / 'model'))
        before = dict(zip([v.op.name for v in network.variables], session.run(network.variables)))
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(skeleton)
        assert [tensor.shape.as_list()[3] for tensor in network.stages[-1]] == [10, 6]
        if known:
            assert not pretrained.fit(network, path).missing
            for written in (skeleton._replace(name='singer'), other):
                assert not pretrained.fit(network, path).missing
                (tmp_path / RUN_FILE).write_text(json.dumps({'skeleton': written.to_json()}))
        match = pretrained.fit(network, path)
        assert set(match.missing) == set(match.reinitialized) == set(network.skeleton_variables) and not match.unmatched
        layers = ['Openpose/MConv_Stage%d_L%d_%d' % layer for layer in
                  ((1, 1, 5), (1, 2, 5), (2, 1, 1), (2, 1, 5), (2, 2, 1), (2, 2, 5))]
        assert str(match).endswith('; for other keypoints, so these layers start anew: ' + ', '.join(layers))
        session.run(tf.global_variables_initializer())
        match.init_fn(None, session)
        for variable, value in zip(network.variables, session.run(network.variables)):
            if variable.op.name not in match.reinitialized:
                np.testing.assert_array_equal(value, before[variable.op.name])


@pytest.mark.parametrize('name', (pytest.param('mobilenet_fast', marks=pytest.mark.slow), 'mobilenet_light'))
def test_more_keypoints_keep_the_maps_of_the_old_ones(name, tmp_path):
    """In all stages, and the new ones' maps are empty: nothing is forgotten before training goes on."""
    more = skeleton_of_category({'name': 'person', 'keypoints': ['nose', 'left_big_toe', 'left_ankle'],
                                 'skeleton': [[1, 3], [3, 2]]}, 'f')
    both = merge_skeletons(COCO_SKELETON, more, 'f')
    image, outputs = np.random.RandomState(0).randint(0, 256, (1, 64, 64, 3)).astype(np.uint8), []
    for skeleton in (COCO_SKELETON, both):
        with tf.Graph().as_default(), tf.Session() as session:
            network = networks.get_network(name, tf.placeholder(tf.uint8, image.shape, 'image'), False,
                                           skeleton=skeleton)
            session.run(tf.global_variables_initializer())
            if skeleton is COCO_SKELETON:  # maps far from those of an untrained network
                for variable in network.variables:
                    if variable.op.name in network.skeleton_variables and 'weights' in variable.op.name:
                        shape = variable.shape.as_list()
                        variable.load(np.random.RandomState(1).normal(0, 0.1, shape), session)
                tf.train.Saver().save(session, str(tmp_path / 'model'))
                (tmp_path / RUN_FILE).write_text(json.dumps({'skeleton': skeleton.to_json()}))
            else:
                match = pretrained.fit(network, str(tmp_path / 'model'))
                assert not match.missing and len(match.kept_parts) == 18
                assert 'the maps of 18 of 19 parts are kept, those of left_big_toe start anew' in str(match)
                match.init_fn(None, session)
            outputs.append(session.run(network.output, {'image:0': image}))
    old, new = outputs
    heat, paf = new[..., :both.heatmap_channels], new[..., both.heatmap_channels:]
    assert np.abs(old).max() > 1
    np.testing.assert_allclose(np.concatenate([heat[..., :18], heat[..., 19:]], 3), old[..., :19], atol=1e-3)
    np.testing.assert_allclose(paf[..., :38], old[..., 19:], atol=1e-3)
    assert not heat[..., 18].any() and not paf[..., 38:].any()


def vgg_19():
    random = np.random.RandomState(5)
    return {'vgg_19/conv1/conv1_1/weights': random.normal(0, 0.2, (3, 3, 3, 64)).astype(np.float32),
            'vgg_19/conv1/conv1_1/biases': random.normal(0, 1, 64).astype(np.float32),
            'vgg_19/conv1/conv1_2/weights': random.normal(0, 0.1, (3, 3, 64, 64)).astype(np.float32),
            'vgg_19/conv5/conv5_1/biases': np.zeros(512, np.float32), 'vgg_19/fc8/biases': np.zeros(1000, np.float32),
            'vgg_19/mean_rgb': np.float32(vgg19.VGG_MEAN_RGB)}


def original_conv1_1(values, rgb, padding):
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.constant(rgb[None].astype(np.float32) - np.float32(vgg19.VGG_MEAN_RGB))
        x = tf.nn.conv2d(x, values['vgg_19/conv1/conv1_1/weights'], [1, 1, 1, 1], padding)
        return session.run(tf.nn.relu(x + values['vgg_19/conv1/conv1_1/biases']))[0]


@pytest.fixture(params=('noise', 'photograph'))
def bgr(request):
    if request.param == 'noise':
        return np.random.RandomState(6).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    photos = request.getfixturevalue('coco_photos')
    return cv2.imread(str(sorted(photos.glob('train2017/*.jpg'))[0]))[:240, :320]


def test_slim_vgg_19_conv1_1_sees_what_it_was_trained_on(tmp_path, bgr):
    values = vgg_19()
    path = save_checkpoint(tmp_path / 'vgg_19.ckpt', values, write_version=tf.train.SaverDef.V1)
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(OneStage, 'vgg')
        match = pretrained.fit(network, path)
        match.init_fn(None, session)
        ours = session.run('conv1_1/Relu:0', {'image:0': bgr[None]})[0]
        assert np.array_equal(session.run('conv1_2/weights:0'), values['vgg_19/conv1/conv1_2/weights'])
    assert len(match.values) == 3 and set(match.unmatched) == {'conv5_1/biases', 'vgg_19/fc8/biases', 'vgg_19/mean_rgb'}
    rgb = bgr[:, :, ::-1]
    original = original_conv1_1(values, rgb, 'SAME')
    assert original.max() > 100
    assert np.abs(ours - original)[1:-1, 1:-1].max() < 1e-3
    # The outermost ring: a border of grey 128.
    framed = np.full((rgb.shape[0] + 2, rgb.shape[1] + 2, 3), 128, np.uint8)
    framed[1:-1, 1:-1] = rgb
    assert np.abs(ours - original_conv1_1(values, framed, 'VALID')).max() < 1e-3


@pytest.mark.parametrize('name, shape, kind', [
    ('conv1_1/weights', (), '.npy'), ('conv1_1/weights', (), 'checkpoint'), ('conv1_1/weights', (3, 3, 4, 64), '.npy'),
    ('conv1_1/biases', (), '.npy'), ('MobilenetV1/Conv2d_0/weights', (), 'checkpoint')])
def test_a_first_layer_of_another_shape_is_one_line(tmp_path, name, shape, kind):
    """What is done to the first layer of weights made elsewhere is done to layers of its shape only."""
    mobilenet = name.startswith('Mobilenet')
    values = mobilenet_v1() if mobilenet else vgg_19()
    values[name if mobilenet else 'vgg_19/conv1/' + name] = np.ones(shape, np.float32)
    path = (save_npy(tmp_path / 'w.npy', values) if kind == '.npy' else save_checkpoint(tmp_path / 'w.ckpt', values))
    with tf.Graph().as_default(), pytest.raises(UserError) as error:
        pretrained.fit(build(FastOneStage, 'mobilenet_fast') if mobilenet else build(OneStage, 'vgg'), path)
    assert path in str(error.value) and '%s is %s in the file' % (name, shape) in str(error.value)


def test_resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.delenv('OPENPOSE_MODEL', raising=False)
    assert pretrained.resolve('cmu', 'none') is None
    for name in networks.NAMES:
        with pytest.raises(UserError) as error:
            pretrained.resolve(name)
        paths = networks.network_class(name).pretrained.paths
        assert all(os.path.join('models', path) in str(error.value) for path in paths)
        assert 'bash scripts/download_pretrained.sh ' in str(error.value) and '--pretrained=none' in str(error.value)
    with pytest.raises(UserError) as error:
        pretrained.resolve('cmu', 'here.npy')
    assert 'here.npy' in str(error.value) and '--pretrained=none' in str(error.value)

    monkeypatch.setenv('OPENPOSE_MODEL', str(tmp_path / 'elsewhere'))
    with pytest.raises(UserError) as error:
        pretrained.resolve('mobilenet')
    assert '--dir=%s' % (tmp_path / 'elsewhere') in str(error.value)
    for name, path in (('cmu', 'numpy/openpose_coco.npy'), ('vgg', 'numpy/openpose_vgg16.npy'),
                       ('mobilenet_accurate', 'pretrained/mobilenet_v1_1.0_224_2017_06_14/mobilenet_v1_1.0_224.ckpt')):
        path = tmp_path / 'elsewhere' / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ('' if path.suffix == '.npy' else '.index')).write_bytes(b'')
        assert pretrained.resolve(name) == str(path)


@pytest.mark.parametrize('value, mention', [
    (np.float32([1, np.nan]), 'NaN'), (np.float64([np.inf, 1]), 'infinity'), (np.array([1, 2j]), 'complex'),
    (np.array([True, False]), 'bool'), (np.array(['a', 'b']), 'holds')])
def test_values_that_are_no_weights_are_refused_by_name(value, mention):
    with pytest.raises(UserError) as error:
        pretrained.checked_values(value, 'conv1_1/biases', 'w.ckpt')
    assert all(word in str(error.value) for word in (mention, 'conv1_1/biases', 'w.ckpt'))
