"""Flags of a run that change how it ends, what it keeps, and what stays as it is: on the small network."""
import json
import re
import shutil

import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from pose_errors import UserError
from train_runs import train_small
from training.config import Recipe, parse_flags
from training.optimizer import Optimizer
from tower_graphs import Towers, random_batch

pytestmark = pytest.mark.slow


def test_patience_ends_a_run_that_gets_no_better(sample_coco, tmp_path):
    """A network that has learned nothing has AP 0 each time. Earlier starts count."""
    flags = '--lr=1e-30', '--valid-every=50', '--eval-every=2', '--patience=2'
    log = train_small(sample_coco, tmp_path / 'run', '--max-steps=4', *flags)
    assert log.count('best validation so far: AP=0 at step 2,') == 1 and '--patience ends' not in log
    for _ in range(2):
        log = train_small(sample_coco, tmp_path / 'run', '--max-steps=50', *flags)
        assert '2 validations in a row were no better: --patience ends the run' in log
        assert re.search(r'done: step 6\b', log) and (tmp_path / 'run' / 'model-6.index').exists()
    assert ' step=7' not in log


def test_a_validation_that_a_stop_cut_short_is_made_up_for(sample_coco, tmp_path):
    flags = '--max-steps=3', '--valid-every=3'
    train_small(sample_coco, tmp_path / 'run', *flags)
    curves = tmp_path / 'run' / 'logs' / 'curves.csv'
    curves.write_text(''.join(line for line in curves.read_text().splitlines(True) if line[:6] != 'valida'))
    shutil.rmtree(str(tmp_path / 'run' / 'best'))
    for count in (1, 0):
        log = train_small(sample_coco, tmp_path / 'run', *flags)
        assert log.count(' small loss=') == log.count('best validation so far') == count
        assert (tmp_path / 'run' / 'best' / 'model-3.index').exists()


def test_a_stop_before_the_first_step_says_why_and_nothing_else(sample_coco, tmp_path):
    log = train_small(sample_coco, tmp_path / 'run', '--max-hours=0.000001', '--max-steps=2')
    last = log.splitlines()[-1]
    assert 'stopped by --max-hours before the first step' in last and 'never used' not in log


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
    log = train_small(sample_coco, tmp_path / 'fourth', '--config=%s' % (tmp_path / 'first'), '--max-epoch=1')
    assert re.search(r'step 0 of %s\b' % re.search(r'(\d+) steps per epoch', log).group(1), log)  # not of 2
    text = tmp_path / 'text.json'
    text.write_text('[1]')
    for path in (tmp_path / 'none.json', text):
        assert str(path) in train_small(sample_coco, tmp_path / 'third', '--config=%s' % path, code=2)


def test_a_flag_that_may_be_repeated_takes_the_place_of_the_runs(tmp_path, monkeypatch):
    run = tmp_path / 'run.json'
    run.write_text(json.dumps({'flags': {'add_data': ['a:0.3'], 'max_steps': 7, 'pretrained': 'w.npy',
                                         'workers': 4096}}))
    monkeypatch.setenv('HOME', str(tmp_path))

    def flags(*arguments):
        monkeypatch.setattr('sys.argv', ['train.py', '--config=~/run.json', *arguments])
        return parse_flags()
    assert flags().add_data == ['a:0.3'] and flags().max_steps == 7
    assert flags().workers < 4096  # those of the machine on which it ran
    assert flags('--add-data=~/b:0.5').add_data == ['%s/b:0.5' % tmp_path]
    assert flags('--max-epoch=3').max_steps is None and flags('--checkpoint=c').pretrained is None
    for arguments in (['--config'], ['--valid-share=0.1', '--valid-split=x']):
        monkeypatch.setattr('sys.argv', ['train.py', *arguments])
        with pytest.raises(UserError, match=arguments[-1].split('=')[0]):
            parse_flags()


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
                 '--patience=-1', '--input-width=1000000'):
        assert flag[2:].split('=')[0] in train_small(tmp_path, tmp_path / 'run', flag, code=2)
