"""COCO AP, from perfect maps, frozen graphs and checkpoints."""
import json
import sys
import zipfile

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pose_eval
from annotation_files import image_entry, person, write_split
from annotations.skeleton import COCO_SKELETON, skeleton_of_category
from annotations.splits import find_split
from conftest import ROOT, assert_user_error, run_command, run_well, summary_of
from image_folders import grey_image, write_coco
from inference.metrics import evaluate, load_coco
from inference.predictor import InputImage, Predictor, Request, make_transforms
from pages import Page
from pose_errors import UserError
from small_graphs import write_graph

SUMMARY_KEYS = ['AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'images', 'people', 'detections', 'PCK', 'decode_ms',
                'network_ms', 'waiting', 'input', 'scales', 'flip']


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ['keypoints_val2017_results.json', 'people_val2017.png',
                                                                'report.html']
    page = Page((tmp_path / 'report.html').read_bytes())
    assert page.below['oracle at stride 8 on val2017'][:2] == ['%.3f' % summary['AP'], 'AP']
    assert page.tables['Average precision'][1][:3] == ['all', str(summary['people']), '%.3f' % summary['AP']]
    assert {image['alt'] for image in page.images} >= {'Precision and recall', 'AP at each threshold'}


def test_no_pictures(sample_coco, tmp_path):
    result = run_well('pose_eval.py', '--oracle', '--datapath=%s' % sample_coco, '--no-pictures', '--limit=2',
                      '--output-dir=%s' % tmp_path)
    assert summary_of(result)['images'] == 2 and 'picture: ' not in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['keypoints_val2017_results.json']


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


@pytest.mark.slow
def test_a_test_set_of_coco_gives_what_its_server_takes(sample_coco, tmp_path):
    """Images alone, as in image_info_test-dev2017.json: AP is not known here, and people found go into an archive."""
    content = json.loads((sample_coco / 'annotations' / 'person_keypoints_val2017.json').read_text())
    (tmp_path / 'annotations').mkdir()
    del content['annotations']
    content['categories'] = [dict(id=1, name='person'), dict(id=2, name='bicycle')]
    (tmp_path / 'annotations' / 'image_info_test-dev2017.json').write_text(json.dumps(content))
    (tmp_path / 'test2017').symlink_to(sample_coco / 'val2017')
    weights = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_rendered.npy'
    result = run_well('pose_eval.py', '--weights=%s' % weights, '--datapath=%s' % tmp_path, '--scale=128',
                      '--split=image_info_test-dev2017.json', '--output-dir=%s' % (tmp_path / 'out'))
    summary, name = summary_of(result), 'person_keypoints_test-dev2017_mobilenet-thin-rendered_results'
    assert summary['AP'] == -1 and summary['detections'] > 0
    with zipfile.ZipFile(str(tmp_path / 'out' / (name + '.zip'))) as archive:
        assert archive.namelist() == [name + '.json']
        results = json.loads(archive.read(name + '.json').decode())
    assert len(results) == summary['detections'] and (tmp_path / 'out' / (name + '.json')).exists()
    assert set(results[0]) == {'image_id', 'category_id', 'keypoints', 'score'} and len(results[0]['keypoints']) == 51
    assert {person['image_id'] for person in results} <= {image['id'] for image in content['images']}
    assert {person['category_id'] for person in results} == {1}


# Graphs.

def test_a_graph_of_another_kind_is_refused(tmp_path):
    """Right names, wrong contents: 19 channels as of a network without PAFs, or maps for another batch size."""
    for maps, mention in ((np.zeros((1, 8, 8, 19)), '57'), (np.zeros((2, 8, 8, 57)), '2, 8, 8, 57. for an input')):
        with pytest.raises(UserError, match=mention):
            predict_maps, _ = pose_eval.open_network(graph_file=str(write_graph(tmp_path / 'g.pb', maps)))
            transforms = make_transforms(64, 64, (64, 64))
            request = Request('photo', lambda: InputImage(np.zeros((64, 64, 3), np.uint8), 1, transforms, None))
            list(Predictor(predict_maps, COCO_SKELETON).find_people([request]))


# Flags.

@pytest.mark.parametrize('args, mention', [
    ('', '--graph'), ('--graph=g.pb', '--datapath'), ('--graph=g.pb --checkpoint=c --datapath=d', '--graph'),
    ('--checkpoint=/nowhere/c --datapath=d', 'no checkpoint /nowhere/c'), ('--oracle --images=d', '--datapath'),
    ('--oracle --datapath=d --smooth', '--smooth goes with --video'),
    ('--graph=g.pb --model=cmu --datapath=d', '--checkpoint'), ('--oracle=5 --datapath=d', '--oracle'),
    ('--oracle --datapath=d --input-size=370x368', 'multiples of 8'),
    ('--oracle --datapath=d --input-size=368', '--input-size'),
    ('--oracle --datapath=d --input-size=368x368 --scale=368', '--scale'),
    ('--oracle --datapath=d --limit=0', '--limit'), ('--oracle --datapath=d --maps', '--images'),
    ('--graph=g.pb --video=d --no-pictures', '--no-pictures'),
    ('--graph=g.pb --images=d --category=dog', '--category goes with --datapath'),
    ('--graph=g.pb --video=d --split=val2017', '--split goes with --datapath'),
    ('--graph=g.pb --images=d --pictures=2 --maps', 'not allowed'),
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


def test_an_error_of_the_command_is_one_line(tmp_path):
    """It comes before TensorFlow is imported, and leaves nothing behind."""
    result = run_command('pose_eval.py', '--oracle', '--datapath=%s' % tmp_path, '--split=test2017',
                         '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, 'test2017')
    assert not (tmp_path / 'out').exists()

    # Nothing is replaced, so that nothing is said of it.
    result = run_command('pose_eval.py', '--oracle', '--datapath=%s' % tmp_path, '--split=test2017',
                         '--output-dir=/')
    assert_user_error(result, 'test2017')
    assert 'is not empty' not in result.stderr


def test_people_are_put_together_by_the_networks_limbs(tmp_path):
    """The same keypoints may have other limbs in a data set that was written anew."""
    category = {'id': 1, 'name': 'dog', 'keypoints': ['a', 'b', 'c'], 'skeleton': [[1, 2], [2, 3]]}
    own = skeleton_of_category(dict(category, skeleton=[[1, 2], [1, 3]]), 'f')
    entry = person(1, keypoints=[50, 60, 2, 70, 80, 2, 80, 90, 2], num_keypoints=3)
    file, folder = write_split(tmp_path, [entry])
    content = dict(json.loads(open(file).read()), categories=[category])
    with open(file, 'w') as written:
        json.dump(content, written)
    assert pose_eval.read_labels(file, folder, None, own).skeleton.limbs == own.limbs


def test_missing_images_are_told_before_the_first(tmp_path):
    """And those of two folders that would be one file."""
    images = [image_entry(1, 'one/a.jpg'), image_entry(2, 'two/a.jpg'), image_entry(3, 'b.jpg')]
    file, folder = write_split(tmp_path, [person(1)], images, names=['a.jpg'], split='val2017')
    with pytest.raises(UserError, match=r'3 of the 3 images of .* are not in .*one/a.jpg, two/a.jpg, b.jpg'):
        evaluate(None, file, folder, oracle_stride=8)


def test_files_of_the_same_names_are_replaced_with_a_warning(sample_coco, tmp_path):
    (tmp_path / 'mine.txt').write_text('')
    result = run_well('pose_eval.py', '--oracle', '--datapath=%s' % sample_coco, '--limit=2',
                      '--output-dir=%s' % tmp_path)
    assert 'is not empty' in result.stderr and (tmp_path / 'mine.txt').exists()


def test_a_graph_of_fixed_size_says_so(sample_coco, monkeypatch, tmp_path):
    graph = write_graph(tmp_path / 'g.pb', np.zeros((1, 50, 80, 57)), (1, 400, 640, 3))
    args = ['--graph=%s' % graph, '--datapath=%s' % sample_coco, '--output-dir=%s' % (tmp_path / 'out')]
    for size in ('--scale=368', '--input-size=368x368', '--scales=0.5,1'):
        parse(monkeypatch, *(args + [size]))
        with pytest.raises(UserError, match='640x400'):
            pose_eval.main()
    assert not (tmp_path / 'out').exists()
