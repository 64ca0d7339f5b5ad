"""Pictures: strokes and overlays lie where the joints and maps are, and nothing else changes."""
import numpy as np
import pytest

import pose_draw
from annotations.skeleton import COCO_SKELETON
from pose_labels import render_heatmaps, render_pafs

GREY = np.full((160, 240, 3), 100, np.uint8)


def one_person(**parts):
    keypoints = np.full((1, 18, 2), np.nan)
    for name, position in parts.items():
        keypoints[0, int(name[1:])] = position
    return keypoints


def test_joints_and_limbs_have_their_colours_in_their_places():
    """Of OpenPose's COCO model: the neck is red, the right ankle sky blue, the left wrist bright green."""
    assert [pose_draw.PART_COLOURS[part][::-1] for part in (1, 10, 7)] == [(255, 0, 0), (0, 255, 255), (0, 255, 0)]
    assert len(set(pose_draw.PART_COLOURS)) == 18
    drawn = pose_draw.draw_skeletons(GREY, one_person(p2=(60, 80), p3=(180, 80)), COCO_SKELETON, opacity=1)
    assert tuple(drawn[80, 60]) == pose_draw.PART_COLOURS[2]
    assert tuple(drawn[80, 180]) == pose_draw.PART_COLOURS[3]
    assert tuple(drawn[80, 120]) == pose_draw.PART_COLOURS[3]
    changed = (drawn != GREY).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 74 < rows.min() and rows.max() < 86 and 54 < columns.min() and columns.max() < 186


def test_arguments_are_not_changed_and_scores_are_welcome():
    image, keypoints = GREY.copy(), one_person(p0=(30, 30), p1=(40, 60))
    scored = np.concatenate([keypoints, np.full((1, 18, 1), 0.5)], axis=2)
    drawn = [pose_draw.draw_skeletons(image, points, COCO_SKELETON) for points in (scored, keypoints)]
    assert (drawn[0] == drawn[1]).all()
    assert (image == GREY).all()


@pytest.mark.parametrize('keypoints', [np.zeros((0, 18, 3)), np.full((2, 18, 2), np.nan), one_person(p5=(1e12, 3)),
                                       one_person(p5=(np.inf, 3), p6=(-1e9, -1e9))])
def test_absent_and_absurd_points_are_not_drawn(keypoints):
    assert (pose_draw.draw_skeletons(GREY, keypoints, COCO_SKELETON) == GREY).all()


def test_a_limb_that_leaves_the_picture_is_drawn_to_its_border():
    drawn = pose_draw.draw_skeletons(GREY, one_person(p2=(120, 80), p3=(300, 80)), COCO_SKELETON)
    assert (drawn[80, 125:] != GREY[80, 125:]).any(axis=1).all()


@pytest.mark.parametrize('shape', [(18, 2), (1, 17, 3), (1, 18, 4)])
def test_wrong_keypoints_are_refused(shape):
    with pytest.raises(ValueError, match='18'):
        pose_draw.draw_skeletons(GREY, np.zeros(shape), COCO_SKELETON)


def test_heat_lies_on_the_joint():
    joint = (150.0, 60.0)
    overlay = pose_draw.overlay_heatmap(GREY, render_heatmaps(one_person(p4=joint), 20, 30, 8))
    red = overlay[:, :, 2].astype(float) - overlay[:, :, 0]
    rows, columns = np.nonzero(red > 40)
    assert abs(columns.mean() - joint[0]) < 2 and abs(rows.mean() - joint[1]) < 2
    assert np.ptp(overlay[100:, :100].reshape(-1, 3), axis=0).max() == 0  # nothing far away


@pytest.mark.parametrize('end, channel', [((200, 80), 'red'), ((40, 80), 'cyan')])
def test_hue_is_the_direction_of_the_limb(end, channel):
    pafs = render_pafs(one_person(p2=(120, 80), p3=end), 20, 30, 8)
    overlay = pose_draw.overlay_paf(GREY, pafs).astype(int)
    blue, green, red = overlay[80, (120 + end[0]) // 2]
    assert (red > green + 80 and red > blue + 80) if channel == 'red' else (green > red + 80 and blue > red + 80)
    faded = pose_draw.overlay_paf(GREY, np.zeros((20, 30, 38), np.float32))
    assert (overlay[130:] == faded[130:]).all()


def test_only_what_is_left_out_of_the_loss_is_shaded():
    mask = np.ones((20, 30, 1), np.float32)
    mask[:, 20:] = 0
    shaded = pose_draw.shade_mask(GREY, mask)
    assert (shaded[:, :150] == GREY[:, :150]).all()
    assert (shaded[:, 170:] != GREY[:, 170:]).any(axis=2).all()


@pytest.mark.parametrize('scale, shape', [(0.5, (80, 120, 3)), (3, (160, 240, 3)), (0.001, (1, 1, 3))])
def test_shrunk_pictures_keep_a_pixel(scale, shape):
    assert pose_draw.shrunk(GREY, scale).shape == shape


@pytest.mark.parametrize('width', [80, 240, 1200])
def test_captions_stand_below_the_image_and_fit(width):
    image = np.full((50, width, 3), 7, np.uint8)
    captioned = pose_draw.caption(image, 'a rather long line of text: %d' % width)
    assert captioned.shape[1] == width and captioned.shape[0] > 54
    assert (captioned[:50] == image).all()
    strip = captioned[50:].min(axis=2)
    assert strip.min() < 200  # ink
    assert (strip[:, [0, -1]] == 255).all() and (strip[[0, -1]] == 255).all()  # that is not cut off


def test_contact_sheet_holds_every_image_once():
    colours = [(i * 10, 20, 30) for i in range(1, 6)]
    sizes = [(30, 40), (50, 20), (10, 10), (20, 60), (33, 21)]
    images = [np.full(size + (3,), colour, np.uint8) for size, colour in zip(sizes, colours)]
    sheet = pose_draw.contact_sheet([images[:3], [], images[3:]], margin=4)
    assert sheet.shape == (4 + 50 + 4 + 33 + 4, 4 + 60 + 4 + 21 + 4 + 10 + 4, 3)
    for (height, width), colour in zip(sizes, colours):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert len(rows) == height * width == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert (sheet[0] == 255).all() and (sheet[:, -1] == 255).all()
    with pytest.raises(ValueError, match='at least one'):
        pose_draw.contact_sheet([[], []])
