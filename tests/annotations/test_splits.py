"""Where a split's annotation file and images are; parts of a split by --valid-share."""
import os
import shutil
import unicodedata

import numpy as np
import pytest

from annotation_files import image_entry, person, write_split
from annotations.arrays import read_annotations
from annotations.coco import read_dataset, summary_of
from annotations.splits import find_split, image_finder, part_name, part_of
from pose_errors import UserError
from training.config import parse_flags

pytestmark = pytest.mark.usefixtures('own_cache')


def test_find_split(tmp_path):
    with pytest.raises(UserError, match='--datapath=.*nothing'):
        find_split(str(tmp_path / 'nothing'), 'train2017')
    with pytest.raises(UserError, match='no person_keypoints_train2017.json'):
        find_split(str(tmp_path), 'train2017')
    file, folder = write_split(tmp_path, [person(1)])
    assert find_split(str(tmp_path), 'train2017') == (file, folder)
    assert find_split(str(tmp_path / 'annotations'), 'train2017') == (file, folder)
    other = tmp_path / 'elsewhere' / 'images' / 'train2017'
    other.mkdir(parents=True)
    assert find_split(str(tmp_path), 'train2017', str(tmp_path / 'elsewhere')) == (file, str(other))
    with pytest.raises(UserError, match='--imgpath'):
        find_split(str(tmp_path), 'train2017', str(tmp_path / 'void'))


def test_an_annotation_file_is_looked_for_below_datapath_first(tmp_path, monkeypatch):
    for name in ('mine', 'other'):
        file, _ = write_split(tmp_path / name, [person(1)])
        os.rename(file, str(tmp_path / name / 'result.json'))
    monkeypatch.chdir(tmp_path / 'other')
    for datapath, name in (('../mine', 'mine'), ('.', 'other'), ('../mine/train2017', 'other')):
        assert find_split(datapath, 'result.json')[0] == str(tmp_path / name / 'result.json')


def test_names_with_other_spaces_and_joiners(tmp_path):
    """As macOS calls screenshots, and Persian writes."""
    names = 'shot 3.04.05\u202fPM.jpg', 'ab\u200cc.jpg', 'bad\u0007.jpg', 'half\ud800.jpg'
    images = [image_entry(number, name) for number, name in enumerate(names, 1)]
    file, folder = write_split(tmp_path, [person(number, number) for number in range(1, 5)], images, names=names[:2])
    assert [image['file_name'] for image in read_dataset(file).images] == list(names[:2])
    assert [name.decode() for name in read_annotations(file, folder).file_name] == list(names[:2])


def test_images_are_found_by_names_of_other_systems(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, 'Jos\u00e9.jpg') for form in ('NFC', 'NFD'))
    for name in ('a.jpg', 'sub/b.jpg', decomposed, 'two words.jpg', 'C.jpg', 'c.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, found in (('a.jpg', 'a.jpg'), ('C:\\photos\\a.jpg', 'a.jpg'), ('/media/disk/a.jpg', 'a.jpg'),
                        ('images\\sub\\b.jpg', 'sub/b.jpg'), ('./sub/b.jpg', './sub/b.jpg'), (composed, decomposed),
                        ('../x/' + composed, decomposed), ('A.JPG', 'a.jpg'), ('x/sub/B.JPG', 'sub/b.jpg'),
                        ('upload/two%20words.jpg', 'two words.jpg'), ('/x/B.JPG', None), ('c.JPG', None),
                        ('b.jpg', None), ('sub', None), ('', None)):
        assert image_finder(str(tmp_path))(name) == found, name


def test_parts_are_the_whole(tmp_path):
    images = [image_entry(number, '%04d.jpg' % number) for number in range(1, 201)]
    write_split(tmp_path, [person(number, number) for number in range(1, 201)], images)
    parts = []
    for part in ('train', 'valid'):
        file, folder = find_split(str(tmp_path), part_name('train2017', part, 0.25))
        found = read_annotations(file, folder)
        np.testing.assert_array_equal(found.image_id, read_annotations(file, folder).image_id)  # from the cache
        dataset = read_dataset(file, image_folder=folder)
        assert [image['id'] for image in dataset.images] == found.image_id.tolist() and summary_of(dataset) == ''
        assert len(dataset.annotations) == len(found.sample_image) == len(found.image_id)
        parts.append(set(found.image_id.tolist()))
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 200 and 30 < len(parts[1]) < 70
    assert min(parts[1]) == 4  # as it was on every machine before


def test_copies_of_an_image_are_in_one_part():
    _, is_in = part_of('train2017:valid=0.5')
    names = ['a/x_jpg.rf.%032x.jpg' % number for number in range(40)]
    assert len({is_in(name) for name in names}) == 1
    assert {is_in('C:\\photos\\%d.jpg' % number) for number in range(40)} == {False, True}
    assert [is_in('C:\\photos\\%d.jpg' % number) for number in range(40)] == [
        is_in('%d.jpg' % number) for number in range(40)]
    assert part_of('train2017') == ('train2017', None) and part_name('a', 'train', None) == 'a'


def test_a_part_without_people(tmp_path):
    write_split(tmp_path, [person(1)])
    lines = []
    for part in ('train', 'valid'):
        try:
            read_annotations(*find_split(str(tmp_path), part_name('train2017', part, 0.5)))
        except UserError as error:
            lines.append(str(error))
    line, = lines
    assert 'person_keypoints_train2017.json:' in line and 'no person' in line


def test_the_flag_names_both_parts(monkeypatch):
    monkeypatch.setattr('sys.argv', ['train.py', '--valid-share=0.1', '--train-split=dancers.json'])
    flags = parse_flags()
    assert (flags.train_split, flags.valid_split) == ('dancers.json:train=0.1', 'dancers.json:valid=0.1')
    monkeypatch.setattr('sys.argv', ['train.py', '--valid-share=1'])
    with pytest.raises(UserError, match='0.001 to 0.999'):
        parse_flags()


def test_folders_that_all_have_the_images_are_not_guessed(tmp_path):
    """As colour and depth; the folder that is named after the split would be taken."""
    file, folder = write_split(tmp_path, [person(1)])
    for name in ('depth', 'rgb'):
        shutil.copytree(folder, str(tmp_path / name))
    assert find_split(str(tmp_path), 'train2017')[1] == folder
    shutil.rmtree(folder)
    with pytest.raises(UserError, match='may be in any of .*/depth, .*/rgb; give the right one with --imgpath'):
        find_split(str(tmp_path), 'train2017')
    assert find_split(str(tmp_path), 'train2017', str(tmp_path / 'rgb'))[1] == str(tmp_path / 'rgb')
