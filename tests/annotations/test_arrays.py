"""COCO annotations as arrays: values by hand, selection of main people, broken entries."""
import json
import os
import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from annotation_files import image_entry, keypoints, person, write_split
from annotations.arrays import ignored_regions, images_without_people, people_of, read_annotations, select_main_people
from annotations.coco import read_dataset
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from conftest import reference_data
from image_folders import jpeg, with_orientation
from pose_errors import UserError

ASIDE = {'bbox': [200, 50, 60, 80], 'keypoints': keypoints(210, 60)}

pytestmark = pytest.mark.usefixtures('own_cache')


def test_joints_by_hand():
    values = keypoints(x=100, y=200)
    values[3 * 9 + 2] = 0  # the left wrist is not labelled
    values[3 * 10 + 2] = 1  # hidden, but labelled
    joints = COCO_SKELETON.joints(values)[0]
    assert joints.dtype == np.float32
    assert tuple(joints[0]) == (100, 200)  # nose
    assert tuple(joints[1]) == (111, 216.5)  # neck: between (110, 215) and (112, 218)
    assert tuple(joints[2]) == (112, 218) and tuple(joints[5]) == (110, 215)  # right and left shoulder
    assert tuple(joints[4]) == (120, 230) and np.isnan(joints[7]).all()  # right and left wrist
    assert tuple(joints[16]) == (108, 212) and tuple(joints[15]) == (102, 203)  # right ear, left eye
    values[3 * 6 + 2] = 0  # without the right shoulder there is no neck
    assert np.isnan(COCO_SKELETON.joints(values)[0, [1, 2]]).all()


def test_main_people_by_hand():
    def chosen(*people):
        points, areas, boxes = zip(*people)
        return select_main_people(np.array(points), np.array(areas, float), np.array(boxes, float))

    large = (17, 9000, (0, 0, 60, 200))  # centre (30, 100); nobody nearer than 0.3 * 200 = 60 is a main person
    assert chosen(large, (17, 5000, (60, 60, 58, 80))) == [0]  # centre (89, 100): 59 away
    assert chosen(large, (17, 5000, (60, 60, 60, 80))) == [0, 1]  # centre (90, 100): 60 away
    assert chosen((17, 5000, (60, 60, 60, 80)), large) == [1, 0]  # the largest first
    assert chosen(large, (5, 1024, (200, 0, 40, 40)), (4, 5000, (200, 100, 40, 40)),
                  (17, 1023, (200, 150, 40, 40))) == [0, 1]
    # A person who is left out keeps nobody else away: 1 is near 0, 2 is near 1 only.
    assert chosen(large, (17, 8000, (30, 60, 80, 90)), (17, 7000, (95, 60, 80, 90))) == [0, 2]
    assert chosen((17, 9000, (0, 0, 0, 200)), (17, 9000, (0, 0, 60, 0))) == []


def test_arrays_by_hand(tmp_path):
    images = [image_entry(7, 'sub/b.jpg', 640, 480), image_entry(3, 'nobody.jpg', 100, 100), image_entry(1)]
    crowd = person(3, 7, iscrowd=1, num_keypoints=0,
                   segmentation={'size': [480, 640], 'counts': [480 * 10, 480, 480 * 629]})
    plain = person(4, 1, num_keypoints=0, segmentation=[[1, 2, 11, 2, 11, 22], [30, 30, 40, 30, 40, 40, 30, 40]])
    file, folder = write_split(tmp_path, [person(1, 1, **ASIDE), person(2, 7), crowd, plain,
                                          person(5, 1, keypoints=keypoints(5, 5, 6), num_keypoints=6,
                                                 segmentation=[[10, 20, 30, 20, 30, 60]])], images)
    a = read_annotations(file, folder)
    assert [name.decode() for name in a.file_name] == ['sub/b.jpg', 'nobody.jpg', 'a.jpg']
    assert list(zip(a.sample_image, a.sample_person)) == [(0, 0), (2, 1), (2, 2)]
    joints, boxes = people_of(a, 2)
    assert boxes.tolist() == [[200, 50, 60, 80], [40, 50, 60, 80]]
    np.testing.assert_array_equal(joints[1], COCO_SKELETON.joints(keypoints(5, 5, 6))[0])
    assert len(people_of(a, 1)[0]) == 0
    polygons, bitmaps, labelled = ignored_regions(a, 2)
    # The labelled people of an image with such regions count: inside their outlines, else their boxes.
    assert [outline.tolist() for outline in labelled] == [
        [[199.5, 49.5], [259.5, 49.5], [259.5, 129.5], [199.5, 129.5]], [[9.5, 19.5], [29.5, 19.5], [29.5, 59.5]]]
    assert bitmaps == [] and polygons[0].tolist() == [[0.5, 1.5], [10.5, 1.5], [10.5, 21.5]] and len(polygons[1]) == 4
    polygons, bitmaps, labelled = ignored_regions(a, 0)
    assert [outline.tolist() for outline in labelled] == [[[39.5, 49.5], [99.5, 49.5], [99.5, 129.5], [39.5, 129.5]]]
    expected = np.zeros((480, 640))
    expected[:, 10] = 1
    assert polygons == []
    np.testing.assert_array_equal(bitmaps[0], expected)


def test_compressed_regions_equal_pycocotools(tmp_path):
    rng = np.random.RandomState(0)
    bitmaps = [(rng.uniform(size=(240, 320)) < share).astype(np.uint8) for share in (0, 0.001, 0.5, 1)]
    regions = [coco_mask.encode(np.asfortranarray(bitmap)) for bitmap in bitmaps]
    file, folder = write_split(tmp_path, [person(1)] + [
        person(2 + i, iscrowd=1, segmentation={'size': region['size'], 'counts': region['counts'].decode()})
        for i, region in enumerate(regions)])
    for bitmap, read in zip(bitmaps, ignored_regions(read_annotations(file, folder), 0)[1]):
        np.testing.assert_array_equal(bitmap, read)


def test_real_annotations_agree_with_pycocotools(coco_photos):
    for split in ('train2017', 'val2017'):
        file, folder = find_split(str(coco_photos), split)
        a = read_annotations(file, folder)
        coco = COCO(file)
        for row, image_id in enumerate(a.image_id.tolist()):
            entries = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
            labelled = [entry for entry in entries if entry['num_keypoints']]
            joints, boxes = people_of(a, row)
            np.testing.assert_allclose(boxes, [entry['bbox'] for entry in labelled], rtol=1e-6)
            count = np.isfinite(joints[:, :, 0]).sum() - np.isfinite(joints[:, 1, 0]).sum()  # the neck is ours
            assert count == sum(entry['num_keypoints'] for entry in labelled)


OUTLINE = [[40, 50, 100, 50, 100, 130, 40, 130]]


@pytest.mark.parametrize('broken', [keypoints()[:-1], ['one'] * 51, None] + [
    [first] + keypoints()[1:] for first in (float('nan'), float('inf'), 10 ** 400, 1e30)])
def test_broken_person_is_left_out_counted_and_masked(broken, tmp_path, caplog):
    people = [person(2, segmentation=segmentation, keypoints=broken) for segmentation in (OUTLINE, [])]
    a = read_annotations(*write_split(tmp_path, [person(1, **ASIDE)] + people))
    assert len(a.sample_image) == 1 and people_of(a, 0)[1].tolist() == [[200, 50, 60, 80]]
    # A person without labels must not be learned as background: the outline is left out, or the box.
    assert [polygon.tolist() for polygon in ignored_regions(a, 0)[0]] == 2 * [
        [[39.5, 49.5], [99.5, 49.5], [99.5, 129.5], [39.5, 129.5]]]
    assert '2 people with broken keypoints' in caplog.text


@pytest.mark.parametrize('field, values, mention', [
    ('bbox', ([40, 50, -60, 80], [40, 50, float('nan'), 80], None, [1, 2, 3]), '1 boxes'),
    ('area', (float('nan'), None, 0), '1 areas'), ('id', (None,), '1 ids of annotations'),
    ('num_keypoints', (None, 0), '1 num_keypoints')])
def test_what_a_person_lacks_is_derived_and_counted(field, values, mention, tmp_path, caplog):
    for value in values:
        caplog.clear()
        whole = person(2, segmentation=OUTLINE, bbox=[40, 50, 60, 80])
        a = read_annotations(*write_split(tmp_path, [person(1, **ASIDE), dict(whole, **{field: value})]))
        assert len(a.sample_image) == 2 and people_of(a, 0)[1].tolist()[1] == [40, 50, 60, 80]
        assert 'derived %s' % mention in caplog.text


@pytest.mark.parametrize('empty', [[None, None, 0], [float('nan'), float('nan'), 0], [None, None, None], ['', '', '0']])
def test_keypoints_that_nobody_labelled_need_no_numbers(empty, tmp_path, caplog):
    points = empty + person(1)['keypoints'][3:]
    file, folder = write_split(tmp_path, [person(1, keypoints=points), person(2, keypoints=[None, 5, 2] + points[3:])])
    people = read_dataset(file).annotations
    assert people[0]['keypoints'] == [0, 0, 0] + points[3:] and people[0]['num_keypoints'] == 16
    assert people[1]['num_keypoints'] == 0
    a = read_annotations(file, folder)
    assert len(a.sample_image) == 1
    assert 'derived 1 people without numbers at keypoints that nobody labelled; left out 1 people with broken' \
        in caplog.text


def test_lengths_are_told_and_points_outside_stay_labels_but_make_no_sample(tmp_path, caplog):
    a = read_annotations(*write_split(tmp_path, [
        person(1, **ASIDE), person(2, bbox=[40, 50, 0, 0], keypoints=keypoints(-500, 1000)),
        person(3, keypoints=[1, 2, 2] * 16)]))
    assert 'left out 1 people with broken keypoints (48 numbers, not 51)' in caplog.text
    assert len(a.sample_image) == 1 and len(people_of(a, 0)[0]) == 2
    assert people_of(a, 0)[0][1, 0].tolist() == [-500, 1000]


@pytest.mark.parametrize('segmentation', [
    [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[float('nan')] * 8], [[1e30] * 8], ['text'], 'text', 5, [[None] * 6],
    {'size': [240, 320], 'counts': [5]}, {'size': [1, 1], 'counts': [1]}, {'size': [240, 320], 'counts': [-5, 76805]},
    {'size': [240, 320], 'counts': 'oooooooooooooooooo'}, {'size': [240, 320], 'counts': '\x01\xff'}, {'counts': None},
    {}])
def test_broken_segmentation_is_left_out_and_counted(segmentation, tmp_path, caplog):
    """The box stands for it."""
    file, folder = write_split(tmp_path, [person(1), person(2, iscrowd=1, segmentation=segmentation)])
    (box,), bitmaps, labelled = ignored_regions(read_annotations(file, folder), 0)
    assert box.tolist() == [[39.5, 49.5], [99.5, 49.5], [99.5, 129.5], [39.5, 129.5]]
    assert not bitmaps and len(labelled) == 1
    assert ('broken polygons' in caplog.text or 'segmentations that do not fit' in caplog.text) != (segmentation == {})


def test_duplicate_ids_and_orphans_are_counted(tmp_path, caplog):
    images = [image_entry(1), image_entry(1, 'b.jpg')]
    file, folder = write_split(tmp_path, [person(1), person(1, **ASIDE), person(1), person(2, image_id=99),
                                          person(3, image_id=[1]), 5, person('six')], images)
    a = read_annotations(file, folder)
    assert len(a.image_id) == 1 and len(a.sample_image) == 2
    for message in ('1 images with the id of an earlier one', '2 ids of annotations',
                    '1 annotations that are there twice', '2 annotations of images that are not listed',
                    '1 annotations that are no objects'):
        assert message in caplog.text


@pytest.mark.parametrize('fields', [{'width': 0}, {'height': -4}, {'width': 'wide'}, {'width': 1e9}, {'width': 10 ** 9},
                                    {'file_name': 5}, {'file_name': ''}, {'file_name': 'a\0b'}, {'file_name': '\ud800'},
                                    {'file_name': 'x' * 999}, {'id': [2]}])
def test_broken_image_is_left_out_and_counted(fields, tmp_path, caplog):
    images = [image_entry(1), dict(image_entry(2, 'b.jpg'), **fields)]
    assert read_annotations(*write_split(tmp_path, [person(1), person(2, image_id=2)], images)).image_id.tolist() == [1]
    assert '1 images without' in caplog.text


@pytest.mark.parametrize('text', [
    '', '{"images": [', '[]', '5', '{"images": [], "annotations": 3}', '{"annotations": []}',
    '{"images": [], "annotations": []}', '{"images": [5], "annotations": []}',
    '{"images": [{}], "annotations": []}', '[' * 100000, '\x00\x01',
    '{"images": [{"id": [1]}], "annotations": []}', '{"images": {}, "annotations": {}}'])
def test_broken_files_are_one_line(text, tmp_path):
    file, folder = write_split(tmp_path, [])
    with open(file, 'w') as broken:
        broken.write(text)
    with pytest.raises(UserError, match='person_keypoints_train2017.json'):
        read_annotations(file, folder)


def test_missing_images_are_left_out_named_and_limited(tmp_path, caplog):
    images = [image_entry(i, '%d.jpg' % i) for i in range(1, 21)]
    people = [person(i, image_id=i) for i in range(1, 11)]  # nobody is on 11 .. 20: these need not be there
    file, folder = write_split(tmp_path, people, images, names=['%d.jpg' % i for i in range(3, 11)])
    a = read_annotations(file, folder)
    assert a.sample_image.tolist() == list(range(2, 10))
    assert '2 of the 10 images with people' in caplog.text and '1.jpg, 2.jpg' in caplog.text
    os.remove(os.path.join(folder, '3.jpg'))
    with pytest.raises(UserError, match='3 of the 10 .*--imgpath'):
        read_annotations(file, folder)


# --- what other tools write


def with_visibility(v, count=17):
    return [value for k in range(0, 3 * count, 3) for value in (*keypoints()[k:k + 2], v)]


@pytest.mark.parametrize('v, labelled', [(0.01, 17), (0.6, 17), (1, 17), (2, 17), (0, 0), (-1, 0)])
def test_a_point_counts_when_v_is_above_0_everywhere(v, labelled, tmp_path):
    """Also when v is a confidence: in counts, joints, boxes that are inferred, and pycocotools' ground truth."""
    fields = {'keypoints': with_visibility(v), 'num_keypoints': None, 'bbox': None, 'segmentation': []}
    file, _ = write_split(tmp_path, [person(1, **ASIDE), person(2, **fields)])
    entry = read_dataset(file).annotations[1]
    assert entry['num_keypoints'] == labelled == sum(value > 0 for value in entry['keypoints'][2::3])
    assert np.isfinite(COCO_SKELETON.joints(entry['keypoints'])[0, :, 0]).sum() == (18 if labelled else 0)
    assert bool(entry['bbox'][2]) == bool(labelled)


@pytest.mark.parametrize('ids', [[0, 0, 0, 0], [1, 2, 1, 2]])
def test_people_with_equal_ids_are_all_there(ids, tmp_path, caplog):
    """All 0, or counted anew in each image."""
    images = [image_entry(1), image_entry(2, 'b.jpg')]
    people = [person(ids[0]), person(ids[1], **ASIDE), person(ids[2], 2), person(ids[3], 2, **ASIDE)]
    file, folder = write_split(tmp_path, people + people[:1], images)
    assert read_annotations(file, folder).person_start.tolist() == [0, 2, 4]
    assert 'derived 4 ids of annotations; left out 1 annotations that are there twice' in caplog.text
    assert len({entry['id'] for entry in read_dataset(file).annotations}) == 4


def upside_down(values, height=240):
    return [height - value if k % 3 == 1 else value for k, value in enumerate(values)]


def scaled(factor):
    return [factor * value if k % 3 < 2 else value for k, value in enumerate(keypoints())]


BOX = [40, 50, 60, 80]


@pytest.mark.parametrize('values, box, mention', [
    (keypoints()[:-3] + [0, 0, 2], BOX, '1 with points at exactly 0, 0'),
    (scaled(1 / 320), BOX, '1 with all points in the first pixel, 1 with most points outside their box'),
    (scaled(1 / 320), [.1, .1, .3, .3], '1 with all points in the first pixel'),
    (scaled(9), [360, 450, 540, 720], '1 with points outside their image, 1 with boxes that reach out of their image'),
    (keypoints(150, 160), [140, 150, 300, 230], '1 with boxes that reach out of their image'),
    (upside_down(keypoints()), BOX, '1 with most points outside their box')],
    ids=['origin', 'shares', 'shares, boxes too', 'other size', 'corners', 'upside down'])
def test_numbers_that_fit_no_picture_are_told_and_above_half_refused(values, box, mention, tmp_path, caplog):
    fields = {'keypoints': values, 'bbox': box}
    file, folder = write_split(tmp_path, [person(1, **fields), person(2, **ASIDE)])
    assert len(read_annotations(file, folder).bbox) == 2
    assert '1 of 2 people fit no picture: %s (as in image a.jpg, box ' % mention in caplog.text
    file, folder = write_split(tmp_path, [person(1, **fields), person(2, **ASIDE), person(3, **fields)])
    for read in (lambda: read_annotations(file, folder), lambda: read_dataset(file)):
        with pytest.raises(UserError, match='2 of 3 people fit no picture: .*; x and y are pixels from the upper left'):
            read()


@pytest.mark.parametrize('name', ['coco_mini', 'coco_more', 'coco_sample'])
def test_cocos_own_files_have_no_line(name, tmp_path, caplog):
    caplog.set_level('INFO')
    read_annotations(*find_split(str(reference_data(name)), 'train2017'))
    assert [record.getMessage()[:8] for record in caplog.records] == ['reading ']


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
def test_encodings_of_other_systems(encoding, tmp_path):
    file, folder = write_split(tmp_path, [person(1)])
    text = pathlib.Path(file).read_text()
    pathlib.Path(file).write_bytes(text.replace('a.jpg', 'M\u00fcller.jpg').encode(encoding))
    (tmp_path / 'train2017' / 'M\u00fcller.jpg').touch()
    (tmp_path / 'elsewhere').mkdir()
    assert find_split(str(tmp_path), 'train2017')[1] == folder
    assert read_annotations(file, folder).file_name[0].decode() == 'M\u00fcller.jpg'
    pathlib.Path(file).write_bytes(text.replace('a.jpg', 'M\u00fcller.jpg').encode('latin-1'))
    with pytest.raises(UserError, match='is no text in UTF-8 or UTF-16 .*; save it as UTF-8'):
        read_dataset(file)


@pytest.mark.parametrize('name', ['images\\a.jpg', '/media/disk/photos/a.jpg', 'C:\\photos\\a.jpg', '../photos/a.jpg'])
def test_names_of_other_systems(name, tmp_path):
    file, folder = write_split(tmp_path, [person(1)], [image_entry(1, name)], names=['a.jpg'])
    assert find_split(str(tmp_path), 'train2017') == (file, folder)
    assert read_annotations(file, folder).file_name.tolist() == [b'a.jpg']


def test_one_file_is_not_two_images(tmp_path):
    """Of images with the same name in different folders one is there: whose, nobody knows."""
    images = [image_entry(number, '/data/%d/a.jpg' % number) for number in (1, 2)]
    file, folder = write_split(tmp_path, [person(1), person(2, 2)], images, names=['a.jpg'])
    with pytest.raises(UserError, match='2 of the 2 images .*--imgpath'):
        read_annotations(file, folder)


def test_sizes_come_from_headers_where_the_file_gives_none(tmp_path, caplog):
    """Turned as EXIF says; the line on that comes once."""
    caplog.set_level('INFO')
    image = {'id': 1, 'file_name': 'a.jpg'}
    file, folder = write_split(tmp_path, [person(1)], [image, dict(image, id=2, file_name='gone.jpg')], names=[])
    pixels = np.zeros((300, 200, 3), np.uint8)
    (tmp_path / 'train2017' / 'a.jpg').write_bytes(with_orientation('.jpg', jpeg(pixels), 6))
    assert read_annotations(file, folder).image_size.tolist() == [[300, 200]]
    assert 'derived 1 sizes of images; left out 1 images without a size that are not in the image folder' in caplog.text
    assert caplog.text.count('1 of 1 images that were checked are turned as their EXIF header says') == 1
    (tmp_path / 'train2017' / 'gone.jpg').write_bytes(jpeg(pixels))  # it came later
    assert read_annotations(file, folder).image_size.tolist() == [[300, 200], [200, 300]]


def test_files_without_annotations(tmp_path):
    """COCO's test sets, whose images lie in a folder of another name."""
    content = {'images': [image_entry(1)], 'categories': [{'id': 1, 'name': 'person'}]}
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'image_info_test-dev2017.json').write_text(json.dumps(content))
    for folder in ('train2017', 'test2017'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'test2017' / 'a.jpg').touch()
    file, folder = find_split(str(tmp_path), 'image_info_test-dev2017.json')
    assert folder == str(tmp_path / 'test2017')
    assert len(read_dataset(file).images) == 1 and read_dataset(file).annotations == []
    with pytest.raises(UserError, match='has no person .*: it has no annotations'):
        read_annotations(file, folder)


def test_people_with_a_box_alone_are_neither_background_nor_nobody(tmp_path):
    """As CVAT writes those without keypoints; and images without people have names of other systems, too."""
    images = [image_entry(1), image_entry(2, 'b.jpg'), image_entry(3, 'C:\\photos\\c.jpg')]
    file, folder = write_split(tmp_path, [person(1), person(2, image_id=2, num_keypoints=0)], images,
                               names=['a.jpg', 'b.jpg', 'c.jpg'])
    annotations = read_annotations(file, folder)
    (box,), _, _ = ignored_regions(annotations, 1)
    assert box.tolist() == [[39.5, 49.5], [99.5, 49.5], [99.5, 129.5], [39.5, 129.5]]
    assert images_without_people(annotations, folder).tolist() == [2]
    assert annotations.file_name[2] == b'c.jpg'


def test_without_a_home_there_is_no_cache(tmp_path, monkeypatch):
    """Not a folder called ~ below the current one."""
    file, folder = write_split(tmp_path / 'data', [person(1)])
    monkeypatch.setenv('XDG_CACHE_HOME', 'cache')
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert len(read_annotations(file, folder).sample_image) == 1
    assert os.listdir(str(tmp_path)) == ['data']
