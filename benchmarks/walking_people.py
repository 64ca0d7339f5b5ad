"""People who walk through a picture: where they are at any time, what hides them, and the pictures.

A scene is known exactly: benchmarks/bench_tracking.py compares with it who is found where under which number.
"""
import collections

import cv2
import numpy as np

from bench_inputs import hide_behind
from annotations.skeleton import COCO_SKELETON
from make_sample_coco import draw_background
from sample_people import KEYPOINTS, Camera, Person, body_parts, body_points, fill, keypoint_faces_viewer, paint, \
    project, rotation, sample_look

WIDTH, HEIGHT = 1280, 368
BODY = 180  # pixels
WALK, JOG = 0.8, 1.8  # bodies a second: 1.4 and 3 m/s
HALF_POLE = 0.35  # bodies

# x: where the middle of the hips is at which time, [(second, body heights from the left)], straight in between.
Walker = collections.namedtuple('Walker', 'x height phase look')
# walkers: from far to near; poles: middles of what hides everybody, in body heights; seconds: how long it takes.
Scene = collections.namedtuple('Scene', 'walkers poles seconds')


def walker(rng, *x):
    return Walker(np.array(x), BODY * rng.uniform(0.92, 1.08), rng.rand(), sample_look(rng))


def scenes(rng):
    """{name: Scene} of people of random sizes and looks, at speeds that differ by some percent."""
    width = WIDTH / BODY
    walk, jog = WALK * rng.uniform(0.85, 1.15, 4), JOG * rng.uniform(0.9, 1.1)
    end, turn = width - 0.5, 0.5 + 3 * walk[1]
    there = (end - 0.5) / walk
    middle = width / 2
    side_by_side = [walker(rng, (0, 0.5 + 0.6 * k), (there[0], end + 0.6 * k)) for k in range(3)]
    return collections.OrderedDict([
        ('walker', Scene([walker(rng, (0, 0.5), (there[0], end))], [middle], there[0])),
        ('jogger', Scene([walker(rng, (0, 0.5), ((end - 0.5) / jog, end))], [middle], (end - 0.5) / jog)),
        ('turning', Scene([walker(rng, (0, 0.5), (3, turn), (3.6, turn), (6.6, 0.5))], [], 6.6)),
        ('standing', Scene([walker(rng, (0, 2), (4, 2)), walker(rng, (0, 3), (4, 3))], [], 4)),
        ('crossing', Scene([walker(rng, (0, 0.5), (there[0], end)), walker(rng, (0, end), (there[1], 0.5))], [],
                           min(there[:2]))),
        ('overtaking', Scene([walker(rng, (0, 1.2), (there[0], end + 0.7)),
                              walker(rng, (0, 0.5), ((end - 0.5) / jog, end))], [], (end - 0.5) / jog)),
        ('group', Scene(side_by_side, [middle], there[0] - 1)),
        ('crowd', Scene([walker(rng, (0, x), (5, x + direction * 5 * speed)) for x, direction, speed in zip(
            (0.5, 2.0, 4.5, 6.5), (1, 1, -1, -1), walk)], [middle], 5))])


def body_at(one, seconds):
    """A Walker at a time: (Person, Camera) as for sample_people.body_parts."""
    x = np.interp(seconds, *one.x.T)
    step = (np.interp(seconds + 0.02, *one.x.T) - np.interp(seconds - 0.02, *one.x.T)) / 0.04
    speed = min(abs(step) / WALK, 2)  # of a walk
    way = np.interp(seconds, one.x[:, 0], np.append(0, np.abs(np.diff(one.x[:, 1])).cumsum()))
    cycle = 2 * np.pi * (one.phase + way / (0.8 + 0.5 * (speed > 1.5)))
    swing = np.sin([cycle, cycle + np.pi]) * min(speed, 1.4)  # of the left and the right leg
    lift = np.maximum(np.cos([cycle, cycle + np.pi]), 0) * speed
    legs = [np.array([24 * s, 3, 24 * s - 8 - 35 * up, 2]) for s, up in zip(swing, lift)]
    arms = [np.array([-22 * s, 8, -22 * s + 12 + 25 * speed, 4]) for s in swing]
    torso, head = rotation(0, 3 * speed), rotation(0, 4)
    yaw = 20 if abs(step) < 1e-6 else 75 * np.sign(step)
    turn = np.diag([1, -1, 1]) @ rotation(1, yaw)
    points = {name: turn @ point for name, point in body_points(torso, head, 1.1, arms, legs).items()}
    bob = 0.012 * speed * np.cos(2 * cycle)
    place = Camera(one.height, x * BODY, HEIGHT - 40 - (0.55 - bob) * one.height)
    return Person(points, turn, turn @ torso, turn @ head, 1.1, 1.0, one.look), place


def joints_at(scene, seconds):
    """All parts of all people, hidden ones too: float64 (people, parts, 2) in pixels."""
    bodies = [body_at(one, seconds) for one in scene.walkers]
    keypoints = np.array([project(place, [person.points[name] for name in KEYPOINTS])[0] for person, place in bodies])
    return np.stack([keypoints[:, list(source)].mean(axis=1) for source in COCO_SKELETON.sources], axis=1)


def seen_at(scene, seconds):
    """joints_at, NaN for what poles, nearer people and the own head hide."""
    joints = joints_at(scene, seconds)
    seen = hide_behind(joints[::-1])[::-1].copy()
    for pole in scene.poles:
        seen[np.abs(joints[:, :, 0] - pole * BODY) < HALF_POLE * BODY] = np.nan
    seen[(joints[:, :, 0] < 0) | (joints[:, :, 0] >= WIDTH)] = np.nan
    for number, one in enumerate(scene.walkers):
        person = body_at(one, seconds)[0]
        away = [any(not keypoint_faces_viewer(person, KEYPOINTS[keypoint]) for keypoint in source
                    if KEYPOINTS[keypoint].endswith(('nose', 'eye', 'ear'))) for source in COCO_SKELETON.sources]
        seen[number, away] = np.nan
    return seen


def background(rng):
    """For pictures: uint8 (HEIGHT, WIDTH, 3)."""
    return cv2.GaussianBlur(draw_background(rng, WIDTH, HEIGHT), (0, 0), 2)


def draw(scene, seconds, ground):
    """The picture at a time, on a background: uint8 (HEIGHT, WIDTH, 3)."""
    image = ground.copy()
    for one in scene.walkers:
        paint(image, body_parts(*body_at(one, seconds)))
    for pole in scene.poles:
        left, right = (pole - HALF_POLE) * BODY, (pole + HALF_POLE) * BODY
        fill(image, np.array([(left, -9), (right, -9), (right, HEIGHT + 9), (left, HEIGHT + 9)]), (70, 80, 90))
    return image
