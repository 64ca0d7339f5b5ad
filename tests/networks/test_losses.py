"""The loss against its definition in numpy."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from networks.network_base import build_losses

STAGES, BATCHSIZE, CELLS = 3, 2, (4, 5)


@pytest.fixture(scope='module')
def losses():
    """(values of build_losses, the same as a function of the arrays, the arrays)."""
    rng = np.random.RandomState(0)

    def maps(channels):
        return rng.standard_normal((BATCHSIZE,) + CELLS + (channels,)).astype(np.float32)

    stages = [(maps(COCO_SKELETON.paf_channels), maps(COCO_SKELETON.heatmap_channels)) for _ in range(STAGES)]
    heatmap, paf = maps(COCO_SKELETON.heatmap_channels), maps(COCO_SKELETON.paf_channels)
    mask = rng.randint(0, 5, (BATCHSIZE,) + CELLS + (1,)).astype(np.float32) / 4
    with tf.Graph().as_default(), tf.Session() as session:
        constants = [tf.constant(array) for array in (heatmap, paf, mask)]
        values = session.run(build_losses([tuple(map(tf.constant, stage)) for stage in stages], *constants, BATCHSIZE))
    return values, stages, heatmap, paf, mask


def half_square(mask, prediction, label):
    return float((np.float64(mask * (prediction - label)) ** 2).sum()) / 2 / BATCHSIZE


def test_all_stages_and_branches_count(losses):
    values, stages, heatmap, paf, mask = losses
    parts = [(half_square(mask, stage_paf, paf), half_square(mask, stage_heat, heatmap))
             for stage_paf, stage_heat in stages]
    assert values['loss'] == pytest.approx(sum(map(sum, parts)), rel=1e-5)
    assert (values['loss_ll_paf'], values['loss_ll_heat']) == pytest.approx(parts[-1], rel=1e-5)
    assert values['loss_ll'] == pytest.approx(sum(parts[-1]), rel=1e-5)


def test_background_loss_is_that_of_predicting_an_empty_image(losses):
    values, _, heatmap, paf, mask = losses
    empty = np.zeros_like(heatmap)
    empty[..., COCO_SKELETON.background] = 1
    expected = half_square(mask, 0, paf) + half_square(mask, empty, heatmap)
    assert values['loss_ll_background'] == pytest.approx(expected, rel=1e-5)
