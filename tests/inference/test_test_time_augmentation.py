"""Maps of several sizes and mirror images, on one grid."""
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from benchmarks.bench_inputs import random_people
from inference.metrics import evaluate, label_maps
from inference.predictor import average_and_decode, average_maps, fitted_size, interpolated, make_transforms, \
    mirrored_channels, transform_image
from pose_augment import transform_joints


def labels_of_transforms(joints, transforms, stride):
    """What a perfect network gives for each transform: maps (h, w, 57)."""
    return [label_maps(transform_joints(joints, transform.matrix, COCO_SKELETON), transform.width, transform.height,
                       stride, COCO_SKELETON) for transform in transforms]


@pytest.mark.parametrize('stride', (8, 4))
@pytest.mark.parametrize('scales, flip', [((1.0,), True), ((1.0, 2.0), False), ((0.5, 1.0, 1.5), True)])
def test_transforms_agree_about_where_people_are(stride, scales, flip):
    """Each input alone, brought to the common grid, shows the same people in the same places, nearly to the cell."""
    joints = random_people(np.random.RandomState(0), 2, 400, 300, 0.7, 0.9)
    transforms = make_transforms(400, 300, short_edge=300, scales=scales, flip=flip)
    maps = labels_of_transforms(joints, transforms, stride)
    keypoints, scores, _ = average_and_decode(maps, transforms, 3, COCO_SKELETON)
    assert len(scores) == 2
    for person in joints:
        error = np.nanmean(np.linalg.norm(keypoints[:, :, :2] - person, axis=2), axis=1).min()
        assert error < 1.5
    target = max(transform.width for transform in transforms)
    averaged, found_stride, matrix = average_maps(maps, transforms, COCO_SKELETON)
    assert found_stride == stride and averaged.shape[1] == target // stride
    reference = [single for single, transform in zip(maps, transforms) if transform.width == target][0]
    heat, pafs = np.abs(averaged - reference)[:, :, :19], np.abs(averaged - reference)[:, :, 19:]
    if flip and len(scales) == 1:  # the grids are each other's mirror image: heatmaps agree to rounding
        assert heat.max() < 1e-3
    assert heat.mean() < 0.02 and pafs.mean() < 0.02


def test_mirrored_channels_of_coco():
    heat_order, paf_order, paf_sign = mirrored_channels(COCO_SKELETON)
    parts = COCO_SKELETON.parts
    assert heat_order[parts.index('LWrist')] == parts.index('RWrist') and heat_order[18] == 18
    for k, (a, b) in enumerate(COCO_SKELETON.limbs):
        mirrored = COCO_SKELETON.limbs[paf_order[2 * k] // 2]
        assert mirrored == (COCO_SKELETON.flip_order[a], COCO_SKELETON.flip_order[b])
    assert paf_sign.tolist() == [-1, 1] * 19


def test_limbs_without_a_counterpart_are_not_averaged_with_another():
    """A custom skeleton may have a limb in opposite directions on the left and on the right, or on one side only."""
    skeleton = COCO_SKELETON._replace(parts=('nose', 'left_eye', 'right_eye'), limbs=((0, 1), (2, 0), (1, 2)),
                                      flip_order=(0, 2, 1))
    _, order, sign = mirrored_channels(skeleton)
    assert order.tolist() == [2, 3, 0, 1, 4, 5] and sign.tolist() == [1, -1, 1, -1, 1, -1]
    one_sided = skeleton._replace(limbs=((0, 1),))
    assert mirrored_channels(one_sided)[2].tolist() == [0, 0]
    transforms = make_transforms(64, 64, (64, 64), flip=True)
    maps = [np.random.RandomState(k).rand(8, 8, 6).astype(np.float32) for k in range(2)]
    averaged, _, _ = average_maps(maps, transforms, one_sided)
    assert np.allclose(averaged[:, :, 4:], maps[0][:, :, 4:], atol=1e-5)


def test_cubic_interpolation_is_exact_for_parabolas():
    cells = np.arange(12.0)
    positions = np.linspace(1, 10, 37)
    maps = np.tile((0.3 * cells ** 2 - cells + 2)[None, :, None], (5, 1, 3)).astype(np.float32)
    for axis, laid in ((1, maps), (0, maps.transpose(1, 0, 2))):
        values = interpolated(laid, positions, axis).take(0, axis=1 - axis)[:, 0]
        assert np.allclose(values, 0.3 * positions ** 2 - positions + 2, atol=1e-4)
        outside = interpolated(laid, np.array([-5.0, 30.5]), axis).take(0, axis=1 - axis)[:, 0]
        assert np.allclose(outside, maps[0, [0, 11], 0])
        assert np.array_equal(interpolated(laid, cells[::-1], axis), np.flip(laid, axis))


def test_short_edge_keeps_the_shape_of_the_image_and_panoramas_stay_within_bounds():
    """A photograph a hundred times as wide as high would make an input of any size."""
    assert fitted_size(640, 480, short_edge=368) == (496, 368)
    assert fitted_size(480, 640, short_edge=736) == (736, 984)
    assert fitted_size(333, 333, short_edge=100) == (104, 104)
    assert fitted_size(640, 480, input_size=(432, 368)) == (432, 368)
    assert fitted_size(640, 480, input_size=(372, 372)) == (372, 372)  # of a network of stride 4
    assert fitted_size(640, 480, input_size=(372, 372), scale=0.5) == (192, 192)
    width, height = fitted_size(40000, 400, short_edge=368, scale=2)
    assert (width, height) == (4 * 2 * 368, 2 * 368)
    [transform] = make_transforms(40000, 400, short_edge=368)
    corners = np.array([[0, 0], [39999, 399]]) @ transform.matrix[:, :2].T + transform.matrix[:, 2]
    assert (corners >= -1).all() and (corners <= [transform.width, transform.height]).all()


def test_scales_and_flip_keep_perfect_maps_perfect(sample_coco):
    single, _, _ = evaluate(None, *find_split(str(sample_coco), 'val2017'), short_edge=368, oracle_stride=8)
    both, _, _ = evaluate(None, *find_split(str(sample_coco), 'val2017'), short_edge=368, scales=(1.0, 2.0), flip=True,
                          batchsize=3, oracle_stride=8)
    assert both['AP'] > single['AP'] - 0.02 and both['AP'] > 0.85
    assert (both['scales'], both['flip'], both['input']) == ([1.0, 2.0], True, 'short edge 368')


@pytest.mark.parametrize('shape', [(100, 300), (300, 100), (37, 41), (3000, 2000)])
def test_photographs_are_letterboxed_and_not_distorted(shape):
    pixels = np.full(shape + (3,), 255, np.uint8)
    [transform] = make_transforms(shape[1], shape[0], (256, 192))
    image, matrix = transform_image(pixels, transform), transform.matrix
    assert image.shape == (192, 256, 3)
    assert matrix[0, 0] == matrix[1, 1] and matrix[0, 1] == matrix[1, 0] == 0
    corners = np.array([[0, 0], [shape[1] - 1, shape[0] - 1]]) @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(corners.sum(axis=0), [255, 191])  # centred
    rows, columns = np.nonzero((image > 191).all(axis=2))  # half-way between the white image and the grey border
    expected = min(256 / shape[1], 192 / shape[0]) * np.array(shape)
    assert np.abs(np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) - expected).max() <= 2
    assert (image[0, 0] == 128).all() or (image[-1, -1] == 128).all() or shape == (37, 41)


def test_large_photographs_are_averaged_down():
    """Single-pixel stripes become grey instead of aliasing."""
    stripes = np.zeros((2000, 2000, 3), np.uint8)
    stripes[:, ::2] = 255
    image = transform_image(stripes, make_transforms(2000, 2000, (128, 128))[0])
    assert np.abs(image[1:-1, 1:-1].astype(int) - 128).max() < 8
