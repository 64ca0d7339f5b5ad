"""Whether people in films keep their number, with and without prediction, and how much --smooth steadies them.

    python3 benchmarks/bench_tracking.py [--json]                                        known poses with noise: seconds
    python3 benchmarks/bench_tracking.py --weights=etcs/weights/mobilenet_v2_small.npy   of pictures: minutes

People walk, jog, turn round, stand, cross, overtake, go in a group and in a crowd (walking_people.py), behind a pole
and each other, at several frame rates. `switches`: how often somebody's number changes, in all films. `right`: the
share of people found that have the number that they got first, and that nobody had before. `before` is what the last
poses alone give: nothing predicted, a memory of so many frames.

Of known poses, each part is NOISE off and missing in a share of MISSED_PARTS, each person in MISSED_PEOPLE of the
frames. Jitter is that of people who walk and stand, at 30 frames/s: mean distance to where their parts are, in percent
of the body's height, and mean acceleration in heights / s^2; `truth` has an acceleration, too.
"""
import json

import numpy as np

from bench_inputs import flag_parser
import pose_cli
from annotations.skeleton import COCO_SKELETON
from inference.decode import MIN_PARTS
from inference.tracking import MIN_OKS, Smoother, Tracker, part_sigmas, pose_similarity
from walking_people import BODY, background, draw, joints_at, scenes, seen_at

RATES = (30, 10, 5, 3)
NOISE = 0.012  # of the body's height
MISSED_PARTS, MISSED_PEOPLE = 0.08, 0.06
SIGMAS = part_sigmas(COCO_SKELETON)


class LastPoses:
    """The yardstick: the nearest of the last poses, kept for so many frames."""

    def __init__(self, min_oks=0.2, max_hidden_frames=12):
        self._min_oks, self._max_hidden_frames = min_oks, max_hidden_frames
        self._frame, self._seen, self._count = 0, {}, 0

    def update(self, keypoints, _):
        self._frame += 1
        self._seen = {number: seen for number, seen in self._seen.items()
                      if self._frame - seen[0] <= self._max_hidden_frames}
        known, numbers = list(self._seen), [None] * len(keypoints)
        if known and len(keypoints):
            similarity = pose_similarity(keypoints, np.array([self._seen[number][1] for number in known]), SIGMAS)
            while similarity.max() >= self._min_oks:
                person, other = np.unravel_index(similarity.argmax(), similarity.shape)
                numbers[person] = known[other]
                similarity[person], similarity[:, other] = -1, -1
        for person, number in enumerate(numbers):
            if number is None:
                self._count += 1
                numbers[person] = self._count
            self._seen[numbers[person]] = self._frame, keypoints[person]
        return numbers


def noisy_frames(rng, scene, rate):
    """What a detector sees of a scene: [(seconds, keypoints (people, parts, 3), who they are)]."""
    frames = []
    for seconds in np.arange(0, scene.seconds, 1 / rate):
        seen = seen_at(scene, seconds)
        seen += rng.normal(0, NOISE * BODY, seen.shape)
        seen[rng.rand(*seen.shape[:2]) < MISSED_PARTS] = np.nan
        found = (np.isfinite(seen[:, :, 0]).sum(axis=1) >= MIN_PARTS) & (rng.rand(len(seen)) >= MISSED_PEOPLE)
        who = rng.permutation(np.nonzero(found)[0])
        frames.append((seconds, np.append(seen, np.ones_like(seen[:, :, :1]), axis=2)[who], who))
    return frames


def film_frames(rng, scene, rate, network):
    """The same as a network finds it in pictures of the scene; -1 where it found somebody where nobody is."""
    ground, frames = background(rng), []
    for seconds in np.arange(0, scene.seconds, 1 / rate):
        people = network(draw(scene, seconds, ground))
        keypoints = np.full((len(people), len(SIGMAS), 3), np.nan)
        for row, person in zip(keypoints, people):
            for part, place in person.keypoints.items():
                row[COCO_SKELETON.parts.index(part)] = place
        similarity, who = pose_similarity(keypoints, joints_at(scene, seconds), SIGMAS), np.full(len(people), -1)
        while similarity.size and similarity.max() > MIN_OKS:
            person, other = np.unravel_index(similarity.argmax(), similarity.shape)
            who[person] = other
            similarity[person], similarity[:, other] = -1, -1
        frames.append((seconds, keypoints, who))
    return frames


def follow(tracker, frames):
    """(switches, people with the right number, people found) of a tracker on [(seconds, keypoints, who)]."""
    first, owner, last = {}, {}, {}
    switches = right = found = 0
    for seconds, keypoints, who in frames:
        for number, person in zip(tracker.update(keypoints, seconds), who.tolist()):
            if person < 0:
                continue  # found where nobody is
            first.setdefault(person, number)
            owner.setdefault(number, person)
            switches += last.get(person, number) != number
            right += first[person] == number and owner[number] == person
            found += 1
            last[person] = number
    return switches, right, found


def measure(films, rates, names, make_frames):
    """{scene: {rate: figures}}, of all scenes unless there are names."""
    totals = {}
    for seed in range(films):
        for rate in rates:
            rng = np.random.RandomState(seed)
            for name, scene in scenes(rng).items():
                if names and name not in names:
                    continue
                frames = make_frames(rng, scene, rate)
                row = totals.setdefault(name, {}).setdefault(str(rate), np.zeros((2, 3)))
                row += [follow(LastPoses(), frames), follow(Tracker(COCO_SKELETON), frames)]
    return {name: {rate: {'switches_before': int(before[0]), 'switches': int(now[0]),
                          'right_before': round(float(before[1] / before[2]), 3),
                          'right': round(float(now[1] / now[2]), 3)}
                   for rate, (before, now) in rows.items()}
            for name, rows in totals.items()}


def movement(places, truth, rate):
    """(mean distance to the truth in percent, mean acceleration) of places (frames, parts, 2) in bodies."""
    distance = np.linalg.norm(places - truth, axis=2)
    acceleration = np.linalg.norm(np.diff(places, 2, axis=0), axis=2) * rate ** 2
    return {'distance': round(100 * float(distance.mean()), 2),
            'acceleration': round(float(acceleration.mean()), 1)}


def measure_jitter(rate=30):
    """{'walking' and 'standing': {'truth', 'found', 'smooth': movement}}."""
    figures = {}
    for scene_name, name in (('turning', 'walking'), ('standing', 'standing')):
        rng = np.random.RandomState(0)
        scene, smoother = scenes(rng)[scene_name], Smoother()
        truth, found, smooth = [], [], []
        for seconds in np.arange(0, scene.seconds, 1 / rate):
            joints = joints_at(scene, seconds)[:1]
            noisy = joints + rng.normal(0, NOISE * BODY, joints.shape)
            noisy = np.append(noisy, np.ones_like(joints[:, :, :1]), axis=2)
            truth.append(joints[0])
            found.append(noisy[0, :, :2])
            smooth.append(smoother.update(noisy, [1], seconds)[0, :, :2])
        truth, found, smooth = (np.array(places) / BODY for places in (truth, found, smooth))
        figures[name] = {'truth': movement(truth, truth, rate), 'found': movement(found, truth, rate),
                         'smooth': movement(smooth, truth, rate)}
    return figures


def parse_flags(args=None):
    parser = flag_parser('Measure how well people in films keep their number.')
    parser.add_argument('--films', type=pose_cli.positive_int, default=10, help='of each scene and rate')
    parser.add_argument('--rates', type=pose_cli.positive_int, nargs='+', default=RATES, help='frames a second')
    parser.add_argument('--scenes', nargs='+', choices=list(scenes(np.random.RandomState(0))), help='(all)')
    parser.add_argument('--weights', help='find the people in pictures with this network (.npy, or a graph)')
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    if flags.weights:
        from inference import load_network
        with load_network(flags.weights) as network:
            figures = measure(flags.films, flags.rates, flags.scenes, lambda *film: film_frames(*film, network))
    else:
        figures = measure(flags.films, flags.rates, flags.scenes, noisy_frames)
    print('scene       frames/s  switches before   now  right before    now')
    for name, rows in figures.items():
        for rate, row in rows.items():
            print('%-10s  %8s  %15d  %4d  %12.3f  %.3f'
                  % (name, rate, row['switches_before'], row['switches'], row['right_before'], row['right']))
    figures['jitter'] = measure_jitter()
    print('                   distance, % of the height   acceleration, heights / s^2')
    for name, rows in figures['jitter'].items():
        for kind, row in rows.items():
            print('%-8s  %-7s  %26.2f  %26.1f' % (name, kind, row['distance'], row['acceleration']))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
