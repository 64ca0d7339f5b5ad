"""The rendered data set: COCO's format, labels that agree with the picture, the same bytes for the same seed."""
import json
import os
import signal
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import make_sample_coco as sample
import sample_people as people
from conftest import ROOT, assert_user_error, run_command, run_well, wait_for

SCRIPT = ROOT / 'scripts' / 'make_sample_coco.py'
SPLITS = ['train2017', 'val2017']
RED, GREEN, BLUE = np.array([0., 0, 255]), np.array([0., 255, 0]), np.array([255., 0, 0])


def annotation_path(folder, split):
    return folder / 'annotations' / ('person_keypoints_%s.json' % split)


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def annotations():
    """[(image shape, annotation)] of forty pictures."""
    rendered = [sample.render_image(3, 0, index) for index in range(40)]
    return [(image.shape, annotation) for image, found in rendered for annotation in found]


def draw_alone(seed, height=400, **look):
    """One person alone in a picture: person, camera, image, labels, keypoints (17, 3)."""
    rng = np.random.RandomState(seed)
    person = people.sample_person(rng)
    person = person._replace(look=dict(person.look, **look))
    camera = sample.place_person(rng, person, height, 400, 440, False)
    person = people.snap_joints(person, camera)
    image, labels = np.full((440, 400, 3), 128, np.uint8), np.zeros((440, 400), np.uint16)
    parts = people.body_parts(person, camera)
    people.paint(image, parts)
    people.paint_labels(labels, parts, 1)
    keypoints = np.array(sample.label_joints(person, camera, labels, 1)).reshape(17, 3)
    return person, camera, image, labels, dict(zip(people.KEYPOINTS, keypoints))


@pytest.mark.parametrize('split', SPLITS)
def test_pycocotools_and_the_files_agree(sample_coco, split):
    coco = COCO(str(annotation_path(sample_coco, split)))
    assert len(coco.imgs) == {'train2017': 16, 'val2017': 6}[split]
    assert sorted(i['file_name'] for i in coco.imgs.values()) == sorted(os.listdir(str(sample_coco / split)))
    for image in coco.imgs.values():
        pixels = cv2.imread(str(sample_coco / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)
        assert max(pixels.shape) <= 640
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            assert coco.annToMask(annotation).shape == pixels.shape[:2]
    assert len({(i['width'], i['height']) for i in coco.imgs.values()}) > 2


def test_looks_like_cocos_own_file(sample_coco, coco_photos):
    ours, cocos = (json.loads(annotation_path(folder, 'train2017').read_text())
                   for folder in (sample_coco, coco_photos))
    assert ours.keys() == cocos.keys()
    assert ours['categories'] == cocos['categories']
    for table in ('images', 'annotations', 'licenses'):
        assert ours[table][0].keys() == cocos[table][0].keys()
    assert isinstance(ours['annotations'][0]['area'], float)
    assert {i['license'] for i in ours['images']} <= {entry['id'] for entry in ours['licenses']}


def test_annotations_are_consistent(annotations):
    for (height, width, _), a in annotations:
        keypoints = np.array(a['keypoints']).reshape(17, 3)
        x, y, v = keypoints.T
        assert set(v) <= {0, 1, 2} and a['num_keypoints'] == np.sum(v > 0)
        assert np.all(keypoints[v == 0] == 0)
        assert np.all((x >= 0) & (x < width) & (y >= 0) & (y < height))
        assert a['category_id'] == 1
        segmentation = a['segmentation']
        if a['iscrowd']:
            assert segmentation['size'] == [height, width] and sum(segmentation['counts']) == height * width
        else:
            assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation)
        rle = coco_mask.frPyObjects(segmentation, height, width)
        mask = coco_mask.decode(rle if a['iscrowd'] else coco_mask.merge(rle))
        assert a['area'] == mask.sum() > 0
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert a['bbox'] == box
        # What is in sight lies on the person.
        grown = cv2.dilate(mask, np.ones((3, 3), np.uint8))
        assert np.all(grown[y[v == 2], x[v == 2]])


def test_every_kind_of_annotation_occurs(annotations):
    found = [a for _, a in annotations]
    assert {a['iscrowd'] for a in found} == {0, 1}
    assert any(a['num_keypoints'] == 0 and not a['iscrowd'] for a in found)
    assert any(len(a['segmentation']) > 1 for a in found if not a['iscrowd'])
    labelled = [a for a in found if a['num_keypoints']]
    v = np.array([a['keypoints'][2::3] for a in labelled])
    assert np.all([(v == value).any(axis=0) for value in (1, 2)]), 'each joint is seen in sight and hidden'
    assert (v == 0).any()
    assert np.mean([a['area'] > 32 ** 2 for a in labelled]) > 0.9
    assert np.mean([a['area'] > 96 ** 2 for a in labelled]) > 0.3


def test_crowd_is_where_the_small_people_are():
    mask = np.zeros((5, 4), np.uint8)
    mask[1:3, 1:] = 1
    rle = sample.run_lengths(mask)
    assert rle['counts'] == [6, 2, 3, 2, 3, 2, 2]
    assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(rle, 5, 4)), mask)
    assert sample.run_lengths(np.ones((2, 2), np.uint8))['counts'] == [0, 4]


def test_polygons_follow_the_drawn_person():
    for seed in range(10):
        labels = draw_alone(seed)[3]
        mask = (labels > 0).astype(np.uint8)
        polygons = sample.mask_polygons(mask)
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
        outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
        filled = cv2.drawContours(np.zeros_like(mask), outline, -1, 1, -1)  # polygons have no holes
        assert np.sum(decoded != filled) < 0.01 * filled.sum()


def test_visible_joints_show_their_parts_colour():
    """Skin, shirt and trousers in pure colours: the pixel at a joint in sight has its limb's colour."""
    colours = {'wrist': GREEN, 'elbow': GREEN, 'knee': RED, 'ankle': RED, 'hip': RED + BLUE, 'shoulder': GREEN + BLUE}
    checked = dict.fromkeys(colours, 0)
    for seed in range(40):
        *_, image, labels, keypoints = draw_alone(
            seed, skin=GREEN, top=BLUE, bottom=RED, shoe=RED, trim=BLUE, sleeves='none', legwear='long',
            watch=False, backpack=False, haircut='short', hat=False)
        for name, (x, y, v) in keypoints.items():
            joint = name.rpartition('_')[2]
            if joint in colours and v == 2:
                pixel = image[y, x].astype(float)
                assert pixel[colours[joint] == 0].max() < 0.3 * pixel.max(), (seed, name, pixel)
                checked[joint] += 1
    assert min(checked.values()) > 30


def test_left_and_right_follow_the_viewing_direction():
    fronts = backs = 0
    for seed in range(80):
        person, _, image, _, keypoints = draw_alone(seed, skin=GREEN, hair=RED, haircut='short', hat=False, beard=False)
        to_viewer = person.torso[2, 2]
        across = person.points['left_shoulder'][0] - person.points['right_shoulder'][0]
        if to_viewer > 0.8:
            fronts += 1
            assert across > 0, 'seen from the front, the left shoulder is at the right'
        elif to_viewer < -0.8:
            backs += 1
            assert across < 0
        face = [keypoints[name][2] for name in ('nose', 'left_eye', 'right_eye')]
        if person.head[2, 2] < -0.6:
            assert face == [0, 0, 0]
        x, y, v = keypoints['nose']
        if v == 2:
            assert image[y, x, 1] > image[y, x, 2], 'the nose is drawn in skin, on the side of the face'
    assert fronts > 15 and backs > 5


def test_watch_is_on_the_left_wrist():
    seen = {'left': 0, 'right': 0}
    for seed in range(60):
        person, camera, image, labels, _ = draw_alone(seed, watch=True, skin=GREEN, sleeves='none')
        for side in ('left', 'right'):
            wrist, elbow = person.points[side + '_wrist'], person.points[side + '_elbow']
            x, y = np.rint(people.project(camera, wrist + 0.16 * (elbow - wrist))[0][0]).astype(int)
            around = labels[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2]
            if around.size and np.all(around == 64 + people.PARTS.index(side + '_forearm')):
                assert (image[y, x].max() < 60) == (side == 'left'), (seed, side)
                seen[side] += 1
    assert min(seen.values()) > 10


def test_joint_behind_another_body_is_labelled_hidden():
    hidden = 0
    for seed in range(10):
        person, camera, _, labels, alone = draw_alone(seed, height=250)
        other = people.sample_person(np.random.RandomState(100 + seed))
        people.paint_labels(labels, people.body_parts(other, camera), 2)
        behind = np.array(sample.label_joints(person, camera, labels, 1)).reshape(17, 3)
        for (x, y, v), before in zip(behind, alone.values()):
            covered = before[2] > 0 and labels[y, x] >> 6 == 2
            assert v == (1 if covered else before[2]) and (x, y) == tuple(before[:2])
            hidden += covered
    assert hidden > 20


def test_joint_outside_the_image_or_behind_furniture_is_not_labelled():
    person, camera, _, labels, alone = draw_alone(1)
    half = labels[:220]
    for (x, y, v), before in zip(np.array(sample.label_joints(person, camera, half, 1)).reshape(17, 3), alone.values()):
        assert (x, y, v) == (tuple(before) if before[1] < 220 else (0, 0, 0))
    labels[220:] = 64 * sample.OCCLUDER  # behind a table
    assert sample.label_joints(person, camera, labels, 1) == sample.label_joints(person, camera, half, 1)


def test_same_seed_same_bytes(tmp_path, sample_coco):
    def render(folder, *flags):
        run_well(SCRIPT, '--output-dir=%s' % folder, '--train=2', '--val=1', *flags)
        return all_bytes(folder)

    first = render(tmp_path / 'a')
    assert first == render(tmp_path / 'b')
    assert sorted(os.listdir(str(tmp_path / 'a'))) == ['annotations'] + SPLITS
    images = [content for name, content in first.items() if name.endswith('.jpg')]
    assert len(images) == 3 == len(set(images)), 'validation images are unseen in training'
    larger = all_bytes(sample_coco)
    assert all(larger[name] == content for name, content in first.items() if name.endswith('.jpg'))
    # Rendering again over earlier output replaces it.
    other = render(tmp_path / 'a', '--seed=1')
    assert other.keys() == first.keys() and all(other[name] != first[name] for name in first)
    (tmp_path / 'a' / '.unfinished').mkdir()
    assert render(tmp_path / 'a') == first
    (tmp_path / 'a' / 'train2017' / 'mine.jpg').write_bytes(b'mine')  # but nothing that it did not write
    assert_user_error(run_command(SCRIPT, '--output-dir=%s' % (tmp_path / 'a'), '--train=1', '--val=1'), 'train2017')
    assert (tmp_path / 'a' / 'train2017' / 'mine.jpg').exists()


def test_one_empty_split_is_fine(tmp_path):
    run_well(SCRIPT, '--output-dir=%s' % tmp_path, '--train=0', '--val=1')
    assert [len(COCO(str(annotation_path(tmp_path, split))).imgs) for split in SPLITS] == [0, 1]


@pytest.mark.parametrize('flags, mention', [([], '--output-dir')] + [(['--output-dir=new', *flags], mention) for (
    *flags, mention) in (('--train=0', '--val=0', '--train=0'), ('--train=-1', '-1'), ('--train=many', 'many'),
                         ('--seed=%d' % 2 ** 32, 'seed'), ('--trian=3', '--trian'))])
def test_bad_flags(tmp_path, flags, mention):
    assert_user_error(run_command(SCRIPT, *flags, cwd=str(tmp_path)), mention)
    assert list(tmp_path.iterdir()) == []


def test_refuses_folders_with_other_content(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for folder, mentions in ((tmp_path / 'file', ['file']), (tmp_path / 'file' / 'below', ['below']),
                             (tmp_path, [tmp_path, 'file'])):
        assert_user_error(run_command(SCRIPT, '--output-dir=%s' % folder), *mentions)
    real = tmp_path / 'real'
    for split in SPLITS:
        (real / split).mkdir(parents=True)
    (real / 'annotations').mkdir()
    foreign = {'info': {'description': 'COCO 2017 Dataset'}, 'images': []}
    annotation_path(real, 'train2017').write_text(json.dumps(foreign))
    assert_user_error(run_command(SCRIPT, '--output-dir=%s' % real), real, 'train2017')
    assert annotation_path(real, 'train2017').exists()


def test_interrupted_leaves_nothing_half_written(start, tmp_path):
    process = start(sys.executable, SCRIPT, '--output-dir=%s' % (tmp_path / 'out'), '--train=5000')
    images = tmp_path / 'out' / '.unfinished' / 'train2017'
    wait_for(lambda: images.exists() and len(os.listdir(str(images))) > 1, 'no image was rendered')
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and 'Traceback' not in process.log.read_text()
    assert os.listdir(str(tmp_path / 'out')) == []
