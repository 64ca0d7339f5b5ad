"""Keypoints of several data sets meet by name: in names, skeletons, annotations and what counts in the loss."""
import json

import numpy as np
import pytest

import annotation_files
from annotations.arrays import read_annotations
from annotations.coco import read_dataset
from annotations.common_keypoints import common_keypoints, labelled_parts, merge_skeletons, same_name
from annotations.skeleton import COCO_SKELETON, connected, parse_skeleton, skeleton_of_category
from pose_dataset import PoseDataset
from pose_errors import UserError
from runner_files import RUNNER, runner, runners


@pytest.mark.parametrize('names', [
    ('left_knee', 'LKnee', 'Knee (L)', 'L_knee', 'knee-left', 'LEFT KNEE'), ('nose', 'Nose'),
    ('right_big_toe', 'RBigToe', 'big toe right')])
def test_names_of_one_keypoint(names):
    assert len({same_name(name) for name in names}) == 1
    assert len({same_name(name) for name in ('left_knee', 'right_knee', 'left_kneecap', 'knee', names[0])}) >= 4


@pytest.mark.parametrize('names', [
    ('finger_1', 'finger_2', 'finger'), ('spine_01', 'spine_02'), ('face-0', 'face-67'), ('left knee 2', 'left knee'),
    ('keypoint_1', 'keypoint_2', 'keypoint_12')])
def test_numbers_tell_keypoints_apart(names):
    assert len({same_name(name) for name in names}) == len(names)


def test_sides_that_two_sets_have_between_them_swap():
    """A left foot of one and a right foot of the other are mirror images of each other."""
    def skeleton(*names):
        return skeleton_of_category({'name': 'person', 'keypoints': list(names),
                                     'skeleton': [[1, k] for k in range(2, len(names) + 1)]}, 'f')
    for foot, other in (('left_foot', 'right_foot'), ('right_foot', 'left_foot')):
        both = merge_skeletons(skeleton('head', foot), skeleton('head', foot, other), 'f')
        assert both.parts == ('head', foot, other) and both.flip_order == (0, 2, 1)
    twice = skeleton('head', 'left_knee', 'LKnee')
    with pytest.raises(UserError, match='f: left_knee and LKnee are one name for two keypoints'):
        merge_skeletons(skeleton('head', 'tail'), twice, 'f')


def test_parts_that_another_set_labels():
    common = common_keypoints(COCO_SKELETON, runner())
    assert {COCO_SKELETON.keypoints[k]: RUNNER[other] for k, other in enumerate(common) if other >= 0} == {
        'right_ankle': 'r_ankle', 'right_knee': 'r_knee', 'right_hip': 'r_hip', 'left_hip': 'l_hip',
        'left_knee': 'l_knee', 'left_ankle': 'l_ankle'}
    parts = [name for name, known in zip(COCO_SKELETON.parts, labelled_parts(COCO_SKELETON, common)) if known]
    assert parts == ['RHip', 'RKnee', 'RAnkle', 'LHip', 'LKnee', 'LAnkle']  # no neck: that is made of shoulders


def test_merged_skeletons():
    """COCO's come first and stay as they are; its neck stands for the other's; new parts hang on by their limbs."""
    both = merge_skeletons(COCO_SKELETON, runner(), 'runners')
    assert both.parts == COCO_SKELETON.parts + ('head_top',)
    assert both.limbs == COCO_SKELETON.limbs + ((1, 18),) and both.flip_order == COCO_SKELETON.flip_order + (18,)
    assert both.keypoints[17:] == ('head_top',) and both.sources[18] == (17,)
    assert parse_skeleton(both.to_json(), 'itself') == both
    other = merge_skeletons(runner(), COCO_SKELETON, 'coco')
    assert other.parts[:8] == RUNNER and len(other.parts) == 8 + 11
    left, right = other.parts.index('left_eye'), other.parts.index('right_eye')
    assert other.flip_order[left] == right and other.flip_order[right] == left
    assert len(connected(other.parts, other.limbs)) == 1
    # The neck, through which COCO's limbs go, is a mean: shoulders stand for it where parts would lie apart.
    face = skeleton_of_category({'name': 'face', 'keypoints': ['nose', 'left_eye', 'right_eye'],
                                 'skeleton': [[1, 2], [1, 3]]}, 'f')
    grown = merge_skeletons(face, COCO_SKELETON, 'coco')
    assert len(grown.parts) == 17 and len(connected(grown.parts, grown.limbs)) == 1
    limbs = {frozenset(grown.parts[k] for k in limb) for limb in grown.limbs}
    assert {frozenset(names) for names in (('left_shoulder', 'left_hip'), ('right_shoulder', 'right_hip'))} <= limbs
    with pytest.raises(UserError, match='dogs has no keypoint of the same name as the other data'):
        merge_skeletons(COCO_SKELETON, skeleton_of_category(
            {'name': 'dog', 'keypoints': ['tail', 'snout'], 'skeleton': [[1, 2]]}, 'f'), 'dogs')


def test_annotations_for_another_skeleton(tmp_path):
    file, images = runners(tmp_path)
    annotations = read_annotations(file, images, skeleton=COCO_SKELETON)
    joints = dict(zip(COCO_SKELETON.parts, annotations.joints[0].tolist()))
    assert joints['RAnkle'] == [60, 70] and joints['LHip'] == [75, 88] and joints['LAnkle'] == [85, 100]
    assert np.isnan([joints[name] for name in ('Nose', 'Neck', 'LWrist')]).all()
    known = labelled_parts(COCO_SKELETON, common_keypoints(COCO_SKELETON, runner()))
    assert annotations.labelled_parts.tolist() == [known.tolist()]
    dataset = read_dataset(file, skeleton=COCO_SKELETON)
    assert dataset.keypoint_count == 6 and dataset.annotations[0]['num_keypoints'] == 6
    assert read_annotations(file, images).labelled_parts.all()  # of its own keypoints all


def test_nothing_in_common_is_told(tmp_path):
    file, _ = runners(tmp_path)
    tail = skeleton_of_category({'name': 'dog', 'keypoints': ['tail', 'snout'], 'skeleton': [[1, 2]]}, 'f')
    with pytest.raises(UserError) as error:
        read_dataset(file, skeleton=tail)
    assert str(error.value).startswith('%s labels r_ankle, ' % file) and 'tail, snout' in str(error.value)


def test_categories_with_different_keypoints(tmp_path):
    """--category=all has the keypoints of all; what one of an image's categories does not label is unknown there."""
    whole = annotation_files.person(1, category_id=2, image_id=2)
    file, images = runners(tmp_path, images=[annotation_files.image_entry(k, '%d.jpg' % k) for k in (1, 2, 3)])
    content = json.loads(open(file).read())
    content['categories'].append({'id': 2, 'name': 'person', 'keypoints': list(COCO_SKELETON.keypoints),
                                  'skeleton': [[a, a + 1] for a in range(1, 17)]})
    content['annotations'].append(dict(whole, id=2))
    with open(file, 'w') as written:
        json.dump(content, written)
    annotations = read_annotations(file, images, 'all')
    assert annotations.skeleton.parts[:8] == RUNNER and len(annotations.joints) == 2
    known = annotations.labelled_parts
    assert known[0].tolist() == [True] * 8 + [False] * 11 and known[2].all()
    assert known[1].tolist() == [True] * 6 + [False] * 2 + [True] * 11
    assert annotations.joints[1, annotations.skeleton.parts.index('nose')].tolist() == [50, 60]


def test_a_mirrored_sample_mirrors_what_is_labelled(sample_coco, tmp_path):
    """Right legs alone are labelled: in mirrored samples these are left ones."""
    file = sample_coco / 'annotations' / 'person_keypoints_train2017.json'
    content = json.loads(file.read_text())
    right = [k for k, name in enumerate(COCO_SKELETON.keypoints) if name.startswith('right') or name == 'nose']
    for annotation in content['annotations']:
        annotation['keypoints'] = np.reshape(annotation['keypoints'], (17, 3))[right].ravel().tolist()
    content['categories'][0].update(keypoints=[COCO_SKELETON.keypoints[k] for k in right],
                                    skeleton=[[1, k + 1] for k in range(1, len(right))])
    (tmp_path / 'right.json').write_text(json.dumps(content))
    dataset = PoseDataset(str(sample_coco), str(tmp_path / 'right.json'), 64, 64, 8, str(sample_coco / 'train2017'),
                          skeleton=COCO_SKELETON)
    flips = set()
    for seed in range(12):
        sample = dataset.training_sample(0, np.random.RandomState(seed))
        parts = {name for name, known in zip(COCO_SKELETON.parts, sample.labelled) if known}
        side = 'L' if sample.augmentation.flip else 'R'
        assert parts == {'Nose'} | {side + name for name in
                                    ('Shoulder', 'Elbow', 'Wrist', 'Hip', 'Knee', 'Ankle', 'Eye', 'Ear')}
        shown = sample.heatmap[..., :18].max(axis=(0, 1)) > 0.5
        assert not shown[~sample.labelled].any()
        flips.add(side)
    assert flips == {'L', 'R'}
