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


def test_a_mask_of_each_channel_hides_what_is_not_labelled(losses):
    """Whatever the network says there, the loss is the same; and that of the rest is as it was."""
    _, stages, heatmap, paf, mask = losses
    labelled = np.arange(18)[None] > [[3], [-1]]  # of the first sample the first four parts are not
    masks = mask * COCO_SKELETON.labelled_channels(labelled)[:, None, None]
    hidden = masks.max(axis=(1, 2), keepdims=True) == 0
    found = []
    for change in (0, 7):
        changed = [(stage_paf + change * hidden[..., 19:], heat + change * hidden[..., :19])
                   for stage_paf, heat in stages]
        with tf.Graph().as_default(), tf.Session() as session:
            constants = [tf.constant(array, tf.float32) for array in (heatmap, paf, masks)]
            found.append(session.run(build_losses(
                [tuple(tf.constant(maps, tf.float32) for maps in stage) for stage in changed], *constants, BATCHSIZE)))
    assert found[0] == found[1]
    assert found[0]['loss_ll_heat'] == pytest.approx(half_square(masks[..., :19], stages[-1][1], heatmap), rel=1e-5)
    assert found[0]['loss_ll_paf'] == pytest.approx(half_square(masks[..., 19:], stages[-1][0], paf), rel=1e-5)
    assert (labelled.all(axis=1) == masks[..., 18].any(axis=(1, 2))).all()  # the background


def test_background_loss_is_that_of_predicting_an_empty_image(losses):
    values, _, heatmap, paf, mask = losses
    empty = np.zeros_like(heatmap)
    empty[..., COCO_SKELETON.background] = 1
    expected = half_square(mask, 0, paf) + half_square(mask, empty, heatmap)
    assert values['loss_ll_background'] == pytest.approx(expected, rel=1e-5)
