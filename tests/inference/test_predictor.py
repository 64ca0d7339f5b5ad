"""Reading, network and decoding side by side: the same people in the same order, and errors that arrive."""
import os
import signal
import time
import weakref

import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from benchmarks.bench_inputs import random_people
from conftest import PROGRAMS, descendants, is_running, wait_for
from inference.metrics import label_maps
from inference.predictor import MAX_BATCH_PIXELS, InputImage, Predictor, Request, make_transforms, start_decoders
from pose_augment import transform_joints
from pose_errors import UserError

STRIDE = 8


def requests_for(sizes, flip=False):
    """Requests of images with one person each, the network that finds these, their joints, and the sizes of batches.

    An image is as bright as its number says, its left column is white: so the network knows whom it sees, and how.
    """
    random = np.random.RandomState(0)
    people, batches = [random_people(random, 1, width, height, 0.7, 0.9) for width, height in sizes], []

    def transforms_of(key):
        return make_transforms(*sizes[key], short_edge=min(sizes[key]), flip=flip)

    def request(key):
        pixels = np.full(sizes[key][::-1] + (3,), key, np.uint8)
        pixels[:, 0] = 255
        return Request(key, lambda: InputImage(pixels, 1, transforms_of(key), None))

    def predict_maps(images):
        maps = []
        batches.append(len(images))
        for image in images:
            key, is_mirrored = int(np.median(image)), image[0, 0, 0] < image[0, -1, 0]
            transform = transforms_of(key)[int(is_mirrored)]
            joints = transform_joints(people[key], transform.matrix, COCO_SKELETON)
            maps.append(label_maps(joints, transform.width, transform.height, STRIDE, COCO_SKELETON))
        return np.stack(maps)
    return [request(key) for key in range(len(sizes))], predict_maps, people, batches


def check(found, people):
    assert [key for key, _, _, _ in found] == list(range(len(people)))
    for (_, _, keypoints, scores), joints in zip(found, people):
        assert len(scores) == 1 and np.nanmax(np.linalg.norm(keypoints[0, :, :2] - joints[0], axis=1)) < 4


@pytest.mark.parametrize('batchsize, decoders', [(1, 0), (4, 2)])
def test_people_come_in_order_whatever_runs_beside(batchsize, decoders):
    requests, predict_maps, people, batches = requests_for([(256, 192)] * 5 + [(192, 256)] * 3 + [(256, 192)])
    with start_decoders(decoders) as executor:
        predictor = Predictor(predict_maps, COCO_SKELETON, batchsize, executor)
        check(list(predictor.find_people(requests)), people)
    assert batches == ([1] * 9 if batchsize == 1 else [4, 1, 3, 1])
    timings = predictor.timings()
    assert timings['decode_ms'] > 0 and timings['network_ms'] > 0 and 0 <= timings['waiting'] < 1


def test_images_that_cannot_be_read_are_left_out():
    requests, predict_maps, *_ = requests_for([(192, 192)] * 3)
    requests[1] = Request(1, lambda: None)
    assert [key for key, _, _, _ in Predictor(predict_maps, COCO_SKELETON).find_people(requests)] == [0, 2]
    predictor = Predictor(predict_maps, COCO_SKELETON)
    assert list(predictor.find_people([Request(0, lambda: None)])) == [] and predictor.timings()['network_ms'] is None


def test_large_images_go_one_by_one():
    """Memory: what runs at once is bounded in pixels, mirror images included."""
    requests, predict_maps, people, batches = requests_for([(1200, 1200)] * 2, flip=True)
    check(list(Predictor(predict_maps, COCO_SKELETON, batchsize=8).find_people(requests)), people)
    assert batches == [1] * 4 and MAX_BATCH_PIXELS < 2 * 1200 * 1200


def test_large_photographs_wait_one_by_one(monkeypatch):
    """Memory: twenty photographs of 3 MB where 4 MB may wait on each side of the network. Without the bound, 13 waited
    before it and 8 after it."""
    monkeypatch.setattr('inference.predictor.MAX_HELD_BYTES', 4 << 20)
    transforms = make_transforms(1000, 1000, short_edge=64, scales=(0.5, 1, 1.5), flip=True)
    alive, counts = weakref.WeakSet(), []

    class Pixels(np.ndarray):
        __hash__ = object.__hash__

    def read():
        pixels = np.zeros((1000, 1000, 3), np.uint8).view(Pixels)
        alive.add(pixels)
        counts.append(len(alive))
        return InputImage(pixels, 1, transforms, None)

    def nobody(images):
        return np.zeros((len(images), images.shape[1] // STRIDE, images.shape[2] // STRIDE, 57), np.float32)

    predictor = Predictor(nobody, COCO_SKELETON, batchsize=4)
    assert len([key for key, *_ in predictor.find_people(Request(key, read) for key in range(20))]) == 20
    assert max(counts) <= 4  # one being read, one in the network, one after it, one in the caller's hands


def test_errors_of_readers_and_decoders_arrive():
    requests, predict_maps, *_ = requests_for([(192, 192)] * 20)

    def broken():
        raise UserError('image 2 is broken')
    with pytest.raises(UserError, match='image 2'):
        list(Predictor(predict_maps, COCO_SKELETON).find_people(requests[:2] + [Request(2, broken)]))
    with start_decoders(1) as executor, pytest.raises(UserError, match='NaN'):
        diverged = Predictor(lambda images: np.full((len(images), 8, 8, 57), np.nan), COCO_SKELETON, 1, executor)
        list(diverged.find_people(requests))
    with pytest.raises(UserError, match='a process that decodes'):
        with start_decoders(1) as executor:
            found = Predictor(predict_maps, COCO_SKELETON, 1, executor).find_people(requests)
            next(found)
            os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
            time.sleep(0.5)
            list(found)


def test_nothing_outlives_a_command_that_is_killed(start_program):
    process = start_program(PROGRAMS / 'hold_decoders.py')
    wait_for(lambda: 'started' in process.log.read_text(), 'the processes start')
    helpers = descendants(process.pid)
    assert len(helpers) >= 3  # two that decode, and the one that forks them
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_running, helpers)), 'they end', 10)
