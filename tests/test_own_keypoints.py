"""Five keypoints in files as tools write them, all the way: trained through a data worker from a network for other
keypoints, validated, evaluated, frozen, and drawn, without a flag that says which keypoints there are."""
import json
import sys

import cv2
import numpy as np
import pytest

import networks
import pose_eval
import small_network
import tensorflow.compat.v1 as tf
import tool_files
from annotations.splits import find_split
from conftest import PATIENCE
from inference import read_skeleton
from test_pose_dataworker import worker_command
from train_runs import train_small

SPLITS = {'default': 'train2017', 'check': 'val2017'}


@pytest.fixture(scope='module')
def data(sample_coco, tmp_path_factory):
    """CVAT's layout: annotations/person_keypoints_default.json and images/default, and the same for validation."""
    folder = tmp_path_factory.mktemp('dancers')
    (folder / 'annotations').mkdir()
    (folder / 'images').mkdir()
    for split, of in SPLITS.items():
        content = json.loads((sample_coco / 'annotations' / ('person_keypoints_%s.json' % of)).read_text())
        tool_files.from_coco(content)
        (folder / 'annotations' / ('person_keypoints_%s.json' % split)).write_text(json.dumps(content))
        (folder / 'images' / split).symlink_to(sample_coco / of)
    return folder


@pytest.fixture(scope='module')
def others(tmp_path_factory):
    """A checkpoint of the untrained small network for COCO's keypoints."""
    with tf.Graph().as_default(), tf.Session() as session:
        networks.get_network(small_network.NAME, tf.placeholder(tf.float32, (1, 64, 64, 3)), is_training=False)
        tf.train.get_or_create_global_step()
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, str(tmp_path_factory.mktemp('coco') / 'model'))


def call(monkeypatch, main, *args):
    monkeypatch.setattr(sys, 'argv', ['command'] + [str(arg) for arg in args])
    main()


@pytest.mark.slow
def test_five_keypoints_all_the_way(sample_coco, data, others, address, start, tmp_path, monkeypatch, capsys):
    import freeze_and_optimize
    worker = start(*worker_command(address, data), '--train-split=default')
    model, graphs, out = (tmp_path / name for name in ('model', 'graphs', 'out'))
    flags = '--checkpoint=%s' % others, '--remote-data=' + address, '--train-split=default', '--valid-split=check'
    log = train_small(data, model, *flags, '--max-steps=1')  # without validation images that tell the keypoints
    assert 'for other keypoints, so these layers start anew: Stage1_L1_2, ' in log
    assert worker.wait(PATIENCE) == 0, worker.log.read_text()
    worker = start(*worker_command(address, data), '--train-split=default')
    log = train_small(data, model, *flags, '--max-steps=2', '--valid-every=2', '--eval-every=2')
    assert worker.wait(PATIENCE) == 0, worker.log.read_text()
    assert 'validation(6) small loss=' in log and 'evaluation step=2 AP=' in log
    for text in (log, worker.log.read_text()):
        assert 'left out 1 annotations of other categories' in text and 'derived ' in text

    call(monkeypatch, freeze_and_optimize.main, '--model=small', '--checkpoint=%s' % model, '--runs=1',
         '--output-dir=%s' % graphs, '--input-size=64x64')
    graph = graphs / 'graph_opt.pb'
    assert read_skeleton(str(graph)).keypoints == tool_files.KEYPOINTS
    predict_maps, _ = pose_eval.open_network(graph_file=str(graph))
    assert predict_maps(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 8, 8, 6 + 2 * len(tool_files.LIMBS))

    capsys.readouterr()
    call(monkeypatch, pose_eval.main, '--graph=%s' % graph, '--datapath=%s' % data, '--split=check', '--decoders=0',
         '--output-dir=%s' % out, '--flip')
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['images'] == 6 and 0 <= summary['AP'] <= 1 and summary['flip'] is True
    images = find_split(str(data), 'check')[1]
    call(monkeypatch, pose_eval.main, '--graph=%s' % graph, '--images=%s' % images, '--decoders=0',
         '--output-dir=%s' % out)
    drawn = sorted(out.glob('*_keypoints.json'))
    assert len(drawn) == 6 and json.loads(drawn[0].read_text())['part_names'] == list(tool_files.KEYPOINTS)
    assert cv2.imread(str(out / 'people_check.png')) is not None

    capsys.readouterr()  # data with more keypoints measure those that it finds
    call(monkeypatch, pose_eval.main, '--graph=%s' % graph, '--datapath=%s' % sample_coco, '--output-dir=%s' % out,
         '--decoders=0')
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['images'] == 6
