"""Loader processes whose samples tell who made them, and who can be watched and killed."""
import contextlib
import os
import time

import numpy as np
import psutil

from annotations.skeleton import COCO_SKELETON
from batches.batch import decode_batch
from batches.loader import BatchLoader
from conftest import descendants, wait_for
from pose_augment import draw_augmentation
from pose_dataset import BadSample


class NumberedDataset:
    """Stands in for a PoseDataset: its samples tell their number, their process and their augmentation."""
    input_width = input_height = 16
    skeleton = COCO_SKELETON
    stride = 8

    def __init__(self, samples, bad=(), seconds=0.0):
        self.samples, self.bad, self.seconds = samples, set(bad), seconds

    def __len__(self):
        return self.samples

    def image_of(self, index):
        return 'image%d.jpg' % index

    def training_sample(self, index, rng):
        time.sleep(self.seconds)
        scale, angle = draw_augmentation(rng)[:2]
        if index in self.bad:
            raise BadSample('image%d.jpg' % index, 'is bad')
        heatmap = np.zeros((2, 2, 19), np.float32)
        heatmap[0, 0, 0] = index / 10000
        image = np.zeros((16, 16, 3), np.uint8)
        image.reshape(-1)[:32] = np.array([index, os.getpid(), scale, angle]).view(np.uint8)
        return image, heatmap, np.zeros((2, 2, 38), np.float32), np.ones((2, 2, 1), np.float32)


def children_of_this_process():
    return {child.pid for child in psutil.Process().children()}


@contextlib.contextmanager
def watched_loader(samples, workers):
    """(a BatchLoader whose worker processes are there, the id of its supervisor)."""
    before = children_of_this_process()
    with BatchLoader(NumberedDataset(samples, seconds=0.002), 4, workers, seed=1) as loader:
        supervisor, = children_of_this_process() - before
        wait_for(lambda: len(descendants(supervisor)) == workers, 'no workers', 20)
        yield loader, supervisor


def take(loader, batches):
    """[(sample number, process, scale, angle)] of so many batches."""
    rows = []
    for _ in range(batches):
        image, heatmap, _, mask = decode_batch(loader.get(timeout=20), COCO_SKELETON)
        told = image.reshape(len(image), -1)[:, :32].copy().view(np.float64)
        np.testing.assert_allclose(heatmap[:, 0, 0, 0], told[:, 0] / 10000, atol=2e-5)
        assert (mask == 1).all()
        rows += told.tolist()
    return rows
