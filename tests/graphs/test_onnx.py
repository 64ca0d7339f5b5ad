"""ONNX files: the same maps as the graph's, on any size, with the skeleton in them; TensorFlow 2 only."""
import sys

import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from conftest import assert_user_error, run_command
from graphs import freeze
from inference import load_network, onnx_runtime, open_network, read_skeleton
from pose_errors import UserError
from small_graphs import RNG, save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.version_info < (3, 8),
                                                   reason='tf2onnx is installed beside TensorFlow 2')]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    from graphs import onnx_graph
    folder = tmp_path_factory.mktemp('onnx')
    checkpoint = save_checkpoint('mobilenet_v2_small', folder / 'model', training_steps=0)
    graph = freeze.freeze(freeze.network_graph('mobilenet_v2_small', COCO_SKELETON), checkpoint)
    freeze.save_graph(graph, str(folder / 'graph.pb'))
    (folder / 'graph.onnx').write_bytes(
        onnx_runtime.with_skeleton(onnx_graph.convert(graph), COCO_SKELETON))
    return folder


def test_maps_are_those_of_the_graph(files):
    predictors = [open_network(str(files / name))[0] for name in ('graph.pb', 'graph.onnx')]
    for size in ((2, 64, 96, 3), (1, 72, 64, 3)):
        images = RNG.randint(0, 256, size).astype(np.uint8)
        expected, found = (predict_maps(images) for predict_maps in predictors)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert read_skeleton(str(files / 'graph.onnx')) == COCO_SKELETON
    with load_network(files / 'graph.onnx') as network:
        assert network(images[0]) is not None and network.skeleton == COCO_SKELETON


def test_broken_files_are_one_line(files, tmp_path):
    data = (files / 'graph.onnx').read_bytes()
    for name, content in (('cut', data[:len(data) // 2]), ('empty', b''), ('text', b'no network')):
        path = tmp_path / (name + '.onnx')
        path.write_bytes(content)
        with pytest.raises(UserError, match='%s.onnx' % name):
            open_network(str(path))
    with pytest.raises(UserError, match='none.onnx'):
        open_network(str(tmp_path / 'none.onnx'))


def test_the_command_writes_and_measures_it(files, tmp_path):
    result = run_command('scripts/freeze_and_optimize.py', '--checkpoint=%s' % files, '--onnx', '--runs=1',
                         '--model=mobilenet_v2_small', '--output-dir=%s' % tmp_path, '--input-size=64x64')
    assert result.returncode == 0, result.stderr
    assert 'graph_onnx' in result.stdout and 'ONNX Runtime' in result.stdout
    assert (tmp_path / 'graph.onnx').exists()
    assert_user_error(run_command('pose_eval.py', '--graph=%s' % (tmp_path / 'no.onnx'), '--images=.'), 'no.onnx')
