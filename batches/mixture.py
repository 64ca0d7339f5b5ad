"""Samples of several data sets, each with its share and the parts that it labels."""
import functools
import hashlib
import logging
import os

import numpy as np

import pose_augment
from annotations.arrays import read_annotations
from annotations.common_keypoints import merge_skeletons
from annotations.splits import find_split
from pose_dataset import PoseDataset
from pose_errors import UserError
from pose_files import path_and_share

ADDED_SPLIT = 'train2017'  # of a folder that is added


class Mixture:
    """All samples of a PoseDataset, and those of others: all of these too, or for a share as many draws at random.

    It is used as a PoseDataset is.

    Args:
        base: a PoseDataset.  others: more of the same input size and skeleton.
        shares: for each of the others its part of all samples, above 0 and below 1 together; None for all its samples.
        names: of the others, for messages.
    Raises UserError: shares that leave nothing to the base.
    """

    def __init__(self, base, others, shares, names):
        self.skeleton, self.stride = base.skeleton, base.stride
        self.input_width, self.input_height = base.input_width, base.input_height
        self._datasets, self._names = [base] + others, names
        left = 1 - sum(filter(None, shares))
        if left < 1e-6:
            raise UserError('--add-data: the shares leave no samples to --datapath; together they must be below 1')
        whole = len(base) + sum(len(other) for other, share in zip(others, shares) if share is None)
        counts = [len(base)] + [len(other) if share is None else max(1, int(round(whole * share / left)))
                                for other, share in zip(others, shares)]
        self._is_drawn = [False] + [share is not None for share in shares]
        self._ends = np.cumsum(counts)

    def __len__(self):
        return int(self._ends[-1])

    @property
    def digest(self):
        """32 characters for what a batch's number stands for, as PoseDataset.digest."""
        texts = ['%s %d' % (dataset.digest, end) for dataset, end in zip(self._datasets, self._ends)]
        return hashlib.blake2b(' '.join(texts).encode(), digest_size=16).hexdigest()

    def training_sample(self, index, rng):
        """Sample number index, 0 <= index < len(self), augmented as rng (a RandomState) draws. Raises BadSample."""
        source, index = self._place(index)
        dataset = self._datasets[source]
        return dataset.training_sample(rng.randint(len(dataset)) if self._is_drawn[source] else index, rng)

    def image_of(self, index):
        """As PoseDataset.image_of."""
        source, index = self._place(index)
        return 'an image of %s' % self._names[source - 1] if self._is_drawn[source] else \
            self._datasets[source].image_of(index)

    def _place(self, index):
        """(the number of a data set, the index there) of a sample."""
        source = int(np.searchsorted(self._ends, index, side='right'))
        return source, index - (int(self._ends[source - 1]) if source else 0)

    def log(self):
        """A line for each data set that was added: its share, and what it labels."""
        counts = np.diff(self._ends, prepend=0)
        for name, dataset, count in zip(self._names, self._datasets[1:], counts[1:]):
            labelled = dataset.annotations.labelled_parts.all(axis=0)
            unknown = [part for part, known in zip(self.skeleton.parts, labelled) if not known]
            logging.info('%s: %.3g %% of the samples%s', name, 100 * count / len(self), ', without labels of %s, which '
                         'its samples leave out of the loss' % ', '.join(unknown) if unknown else '')


def place_of(text):
    """(datapath, split) of an --add-data, as for annotations.splits.find_split. Raises UserError when there is none."""
    path, _ = path_and_share(text)
    place = path, ADDED_SPLIT
    if path.endswith('.json'):
        place = os.path.dirname(path) or '.', os.path.abspath(path)
    try:
        find_split(*place)
    except UserError as error:
        reason = str(error).replace('--datapath=%s' % place[0], 'it').replace('--datapath', 'it')
        raise UserError('--add-data=%s: %s' % (text, reason))
    return place


def check_more_data(add_data, add_keypoints):
    """Raises UserError: --add-data that is not there, or --add-keypoints without it."""
    if add_keypoints and not add_data:
        raise UserError('--add-keypoints is for those of --add-data: give that too')
    for text in add_data:
        place_of(text)


def merged_skeleton(datapath, split, imgpath, category, add_data):
    """The Skeleton with all keypoints of the training images and of each --add-data; None where nothing is added.

    Raises UserError.
    """
    if not add_data:
        return None
    base = read_annotations(*find_split(datapath, split, imgpath), category).skeleton
    others = [(read_annotations(*find_split(*place_of(text)), category).skeleton, text) for text in add_data]
    return functools.reduce(lambda skeleton, other: merge_skeletons(skeleton, *other), others, base)


def open_samples(datapath, split, input_size, stride, imgpath=None, ranges=pose_augment.CMU_RANGES, category=None,
                 negatives=0.0, add_data=(), add_keypoints=False):
    """The PoseDataset of the training images, or the Mixture where --add-data adds to it; see there.

    Args:
        input_size: (width, height).  add_data, add_keypoints: the flags.
    """
    skeleton = merged_skeleton(datapath, split, imgpath, category, add_data if add_keypoints else ())
    base = PoseDataset(datapath, split, *input_size, stride, imgpath, ranges, category, negatives, skeleton)
    if not add_data:
        return base
    others = [PoseDataset(*place_of(text), *input_size, stride, None, ranges, category, skeleton=base.skeleton)
              for text in add_data]
    paths, shares = zip(*map(path_and_share, add_data))
    mixture = Mixture(base, others, shares, paths)
    mixture.log()
    return mixture
