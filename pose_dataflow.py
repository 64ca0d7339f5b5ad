"""Samples as a tensorpack DataFlow, for code that is built of these; see pose_dataset.get_dataflow."""
import contextlib
import io
import os

import numpy as np

from pose_samples import training_samples, validation_samples

with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no TensorFlow, as is right on helper nodes
    from tensorpack.dataflow import RNGDataFlow


class PoseDataFlow(RNGDataFlow):
    """A tensorpack DataFlow of [image, heatmap, paf, mask], one sample at a time in this process.

    Training goes once through all samples in random order, validation once through all images in their own order. Bad
    samples are skipped, counted and named.
    """

    def __init__(self, dataset, is_train, seed=None):
        self.dataset, self.is_train, self.seed, self._pid = dataset, is_train, seed, os.getpid()

    def __len__(self):
        return len(self.dataset) if self.is_train else len(self.dataset.validation_images)

    def reset_state(self):
        super().reset_state()
        if self.seed is not None:
            # A forked copy, as tensorpack's parallel runners make them, must not repeat this process's samples.
            copy = [] if os.getpid() == self._pid else [os.getpid()]
            self.rng = np.random.RandomState([self.seed % (1 << 32)] + copy)

    def __iter__(self):
        samples = training_samples(self.dataset, self.rng) if self.is_train else validation_samples(self.dataset)
        for sample in samples:
            yield list(sample[:4])
