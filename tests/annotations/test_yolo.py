"""YOLO-pose data sets in the shapes of Ultralytics, Roboflow and CVAT give the same arrays as COCO's files do."""
import json
import os

import cv2
import numpy as np
import pytest
import yaml

from annotations.arrays import Annotations, ignored_regions, read_annotations
from annotations.coco import as_pycocotools, read_dataset, summary_of
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from conftest import assert_user_error, run_command, run_well
from pose_errors import UserError

pytestmark = pytest.mark.usefixtures('own_cache')
# head, left and right ear, tail, of an image of 200x100
DOG = '0 0.5 0.5 0.4 0.6  0.5 0.3 2  0.6 0.25 1  0.4 0.25 2  0.5 0.75 2\n'
DOGS = {'path': '.', 'train': 'images/train', 'val': 'images/val', 'names': {0: 'dog'}, 'kpt_shape': [4, 3],
        'flip_idx': [0, 2, 1, 3]}


def write_config(folder, config, name='data.yaml'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return str(folder / name)


def write_image(path, labels=None, size=(200, 100)):
    """An image and its labels, where Ultralytics looks for these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(size[::-1] + (3,), np.uint8))
    if labels is not None:
        label_file = path.parent.parent.parent / 'labels' / path.parent.name / (path.stem + '.txt')
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text(labels)


def dogs(folder, labels=DOG, **config):
    """A data set of one image for each split, with data.yaml changed; its path."""
    for split in ('train', 'val'):
        write_image(folder / 'images' / split / 'a.png', labels)
    return write_config(folder, {key: value for key, value in dict(DOGS, **config).items() if value is not None})


def convert(coco_folder, split, images, labels):
    """COCO's annotations as YOLO-pose text; returns the COCO file of what that text can say: boxes for outlines."""
    name = 'person_keypoints_%s.json' % split
    content = json.loads((coco_folder / 'annotations' / name).read_text())
    content['annotations'] = [entry for entry in content['annotations'] if not entry['iscrowd']]
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for image in content['images']:
        os.symlink(str(coco_folder / split / image['file_name']), str(images / image['file_name']))
        sides, lines = np.array([image['width'], image['height']]), []
        for entry in content['annotations']:
            if entry['image_id'] == image['id']:
                x, y, width, height = entry['bbox']
                box = np.array([x + width / 2, y + height / 2, width, height]) / np.tile(sides, 2)
                points = np.array(entry['keypoints'], np.float64).reshape(-1, 3) / (list(sides) + [1])
                entry['area'], entry['segmentation'] = width * height, [] if entry['num_keypoints'] else [
                    [x, y, x + width, y, x + width, y + height, x, y + height]]
                lines.append(' '.join(['0'] + ['%.7g' % value for value in box.tolist() + points.ravel().tolist()]))
        if lines:
            (labels / (os.path.splitext(image['file_name'])[0] + '.txt')).write_text('\n'.join(lines) + '\n')
    (coco_folder / 'boxes').mkdir(exist_ok=True)
    (coco_folder / 'boxes' / name).write_text(json.dumps(content))
    return read_annotations(str(coco_folder / 'boxes' / name), str(coco_folder / split))


@pytest.mark.parametrize('layout', ['ultralytics', 'roboflow', 'list'])
def test_the_same_arrays_as_from_coco(layout, sample_coco, tmp_path):
    images, labels = (tmp_path / 'set' / path for path in {
        'roboflow': ('valid/images', 'valid/labels')}.get(layout, ('images/val', 'labels/val')))
    expected = convert(sample_coco, 'val2017', images, labels)
    config = {'train': '../train/images', 'val': {'roboflow': '../valid/images', 'list': 'val.txt'}.get(
        layout, ['images/val']), 'nc': 1, 'names': ['person'], 'kpt_shape': [17, 3]}
    if layout == 'list':  # CVAT's starts from a folder that is not there
        names = ['data/images/val/%s\n' % path.name for path in images.iterdir()]
        (tmp_path / 'set' / 'val.txt').write_text(''.join(names))
    write_config(tmp_path / 'set', config)
    file, folder = find_split(str(tmp_path / 'set'), 'val2017')
    assert file == str(tmp_path / 'set' / 'data.yaml') + '#val' and folder == str(tmp_path / 'set')
    for found in (read_annotations(file, folder), read_annotations(file, folder)):  # the second is from the cache
        for name in Annotations._fields:
            theirs, ours = getattr(expected, name), getattr(found, name)
            if name == 'file_name':
                theirs, ours = ([os.path.basename(name) for name in names.tolist()] for names in (theirs, ours))
            if name == 'skeleton':
                assert ours == theirs == COCO_SKELETON
            elif name == 'numbers':
                np.testing.assert_allclose(ours.view(np.float32), theirs.view(np.float32), atol=2e-3)
            elif name in ('joints', 'bbox'):
                np.testing.assert_allclose(ours, theirs, atol=2e-3)
            else:
                np.testing.assert_array_equal(ours, theirs)
    coco = as_pycocotools(read_dataset(file, image_folder=folder))
    assert sorted(coco.getImgIds()) == expected.image_id.tolist()


def test_own_keypoints(tmp_path, caplog):
    file, folder = find_split(dogs(tmp_path), 'train')
    annotations = read_annotations(file, folder)
    skeleton = annotations.skeleton
    assert (skeleton.name, skeleton.keypoints[0]) == ('dog', 'keypoint_1')
    assert skeleton.flip_order == (0, 2, 1, 3) and skeleton.limbs == ((0, 1), (1, 2), (2, 3))
    assert 'derived 3 limbs, a chain of the keypoints' in caplog.text
    np.testing.assert_allclose(annotations.joints, [[[100, 30], [120, 25], [80, 25], [100, 75]]], atol=1e-3)
    np.testing.assert_allclose(annotations.bbox, [[60, 20, 80, 60]], atol=1e-3)
    names = ['head', 'left_ear', 'right_ear', 'tail']
    for given in (names, [names], {0: names}):
        config = dogs(tmp_path / 'named', kpt_names=given, skeleton=[[1, 2], [1, 3], [1, 4]])
        dataset = read_dataset(*find_split(config, 'val')[:1])
        assert dataset.skeleton.keypoints == tuple(names) and dataset.skeleton.limbs == ((0, 1), (0, 2), (0, 3))
        assert summary_of(dataset) == ''


def test_seventeen_other_keypoints_are_not_cocos(tmp_path):
    line = '0 .5 .5 .5 .5 ' + ' .5 .5 2' * 17
    config = dogs(tmp_path, line, kpt_shape=[17, 3], flip_idx=[1, 0] + list(range(2, 17)))
    assert read_dataset(find_split(config, 'train')[0]).skeleton.keypoints[16] == 'keypoint_17'
    config = dogs(tmp_path, line, kpt_shape=[17, 3], flip_idx=None)
    assert read_dataset(find_split(config, 'train')[0]).skeleton == COCO_SKELETON


def test_points_without_v_are_absent_at_0_0(tmp_path):
    config = dogs(tmp_path, '0 .5 .5 .4 .6 .5 .3 0 0 .4 .25 0.5 0.75\n', kpt_shape=[4, 2])
    annotation, = read_dataset(find_split(config, 'train')[0]).annotations
    np.testing.assert_allclose(annotation['keypoints'], [100, 30, 2, 0, 0, 0, 80, 25, 2, 100, 75, 2])


def test_labels_that_change_are_read_again(tmp_path):
    file, folder = find_split(dogs(tmp_path), 'train')
    assert len(read_annotations(file, folder).joints) == 1
    (tmp_path / 'labels' / 'train' / 'a.txt').write_text(DOG + DOG.replace('2', '1'))
    assert len(read_annotations(file, folder).joints) == 2


def test_bad_lines_are_counted_and_their_objects_masked(tmp_path):
    labels = [DOG] * 6 + [DOG[:-3] + '\n', DOG.replace('0.75', '1.75'), '7' + DOG[1:], 'dog\n', '\n', '0 .1 .1 .1 .1\n']
    config = dogs(tmp_path, ''.join(labels))
    write_image(tmp_path / 'images' / 'train' / 'b.png')
    (tmp_path / 'images' / 'train' / 'c.heic').write_text('no image that is read here')
    (tmp_path / 'labels' / 'train' / 'd.txt').write_text(DOG)
    file, folder = find_split(config, 'train')
    dataset = read_dataset(file, image_folder=folder)
    line, where = summary_of(dataset), tmp_path / 'labels' / 'train'
    for said in ('1 images of nobody', '1 images that cannot be read (as %s)' % (tmp_path / 'images/train/c.heic'),
                 '1 label files without an image (in %s)' % where,
                 '2 label lines of other than 17 values (as %s/a.txt, line 7)' % where,
                 '1 label lines with keypoints that are no shares (as %s/a.txt, line 8)' % where,
                 '1 label lines without a class of "names" and a box of shares (as %s/a.txt, line 9)' % where,
                 '1 label lines with other things than numbers (as %s/a.txt, line 10)' % where):
        assert said in line
    annotations = read_annotations(file, folder)
    polygons, _, labelled = ignored_regions(annotations, 0)
    assert len(polygons) == 3 and len(labelled) == len(annotations.joints) == 6


@pytest.mark.parametrize('change, mentions', [
    ({'kpt_shape': None}, ['data.yaml has no kpt_shape', 'write "kpt_shape: [K, 3]"']),
    ({'kpt_shape': [4, 4]}, ['data.yaml has no kpt_shape']), ({'kpt_shape': 4}, ['data.yaml has no kpt_shape']),
    ({'kpt_shape': [5, 3]}, ['1 of 1 label lines are bad, most are of other than 20 values', 'a.txt, line 1', 'mend']),
    ({'names': None}, ['data.yaml has no names']), ({'names': 'dog'}, ['data.yaml has no names']),
    ({'kpt_names': ['a', 'b']}, ['kpt_names and kpt_shape differ']),
    ({'flip_idx': [0, 1]}, ['"flip_idx"', 'data.yaml']), ({'skeleton': [[0, 1]]}, ['something else in "skeleton"']),
    ({'train': None}, ['data.yaml has no "train:"']),
    ({'train': 'pictures'}, ['"train: pictures" is no folder', 'mend']),
    ({'train': [7]}, ['is no folder of images']), ({'train': '\0'}, ['is no folder of images']),
    ({'train': 'labels/train'}, ['no images in']),
    ({'train': 'bare/images'}, ['none of its 1 images has labels', 'beside']),
])
def test_bad_configs(change, mentions, tmp_path):
    config = dogs(tmp_path, **change)
    write_image(tmp_path / 'bare' / 'images' / 'a.png')
    with pytest.raises(UserError) as error:
        read_dataset(find_split(config, 'train2017')[0])
    for mention in mentions:
        assert mention in str(error.value), error.value


@pytest.mark.parametrize('text', [
    'a: [', '[' * 5000, '!!python/object/apply:os.system ["echo"]', 'a: &a [1]\nb: [*a, *a]', '- 1', '', '\x00',
    '{a: b}: c', 'a: !!timestamp x', 'a: !!bool x', 'a: !!int ""', 'a: ' + '1:' * 60000 + '1',
    '!' * (1 << 16), 'x: 2000-99-99', '#' * (1 << 19), 'a: &a {x: 1}\nb: {<<: [*a, *a]}'],
    ids=lambda text: repr(text[:12]))
def test_files_that_are_no_data_yaml(text, tmp_path):
    with pytest.raises(UserError, match='not valid YAML|no kpt_shape|cannot read') as error:
        find_split(write_config(tmp_path, text), 'train')
    assert len(str(error.value)) < 600


def test_where_data_yaml_is_looked_for(tmp_path):
    with pytest.raises(UserError, match='no person_keypoints_train2017.json in .*, and no data.yaml'):
        find_split(str(tmp_path), 'train2017')
    with pytest.raises(UserError, match='cannot read .*none.yaml'):
        find_split(str(tmp_path / 'none.yaml'), 'train')
    config = dogs(tmp_path)
    os.rename(config, str(tmp_path / 'dogs.yml'))
    assert find_split(str(tmp_path), 'train')[0] == str(tmp_path / 'dogs.yml#train')
    away = write_config(tmp_path / 'away', dict(DOGS, path='/not/here'))
    with pytest.raises(UserError, match='--imgpath'):
        find_split(away, 'train')
    file, folder = find_split(away, 'train', str(tmp_path))
    assert folder == str(tmp_path) and len(read_dataset(file, image_folder=folder).annotations) == 1
    outside = write_config(tmp_path / 'away', dict(DOGS, train=str(tmp_path / 'images' / 'train')))
    image, = read_dataset(*find_split(outside, 'train')[:1]).images
    assert image['file_name'] == str(tmp_path / 'images' / 'train' / 'a.png')


def test_categories_are_those_that_have_keypoints(tmp_path):
    """CVAT lists all labels of a project; kpt_shape has the most keypoints of any."""
    config = dogs(tmp_path, DOG.replace('0 ', '1 ', 1), names=['box', 'dog'])
    assert read_dataset(find_split(config, 'train')[0]).skeleton.name == 'dog'
    with pytest.raises(UserError, match='the category box of .* has no keypoints'):
        read_dataset(find_split(config, 'train')[0], 'box')
    (tmp_path / 'labels' / 'train' / 'a.txt').write_text(DOG + DOG.replace('0 ', '1 ', 1))
    with pytest.raises(UserError, match='--category=NAME of box, dog'):
        read_dataset(find_split(config, 'train')[0])
    dataset = read_dataset(find_split(config, 'train')[0], 'dog')
    assert dataset.category_id == 2 and [entry['num_keypoints'] for entry in dataset.annotations] == [0, 4]


def test_names_in_a_list_lead_nowhere_bad(tmp_path):
    write_config(tmp_path, dict(DOGS, train='train.txt'))
    write_image(tmp_path / 'images' / 'train' / 'a.png', DOG)
    for name in ('\0', '/' * (1 << 20), 'a/' * (1 << 20), 'no.png', ''):
        (tmp_path / 'train.txt').write_text(name + '\n')
        with pytest.raises(UserError, match='no images in .*train.txt'):
            read_dataset(find_split(str(tmp_path), 'train')[0])
    (tmp_path / 'train.txt').write_text('C:\\photos\\images\\train\\a.png\r\nno.png\r\n')
    dataset = read_dataset(find_split(str(tmp_path), 'train')[0])
    assert len(dataset.images) == 1 and '1 images of %s' % (tmp_path / 'train.txt') in summary_of(dataset)


@pytest.mark.slow
def test_samples_are_drawn(sample_coco, tmp_path):
    convert(sample_coco, 'val2017', tmp_path / 'images' / 'train', tmp_path / 'labels' / 'train')
    config = write_config(tmp_path, {'train': 'images/train', 'names': ['person'], 'kpt_shape': [17, 3]})
    result = run_well('pose_dataset.py', '--datapath=' + config, '--output-dir=%s' % (tmp_path / 'out'), '--count=2')
    assert '2 samples' in result.stdout and (tmp_path / 'out' / 'contact_sheet.png').exists()
    assert_user_error(run_command('pose_dataset.py', '--datapath=' + config, '--output-dir=out', '--split=val2017'),
                      'data.yaml has no "val:"')
