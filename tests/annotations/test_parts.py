"""--valid-share: one split in two parts, by the names of its images."""
import numpy as np
import pytest

from annotation_files import image_entry, person, write_split
from annotations.arrays import read_annotations
from annotations.coco import read_dataset, summary_of
from annotations.images import find_split, part_name, part_of
from pose_errors import UserError
from training.config import parse_flags

pytestmark = pytest.mark.usefixtures('own_cache')


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
