"""The command that draws samples."""
import os
import sys

import cv2
import numpy as np
import pytest

import pose_cli
import pose_dataset
from conftest import assert_user_error, run_command
from image_folders import grey_image, keypoints, many_images, write_coco
from pose_dataset import PoseDataset
from annotations.skeleton import COCO_SKELETON
from pose_draw import draw_sample


@pytest.fixture
def one_image(tmp_path):
    return write_coco(tmp_path, {'a.jpg': grey_image()}, [('a.jpg', keypoints(), [230, 80, 150, 300])])


@pytest.mark.slow
def test_command_draws_a_contact_sheet(sample_coco, tmp_path):
    result = run_command('pose_dataset.py', '--datapath=%s' % sample_coco, '--output-dir=%s' % tmp_path, '--count=3',
                         '--input-width=160', '--input-height=128')
    assert result.returncode == 0, result.stderr
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


@pytest.mark.slow
def test_truncated_annotations_are_one_line(one_image, tmp_path):
    file = one_image / 'annotations' / 'person_keypoints_train2017.json'
    file.write_text(file.read_text()[:-20])
    result = run_command('pose_dataset.py', '--datapath=%s' % one_image, '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, 'person_keypoints_train2017.json is not valid JSON', 'download it again')
    assert not (tmp_path / 'out').exists()


def test_pictures_of_a_sample_are_of_one_size(one_image):
    sample = PoseDataset(str(one_image), 'train2017', 128, 96, 8).training_sample(0, np.random.RandomState(0))
    pictures = draw_sample(sample, COCO_SKELETON)
    assert len(pictures) == 4 and len({picture.shape for picture in pictures}) == 1
