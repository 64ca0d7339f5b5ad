"""Skeletons: COCO's as published, others as annotation files describe them, and text that is no skeleton."""
import json

import pytest

from annotations.skeleton import COCO_SKELETON, DEFAULT_SIGMA, flip_notes, flip_order_of, parse_skeleton, \
    skeleton_of_category
from pose_errors import UserError

CATEGORY = {'id': 1, 'name': 'dog', 'keypoints': ['nose', 'left_ear', 'right_ear', 'tail', 'paw'],
            'skeleton': [[1, 2], [1, 3], [1, 4], [4, 5]]}


def test_coco_has_the_channels_of_the_published_networks():
    assert (len(COCO_SKELETON.parts), len(COCO_SKELETON.limbs)) == (18, 19)
    assert (COCO_SKELETON.heatmap_channels, COCO_SKELETON.paf_channels) == (19, 38)
    assert (COCO_SKELETON.map_channels, COCO_SKELETON.background) == (57, 18)
    assert flip_order_of(COCO_SKELETON.parts) == COCO_SKELETON.flip_order
    assert [COCO_SKELETON.keypoints[k] for k in (0, 5)] == ['nose', 'left_shoulder']
    assert [COCO_SKELETON.parts[part] for part in COCO_SKELETON.part_of_keypoint[5:7]] == ['LShoulder', 'RShoulder']


def test_a_category_of_its_own():
    dog = skeleton_of_category(CATEGORY, 'dogs.json')
    assert dog.parts == dog.keypoints == tuple(CATEGORY['keypoints']) and dog.limbs == ((0, 1), (0, 2), (0, 3), (3, 4))
    assert dog.flip_order == (0, 2, 1, 3, 4) and dog.map_channels == 6 + 8 and dog.sigmas == (DEFAULT_SIGMA,) * 5
    assert skeleton_of_category(dict(CATEGORY, sigmas=[.1, .2, .3, .4, .5]), 'f').sigmas == (.1, .2, .3, .4, .5)
    people = dict(CATEGORY, keypoints=list(COCO_SKELETON.keypoints), skeleton=[])
    assert skeleton_of_category(people, 'f') == COCO_SKELETON
    assert dog.joints([[1, 2, 2] + [0] * 12]).shape == (1, 5, 2)


@pytest.mark.parametrize('change, mention', [
    ({'skeleton': []}, 'no limbs'), ({'skeleton': None}, 'no limbs'), ({'skeleton': [[1, 2], [1, 3], [1, 4]]}, 'paw'),
    ({'skeleton': [[1, 2], [2, 3], [4, 5]]}, 'apart from'), ({'skeleton': [[1, 1]]}, 'pairs of different'),
    ({'skeleton': [[0, 2]]}, '1 to 5'), ({'skeleton': [[1, 6]]}, '1 to 5'), ({'skeleton': [1, 2]}, 'pairs'),
    ({'skeleton': 'x'}, 'no limbs'), ({'keypoints': ['a', 'a', 'b', 'c', 'd']}, 'same name'),
    ({'keypoints': [1, 2]}, 'names'), ({'keypoints': ['a']}, '1 keypoints'), ({'keypoints': None}, 'names')])
def test_what_makes_no_skeleton_is_one_line_that_names_the_file(change, mention):
    with pytest.raises(UserError) as error:
        skeleton_of_category(dict(CATEGORY, **change), 'dogs.json')
    assert mention in str(error.value) and 'dogs.json' in str(error.value)


@pytest.mark.parametrize('left, right', [
    ('left_knee', 'right_knee'), ('l_knee', 'r_knee'), ('L_knee', 'R_knee'), ('LKnee', 'RKnee'),
    ('LeftKnee', 'RightKnee'), ('Left Knee', 'Right Knee'), ('knee_left', 'knee_right'), ('knee.l', 'knee.r'),
    ('kneeLeft', 'kneeRight'), ('lhip', 'rhip'), ('Lsho', 'Rsho'), ('HipL', 'HipR'), ('hipl', 'hipr'), ('tl', 'tr'),
    ('Hip (L)', 'Hip (R)'), ('front_left_paw', 'front_right_paw'), ('KNEE_LEFT', 'KNEE_RIGHT'), ('2_L', '2_R'),
    ('left_eye_right_corner', 'right_eye_left_corner')])
def test_sides_as_tools_write_them(left, right):
    assert flip_order_of(('middle', left, right)) == (0, 2, 1)
    assert flip_order_of(('lid', 'rim', 'left', 'arm')) == (0, 1, 2, 3)  # which only look like a side


@pytest.mark.parametrize('given, order', [
    ({'flip_pairs': [[2, 4]]}, (0, 3, 2, 1, 4)), ({'flip_pairs': [[0, 4]]}, (4, 1, 2, 3, 0)),
    ({'flip_pairs': []}, (0, 1, 2, 3, 4)), ({'flip_idx': [0, 1, 3, 2, 4]}, (0, 1, 3, 2, 4)),
    ({'flip_pairs': [['tail', 'paw'], ['nose', 'left_ear']]}, (1, 0, 2, 4, 3)),
    ({'flip_pairs': [[1, 6]]}, None), ({'flip_pairs': [[1]]}, None), ({'flip_pairs': [['nose', 'wing']]}, None),
    ({'flip_pairs': [[1, 2], [2, 3]]}, None), ({'flip_pairs': 5}, None), ({'flip_idx': [1, 2, 0, 3, 4]}, None),
    ({'flip_idx': [0, 1]}, None), ({'flip_idx': 'x'}, None)])
def test_a_category_says_itself_what_swaps(given, order):
    if order:
        assert skeleton_of_category(dict(CATEGORY, **given), 'f').flip_order == order
    else:
        with pytest.raises(UserError, match='"flip_pairs".*"flip_idx"'):
            skeleton_of_category(dict(CATEGORY, **given), 'f')


def test_what_swaps_is_told_and_a_side_alone_is_doubted():
    def notes(*names):
        return flip_notes(skeleton_of_category({'name': 'x', 'keypoints': names, 'skeleton': [[1, 2], [2, 3]]}, 'f'))

    assert notes('nose', 'lhip', 'rhip') == (['mirrored images swap lhip - rhip'], [])
    pairs, (doubt,) = notes('left_hip', 'right_hip', 'left_knee')
    assert pairs == ['mirrored images swap left_hip - right_hip']
    assert doubt.startswith('left_knee: there is no keypoint of the other side')
    pairs, (doubt,) = notes('a', 'b', 'c')
    assert pairs == [] and doubt.startswith('no keypoint has another side; ') and '"flip_pairs"' in doubt
    assert flip_notes(COCO_SKELETON) == ([], [])


@pytest.mark.parametrize('change', [
    {'limbs': [[0, 18]]}, {'limbs': []}, {'limbs': [[0, 0]]}, {'limbs': [[0, -1]]}, {'limbs': 5}, {'parts': ['a']},
    {'parts': [1] * 18}, {'flip_order': [0] * 18}, {'flip_order': None}, {'sigmas': [0] * 17}, {'sigmas': ['x'] * 17},
    {'sources': [[99]] * 18}, {'sources': [[0]] * 18}, {'name': 'a\nb'}, {'name': 7}, {'more': 1}])
def test_text_and_back_or_one_line_where_it_is_damaged(change):
    for skeleton in (COCO_SKELETON, skeleton_of_category(CATEGORY, 'f')):
        assert parse_skeleton(skeleton.to_json(), 'run.json') == skeleton
    with pytest.raises(UserError, match='run.json holds no skeleton'):
        parse_skeleton(json.dumps(dict(json.loads(COCO_SKELETON.to_json()), **change)), 'run.json')
    for text in ('', 'null', '[]', '{}', '[' * 10 ** 5, '"x"'):
        with pytest.raises(UserError, match='run.json holds no skeleton'):
            parse_skeleton(text, 'run.json')


def test_names_as_tools_write_them():
    """Spaces of other kinds; a category without a name or with one that is too long has another."""
    names = ['nose', 'left\u00a0ear', 'right\u3000ear', 'tail', 'paw']
    named = skeleton_of_category(dict(CATEGORY, name='', keypoints=names), 'f')
    assert named.name == 'object' and named.keypoints[1:3] == ('left ear', 'right ear')
    assert named.flip_order == (0, 2, 1, 3, 4)
    assert skeleton_of_category(dict(CATEGORY, name='x' * 65), 'f').name == 'object'
