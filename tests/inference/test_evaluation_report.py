"""The page of an evaluation: it names the right mistakes and images, and its figures are those of the summary."""
import base64

import cv2
import numpy as np
import pytest

from annotations.coco import as_pycocotools, read_dataset
from annotations.splits import find_split
from conftest import PROGRAMS, run_command
from image_folders import grey_image, keypoints, write_coco
from inference.metrics import labelled_people, measure
from inference.mistakes import false_score, find_mistakes, highest, misplaced_keypoints, missed_people, quality
from inference.report import evaluation_page
from pages import Page

HOSTILE = '<img src=x onerror=alert(1)>&".jpg'
NAMES = ['missed.jpg', HOSTILE, 'misplaced.jpg', 'good.jpg', 'better.jpg', 'nobody.jpg']
MOVED = 1, 9, 10  # keypoints of a person in misplaced.jpg that are far off; the last one is not found
BOX = [200, 80, 120, 320]


@pytest.fixture(scope='module')
def mistaken(tmp_path_factory):
    """Two people in each image but the last, of whom all is found but what the images' names say; in good.jpg all is a
    little off. (Dataset, image folder, summary, results, COCOeval)."""
    folder = tmp_path_factory.mktemp('mistaken')
    people = [(name, keypoints(x, 100), BOX) for name in NAMES[:-1] for x in (100, 400)]
    write_coco(folder, {name: grey_image() for name in NAMES}, people, 'val2017')
    annotation_file, images = find_split(str(folder), 'val2017')
    dataset = read_dataset(annotation_file)
    coco = as_pycocotools(dataset)
    results = [{'image_id': 1 + NAMES.index(name), 'category_id': 1, 'score': 0.8, 'keypoints': list(points)}
               for name, points, _ in people if name != 'missed.jpg']
    one, good = ([result for result in results if result['image_id'] == 1 + NAMES.index(name)]
                 for name in ('misplaced.jpg', 'good.jpg'))
    for k in MOVED:
        one[0]['keypoints'][3 * k] += 310
    one[0]['keypoints'][3 * 16:] = [0, 0, 0]
    for result in good:
        result['keypoints'][::3] = [x + 3 for x in result['keypoints'][::3]]
    results += [{'image_id': 1 + NAMES.index(HOSTILE), 'category_id': 1, 'score': 0.7, 'keypoints': keypoints(250, 20)},
                {'image_id': 6, 'category_id': 1, 'score': 0.6, 'keypoints': keypoints(250, 20)},
                {'image_id': 6, 'category_id': 1, 'score': 0.9, 'keypoints': [5, 5, 1] + [0] * 48}]
    summary, evaluation = measure(coco, coco.getImgIds(), results, dataset.skeleton)
    return dataset, images, summary, results, evaluation


def test_mistakes_are_counted_where_they_are(mistaken):
    *_, evaluation = mistaken
    images = {NAMES[image.image_id - 1]: image for image in find_mistakes(evaluation)}
    counts = {name: (missed_people(image), len(image.false), misplaced_keypoints(image), len(image.matches))
              for name, image in images.items()}
    assert counts == {'missed.jpg': (2, 0, 0, 0), HOSTILE: (0, 1, 0, 2), 'misplaced.jpg': (0, 0, 3, 2),
                      'good.jpg': (0, 0, 0, 2), 'better.jpg': (0, 0, 0, 2), 'nobody.jpg': (0, 1, 0, 0)}
    match = min(images['misplaced.jpg'].matches, key=lambda match: match.oks)
    assert np.nonzero(match.misplaced)[0].tolist() == list(MOVED)
    assert np.nonzero(match.absent)[0].tolist() == [16] and match.similarity[1] == 0  # so far off
    assert match.oks == pytest.approx(13 / 17, abs=0.01)
    for image in images.values():  # as pycocotools computes them
        for match in image.matches:
            assert np.isclose(evaluation.ious[image.image_id, 1], match.oks).any()
    ranked = {measure: [NAMES[image.image_id - 1] for image in highest(images.values(), measure, 2)]
              for measure in (missed_people, false_score, misplaced_keypoints, quality)}
    assert ranked == {missed_people: ['missed.jpg'], false_score: [HOSTILE, 'nobody.jpg'],
                      misplaced_keypoints: ['misplaced.jpg'], quality: ['better.jpg', 'good.jpg']}


def test_crowds_and_people_without_keypoints_are_no_mistakes(tmp_path):
    write_coco(tmp_path, {'a.jpg': grey_image()}, [('a.jpg', keypoints(), BOX), ('a.jpg', keypoints(400), BOX)])
    dataset = read_dataset(find_split(str(tmp_path), 'train2017')[0])
    dataset.annotations[0]['iscrowd'] = 1
    dataset.annotations[1].update(num_keypoints=0, keypoints=[0] * 51)
    _, evaluation = measure(as_pycocotools(dataset), [1], [], dataset.skeleton)
    assert [image[1:] for image in find_mistakes(evaluation)] == [([], [], [])]


def test_the_page_shows_the_worst_images_and_the_figures_of_the_summary(mistaken):
    dataset, folder, summary, results, evaluation = mistaken
    setting = {'network': '</td><b>n</b>', 'scales': [1.0]}
    page = Page(evaluation_page(summary, results, evaluation, dataset.skeleton, folder, 'A & B', setting))
    assert page.below['Most people missed'][1:] == ['missed.jpg', ': 2 of 2 people missed']
    assert page.below['Most wrong people'][1:] == [HOSTILE, ': 2 of 2 people found, 1 wrong (score 0.70), OKS 1.00',
                                                   'nobody.jpg', ': 0 of 0 people found, 1 wrong (score 0.60)']
    assert page.below['Most keypoints misplaced'][1:3] == [
        'misplaced.jpg', ': 2 of 2 people found, 3 keypoints misplaced, OKS 0.88']
    assert page.below['Best images'][:2] == ['better.jpg', ': 2 of 2 people found, OKS 1.00']

    tiles = dict(zip(page.below['A & B'][1::2], page.below['A & B'][::2]))
    assert tiles == {name: '%.3f' % summary[name] for name in ('AP', 'AP50', 'AP75', 'AR', 'PCK')}
    assert '6 images, 10 labelled people, 11 found.' in page.below['A & B']
    everybody, medium, large = page.tables['Average precision'][1:]
    assert everybody == ['all', '10'] + [tiles[name] for name in ('AP', 'AP50', 'AP75', 'AR')]
    assert medium == ['medium', '0'] + 4 * ['\u2013'] and large[:3] == ['large', '10', '%.3f' % summary['APl']]
    head, *rows = page.tables['Keypoints']
    rows = {row[0]: dict(zip(head, row)) for row in rows}
    assert list(rows) == list(dataset.skeleton.keypoints)
    assert [row['misplaced'] for row in rows.values()] == [str(int(k in MOVED)) for k in range(17)]
    assert rows['nose']['PCK'] == '0.800' and rows['right_wrist']['PCK'] == '0.700'
    assert [row['not found'] for row in rows.values()] == 16 * ['0'] + ['1']
    assert [row[1] for row in page.tables['Mistakes']] == ['8', '2', '2', '2', '3', '1']
    assert page.tables['Setting'] == [['network', '</td><b>n</b>'], ['scales', '[1.0]']]


def test_what_is_wrong_is_red(mistaken):
    dataset, folder, summary, results, evaluation = mistaken
    page = Page(evaluation_page(summary, results, evaluation, dataset.skeleton, folder, 'title', {}))
    pictures = {image['alt'].split(' in ')[1]: image['src'] for image in page.images if ' in ' in image['alt']}
    assert set(pictures) == set(NAMES)
    reds = {}
    for name, source in pictures.items():
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(',')[1]), np.uint8), cv2.IMREAD_COLOR)
        red = (np.abs(pixels.astype(int) - (40, 40, 225)) < 30).all(axis=2)
        reds[name] = tuple(int(half.sum()) > 200 for half in np.array_split(red, 2, axis=1))
    assert reds['missed.jpg'] == (True, False)
    assert reds[HOSTILE] == reds['nobody.jpg'] == reds['misplaced.jpg'] == (False, True)
    assert reds['better.jpg'] == reds['good.jpg'] == (False, False)


def test_nobody_labelled_and_nobody_found(tmp_path):
    write_coco(tmp_path, {'a.jpg': grey_image()}, [], 'val2017')
    dataset = read_dataset(find_split(str(tmp_path), 'val2017')[0])
    summary, evaluation = measure(as_pycocotools(dataset), [1], [], dataset.skeleton)
    assert labelled_people(evaluation.cocoGt, [1]) == []
    page = Page(evaluation_page(summary, [], evaluation, dataset.skeleton, str(tmp_path), 'title', {}))
    assert page.images == [] and 'Nobody is labelled: there are no curves.' in page.below['Average precision']
    assert page.below['title'][:2] == ['\u2013', 'AP'] and '\u2013' in page.tables['Keypoints'][1]


@pytest.mark.parametrize('shape', [(2, 2000, 3), (2000, 2, 3)])
def test_a_thin_image_is_shown_too(tmp_path, shape):
    image = np.full(shape, 90, np.uint8)
    write_coco(tmp_path, {'thin.png': cv2.imencode('.png', image)[1].tobytes()}, [('thin.png', keypoints(), BOX)])
    annotation_file, folder = find_split(str(tmp_path), 'train2017')
    dataset = read_dataset(annotation_file)
    dataset.images[0].update(height=shape[0], width=shape[1])
    summary, evaluation = measure(as_pycocotools(dataset), [1], [], dataset.skeleton)
    page = Page(evaluation_page(summary, [], evaluation, dataset.skeleton, folder, 'title', {}))
    assert page.below['Most people missed'][1:] == ['thin.png', ': 1 of 1 people missed']


def test_without_matplotlib_a_line_takes_the_place_of_a_chart(sample_coco, tmp_path):
    """As in the environment for inference alone."""
    result = run_command(PROGRAMS / 'without_packages.py', 'matplotlib,tensorflow', 'pose_eval.py', '--oracle',
                         '--limit=2', '--datapath=%s' % sample_coco, '--output-dir=%s' % tmp_path)
    assert result.returncode == 0, result.stderr
    page = Page((tmp_path / 'report.html').read_bytes())
    assert 'Precision and recall: a chart needs matplotlib (pip install matplotlib).' in page.below['Average precision']
