"""Numbers stay with their people, and OKS is COCO's."""
import numpy as np
import pytest
from pycocotools.cocoeval import Params

from annotations.skeleton import COCO_SKELETON
from benchmarks.bench_inputs import random_people
from inference import video


@pytest.fixture
def people():
    """Three standing people side by side: (3, 18, 3)."""
    random = np.random.RandomState(0)
    poses = np.concatenate([random_people(random, 1, 200, 200, 0.8, 0.9) + [300 * k, 0] for k in range(3)])
    return np.concatenate([poses, np.ones((3, 18, 1))], axis=2)


def test_similarity_is_cocos(people):
    """For one displaced keypoint of sigma s: exp(-d^2 / (2 area (2 s)^2)), the others being 1."""
    sigmas = video.part_sigmas(COCO_SKELETON)
    keypoint_sigmas = [sigmas[part] for part in COCO_SKELETON.part_of_keypoint]
    assert np.allclose(keypoint_sigmas, Params(iouType='keypoints').kpt_oks_sigmas)
    moved = people[:1].copy()
    knee = COCO_SKELETON.parts.index('RKnee')
    moved[0, knee, 0] += 10
    box = np.ptp(people[0, :, :2], axis=0)
    area = max(box.prod(), box.max() ** 2 / 4, np.ptp(moved[0, :, :2], axis=0).prod())
    expected = (17 + np.exp(-100 / (2 * area * (2 * .087) ** 2))) / 18
    assert np.isclose(video.pose_similarity(people[:1], moved, sigmas)[0, 0], expected)
    assert np.allclose(video.pose_similarity(people, people, sigmas), np.eye(3), atol=1e-3)


def test_numbers_stay(people):
    """While people walk or stand, change their order, lose parts, hide for a while, and new ones come."""
    random = np.random.RandomState(1)
    tracker = video.Tracker(COCO_SKELETON)
    assert tracker.update(people) == [1, 2, 3]
    for frame in range(1, 30):
        order = random.permutation(3)
        now = people.copy()
        now[[0, 2], :, 0] += 6 * frame
        now[random.rand(3, 18) < 0.3] = np.nan
        visible = [k for k in order if not (k == 1 and 10 <= frame < 10 + video.MAX_HIDDEN_FRAMES // 2)]
        assert tracker.update(now[visible]) == [k + 1 for k in visible]
    newcomer = people[:1] + [0, 1000, 0]
    assert tracker.update(np.concatenate([newcomer, now[:1]])) == [4, 1]
    assert tracker.update(np.zeros((0, 18, 3))) == [] and tracker.count == 4


def test_people_who_were_gone_for_long_or_have_hardly_any_parts_get_a_new_number(people):
    """One common part says nothing about who it is; a single point has no area."""
    tracker = video.Tracker(COCO_SKELETON, max_hidden_frames=3)
    tracker.update(people[:1])
    for _ in range(3):
        tracker.update(people[1:2])
    assert tracker.update(people[:2]) == [3, 2]
    only = np.full((1, 18, 3), np.nan)
    only[0, 0] = people[0, 0]
    tracker = video.Tracker(COCO_SKELETON)
    assert tracker.update(people[:1]) == [1]
    assert tracker.update(only) == [2] and tracker.update(only) == [3]
