"""Flags of a run that change how it ends, what it keeps, and what stays as it is: on the small network."""
import json
import re

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from train_runs import train_small
from training.config import Recipe
from training.optimizer import Optimizer
from tower_graphs import Towers, random_batch

pytestmark = pytest.mark.slow


def test_patience_ends_a_run_that_gets_no_better(sample_coco, tmp_path):
    """A network that has learned nothing has AP 0 each time."""
    log = train_small(sample_coco, tmp_path / 'run', '--lr=1e-30', '--max-steps=50', '--valid-every=50',
                      '--eval-every=2', '--patience=2')
    assert log.count('best validation so far: AP=0 at step 2,') == 1
    assert '--patience ends the run' in log and re.search(r'done: step 6\b', log)
    assert (tmp_path / 'run' / 'model-6.index').exists()


def test_the_best_is_chosen_by_ap_where_it_is_measured(sample_coco, tmp_path):
    flags = '--warmup-steps=0', '--valid-every=2', '--eval-every=2'
    log = train_small(sample_coco, tmp_path / 'run', '--max-steps=2', *flags)
    assert 'best validation so far: AP=' in log
    assert set(json.loads((tmp_path / 'run' / 'best' / 'best.json').read_text())) == {'step', 'AP'}
    log = train_small(sample_coco, tmp_path / 'run', '--max-steps=4', '--warmup-steps=0', '--valid-every=2')
    assert 'was chosen by another measure' in log and 'best validation so far: loss_ll=' in log


def test_a_run_again_from_its_own_flags(sample_coco, tmp_path):
    train_small(sample_coco, tmp_path / 'first', '--max-steps=2', '--aug-scale=0.6,0.9', '--clip-norm=3', '--ema=0.5')
    log = train_small(sample_coco, tmp_path / 'second', '--config=%s' % (tmp_path / 'first' / 'run.json'),
                      '--max-steps=3')
    first, second = (json.loads((tmp_path / name / 'run.json').read_text())['flags'] for name in ('first', 'second'))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {'max_steps', 'modelpath', 'logpath', 'config'} and second['max_steps'] == 3
    assert 'step=3' in log
    text = tmp_path / 'text.json'
    text.write_text('[1]')
    for path in (tmp_path / 'none.json', text):
        assert str(path) in train_small(sample_coco, tmp_path / 'third', '--config=%s' % path, code=2)


def test_frozen_layers_stay_as_they_are():
    graph = Towers('mobilenet_thin', 1, 2, rate=1e-2, recipe=Recipe(
        backbone_rate=0.0, backbone=networks.entry('mobilenet_thin').pretrained.prefixes, freeze_batch_norm=True))
    before = graph.session.run(graph.variables)
    graph.run(graph.training.step, random_batch(2))
    after = graph.session.run(graph.variables)
    graph.session.close()
    names = [variable.op.name for variable in graph.training.network.variables]
    moved = {name for name in names if not np.array_equal(before[name], after[name])}
    assert moved and not any(name.startswith('MobilenetV1/') for name in moved)
    assert all(name in moved for name in names if name.startswith('Openpose/') and '/moving_' in name)


def test_the_norm_of_all_gradients_is_clipped():
    def steps(clip_norm):
        with tf.Graph().as_default(), tf.Session() as session:
            variables = [tf.get_variable(name, initializer=[1.0, 1.0]) for name in 'ab']
            gradients = tf.constant([3.0, 0.0]), tf.constant([0.0, 4.0])
            update = Optimizer(tf.constant(0.1), Recipe('sgd', momentum=0.0, clip_norm=clip_norm)).apply_gradients(
                list(zip(gradients, variables)), tf.train.get_or_create_global_step())
            session.run(tf.global_variables_initializer())
            session.run(update)
            return 1 - np.array(session.run(variables))
    np.testing.assert_allclose(steps(1.0), [[0.06, 0], [0, 0.08]], rtol=1e-5)  # the norm was 5
    np.testing.assert_allclose(steps(10.0), [[0.3, 0], [0, 0.4]], rtol=1e-5)


def test_flags_that_cannot_work(tmp_path):
    for flag in ('--ema=1', '--clip-norm=0', '--aug-scale=2,1', '--aug-flip=2', '--augment=none', '--max-hours=-1',
                 '--patience=-1'):
        assert flag[2:].split('=')[0] in train_small(tmp_path, tmp_path / 'run', flag, code=2)
