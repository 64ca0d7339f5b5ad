"""Samples of several data sets: their shares, what they label, and that a batch is still known by its number."""
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from batches import SampleOrder, batch_positions
from batches.batch import encode_batch
from batches.loader import BatchLoader
from batches.mixture import Mixture, open_samples, place_of
from pose_dataset import PoseDataset
from pose_errors import UserError
from runner_files import runner, runners_like

SIZE = (64, 64)


@pytest.fixture(scope='module')
def legs(sample_coco, tmp_path_factory):
    return runners_like(sample_coco, tmp_path_factory.mktemp('legs'))


def is_of_legs(sample):
    return not sample.labelled.all()


def open_mixture(data, *added, **kwargs):
    return open_samples(str(data), 'train2017', SIZE, 8, add_data=added, **kwargs)


def test_shares(sample_coco, legs):
    people = len(PoseDataset(str(sample_coco), 'train2017', *SIZE, 8))
    for added, expected in ((('%s:0.25' % legs,), people / 0.75), (('%s:0.2' % legs, '%s:0.3' % legs), people / 0.5),
                            ((str(legs),), people + 1)):
        mixture = open_mixture(sample_coco, *added)
        assert abs(len(mixture) - expected) <= 1
        kinds = [is_of_legs(mixture.training_sample(index, np.random.RandomState(index)))
                 for index in range(len(mixture))]
        assert kinds == [False] * people + [True] * (len(mixture) - people)
    assert open_mixture(sample_coco).digest == PoseDataset(str(sample_coco), 'train2017', *SIZE, 8).digest
    digests = {open_mixture(sample_coco, *added).digest for added in ((), (str(legs),), ('%s:0.4' % legs,))}
    assert len(digests) == 3


def test_batches_are_those_of_their_numbers(sample_coco, legs):
    """Through real processes, for two epochs and any number of them: a share's draws are not left to chance."""
    mixture = open_mixture(sample_coco, '%s:0.3' % legs)
    for workers in (1, 2):
        order = SampleOrder(len(mixture), 4)
        with BatchLoader(mixture, 4, workers=workers, seed=4) as loader:
            for number in range(2 * len(mixture) // 4):
                batch = loader.get(timeout=30)
                samples = [mixture.training_sample(*next(order.draws(position)))[:5]
                           for position in batch_positions(number, 4)]
                for array, values in zip(batch, encode_batch(*(np.stack(values) for values in zip(*samples)))):
                    np.testing.assert_array_equal(array, values)


def test_keypoints_that_only_added_data_has(sample_coco, legs, caplog):
    caplog.set_level('INFO')
    mixture = open_mixture(sample_coco, str(legs))
    assert mixture.skeleton == COCO_SKELETON
    assert 'without labels of Nose, Neck, ' in caplog.text
    grown = open_mixture(sample_coco, str(legs), add_keypoints=True)
    assert grown.skeleton.parts == COCO_SKELETON.parts + ('head_top',)
    rng = np.random.RandomState(0)
    base, added = grown.training_sample(0, rng), grown.training_sample(len(grown) - 1, rng)
    assert base.labelled.tolist() == [True] * 18 + [False]
    names = {name for name, known in zip(grown.skeleton.parts, added.labelled) if known}
    assert names == {'RHip', 'RKnee', 'RAnkle', 'LHip', 'LKnee', 'LAnkle', 'head_top'}
    assert len(runner().keypoints) == 8  # its neck is COCO's, which comes from shoulders that it does not label


def test_what_cannot_be_mixed_is_told(sample_coco, legs, tmp_path):
    with pytest.raises(UserError, match='--add-data: the shares leave no samples to --datapath'):
        open_mixture(sample_coco, '%s:0.5' % legs, '%s:0.5' % legs)
    with pytest.raises(UserError, match='--add-data=%s: it is not a folder' % (tmp_path / 'none')):
        place_of(str(tmp_path / 'none'))
    file = legs / 'annotations' / 'person_keypoints_train2017.json'
    mixture = open_mixture(sample_coco, '%s:0.5' % file)  # an annotation file says the same as its folder
    assert isinstance(mixture, Mixture) and mixture.image_of(len(mixture) - 1) == 'an image of %s' % file
