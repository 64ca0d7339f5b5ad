"""The augmentation: ranges and distribution of what is drawn, and matrices against values worked out by hand."""
import cv2
import numpy as np
import pytest

import pose_augment
from annotations.skeleton import COCO_SKELETON
from pose_augment import Augmentation, augmentation_matrix, draw_augmentation, fit_matrix, matrix_scale, \
    reduced_matrix, transform_joints, warp_image


def test_draws_are_uniform_in_their_ranges():
    rng = np.random.RandomState(5)
    draws = np.array([draw_augmentation(rng)[:5] for _ in range(10000)], np.float64)
    ranges = [(0.5, 1.1), (-40, 40), (-40, 40), (-40, 40)]
    for column, (low, high) in zip(draws.T, ranges):
        assert low <= column.min() and column.max() <= high
        # Kolmogorov-Smirnov: for 10,000 uniform numbers the distance passes 0.0195 once in 1000 times.
        expected = (np.sort(column) - low) / (high - low)
        assert np.abs(expected - (np.arange(10000) + 0.5) / 10000).max() < 0.0195
    assert set(draws[:, 4]) == {0, 1} and abs(draws[:, 4].mean() - 0.5) < 0.02
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation[~np.eye(5, dtype=bool)]).max() < 0.04
    other = pose_augment.Ranges(scale=(2, 3), angle=(5, 6), offset=(7, 8), flip_probability=1)
    draws = np.array([draw_augmentation(rng, other)[:5] for _ in range(100)])
    assert ((draws >= [2, 5, 7, 7, 1]) & (draws <= [3, 6, 8, 8, 1])).all()


BBOX = (100, 50, 80, 200)  # its centre is (140, 150)


def moved(augmentation, point, width=400, height=360):
    return augmentation_matrix(augmentation, BBOX, width, height) @ (point + (1,))


def test_matrices_worked_out_by_hand():
    # 0.6 * 360 / 200 = 1.08 for the factor 1; the crop's centre is at (199.5, 179.5).
    plain = Augmentation(1, 0, 0, 0, False)
    np.testing.assert_allclose(moved(plain, (140, 150)), (199.5, 179.5))
    np.testing.assert_allclose(moved(plain, (150, 130)), (199.5 + 10.8, 179.5 - 21.6))
    np.testing.assert_allclose(moved(plain._replace(scale=0.5), (150, 130)), (199.5 + 5.4, 179.5 - 10.8))
    # The crop's centre lies 30 to the right of and 8 above the person, who is then to the left of and below it.
    np.testing.assert_allclose(moved(plain._replace(offset_x=30, offset_y=-8), (140, 150)), (169.5, 187.5))
    # A quarter turn sends what is on the right down. The offset is in input pixels: it comes after scale and turn.
    np.testing.assert_allclose(moved(plain._replace(angle=90), (150, 150)), (199.5, 179.5 + 10.8))
    np.testing.assert_allclose(moved(plain._replace(angle=90, scale=0.5, offset_x=30), (150, 150)),
                               (169.5, 179.5 + 5.4))
    # The flip comes last: x becomes 399 - x.
    np.testing.assert_allclose(moved(plain._replace(offset_x=30, flip=True), (140, 150)), (399 - 169.5, 179.5))
    turned = augmentation_matrix(plain._replace(angle=33, scale=0.7), BBOX, 400, 360)
    assert matrix_scale(turned) == pytest.approx(0.756)


def test_fit_worked_out_by_hand():
    np.testing.assert_allclose(fit_matrix(400, 200, 200, 200), [[0.5, 0, -0.25], [0, 0.5, 49.75]])
    matrix = fit_matrix(640, 480, 368, 368)
    # The image's edges, half a pixel outside of its outermost centres, come to lie on the input's.
    np.testing.assert_allclose(matrix @ (-0.5, 239.5, 1), (-0.5, 183.5))
    np.testing.assert_allclose(matrix @ (639.5, 239.5, 1), (367.5, 183.5))


def test_joints_move_in_float_and_swap_sides_when_mirrored():
    joints = np.random.RandomState(0).uniform(0, 100, (3, 18, 2))
    joints[1, 4] = np.nan
    matrix = np.array([[0.8, -0.3, 4.25], [0.3, 0.8, -1.5]])
    expected = np.einsum('ij,pkj->pki', matrix[:, :2], joints) + matrix[:, 2]
    np.testing.assert_allclose(transform_joints(joints, matrix, COCO_SKELETON), expected)
    mirror = np.array([[-1.0, 0, 99], [0, 1, 0]])
    mirrored = transform_joints(joints, mirror, COCO_SKELETON)
    np.testing.assert_allclose(mirrored[0, 2],
                               (99 - joints[0, 5, 0], joints[0, 5, 1]))  # the right shoulder was the left
    np.testing.assert_allclose(mirrored, (joints * (-1, 1) + (99, 0))[:, list(COCO_SKELETON.flip_order)])
    assert np.isnan(mirrored[1, 7]).all() and np.isfinite(mirrored[1, 4]).all()


def test_warp_puts_pixels_where_the_matrix_says_and_grey_outside():
    image = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    warped = warp_image(image, np.array([[1.0, 0, 5], [0, 1, -3]]), 40, 24)
    assert warped.shape == (24, 40, 3) and warped.dtype == np.uint8
    np.testing.assert_array_equal(warped[0:17, 5:35], image[3:20])
    assert (warped[:, :5] == 128).all() and (warped[17:] == 128).all()
    mirrored = warp_image(image, np.array([[-1.0, 0, 29], [0, 1, 0]]), 30, 20)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])


@pytest.mark.parametrize('reduction', [2, 4, 8])
def test_a_reduced_image_lands_where_the_full_one_does(reduction):
    rng = np.random.RandomState(1)
    full = cv2.GaussianBlur(rng.randint(0, 256, (160, 240, 3)).astype(np.float32), (0, 0), 12)
    full = ((full - full.min()) / (full.max() - full.min()) * 255).astype(np.uint8)
    reduced = cv2.resize(full, None, fx=1 / reduction, fy=1 / reduction, interpolation=cv2.INTER_AREA)
    matrix = augmentation_matrix(Augmentation(0.6, 20, 3, -4, True), (60, 20, 90, 130), 64, 64)
    difference = np.abs(warp_image(full, matrix, 64, 64).astype(int)
                        - warp_image(reduced, reduced_matrix(matrix, reduction), 64, 64))
    wrong = np.abs(warp_image(full, matrix, 64, 64).astype(int)
                   - warp_image(reduced, matrix * [reduction, reduction, 1], 64, 64))
    inside = (slice(8, 56), slice(8, 56))
    assert difference[inside].mean() < 2 and difference[inside].mean() < 0.6 * wrong[inside].mean()


def test_a_whole_image_is_cropped_within_itself():
    """Its scale is that of the image that fits into the input; where it is larger, any part of it may be shown."""
    ranges = pose_augment.PRESETS['original']._replace(angle=(0, 0))
    rng = np.random.RandomState(4)
    for _ in range(200):
        augmentation = draw_augmentation(rng, ranges)
        matrix = pose_augment.image_matrix(augmentation, 640, 480, 368, 368)
        corners = np.array([[0, 0], [639, 479]]) @ matrix[:, :2].T + matrix[:, 2]
        low, high = corners.min(0), corners.max(0)
        stretched = np.array([640 * augmentation.stretch_x, 480 * augmentation.stretch_y])
        scale = augmentation.scale * 368 / stretched.max()
        np.testing.assert_allclose(high - low, scale * (stretched - [augmentation.stretch_x, augmentation.stretch_y]))
        for axis in range(2):  # no border where the image is large enough, and centred where it is not
            if scale * stretched[axis] > 368:
                assert low[axis] <= 0.75 and high[axis] >= 366.25
            else:
                assert low[axis] + high[axis] == pytest.approx(367)
        assert (np.linalg.det(matrix[:, :2]) < 0) == augmentation.flip
    assert 0.75 < min(draw_augmentation(rng, ranges).stretch_x for _ in range(200)) < 0.85


PLAIN = pose_augment.CMU_RANGES
PICTURE = cv2.GaussianBlur(np.random.RandomState(6).randint(0, 256, (96, 80, 3)).astype(np.uint8), (0, 0), 3)


def look_of(**ranges):
    return pose_augment.draw_look(np.random.RandomState(7), PLAIN._replace(**ranges))


def test_cmu_changes_no_look_and_draws_nothing_for_it():
    rng = np.random.RandomState(1)
    assert pose_augment.draw_look(rng, PLAIN) is None and rng.uniform() == np.random.RandomState(1).uniform()
    assert pose_augment.change_look(PICTURE, None) is PICTURE


def test_a_look_is_a_function_of_its_seed_and_leaves_the_image_alone():
    before = PICTURE.copy()
    for seed in range(30):
        pictures = [pose_augment.change_look(PICTURE, pose_augment.draw_look(
            np.random.RandomState(seed), pose_augment.PRESETS['strong'])) for _ in range(2)]
        assert np.array_equal(*pictures) and pictures[0].dtype == np.uint8 and pictures[0].shape == PICTURE.shape
    assert np.array_equal(PICTURE, before)


def test_each_part_of_a_look():
    def changed(**ranges):
        return pose_augment.change_look(PICTURE, look_of(**ranges)).astype(int)

    grey = changed(grey=1.0)
    assert (grey == grey[..., :1]).all() and abs(grey.mean() - cv2.cvtColor(PICTURE, cv2.COLOR_BGR2GRAY).mean()) < 1
    edges = [np.abs(np.diff(picture.astype(int), axis=0)).mean() for picture in (changed(blur=1.0), PICTURE)]
    assert edges[0] < 0.95 * edges[1]
    noise = changed(noise=1.0) - PICTURE
    assert 1 < noise.std() < 15 and abs(noise.mean()) < 1
    assert 0.5 < np.abs(changed(jpeg=1.0) - PICTURE).mean() < 20
    covered = changed(patches=pose_augment.MAX_PATCHES)
    share = (covered != PICTURE).any(axis=2).mean()
    assert 0 < share < 0.6
    assert np.abs(changed(colour=1.0) - PICTURE).mean() > 5
    # Hue turns about the axis of greys: what is grey stays grey.
    flat = np.full((8, 8, 3), 90, np.uint8)
    turned = pose_augment.change_look(flat, look_of(colour=1.0))
    assert np.ptp(turned.astype(int)) <= 1


def test_wide_scales_are_drawn_by_their_logarithm():
    rng = np.random.RandomState(2)
    scales = np.log([draw_augmentation(rng, pose_augment.PRESETS['strong']).scale for _ in range(4000)])
    low, high = np.log([0.25, 2.0])
    assert low <= scales.min() and scales.max() <= high
    assert np.abs((np.sort(scales) - low) / (high - low) - (np.arange(4000) + 0.5) / 4000).max() < 0.031
