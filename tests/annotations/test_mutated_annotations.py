"""Annotation files with anything changed in them: both commands read them, or say in one line why not."""
import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pose_labels
from annotation_files import keypoints, person
from annotations.arrays import annotations_of, build_arrays, ignored_regions
from annotations.coco import as_pycocotools, read_dataset
from annotations.skeleton import COCO_SKELETON
from inference.metrics import labelled_people, measure
from pose_errors import UserError

OUTLINE = [[40, 50, 100, 50, 100, 130, 40, 130]]
VALID = {
    'images': [{'id': 1, 'file_name': 'a.jpg', 'width': 320, 'height': 240},
               {'id': 2, 'file_name': 'b.jpg', 'width': 100, 'height': 90}],
    'annotations': [person(1, segmentation=OUTLINE),
                    person(2, keypoints=keypoints(200, 20, 9), num_keypoints=9, bbox=[190, 10, 40, 60]),
                    person(3, num_keypoints=0, segmentation=OUTLINE),
                    person(4, image_id=2, keypoints=keypoints(50, 30), bbox=[40, 20, 50, 65]),
                    person(5, iscrowd=1, num_keypoints=0,
                           segmentation={'size': [240, 320], 'counts': [100, 200, 76500]}),
                    person(6, image_id=2, iscrowd=1, num_keypoints=0,
                           segmentation={'size': [90, 100], 'counts': 'T1\\c3'})],
    'categories': [{'id': 1, 'name': 'person', 'keypoints': list(COCO_SKELETON.keypoints), 'skeleton': [[1, 2]]}]}

ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, float('nan'), float('inf'), 10 ** 400, 2 ** 63,
                     -2 ** 63, 40000, '', 'x', '1', '1e999', '\ud800', '\x1b[31m', 'a\0b', '../../a.jpg', '/etc/passwd',
                     'x' * 5000, [], [[]], {}, {'size': [1, 1]}, {'counts': 'oooo'}, [None] * 6, [0] * 51, [[1] * 7]]),
    st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(-5, 500), max_size=8))
KINDS = st.sampled_from(['replace', 'remove', 'double'])
MUTATIONS = st.lists(st.tuples(st.randoms(use_true_random=False), KINDS, ODD), min_size=1, max_size=4)
BOUNDED = settings(max_examples=400, derandomize=True, deadline=None, database=None,
                   suppress_health_check=list(HealthCheck))


def mutate(tree, random, kind, value):
    """Change one place of a tree of dicts and lists, any depth being as likely."""
    place = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        at = random.choice(keys)
        if isinstance(place[at], (dict, list)) and place[at] and random.random() < 0.8:
            place = place[at]
        elif kind == 'replace':
            place[at] = copy.deepcopy(value)
            return
        elif kind == 'remove':
            del place[at]
            return
        else:
            if isinstance(place, list):
                place.append(copy.deepcopy(place[at]))
            return


def read_for_training(path):
    annotations = annotations_of(build_arrays(read_dataset(path), path))
    for image, (width, height) in enumerate(annotations.image_size):
        if width * height < 10 ** 6:
            mask = pose_labels.render_mask(*ignored_regions(annotations, image), np.eye(2, 3), 8, 8, 8)
            assert np.isfinite(mask).all()


def read_for_evaluation(path):
    dataset = read_dataset(path)
    coco = as_pycocotools(dataset)
    image_ids = sorted(coco.getImgIds())
    if image_ids:  # as evaluate() asks before it starts
        results = [{'image_id': found['image_id'], 'category_id': 1, 'keypoints': found['keypoints'], 'score': 0.5}
                   for found in labelled_people(coco, image_ids)]
        summary, _ = measure(coco, image_ids, results, dataset.skeleton)
        json.dumps([summary, results])


def reads_or_says(path):
    for read in (read_for_training, read_for_evaluation):
        try:
            read(str(path))
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 1000


def test_the_valid_file_is_read(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(VALID))
    read_for_training(str(tmp_path / 'a.json'))
    read_for_evaluation(str(tmp_path / 'a.json'))


@pytest.mark.slow
@BOUNDED
@given(mutations=MUTATIONS)
def test_mutated_values(mutations, tmp_path):
    tree = copy.deepcopy(VALID)
    for mutation in mutations:
        mutate(tree, *mutation)
    (tmp_path / 'a.json').write_text(json.dumps(tree))
    reads_or_says(tmp_path / 'a.json')


@pytest.mark.slow
@BOUNDED
@given(places=st.lists(st.tuples(st.integers(0, 10 ** 6), st.integers(0, 3), st.binary(max_size=3)), min_size=1,
                       max_size=3))
def test_mutated_bytes(places, tmp_path):
    data = json.dumps(VALID).encode()
    for at, removed, added in places:
        data = data[:at % len(data)] + added + data[at % len(data) + removed:]
    (tmp_path / 'a.json').write_bytes(data)
    reads_or_says(tmp_path / 'a.json')
