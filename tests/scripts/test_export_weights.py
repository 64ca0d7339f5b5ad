"""Weights of a run as one small file, and the ways into which it goes."""
import json

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import assert_user_error, run_command, run_well
from graphs import freeze
from networks import pretrained
from networks.formats.npy import half_precision


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """(folder of a checkpoint of mobilenet_fast as it starts, with its run.json; the file made of it)."""
    folder = tmp_path_factory.mktemp('run')
    run = {'flags': {'model': 'mobilenet_fast'}, 'skeleton': COCO_SKELETON.to_json()}
    (folder / 'run.json').write_text(json.dumps(run))
    with tf.Graph().as_default():
        networks.get_network('mobilenet_fast', tf.placeholder(tf.float32, [1, 32, 32, 3]), is_training=True)
        tf.get_variable('conv/Adam', [3])
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, str(folder / 'model'), 7, write_meta_graph=False)
    result = run_well('scripts/export_weights.py', '--checkpoint=%s' % folder, '--output=%s' % (folder / 'w.npy'))
    assert result.stderr == '' and 'mobilenet_fast' in result.stdout
    return folder, folder / 'w.npy'


@pytest.mark.slow
def test_it_holds_the_network_and_nothing_else_in_half_precision_and_knows_what_it_is(exported):
    folder, path = exported
    weights, original = pretrained.read_weights(str(path)), pretrained.read_weights(str(folder))
    assert set(weights) == set(original) - {'conv/Adam'}
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    for name, value in weights.items():
        np.testing.assert_allclose(value, original[name], rtol=1e-3, atol=1e-7)
    assert path.stat().st_size < 2.1 * sum(value.size for value in weights.values())
    assert pretrained.model_of(str(path)) == 'mobilenet_fast'
    assert pretrained.skeleton_of(str(path)) == COCO_SKELETON


@pytest.mark.slow
def test_training_and_freezing_take_it(exported):
    path = str(exported[1])
    with tf.Graph().as_default():
        network = networks.get_network('mobilenet_fast', tf.placeholder(tf.float32, [1, 32, 32, 3]), is_training=True)
        match = pretrained.fit(network, path)
    assert match.missing == [] and match.unmatched == []
    assert {value.dtype for value in match.values.values()} == {np.dtype(np.float32)}
    frozen = freeze.freeze(freeze.network_graph('mobilenet_fast', COCO_SKELETON), path)
    assert not any(node.op.startswith('Variable') for node in frozen.node)


@pytest.mark.slow
def test_another_model_is_refused(exported, tmp_path):
    result = run_command('scripts/export_weights.py', '--checkpoint=%s' % exported[0], '--model=cmu',
                         '--output=%s' % (tmp_path / 'w.npy'))
    assert_user_error(result, 'lacks', 'cmu')


def test_what_is_too_large_for_half_precision_stays_and_damage_is_told(tmp_path):
    assert half_precision(np.array([1e5], np.float32)).dtype == np.float32
    assert half_precision(np.array([6e4], np.float32)).dtype == np.float16
    path = tmp_path / 'w.npy'
    content = {'conv/weights': np.zeros(2, np.float16), 'about': np.frombuffer(b'{"model"', np.uint8)}
    np.save(str(path), np.array(content, object))
    for read in (pretrained.read_weights, pretrained.model_of):
        with pytest.raises(pretrained.UserError, match='w.npy is damaged'):
            read(str(path))
