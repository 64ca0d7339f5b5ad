"""Mixed precision: who is refused, what the session is told, the scale of the loss, and a run of train.py."""
import re

import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from conftest import assert_user_error, program_environment, run_command
from pose_errors import UserError
from train_runs import SMALL_NETWORK, folders
from training import devices
from training.config import Recipe
from training.optimizer import GROWTH_STEPS, LARGEST_SCALE, Optimizer


def cpu_info(tmp_path, features):
    (tmp_path / 'cpuinfo').write_text('model name : x\nflags\t\t: fpu sse2 %s avx2\n' % features)
    return str(tmp_path / 'cpuinfo')


def test_without_a_gpu_a_cpu_with_bfloat16_is_needed_and_tensorflow_2(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, 'gpu_present', lambda: False)
    with pytest.raises(UserError, match='--precision=mixed needs a GPU, or TensorFlow 2 on a CPU with AVX512-BF16'):
        devices.check_precision(cpu_info(tmp_path, 'avx512f'))
    with pytest.raises(UserError, match='--precision=mixed'):
        devices.enable_mixed(tf.ConfigProto(), 0, cpu_info(tmp_path, 'avx512f'))
    able = cpu_info(tmp_path, 'avx512_bf16')
    if tf.__version__.startswith('1.'):
        with pytest.raises(UserError, match='TensorFlow 1'):
            devices.check_precision(able)
    else:
        devices.check_precision(able)
        config = tf.ConfigProto()
        assert not devices.enable_mixed(config, 0, able)
        options = config.graph_options.rewrite_options
        assert options.auto_mixed_precision_onednn_bfloat16 == options.ON
        assert options.auto_mixed_precision == options.DEFAULT


def test_on_gpus_the_graph_is_rewritten_and_the_loss_scaled(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, 'gpu_present', lambda: True)
    devices.check_precision(cpu_info(tmp_path, ''))
    config = tf.ConfigProto()
    assert devices.enable_mixed(config, gpus=1)
    options = config.graph_options.rewrite_options
    assert options.auto_mixed_precision == options.ON


@pytest.fixture(params=['adam', 'sgd'])
def scaled(request):
    """A weight w, first 3, with loss w * x, of which a gradient above 1e36 overflows; (step(x), state())."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, ())
        weight = tf.get_variable('a/weights', initializer=3.0, use_resource=False)
        global_step = tf.train.get_or_create_global_step()
        optimizer = Optimizer(tf.constant(0.125), Recipe(request.param, momentum=0.0, weight_decay=0.01,
                                                         loss_scale=LARGEST_SCALE))
        loss = weight * x
        gradients = optimizer.compute_gradients(loss, [weight])
        finite_check = optimizer.finite_check(loss, gradients)
        update = optimizer.apply_gradients(gradients, global_step)
        assert 'loss_scale' not in ' '.join(v.op.name for v in tf.global_variables())  # checkpoints fit either way
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        scale, good = tf.local_variables()

        def step(value):
            return session.run([finite_check, update], {x: value})[0]

        def state():
            return [float(value) for value in session.run([weight, scale, good, global_step])]
        yield step, state, lambda value: good.load(value, session)


def test_an_overflow_skips_the_step_and_halves_the_scale_which_grows_back_after_many_good_steps(scaled):
    step, state, set_good = scaled
    assert np.isfinite(step(1e35))  # the loss is finite, but not 2 ** 15 times as much
    assert state() == [3, 2 ** 14, 0, 1]
    assert np.isfinite(step(0.5))
    weight, scale, good, steps = state()
    assert weight < 3 and [scale, good, steps] == [2 ** 14, 1, 2]
    set_good(GROWTH_STEPS - 1)
    step(0.5)
    assert state()[1:3] == [2 ** 15, 0]
    set_good(GROWTH_STEPS - 1)
    step(0.5)
    assert state()[1] == 2 ** 15  # the largest


def test_what_no_scale_can_mend_is_not_forgiven(scaled):
    step, state, _ = scaled
    assert not np.isfinite(step(np.nan))
    for _ in range(20):  # down to the smallest scale
        finite_check = step(np.inf)
    assert state()[1] == 1 and not np.isfinite(finite_check)


def test_gradients_are_those_without_a_scale():
    found = []
    for loss_scale in (0.0, LARGEST_SCALE):
        with tf.Graph().as_default(), tf.Session() as session:
            weight = tf.get_variable('weights', initializer=[1.0, 2.0], use_resource=False)
            optimizer = Optimizer(tf.constant(0.1), Recipe(loss_scale=loss_scale))
            (gradient, _), = optimizer.compute_gradients(tf.reduce_sum(weight ** 2), [weight])
            session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            found.append(session.run(gradient).tolist())
    assert found[0] == found[1] == [2, 4]


@pytest.mark.slow
def test_train_learns_the_same_in_both_precisions_and_resumes_in_the_other(sample_coco, tmp_path):
    def train(name, *flags):
        return run_command(*SMALL_NETWORK, *folders(sample_coco, tmp_path / name), '--batchsize=4', '--valid-every=6',
                           *flags, env=program_environment())

    if not devices.has_bfloat16():
        assert_user_error(train('mixed', '--max-steps=6', '--precision=mixed'), '--precision=mixed')
        return
    losses = {}
    for name in ('mixed', 'float32'):
        log = train(name, '--max-steps=6', '--precision=' + name).stderr
        losses[name] = [float(text) for text in re.findall(r'(?:step=|validation).* loss=([\d.]+)', log)]
    assert len(losses['float32']) == 7 and losses['mixed'] != losses['float32']
    np.testing.assert_allclose(losses['mixed'], losses['float32'], rtol=0.02)
    resumed = train('mixed', '--max-steps=7', '--precision=float32')
    assert resumed.returncode == 0 and ' step=7,' in resumed.stderr, resumed.stderr
