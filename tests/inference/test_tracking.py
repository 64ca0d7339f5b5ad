"""Numbers stay with their people, OKS is COCO's, and smoothed keypoints rest where people do and lag little."""
import numpy as np
import pytest
from pycocotools.cocoeval import Params

from annotations.skeleton import COCO_SKELETON
from bench_tracking import LastPoses, follow, measure, measure_jitter, noisy_frames
from benchmarks.bench_inputs import random_people
from inference import tracking
from inference.tracking import Smoother, Tracker
from walking_people import joints_at, scenes


@pytest.fixture
def people():
    """Three standing people side by side: (3, 18, 3)."""
    random = np.random.RandomState(0)
    poses = np.concatenate([random_people(random, 1, 200, 200, 0.8, 0.9) + [300 * k, 0] for k in range(3)])
    return np.concatenate([poses, np.ones((3, 18, 1))], axis=2)


def test_similarity_is_cocos(people):
    """For one displaced keypoint of sigma s: exp(-d^2 / (2 area (2 s)^2)), the others being 1."""
    sigmas = tracking.part_sigmas(COCO_SKELETON)
    keypoint_sigmas = [sigmas[part] for part in COCO_SKELETON.part_of_keypoint]
    assert np.allclose(keypoint_sigmas, Params(iouType='keypoints').kpt_oks_sigmas)
    moved = people[:1].copy()
    knee = COCO_SKELETON.parts.index('RKnee')
    moved[0, knee, 0] += 10
    box = np.ptp(people[0, :, :2], axis=0)
    area = max(box.prod(), box.max() ** 2 / 4, np.ptp(moved[0, :, :2], axis=0).prod())
    for variance in (0, 50):
        expected = (17 + np.exp(-100 / 2 / (area * (2 * .087) ** 2 + variance))) / 18
        assert np.isclose(tracking.pose_similarity(people[:1], moved, sigmas, [variance])[0, 0], expected)
    assert np.allclose(tracking.pose_similarity(people, people, sigmas), np.eye(3), atol=1e-3)


def test_numbers_stay(people):
    """While people walk or stand, change their order, lose parts, hide for a while, and new ones come."""
    random = np.random.RandomState(1)
    tracker = Tracker(COCO_SKELETON)
    assert tracker.update(people, 0) == [1, 2, 3]
    for frame in range(1, 30):
        order = random.permutation(3)
        now = people.copy()
        now[[0, 2], :, 0] += 6 * frame
        now[random.rand(3, 18) < 0.3] = np.nan
        visible = [k for k in order if not (k == 1 and 10 <= frame < 20)]
        assert tracker.update(now[visible], frame / 25) == [k + 1 for k in visible]
    newcomer = people[:1] + [0, 1000, 0]
    assert tracker.update(np.concatenate([newcomer, now[:1]]), 30 / 25) == [4, 1]
    assert tracker.update(np.zeros((0, 18, 3)), 31 / 25) == [] and tracker.count == 4


def test_people_who_were_gone_for_long_or_have_hardly_any_parts_get_a_new_number(people):
    """Long in seconds, however many frames that are. One common part says nothing about who it is; a single point has
    no area."""
    for rate in (2, 30):
        tracker = Tracker(COCO_SKELETON, max_hidden=1.0)
        assert tracker.update(people[:1], 0) == [1]
        for frame in range(1, rate):
            tracker.update(people[1:2], frame / rate)
        assert tracker.update(people[:2], 0.99) == [1, 2]
        for frame in range(1, rate + 1):
            tracker.update(people[1:2], 1 + frame / rate)
        assert tracker.update(people[:2], 2.01) == [3, 2]
    only = np.full((1, 18, 3), np.nan)
    only[0, 0] = people[0, 0]
    tracker = Tracker(COCO_SKELETON)
    assert tracker.update(people[:1], 0) == [1]
    assert tracker.update(only, 0.1) == [2] and tracker.update(only, 0.2) == [3]


@pytest.mark.slow
def test_everybody_keeps_the_number_at_thirty_frames_a_second():
    """Walkers, joggers and those who cross and hide each other; the last poses alone lose them."""
    figures = measure(1, (30,), None, noisy_frames)
    assert {name: rows['30']['switches'] for name, rows in figures.items()} == dict.fromkeys(figures, 0)
    assert all(rows['30']['right'] == 1 for rows in figures.values())
    assert sum(rows['30']['switches_before'] for rows in figures.values()) >= 5


@pytest.mark.parametrize('rate', (3, 4, 5))
@pytest.mark.parametrize('name', ('walker', 'turning', 'crossing'))
def test_a_walker_keeps_the_number_at_few_frames_a_second(name, rate):
    random = np.random.RandomState(1)
    frames = noisy_frames(random, scenes(random)[name], rate)
    switches, right, found = follow(Tracker(COCO_SKELETON), frames)
    assert switches == 0 and right == found >= 15
    assert follow(LastPoses(), frames)[0] > 2


def test_a_jogger_may_be_missed_for_some_frames():
    random = np.random.RandomState(0)
    scene = scenes(random)['jogger']._replace(poles=[])
    frames = [(seconds, *rest) for index, (seconds, *rest) in enumerate(noisy_frames(random, scene, 30))
              if index % 15 < 5]
    switches, right, found = follow(Tracker(COCO_SKELETON), frames)
    assert switches == 0 and right == found > 25
    assert follow(LastPoses(), frames)[0] > 3


def test_parts_that_are_not_found_move_along(people):
    """Somebody whose legs are seen, then the head and arms, then the legs again is one person."""
    tracker, legs = Tracker(COCO_SKELETON), np.arange(18) >= 8
    assert tracker.update(people[:1], 0) == [1]
    for frame in range(1, 20):
        now = people[:1] + [20 * frame, 0, 0]
        now[:, legs == (frame % 4 < 2)] = np.nan
        assert tracker.update(now, frame / 10) == [1]


def test_a_second_skeleton_on_somebody_takes_nobodys_number(people):
    """As networks give them for a frame or two."""
    random, tracker = np.random.RandomState(0), Tracker(COCO_SKELETON)
    for frame in range(60):
        now = people[:1] + np.append(random.normal(0, 3, (1, 18, 2)), np.zeros((1, 18, 1)), axis=2)
        if frame % 20 == 10:
            now = np.concatenate([now + [2, 2, 0], now])
        assert tracker.update(now, frame / 30)[-1] == 1 or frame % 20 == 10
    assert tracker.count <= 3


def errors_of_a_walker(scale):
    """Mean distance to where the parts are, of those with noise and of those smoothed, in sizes of a picture."""
    scene, random, smoother = scenes(np.random.RandomState(0))['walker'], np.random.RandomState(0), Smoother()
    errors = []
    for seconds in np.arange(0, 2, 1 / 30):
        truth = scale * joints_at(scene, seconds)
        noisy = truth + scale * random.normal(0, 2, truth.shape)
        smooth = smoother.update(np.append(noisy, np.ones_like(noisy[:, :, :1]), axis=2), [7], seconds)
        errors.append([np.linalg.norm(places - truth, axis=2).mean() / scale for places in (noisy, smooth[:, :, :2])])
    return np.mean(errors, axis=0)


def test_smoothing_steadies_who_stands_and_follows_who_walks():
    """Whatever the size of the people is in pixels."""
    noise, smooth = errors_of_a_walker(1)
    assert smooth < 1.1 * noise
    np.testing.assert_allclose(errors_of_a_walker(8), (noise, smooth))
    standing = measure_jitter()['standing']
    assert standing['smooth']['distance'] < 0.6 * standing['found']['distance']
    assert standing['smooth']['acceleration'] < 0.3 * standing['found']['acceleration']


def test_smoothing_keeps_what_is_absent_and_starts_anew_after_a_gap(people):
    smoother = Smoother(max_gap=0.5)
    assert np.array_equal(smoother.update(people, [1, 2, 3], 0), people)
    now = people + [5, 0, 0]
    now[0, 4] = np.nan
    smooth = smoother.update(now[:2], [1, 9], 0.1)
    assert np.isnan(smooth[0, 4]).all() and np.array_equal(smooth[1], now[1]), 'a new number'
    assert (smooth[0, :4, 0] > people[0, :4, 0]).all() and (smooth[0, :4, 0] < now[0, :4, 0]).all()
    assert np.array_equal(smooth[0, :4, 2], now[0, :4, 2]), 'scores stay'
    later = smoother.update(people[:1] + [50, 0, 0], [1], 0.55)
    assert np.array_equal(later[0, 4], people[0, 4] + [50, 0, 0]), 'a part that was away for 0.55 s'
    assert (later[0, :4, 0] < people[0, :4, 0] + 50).all()
    assert np.array_equal(smoother.update(people, [1, 2, 3], 3), people)
    assert smoother.update(np.zeros((0, 18, 3)), [], 4).shape == (0, 18, 3)
