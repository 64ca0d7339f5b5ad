"""Samples as a tensorpack DataFlow."""
import json
import os

import numpy as np
import pytest

from image_folders import grey_image, keypoints, many_images, write_coco
from pose_dataset import get_dataflow
from pose_errors import UserError


@pytest.fixture
def one_image(tmp_path):
    return write_coco(tmp_path, {'a.jpg': grey_image()}, [('a.jpg', keypoints(), [230, 80, 150, 300])])


def test_bad_samples_are_skipped_counted_and_named_once(tmp_path, caplog):
    flow = get_dataflow(str(many_images(tmp_path, 18, 2)), 'train2017', 64, 64, 8, True, seed=0)
    for _ in range(2):
        flow.reset_state()
        assert len(list(flow)) == 18
    skipped = [record.getMessage() for record in caplog.records if 'skipped' in record.getMessage()]
    assert len(skipped) == 4 and sum('018.jpg is a truncated JPEG' in line for line in skipped) == 2


def test_a_single_bad_image_does_not_end_a_small_run(tmp_path):
    flow = get_dataflow(str(many_images(tmp_path, 2, 1)), 'train2017', 64, 64, 8, True, seed=0)
    flow.reset_state()
    assert len(list(flow)) == 2


def test_too_many_bad_samples_end_the_run(tmp_path):
    flow = get_dataflow(str(many_images(tmp_path, 14, 6)), 'train2017', 64, 64, 8, True, seed=0)
    flow.reset_state()
    with pytest.raises(UserError, match=r'\d+ of 20 samples were bad .*truncated JPEG.*repair'):
        list(flow)


def test_dataflow_shapes_and_order(sample_coco):
    flow = get_dataflow(str(sample_coco), 'train2017', 96, 64, 8, True, seed=3)
    flow.reset_state()
    samples = list(flow)
    assert len(samples) == len(flow) > 10
    shapes = [(a.shape, a.dtype) for a in samples[0]]
    assert shapes == [((64, 96, 3), np.uint8), ((8, 12, 19), np.float32), ((8, 12, 38), np.float32),
                      ((8, 12, 1), np.float32)]
    flow.reset_state()
    assert all(np.array_equal(a, b) for one, other in zip(samples, flow) for a, b in zip(one, other))
    validation = get_dataflow(str(sample_coco), 'val2017', 96, 64, 8, False)
    validation.reset_state()
    assert len(list(validation)) == len(validation) <= 6


def test_copies_in_other_processes_do_not_repeat_a_seed(one_image):
    flow = get_dataflow(str(one_image), 'train2017', 64, 64, 8, True, seed=3)
    flow.reset_state()
    here = flow.rng.uniform(size=3).tolist()
    seen = []
    for _ in range(2):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            flow.reset_state()
            os.write(write, json.dumps(flow.rng.uniform(size=3).tolist()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        seen.append(json.loads(os.read(read, 1000).decode()))
    assert here != seen[0] != seen[1] != here
