"""COCO AP from perfect maps, from worse ones and on odd data; the way back to image pixels."""
import json
import shutil

import numpy as np
import pytest

import tool_files
from annotations.coco import read_dataset
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from inference.metrics import evaluate, load_coco, measure, table_of
from pose_errors import UserError

FIGURES = ['AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'images', 'people', 'detections']  # of a summary; also times


@pytest.mark.parametrize('stride', [8, 4])
@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_perfect_maps_of_real_photographs_reach_the_bound(coco_photos, split, stride):
    """Label geometry, decoding and the way back to image pixels, all at once."""
    summary = evaluate(None, *find_split(str(coco_photos), split), oracle_stride=stride, short_edge=736)[0]
    assert summary['AP'] >= 0.983 and summary['AP50'] == 1
    assert (summary['images'], summary['people']) == ((3, 7) if split == 'train2017' else (1, 5))


def test_a_batch_gives_what_single_images_give(sample_coco):
    files = find_split(str(sample_coco), 'val2017')
    single, results, _ = evaluate(None, *files, input_size=(256, 192), oracle_stride=8)
    batch, batch_results, evaluation = evaluate(None, *files, input_size=(256, 192), oracle_stride=8, batchsize=4)
    assert results == batch_results and len(results) > 0
    assert all(single[key] == batch[key] for key in FIGURES)
    assert '%.3f' % batch['AP'] in table_of(evaluation)


def test_keypoints_that_are_half_a_cell_off_give_a_lower_ap(sample_coco):
    """The classic mistake."""
    files = find_split(str(sample_coco), 'val2017')
    summary, results, _ = evaluate(None, *files, input_size=(192, 192), oracle_stride=8)
    coco = load_coco(files[0])
    for result in results:
        size = coco.loadImgs(result['image_id'])[0]
        keypoints = np.reshape(result['keypoints'], (-1, 3))
        keypoints[:, :2] += 4 * max(size['width'], size['height']) / 192
        result['keypoints'] = keypoints.ravel().tolist()
    assert measure(coco, coco.getImgIds(), results, COCO_SKELETON)[0]['AP'] < summary['AP'] - 0.1


def test_nobody_found_is_an_ap_of_zero(sample_coco):
    def empty(images):
        return np.zeros((len(images), 16, 16, 57), np.float32)

    summary, results, evaluation = evaluate(empty, *find_split(str(sample_coco), 'val2017'), input_size=(128, 128))
    assert results == [] and summary['AP'] == 0 and summary['detections'] == 0 and summary['people'] > 0
    assert 'Average Recall' in table_of(evaluation)


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'text'])
def test_a_bad_image_stops_the_evaluation(sample_coco, tmp_path, damage):
    """An AP over fewer images would not compare with others."""
    shutil.copytree(str(sample_coco), str(tmp_path / 'coco'))
    victim = sorted((tmp_path / 'coco' / 'val2017').iterdir())[2]
    data = victim.read_bytes()
    victim.unlink()
    if damage != 'missing':
        victim.write_bytes(data[:len(data) // 2] if damage == 'truncated' else b'no image')
    with pytest.raises(UserError, match=victim.name):
        evaluate(None, *find_split(str(tmp_path / 'coco'), 'val2017'), oracle_stride=8, input_size=(128, 128))


def test_people_come_back_in_image_pixels(coco_photos):
    """Through a letterbox of another shape and scale, at a mean error under 1 px."""
    annotation_file, folder = find_split(str(coco_photos), 'train2017')
    coco = load_coco(annotation_file)
    person = coco.loadAnns(coco.getAnnIds(imgIds=[785]))[0]
    _, results, _ = evaluate(None, annotation_file, folder, input_size=(432, 368), limit=1, oracle_stride=8)
    found, labelled = (np.array(p['keypoints']).reshape(17, 3) for p in (results[0], person))
    assert (found[:, 2] == 1).all()
    assert np.linalg.norm(found[:, :2] - labelled[:, :2], axis=1).mean() < 1


@pytest.mark.parametrize('limbs', [tool_files.LIMBS, [[1, 2], [1, 3], [2, 4], [3, 5]]], ids=['circle', 'tree'])
def test_five_keypoints_of_a_tools_file_reach_the_oracles_ap(sample_coco, tmp_path, limbs):
    """Ids as text, another category beside, no areas: the labels' own maps find nearly everybody again, also where a
    hidden nose takes a tree of limbs apart."""
    with open(str(sample_coco / 'annotations' / 'person_keypoints_val2017.json')) as file:
        content = json.load(file)
    tool_files.from_coco(content)
    content['categories'][0]['skeleton'] = limbs
    path = tmp_path / 'tool.json'
    path.write_text(json.dumps(content))
    dataset = read_dataset(str(path))
    assert len(dataset.skeleton.parts) == 5 and dataset.skipped['annotations of other categories'] == 1
    summary, results, _ = evaluate(None, str(path), str(sample_coco / 'val2017'), short_edge=368, flip=True,
                                   dataset=dataset, oracle_stride=8)
    assert summary['AP'] > 0.85 and len(results[0]['keypoints']) == 15
