"""Heatmaps, PAFs and mask: against slow loops that follow the definitions word by word, and against reference maps."""
import math
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.skeleton import COCO_SKELETON
from pose_labels import LIMB_HALF_WIDTH, render_heatmaps, render_mask, render_pafs


def slow_heatmaps(joints, height, width, stride, sigma):
    maps = np.zeros((height, width, 19))
    for y in range(height):
        for x in range(width):
            for part in range(18):
                for jx, jy in joints[:, part].tolist():
                    if not (math.isfinite(jx) and math.isfinite(jy)):
                        continue
                    dx, dy = stride * x + stride / 2 - 0.5 - jx, stride * y + stride / 2 - 0.5 - jy
                    exponent = (dx * dx + dy * dy) / (2 * sigma * sigma)
                    if exponent <= 4.6052:
                        maps[y, x, part] = max(maps[y, x, part], math.exp(-exponent))
            maps[y, x, 18] = 1 - max(maps[y, x, :18])
    return maps


def slow_pafs(joints, height, width, stride):
    limb_width = LIMB_HALF_WIDTH / stride
    total, people = np.zeros((height, width, 19, 2)), np.zeros((height, width, 19))
    for person in (joints / stride).tolist():
        for limb, (first, second) in enumerate(COCO_SKELETON.limbs):
            (ax, ay), (bx, by) = person[first], person[second]
            if not all(math.isfinite(v) for v in (ax, ay, bx, by)):
                continue
            length = math.sqrt((bx - ax) ** 2 + (by - ay) ** 2)
            if length == 0:
                continue
            ux, uy = (bx - ax) / length, (by - ay) / length
            # Python's round and numpy's agree: halves go to the even number.
            for y in range(max(0, round(min(ay, by) - limb_width)), min(height, round(max(ay, by) + limb_width))):
                for x in range(max(0, round(min(ax, bx) - limb_width)), min(width, round(max(ax, bx) + limb_width))):
                    if abs((x - ax) * uy - (y - ay) * ux) <= limb_width:
                        total[y, x, limb] += ux, uy
                        people[y, x, limb] += 1
    return (total / np.maximum(people, 1)[..., None]).reshape(height, width, 38)


def people_like(rng, people, side):
    """Joints of all sorts: anywhere, on grid lines, shared with others, far outside, missing."""
    anywhere = rng.uniform(-0.4 * side, 1.4 * side, (people, 18, 2))
    few = rng.uniform(0, side, (3, 2))[rng.randint(0, 3, (people, 18))]  # limbs of zero length, coincident people
    on_lines = 4.0 * rng.randint(-3, side // 4 + 3, (people, 18, 2))
    far = rng.choice([-1e6, -1e4, 300.0, 1e4, 1e6], (people, 18, 2))
    body = rng.uniform(0, side, (people, 1, 2)) + rng.normal(0, side / 6, (people, 18, 2))
    kinds = np.stack([anywhere, few, on_lines, far, body])
    joints = kinds[rng.choice(5, (people, 18), p=(.2, .2, .2, .05, .35)), np.arange(people)[:, None], np.arange(18)]
    joints[rng.uniform(size=(people, 18)) < rng.choice([0, 0.3])] = np.nan
    joints[rng.uniform(size=(people, 18)) < 0.02] = np.inf
    return joints


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), people=st.one_of(st.integers(0, 4), st.integers(0, 30)),
       stride=st.sampled_from([4, 8, 2, 5, 16, 20]), height=st.integers(1, 9), width=st.integers(1, 12),
       sigma=st.sampled_from([7.0, 3.0]))
def test_maps_equal_the_loops(seed, people, stride, height, width, sigma):
    joints = people_like(np.random.RandomState(seed), people, stride * max(height, width))
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # neither NaN nor infinity may make numpy complain
        heatmaps = render_heatmaps(joints, height, width, stride, sigma)
        pafs = render_pafs(joints, height, width, stride)
    assert heatmaps.dtype == pafs.dtype == np.float32
    assert heatmaps.shape == (height, width, 19) and pafs.shape == (height, width, 38)
    np.testing.assert_allclose(heatmaps, slow_heatmaps(joints, height, width, stride, sigma), atol=1e-6)
    np.testing.assert_allclose(pafs, slow_pafs(joints, height, width, stride), atol=1e-6)


def test_absurd_coordinates_do_no_harm():
    rng = np.random.RandomState(0)
    for _ in range(50):
        joints = rng.uniform(0, 80, (5, 18, 2))
        absurd = rng.uniform(size=joints.shape) < 0.3
        joints[absurd] = rng.choice([1e18, -1e18, 1e30, 1e300, -1e308, np.inf, np.nan], absurd.sum())
        for maps in (render_heatmaps(joints, 10, 10, 8), render_pafs(joints, 10, 10, 8)):
            assert np.isfinite(maps).all() and np.abs(maps).max() <= 1.0001


def test_values_worked_out_by_hand():
    joints = np.full((2, 18, 2), np.nan)
    joints[0, 1], joints[0, 8] = (11.5, 19.5), (43.5, 19.5)  # neck and right hip of the first: limb 0
    heatmaps = render_heatmaps(joints, 6, 8, 8)
    # The joint lies at the centre of cell (x 1, y 2): 8 * 1 + 3.5 and 8 * 2 + 3.5.
    assert heatmaps[2, 1, 1] == 1 and heatmaps[2, 1, 18] == 0
    assert heatmaps[2, 2, 1] == pytest.approx(math.exp(-64 / 98))
    assert heatmaps[3, 2, 1] == pytest.approx(math.exp(-128 / 98))
    assert heatmaps[2, 3, 1] == pytest.approx(math.exp(-256 / 98)) and heatmaps[2, 4, 1] == 0  # 576 / 98 is over 4.6052
    # Divided by 8 the limb runs from (1.4375, 2.4375) to (5.4375, 2.4375): rows 2 and 3 lie within 1 of it.
    # x from round(0.4375) = 0 to round(6.4375) = 6 and y from round(1.4375) = 1 to round(3.4375) = 3, both exclusive;
    # row 1 is 1.4375 away.
    pafs = render_pafs(joints, 6, 8, 8)
    expected = np.zeros((6, 8, 38))
    expected[2, 0:6, 0] = 1
    np.testing.assert_array_equal(pafs, expected)
    joints[1, 1], joints[1, 8] = (27.5, 3.5), (27.5, 43.5)  # another person's, downwards, crosses it
    pafs = render_pafs(joints, 6, 8, 8)
    np.testing.assert_array_equal(pafs[2, 3, :2], [0.5, 0.5])
    np.testing.assert_array_equal(pafs[2, 1, :2], [1, 0])
    np.testing.assert_array_equal(pafs[4, 3, :2], [0, 1])


def test_maps_equal_the_reference(oracles):
    names = sorted(path.name for path in oracles.glob('labels_*.npz'))
    assert names == ['labels_000000000785.npz', 'labels_000000040083.npz']
    for name in names:
        with np.load(str(oracles / name)) as oracle:
            height, width = oracle['paf'].shape[:2]
            stride = int(oracle['stride'])
            pafs = render_pafs(oracle['joints'], height, width, stride)
            heatmaps = render_heatmaps(oracle['joints'], height, width, stride, float(oracle['sigma']))
            np.testing.assert_allclose(pafs, oracle['paf'], atol=1e-5)
            if len(oracle['joints']) == 1:  # for several people the reference sums heatmaps
                np.testing.assert_allclose(heatmaps, oracle['heatmap'], atol=1e-5)


IDENTITY = np.eye(2, 3)


def test_mask_worked_out_by_hand():
    # From pixel centre 8 to 31 in x, 8 to 15 in y: cells 1, 2, 3 of row 1 are covered.
    rectangle = np.array([(8, 8), (31, 8), (31, 15), (8, 15)], np.float32)
    expected = np.ones((4, 6, 1), np.float32)
    expected[1, 1:4] = 0
    mask = render_mask([rectangle], [], [], IDENTITY, 4, 6, 8)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, expected)
    bitmap = np.zeros((32, 48), np.uint8)
    bitmap[8:16, 8:32] = 1
    np.testing.assert_array_equal(render_mask([], [bitmap], [], IDENTITY, 4, 6, 8), expected)
    # A labelled person in a crowd counts, whichever form the crowd's region has.
    crowd = np.array([(0, 0), (47, 0), (47, 31), (0, 31)], np.float32)
    for polygons, bitmaps in (([crowd], []), ([], [np.ones((32, 48), np.uint8)])):
        np.testing.assert_array_equal(render_mask(polygons, bitmaps, [rectangle], IDENTITY, 4, 6, 8), 1 - expected)
    # Half a cell counts half, overlapping regions count once, what lies outside of the image counts fully.
    half = np.array([(8, 0), (15, 0), (15, 3), (8, 3)], np.float32)
    expected[0, 1] = 0.5
    mask = render_mask([rectangle, half, half], [bitmap], [], IDENTITY, 4, 6, 8)
    np.testing.assert_allclose(mask, expected, atol=0.005)
    moved = np.array([[1, 0, 40.0], [0, 1, 0]])
    everything = np.ones((32, 48), np.uint8)
    expected = np.ones((4, 6, 1), np.float32)
    expected[:, 5] = 0
    np.testing.assert_array_equal(render_mask([], [everything], [], moved, 4, 6, 8), expected)
    assert (render_mask([], [], [], moved, 4, 6, 8) == 1).all()


@pytest.mark.parametrize('stride', [4, 8])
def test_mask_edge_follows_the_segmentation_within_a_cell(stride):
    rng = np.random.RandomState(1)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    for _ in range(6):
        polygon = (rng.uniform(60, 140, 2)
                   + rng.uniform(25, 70, (8, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1))
        turn = np.deg2rad(rng.uniform(-40, 40))
        scale = rng.uniform(0.4, 2.5)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = np.column_stack([linear, np.array([96, 96]) - linear @ (100, 100)])
        bitmap = np.zeros((200, 200), np.uint8)
        cv2.fillPoly(bitmap, [np.round(polygon).astype(np.int32)], 1)
        outline = (polygon @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        # Of a bitmap not even the segmentation itself is finer than a pixel.
        for mask, near in ((render_mask([polygon], [], [], matrix, 192 // stride, 192 // stride, stride), stride),
                           (render_mask([], [bitmap], [], matrix, 192 // stride, 192 // stride, stride),
                            stride + scale)):
            for y, x in np.ndindex(mask.shape[:2]):
                centre = (stride * x + stride / 2 - 0.5, stride * y + stride / 2 - 0.5)
                inside_by = cv2.pointPolygonTest(outline, centre, True)
                corners = np.array(centre) + np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * stride / 2
                in_image = ((corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)
                if ((in_image < 0) | (in_image > 199)).any():
                    continue  # the bitmap ends with its image
                if inside_by > near:
                    assert mask[y, x, 0] == 0
                if inside_by < -near:
                    assert mask[y, x, 0] == 1


def test_mask_of_huge_polygons():
    everywhere = np.array([(-1e5, -1e5), (1e5, -1e5), (1e5, 1e5), (-1e5, 1e5)])
    assert (render_mask([everywhere], [], [], IDENTITY * 1000, 4, 6, 8) == 0).all()
    beside = np.array([(1e5, 0), (2e5, 0), (2e5, 1e5), (1e5, 1e5)])
    assert (render_mask([beside], [], [], IDENTITY * 1000, 4, 6, 8) == 1).all()
