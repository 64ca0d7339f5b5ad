"""Render people into a small data set in the layout and annotation format of COCO keypoints.

    python3 scripts/make_sample_coco.py --output-dir=DIR [--train=200 --val=24 --seed=0]

writes DIR/train2017, DIR/val2017 (JPEG) and DIR/annotations/person_keypoints_{train,val}2017.json.

A person is a 3-D skeleton with random pose, build and clothes, turned to the camera, whose body parts are hulls of spheres
painted from far to near. Beside the picture a map of labels is painted with the same hulls: it tells which part of which
person each pixel shows, and all annotations (segmentation, area, bbox, visibility of each joint) are read off it.
Each image has its own random stream, made of seed, split and number.
"""
import colorsys
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pose_cli  # noqa: E402

KEYPOINTS = ['nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
             'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee',
             'left_ankle', 'right_ankle']
SKELETON = [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10], [9, 11],
            [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]]
SIDES = (('left', 1), ('right', -1))
SPLITS = (('train2017', 1), ('val2017', 500001))  # folder, first image id
DESCRIPTION = 'Rendered people in the format of COCO 2017 keypoints'
UNFINISHED = '.unfinished'

# ---------------------------------------------------------------------------------------------------------------- pose
# Lengths are in units of the body height. The body's frame: x to its left, y up, z forward.

Person = namedtuple('Person', 'points hips torso head head_size build look')
# points: {name: (3,)}, from the middle of the hips; hips, torso, head: (3, 3) frames (columns left, up, forward); look: {name: choice or BGR colour}

ARMS = {  # degrees forward and outward, from hanging down: of the upper arm, of the forearm
    'down': (0, 10, 12, 5), 'akimbo': (-15, 45, 30, -50), 'raised': (165, 15, 172, 5), 'on head': (150, 40, 150, -50),
    'wave': (0, 85, 10, 160), 'wide': (0, 85, 0, 88), 'reach': (80, 10, 88, 5), 'carry': (5, 12, 85, -10),
    'phone': (35, 25, 150, -15), 'folded': (25, 12, 60, -65), 'back': (-30, 8, -15, 4), 'forth': (25, 8, 55, 0)}
LEGS = {  # the same of thigh and shank
    'straight': (0, 4, -2, 3), 'apart': (4, 20, 0, 18), 'ahead': (25, 3, 12, 2), 'behind': (-15, 3, -45, 2),
    'lifted': (65, 4, -20, 2), 'pushing': (-20, 3, -80, 2), 'seated': (82, 12, 2, 8), 'squatting': (98, 20, -35, 10),
    'lunging': (72, 6, 0, 2), 'trailing': (-25, 4, -60, 3), 'kneeling': (-2, 5, -92, 3)}
POSES = [  # weight, legs (one drawn at random is the left one), arms to choose from, degrees of forward lean
    (30, ('straight', 'straight'), ('down', 'akimbo', 'carry', 'folded', 'phone', 'down'), (-3, 6)),
    (9, ('apart', 'apart'), ('wide', 'raised', 'wave', 'akimbo', 'on head'), (-4, 6)),
    (10, ('straight', 'straight'), ('raised', 'wave', 'wide', 'on head', 'reach'), (-4, 5)),
    (20, ('ahead', 'behind'), ('back', 'forth', 'down', 'carry', 'phone'), (0, 10)),
    (8, ('lifted', 'pushing'), ('back', 'forth', 'reach'), (8, 22)),
    (10, ('seated', 'seated'), ('carry', 'folded', 'reach', 'phone', 'down', 'raised'), (-8, 18)),
    (5, ('straight', 'straight'), ('reach', 'forth'), (35, 75)),
    (3, ('squatting', 'squatting'), ('reach', 'forth', 'carry'), (15, 35)),
    (3, ('lunging', 'trailing'), ('forth', 'back', 'wide', 'raised'), (0, 15)),
    (2, ('lunging', 'kneeling'), ('forth', 'carry', 'reach'), (0, 15))]


def rotation(axis, degrees):
    """(3, 3) rotation about axis 0, 1 or 2."""
    vector = np.zeros(3)
    vector[axis] = np.deg2rad(degrees)
    return cv2.Rodrigues(vector)[0]


def limb_direction(forward, outward, side):
    """Unit vector of a limb swung forward and outward (degrees) from hanging down; side is 1 on the left, -1 on the right."""
    forward, outward = np.deg2rad([forward, outward])
    return np.array([side * np.sin(outward), -np.cos(outward) * np.cos(forward), np.cos(outward) * np.sin(forward)])


def sample_pose(rng):
    """Draw a pose: points of the body in its own frame {name: (3,)}, torso frame, head frame, head size."""
    weights = np.array([pose[0] for pose in POSES], float)
    _, legs, arms, lean_range = POSES[rng.choice(len(POSES), p=weights / weights.sum())]
    legs = [legs[i] for i in rng.permutation(2)]
    arms = [arms[rng.randint(len(arms))]] * 2 if rng.rand() < 0.4 else [arms[rng.randint(len(arms))] for _ in range(2)]
    lean = rng.uniform(*lean_range)
    torso = rotation(0, lean) @ rotation(2, rng.normal(0, 4)) @ rotation(1, rng.normal(0, 8))
    head = rotation(0, 0.45 * lean) @ rotation(1, rng.normal(0, 22)) @ rotation(0, rng.normal(4, 9)) \
        @ rotation(2, rng.normal(0, 6))
    head_size = rng.uniform(1.0, 1.3)
    points = {'neck': torso @ [0, 0.30, 0]}
    points['head'] = points['neck'] + head_size * (torso @ [0, 0.045, 0] + head @ [0, 0.045, 0.012])
    points['nose'] = points['head'] + head @ [0, -0.014 * head_size, 0.066 * head_size]
    for (side, sign), arm, leg in zip(SIDES, arms, legs):
        arm, leg = np.array(ARMS[arm]) + rng.normal(0, 7, 4), np.array(LEGS[leg]) + rng.normal(0, 4, 4)
        points[side + '_eye'] = points['head'] + head_size * (head @ [sign * 0.021, 0.009, 0.053])
        points[side + '_ear'] = points['head'] + head_size * (head @ [sign * 0.047, -0.004, -0.003])
        shoulder = points[side + '_shoulder'] = torso @ [sign * 0.112, 0.28, 0]
        elbow = points[side + '_elbow'] = shoulder + torso @ limb_direction(arm[0], arm[1], sign) * 0.165
        forearm = torso @ limb_direction(arm[2], arm[3], sign)
        points[side + '_wrist'] = elbow + forearm * 0.145
        points[side + '_fingers'] = elbow + forearm * 0.2
        hip = points[side + '_hip'] = np.array([sign * 0.058, 0, 0])
        knee = points[side + '_knee'] = hip + limb_direction(leg[0], leg[1], sign) * 0.245
        ankle = points[side + '_ankle'] = knee + limb_direction(leg[2], leg[3], sign) * 0.245
        toes_down = np.deg2rad(np.clip(-leg[2], 0, 70) + 8)  # the foot tips with a shank that swings backward
        points[side + '_toes'] = ankle + np.array([sign * 0.02, -0.09 * np.sin(toes_down) - 0.015,
                                                   0.09 * np.cos(toes_down)])
    return points, torso, head, head_size


def sample_look(rng):
    """Draw skin, hair and clothes: {name: BGR colour or choice}."""
    def colour(saturation, value):
        return np.array(colorsys.hsv_to_rgb(rng.rand(), rng.uniform(*saturation), rng.uniform(*value)))[::-1] * 255
    skin = np.array([(201, 224, 255), (168, 198, 240), (140, 175, 225), (110, 150, 205), (75, 115, 170), (55, 85, 130),
                     (40, 62, 98)][rng.randint(7)]) * rng.uniform(0.92, 1.03)
    hair = np.array([(25, 25, 28), (35, 45, 62), (45, 70, 105), (90, 150, 195), (140, 200, 225), (40, 75, 150),
                     (165, 165, 168)][rng.randint(7)]) * rng.uniform(0.85, 1.1)
    top = colour((0.0, 0.9), (0.3, 1.0))
    choose = lambda *options: options[rng.randint(len(options))]  # noqa: E731
    return {'skin': skin, 'hair': hair, 'top': top, 'trim': colour((0, 0.8), (0.1, 1)),
            'bottom': choose(colour((0.2, 0.7), (0.15, 0.5)), colour((0, 0.15), (0.1, 0.45)), colour((0, 0.8), (0.2, 0.9))),
            'shoe': choose(np.full(3, 35.), np.full(3, 225.), colour((0.3, 0.9), (0.3, 0.9))),
            'sleeves': choose('long', 'long', 'short', 'short', 'none'), 'watch': rng.rand() < 0.5,
            'legwear': choose('long', 'long', 'long', 'shorts', 'shorts', 'skirt'),
            'haircut': choose('short', 'short', 'short', 'long', 'long', 'bald'), 'hat': rng.rand() < 0.2,
            'beard': rng.rand() < 0.15, 'backpack': rng.rand() < 0.15,
            'front': choose('plain', 'buttons', 'jacket', 'stripes', 'pocket', 'print')}


def sample_person(rng):
    """Draw a Person, turned towards the camera: its frame is x to the image's right, y down, z to the viewer."""
    points, torso, head, head_size = sample_pose(rng)
    # Facing the viewer, facing away, or in profile.
    yaw = [0, 180, 90, -90][rng.choice(4, p=[0.5, 0.2, 0.15, 0.15])] + rng.normal(0, 22)
    camera = np.diag([1, -1, 1]) @ rotation(2, rng.normal(0, 3)) @ rotation(0, rng.uniform(-3, 18)) @ rotation(1, yaw)
    points = {name: camera @ point for name, point in points.items()}
    return Person(points, camera, camera @ torso, camera @ head, head_size, rng.uniform(0.85, 1.25), sample_look(rng))


# ---------------------------------------------------------------------------------------------------------------- body

View = namedtuple('View', 'scale x y')     # pixels per body height; where the middle of the hips lies in the image
Part = namedtuple('Part', 'name depth polygons')  # polygons: (points (n, 2) in pixels, BGR), the first is the outline
CAMERA_DISTANCE = 5.0                      # in body heights
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20, endpoint=False)),
                   np.sin(np.linspace(0, 2 * np.pi, 20, endpoint=False))], 1)
LIGHT = np.array([-0.25, -0.35])
PARTS = ['head', 'hair', 'neck', 'chest', 'pelvis', 'skirt'] + [
    '%s_%s' % (side, part) for side, _ in SIDES for part in ('upper_arm', 'forearm', 'hand', 'thigh', 'shank', 'foot')]
SHOWN_BY = {  # the parts at whose sight a joint counts as visible
    'shoulder': ('upper_arm', 'chest', 'neck'), 'elbow': ('upper_arm', 'forearm'), 'wrist': ('forearm', 'hand'),
    'hip': ('thigh', 'pelvis', 'chest', 'skirt'), 'knee': ('thigh', 'shank'), 'ankle': ('shank', 'foot'),
    'nose': ('head',), 'eye': ('head',), 'ear': ('head',)}


def project(view, points):
    """Points (n, 3) of the body to pixels (n, 2), and pixels per unit length at each (n,)."""
    points = np.atleast_2d(points)
    zoom = view.scale * CAMERA_DISTANCE / (CAMERA_DISTANCE - points[:, 2])
    return points[:, :2] * zoom[:, None] + [view.x, view.y], zoom


def snap_joints(person, view):
    """Move the keypoints' joints onto whole pixels, so that annotation and picture agree exactly."""
    names = KEYPOINTS
    pixels, zoom = project(view, [person.points[name] for name in names])
    snapped = (np.rint(pixels) - [view.x, view.y]) / zoom[:, None]
    points = {name: np.append(xy, person.points[name][2]) for name, xy in zip(names, snapped)}
    return person._replace(points=dict(person.points, **points))


def hull(view, centres, radii):
    """Convex outline (n, 2) of spheres, in pixels."""
    pixels, zoom = project(view, centres)
    circles = pixels[:, None] + (np.asarray(radii) * zoom)[:, None, None] * CIRCLE
    return cv2.convexHull(circles.reshape(-1, 2).astype(np.float32))[:, 0]


def shaded(view, centres, radii, colour):
    """Polygons of a rounded solid: a darker rim, the colour, and a lighter core moved to the light."""
    centres, radii = np.asarray(centres, float), np.asarray(radii, float)
    lit = np.append(LIGHT, 0) * radii[:, None]
    return [(hull(view, centres, radii), colour * 0.62), (hull(view, centres + 0.3 * lit, radii * 0.84), colour * 0.88),
            (hull(view, centres + 0.9 * lit, radii * 0.45), colour)]


def head_patch(person, view, axis, degrees):
    """Outline (n, 2) of the part of the head's ellipsoid within an angle of an axis, as far as it is in sight; or None."""
    shape = person.head * (np.array([0.051, 0.069, 0.060]) * person.head_size)
    viewer = shape[2] / np.linalg.norm(shape[2])  # in the unit sphere's space the visible half is where u . viewer > 0
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    if degrees < 90 and axis @ viewer < -np.sin(np.deg2rad(degrees)) + 0.02:
        return None
    across = np.cross(axis, [1, 0, 0])
    across /= np.linalg.norm(across)
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)[:, None]
    rim = np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
    sphere = np.cos(np.deg2rad(degrees)) * axis + np.sin(np.deg2rad(degrees)) * rim
    facing = sphere @ viewer
    hidden = facing < 0
    sphere[hidden] -= facing[hidden, None] * viewer  # what lies behind the horizon moves onto it
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    return project(view, person.points['head'] + sphere @ shape.T)[0]


def head_polygons(person, view):
    """Polygons of the head: hair, face, ears, eyes, mouth, nose, beard, hat; what faces away is left out."""
    look, size = person.look, person.head_size
    shape = person.head * (np.array([0.051, 0.069, 0.060]) * size)
    viewer = shape[2] / np.linalg.norm(shape[2])
    horizon = np.linalg.svd(viewer[None])[2][1:]
    outline = project(view, person.points['head'] + (CIRCLE @ horizon) @ shape.T)[0]
    bald = look['haircut'] == 'bald'
    polygons = [(outline, look['skin'] * 0.7 if bald else look['hair'] * 0.8)]

    def add(points, colour):
        if points is not None:
            polygons.append((points, colour))

    def dot(place, radius, colour):
        add(hull(view, [place], [radius * size]), colour)

    if bald:
        add(head_patch(person, view, (0, 0, 1), 179), look['skin'] * 0.9)
    else:
        add(head_patch(person, view, (0, 0.8, -0.3), 50), look['hair'])
    add(head_patch(person, view, (0, -0.35, 1), 62), look['skin'] * 0.88)
    add(head_patch(person, view, (0, -0.2, 1), 45), look['skin'])
    if look['beard']:
        add(head_patch(person, view, (0, -0.85, 0.75), 33), look['hair'])
    for side, sign in SIDES:
        if keypoint_faces_viewer(person, side + '_ear') and look['haircut'] != 'long':
            dot(person.points[side + '_ear'], 0.014, look['skin'] * 0.7)
            dot(person.points[side + '_ear'], 0.008, look['skin'] * 0.9)
        if keypoint_faces_viewer(person, side + '_eye'):
            eye, left, up = person.points[side + '_eye'], person.head[:, 0] * size, person.head[:, 1] * size
            add(hull(view, [eye - 0.006 * left, eye + 0.006 * left], [0.006 * size] * 2), np.full(3, 240.))
            dot(eye, 0.0055, np.full(3, 25.))
            add(hull(view, [eye - 0.010 * left + 0.017 * up, eye + 0.010 * left + 0.017 * up], [0.003 * size] * 2),
                look['hair'] * 0.7)
    if keypoint_faces_viewer(person, 'nose'):
        nose, up, left = person.points['nose'], person.head[:, 1] * size, person.head[:, 0] * size
        add(hull(view, [nose, nose + 0.02 * up - person.head[:, 2] * 0.008], [0.009 * size, 0.004 * size]),
            look['skin'] * 0.78)
        mouth = nose - 0.022 * up - person.head[:, 2] * 0.008 * size
        add(hull(view, [mouth - 0.012 * left, mouth + 0.012 * left], [0.0045 * size] * 2),
            look['skin'] * [0.55, 0.5, 0.8])
    if look['hat']:
        add(head_patch(person, view, (0, 1, 0.02), 66), look['trim'] * 0.8)
        add(head_patch(person, view, (0, 1, -0.15), 52), look['trim'])
        if person.head[2, 2] > -0.2:
            brim = person.points['head'] + size * (person.head @ np.array(
                [[-0.03, 0.035, 0.05], [0.03, 0.035, 0.05], [0.02, 0.03, 0.085], [-0.02, 0.03, 0.085]]).T).T
            add(hull(view, brim, [0.004] * 4), look['trim'] * 0.6)
    return polygons


def chest_polygons(person, view):
    """Polygons of the upper body; the front shows collar, buttons, pocket (on the left) or print, the back a backpack."""
    look, torso = person.look, person.torso

    def on_torso(*places):
        return [torso @ np.array(place, float) for place in places]

    b = person.build
    centres = on_torso((0.082, 0.262, 0), (-0.082, 0.262, 0), (0.048, 0.07, 0), (-0.048, 0.07, 0), (0, 0.285, 0))
    polygons = shaded(view, centres, np.array([0.05, 0.05, 0.058, 0.058, 0.045]) * b, look['top'])
    front, trim, depth = torso[2, 2], look['trim'], 0.055 * b

    def add(places, radius, colour):
        polygons.append((hull(view, on_torso(*places), [radius] * len(places)), colour))

    if look['front'] == 'stripes':
        for height in (0.24, 0.18, 0.12, 0.06):
            width, face = 0.105 - 0.12 * (0.24 - height), np.sign(front) * 0.03
            add([(-width, height, face), (width, height, face)], 0.010, trim)
    if front > 0.25:
        add([(-0.025, 0.30, 0.03), (0.025, 0.30, 0.03), (0, 0.255, depth)], 0.006, look['skin'] * 0.85)
        if look['front'] == 'jacket':
            add([(-0.02, 0.25, depth), (0.02, 0.25, depth), (0.028, 0.03, depth), (-0.028, 0.03, depth)], 0.004, trim)
        elif look['front'] == 'buttons':
            for height in (0.22, 0.17, 0.12, 0.07, 0.03):
                add([(0, height, depth)], 0.006, trim)
        elif look['front'] == 'pocket':
            add([(0.035, 0.21, depth), (0.07, 0.21, depth), (0.07, 0.165, depth), (0.035, 0.165, depth)], 0.003, trim)
        elif look['front'] == 'print':
            add([(-0.04, 0.19, depth), (0.04, 0.19, depth), (0.03, 0.12, depth), (-0.03, 0.12, depth)], 0.005, trim)
    if look['backpack']:
        if front < 0.1:
            polygons += shaded(view, on_torso((0.05, 0.24, -0.09), (-0.05, 0.24, -0.09), (0.05, 0.07, -0.1),
                                              (-0.05, 0.07, -0.1)), [0.04] * 4, trim)
        else:
            for sign in (1, -1):
                add([(sign * 0.07, 0.29, 0.02), (sign * 0.075, 0.1, depth)], 0.008, trim * 0.7)
    return polygons


def body_parts(person, view):
    """All parts of a person as Part tuples, from far to near."""
    look, b, p = person.look, person.build, person.points
    parts = []

    def add(name, centres, radii, colour, nearer=0.0, extra=()):
        polygons = shaded(view, centres, np.asarray(radii) * b, colour)
        parts.append(Part(name, np.mean([c[2] for c in centres]) + nearer, polygons + list(extra)))

    for side, sign in SIDES:
        shoulder, elbow, wrist, hip, knee, ankle = (
            p['%s_%s' % (side, joint)] for joint in ('shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle'))
        sleeve = shaded(view, [shoulder, shoulder + 0.6 * (elbow - shoulder)], np.array([0.045, 0.04]) * b, look['top'])
        add(side + '_upper_arm', [shoulder, elbow], [0.042, 0.031], look['top' if look['sleeves'] == 'long' else 'skin'],
            0.03, sleeve if look['sleeves'] == 'short' else ())
        strap = [wrist + 0.12 * (elbow - wrist), wrist + 0.2 * (elbow - wrist)]
        watch = shaded(view, strap, np.array([0.026, 0.026]) * b, np.full(3, 30.))
        add(side + '_forearm', [elbow, wrist], [0.031, 0.023], look['top' if look['sleeves'] == 'long' else 'skin'],
            0.04, watch if look['watch'] and side == 'left' else ())
        add(side + '_hand', [wrist, p[side + '_fingers']], [0.021, 0.020], look['skin'], 0.045)
        bare = look['legwear'] != 'long'
        add(side + '_thigh', [hip, knee], [0.061, 0.043], look['skin' if look['legwear'] == 'skirt' else 'bottom'])
        add(side + '_shank', [knee, ankle], [0.038, 0.025] if bare else [0.043, 0.034], look['skin' if bare else 'bottom'])
        add(side + '_foot', [ankle, p[side + '_toes']], [0.027, 0.024], look['shoe'])
    hips = [p['left_hip'] * 0.9, p['right_hip'] * 0.9]
    waist = [person.torso @ [0.04, 0.07, 0], person.torso @ [-0.04, 0.07, 0]]
    if person.hips[2, 2] > 0.3:  # a buckle in front, pockets behind
        marks = [([(-0.008, 0.06, 0.05), (0.008, 0.06, 0.05)], np.array([90., 190, 210]))]
    elif person.hips[2, 2] < -0.3:
        marks = [([(sign * 0.03, 0, -0.06), (sign * 0.055, 0, -0.06), (sign * 0.042, -0.03, -0.06)], look['bottom'] * 0.5)
                 for _, sign in SIDES]
    else:
        marks = []
    add('pelvis', hips + waist, [0.064, 0.064, 0.055, 0.055], look['bottom'], 0.01,
        [(hull(view, np.array(places) @ person.hips.T, [0.006] * len(places)), colour) for places, colour in marks])
    if look['legwear'] == 'skirt':
        hem = [p[s + '_hip'] + 0.75 * (p[s + '_knee'] - p[s + '_hip']) for s, _ in SIDES]
        add('skirt', waist + hem, [0.055, 0.055, 0.07, 0.07], look['bottom'], 0.1)
    add('neck', [p['neck'], 0.35 * p['neck'] + 0.65 * p['head']], [0.034, 0.032], look['skin'] * 0.85)
    parts.append(Part('chest', person.torso[2] @ [0, 0.16, 0] + 0.015, chest_polygons(person, view)))
    parts.append(Part('head', p['head'][2] + 0.03, head_polygons(person, view)))
    if look['haircut'] == 'long':
        behind = p['head'] + person.head @ [0, -0.01, -0.03]
        add('hair', [behind, behind + person.torso @ [0, -0.12, -0.012]],
            np.array([0.056, 0.05]) * person.head_size / b, look['hair'], 0.03 - 0.02 * np.sign(person.head[2, 2]))
    return sorted(parts, key=lambda part: part.depth)


def keypoint_faces_viewer(person, name):
    """Whether a keypoint's side of the body is turned to the camera."""
    side = {'l': 1, 'r': -1}[name[0]] if '_' in name else 0
    if name == 'nose':
        return person.head[2, 2] > -0.15
    if name.endswith('eye'):
        return person.head[2] @ [0.45 * side, 0, 0.9] > 0.05
    if name.endswith('ear'):
        return person.head[2, 0] * side > -0.35
    return person.torso[2, 0] * side > -0.6


def fill(canvas, polygon, colour):
    """Fill a polygon (n, 2) of an image with a BGR colour, anti-aliased, or of a map of labels with a number."""
    points = [np.rint(polygon * 16).astype(np.int32)]
    if canvas.ndim == 3:
        cv2.fillPoly(canvas, points, tuple(colour), cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(canvas, points, int(colour), cv2.LINE_8, 4)


def paint(image, parts):
    """Paint a person over the image, anti-aliased."""
    for part in parts:
        for polygon, colour in part.polygons:
            fill(image, polygon, colour)


def paint_labels(labels, parts, number):
    """Paint a person's parts into labels (H, W) uint16: 64 * number + index in PARTS; number counts from 1."""
    for part in parts:
        fill(labels, part.polygons[0][0], 64 * number + PARTS.index(part.name))


# --------------------------------------------------------------------------------------------------------------- scene

SIZES = [(640, 480), (640, 480), (480, 640), (640, 427), (640, 427), (427, 640), (640, 360), (500, 375), (375, 500),
         (640, 640)]  # width, height
OCCLUDER = 1000  # the label number of things in front of everybody

Instance = namedtuple('Instance', 'kind people')  # kind: 'keypoints', 'plain' or 'crowd'; people: [(Person, View)]


def clouds(rng, height, width, cells):
    """Smooth random field (height, width) float32 of about unit size, in three octaves from `cells` cells on."""
    field = np.zeros((1, 1), np.float32)
    for octave in range(3):  # each octave is added at twice the resolution it needs
        side = cells * 2 ** octave
        field = cv2.resize(field, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC) + 0.55 ** octave * cv2.resize(
            rng.randn(side, side).astype(np.float32), (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(field, (width, height))


def draw_clutter(rng, image):
    """Draw one thing that is not a person: box, window, ball, pole, cable, sign or tree."""
    height, width = image.shape[:2]
    colour, other = (c.mean() + (c - c.mean()) * rng.uniform(0.1, 0.9) for c in rng.uniform(10, 245, (2, 3)))
    x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.04, 0.3) * height
    kind = rng.randint(6)
    if kind == 0:  # a box, perhaps with shelves
        corners = cv2.boxPoints(((x, y), (size * rng.uniform(0.5, 2), size), rng.normal(0, 6)))
        fill(image, corners, colour)
        for t in np.linspace(0, 1, rng.randint(1, 5))[1:]:
            edge = corners[[0, 3]] * (1 - t) + corners[[1, 2]] * t
            cv2.line(image, *[tuple(int(v) for v in p) for p in edge], other.tolist(), 2, cv2.LINE_AA)
    elif kind == 1:  # a window or a picture
        for shrink, c in ((1, colour), (0.85, other)):
            fill(image, cv2.boxPoints(((x, y), (size * shrink, size * 1.3 * shrink), 0)), c)
    elif kind == 2:  # a ball or a lamp
        axes = size * rng.uniform(0.2, 0.6, 2)
        fill(image, [x, y] + CIRCLE * axes, colour)
        fill(image, [x, y] + CIRCLE * axes * 0.6 - axes * 0.15, np.minimum(colour * 1.3, 255))
    elif kind == 3:  # a pole
        end = np.array([x + rng.normal(0, 30), y + rng.uniform(0.5, 2.5) * size])
        cv2.line(image, (int(x), int(y)), tuple(int(v) for v in end), colour.tolist(), rng.randint(2, 14), cv2.LINE_AA)
    elif kind == 4:  # a cable or a path
        points = np.cumsum(np.vstack([[x, y], rng.normal(0, size / 2, (5, 2))]), 0)
        cv2.polylines(image, [np.rint(points).astype(np.int32)], False, colour.tolist(), rng.randint(1, 6), cv2.LINE_AA)
    else:  # a tree
        trunk = np.array([[-0.06, 0], [0.06, 0], [0.09, 1.2], [-0.09, 1.2]]) * size + [x, y]
        fill(image, trunk, np.array([40, 60, 85]) * rng.uniform(0.6, 1.2))
        green = np.array([rng.uniform(20, 70), rng.uniform(70, 150), rng.uniform(30, 110)])
        for _ in range(9):
            leaves = rng.normal(0, 0.22, 2) * size + [x, y]
            fill(image, leaves + CIRCLE * size * rng.uniform(0.15, 0.35), green * rng.uniform(0.7, 1.25))


def draw_background(rng, width, height):
    """An image (height, width, 3) uint8 BGR of a room, a street or a meadow, textured and cluttered."""
    horizon = int(height * rng.uniform(0.25, 0.75))
    if rng.rand() < 0.5:  # outdoors: sky over ground
        above = np.array([rng.uniform(180, 250), rng.uniform(150, 220), rng.uniform(110, 210)])
        below = np.array([(60, 120, 90), (110, 115, 120), (120, 165, 195), (225, 225, 225)][rng.randint(4)], float)
    else:
        above, below = rng.uniform(50, 230, 3), rng.uniform(40, 200, 3)
        above, below = [0.3 * c + 0.7 * c.mean() for c in (above, below)]
    rows = np.where(np.arange(height)[:, None] < horizon, above, below) \
        * np.linspace(rng.uniform(0.7, 1.1), rng.uniform(0.7, 1.1), height)[:, None]
    texture = rng.uniform(2, 10) * clouds(rng, height, width, rng.randint(3, 12)) \
        + rng.uniform(2, 8) * clouds(rng, height, width, rng.randint(20, 50))
    image = np.clip(rows[:, None] + texture[..., None], 0, 255).astype(np.uint8)
    if rng.rand() < 0.3:  # tiles or planks
        for x in np.arange(0, width, rng.uniform(20, 80)):
            end = int(x + (x - width / 2) * 1.2)
            cv2.line(image, (int(x), horizon), (end, height), (below * 0.7).tolist(), 1, cv2.LINE_AA)
    for _ in range(rng.randint(4, 18)):
        draw_clutter(rng, image)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.5))


def place_person(rng, person, body_height, width, height, may_leave):
    """A View of the given body height (pixels) at a random place; off the image in part when may_leave."""
    points = np.array(list(person.points.values())) * body_height
    low, high = points[:, :2].min(0) - 0.08 * body_height, points[:, :2].max(0) + 0.08 * body_height
    room = np.array([width, height]) - (high - low)
    slack = 0.35 * (high - low) if may_leave else np.minimum(room, 0) * -0.5
    first, last = np.minimum(0, room) - slack, np.maximum(0, room) + slack
    corner = rng.uniform(first, last)
    if not may_leave and room[1] > 0:
        corner[1] = rng.triangular(0, room[1], room[1] + 1)  # people stand on the ground: rather low than high
    return View(body_height, *(corner - low))


def sample_instances(rng, width, height):
    """Draw who is in the picture, from far to near: Instances, each with its people and where they stand."""
    instances = []
    if rng.rand() < 0.15:  # a crowd in the distance, not annotated one by one
        size, centre, base = rng.uniform(0.06, 0.13) * height, rng.uniform(0, width), rng.uniform(0.3, 0.8) * height
        people = [(sample_person(rng), View(size * rng.uniform(0.85, 1.15), centre + rng.normal(0, 0.12) * width,
                                            base + rng.normal(0, 0.25) * size)) for _ in range(rng.randint(12, 28))]
        instances.append(Instance('crowd', sorted(people, key=lambda entry: entry[1].y)))
    for _ in range(rng.choice([0, 1, 2], p=[0.8, 0.14, 0.06])):  # too small to label joints
        person = sample_person(rng)
        view = place_person(rng, person, rng.uniform(22, 48), width, height * 0.8, False)
        instances.append(Instance('plain', [(person, view)]))
    heights = np.sort(rng.uniform(0.25, 0.95, rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.27, 0.2, 0.13, 0.1])) * height)
    for body_height in heights:
        person = sample_person(rng)
        view = place_person(rng, person, body_height, width, height, rng.rand() < 0.25)
        instances.append(Instance('keypoints', [(snap_joints(person, view), view)]))
    return instances


def seat(person, view):
    """Outline (n, 2) of the block under a sitting person, or None for anybody else."""
    points = person.points
    thighs = [points[side + '_knee'] - points[side + '_hip'] for side, _ in SIDES]
    if max(person.hips[:, 1] @ -thigh for thigh in thighs) > 0.1:
        return None
    below = max(points[side + '_ankle'] @ -person.hips[:, 1] for side, _ in SIDES)
    corners = np.array([(x, -y, z) for x in (-0.1, 0.1) for y in (0.075, max(below, 0.12)) for z in (-0.1, 0.1)])
    return hull(view, corners @ person.hips.T, [0.015] * 8)


def draw_scene(rng, width, height):
    """Draw a picture: image (H, W, 3) uint8 BGR, labels (H, W) uint16 (see paint_labels), the Instances drawn."""
    image, labels, drawn = draw_background(rng, width, height), np.zeros((height, width), np.uint16), []
    for instance in sample_instances(rng, width, height):
        number, covered = len(drawn) + 1, labels.copy()
        seats = [seat(person, view) for person, view in instance.people]
        parts = [body_parts(person, view) for person, view in instance.people]
        for block, one in zip(seats, parts):
            if block is not None:
                fill(covered, block, 0)
            paint_labels(covered, one, number)
        before, after = (np.bincount(map_.ravel() >> 6, minlength=number + 1)[1:] for map_ in (labels, covered))
        if np.any(after[:-1] < 0.45 * before[:-1]):
            continue  # would hide somebody behind
        for (person, _), block, one in zip(instance.people, seats, parts):
            if block is not None:
                fill(image, block, person.look['trim'] * 0.5)
            paint(image, one)
        labels = covered
        drawn.append(instance)
    if rng.rand() < 0.12:  # a table or a wall in front
        top = rng.uniform(0.72, 0.9) * height
        left, right = np.sort(rng.uniform(-0.2, 1.2, 2)) * width
        board = np.array([[left, top], [right, top + rng.normal(0, 8)], [right, height + 9], [left, height + 9]])
        fill(image, board, rng.uniform(30, 220, 3))
        fill(labels, board, 64 * OCCLUDER)
    return image, labels, drawn


def photograph(rng, image):
    """The picture as a camera gives it: soft focus, exposure, colour cast, grain. uint8 to uint8."""
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    gain = (rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    light = 1 + 0.06 * clouds(rng, height, width, 2)
    grain = rng.uniform(-12, 12) + rng.uniform(1, 8) * rng.randint(-128, 128, (height, width), np.int8) / np.float32(128)
    image = image * (light[..., None] * gain) + grain[..., None].astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- annotation


def label_joints(person, view, labels, number):
    """The 51 numbers x, y, v of COCO: v 2 in sight, 1 hidden, 0 outside the image or on the far side of the face."""
    height, width = labels.shape
    pixels = np.rint(project(view, [person.points[name] for name in KEYPOINTS])[0]).astype(int)
    keypoints = []
    for name, (x, y) in zip(KEYPOINTS, pixels.tolist()):
        side, _, joint = name.rpartition('_')
        faces = keypoint_faces_viewer(person, name)
        on_face = joint in ('nose', 'eye', 'ear')
        if not (0 <= x < width and 0 <= y < height) or (on_face and not faces):
            keypoints += [0, 0, 0]
            continue
        parts = SHOWN_BY[joint]
        shown = [64 * number + PARTS.index(p if p in PARTS else side + '_' + p) for p in parts]
        keypoints += [x, y, 2 if faces and labels[y, x] in shown else 1]
    return keypoints


def mask_polygons(mask):
    """Outlines [[x0, y0, x1, y1, ...], ...] of a mask (H, W), in COCO's coordinates (a pixel spans x to x + 1)."""
    x, y, width, height = cv2.boundingRect(mask)
    fine = np.repeat(np.repeat(mask[y:y + height, x:x + width], 4, 0), 4, 1)  # so that outlines run on pixel edges
    contours = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    outlines = [cv2.approxPolyDP(contour, 1.5, True)[:, 0] for contour in contours if cv2.contourArea(contour) > 16 * 12]
    return [np.round((outline + 0.5) / 4 + [x, y], 2).ravel().tolist() for outline in outlines if len(outline) > 2]


def run_lengths(mask):
    """Uncompressed COCO RLE of a mask (H, W): column by column, starting with a run of zeros."""
    flat = np.concatenate([[0], mask.ravel(order='F'), [2]])
    changes = np.flatnonzero(np.diff(flat))
    return {'counts': np.diff(np.concatenate([[0], changes])).tolist(), 'size': list(mask.shape)}


def annotate(instance, number, labels):
    """COCO annotation (without id and image_id) of an Instance, or None when next to nothing of it is in sight."""
    height, width = labels.shape
    mask = (labels >> 6 == number).astype(np.uint8)
    keypoints = [0] * 51
    if instance.kind == 'crowd':
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((25, 25), np.uint8)) & (labels >> 6 <= number)
        segmentation = run_lengths(mask)
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        segmentation = mask_polygons(mask)
        if not segmentation:
            return None
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        if instance.kind == 'keypoints':
            keypoints = label_joints(*instance.people[0], labels, number)
    area = float(coco_mask.area(rle))
    if area < 60:
        return None
    return {'segmentation': segmentation, 'num_keypoints': sum(v > 0 for v in keypoints[2::3]), 'area': area,
            'iscrowd': int(instance.kind == 'crowd'), 'keypoints': keypoints,
            'bbox': coco_mask.toBbox(rle).tolist(), 'category_id': 1}


def render_image(seed, split, index):
    """One picture of a split (its number in SPLITS) and its annotations: (H, W, 3) uint8 BGR, list of dicts."""
    rng = np.random.RandomState([seed, split, index])
    width, height = SIZES[rng.randint(len(SIZES))]
    image, labels, instances = draw_scene(rng, width, height)
    annotations = [annotate(instance, number, labels) for number, instance in enumerate(instances, 1)]
    return photograph(rng, image), [a for a in annotations if a]


# -------------------------------------------------------------------------------------------------------------- output


def coco_dataset(images, annotations):
    """The content of an annotation file."""
    return {'info': {'description': DESCRIPTION, 'url': '', 'version': '1.0', 'year': 2017, 'contributor': '',
                     'date_created': '2017/09/01'},
            'licenses': [{'url': 'https://creativecommons.org/publicdomain/zero/1.0/', 'id': 1,
                          'name': 'Public Domain Dedication'}],
            'images': images, 'annotations': annotations,
            'categories': [{'supercategory': 'person', 'id': 1, 'name': 'person', 'keypoints': KEYPOINTS,
                            'skeleton': SKELETON}]}


def write_split(folder, seed, split, count, progress):
    """Render a split into folder/train2017 or folder/val2017 and write its annotation file."""
    name, first_id = SPLITS[split]
    (folder / name).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        image, found = render_image(seed, split, index)
        image_id = first_id + index
        file_name = '%012d.jpg' % image_id
        (folder / name / file_name).write_bytes(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        images.append({'license': 1, 'file_name': file_name, 'coco_url': '', 'height': image.shape[0],
                       'width': image.shape[1], 'date_captured': '2017-09-01 00:00:00', 'flickr_url': '', 'id': image_id})
        for annotation in found:
            crowd_or_person = 900100000000 if annotation['iscrowd'] else first_id * 1000
            annotations.append(dict(annotation, image_id=image_id, id=crowd_or_person + len(annotations)))
        progress.update()
    (folder / 'annotations' / annotation_file(name)).write_text(json.dumps(coco_dataset(images, annotations)))


def annotation_file(name):
    return 'person_keypoints_%s.json' % name


def check_replaceable(folder):
    """Raise UserError unless the folder is absent, empty, or holds just an earlier output of this script."""
    remedy = 'choose a new --output-dir or empty this one'
    if folder.exists() and not folder.is_dir():
        raise pose_cli.UserError('%s is not a folder; %s' % (folder, remedy))
    content = {path.name for path in folder.iterdir()} - {UNFINISHED} if folder.exists() else set()
    strange = content - {'annotations'} - {name for name, _ in SPLITS}
    if strange:
        raise pose_cli.UserError('%s already contains %s; %s' % (folder, sorted(strange)[0], remedy))
    for name, _ in SPLITS if content else ():
        try:
            data = json.loads((folder / 'annotations' / annotation_file(name)).read_text())
            files = {image['file_name'] for image in data['images']} if data['info']['description'] == DESCRIPTION else None
            known = files is not None and files >= {path.name for path in (folder / name).iterdir()}
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise pose_cli.UserError('%s contains a %s that this script did not write; %s' % (folder, name, remedy))


def main():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output-dir', type=Path, required=True, help='folder to write the data set to')
    parser.add_argument('--train', type=pose_cli.non_negative_int, default=200, help='number of training images')
    parser.add_argument('--val', type=pose_cli.non_negative_int, default=24, help='number of validation images')
    parser.add_argument('--seed', type=pose_cli.non_negative_int, default=0, help='the same seed gives the same bytes')
    args = parser.parse_args()
    if args.train + args.val == 0:
        raise pose_cli.UserError('--train=0 and --val=0 leave nothing to render; give one of them a positive number')
    if args.seed >= 2 ** 32:
        raise pose_cli.UserError('--seed=%d is too large; use a number below 2**32' % args.seed)

    folder = args.output_dir
    unfinished = folder / UNFINISHED
    try:
        check_replaceable(folder)
        shutil.rmtree(str(unfinished), ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            with tqdm(total=args.train + args.val, desc='rendering', unit='image') as progress:
                for split, count in enumerate((args.train, args.val)):
                    write_split(unfinished, args.seed, split, count, progress)
            for name in [name for name, _ in SPLITS] + ['annotations']:
                if (folder / name).exists():
                    shutil.rmtree(str(folder / name))
                os.replace(str(unfinished / name), str(folder / name))
        finally:
            shutil.rmtree(str(unfinished), ignore_errors=True)
    except OSError as error:
        raise pose_cli.UserError('cannot write to %s: %s; choose another --output-dir' % (folder, error.strerror))
    print('%d training and %d validation images in %s' % (args.train, args.val, folder))


if __name__ == '__main__':
    pose_cli.run(main)
