"""Graph files, inference graphs with a checkpoint's values, and TensorFlow's transform tool."""
import subprocess
import sys

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import PROGRAMS, ROOT
from graphs import freeze, graphdef, optimize
from pose_errors import UserError
from small_graphs import RNG, SIZE, conv, depthwise, frozen_graph, fused_norm, needs_transforms, ops, outputs, \
    plain_norm, save_checkpoint


@pytest.mark.parametrize('text', [False, True])
def test_graph_files_come_back(tmp_path, text):
    graph = frozen_graph(lambda image: conv(image, 4))
    freeze.save_graph(graph, str(tmp_path / 'graph.pb'), text)
    assert freeze.load_graph(str(tmp_path / 'graph.pb')) == graph
    assert (tmp_path / 'graph.pb').read_bytes().startswith(b'node {') == text


def test_files_without_a_whole_frozen_graph_are_refused(tmp_path):
    path = tmp_path / 'graph.pb'
    data = frozen_graph(lambda image: conv(image, 4)).SerializeToString()
    for content, mention in ((b'', 'again'), (data[:len(data) // 2], 'again'),
                             (b'\xff\xd8 a photograph', 'not a TensorFlow')):
        path.write_bytes(content)
        with pytest.raises(UserError, match=mention):
            freeze.load_frozen(str(path))
    with pytest.raises(UserError, match='no_such.pb'):
        freeze.load_frozen(str(tmp_path / 'no_such.pb'))
    freeze.save_graph(frozen_graph(lambda image: conv(image, 4) + tf.get_variable('v', [4], use_resource=False)),
                      str(path))
    with pytest.raises(UserError, match='not frozen: v is a variable'):
        freeze.load_frozen(str(path))


@pytest.mark.slow
def test_a_frozen_network_computes_what_the_network_does(tmp_path):
    """With its own checkpoint's values, at a fixed size and at any; without anything of training."""
    checkpoint = save_checkpoint('mobilenet_thin', tmp_path / 'model', training_steps=0)
    images = RNG.uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        network = networks.get_network('mobilenet_thin', tf.constant(images), False)
        tf.train.Saver(network.variables).restore(session, checkpoint)
        expected = session.run(network.output)
    for size, shape in (((96, 64), [None, 64, 96, 3]), (None, [None, None, None, 3])):
        frozen = freeze.freeze(freeze.network_graph('mobilenet_thin', COCO_SKELETON, size), checkpoint)
        assert graphdef.input_shape(frozen).as_list() == shape
        assert not set(ops(frozen)) & {'VariableV2', 'FusedBatchNormV3', 'Assign'}
        assert ops(frozen)['FusedBatchNorm'] == 72
        np.testing.assert_allclose(outputs(frozen, images), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(UserError, match='variable .* has shape .*, not'):
        freeze.freeze(freeze.network_graph('mobilenet_accurate', COCO_SKELETON), checkpoint)


def small_network_graph():
    with tf.Graph().as_default():
        build = lambda image: plain_norm(fused_norm(conv(depthwise(image), 57, strides=[1, 8, 8, 1])))  # noqa: E731
        return optimize.optimize(frozen_graph(build, (None, SIZE, SIZE, 3)), [1, SIZE, SIZE, 3])


def test_graphs_have_no_attributes_at_their_defaults():
    """Older versions of TensorFlow refuse those that newer ones have added."""
    inference = freeze.inference_graph(lambda: tf.nn.relu(fused_norm(conv(tf.placeholder(
        tf.float32, (1, SIZE, SIZE, 3), name='image'), 4)), name=graphdef.OUTPUT))
    for graph in (inference, small_network_graph()):
        attributes = {name for node in graph.node for name in node.attr}
        assert not attributes & {'explicit_paddings', 'exponential_avg_factor', 'dilations', 'data_format'}
        assert attributes >= {'strides', 'padding', 'T'}
    images = RNG.uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)
    graph = frozen_graph(lambda image: conv(image, 4), (1, SIZE, SIZE, 3))
    assert np.array_equal(outputs(graphdef.drop_default_attributes(graph), images), outputs(graph, images))


@pytest.mark.slow
def test_a_graph_of_tensorflow_2_runs_on_1(tmp_path):
    python = ROOT / '.venv' / 'bin' / 'python'
    program = 'import tensorflow.compat.v1 as tf; print(tf.VERSION)'
    if not python.exists() or tf.__version__.startswith('1.') or not subprocess.check_output(
            [str(python), '-c', program], universal_newlines=True).startswith('1.'):
        pytest.skip('TensorFlow 2 here and 1.15 in .venv are needed')
    images = RNG.randint(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    np.save(str(tmp_path / 'images.npy'), images)
    graph = small_network_graph()
    freeze.save_graph(graph, str(tmp_path / 'graph.pb'))
    subprocess.check_call([str(python), str(PROGRAMS / 'run_graphs.py'), str(tmp_path / 'images.npy'),
                           str(tmp_path / 'maps.npy'), str(tmp_path / 'graph.pb')])
    expected = np.concatenate([outputs(graph, image[None]) for image in images])
    np.testing.assert_allclose(np.load(str(tmp_path / 'maps.npy'))[0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@needs_transforms
def test_transform_graph_binary(tmp_path, monkeypatch):
    """Any program with the flags of transform_graph will do: here the project's own."""
    binary = tmp_path / 'transform_graph'
    binary.write_text('#!/bin/sh\nunset TRANSFORM_GRAPH\nexec %s %s "$@"\n'
                      % (sys.executable, ROOT / 'scripts' / 'transform_graph.py'))
    binary.chmod(0o755)
    monkeypatch.setenv('TRANSFORM_GRAPH', str(binary))
    graph = frozen_graph(lambda image: tf.identity(conv(image, 4)))
    transformed = freeze.run_transforms(graph, ['image'], [graphdef.OUTPUT],
                                        ['remove_nodes(op=Identity, op=CheckNumerics)'])
    assert ops(graph)['Identity'] and 'Identity' not in ops(transformed)


@pytest.mark.parametrize('binary', ['/bin/false', '/no/such/program'])
def test_transform_graph_binary_that_fails(binary, monkeypatch):
    monkeypatch.setenv('TRANSFORM_GRAPH', binary)
    with pytest.raises(UserError, match=binary):
        freeze.run_transforms(frozen_graph(lambda image: conv(image, 4)), ['image'], [graphdef.OUTPUT], ['x'])
