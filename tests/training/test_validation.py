"""Validation beside training: it repeats itself, leaves the weights alone, sees every good image, can be stopped."""
import logging
import re
import shutil

import numpy as np
import pytest

import networks
import small_network
import tensorflow.compat.v1 as tf
from pose_dataset import PoseDataset
from pose_errors import Stopped
from training.validation import Validator, log_background_loss, validate

VALIDATION_IMAGES = 6


class Signal:
    """A stop signal that comes after `calls` questions."""

    def __init__(self, calls=10 ** 9):
        self.calls = calls

    def check(self):
        self.calls -= 1
        if self.calls < 0:
            raise Stopped


@pytest.fixture(scope='module')
def dataset(sample_coco):
    return PoseDataset(str(sample_coco), 'val2017', 64, 64, 8)


@pytest.fixture(scope='module')
def validator(dataset):
    """(a Validator of batches of 4, a session with random weights)."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.train.get_or_create_global_step()
        networks.get_network(small_network.NAME, tf.zeros((4, 64, 64, 3)), is_training=True)
        validator = Validator(small_network.NAME, '/cpu:0', dataset, batchsize=4)
        session.run(tf.global_variables_initializer())
        yield validator, session


@pytest.mark.slow
def test_validation_leaves_the_weights_alone_and_repeats_itself(validator):
    validator, session = validator
    variables = session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
    before = session.run(variables)
    first, images, picture = validator.run(session, Signal())
    second, _, same_picture = validator.run(session, Signal())
    after = session.run(variables)
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert first == second and images == VALIDATION_IMAGES
    np.testing.assert_array_equal(picture, same_picture)
    with pytest.raises(Stopped):  # a signal after the first of two batches
        validator.run(session, Signal(calls=1))
    # Half a validation is none: had it reached the log, None would have failed.
    assert validate(session, validator, 'tag', 1, log=None, stop=Signal(calls=1)) is None
    assert [len(batch[0]) for batch in validator.batches()] == [4, 2]


@pytest.mark.slow
def test_averages_stand_for_the_weights(dataset):
    """With each weight ten times as large in its average, it is the loss of such weights."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        network = networks.get_network(small_network.NAME, tf.zeros((4, 64, 64, 3)), is_training=True)
        weights = [variable for variable in network.variables if variable.op.name.endswith('weights')]
        averages = {variable.op.name: tf.get_variable(variable.op.name + '/average', initializer=10 * variable,
                                                      use_resource=False) for variable in weights}
        plain = Validator(small_network.NAME, '/cpu:0', dataset, batchsize=4)
        averaged = Validator(small_network.NAME, '/cpu:0', dataset, batchsize=4, averages=averages)
        session.run(tf.variables_initializer(network.variables))
        session.run(tf.variables_initializer(list(averages.values())))
        of_averages, before = (each.run(session, Signal())[0]['loss'] for each in (averaged, plain))
        session.run([tf.assign(variable, averages[variable.op.name]) for variable in weights])
        assert plain.run(session, Signal())[0]['loss'] == pytest.approx(of_averages, rel=1e-5)
        assert before != pytest.approx(of_averages, rel=1e-4)


def test_background_loss_is_that_of_empty_maps(dataset, caplog):
    caplog.set_level(logging.INFO)
    total = 0.0
    for index in range(VALIDATION_IMAGES):
        sample = dataset.validation_sample(index)
        empty = np.zeros_like(sample.heatmap)
        empty[..., -1] = 1
        total += 0.5 * float(((sample.mask * sample.paf) ** 2).sum())
        total += 0.5 * float(((sample.mask * (sample.heatmap - empty)) ** 2).sum())
    log_background_loss(dataset, Signal())
    images, loss = re.search(r'predicting only background: validation\((\d+)\) loss_ll=([\d.]+)', caplog.text).groups()
    assert int(images) == VALIDATION_IMAGES and float(loss) == pytest.approx(total / VALIDATION_IMAGES, rel=1e-4)
    with pytest.raises(Stopped):
        log_background_loss(dataset, Signal(calls=3))


def test_background_loss_of_the_good_images_when_one_is_broken(sample_coco, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shutil.copytree(str(sample_coco), str(tmp_path / 'data'))
    broken = sorted((tmp_path / 'data' / 'val2017').glob('*.jpg'))[2]
    broken.write_bytes(broken.read_bytes()[:1000])
    log_background_loss(PoseDataset(str(tmp_path / 'data'), 'val2017', 64, 64, 8), Signal())
    assert 'validation(%d)' % (VALIDATION_IMAGES - 1) in caplog.text
    assert '%s is a truncated JPEG' % broken.name in caplog.text
