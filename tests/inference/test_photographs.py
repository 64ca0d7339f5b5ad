"""Photographs: which are found, what is written for each, and what is said of those that cannot be read."""
import json
import os
import shutil
import time

import cv2
import numpy as np
import pytest

import pose_augment
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from benchmarks.bench_inputs import random_people, render_maps
from conftest import assert_user_error, run_command, run_well, summary_of
from image_folders import grey_image, jpeg
from inference.metrics import label_maps, load_coco
from inference.photographs import Photographs, draw_photographs, find_photographs, output_prefixes
from inference.predictor import make_transforms, maps_over_image
from pose_errors import UserError
from small_graphs import write_graph

SETTING = dict(input_size=(96, 96), short_edge=None, scales=(1.0,), flip=False)
HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def nobody(images):
    return np.zeros((len(images), images.shape[1] // 8, images.shape[2] // 8, 57), np.float32)


# Which photographs.

@pytest.mark.parametrize('given, names', [
    ('p', 'a.jpg b/c.PNG b/d/e.webp'), ('p/', 'a.jpg b/c.PNG b/d/e.webp'), ('p/*.jpg', 'a.jpg'),
    ('p/**', 'a.jpg b/c.PNG b/d/e.webp'), ('p/**/*.[jw]*', 'a.jpg b/d/e.webp'), ('p/b*', 'b/c.PNG b/d/e.webp'),
    ('p/b/c.PNG', 'c.PNG'), ('p/*/d/*', 'b/d/e.webp'), ('p/*/../../x1/*', 'h.jpg'),
    ('x[1]', 'f.jpg'), ('x[1]/*.jpg', 'f.jpg'), ('x?1?/f.jpg', 'x[1]/f.jpg'), ('x[[]1]/*', 'x[1]/f.jpg')])
def test_files_folders_and_patterns(tmp_path, given, names):
    """A path that is there goes before the pattern that it would be; folders that a pattern names are walked."""
    touch(tmp_path, 'p/a.jpg', 'p/b/c.PNG', 'p/b/d/e.webp', 'p/.hidden/g.jpg', 'p/notes.txt', 'x[1]/f.jpg', 'x1/h.jpg')
    found = find_photographs(os.path.join(str(tmp_path), given))
    assert [os.path.relpath(path, found.root) for path in found.paths] == names.split()


def test_folders_that_are_links(tmp_path):
    """Each counts once, by its own name where that is below the folder too; nothing goes round in circles."""
    touch(tmp_path, 'p/z/a.jpg', 'p/b.jpg', 'far/c.jpg', 'far/d/e.jpg')
    for link, target in (('p/far', 'far'), ('p/again', 'far'), ('p/a', 'p/z'), ('p/z/up', 'p'), ('far/d/home', 'p'),
                         ('p/.hidden', 'far'), ('p/gone', 'nowhere')):
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    found = find_photographs(str(tmp_path / 'p'))
    names = [os.path.relpath(path, found.root) for path in found.paths]
    assert names == ['again/c.jpg', 'again/d/e.jpg', 'b.jpg', 'z/a.jpg']


def test_relative_paths(tmp_path, monkeypatch):
    touch(tmp_path, 'a.jpg', 'b/c.jpg')
    monkeypatch.chdir(str(tmp_path))
    assert find_photographs('a.jpg') == (['a.jpg'], '.', {}) and find_photographs('*.jpg')[:2] == (['a.jpg'], '.')
    assert find_photographs('**/c.*')[:2] == (['b/c.jpg'], '.') and find_photographs('b')[:2] == (['b/c.jpg'], 'b')


def test_pictures_that_were_written_are_no_photographs(tmp_path):
    """Also on the second call with a pattern; but photographs may lie in a folder of the folder for pictures."""
    touch(tmp_path, 'a.jpg', 'out/a_rendered.jpg', 'out/deep/b_rendered.jpg')
    for given in (str(tmp_path), str(tmp_path / '**')):
        assert find_photographs(given, str(tmp_path / 'out')).paths == [str(tmp_path / 'a.jpg')]
    assert len(find_photographs(str(tmp_path / 'out' / 'deep'), str(tmp_path / 'out')).paths) == 1
    for given in (str(tmp_path), str(tmp_path / '*.jpg')):
        with pytest.raises(UserError, match='--output-dir'):
            find_photographs(given, str(tmp_path))


def test_other_kinds_are_counted(tmp_path):
    touch(tmp_path, 'a.HEIC', 'b.heic', 'c.tif', 'notes.txt')
    with pytest.raises(UserError, match=r'no photographs .* there are 2 \.heic \(heif-convert .*\), 1 \.tif \(convert'):
        find_photographs(str(tmp_path))
    touch(tmp_path, 'd.jpg')
    assert find_photographs(str(tmp_path)).passed_over == {'.heic': 2, '.tif': 1}


@pytest.mark.parametrize('images', ['nowhere', '*.jpg', 'nowhere/**/*.jpg', '[', '.'])
def test_no_match_is_one_line(tmp_path, images):
    """Before TensorFlow is imported; nothing is left behind."""
    (tmp_path / 'graph.pb').write_bytes(b'')
    result = run_command('pose_eval.py', '--graph=%s' % (tmp_path / 'graph.pb'), '--images=%s' % (tmp_path / images),
                         '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, '--images=%s' % (tmp_path / images))
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / 'out').exists()


# What is written.

@pytest.mark.slow
def test_the_command_on_a_folder(coco_photos, tmp_path):
    """A real photograph and a graph that knows its people."""
    images = tmp_path / 'in'
    images.mkdir()
    shutil.copy(str(coco_photos / 'val2017' / '000000197388.jpg'), str(images))
    coco = load_coco(find_split(str(coco_photos), 'val2017')[0])
    joints = COCO_SKELETON.joints([a['keypoints'] for a in coco.dataset['annotations']])
    matrix = pose_augment.fit_matrix(640, 392, 640, 400)
    moved = pose_augment.transform_joints(joints.astype(np.float64), matrix, COCO_SKELETON)
    graph = write_graph(tmp_path / 'graph.pb', label_maps(moved, 640, 400, 8, COCO_SKELETON)[None], (1, 400, 640, 3))

    (images / 'broken.jpg').write_bytes(b'\xff\xd8 not really')
    (images / 'notes.txt').write_text('no photograph')
    (images / 'camera.HEIC').write_bytes(HEIC)
    (images / 'phone.jpg').write_bytes(HEIC)
    (images / 'more').mkdir()
    cv2.imwrite(str(images / 'more' / '000000197388.png'), cv2.imread(str(images / '000000197388.jpg')))
    result = run_well('pose_eval.py', '--graph=%s' % graph, '--images=%s' % images, '--maps',
                      '--output-dir=%s' % (tmp_path / 'out'))
    assert 'broken.jpg is a truncated JPEG' in result.stderr and 'phone.jpg is a HEIC image' in result.stderr
    assert 'skipped 3 files: 2 .heic (heif-convert ' in result.stderr and ', 1 truncated JPEG\n' in result.stderr
    outputs = ['000000197388_keypoints.json', '000000197388_maps.jpg', '000000197388_rendered.jpg']
    assert sorted(os.listdir(str(tmp_path / 'out'))) == outputs + ['more']
    assert sorted(os.listdir(str(tmp_path / 'out' / 'more'))) == [name.replace('jpg', 'png') for name in outputs]
    summary = summary_of(result)
    assert summary['images'] == 2 and summary['people'] == 10 and summary['flip'] is False
    assert summary['skipped'] == {'.heic': 2, 'truncated JPEG': 1}

    content = json.loads((tmp_path / 'out' / '000000197388_keypoints.json').read_text())
    assert (content['image'], content['width'], content['height']) == ('000000197388.jpg', 640, 392)
    photo = cv2.imread(str(images / '000000197388.jpg'))
    drawn = cv2.imread(str(tmp_path / 'out' / 'more' / '000000197388_rendered.png'))
    lossy = cv2.imread(str(tmp_path / 'out' / '000000197388_rendered.jpg'))
    assert drawn.shape == photo.shape and 0 < np.abs(lossy.astype(int) - drawn).mean() < 4
    for person in content['people']:
        points = np.array(person['pose_keypoints_2d']).reshape(18, 3)
        here = points[:, 2] > 0
        error = min(np.linalg.norm(points[here, :2] - labelled[here], axis=1).mean() for labelled in joints
                    if np.isfinite(labelled[here]).all())
        assert error < 1
        x, y = np.round(points[here, :2]).astype(int).clip(0, [639, 391]).T
        assert (np.abs(drawn[y, x].astype(int) - photo[y, x]).max(axis=1) > 25).mean() > 0.9


@pytest.mark.parametrize('found_in', [(0, 1, 3), (1, 2, 3), (0, 1, 2), ()], ids=['middle', 'first', 'last', 'all'])
def test_photographs_without_people(tmp_path, found_in):
    for k in range(4):
        cv2.imwrite(str(tmp_path / ('%d.png' % k)), np.full((96, 96, 3), 20 * k, np.uint8))
    person = render_maps(random_people(np.random.RandomState(0), 1, 96, 96, 0.7, 0.8), 96, 96, 8)

    def predict_maps(images):
        return np.stack([person * (int(np.median(image)) // 20 in found_in) for image in images])

    summary = draw_photographs(predict_maps, COCO_SKELETON, find_photographs(str(tmp_path)), str(tmp_path / 'out'),
                               **SETTING)
    assert summary['people'] == len(found_in) and summary['skipped'] == {}
    for k in range(4):
        content = json.loads((tmp_path / 'out' / ('%d_keypoints.json' % k)).read_text())
        assert len(content['people']) == (k in found_in) and (tmp_path / 'out' / ('%d_rendered.png' % k)).exists()


def test_kinds_of_pictures(tmp_path):
    """JPEG for photographs that lost something already, PNG for all others; or none."""
    (tmp_path / 'a.JPG').write_bytes(jpeg(grey_image()))
    for name in ('a.png', 'b.bmp', 'c.webp'):
        cv2.imwrite(str(tmp_path / name), grey_image())
    given = find_photographs(str(tmp_path))
    draw_photographs(nobody, COCO_SKELETON, given, str(tmp_path / 'out'), **SETTING)
    pictures = sorted(path.name for path in (tmp_path / 'out').glob('*_rendered.*'))
    assert pictures == ['a.JPG_rendered.jpg', 'a.png_rendered.png', 'b_rendered.png', 'c_rendered.jpg']
    assert (tmp_path / 'out' / 'c_rendered.jpg').read_bytes().startswith(b'\xff\xd8')
    draw_photographs(nobody, COCO_SKELETON, given, str(tmp_path / 'none'), pictures=False, **SETTING)
    assert sorted(os.listdir(str(tmp_path / 'none'))) == ['a.JPG_keypoints.json', 'a.png_keypoints.json',
                                                          'b_keypoints.json', 'c_keypoints.json']


@pytest.mark.parametrize('shape', [(3000, 2, 3), (2, 3000, 3)])
def test_thin_photographs_have_pictures_too(tmp_path, shape):
    """Also of maps, whose shorter side would be less than a pixel."""
    cv2.imwrite(str(tmp_path / 'thin.png'), np.full(shape, 90, np.uint8))
    given = find_photographs(str(tmp_path))
    draw_photographs(nobody, COCO_SKELETON, given, str(tmp_path / 'out'), maps=True, **SETTING)
    assert cv2.imread(str(tmp_path / 'out' / 'thin_rendered.png')).shape == shape
    assert max(cv2.imread(str(tmp_path / 'out' / 'thin_maps.png')).shape) > 1280


def test_none_can_be_read(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(HEIC)
    with pytest.raises(UserError, match=r'none of the photographs .* skipped 1 files: 1 \.heic \(heif-convert'):
        draw_photographs(nobody, COCO_SKELETON, Photographs([str(tmp_path / 'a.jpg')], str(tmp_path), {}),
                         str(tmp_path / 'out'), **SETTING)


def test_outputs_of_many_photographs():
    """Two that differ in their endings alone keep these; a large folder takes no time."""
    paths = ['in/a.jpg', 'in/a.png', 'in/b/a.jpg', 'in/a.jpg.png'] + ['in/%d.jpg' % k for k in range(50000)]
    begin = time.perf_counter()
    prefixes = output_prefixes(paths, 'in', 'out')
    assert time.perf_counter() - begin < 5
    assert [prefixes[path] for path in paths[:5]] == [
        ('out/a.jpg', 'a.jpg'), ('out/a.png', 'a.png'), ('out/b/a', 'b/a.jpg'), ('out/a.jpg.png', 'a.jpg.png'),
        ('out/0', '0.jpg')]
    long = ['in/b/' + letter * 77 + '.jpg' for letter in '\u5c71\u6c34']  # 231 bytes and the ending
    stems = [os.path.basename(output_prefixes(long, 'in', 'out')[path][0]) for path in long]
    assert len(set(stems)) == 2 and max(len(os.fsencode(stem)) for stem in stems) <= 230
    assert [stem[0] for stem in stems] == ['\u5c71', '\u6c34']


# The network's output.

@pytest.mark.parametrize('setting', [dict(input_size=(192, 96)), dict(short_edge=96, scales=(1.0, 2.0), flip=True)],
                         ids=['letterboxed', 'averaged'])
def test_maps_lie_over_the_photograph(setting):
    """Whatever the network's input was, the nose's heatmap has its peak at the nose's share of the picture."""
    joints = random_people(np.random.RandomState(0), 1, 300, 400, 0.6, 0.7)
    transforms = make_transforms(300, 400, **setting)
    maps = [label_maps(pose_augment.transform_joints(joints, transform.matrix, COCO_SKELETON), transform.width,
                       transform.height, 8, COCO_SKELETON) for transform in transforms]
    over = maps_over_image(maps, transforms, COCO_SKELETON, 300, 400)
    assert over.shape[2] == 57 and abs(over.shape[0] / over.shape[1] - 4 / 3) < 0.15
    row, column = np.unravel_index(over[:, :, 0].argmax(), over.shape[:2])
    cell = 400 / over.shape[0]
    assert np.abs(joints[0, 0] - (cell * (column + 0.5), cell * (row + 0.5))).max() < cell
