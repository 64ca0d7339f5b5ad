"""Calls around graphs that cannot work: each ends with one line that names the reason, and writes nothing."""
import importlib
import sys

import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from conftest import assert_user_error, run_program
from graphs import freeze, graphdef, tflite
from pose_errors import UserError

SIZE = 64


def run_without(packages, *args):
    """Run a command with Python packages that cannot be imported."""
    return run_program('without_packages.py', ','.join(packages), *args)


@pytest.fixture(scope='module')
def folder(sample_coco, tmp_path_factory):
    """Graphs, .tflite files and images, good and bad, by name."""
    folder = tmp_path_factory.mktemp('files')
    (folder / 'empty').mkdir()
    (folder / 'folder.tflite').mkdir()
    for name in ('annotations/person_keypoints_val2017.json', 'val2017'):
        link = folder / 'val_only' / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sample_coco / name)
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'x.jpg').write_bytes(b'no image')
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (None, SIZE, SIZE, 3), name=graphdef.INPUT)
        weights = tf.constant(np.random.RandomState(0).uniform(-1e-3, 1e-3, (8, 8, 3, 57)).astype(np.float32))
        tf.nn.bias_add(tf.nn.conv2d(image, weights, [1, 8, 8, 1], 'SAME'), tf.zeros(57), name=graphdef.OUTPUT)
        data = graph.as_graph_def().SerializeToString()
    (folder / 'graph.pb').write_bytes(data)
    (folder / 'cut.pb').write_bytes(data[:len(data) // 2])
    (folder / 'other.pb').write_bytes(data.replace(b'image', b'photo'))
    (folder / 'renamed.tflite').write_bytes(data)
    lite = tflite.convert(graph.as_graph_def(), [1, SIZE, SIZE, 3])
    (folder / 'good.tflite').write_bytes(lite)
    (folder / 'cut.tflite').write_bytes(lite[:len(lite) // 2])
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (1, SIZE, SIZE, 3), name=graphdef.INPUT)
        tf.reduce_mean(image, axis=[1, 2], name=graphdef.OUTPUT)
        (folder / 'foreign.tflite').write_bytes(tflite.convert(graph.as_graph_def(), [1, SIZE, SIZE, 3]))
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (1, SIZE, SIZE, 3), name=graphdef.INPUT)
        maps = tf.py_func(lambda x: x, [image], tf.float32)
        maps.set_shape((1, SIZE, SIZE, 3))
        tf.multiply(1.0, maps, name=graphdef.OUTPUT)
        (folder / 'unknown_op.pb').write_bytes(graph.as_graph_def().SerializeToString())
    return folder


FREEZE = [
    ([], '--checkpoint'), (['--checkpoint=x'], '--model'), (['--model=resnet', '--checkpoint=x'], 'resnet'),
    (['--model=cmu', '--checkpoint={0}/empty'], 'no checkpoint in the folder'),
    (['--model=cmu', '--checkpoint={0}/model-5'], 'no checkpoint'),
    (['--model=cmu', '--checkpoint=x', '--graph=y'], 'either'), (['--graph=y', '--input-size=12'], '12'),
    (['--graph=/no/such.pb'], '/no/such.pb'),
    (['--graph={0}/graph.pb', '--quantize=int8'], 'images to calibrate on'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--images={0}/empty'], 'no photographs'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--images={0}/absent'], 'no such folder'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--images={0}/broken'], 'x.jpg is not an image'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--datapath={0}/empty'], 'empty'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--datapath={0}/val_only'], 'train2017'),
    (['--graph={0}/empty', '--quantize=int8', '--images={0}/val_only/val2017'], 'empty'),
    (['--graph={0}/graph.pb', '--quantize=int8', '--images={0}', '--input-size=dynamic'], 'fixed size'),
    (['--graph={0}/graph.pb', '--tflite', '--input-size=dynamic'], 'fixed size'),
    (['--graph={0}/graph.pb', '--tflite', '--input-size=72x64'], '72'),
    (['--graph={0}/graph.pb', '--quantize=int4'], 'int4'),
    (['--graph={0}/graph.pb', '--calibration-images=0'], '--calibration-images'),
    (['--graph={0}/graph.pb', '--tflite', '--threads=0'], '--threads'),
    (['--graph={0}/cut.pb', '--tflite'], 'again'),
    (['--graph={0}/other.pb', '--tflite'], 'not a graph of this project'),
    (['--graph={0}/good.tflite', '--tflite'], 'good.tflite'),
]
EVALUATE = [
    (['--graph={0}/absent.tflite'], 'absent.tflite'),
    (['--graph={0}/folder.tflite'], 'folder.tflite'),
    (['--graph={0}/cut.tflite'], 'copy or convert it again'),
    (['--graph={0}/renamed.tflite'], 'not a TensorFlow Lite file'),
    (['--graph={0}/foreign.tflite'], 'not a network of this project'),
    (['--graph={0}/good.tflite', '--scale=128'], 'fixed to 64x64'),
    (['--graph={0}/good.tflite', '--input-size=128x128'], 'fixed to 64x64'),
    (['--graph={0}/good.tflite', '--threads=many'], '--threads'),
    (['--graph={0}/good.tflite', '--threads=0'], '--threads'),
]


@pytest.mark.parametrize('command, flags, mention', [('freeze_and_optimize', *call) for call in FREEZE] + [
    ('pose_eval', ['--datapath={1}', *flags], mention) for flags, mention in EVALUATE])
def test_one_line_and_no_file(folder, sample_coco, tmp_path, monkeypatch, command, flags, mention):
    flags = [flag.format(folder, sample_coco) for flag in flags] + ['--output-dir=%s' % (tmp_path / 'out')]
    monkeypatch.setattr(sys, 'argv', [command + '.py'] + flags)
    with pytest.raises(UserError, match=mention) as error:
        importlib.import_module(command).main()
    assert error.value.exit_code == 2 and '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_evaluation_without_tensorflow(folder, sample_coco, tmp_path):
    """AP and pictures of a .tflite file; another file is refused with what it needs."""
    for data in ('--datapath=%s' % sample_coco, '--images=%s' % (sample_coco / 'val2017')):
        result = run_without(['tensorflow', 'tensorpack'], 'pose_eval.py', '--graph=%s' % (folder / 'good.tflite'),
                             data, '--threads=1', '--limit=2', '--output-dir=%s' % (tmp_path / 'out'))
        assert result.returncode == 0, result.stderr
        assert '"images": 2' in result.stdout
    result = run_without(['tensorflow'], 'pose_eval.py', '--graph=%s' % (folder / 'graph.pb'), data,
                         '--output-dir=%s' % (tmp_path / 'no'))
    assert_user_error(result, 'needs TensorFlow', '.tflite')


def test_no_interpreter(folder, sample_coco, tmp_path):
    packages = ['ai_edge_litert', 'tflite_runtime']
    result = run_without(packages, 'pose_eval.py', '--graph=%s' % (folder / 'good.tflite'),
                         '--datapath=%s' % sample_coco, '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, 'no interpreter', 'requirements-infer.txt')
    result = run_without(packages, 'scripts/freeze_and_optimize.py', '--graph=%s' % (folder / 'graph.pb'), '--tflite',
                         '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, 'no interpreter', 'TF=lite')
    assert not (tmp_path / 'out').exists()


def test_an_op_that_tensorflow_lite_has_not(folder, tmp_path, capfd):
    """The converter's pages of messages become one line."""
    graph = freeze.load_graph(str(folder / 'unknown_op.pb'))
    with pytest.raises(UserError, match='refuses the graph') as error:
        tflite.convert(graph, [1, SIZE, SIZE, 3])
    assert len(str(error.value)) < 600
    assert capfd.readouterr().err.count('\n') < 5
