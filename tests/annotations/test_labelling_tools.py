"""Files in the shapes of labelling tools: what is read, the line about it, and the lines of files that cannot be used.

Training and evaluation have one reader; both are asked.
"""
import json

import numpy as np
import pytest

import tool_files
from annotation_files import person, write_split
from annotations.arrays import ignored_regions, read_annotations
from annotations.coco import read_dataset, summary_of
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from inference.metrics import evaluate
from pose_dataset import PoseDataset
from pose_errors import UserError

IMAGES = [('a.jpg', 320, 240, b''), ('b.jpg', 320, 240, b'')]
PERSON = ((100, 60, 2), (120, 90, 2), (80, 90, 1), (115, 150, 2), (85, 150, 2))
HALF = PERSON[:3] + ((0, 0, 0), (0, 0, 0))
PEOPLE = [(0, PERSON, [70.0, 50.0, 60.0, 110.0]), (1, PERSON, [70.0, 50.0, 60.0, 110.0]),
          (1, [(x + 120, y, v) if v else (x, y, v) for x, y, v in HALF], [190.0, 50.0, 60.0, 60.0])]
# writer: (the line about what was derived and left out, whether areas and boxes are the tool's)
TOOLS = {
    'coco': (tool_files.write_coco, '', True),
    'cvat': (tool_files.write_cvat, 'left out 1 annotations of other categories', True),
    'coco_annotator': (tool_files.write_coco_annotator,
                       'derived 3 areas, 3 boxes; left out 1 annotations of other categories', False),
    'roboflow': (tool_files.write_roboflow, 'derived 3 num_keypoints', True),
    'label_studio': (lambda *args: tool_files.write_label_studio(*args, limbs=tool_files.LIMBS),
                     'derived 3 areas; left out 1 annotations of other categories', False)}
pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.mark.parametrize('tool', sorted(TOOLS))
def test_files_of_tools(tool, tmp_path, caplog):
    write, line, whole = TOOLS[tool]
    split = write(tmp_path, IMAGES, PEOPLE)
    file, folder = find_split(str(tmp_path), split)
    annotations = read_annotations(file, folder)
    said = [record.getMessage() for record in caplog.records]
    assert said == ([file + ': ' + line] if line else [])
    assert annotations.skeleton.keypoints == tool_files.KEYPOINTS
    assert annotations.skeleton.flip_order == (0, 2, 1, 4, 3)
    assert annotations.sample_image.tolist() == [0, 1, 1]
    expected = np.array([person for _, person, _ in PEOPLE], np.float32)
    expected[expected[:, :, 2] == 0] = np.nan
    np.testing.assert_array_equal(annotations.joints, expected[:, :, :2])
    for (_, _, box), found in zip(PEOPLE, annotations.bbox):
        assert np.abs(found - box).max() <= (0 if whole else 30)
    assert [ignored_regions(annotations, image) for image in (0, 1)] == [([], [], [])] * 2

    dataset = read_dataset(file)  # as evaluation reads it
    assert summary_of(dataset) == line and dataset.skeleton == annotations.skeleton
    assert [image['file_name'] for image in dataset.images] == [name.decode() for name in annotations.file_name]


def test_image_folders_are_found_by_the_first_file_name(tmp_path):
    """Also where an export has no folder for the split, or the names start from one above; --imgpath has its way."""
    split = tool_files.write_cvat(tmp_path / 'cvat', IMAGES, PEOPLE)
    images = tmp_path / 'cvat' / 'images'
    for name, _, _, _ in IMAGES:
        (images / split / name).rename(images / name)
    assert find_split(str(tmp_path / 'cvat'), split)[1] == str(images)
    (images / split).rmdir()
    assert find_split(str(tmp_path / 'cvat'), split)[1] == str(images)
    split = tool_files.write_label_studio(tmp_path / 'studio', IMAGES, PEOPLE, tool_files.LIMBS)
    for path in (split, str(tmp_path / 'studio' / split)):
        assert find_split(str(tmp_path / 'studio'), path)[1] == str(tmp_path / 'studio')
    with pytest.raises(UserError, match='no image folder .*--imgpath'):
        find_split(str(tmp_path / 'studio'), split, str(tmp_path / 'absent'))


def changed(tmp_path, change):
    """The path of CVAT's file after change(content)."""
    split = tool_files.write_cvat(tmp_path, IMAGES, PEOPLE)
    path = tmp_path / 'annotations' / ('person_keypoints_%s.json' % split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


def each(content, **fields):
    for annotation in content['annotations']:
        annotation.update({name: value(annotation) if callable(value) else value for name, value in fields.items()})


def without(name):
    return lambda content: [annotation.pop(name, None) for annotation in content['annotations']]


def text_ids(content):
    for image in content['images']:
        image['id'] = 'image-%d' % image['id']
    each(content, id=lambda a: 'a%d' % a['id'], image_id=lambda a: 'image-%d' % a['image_id'],
         category_id=lambda a: str(a['category_id']))


OTHERS = 'left out 1 annotations of other categories'
CHANGES = {
    'ids as text': (text_ids, OTHERS),
    'ids with a point': (lambda content: each(content, id=lambda a: float(a['id']), image_id=lambda a: float(
        a['image_id']), category_id=lambda a: float(a['category_id'])), OTHERS),
    'sizes with a point': (lambda content: [image.update(width=320.0, height='240') for image in content['images']],
                           OTHERS),
    'numbers as text': (lambda content: each(content, bbox=lambda a: list(map(str, a['bbox'])), area='6000'), OTHERS),
    'no num_keypoints': (without('num_keypoints'), 'derived 3 num_keypoints; ' + OTHERS),
    'run lengths and area 0': (lambda content: each(content, area=0, segmentation={
        'size': [240, 320], 'counts': [0, 240 * 60, 240 * 260]}), 'derived 3 areas; ' + OTHERS),
    'no area': (without('area'), 'derived 3 areas; ' + OTHERS),
    'no boxes': (without('bbox'), 'derived 3 boxes; ' + OTHERS),
    'no ids': (without('id'), 'derived 4 ids of annotations; ' + OTHERS)}


@pytest.mark.parametrize('name', sorted(CHANGES))
def test_what_files_lack_is_derived_and_told(name, tmp_path, caplog):
    change, line = CHANGES[name]
    file = changed(tmp_path, change)
    annotations = read_annotations(file, str(tmp_path / 'images' / 'default'))
    assert annotations.sample_image.tolist() == [0, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [file + ': ' + line]
    assert summary_of(read_dataset(file)) == line


def several(content):
    content['categories'].append(dict(content['categories'][0], id=3, name='singer'))


NOBODY = (' has no person with 3 keypoints and an area of 1024 pixels to train on: %s; give a COCO keypoint annotation '
          'file')
UNUSABLE = {
    'few keypoints': (lambda content: each(content, num_keypoints=2,
                                           keypoints=lambda a: a.get('keypoints', [])[:6] + [0] * 9),
                      NOBODY % ('of 3 annotations 3 with fewer than 3 labelled keypoints; ' + OTHERS)),
    'small': (lambda content: each(content, area=900),
              NOBODY % ('of 3 annotations 3 smaller than 1024 pixels; ' + OTHERS)),
    'crowds': (lambda content: each(content, iscrowd=1), NOBODY % ('of 3 annotations 3 crowds; ' + OTHERS)),
    'dogs': (lambda content: each(content, category_id=2),
             NOBODY % 'it has no annotations; left out 4 annotations of other categories'),
    'several': (several,
                ' has several categories with keypoints: choose one with --category=NAME of dancer, singer, or all '
                'of them, whose keypoints meet by name, with --category=all')}


@pytest.mark.parametrize('name', sorted(UNUSABLE))
def test_nothing_to_train_on_is_told_by_cause(name, tmp_path):
    change, line = UNUSABLE[name]
    file = changed(tmp_path, change)
    with pytest.raises(UserError) as error:
        read_annotations(file, str(tmp_path / 'images' / 'default'))
    assert str(error.value) == file + line


def test_a_parent_of_the_same_name_is_not_the_category(tmp_path):
    """As Roboflow writes."""
    file, _ = write_split(tmp_path, [person(1, category_id=7)])
    content = json.loads(open(file).read())
    content['categories'] = [{'id': 0, 'name': 'dog', 'supercategory': 'none'},
                             {'id': 7, 'name': 'dog', 'keypoints': list(COCO_SKELETON.keypoints)}]
    with open(file, 'w') as written:
        json.dump(content, written)
    assert read_dataset(file, 'dog').annotations[0]['num_keypoints'] == 17


def test_a_category_is_chosen_by_name(tmp_path):
    file = changed(tmp_path, several)
    assert read_dataset(file, 'dancer').skeleton.name == 'dancer'
    for category, line in (('cat', '--category=cat is not in %s; it has dancer, dog, singer'),
                           ('dog', 'the category dog of %s has no keypoints; give another with --category=NAME')):
        with pytest.raises(UserError) as error:
            read_dataset(file, category)
        assert str(error.value) == line % file


def test_several_categories_with_the_same_keypoints(tmp_path):
    """All of them together; or one, and the others are neither found nor background."""
    def change(content):
        several(content)
        people = [a for a in content['annotations'] if a['category_id'] == 1]
        people[1].update(category_id=3, segmentation=[])

    file = changed(tmp_path, change)
    folder = str(tmp_path / 'images' / 'default')
    everyone = read_annotations(file, folder, 'all')
    assert everyone.sample_image.tolist() == [0, 1, 1] and ignored_regions(everyone, 1) == ([], [], [])
    dancers = read_annotations(file, folder, 'dancer')
    assert dancers.sample_image.tolist() == [0, 1]
    (outline,), _, labelled = ignored_regions(dancers, 1)
    assert outline.tolist() == [[69.5, 49.5], [129.5, 49.5], [129.5, 159.5], [69.5, 159.5]] and len(labelled) == 1
    assert [read_dataset(file, name).category_id for name in ('dancer', 'singer', 'all')] == [1, 3, 1]

    def differ(content):
        several(content)
        content['categories'][-1].update(keypoints=list('vwxyz'), flip_idx=list(range(5)))

    with pytest.raises(UserError, match='--category=all: singer has no keypoint of the same name as the other data'):
        read_dataset(changed(tmp_path, differ), 'all')


def test_an_added_category_changes_nothing_for_people(coco_photos, tmp_path):
    """A dog with an outline and COCO's 17 keypoints beside real people: same samples, same masks, same AP."""
    whole, folder = find_split(str(coco_photos), 'train2017')
    with open(whole) as file:
        content = json.load(file)
    content['categories'].append(dict(content['categories'][0], id=18, name='dog'))
    person = [annotation for annotation in content['annotations'] if annotation['num_keypoints'] > 5][0]
    content['annotations'] += [dict(person, id=1, category_id=18), dict(
        person, id=2, category_id=18, num_keypoints=0, keypoints=[0] * 51)]
    (tmp_path / 'annotations').mkdir()
    added = tmp_path / 'annotations' / 'person_keypoints_train2017.json'
    added.write_text(json.dumps(content))
    found = [evaluate(None, str(path), folder, short_edge=368, progress=False, oracle_stride=8)[:2]
             for path in (whole, added)]
    assert found[0][1] == found[1][1]
    assert all(found[0][0][name] == found[1][0][name] for name in ('AP', 'AP50', 'AR', 'people', 'detections'))
    datasets = [PoseDataset(path, 'train2017', 368, 368, 8, folder) for path in (str(coco_photos), str(tmp_path))]
    for index in range(len(datasets[0].validation_images)):
        samples = [dataset.validation_sample(index) for dataset in datasets]
        assert all(np.array_equal(*pair) for pair in zip(*(sample[:4] for sample in samples)))
