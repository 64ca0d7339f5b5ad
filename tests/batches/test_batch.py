"""Batches on their way: what is kept of the label maps, and how it is stored."""
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from batches.batch import HEATMAP_ITEM, Batch, BatchBuffer, batch_layout, decode_batch, encode_batch, encode_maps
from made_up_arrays import made_up_arrays


def fixed_point(maps):
    """What 16 bits keep of values in -1..1."""
    return (np.floor(maps * np.float32(32767) + np.float32(32767.5)) - 32767) * np.float32(1 / 32767)


@pytest.mark.parametrize('stride, people', [(8, 2), (4, 3), (8, 0)])
def test_maps_are_those_of_16_bit_fixed_point_and_masks_exact(stride, people):
    image, heatmap, paf, mask, labelled = made_up_arrays(1, stride=stride, people=people)
    decoded = decode_batch(encode_batch(image, heatmap, paf, mask, labelled), COCO_SKELETON)
    masks = mask * COCO_SKELETON.labelled_channels(labelled)[:, None, None]
    for got, expected in zip(decoded, (image, fixed_point(heatmap), fixed_point(paf), masks)):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(decoded[1], heatmap, atol=1.6e-5)


def test_a_channel_counts_where_all_that_it_shows_is_labelled():
    """A part's own heatmap, the two PAF channels of a limb between two such parts, and the background only if all are.
    It costs a byte a part: 1 % of a sample is thousands."""
    labelled = np.ones((3, 18), bool)
    labelled[1, COCO_SKELETON.parts.index('LWrist')] = False
    labelled[2] = False
    image, heatmap, paf, mask, _ = made_up_arrays(1)
    batch = encode_batch(image, heatmap, paf, np.ones_like(mask), labelled)
    _, _, _, masks = decode_batch(batch, COCO_SKELETON)
    assert masks.shape == (3, 12, 8, 57) and (masks[0] == 1).all() and not masks[2].any()
    parts = COCO_SKELETON.parts
    limb = COCO_SKELETON.limbs.index((parts.index('LElbow'), parts.index('LWrist')))
    assert np.flatnonzero(~masks[1].any(axis=(0, 1))).tolist() == [7, 18, 19 + 2 * limb, 20 + 2 * limb]
    without = sum(field.nbytes for name, field in batch._asdict().items() if name != 'labelled')
    assert batch.labelled.nbytes < 0.01 * without


def test_only_what_is_not_empty_is_kept():
    heatmap, paf = np.zeros((2, 4, 4, 19), np.float32), np.zeros((2, 4, 4, 38), np.float32)
    heatmap[..., 18] = 1
    heatmap[1, 2, 3, 5], heatmap[1, 2, 3, 18], paf[0, 1, 2, 7], paf[1, 0, 0, 0] = 1, 0, -1, 0.5
    batch = encode_batch(np.zeros((2, 32, 32, 3), np.uint8), heatmap, paf, np.ones((2, 4, 4, 1), np.float32))
    cell = (16 + 2 * 4 + 3) * 19
    np.testing.assert_array_equal(batch.heatmap_positions, [cell + 5, cell + 18])
    np.testing.assert_array_equal(batch.heatmap_values, [65534, 32767])
    np.testing.assert_array_equal(batch.paf_positions, [(4 + 2) * 19 + 3, 16 * 19])
    np.testing.assert_array_equal(batch.paf_values, [[32767, 0], [49151, 32767]])
    _, same, _, _ = decode_batch(batch, COCO_SKELETON)
    np.testing.assert_array_equal(same, heatmap)  # ones and zeros are exact


@pytest.mark.parametrize('value', [1.1, -2, np.nan, np.inf])
def test_maps_out_of_range_are_refused(value):
    maps = np.zeros((1, 4, 4, 19), np.float32)
    maps[0, 1, 1, 7] = value
    with pytest.raises(ValueError):
        encode_maps(maps, HEATMAP_ITEM)


def test_a_buffer_written_sample_by_sample_reads_as_the_batch():
    """Also when it is used again, and when a batch was given up in the middle."""
    buffer = BatchBuffer(batch_layout(3, 64, 96, 8, COCO_SKELETON))
    for seed, people, rows in ((1, 4, 3), (2, 1, 2), (3, 0, 3), (4, 2, 3)):
        arrays = made_up_arrays(seed, people=people)
        for row in range(rows):
            buffer.write(row, *(array[row] for array in arrays))
        if rows == 3:
            for got, expected in zip(buffer.read(), encode_batch(*arrays)):
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)


def test_full_maps_fit_the_layout():
    layout = batch_layout(4, 64, 96, 8, COCO_SKELETON)
    assert layout == [
        ('image', np.uint8, (4, 96, 64, 3)), ('mask', np.uint8, (4, 12, 8, 1)),
        ('labelled', np.uint8, (4, 18)),
        ('heatmap_positions', np.int32, (4 * 12 * 8 * 19,)), ('heatmap_values', np.uint16, (4 * 12 * 8 * 19,)),
        ('paf_positions', np.int32, (4 * 12 * 8 * 19,)), ('paf_values', np.uint16, (4 * 12 * 8 * 19, 2))]
    assert Batch._fields == tuple(name for name, _, _ in layout)
    buffer = BatchBuffer(layout)
    for row in range(4):
        buffer.write(row, np.zeros((96, 64, 3), np.uint8), *(np.full((12, 8, channels), 0.25, np.float32)
                                                             for channels in (19, 38, 1)))
    assert [field.shape for field in buffer.read()] == [shape for _, _, shape in layout]
