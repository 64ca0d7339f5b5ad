"""Weights by every door: a small network's weights, written in each format, read back, and the same output."""
import functools
import os
import struct

import h5py
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from inference import open_network
from networks import pretrained
from networks.formats import vgg19
from pose_errors import UserError


class OneStage(networks.network_class('cmu')):
    stage_count = 1


class ThinOneStage(networks.network_class('mobilenet_thin')):
    stage_count = 1


def varint(value):
    value &= (1 << 64) - 1
    data = bytearray()
    while value > 0x7f:
        data.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(data + bytearray([value]))


def field(number, payload):
    """A protobuf field: a number, or a message or packed array as bytes."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(array, old, packed=True):
    """Caffe's BlobProto, with the shape as of 2014 or as before."""
    shape = array.shape
    if old:
        shape = (1,) * (4 - array.ndim) + shape
        message = b''.join(field(1 + axis, size) for axis, size in enumerate(shape))
    else:
        message = field(7, field(1, b''.join(varint(size) for size in shape)))
    if packed:
        return message + field(5, array.astype('<f4').tobytes())
    return message + b''.join(varint(5 << 3 | 5) + struct.pack('<f', value) for value in array.ravel())


def layer(name, blobs, old, convolution=True):
    name_field, blobs_field = (4, 6) if old else (1, 7)
    kind = field(5, 4 if convolution else 14) if old else field(2, b'Convolution' if convolution else b'InnerProduct')
    return field(2 if old else 100, field(name_field, name.encode()) + kind + b''.join(
        field(blobs_field, data) for data in blobs))


def write_caffemodel(path, values, old=False):
    message = field(1, b'net') + layer('input', [], old)
    for name in sorted(values):
        if name.endswith('/weights'):
            biases = values[name.replace('weights', 'biases')]
            message += layer(name[:-len('/weights')],
                             [blob(values[name].transpose(3, 2, 0, 1), old), blob(biases, old, len(biases) > 64)], old)
            message += layer('relu_' + name[:-len('/weights')], [], old)
    message += layer('fc8', [blob(np.zeros((3, 5), np.float32), old)], old, convolution=False)
    path.write_bytes(message)


write_old_caffemodel = functools.partial(write_caffemodel, old=True)


def write_keras(path, values, leaves=('{0}/{0}/kernel:0', '{0}/{0}/bias:0'), root=''):
    with h5py.File(str(path), 'w') as file:
        file.attrs['keras_version'] = b'2.1.2'
        for name, value in values.items():
            variable, leaf = name.rsplit('/', 1)
            file.create_dataset(root + leaves[leaf == 'biases'].format(variable), data=value)
        file.create_dataset('optimizer_weights/conv1_1/kernel:0', data=np.zeros(3))


write_keras_1 = functools.partial(write_keras, leaves=('{0}/{0}_W:0', '{0}/{0}_b:0'))
write_keras_model = functools.partial(write_keras, root='model_weights/')


def write_frozen(path, values):
    with tf.Graph().as_default() as graph:
        for name, value in values.items():
            tf.identity(tf.constant(value, name=name), name=name + '/read')
            if name.endswith('/beta'):
                tf.constant(np.ones_like(value), name=name.replace('beta', 'gamma'))
        path.write_bytes(graph.as_graph_def().SerializeToString())


def write_optimized(path, values):
    """A frozen graph whose constants Grappler folded."""
    with tf.Graph().as_default() as graph:
        for number, (name, value) in enumerate(sorted(values.items())):
            tf.identity(tf.constant(value, name='%s/read/_%d__cf__%d' % (name, number, number)))
        path.write_bytes(graph.as_graph_def().SerializeToString())


def write_npy(path, values):
    tree = {}
    for name, value in values.items():
        tree.setdefault(name.split('/')[0], {})[name.split('/')[1]] = value
    np.save(str(path), np.array(tree, dtype=object), allow_pickle=True)


def build(network_class):
    return network_class('cmu', tf.placeholder(tf.float32, (None, 32, 32, 3), 'image'), False, COCO_SKELETON)


def random_network(network_class):
    """{variable: value} of random weights, and the output for a random image."""
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (1, 32, 32, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(network_class)
        values = {}
        for variable in network.variables:
            name, shape = variable.op.name, variable.shape.as_list()
            scale = (2 / np.prod(shape[:3])) ** 0.5 if len(shape) == 4 else 0.1
            if name.endswith('depthwise_weights'):
                scale = (2 / np.prod(shape[:2])) ** 0.5
            values[name] = (random.normal(size=shape) * scale).astype(np.float32)
            if name.endswith('moving_variance'):
                values[name] = np.abs(values[name]) + np.float32(0.5)
            variable.load(values[name], session)
        return values, image, session.run(network.output, {'image:0': image})


@pytest.fixture(scope='module')
def cmu():
    return random_network(OneStage)


@pytest.fixture(scope='module')
def thin():
    return random_network(ThinOneStage)


def assert_same_output(network_class, path, image, expected):
    with tf.Graph().as_default(), tf.Session() as session:
        network = build(network_class)
        match = pretrained.fit(network, str(path))
        match.init_fn(None, session)
        assert not match.missing and not match.unmatched, str(match)
        output = session.run(network.output, {'image:0': image})
    assert np.abs(expected).max() > 0.1 and np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('name, write', [
    ('w.caffemodel', write_caffemodel), ('old.caffemodel', write_old_caffemodel), ('w.pb', write_frozen),
    ('optimized.pb', write_optimized),
    ('w.h5', write_keras), ('w1.h5', write_keras_1), ('model.hdf5', write_keras_model), ('w.npy', write_npy)])
def test_round_trip(cmu, tmp_path, name, write):
    values, *image_and_output = cmu
    write(tmp_path / name, values)
    assert_same_output(OneStage, tmp_path / name, *image_and_output)


@pytest.mark.slow
def test_published_weights_run_as_they_are(cmu, tmp_path, monkeypatch):
    """pose_eval.py and freeze_and_optimize.sh take them for a checkpoint: the frozen graph gives the same maps."""
    monkeypatch.setattr(networks, 'network_class', lambda name: OneStage)
    values, image, expected = cmu
    write_caffemodel(tmp_path / 'w.caffemodel', values)
    predict_maps, size = open_network(checkpoint=str(tmp_path / 'w.caffemodel'), model='cmu', skeleton=COCO_SKELETON)
    assert size is None
    assert np.abs(predict_maps(image) - expected).max() <= 1e-5 * np.abs(expected).max()
    write_caffemodel(tmp_path / 'w.caffemodel', {name: value for name, value in values.items() if 'CPM' not in name})
    with pytest.raises(UserError, match='conv4_3_CPM'):
        open_network(checkpoint=str(tmp_path / 'w.caffemodel'), model='cmu', skeleton=COCO_SKELETON)


def test_frozen_graph_with_batch_norm_which_is_refused_when_it_is_folded(thin, tmp_path):
    """The constants of an optimized graph have the variables' names, but other values."""
    values, *image_and_output = thin
    write_frozen(tmp_path / 'w.pb', values)
    assert_same_output(ThinOneStage, tmp_path / 'w.pb', *image_and_output)
    write_frozen(tmp_path / 'opt.pb', {name: value for name, value in values.items() if 'BatchNorm' not in name})
    with tf.Graph().as_default(), pytest.raises(UserError, match='folded'):
        pretrained.fit(build(ThinOneStage), str(tmp_path / 'opt.pb'))


@pytest.mark.parametrize('name, write, layers', [
    ('VGG_ILSVRC_19_layers.caffemodel', write_old_caffemodel, 'conv%d_%d'),
    ('vgg19_notop.h5', write_keras, 'block%d_conv%d')])
def test_vgg_of_imagenet(tmp_path, name, write, layers):
    """Its first layer sees BGR less ImageNet's mean; ours gives the same for BGR x / 256 - 0.5."""
    random = np.random.RandomState(0)
    kernel, biases = random.normal(size=(3, 3, 3, 64)).astype(np.float32), random.normal(size=64).astype(np.float32)
    others = {layers % pair + leaf: np.zeros(shape, np.float32) for pair in ((4, 3), (5, 4))
              for leaf, shape in (('/weights', (1, 1, 2, 3)), ('/biases', 3))}
    write(tmp_path / name, dict({layers % (1, 1) + '/weights': kernel, layers % (1, 1) + '/biases': biases}, **others))
    weights = vgg19.converted(pretrained.read_weights(str(tmp_path / name)))
    patch = random.randint(0, 256, (3, 3, 3)).astype(np.float64)
    expected = np.einsum('hwc,hwcf->f', patch - vgg19.VGG_MEAN_RGB[::-1], kernel) + biases
    ours = np.einsum('hwc,hwcf->f', patch / 256 - 0.5, weights['conv1_1/weights']) + weights['conv1_1/biases']
    assert np.allclose(ours, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def refusal(path, content=None):
    """The error of a file (with this content), whether it shows on opening or on reading an array."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        weights = pretrained.read_weights(str(path))
        for name in weights:
            weights[name]
        raise AssertionError('%s was read: %s' % (path, list(weights)))
    assert os.path.basename(str(path)) in str(error.value) and '\n' not in str(error.value)
    return str(error.value)


def test_files_that_are_no_weights(cmu, tmp_path):
    values = {name: value for name, value in cmu[0].items() if name.startswith('conv1_1/')}
    for suffix, write in (('.caffemodel', write_caffemodel), ('.pb', write_frozen), ('.h5', write_keras)):
        whole = tmp_path / ('whole' + suffix)
        write(whole, values)
        content = whole.read_bytes()
        for data in (content[:len(content) * 2 // 3], b'<html>404 Not Found</html>', b'', bytes(range(256)) * 9):
            refusal(whole, data)
    assert 'no convolution' in refusal(tmp_path / 'net.caffemodel', field(1, b'a net without weights'))
    with h5py.File(str(tmp_path / 'data.h5'), 'w') as file:
        file.create_dataset('images', data=np.zeros(3))
    assert 'Keras' in refusal(tmp_path / 'data.h5')


def test_crafted_caffemodels(tmp_path):
    """Sizes that would overflow or take all memory, and messages that never end."""
    data = field(5, np.zeros(8, '<f4').tobytes())
    shapes = {'huge': [1 << 40, 1 << 40, 1, 1], 'negative': [-2, -2, 2, 1], 'empty': [0, 1 << 62, 1 << 62, 9],
              'deep': [1] * 40, 'short': [2, 2, 1, 1]}
    for name, shape in shapes.items():
        message = field(7, field(1, b''.join(varint(size) for size in shape))) + (b'' if name == 'empty' else data)
        refusal(tmp_path / (name + '.caffemodel'), layer('conv1_1', [message], old=False))
    for name, content in (('endless', b'\xff' * 1000), ('number', varint(100 << 3) + varint(7)),
                          ('length', varint(100 << 3 | 2) + varint(1 << 60)), ('group', varint(100 << 3 | 3)),
                          ('name', layer('conv1_1', [data], False).replace(b'conv1_1', b'\xff' * 7))):
        refusal(tmp_path / (name + '.caffemodel'), content)


def test_crafted_graphs_and_h5_files(tmp_path):
    """A constant that expands to terabytes, a link to another file, a data set that lies in another file."""
    graph = tf.GraphDef()
    node = graph.node.add(name='conv1_1/weights', op='Const')
    node.attr['dtype'].type = 1
    tensor = node.attr['value'].tensor
    tensor.dtype = 1
    tensor.float_val.append(0.0)
    for _ in range(4):
        tensor.tensor_shape.dim.add(size=1 << 20)
    assert 'elements' in refusal(tmp_path / 'bomb.pb', graph.SerializeToString())
    secret = tmp_path / 'secret'
    secret.write_bytes(np.zeros(27, '<f4').tobytes())
    with h5py.File(str(tmp_path / 'bomb.h5'), 'w') as file:
        file.create_dataset('conv1_1/conv1_1/kernel:0', (1 << 20, 1 << 20), 'f4', chunks=(1024, 1024))
    assert 'not an array of weights' in refusal(tmp_path / 'bomb.h5')
    with h5py.File(str(tmp_path / 'link.h5'), 'w') as file:
        file['conv1_1/kernel:0'] = h5py.ExternalLink('bomb.h5', '/conv1_1/conv1_1/kernel:0')
    assert 'no layers' in refusal(tmp_path / 'link.h5')
    with h5py.File(str(tmp_path / 'outside.h5'), 'w') as file:
        file.create_dataset('conv1_1/kernel:0', (27,), 'f4', external=[(str(secret), 0, 108)])
    assert 'not an array of weights' in refusal(tmp_path / 'outside.h5')
