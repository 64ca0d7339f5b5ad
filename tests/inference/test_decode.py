"""decode_people: from maps to people, on maps of known people and against a slow, literal matching."""
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON, skeleton_of_category
from bench_inputs import STANDING, random_people, render_maps
from inference.decode import MAX_PEAKS_PER_PART, assemble_people, decode_people, find_peaks, join_pieces, match_limbs, \
    score_limbs
from pose_errors import UserError
from pose_labels import render_heatmaps, render_pafs

NECK = COCO_SKELETON.parts.index('Neck')


def standing(x, y, height):
    """One standing person, (18, 2), with the middle of the body at x, y."""
    return STANDING * height + [x, y]


def find(joints, width=368, height=368, stride=8):
    return decode_people(render_maps(np.asarray(joints, np.float64).reshape(-1, 18, 2), width, height, stride), stride)


def same_people(joints, keypoints, tolerance=2.0):
    """True when each person of joints was found once, with the same parts, each within `tolerance` pixels."""
    if len(joints) != len(keypoints):
        return False
    left = list(keypoints)
    for person in joints:
        matches = [i for i, found in enumerate(left)
                   if (np.isnan(person[:, 0]) == np.isnan(found[:, 0])).all()
                   and np.nanmax(np.abs(person - found[:, :2])) < tolerance]
        if not matches:
            return False
        left.pop(matches[0])
    return True


@pytest.mark.parametrize('stride', [4, 8])
def test_round_trip_recovers_joints_without_offset(stride):
    rng = np.random.RandomState(1)
    errors = []
    for _ in range(30):
        joints = random_people(rng, 1, 368, 368)
        keypoints, scores = find(joints, stride=stride)
        assert keypoints.shape == (1, 18, 3) and keypoints.dtype == np.float32 and scores.shape == (1,)
        errors.append(keypoints[0, :, :2] - joints[0])
    errors = np.concatenate(errors)
    assert np.isfinite(errors).all()
    assert np.linalg.norm(errors, axis=1).mean() < 0.5  # the contract is 2 px; the Gaussian fit is better
    assert np.abs(errors.mean(axis=0)).max() < 0.2  # a forgotten half cell would be 2 or 4 px


def heatmaps_of(points, part=0, cells=(16, 16)):
    """Of people who have this part alone."""
    joints = np.full((len(points), 18, 2), np.nan)
    joints[:, part] = points
    return render_heatmaps(joints, *cells, 8)[:, :, :18]


def test_refinement_is_exact_for_a_gaussian_anywhere_in_a_cell():
    offsets = np.linspace(-3.5, 3.5, 15)
    points = np.stack([np.linspace(40, 700, len(offsets)) // 8 * 8 + 3.5 + offsets, 100 + offsets[::-1]], axis=1)
    part, position, score = find_peaks(heatmaps_of(points, cells=(24, 96)), 8)
    assert (part == 0).all()
    assert np.abs(position[np.argsort(position[:, 0])] - points).max() < 0.01


def test_peaks_at_the_border_are_refined_too():
    corners = np.array([(0, 0), (1.5, 60), (126.5, 62.5), (64, 127)], float)
    _, position, _ = find_peaks(heatmaps_of(corners), 8)
    for corner in corners:
        assert np.linalg.norm(position - corner, axis=1).min() < 0.6


def test_a_joint_between_cells_is_one_peak():
    """Exactly between 2 or 4 cells these have equal values."""
    for joint in ((63.5, 59.5), (59.5, 63.5), (63.5, 63.5)):
        heatmaps = heatmaps_of([joint], part=3)
        assert (heatmaps == heatmaps.max()).sum() > 1
        part, position, _ = find_peaks(heatmaps, 8)
        assert part.tolist() == [3]
        assert np.abs(position[0] - joint).max() < 0.01


def test_nobody_and_a_single_joint_which_is_no_person_unless_asked_for():
    keypoints, scores = find(np.zeros((0, 18, 2)))
    assert keypoints.shape == (0, 18, 3) and scores.shape == (0,)
    joints = np.full((1, 18, 2), np.nan)
    joints[0, 4] = 100, 120
    maps = render_maps(joints, 368, 368, 8)
    assert len(decode_people(maps, 8)[0]) == 0
    keypoints, scores = decode_people(maps, 8, min_parts=1)
    assert np.isfinite(keypoints[:, :, 0]).nonzero()[1].tolist() == [4]
    assert np.abs(keypoints[0, 4, :2] - [100, 120]).max() < 0.1
    assert 0 < scores[0] < 0.05


def test_a_person_of_two_keypoints():
    """All that such a skeleton has."""
    pair = skeleton_of_category({'name': 'stick', 'keypoints': ['top', 'end'], 'skeleton': [[1, 2]]}, 'f')
    joints = np.array([[[40.0, 40.0], [40.0, 90.0]]])
    maps = np.concatenate([render_heatmaps(joints, 16, 16, 8, skeleton=pair), render_pafs(joints, 16, 16, 8, pair)], 2)
    keypoints, _ = decode_people(maps, 8, skeleton=pair)
    np.testing.assert_allclose(keypoints[..., :2], joints, atol=0.5)


def test_a_complete_person_scores_higher_than_a_part_of_one():
    whole, part = standing(100, 180, 250), standing(270, 180, 250)
    part[8:14] = np.nan
    keypoints, scores = find([part, whole])
    assert 0.8 < scores[0] <= 1 and scores[1] < 0.75
    assert np.isfinite(keypoints[0]).all() and np.isnan(keypoints[1, 8:14]).all()


def leaning(angle, x, y, height):
    return STANDING * height @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + [x, y]


def crowd():
    """Thirty people."""
    rng = np.random.RandomState(0)
    grid = [(x, y) for y in (90, 240, 390) for x in range(40, 720, 72)]
    return [standing(x, y, rng.uniform(120, 140)) + rng.uniform(-4, 4, 2) for x, y in grid]


def without(parts, *people):
    for person in people:
        person[parts] = np.nan
    return list(people)


@pytest.mark.parametrize('people, tolerance', [
    # Shoulder to shoulder: the one's left arm hangs where the other's right arm does.
    ([standing(x, 184, 240) for x in (90, 180, 270)], 2),
    # One leans across the other: their torsos and limbs intersect.
    ([standing(180, 190, 300), leaning(0.9, 230, 170, 300)], 4),
    # Face and back view at nearly the same place: each one's right arm lies over the other's left one.
    ([standing(184, 184, 300), standing(245, 160, 300)[list(COCO_SKELETON.flip_order)]], 4),
    # Cut off at the waist.
    (without([*range(8), *range(14, 18)], *(standing(x, 20, 340) for x in (100, 260))), 2),
    # Without the neck, head, arms and legs have no limb in common: the nearest pieces are one person, once each.
    (without(NECK, standing(60, 184, 240)), 2),
    (without(NECK, *(standing(x, 184, 240) for x in (60, 185, 310))), 2),
    (crowd(), 3)], ids=['touching', 'crossing', 'back to front', 'legs', 'no neck', 'three without necks', 'thirty'])
def test_people_are_found_once_and_not_mixed(people, tolerance):
    size = (736, 480) if len(people) == 30 else (368, 368)
    assert same_people(people, find(people, *size)[0], tolerance)


@pytest.mark.parametrize('shift, sizes', [((-150, 0), [16]), ((150, 0), [14]), ((0, -180), [6, 1, 1]),
                                          ((0, 150), [14])], ids=['left', 'right', 'top', 'bottom'])
def test_people_truncated_at_borders(shift, sizes):
    """All joints that remain are found, once; without the neck, what is near each other stays one person."""
    person = standing(184, 184, 340) + shift
    person[((person < 0) | (person > 367)).any(axis=1)] = np.nan
    person[NECK] = (person[2] + person[5]) / 2
    keypoints, _ = decode_people(render_maps(person[None], 368, 368, 8), 8, min_parts=1)
    found = np.isfinite(keypoints[:, :, 0])
    assert sorted(found.sum(axis=1), reverse=True) == sizes
    assert (found.sum(axis=0) == np.isfinite(person[:, 0])).all()
    assert np.nanmax(np.abs(np.fmax.reduce(keypoints[:, :, :2]) - person)) < 2


def test_pieces_far_apart_or_with_a_part_in_common_are_two_people():
    skeleton = skeleton_of_category({'name': 'dog', 'keypoints': ['nose', 'back', 'tail', 'paw'],
                                     'skeleton': [[1, 2], [2, 3], [3, 4]]}, 'dogs.json')
    dogs = np.array([[(60, 40), (np.nan, np.nan), (100, 40), (100, 70)]])

    def found(joints):
        maps = [render(joints, 30, 30, 8, skeleton=skeleton) for render in (render_heatmaps, render_pafs)]
        maps = np.concatenate(maps, axis=2)
        return [np.isfinite(dog[:, 0]).sum() for dog in decode_people(maps, 8, 1, skeleton)[0]]
    assert found(dogs) == [3]  # the gap is 40 pixels, the longest limb 30
    dogs[0, 0] = 50, 40
    assert found(dogs) == [2, 1]  # 50 pixels
    dogs[0, 0] = 60, 40
    assert found(np.concatenate([dogs, dogs + [0, 130]])) == [3, 3]
    other = dogs.copy()
    other[0, 1] = 60, 60
    assert sorted(found(np.concatenate([dogs, other + [0, 130]]))) == [3, 4]


@pytest.mark.parametrize('seed', range(4))
def test_order_of_labels_does_not_matter_and_maps_are_not_changed(seed):
    joints = random_people(np.random.RandomState(seed), 4, 368, 368)
    maps = render_maps(joints, 368, 368, 8)
    before = maps.copy()
    keypoints, scores = decode_people(maps, 8)
    assert (maps == before).all()
    again, scores_again = find(joints[::-1])
    assert np.allclose(keypoints, again, equal_nan=True) and np.allclose(scores, scores_again)
    assert (np.diff(scores) <= 0).all()


def brute_force_limbs(part, position, pafs, stride):
    """Cao et al., equation 10 and the greedy matching, one pair and one point at a time."""
    height, width = pafs.shape[:2]
    chosen = []
    for k, (a, b) in enumerate(COCO_SKELETON.limbs):
        candidates = []
        for i in np.nonzero(part == a)[0]:
            for j in np.nonzero(part == b)[0]:
                vector = position[j] - position[i]
                length = np.sqrt(vector @ vector)
                values = []
                for u in np.linspace(0, 1, 10):
                    x, y = np.clip((position[i] + u * vector) / stride, 0, [width - 1, height - 1])
                    value = 0
                    for row in range(height):
                        for column in range(width):
                            weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                            if weight:
                                value += weight * (pafs[row, column, 2 * k:2 * k + 2] @ vector) / length
                    values.append(value)
                score = np.mean(values) + min(0, 0.5 * height * stride / length - 1)
                if sum(v > 0.05 for v in values) >= 8 and score > 0:
                    candidates.append((score, k, i, j))
        while candidates:
            best = max(candidates, key=lambda candidate: candidate[0])
            chosen.append(best)
            candidates = [c for c in candidates if c[2] != best[2] and c[3] != best[3]]
    return chosen


@pytest.mark.parametrize('seed', range(6))
def test_matching_equals_brute_force(seed):
    """Small maps of a few people with noise on the PAFs, so that no two candidates are equal."""
    rng = np.random.RandomState(seed)
    maps = render_maps(random_people(rng, 3, 96, 96, 0.6, 0.9), 96, 96, 8)
    maps[:, :, 19:] += rng.normal(0, 0.1, maps[:, :, 19:].shape)
    part, position, _ = find_peaks(maps[:, :, :18], 8)
    limb, start, end, score = score_limbs(part, position, maps[:, :, 19:], 8, COCO_SKELETON.limbs)
    matched = match_limbs(limb, start, end, score)
    expected = brute_force_limbs(part, position, maps[:, :, 19:], 8)
    assert len(expected) > 20
    assert sorted(zip(limb[matched], start[matched], end[matched])) == sorted((k, i, j) for _, k, i, j in expected)
    assert np.allclose(sorted(score[matched]), sorted(s for s, _, _, _ in expected), atol=1e-4)


@pytest.mark.parametrize('seed', range(20))
def test_assembled_people_are_a_partition_without_double_parts(seed):
    """Whatever the limbs are, also contradictory ones."""
    rng = np.random.RandomState(seed)
    part = np.sort(rng.randint(0, 18, 40))
    start, end = rng.randint(0, 40, (2, 60))
    position = rng.uniform(0, 50, (40, 2))
    for people in (assemble_people(part, start, end),
                   join_pieces(assemble_people(part, start, end), part, position, COCO_SKELETON.limbs)):
        assert sorted(peak for person in people for peak in person) == list(range(40))
        assert all(len(set(part[person])) == len(person) for person in people)


@pytest.mark.parametrize('shape', [(46, 46, 56), (46, 46, 19), (46, 46), (1, 46, 46, 57), (0, 46, 57)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(UserError, match='57'):
        decode_people(np.zeros(shape, np.float32), 8)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('channel', [0, 18, 40])
def test_maps_of_a_diverged_network_are_refused(value, channel):
    maps = np.zeros((16, 16, 57), np.float32)
    maps[3, 4, channel] = value
    with pytest.raises(UserError, match='NaN'):
        decode_people(maps, 8)


def test_noise_of_an_untrained_network_is_bounded():
    """More peaks than can be people: only the best of each part are looked at."""
    rng = np.random.RandomState(0)
    maps = rng.uniform(0, 1, (60, 60, 57)).astype(np.float32)
    part, _, score = find_peaks(maps[:, :, :18], 8)
    assert np.bincount(part, minlength=18).tolist() == [MAX_PEAKS_PER_PART] * 18
    assert (np.diff(part) >= 0).all() and score.min() > 0.8
    keypoints, scores = decode_people(maps, 8)
    assert np.isfinite(scores).all() and keypoints.shape[1:] == (18, 3)
