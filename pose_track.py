"""People keep their number from frame to frame.

Each person of a new frame takes the number of the most similar one of the last frames, most similar pairs first. The
similarity of two people is COCO's object keypoint similarity (OKS) of their poses: 1 for equal ones, 0 for ones far
apart in terms of their size. That is all: nothing is predicted and looks do not count, so two people who cross while
one hides the other may come out with each other's number.
"""
import numpy as np

import pose_skeleton

MIN_OKS = 0.2  # below, two poses are two people
MEMORY = 12  # frames that a person may be hidden
MIN_COMMON_PARTS = 2


def part_sigmas(skeleton=pose_skeleton.COCO):
    """COCO's spread of each part, in units of the square root of a person's area: float64 (parts,)."""
    return np.array([np.mean([skeleton.sigmas[keypoint] for keypoint in source]) for source in skeleton.sources])


def pose_similarity(poses, others, sigmas):
    """OKS of each pose with each other one, over the parts that both have.

    Args:
        poses: (A, parts, 2 or 3) of x, y in pixels, NaN where absent; others: (B, parts, 2 or 3).
        sigmas: (parts,), as from part_sigmas.
    Returns:
        float64 (A, B), 0 where two poses have fewer than MIN_COMMON_PARTS parts in common.
    """
    poses, others = (np.asarray(people, np.float64)[:, :, :2] for people in (poses, others))
    area = np.maximum(_areas(poses)[:, None], _areas(others))
    distance = ((poses[:, None] - others) ** 2).sum(axis=3)
    common = np.isfinite(distance)
    similarity = np.exp(-np.where(common, distance, 0) / (2 * area[:, :, None] * (2 * sigmas) ** 2)) * common
    count = common.sum(axis=2)
    return np.where(count >= MIN_COMMON_PARTS, similarity.sum(axis=2) / np.maximum(count, 1), 0)


def _areas(poses):
    """Of the boxes around people (people, parts, 2); at least a quarter of the length's square."""
    if not poses.size:
        return np.zeros(len(poses))
    here = np.isfinite(poses)
    sides = np.where(here, poses, -np.inf).max(axis=1) - np.where(here, poses, np.inf).min(axis=1)
    return np.maximum(np.maximum(sides.prod(axis=1), sides.max(axis=1) ** 2 / 4), 1.0)


class Tracker:
    """Numbers people, from 1 on, in the order in which they appear."""

    def __init__(self, skeleton=pose_skeleton.COCO, min_oks=MIN_OKS, memory=MEMORY):
        self._sigmas, self._min_oks, self._memory = part_sigmas(skeleton), min_oks, memory
        self._frame = 0
        self._seen = {}  # number: (frame, pose)
        self.count = 0

    def update(self, keypoints):
        """The numbers of the people of the next frame, keypoints (people, parts, 3): a list of ints."""
        self._frame += 1
        self._seen = {number: seen for number, seen in self._seen.items() if self._frame - seen[0] <= self._memory}
        known = list(self._seen)
        numbers = [None] * len(keypoints)
        if known and len(keypoints):
            similarity = pose_similarity(keypoints, np.array([self._seen[number][1] for number in known]), self._sigmas)
            while similarity.max() >= self._min_oks:
                person, other = np.unravel_index(similarity.argmax(), similarity.shape)
                numbers[person] = known[other]
                similarity[person], similarity[:, other] = -1, -1
        for person, number in enumerate(numbers):
            if number is None:
                self.count += 1
                numbers[person] = self.count
            self._seen[numbers[person]] = self._frame, keypoints[person]
        return numbers
