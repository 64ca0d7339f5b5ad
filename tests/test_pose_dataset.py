"""Samples from real JPEG files: geometry end to end, bad samples, passes, the DataFlow and the command that draws."""
import colorsys
import json
import os
import shutil
import sys

import cv2
import numpy as np
import pytest

import pose_cli
import pose_dataset
from annotations.skeleton import COCO_SKELETON
from conftest import assert_user_error, run_command, run_well
from image_folders import grey_image, keypoints, many_images, write_coco
from pose_dataset import BadSampleCounter, PoseDataset, check_input_size, get_dataflow, training_samples, \
    validation_samples
from pose_draw import draw_sample
from pose_errors import UserError

# The COCO index of each of the 18 parts, as the COCO-18 order has them; the neck is the middle of the shoulders.
COCO_INDEX = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
COLOURS = np.array([[255 * c for c in colorsys.hsv_to_rgb(k / 18, 1, 1 if k % 2 else 0.75)] for k in range(18)])


@pytest.fixture(scope='module')
def dots(tmp_path_factory):
    """One person whose 18 joints are dots of 18 colours, far from each other."""
    rng = np.random.RandomState(3)
    places = np.array([(x, y) for y in range(110, 380, 52) for x in range(200, 440, 62)])
    points = dict(zip([k for k in range(17) if k not in (5, 6)], rng.permutation(places[4:])[:15].tolist()))
    points[5], points[6] = places[0].tolist(), (places[2] + (0, 8)).tolist()  # the neck is between them
    image = grey_image()
    for part, index in enumerate(COCO_INDEX):
        x, y = points[index] if index is not None else (np.array(points[5]) + points[6]) / 2
        cv2.circle(image, (int(x * 16), int(y * 16)), 11 * 16, COLOURS[part].tolist(), -1, cv2.LINE_AA, 4)
    values = [value for k in range(17) for value in (*points[k], 2)]
    return write_coco(tmp_path_factory.mktemp('dots'), {'dots.jpg': image}, [('dots.jpg', values, [180, 90, 270, 300])])


def find_dot(image, part):
    """The centre of the dot in a part's colour, or None; only the strongest blob is looked at."""
    blob = cv2.inRange(image, COLOURS[part] - 35, COLOURS[part] + 35)
    count, _, stats, centres = cv2.connectedComponentsWithStats(blob)
    if count < 2:
        return None
    largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return centres[largest] if stats[largest, cv2.CC_STAT_AREA] >= 5 else None


@pytest.mark.parametrize('width, height, stride', [(368, 368, 8), (240, 176, 4)])
def test_every_dot_is_where_its_joint_says(dots, width, height, stride):
    dataset = PoseDataset(str(dots), 'train2017', width, height, stride)
    rng = np.random.RandomState(0)
    found, flips = 0, 0
    for _ in range(40):
        sample = dataset.training_sample(0, rng)
        radius = 11 * 0.6 * height / 300 * sample.augmentation.scale
        flips += sample.augmentation.flip
        for part, joint in enumerate(sample.joints[0]):
            if (joint < radius + 1).any() or (joint > (width - radius - 2, height - radius - 2)).any():
                continue
            # What is the right elbow in a mirrored picture was painted as the left one.
            painted = list(COCO_SKELETON.flip_order)[part] if sample.augmentation.flip else part
            centre = find_dot(sample.image, painted)
            assert centre is not None, (part, joint, sample.augmentation)
            assert np.linalg.norm(centre - joint) <= 1.5, (part, joint, centre, sample.augmentation)
            x, y = np.round((joint - (stride / 2 - 0.5)) / stride).astype(int)
            if 0 <= x < width // stride and 0 <= y < height // stride:
                assert sample.heatmap[..., part].max() == sample.heatmap[y, x, part] > 0.6
            found += 1
    assert found > 350 and 10 < flips < 30


def test_pafs_point_from_joint_to_joint_also_when_flipped(dots):
    dataset, rng, checked = PoseDataset(str(dots), 'train2017', 368, 368, 8), np.random.RandomState(1), 0
    for _ in range(20):
        sample = dataset.training_sample(0, rng)
        for limb, (first, second) in enumerate(COCO_SKELETON.limbs):
            start, end = sample.joints[0, first], sample.joints[0, second]
            x, y = np.round((start + end) / 2 / 8).astype(int)
            if 0 <= x < 46 and 0 <= y < 46:
                direction = (end - start) / np.linalg.norm(end - start)
                np.testing.assert_allclose(sample.paf[y, x, 2 * limb:2 * limb + 2], direction, atol=1e-5)
                checked += 1
    assert checked > 200


def test_validation_fits_the_whole_image(dots):
    shutil.copytree(str(dots / 'train2017'), str(dots / 'val2017'))
    shutil.copy(str(dots / 'annotations/person_keypoints_train2017.json'),
                str(dots / 'annotations/person_keypoints_val2017.json'))
    dataset = PoseDataset(str(dots), 'val2017', 368, 368, 8)
    sample = dataset.validation_sample(0)
    again = dataset.validation_sample(0)
    assert all(np.array_equal(a, b) for a, b in zip(sample[:4], again[:4])) and sample.augmentation is None
    assert (sample.image[:40] == 128).all() and (sample.image[60:300, :10] < 100).all()  # centred, grey above
    for part, joint in enumerate(sample.joints[0]):
        assert np.linalg.norm(find_dot(sample.image, part) - joint) <= 1.5


def test_the_mask_moves_with_the_image(tmp_path):
    """A bright region that is also a segmentation: mask and picture agree to a cell, whatever the augmentation."""
    image = grey_image(20)
    polygon = [320, 60, 560, 140, 500, 420, 300, 300]
    cv2.fillPoly(image, [np.array(polygon).reshape(-1, 2)], (255, 255, 255))
    write_coco(tmp_path, {'a.jpg': image}, [('a.jpg', keypoints(), [230, 80, 150, 300])])
    file = tmp_path / 'annotations' / 'person_keypoints_train2017.json'
    contents = json.loads(file.read_text())
    contents['annotations'].append({'id': 9, 'image_id': 1, 'iscrowd': 0, 'num_keypoints': 0, 'category_id': 1,
                                    'segmentation': [polygon]})
    # Without an outline the whole box of the labelled person would be labelled.
    contents['annotations'][0]['segmentation'] = [[230, 80, 240, 80, 240, 90]]
    file.write_text(json.dumps(contents))
    dataset = PoseDataset(str(tmp_path), 'train2017', 256, 256, 8)
    rng = np.random.RandomState(0)
    for _ in range(25):
        sample = dataset.training_sample(0, rng)
        white, not_dark = (cv2.inRange(sample.image[:, :, 0], least, 255) // 255 for least in (192, 64))
        cell = np.ones((17, 17), np.uint8)  # a cell to each side
        surely_in, surely_out = cv2.erode(white, cell), 1 - cv2.dilate(not_dark, cell)
        mask = sample.mask[:, :, 0].repeat(8, axis=0).repeat(8, axis=1)
        assert (mask[surely_in == 1] == 0).all() and (mask[surely_out == 1] == 1).all()
    assert 0.1 < sample.mask.mean() < 1


# --- passes over samples


def test_bad_samples_are_skipped_in_both_kinds_of_passes(tmp_path, caplog):
    """In validation any number of threads makes the same samples in the same order."""
    dataset = PoseDataset(str(many_images(tmp_path, 18, 2)), 'train2017', 64, 64, 8)
    counter, rng = BadSampleCounter(len(dataset)), np.random.RandomState(0)
    names = [[sample.name for sample in training_samples(dataset, rng, counter)] for _ in range(2)]
    assert names[0] != names[1] and all(sorted(epoch) == ['%03d.jpg' % i for i in range(18)] for epoch in names)
    assert (counter.bad, counter.attempts) == (4, 40)
    assert sum('skipped' in record.getMessage() for record in caplog.records) == 2  # one counter names each file once
    caplog.clear()
    alone, together = (list(validation_samples(dataset, threads)) for threads in (1, 4))
    assert sum('skipped bad sample' in record.getMessage() for record in caplog.records) == 4
    for samples in (alone, together):
        assert [sample.name for sample in samples] == ['%03d.jpg' % i for i in range(18)]
        assert all(sample.augmentation is None for sample in samples)
    for one, other in zip(alone, together):
        assert all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4]))


def test_the_same_seed_gives_the_same_samples(sample_coco):
    dataset = PoseDataset(str(sample_coco), 'train2017', 96, 64, 8)
    one, same, other = (list(training_samples(dataset, np.random.RandomState(seed))) for seed in (1, 1, 2))
    assert len(one) == len(dataset) > 10
    assert all(a.name == b.name and a.augmentation == b.augmentation for a, b in zip(one, same))
    assert [sample.augmentation for sample in one] != [sample.augmentation for sample in other]


def test_counter():
    counter = BadSampleCounter(1000)
    for i in range(20):
        counter.add_good(4)
        counter.add_bad('a%d' % i, 'is bad')
    with pytest.raises(UserError, match=r'21 of 101 samples were bad \(last: b is bad\)'):
        counter.add_bad('b', 'is bad')
    counter = BadSampleCounter(1000)
    for _ in range(99):
        counter.add_bad('a', 'is bad')
    with pytest.raises(UserError, match='100 of 100'):
        counter.add_bad('a', 'is bad')


def test_input_size_must_fit_the_stride():
    check_input_size(368, 432, 8)
    with pytest.raises(UserError, match='--input-height=100 is not a multiple of the output stride 8; take 96 or 104'):
        check_input_size(368, 100, 8)
    with pytest.raises(UserError, match='^--input-size=368x100: 100 is not a multiple of .* stride 8; take 96 or 104$'):
        check_input_size(368, 100, 8, '--input-size')


def test_negatives_are_their_share_of_the_samples_from_images_without_people(tmp_path):
    """12 people; the images without are of other greys, one is not in the folder."""
    images = {'%02d.jpg' % k: grey_image(60) for k in range(12)}
    people = [(name, keypoints(), [230, 80, 150, 300]) for name in images]
    images.update(('empty%d.jpg' % k, grey_image(200 + 10 * k)) for k in range(4))
    folder = write_coco(tmp_path, images, people)
    (folder / 'train2017' / 'empty3.jpg').unlink()
    assert len(PoseDataset(str(folder), 'train2017', 64, 64, 8)) == 12
    dataset = PoseDataset(str(folder), 'train2017', 64, 64, 8, negatives=0.25)
    assert len(dataset) == 16 and len(dataset.validation_images) == 12
    rng = np.random.RandomState(0)
    samples = [dataset.training_sample(index, rng) for index in list(range(16)) + 8 * [12, 13, 14, 15]]
    assert not any('empty' in sample.name for sample in samples[:12])
    negatives = samples[12:]
    assert {sample.name for sample in negatives} == {'empty0.jpg', 'empty1.jpg', 'empty2.jpg'}
    for sample in negatives:
        assert not sample.paf.any() and not sample.heatmap[..., :18].any() and (sample.heatmap[..., 18] == 1).all()
        assert (sample.mask == 1).all()
        assert (np.abs(sample.image.astype(int) - 200 - 10 * int(sample.name[5])) < 3).any()  # a part of that image
    (folder / 'train2017' / 'empty2.jpg').unlink()
    assert PoseDataset(str(folder), 'train2017', 64, 64, 8, negatives=0.25).digest != dataset.digest


def test_negatives_without_such_images_are_refused(dots):
    with pytest.raises(UserError, match='--negatives=0.5, but .*person_keypoints_train2017.json lists no image'):
        PoseDataset(str(dots), 'train2017', 64, 64, 8, negatives=0.5)


# --- as a DataFlow


@pytest.fixture
def one_image(tmp_path):
    return write_coco(tmp_path, {'a.jpg': grey_image()}, [('a.jpg', keypoints(), [230, 80, 150, 300])])


def test_dataflow_shapes_and_order(sample_coco):
    flow = get_dataflow(str(sample_coco), 'train2017', 96, 64, 8, True, seed=3)
    flow.reset_state()
    samples = list(flow)
    assert len(samples) == len(flow) > 10
    shapes = [(a.shape, a.dtype) for a in samples[0]]
    assert shapes == [((64, 96, 3), np.uint8), ((8, 12, 19), np.float32), ((8, 12, 38), np.float32),
                      ((8, 12, 1), np.float32)]
    flow.reset_state()
    assert all(np.array_equal(a, b) for one, other in zip(samples, flow) for a, b in zip(one, other))
    validation = get_dataflow(str(sample_coco), 'val2017', 96, 64, 8, False)
    validation.reset_state()
    assert len(list(validation)) == len(validation) <= 6


def test_copies_in_other_processes_do_not_repeat_a_seed(one_image):
    flow = get_dataflow(str(one_image), 'train2017', 64, 64, 8, True, seed=3)
    flow.reset_state()
    here = flow.rng.uniform(size=3).tolist()
    seen = []
    for _ in range(2):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            flow.reset_state()
            os.write(write, json.dumps(flow.rng.uniform(size=3).tolist()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        seen.append(json.loads(os.read(read, 1000).decode()))
    assert here != seen[0] != seen[1] != here


# --- the command


@pytest.mark.slow
def test_command_draws_a_contact_sheet(sample_coco, tmp_path):
    run_well('pose_dataset.py', '--datapath=%s' % sample_coco, '--output-dir=%s' % tmp_path, '--count=3',
             '--input-width=160', '--input-height=128')
    assert sorted(os.listdir(str(tmp_path))) == ['contact_sheet.png', 'sample_00.png', 'sample_01.png', 'sample_02.png']
    sheet = cv2.imread(str(tmp_path / 'contact_sheet.png'))
    single = cv2.imread(str(tmp_path / 'sample_01.png'))
    assert sheet.shape[0] > 3 * 128 and sheet.shape[1] == single.shape[1] > 4 * 160
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.slow
def test_command_stops_when_too_many_images_are_bad(tmp_path):
    folder = many_images(tmp_path, 6, 6)
    result = run_command('pose_dataset.py', '--datapath=%s' % folder, '--output-dir=%s' % (tmp_path / 'out'),
                         '--count=40', '--input-width=64', '--input-height=64')
    assert_user_error(result, 'samples were bad', 'truncated JPEG', 'repair or remove')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('flags, mentions', [
    ([], ['--datapath=DIR', '$COCO_DIR']),
    (['--datapath=nowhere'], ['--datapath=nowhere', 'not a folder']), (['--datapath={}/train2017'], ['annotations']),
    (['--datapath={}', '--input-width=100'], ['--input-width=100', 'take 96 or 104']),
    (['--datapath={}', '--input-width=1000000'], ['--input-width=1000000', 'more than 32766']),
    (['--datapath={}', '--input-width=256', '--input-height=256', '--stride=256'], ['--stride', 'from 1 to 255']),
    (['--datapath={}', '--count=0'], ['--count']),
    (['--datapath={}', '--split=val2017'], ['person_keypoints_val2017.json']),
    (['--datapath={}', '--imgpath=nowhere'], ['--imgpath'])])
def test_wrong_flags_are_one_line(flags, mentions, one_image, tmp_path, monkeypatch, capsys):
    arguments = [flag.format(one_image) for flag in flags] + ['--output-dir=%s' % (tmp_path / 'out')]
    monkeypatch.setattr(sys, 'argv', ['pose_dataset.py'] + arguments)
    monkeypatch.delenv('COCO_DIR', raising=False)
    with pytest.raises(SystemExit) as end:
        pose_cli.run(pose_dataset.main)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert end.value.code == 2 and len(errors) == 1 and all(mention in errors[0] for mention in mentions), errors
    assert not (tmp_path / 'out').exists()


def test_pictures_of_a_sample_are_of_one_size(one_image):
    sample = PoseDataset(str(one_image), 'train2017', 128, 96, 8).training_sample(0, np.random.RandomState(0))
    pictures = draw_sample(sample, COCO_SKELETON)
    assert len(pictures) == 4 and len({picture.shape for picture in pictures}) == 1
