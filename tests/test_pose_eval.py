"""COCO AP and pictures, from perfect maps, frozen graphs and checkpoints."""
import json
import os
import shutil
import sys
import time

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pose_augment
import pose_eval
import tensorflow.compat.v1 as tf
from annotations.images import find_split
from annotations.skeleton import COCO_SKELETON
from benchmarks.bench_inputs import random_people, render_maps
from conftest import assert_user_error, run_command, run_well, summary_of
from image_folders import grey_image, write_coco
from inference.metrics import label_maps, load_coco
from inference.predictor import InputImage, Predictor, Request, make_transforms
from pose_errors import UserError

SUMMARY_KEYS = ['AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'images', 'people', 'detections', 'PCK', 'decode_ms',
                'network_ms', 'waiting', 'input', 'scales', 'flip']


def write_graph(path, maps, image_shape=(None, None, None, 3)):
    """A frozen graph that gives the same maps (B, h, w, 57) whatever the image is."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, image_shape, name='image')
        tf.add(tf.constant(np.asarray(maps, np.float32)), 0 * tf.reduce_mean(image), name='Openpose/concat_stage7')
        path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def parse(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['pose_eval.py'] + [str(arg) for arg in args])
    return pose_eval.parse_flags()


def cocos_evaluation(data, out):
    """What COCO's own tools make of the results file."""
    coco = COCO(str(data / 'annotations' / 'person_keypoints_val2017.json'))
    evaluation = COCOeval(coco, coco.loadRes(str(out / 'keypoints_val2017_results.json')), 'keypoints')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


# The command on a data set.

def test_the_command_on_rendered_data(sample_coco, tmp_path):
    result = run_well('pose_eval.py', '--oracle', '--datapath=%s' % sample_coco, '--scale=736',
                      '--output-dir=%s' % tmp_path)
    summary = summary_of(result)
    assert list(summary) == SUMMARY_KEYS and summary['network_ms'] is None
    assert summary['AP'] >= 0.9 and summary['images'] == 6 and summary['decode_ms'] > 0
    assert 'Average Precision' in result.stdout and 'index created' not in result.stdout

    evaluation = cocos_evaluation(sample_coco, tmp_path)
    assert abs(evaluation.stats[0] - summary['AP']) < 1e-3
    picture = cv2.imread(str(tmp_path / 'people_val2017.png'))
    assert picture is not None and picture.shape[1] > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ['keypoints_val2017_results.json', 'people_val2017.png']


def test_nobody_labelled_and_nobody_found(sample_coco, tmp_path):
    write_coco(tmp_path, {'%d.jpg' % k: grey_image(60 * k) for k in range(3)}, [], 'val2017')
    summary = summary_of(run_well('pose_eval.py', '--oracle', '--datapath=%s' % tmp_path,
                                  '--output-dir=%s' % (tmp_path / 'out')))
    assert (summary['AP'], summary['images'], summary['people'], summary['detections']) == (-1, 3, 0, 0)
    assert json.loads((tmp_path / 'out' / 'keypoints_val2017_results.json').read_text()) == []
    for folder in (sample_coco, tmp_path):
        annotation_file, images = find_split(str(folder), 'val2017')
        assert pose_eval.draw_results(load_coco(annotation_file), images, [], 2, None, COCO_SKELETON).any()


def test_the_summary_does_not_wait_for_the_picture(sample_coco, tmp_path):
    """An evaluation of hours is not lost with it."""
    (tmp_path / 'people_val2017.png').mkdir()
    result = run_command('pose_eval.py', '--oracle', '--datapath=%s' % sample_coco, '--output-dir=%s' % tmp_path)
    assert_user_error(result, 'people_val2017.png')
    assert summary_of(result)['AP'] > 0.5


def test_results_carry_the_ids_of_the_file(sample_coco, tmp_path):
    """So that pycocotools finds with them what the command says."""
    content = json.loads((sample_coco / 'annotations' / 'person_keypoints_val2017.json').read_text())
    content['categories'][0]['id'] = 7
    for entry in content['annotations']:
        entry['category_id'] = 7
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'person_keypoints_val2017.json').write_text(json.dumps(content))
    run_well('pose_eval.py', '--oracle', '--datapath=%s' % tmp_path, '--imgpath=%s' % sample_coco,
             '--output-dir=%s' % (tmp_path / 'out'))
    evaluation = cocos_evaluation(tmp_path, tmp_path / 'out')
    assert evaluation.params.catIds == [7] and evaluation.stats[0] > 0.7


# Graphs, checkpoints and pictures.

@pytest.fixture(scope='module')
def photo_graph(coco_photos, tmp_path_factory):
    """A folder of one real photograph, and a graph that knows its people."""
    folder = tmp_path_factory.mktemp('photo')
    (folder / 'images').mkdir()
    shutil.copy(str(coco_photos / 'val2017' / '000000197388.jpg'), str(folder / 'images'))
    coco = load_coco(find_split(str(coco_photos), 'val2017')[0])
    joints = COCO_SKELETON.joints([a['keypoints'] for a in coco.dataset['annotations']])
    matrix = pose_augment.fit_matrix(640, 392, 640, 400)
    moved = pose_augment.transform_joints(joints.astype(np.float64), matrix, COCO_SKELETON)
    write_graph(folder / 'graph.pb', label_maps(moved, 640, 400, 8, COCO_SKELETON)[None], (1, 400, 640, 3))
    return folder, joints


@pytest.mark.slow
def test_pictures_and_json_of_a_folder(photo_graph, tmp_path):
    folder, joints = photo_graph
    images = tmp_path / 'in'
    shutil.copytree(str(folder / 'images'), str(images))
    (images / 'broken.jpg').write_bytes(b'\xff\xd8 not really')
    (images / 'notes.txt').write_text('no photograph')
    (images / 'camera.HEIC').write_bytes(b'of a phone')
    (images / 'more').mkdir()
    cv2.imwrite(str(images / 'more' / '000000197388.png'), cv2.imread(str(images / '000000197388.jpg')))
    result = run_well('pose_eval.py', '--graph=%s' % (folder / 'graph.pb'), '--images=%s' % images,
                      '--output-dir=%s' % (tmp_path / 'out'))
    assert 'broken.jpg' in result.stderr and '1 .heic' in result.stderr
    outputs = ['000000197388_keypoints.json', '000000197388_rendered.png']
    assert sorted(os.listdir(str(tmp_path / 'out'))) == outputs + ['more']
    assert sorted(os.listdir(str(tmp_path / 'out' / 'more'))) == outputs
    summary = summary_of(result)
    assert summary['images'] == 2 and summary['people'] == 10 and summary['flip'] is False

    content = json.loads((tmp_path / 'out' / '000000197388_keypoints.json').read_text())
    assert (content['image'], content['width'], content['height']) == ('000000197388.jpg', 640, 392)
    photo = cv2.imread(str(images / '000000197388.jpg'))
    drawn = cv2.imread(str(tmp_path / 'out' / '000000197388_rendered.png'))
    assert drawn.shape == photo.shape
    for person in content['people']:
        points = np.array(person['pose_keypoints_2d']).reshape(18, 3)
        here = points[:, 2] > 0
        error = min(np.linalg.norm(points[here, :2] - labelled[here], axis=1).mean() for labelled in joints
                    if np.isfinite(labelled[here]).all())
        assert error < 1
        x, y = np.round(points[here, :2]).astype(int).clip(0, [639, 391]).T
        assert (np.abs(drawn[y, x].astype(int) - photo[y, x]).max(axis=1) > 25).mean() > 0.9


def test_a_graph_of_another_kind_is_refused(tmp_path):
    """Right names, wrong contents: 19 channels as of a network without PAFs, or maps for another batch size."""
    for maps, mention in ((np.zeros((1, 8, 8, 19)), '57'), (np.zeros((2, 8, 8, 57)), '2, 8, 8, 57. for an input')):
        with pytest.raises(UserError, match=mention):
            predict_maps, _ = pose_eval.open_network(graph_file=str(write_graph(tmp_path / 'g.pb', maps)))
            transforms = make_transforms(64, 64, (64, 64))
            request = Request('photo', lambda: InputImage(np.zeros((64, 64, 3), np.uint8), 1, transforms, None))
            list(Predictor(predict_maps, COCO_SKELETON).find_people([request]))


@pytest.mark.parametrize('found_in', [(0, 1, 3), (1, 2, 3), (0, 1, 2), ()], ids=['middle', 'first', 'last', 'all'])
def test_photographs_without_people(tmp_path, capsys, found_in):
    paths = [str(tmp_path / ('%d.png' % k)) for k in range(4)]
    for k, path in enumerate(paths):
        cv2.imwrite(path, np.full((96, 96, 3), 20 * k, np.uint8))
    person = render_maps(random_people(np.random.RandomState(0), 1, 96, 96, 0.7, 0.8), 96, 96, 8)

    def predict_maps(images):
        return np.stack([person * (int(np.median(image)) // 20 in found_in) for image in images])

    pose_eval.draw_photographs(predict_maps, COCO_SKELETON, paths, str(tmp_path), str(tmp_path / 'out'),
                               input_size=(96, 96), short_edge=None, scales=(1.0,), flip=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['people'] == len(found_in)
    for k in range(4):
        content = json.loads((tmp_path / 'out' / ('%d_keypoints.json' % k)).read_text())
        assert len(content['people']) == (k in found_in) and (tmp_path / 'out' / ('%d_rendered.png' % k)).exists()


def test_outputs_of_many_photographs():
    """Two that differ in their endings alone keep these; a large folder takes no time."""
    paths = ['in/a.jpg', 'in/a.png', 'in/b/a.jpg'] + ['in/%d.jpg' % k for k in range(50000)]
    begin = time.perf_counter()
    prefixes = pose_eval.output_prefixes(paths, 'in', 'out')
    assert time.perf_counter() - begin < 5
    assert [prefixes[path] for path in paths[:4]] == [
        ('out/a.jpg', 'a.jpg'), ('out/a.png', 'a.png'), ('out/b/a', 'b/a.jpg'), ('out/0', '0.jpg')]


# Flags.

@pytest.mark.parametrize('args, mention', [
    ('', '--graph'), ('--graph=g.pb', '--datapath'), ('--graph=g.pb --checkpoint=c --datapath=d', '--graph'),
    ('--checkpoint=/nowhere/c --datapath=d', 'no checkpoint /nowhere/c'), ('--oracle --images=d', '--datapath'),
    ('--oracle --datapath=d --smooth', '--smooth goes with --video'),
    ('--graph=g.pb --model=cmu --datapath=d', '--checkpoint'), ('--oracle=5 --datapath=d', '--oracle'),
    ('--oracle --datapath=d --input-size=370x368', 'multiples of 8'),
    ('--oracle --datapath=d --input-size=368', '--input-size'),
    ('--oracle --datapath=d --input-size=368x368 --scale=368', '--scale'),
    ('--oracle --datapath=d --limit=0', '--limit'), ('--graph=g.pb --images=d --output-dir=d', '--output-dir'),
    ('--oracle --datapath=d --scales=1,nan', '--scales'), ('--oracle --datapath=d --scales=1,1', 'different'),
    ('--oracle --datapath=d --scales=100', '0.1 to 4'), ('--oracle --datapath=d --decoders=-1', '--decoders')])
def test_impossible_flags(monkeypatch, args, mention):
    monkeypatch.delenv('COCO_DIR', raising=False)
    with pytest.raises(UserError, match=mention):
        parse(monkeypatch, *args.split())


def test_data_is_found_through_the_environment_and_a_network_through_its_run(monkeypatch, tmp_path):
    (tmp_path / 'g.pb').write_bytes(b'')
    monkeypatch.setenv('COCO_DIR', '/data/coco')
    assert parse(monkeypatch, '--oracle').datapath == '/data/coco'
    assert parse(monkeypatch, '--oracle', '--datapath=d').datapath == 'd'
    assert parse(monkeypatch, '--graph=%s' % (tmp_path / 'g.pb'), '--images=photos').datapath is None
    (tmp_path / 'model-1.index').write_text('')
    with pytest.raises(UserError, match='--checkpoint needs --model'):
        parse(monkeypatch, '--checkpoint=%s' % (tmp_path / 'model-1'))


@pytest.mark.parametrize('args, mention', [
    (['--oracle', '--datapath={folder}', '--split=test2017'], 'test2017'),
    (['--graph={folder}/graph.pb', '--images={folder}'], 'no photographs'),
])
def test_errors_of_the_command_are_one_line(tmp_path, args, mention):
    """They come before TensorFlow is imported, and leave nothing behind."""
    (tmp_path / 'graph.pb').write_bytes(b'')
    result = run_command('pose_eval.py', *[arg.format(folder=tmp_path) for arg in args],
                         '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, mention)
    assert not (tmp_path / 'out').exists()


def test_a_graph_of_fixed_size_says_so(photo_graph, coco_photos, monkeypatch, tmp_path):
    folder, _ = photo_graph
    args = ['--graph=%s' % (folder / 'graph.pb'), '--datapath=%s' % coco_photos, '--output-dir=%s' % (tmp_path / 'out')]
    for size in ('--scale=368', '--input-size=368x368', '--scales=0.5,1'):
        parse(monkeypatch, *(args + [size]))
        with pytest.raises(UserError, match='640x400'):
            pose_eval.main()
    assert not (tmp_path / 'out').exists()
