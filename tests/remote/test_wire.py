"""The bytes of the wire: arrays survive it, what does not fit is refused."""
import numpy as np
import pytest

from pose_samples import batch_layout
from remote import wire
from wire_ends import SETTINGS, assert_same, header_of, made_up_batch


@pytest.mark.parametrize('width, height, stride, people',
                         [(64, 48, 8, 2), (368, 368, 8, 3), (64, 96, 4, 40), (368, 368, 4, 0)])
def test_arrays_survive_the_wire(width, height, stride, people):
    settings = dict(SETTINGS, input_width=width, input_height=height, stride=stride)
    layout = batch_layout(2, width, height, stride)
    decoder = wire.BatchDecoder(layout)
    for seed in range(3):  # the arrays of the batch before are used again
        batch = made_up_batch(seed, settings, people)
        arrays = wire.encode_batch(batch)
        header = header_of(arrays)
        frames = [array.tobytes() for _, array in arrays]
        assert max(len(frame) for frame in frames) <= wire.max_frame_size(layout)
        wire.check_frames(header, frames, layout)
        assert_same(batch, decoder.decode(frames))
        if seed == 1:  # a bad one between good ones leaves nothing behind
            backwards = np.frombuffer(frames[4], np.uint32)[::-1].tobytes()
            if people:
                with pytest.raises(wire.BadMessage):
                    decoder.decode(frames[:4] + [backwards] + frames[5:])


@pytest.mark.parametrize('stride', [4, 8])
def test_the_largest_frame_is_that_of_full_maps(stride):
    layout = batch_layout(1, 256, 256, stride)
    batch = [np.ones(shape, dtype) / 2 for _, dtype, shape in layout]
    batch[0] = batch[0].astype(np.uint8)
    largest = max(array.nbytes for _, array in wire.encode_batch(batch))
    assert wire.max_frame_size(layout) == largest + wire.CURVE_OVERHEAD


def test_ones_and_zeros_are_exact():
    layout = batch_layout(1, 64, 64, 8)
    heatmap, paf = np.zeros((1, 8, 8, 19), np.float32), np.zeros((1, 8, 8, 38), np.float32)
    heatmap[0, 3, 4, 5], paf[0, 1, 2, 6], paf[0, 1, 2, 8] = 1, -1, 1
    batch = np.zeros((1, 64, 64, 3), np.uint8), heatmap, paf, np.eye(8, dtype=np.float32)[None, :, :, None]
    frames = [array.tobytes() for _, array in wire.encode_batch(batch)]
    for sent, got in zip(batch, wire.BatchDecoder(layout).decode(frames)):
        np.testing.assert_array_equal(got, sent)


def test_a_sample_of_three_people_takes_at_most_450_000_bytes():
    batch = made_up_batch(1, dict(SETTINGS, batchsize=8, input_width=368, input_height=368), people=3)
    arrays = wire.encode_batch(batch)
    assert sum(array.nbytes for _, array in arrays) + len(header_of(arrays)) <= 8 * 450000


@pytest.mark.parametrize('value', [1.1, -2, np.nan, np.inf])
def test_maps_out_of_range_are_not_sent(value):
    batch = made_up_batch(0, SETTINGS)
    batch[2][0, 1, 1, 7] = value
    with pytest.raises(ValueError):
        wire.encode_batch(batch)
