"""Reading, network and decoding side by side: the same people in the same order, and errors that arrive."""
import os
import signal
import time
import weakref

import numpy as np
import pytest

from benchmarks.bench_inputs import random_people
from inference.metrics import oracle_maps
from inference.predictor import MAX_BATCH_PIXELS, InputImage, Predictor, Request, make_views, start_decoders
from pose_errors import UserError

STRIDE = 8


def jobs(sizes, flip=False):
    """Jobs on blank images with one person each, and the people's joints."""
    random = np.random.RandomState(0)
    people = [random_people(random, 1, width, height, 0.7, 0.9) for width, height in sizes]

    def job(key):
        width, height = sizes[key]
        views = make_views(width, height, short_edge=min(width, height), flip=flip)
        return Request(key, lambda: InputImage(np.zeros((height, width, 3), np.uint8), 1, views, people[key]))
    return [job(key) for key in range(len(sizes))], people


def check(found, people):
    assert [key for key, _, _, _ in found] == list(range(len(people)))
    for (_, _, keypoints, scores), joints in zip(found, people):
        assert len(scores) == 1 and np.nanmax(np.linalg.norm(keypoints[0, :, :2] - joints[0], axis=1)) < 4


@pytest.mark.parametrize('batchsize, decoders', [(1, 0), (4, 2)])
def test_people_come_in_order_whatever_runs_beside(batchsize, decoders):
    batches = []

    def predict_maps(images, joints):
        batches.append(images.shape)
        return oracle_maps(STRIDE)(images, joints)

    sizes = [(256, 192)] * 5 + [(192, 256)] * 3 + [(256, 192)]
    todo, people = jobs(sizes)
    with start_decoders(decoders) as executor:
        finder = Predictor(predict_maps, batchsize, executor)
        check(list(finder.find(todo)), people)
    assert [shape[0] for shape in batches] == ([1] * 9 if batchsize == 1 else [4, 1, 3, 1])
    figures = finder.timings()
    assert figures['decode_ms'] > 0 and figures['network_ms'] > 0 and 0 <= figures['waiting'] < 1


def test_images_that_cannot_be_read_are_left_out():
    todo, people = jobs([(192, 192)] * 3)
    todo[1] = Request(1, lambda: None)
    assert [key for key, _, _, _ in Predictor(oracle_maps(STRIDE)).find(todo)] == [0, 2]


def test_large_images_go_one_by_one():
    """Memory: what runs at once is bounded in pixels, mirror images included."""
    seen = []

    def predict_maps(images, joints):
        seen.append(images.shape)
        return oracle_maps(STRIDE)(images, joints)

    todo, people = jobs([(1200, 1200)] * 2, flip=True)
    check(list(Predictor(predict_maps, batchsize=8).find(todo)), people)
    assert [shape[0] for shape in seen] == [1] * 4 and MAX_BATCH_PIXELS < 2 * 1200 * 1200


def test_large_photographs_wait_one_by_one(monkeypatch):
    """Memory: twenty photographs of 3 MB where 4 MB may wait on each side of the network. Without the bound, 13 waited
    before it and 8 after it."""
    monkeypatch.setattr('inference.predictor.MAX_HELD_BYTES', 4 << 20)
    views = make_views(1000, 1000, short_edge=64, scales=(0.5, 1, 1.5), flip=True)
    alive, most = weakref.WeakSet(), []

    class Pixels(np.ndarray):
        __hash__ = object.__hash__

    def read():
        pixels = np.zeros((1000, 1000, 3), np.uint8).view(Pixels)
        alive.add(pixels)
        most.append(len(alive))
        return InputImage(pixels, 1, views, np.zeros((0, 18, 2)))
    finder = Predictor(oracle_maps(STRIDE), batchsize=4)
    assert len(list(key for key, *_ in finder.find(Request(key, read) for key in range(20)))) == 20
    assert max(most) <= 4  # one being read, one in the network, one after it, one in the caller's hands


def test_errors_of_readers_and_decoders_arrive():
    todo, _ = jobs([(192, 192)] * 20)

    def broken():
        raise UserError('image 2 is broken')
    with pytest.raises(UserError, match='image 2'):
        list(Predictor(oracle_maps(STRIDE)).find(todo[:2] + [Request(2, broken)]))
    with start_decoders(1) as executor, pytest.raises(UserError, match='NaN'):
        list(Predictor(lambda images, joints: np.full((len(images), 8, 8, 57), np.nan), 1, executor).find(todo))
    with pytest.raises(UserError, match='a process that decodes'):
        with start_decoders(1) as executor:
            found = Predictor(oracle_maps(STRIDE), 1, executor).find(todo)
            next(found)
            os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
            time.sleep(0.5)
            list(found)
