"""--ema: the moving averages of a run's weights, in all its replicas, what uses them, and that they resume exactly."""
import re

import numpy as np
import pytest

import small_network
import tensorflow.compat.v1 as tf
from networks.pretrained import read_weights
from saved_weights import load_all
from tower_graphs import Towers, random_batch
from train_runs import train_small
from training.config import Recipe
from training.optimizer import average_weights, kept_share

ENDING = '/ExponentialMovingAverage'


def test_averages_of_known_values():
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.train.get_or_create_global_step()
        weight = tf.get_variable('layer/weights', initializer=5.0)
        change = tf.placeholder(tf.float32, ())
        kept = kept_share(0.5, step)
        with tf.control_dependencies([kept]):
            updates = [tf.assign(weight, change), tf.assign_add(step, 1)]
        operations, averages = average_weights([weight], kept, updates)
        session.run(tf.global_variables_initializer())
        expected = None
        for number, value in enumerate((3.0, 4.0, -2.0, 8.0) * 3, start=1):
            session.run(operations, {change: value})
            share = min(0.5, (1 + number) / (10 + number))
            expected = value if number == 1 else share * expected + (1 - share) * value
            assert session.run(averages['layer/weights']) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_all_replicas_have_the_same_averages():
    graph = Towers(small_network.NAME, 2, 4, rate=1e-3, recipe=Recipe(ema=0.9))
    graph.session.run(graph.training.copy)
    for seed in range(2):
        graph.run(graph.training.step, random_batch(4, seed=seed))
    values = graph.session.run(graph.variables)
    averages = {name for name in values if name.endswith(ENDING) and not name.startswith('replica_1/')}
    assert len(averages) == len(graph.training.network.variables) == len(graph.training.averages)
    for name in averages:
        assert np.array_equal(values[name], values['replica_1/' + name])
    assert any((values[name] != values[name[:-len(ENDING)]]).any() for name in averages)
    assert averages <= {variable.op.name for variable in graph.training.variables}
    graph.session.close()


@pytest.mark.slow
def test_a_run_keeps_validates_and_hands_on_its_averages(sample_coco, tmp_path):
    flags = ['--ema=0.9', '--warmup-steps=0', '--max-steps=6']
    log = train_small(sample_coco, tmp_path / 'whole', *flags, '--valid-every=6')
    whole = load_all(str(tmp_path / 'whole' / 'model-6'))
    read = read_weights(str(tmp_path / 'whole'))
    names = [name for name in whole if name + ENDING in whole]
    assert len(names) > 10 and not any(name.endswith(ENDING) for name in read)
    assert all(np.array_equal(read[name], whole[name + ENDING]) for name in names)
    assert any((whole[name] != read[name]).any() for name in names)

    # Before the first step there are none.
    start = read_weights(str(tmp_path / 'whole' / 'model-0'))
    assert all(start[name].any() for name in names if name.endswith('weights'))

    # Stopped and resumed, it ends with the same bits.
    train_small(sample_coco, tmp_path / 'parts', *flags, '--max-hours=0')
    train_small(sample_coco, tmp_path / 'parts', *flags)
    parts = load_all(str(tmp_path / 'parts' / 'model-6'))
    assert set(parts) == set(whole) and all(np.array_equal(parts[name], whole[name]) for name in whole)

    # Without averages the weights are the same, and what is validated is not.
    plain = train_small(sample_coco, tmp_path / 'plain', *flags[1:], '--valid-every=6')
    weights = load_all(str(tmp_path / 'plain' / 'model-6'))
    assert all(np.array_equal(whole[name], weights[name]) for name in weights)
    last_losses = [re.findall(r'validation\(6\).* loss_ll=([\d.]+)', text)[-1] for text in (log, plain)]
    assert last_losses[0] != last_losses[1]
    assert 'ema' in train_small(sample_coco, tmp_path / 'whole', '--max-steps=8', code=2)
