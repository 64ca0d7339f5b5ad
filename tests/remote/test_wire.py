"""The bytes of the wire: arrays survive it, what does not fit is refused."""
import numpy as np
import pytest

from pose_batches import batch_layout, encode_batch
from pose_cli import UserError
from pose_skeleton import COCO
from remote import wire
from wire_ends import RANGES, SETTINGS, assert_same, header_of, made_up_batch


@pytest.mark.parametrize('width, height, stride, people',
                         [(64, 48, 8, 2), (368, 368, 8, 3), (64, 96, 4, 40), (368, 368, 4, 0)])
def test_batches_survive_the_wire(width, height, stride, people):
    settings = dict(SETTINGS, input_width=width, input_height=height, stride=stride)
    layout = batch_layout(2, width, height, stride)
    batch = made_up_batch(0, settings, people)
    frames = [array.tobytes() for array in batch]
    assert max(len(frame) for frame in frames) <= wire.max_frame_size(layout)
    wire.check_frames(header_of(batch), frames, layout)
    assert_same(batch, wire.read_batch(frames, layout))


@pytest.mark.parametrize('stride', [4, 8])
def test_the_largest_frame_is_that_of_full_maps(stride):
    layout = batch_layout(1, 256, 256, stride)
    cells = (1, 256 // stride, 256 // stride)
    heatmap, paf, mask = (np.full(cells + (channels,), 0.5, np.float32) for channels in (19, 38, 1))
    batch = encode_batch(np.zeros((1, 256, 256, 3), np.uint8), heatmap, paf, mask)
    assert wire.max_frame_size(layout) == max(array.nbytes for array in batch) + wire.CURVE_OVERHEAD


def test_a_sample_of_three_people_takes_at_most_450_000_bytes():
    batch = made_up_batch(1, dict(SETTINGS, batchsize=8, input_width=368, input_height=368), people=3)
    assert sum(array.nbytes for array in batch) + len(header_of(batch)) <= 8 * 450000


@pytest.mark.parametrize('change, mention', [
    ({'batchsize': 10 ** 9}, 'batchsize'), ({'input_width': '64'}, 'input_width'), ({'stride': 7}, 'stride'),
    ({'seed': None}, 'seed'), ({'seed': 1 << 63}, 'seed'), ({'stride': 0}, 'stride'),
    ({'skeleton': '{}'}, 'skeleton'), ({'skeleton': None}, 'skeleton'),
    ({'category': 5}, 'skeleton'),
    ({'negatives': 1.0}, 'negatives'), ({'negatives': '0'}, 'negatives'),
    ({'augmentation': {'scale': [1, 2]}}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[2, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, angle=[0, float('nan')])}, 'augmentation'),
    ({'definitions': {'pose_augment.PERSON_HEIGHT': '0.5'}}, 'pose_augment.PERSON_HEIGHT')])
def test_a_worker_refuses_settings_that_it_cannot_keep(change, mention):
    good = dict(SETTINGS, augmentation=RANGES, definitions=wire.definitions(), skeleton=COCO.to_json(), category='',
                negatives=0.0)
    wire.check_settings(good)
    with pytest.raises(UserError) as error:
        wire.check_settings(dict(good, **change))
    assert mention in str(error.value)


@pytest.mark.parametrize('numbers', [None, 'x', [], [-1], [1 << 63], ['1'], [True], list(range(17)), {'a': 1}, 3])
def test_a_worker_refuses_requests_that_make_no_sense(numbers):
    assert wire.requested_batches({'batches': [0, 5, 1 << 40]}) == [0, 5, 1 << 40]
    with pytest.raises(UserError, match='is it the trainer of this project'):
        wire.requested_batches({'batches': numbers})
