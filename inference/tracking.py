"""Who is who from frame to frame, and steady keypoints.

The Tracker gives each person of a new frame the number of the most similar one of those that it knows, most similar
pairs first, and people whom it has seen for long before others. Where a known person is now, it predicts: each has a
Kalman filter of constant velocity for the place of the whole body, in units of its size, so that people keep their
number at any frame rate and while they are hidden. The similarity of two people is COCO's object keypoint similarity
(OKS) of their poses, 1 for equal ones, with the prediction's uncertainty added to the spread of each part. Looks do not
count.

The Smoother is the One-Euro filter of Casiez, Roussel and Vogel (CHI 2012): a low pass whose cutoff rises with speed.
"""
import collections

import numpy as np

MIN_OKS = 0.15  # below, two poses are two people
MIN_COMMON_PARTS = 2
MAX_HIDDEN_SECONDS = 1.5
NEW, FAMILIAR = 0.1, 0.8  # seconds: somebody just seen for the first time counts NEW / FAMILIAR, one well known 1

# In sizes (longest sides of the box around a person, about the height of one who stands) and seconds.
START_SPEED = 1.5  # standard deviation for people of whom one frame is known: near a jog
ACCELERATION = 1.0  # by how much the speed changes in a second, as a standard deviation
MEASURED = 0.03  # standard deviation of a place that was found

# Of the One-Euro filter. Places are in pixels, speeds in sizes a second.
MIN_CUTOFF, BETA, SPEED_CUTOFF = 0.5, 15.0, 1.0
MAX_GAP = 0.5  # seconds

# Tracker.update's state of a person. pose: (parts, 3), parts that are not found moved along; size: pixels; velocity:
# (2,) in pixels a second; covariance: (2, 2) of place and speed in sizes; seconds: of all these; seen: when found last;
# known: seconds in sight.
Track = collections.namedtuple('Track', 'pose size velocity covariance seconds seen known')


def part_sigmas(skeleton):
    """COCO's spread of each part, in units of the square root of a person's area: float64 (parts,)."""
    return np.array([np.mean([skeleton.sigmas[keypoint] for keypoint in source]) for source in skeleton.sources])


def pose_similarity(poses, others, sigmas, variance=0.0):
    """OKS of each pose with each other one, over the parts that both have: float64 (A, B), 0 where two poses have fewer
    than MIN_COMMON_PARTS parts in common.

    poses: (A, parts, 2 or 3) of x, y in pixels, NaN where absent; others: (B, parts, 2 or 3); sigmas: (parts,).
    variance: of the others' places, in square pixels, (B,).
    """
    poses, others = (np.asarray(people, np.float64)[:, :, :2] for people in (poses, others))
    area = np.maximum(_areas(poses)[:, None], _areas(others))
    distance = ((poses[:, None] - others) ** 2).sum(axis=3)
    common = np.isfinite(distance)
    spread = area[:, :, None] * (2 * sigmas) ** 2 + np.reshape(variance, (-1, 1))
    similarity = np.exp(-np.where(common, distance, 0) / (2 * spread)) * common
    count = common.sum(axis=2)
    return np.where(count >= MIN_COMMON_PARTS, similarity.sum(axis=2) / np.maximum(count, 1), 0)


def _sides(poses):
    """Width and height of the boxes around people (people, parts, 2 or 3): (people, 2)."""
    places = np.asarray(poses, np.float64)[:, :, :2]
    here = np.isfinite(places)
    return np.where(here, places, -np.inf).max(axis=1) - np.where(here, places, np.inf).min(axis=1)


def _areas(poses):
    """Of the boxes around people; at least a quarter of the length's square."""
    if not poses.size:
        return np.zeros(len(poses))
    sides = _sides(poses)
    return np.maximum(np.maximum(sides.prod(axis=1), sides.max(axis=1) ** 2 / 4), 1.0)


class Tracker:
    """Numbers people, from 1 on, in the order in which they appear.

    min_oks: below, two poses are two people.  max_hidden: seconds after which somebody who is gone gets a new number.
    """

    def __init__(self, skeleton, min_oks=MIN_OKS, max_hidden=MAX_HIDDEN_SECONDS):
        self._sigmas, self._min_oks, self._max_hidden = part_sigmas(skeleton), min_oks, max_hidden
        self._tracks, self._seconds = {}, 0.0  # {number: Track}, the last frame's time
        self.count = 0

    def update(self, keypoints, seconds):
        """The numbers of the people of the next frame, keypoints (people, parts, 3), at that time: a list of ints."""
        self._tracks = {number: predict(track, seconds) for number, track in self._tracks.items()
                        if seconds - track.seen <= self._max_hidden}
        known = list(self._tracks)
        numbers = [None] * len(keypoints)
        if known and len(keypoints):
            tracks = [self._tracks[number] for number in known]
            variance = np.array([track.covariance[0, 0] * track.size ** 2 for track in tracks])
            similarity = pose_similarity(keypoints, np.array([track.pose for track in tracks]), self._sigmas, variance)
            # Networks see somebody twice now and then: the second one must not take over.
            sight = np.array([track.known for track in tracks])
            rank = np.where(similarity >= self._min_oks, similarity * (sight + NEW) / (sight + FAMILIAR), 0)
            while rank.max() > 0:
                person, other = np.unravel_index(rank.argmax(), rank.shape)
                numbers[person] = known[other]
                rank[person], rank[:, other] = 0, 0
        for person, number in enumerate(numbers):
            if number is None:
                self.count += 1
                numbers[person] = self.count
                self._tracks[self.count] = start(keypoints[person], seconds)
            else:
                self._tracks[number] = correct(self._tracks[number], keypoints[person], seconds - self._seconds)
        self._seconds = seconds
        return numbers


def start(pose, seconds):
    """The Track of somebody seen for the first time: pose (parts, 3)."""
    return Track(pose, _size(pose), np.zeros(2), np.diag([MEASURED ** 2, START_SPEED ** 2]), seconds, seconds, 0.0)


def predict(track, seconds):
    """The Track at a later time, if nobody sees the person until then."""
    step = seconds - track.seconds
    motion = np.array([[1, step], [0, 1]])
    noise = ACCELERATION ** 2 * np.array([[step ** 3 / 3, step ** 2 / 2], [step ** 2 / 2, step]])
    return track._replace(pose=track.pose + np.append(track.velocity * step, 0), seconds=seconds,
                          covariance=motion @ track.covariance @ motion.T + noise)


def correct(track, pose, step):
    """The Track after its person was found: pose (parts, 3), at the time of the Track; step: seconds between frames."""
    found = np.isfinite(pose[:, 0])
    # Arms and legs swing: the median of the parts moves as the body does.
    error = np.median((pose - track.pose)[found & np.isfinite(track.pose[:, 0]), :2], axis=0)
    gain = track.covariance[:, 0] / (track.covariance[0, 0] + MEASURED ** 2)
    merged = np.where(found[:, None], pose, track.pose + np.append(error, 0))
    return track._replace(pose=merged - np.append((1 - gain[0]) * error, 0), size=_size(merged), seen=track.seconds,
                          known=track.known + step, velocity=track.velocity + gain[1] * error,
                          covariance=track.covariance - np.outer(gain, track.covariance[0]))


def _size(pose):
    return max(_sides(pose[None]).max(), 1.0)


class Smoother:
    """One-Euro filters for the parts of people with numbers. Speeds count in sizes of a person, so that people near and
    far are smoothed alike.

    min_cutoff: Hz, of parts that rest.  beta: by how many Hz the cutoff rises for each size a second.
    """

    def __init__(self, min_cutoff=MIN_CUTOFF, beta=BETA, max_gap=MAX_GAP):
        self._min_cutoff, self._beta, self._max_gap = min_cutoff, beta, max_gap
        self._states = {}  # number: (seconds (parts,), places (parts, 2), speeds (parts, 2))

    def update(self, keypoints, numbers, seconds):
        """The keypoints (people, parts, 3) of a frame, x and y smoothed. A part that was absent for a while starts
        anew.

        numbers: who they are, as from Tracker.update.
        """
        smooth = np.array(keypoints, np.float64)
        self._states = {number: state for number, state in self._states.items()
                        if seconds - state[0].max() <= self._max_gap}
        for person, number in zip(smooth, numbers):
            person[:, :2], self._states[number] = self._filter(person[:, :2].copy(), self._states.get(number), seconds)
        return smooth

    def _filter(self, found, state, seconds):
        here = np.isfinite(found[:, :1])
        if state is None:
            state = np.full(len(found), -np.inf), found, np.zeros_like(found)
        times, places, speeds = state
        step = seconds - times[:, None]
        known = here & np.isfinite(places) & (step <= self._max_gap) & (step > 0)
        step = np.where(known[:, :1], step, 1.0)
        speed = speeds + low_pass(SPEED_CUTOFF, step) * ((found - places) / step - speeds)
        speed = np.where(known, speed, 0)
        cutoff = self._min_cutoff + self._beta * np.linalg.norm(speed, axis=1, keepdims=True) / _size(found)
        place = np.where(known, places + low_pass(cutoff, step) * (found - places), found)
        times = np.where(here[:, 0], seconds, times)
        return place, (times, np.where(here, place, places), np.where(here, speed, speeds))


def low_pass(cutoff, step):
    """The weight of a new value, that came `step` seconds after the last one: cutoff in Hz."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))
