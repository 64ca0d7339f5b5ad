"""The learning rate over time, and what an update does to a weight."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from training.config import Recipe, Schedule
from training.optimizer import Optimizer, learning_rate_schedule

PAPER = Recipe('sgd', momentum=0.9, weight_decay=5e-4, factors=True, decay_steps=30)


def rates_at(rates, steps, steps_per_epoch, max_steps, recipe=Recipe(), by_steps=False, offset=0):
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.placeholder(tf.int64, ())
        rate = learning_rate_schedule(rates, step, Schedule(steps_per_epoch, max_steps, by_steps, offset), recipe)
        return [float(session.run(rate, {step: s})) for s in steps]


def test_one_rate_decays_along_a_cosine_to_zero():
    np.testing.assert_allclose(rates_at([0.01], [0, 25, 50, 100], 10, 100),
                               [0.01, 0.01 * (1 + np.cos(np.pi / 4)) / 2, 0.005, 0], rtol=1e-5, atol=1e-9)


def test_another_batch_size_goes_on_where_the_samples_are():
    """100 steps are half of a run of 200; from there on in batches of half the size, twice as many are left."""
    halves = rates_at([0.01], [100, 200, 300], 20, 300, offset=100)
    np.testing.assert_allclose(halves, rates_at([0.01], [100, 150, 200], 10, 200), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(rates_at([0.1, 0.01], [0, 1], 20, 300, offset=100), [0.1, 0.01], rtol=1e-5)
    by_steps = rates_at([0.01], [100, 200], 20, 200, by_steps=True, offset=100)
    np.testing.assert_allclose(by_steps, rates_at([0.01], [100, 200], 10, 200), rtol=1e-5, atol=1e-9)


def test_several_rates_step_every_five_epochs():
    np.testing.assert_allclose(rates_at([0.1, 0.01, 0.001], [1, 50, 51, 100, 101, 10000], 10, 10000),
                               [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


def test_the_rate_warms_up_linearly_from_the_first_step_and_only_then():
    steps = [0, 1, 18, 19, 20, 500]
    plain = np.array(rates_at([0.01], steps, 10, 1000))
    np.testing.assert_allclose(rates_at([0.01], steps, 10, 1000, Recipe(warmup_steps=20)),
                               plain * [0.05, 0.1, 0.95, 1, 1, 1], rtol=1e-5)


def test_the_papers_rate_falls_to_a_third_every_so_many_steps():
    np.testing.assert_allclose(rates_at([1e-3], [0, 29, 30, 59, 60], 10, 1000, PAPER),
                               1e-3 * np.array([1, 1, 0.333, 0.333, 0.333 ** 2]), rtol=1e-5)


NAMES = ('conv1_1/weights', 'conv1_1/biases', 'conv4_4_CPM/weights', 'conv5_1_CPM_L1/weights', 'conv5_5_CPM_L2/biases',
         'Mconv1_stage2_L1/weights', 'Mconv7_stage6_L2/biases')


def updated(recipe, rate, gradients, names=NAMES, use_resource=False):
    """Variables of these names, all 2, after steps with these gradients (the same for each): {name: value}.

    The optimizer's own variables are among them.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, initializer=2.0, use_resource=use_resource) for name in names]
        step = tf.train.get_or_create_global_step()
        gradient = tf.placeholder(tf.float32, ())
        update = Optimizer(tf.constant(rate), recipe).apply_gradients(
            [(tf.identity(gradient), variable) for variable in variables], step)
        session.run(tf.global_variables_initializer())
        for value in gradients:
            session.run(update, {gradient: value})
        assert session.run(step) == len(gradients)
        return {variable.op.name: session.run(variable) for variable in tf.global_variables()}


def test_the_papers_recipe_is_the_authors_solver():
    """Against Caffe's rule: velocity = momentum * velocity + rate * factor * (gradient + decay * weight)."""
    factors = {'conv1_1/weights': 1, 'conv1_1/biases': 2, 'conv4_4_CPM/weights': 1, 'conv5_1_CPM_L1/weights': 1,
               'conv5_5_CPM_L2/biases': 2, 'Mconv1_stage2_L1/weights': 4, 'Mconv7_stage6_L2/biases': 8}
    after = updated(PAPER, 0.01, [1.0, -3.0, 0.5])
    for name, factor in factors.items():
        weight, velocity = 2.0, 0.0
        for gradient in (1.0, -3.0, 0.5):
            decay = 5e-4 * weight if name.endswith('weights') else 0
            velocity = 0.9 * velocity + 0.01 * factor * (gradient + decay)
            weight -= velocity
        assert after[name] == pytest.approx(weight, rel=1e-6), name


def test_weight_decay_leaves_biases_alone():
    after = updated(Recipe('sgd', momentum=0, weight_decay=0.1), 0.5, [0.0])
    for name in NAMES:
        assert after[name] == pytest.approx(1.9 if name.endswith('weights') else 2), name


def test_adam_without_decay_takes_the_gradients_as_they_are():
    after = updated(Recipe(), 0.01, [5.0])
    np.testing.assert_allclose([after[name] for name in NAMES], 1.99, rtol=1e-6)


LAYERS = ('MobilenetV1/Conv2d_0/weights', 'replica_1/MobilenetV1/Conv2d_0/weights', 'Openpose/MConv/weights')


@pytest.mark.parametrize('use_resource', [False, True])
def test_adam_moves_the_backbone_by_its_own_share_of_the_rate_and_keeps_the_same_state(use_resource):
    gradients = [5.0, -1.0, 0.25]
    plain = updated(Recipe(), 0.01, gradients, LAYERS, use_resource)
    slow = updated(Recipe(backbone_rate=0.1, backbone=('MobilenetV1/',)), 0.01, gradients, LAYERS, use_resource)
    assert set(slow) == set(plain) and 'beta1_power' in slow
    for name in plain:
        share = 0.1 if name in LAYERS[:2] else 1  # the optimizer's averages know nothing of it
        start = 2 if name in LAYERS else 0
        np.testing.assert_allclose(slow[name] - start, share * (plain[name] - start), rtol=1e-4, err_msg=name)


def test_the_backbones_share_holds_for_sgd_and_beside_the_papers_factors():
    recipe = PAPER._replace(weight_decay=0.0, backbone_rate=0.1, backbone=('conv1_', 'conv4_4'))
    after = updated(recipe, 0.01, [1.0])
    moved = {'conv1_1/weights': 0.1, 'conv1_1/biases': 0.2, 'conv4_4_CPM/weights': 0.1, 'conv5_1_CPM_L1/weights': 1,
             'Mconv1_stage2_L1/weights': 4}
    for name, share in moved.items():
        assert after[name] == pytest.approx(2 - 0.01 * share, rel=1e-6), name
