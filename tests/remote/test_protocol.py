"""The bytes of the wire: arrays survive it, what does not fit is refused."""
import numpy as np
import pytest

from batches.batch import batch_layout, encode_batch
from remote import protocol
from wire_ends import SETTINGS, assert_same, header_of, made_up_batch


@pytest.mark.parametrize('width, height, stride, people',
                         [(64, 48, 8, 2), (368, 368, 8, 3), (64, 96, 4, 40), (368, 368, 4, 0)])
def test_batches_survive_the_wire(width, height, stride, people):
    settings = dict(SETTINGS, input_width=width, input_height=height, stride=stride)
    layout = batch_layout(2, width, height, stride)
    batch = made_up_batch(0, settings, people)
    frames = [array.tobytes() for array in batch]
    assert max(len(frame) for frame in frames) <= protocol.max_frame_size(layout)
    protocol.check_frames(header_of(batch), frames, layout)
    assert_same(batch, protocol.read_batch(frames, layout))


@pytest.mark.parametrize('stride', [4, 8])
def test_the_largest_frame_is_that_of_full_maps(stride):
    layout = batch_layout(1, 256, 256, stride)
    cells = (1, 256 // stride, 256 // stride)
    heatmap, paf, mask = (np.full(cells + (channels,), 0.5, np.float32) for channels in (19, 38, 1))
    batch = encode_batch(np.zeros((1, 256, 256, 3), np.uint8), heatmap, paf, mask)
    assert protocol.max_frame_size(layout) == max(array.nbytes for array in batch) + protocol.CURVE_OVERHEAD


def test_a_sample_of_three_people_takes_at_most_450_000_bytes():
    batch = made_up_batch(1, dict(SETTINGS, batchsize=8, input_width=368, input_height=368), people=3)
    assert sum(array.nbytes for array in batch) + len(header_of(batch)) <= 8 * 450000
