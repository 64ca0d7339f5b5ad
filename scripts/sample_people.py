"""People for rendered pictures: 3-D skeletons in random poses and clothes, drawn as shaded parts.

sample_person draws a Person: joints, frames of hips, torso and head, clothes, turned to the camera. body_parts turns
it, seen by a Camera, into polygons from far to near: each part is a hull of spheres. paint draws them into an image and
paint_labels into a map that tells which part of which person each pixel shows.
"""
import colorsys
from collections import namedtuple

import cv2
import numpy as np

KEYPOINTS = ['nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
             'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee',
             'left_ankle', 'right_ankle']
SIDES = (('left', 1), ('right', -1))

# ---------------------------------------------------------------------------------------------------------------- pose
# Lengths are in units of the body height. The body's frame: x to its left, y up, z forward.

Person = namedtuple('Person', 'points hips torso head head_size build look')
# points: {name: (3,)}, from the middle of the hips; hips, torso, head: (3, 3) frames (columns left, up, forward);
# look: {name: choice or BGR colour}

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
    """Unit vector of a limb swung forward and outward (degrees) from hanging down; side: 1 left, -1 right."""
    forward, outward = np.deg2rad([forward, outward])
    return np.array([side * np.sin(outward), -np.cos(outward) * np.cos(forward), np.cos(outward) * np.sin(forward)])


def sample_pose(rng):
    """Draw a pose, as body_points makes them, torso frame, head frame, head size."""
    weights = np.array([pose[0] for pose in POSES], float)
    _, legs, arms, lean_range = POSES[rng.choice(len(POSES), p=weights / weights.sum())]
    legs = [legs[i] for i in rng.permutation(2)]
    arms = [arms[rng.randint(len(arms))]] * 2 if rng.rand() < 0.4 else [arms[rng.randint(len(arms))] for _ in range(2)]
    lean = rng.uniform(*lean_range)
    torso = rotation(0, lean) @ rotation(2, rng.normal(0, 4)) @ rotation(1, rng.normal(0, 8))
    head = rotation(0, 0.45 * lean) @ rotation(1, rng.normal(0, 22)) @ rotation(0, rng.normal(4, 9)) \
        @ rotation(2, rng.normal(0, 6))
    head_size = rng.uniform(1.0, 1.3)
    arms, legs = zip(*((np.array(ARMS[arm]) + rng.normal(0, 7, 4), np.array(LEGS[leg]) + rng.normal(0, 4, 4))
                       for arm, leg in zip(arms, legs)))
    return body_points(torso, head, head_size, arms, legs), torso, head, head_size


def body_points(torso, head, head_size, arms, legs):
    """Points of the body in its own frame {name: (3,)}, from its frames and the angles of its limbs.

    arms, legs: for the left and the right one, (4,) degrees as in ARMS and LEGS.
    """
    points = {'neck': torso @ [0, 0.30, 0]}
    points['head'] = points['neck'] + head_size * (torso @ [0, 0.045, 0] + head @ [0, 0.045, 0.012])
    points['nose'] = points['head'] + head @ [0, -0.014 * head_size, 0.066 * head_size]
    for (side, sign), arm, leg in zip(SIDES, arms, legs):
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
    return points


def sample_look(rng):
    """Draw skin, hair and clothes: {name: BGR colour or choice}."""
    def colour(saturation, value):
        return np.array(colorsys.hsv_to_rgb(rng.rand(), rng.uniform(*saturation), rng.uniform(*value)))[::-1] * 255

    def choose(*options):
        return options[rng.randint(len(options))]

    skin = np.array(choose((201, 224, 255), (168, 198, 240), (140, 175, 225), (110, 150, 205), (75, 115, 170),
                           (55, 85, 130), (40, 62, 98))) * rng.uniform(0.92, 1.03)
    hair = np.array(choose((25, 25, 28), (35, 45, 62), (45, 70, 105), (90, 150, 195), (140, 200, 225), (40, 75, 150),
                           (165, 165, 168))) * rng.uniform(0.85, 1.1)
    top = colour((0.0, 0.9), (0.3, 1.0))
    return {'skin': skin, 'hair': hair, 'top': top, 'trim': colour((0, 0.8), (0.1, 1)),
            'bottom': choose(colour((0.2, 0.7), (0.15, 0.5)), colour((0, 0.15), (0.1, 0.45)),
                             colour((0, 0.8), (0.2, 0.9))),
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

Camera = namedtuple('Camera', 'scale x y')     # pixels per body height; where the middle of the hips lies in the image
Part = namedtuple('Part', 'name depth polygons')  # polygons: (points (n, 2) in pixels, BGR), the first is the outline
CAMERA_DISTANCE = 5.0                      # in body heights
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20, endpoint=False)),
                   np.sin(np.linspace(0, 2 * np.pi, 20, endpoint=False))], 1)
LIGHT = np.array([-0.25, -0.35])
PARTS = ['head', 'hair', 'neck', 'chest', 'pelvis', 'skirt', 'backpack'] + [
    '%s_%s' % (side, part) for side, _ in SIDES for part in ('upper_arm', 'forearm', 'hand', 'thigh', 'shank', 'foot')]
SHOWN_BY = {  # the parts at whose sight a joint counts as visible
    'shoulder': ('upper_arm', 'chest', 'neck'), 'elbow': ('upper_arm', 'forearm'), 'wrist': ('forearm', 'hand'),
    'hip': ('thigh', 'pelvis', 'chest', 'skirt'), 'knee': ('thigh', 'shank'), 'ankle': ('shank', 'foot'),
    'nose': ('head',), 'eye': ('head',), 'ear': ('head',)}


def project(camera, points):
    """Points (n, 3) of the body to pixels (n, 2), and pixels per unit length at each (n,)."""
    points = np.atleast_2d(points)
    zoom = camera.scale * CAMERA_DISTANCE / (CAMERA_DISTANCE - points[:, 2])
    return points[:, :2] * zoom[:, None] + [camera.x, camera.y], zoom


def snap_joints(person, camera):
    """Move the keypoints' joints onto whole pixels, so that annotation and picture agree exactly."""
    pixels, zoom = project(camera, [person.points[name] for name in KEYPOINTS])
    snapped = (np.rint(pixels) - [camera.x, camera.y]) / zoom[:, None]
    points = {name: np.append(xy, person.points[name][2]) for name, xy in zip(KEYPOINTS, snapped)}
    return person._replace(points=dict(person.points, **points))


def hull(camera, centres, radii):
    """Convex outline (n, 2) of spheres, in pixels."""
    pixels, zoom = project(camera, centres)
    circles = pixels[:, None] + (np.asarray(radii) * zoom)[:, None, None] * CIRCLE
    return cv2.convexHull(circles.reshape(-1, 2).astype(np.float32))[:, 0]


def shaded(camera, centres, radii, colour):
    """Polygons of a rounded solid: a darker rim, the colour, and a lighter core moved to the light."""
    centres, radii = np.asarray(centres, float), np.asarray(radii, float)
    lit = np.append(LIGHT, 0) * radii[:, None]
    return [(hull(camera, centres, radii), colour * 0.62),
            (hull(camera, centres + 0.3 * lit, radii * 0.84), colour * 0.88),
            (hull(camera, centres + 0.9 * lit, radii * 0.45), colour)]


def head_shape(person):
    """The head's ellipsoid: the matrix (3, 3) that makes it of the unit sphere, and the viewer's direction there (3,).

    The visible half is that of the unit vectors u with u . viewer > 0.
    """
    shape = person.head * (np.array([0.051, 0.069, 0.060]) * person.head_size)
    return shape, shape[2] / np.linalg.norm(shape[2])


def head_patch(person, camera, axis, degrees):
    """Outline (n, 2) of the head's surface within an angle of an axis, as far as it is in sight; or None."""
    shape, viewer = head_shape(person)
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
    return project(camera, person.points['head'] + sphere @ shape.T)[0]


def head_polygons(person, camera):
    """Polygons of the head: hair, face, ears, eyes, mouth, nose, beard, hat; what faces away is left out."""
    look, size = person.look, person.head_size
    shape, viewer = head_shape(person)
    horizon = np.linalg.svd(viewer[None])[2][1:]
    outline = project(camera, person.points['head'] + (CIRCLE @ horizon) @ shape.T)[0]
    bald = look['haircut'] == 'bald'
    polygons = [(outline, look['skin'] * 0.7 if bald else look['hair'] * 0.8)]

    def add(points, colour):
        if points is not None:
            polygons.append((points, colour))

    def dot(place, radius, colour):
        add(hull(camera, [place], [radius * size]), colour)

    if bald:
        add(head_patch(person, camera, (0, 0, 1), 179), look['skin'] * 0.9)
    else:
        add(head_patch(person, camera, (0, 0.8, -0.3), 50), look['hair'])
    add(head_patch(person, camera, (0, -0.35, 1), 62), look['skin'] * 0.88)
    add(head_patch(person, camera, (0, -0.2, 1), 45), look['skin'])
    if look['beard']:
        add(head_patch(person, camera, (0, -0.85, 0.75), 33), look['hair'])
    for side, sign in SIDES:
        if keypoint_faces_viewer(person, side + '_ear') and look['haircut'] != 'long':
            dot(person.points[side + '_ear'], 0.014, look['skin'] * 0.7)
            dot(person.points[side + '_ear'], 0.008, look['skin'] * 0.9)
        if keypoint_faces_viewer(person, side + '_eye'):
            eye, left, up = person.points[side + '_eye'], person.head[:, 0] * size, person.head[:, 1] * size
            add(hull(camera, [eye - 0.006 * left, eye + 0.006 * left], [0.006 * size] * 2), np.full(3, 240.))
            dot(eye, 0.0055, np.full(3, 25.))
            add(hull(camera, [eye - 0.010 * left + 0.017 * up, eye + 0.010 * left + 0.017 * up], [0.003 * size] * 2),
                look['hair'] * 0.7)
    if keypoint_faces_viewer(person, 'nose'):
        nose, up, left = person.points['nose'], person.head[:, 1] * size, person.head[:, 0] * size
        add(hull(camera, [nose, nose + 0.02 * up - person.head[:, 2] * 0.008], [0.009 * size, 0.004 * size]),
            look['skin'] * 0.78)
        mouth = nose - 0.022 * up - person.head[:, 2] * 0.008 * size
        add(hull(camera, [mouth - 0.012 * left, mouth + 0.012 * left], [0.0045 * size] * 2),
            look['skin'] * [0.55, 0.5, 0.8])
    if look['hat']:
        add(head_patch(person, camera, (0, 1, 0.02), 66), look['trim'] * 0.8)
        add(head_patch(person, camera, (0, 1, -0.15), 52), look['trim'])
        if person.head[2, 2] > -0.2:
            brim = person.points['head'] + size * (person.head @ np.array(
                [[-0.03, 0.035, 0.05], [0.03, 0.035, 0.05], [0.02, 0.03, 0.085], [-0.02, 0.03, 0.085]]).T).T
            add(hull(camera, brim, [0.004] * 4), look['trim'] * 0.6)
    return polygons


def chest_polygons(person, camera):
    """Polygons of the upper body; its front shows a collar and jacket, buttons, pocket (on the left) or print."""
    look, torso = person.look, person.torso

    def on_torso(*places):
        return [torso @ np.array(place, float) for place in places]

    b = person.build
    centres = on_torso((0.082, 0.262, 0), (-0.082, 0.262, 0), (0.048, 0.07, 0), (-0.048, 0.07, 0), (0, 0.285, 0))
    polygons = shaded(camera, centres, np.array([0.05, 0.05, 0.058, 0.058, 0.045]) * b, look['top'])
    front, trim, depth = torso[2, 2], look['trim'], 0.055 * b

    def add(places, radius, colour):
        polygons.append((hull(camera, on_torso(*places), [radius] * len(places)), colour))

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
    if look['backpack'] and front > 0.1:
        for _, sign in SIDES:
            add([(sign * 0.07, 0.29, 0.02), (sign * 0.075, 0.1, depth)], 0.008, trim * 0.7)
    return polygons


def body_parts(person, camera):
    """All parts of a person as Part tuples, from far to near."""
    look, b, p = person.look, person.build, person.points
    bare_legs, arm = look['legwear'] != 'long', look['top' if look['sleeves'] == 'long' else 'skin']
    parts = []

    def add(name, centres, radii, colour, nearer=0.0, extra=()):
        polygons = shaded(camera, centres, np.asarray(radii) * b, colour)
        parts.append(Part(name, np.mean([c[2] for c in centres]) + nearer, polygons + list(extra)))

    for side, _ in SIDES:
        shoulder, elbow, wrist, hip, knee, ankle = (
            p['%s_%s' % (side, joint)] for joint in ('shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle'))
        sleeve = shaded(camera, [shoulder, shoulder + 0.6 * (elbow - shoulder)], np.array([0.045, 0.04]) * b,
                        look['top'])
        add(side + '_upper_arm', [shoulder, elbow], [0.042, 0.031], arm, 0.03,
            sleeve if look['sleeves'] == 'short' else ())
        strap = [wrist + 0.12 * (elbow - wrist), wrist + 0.2 * (elbow - wrist)]
        watch = shaded(camera, strap, np.array([0.026, 0.026]) * b, np.full(3, 30.))
        add(side + '_forearm', [elbow, wrist], [0.031, 0.023], arm, 0.04,
            watch if look['watch'] and side == 'left' else ())
        add(side + '_hand', [wrist, p[side + '_fingers']], [0.021, 0.020], look['skin'], 0.045)
        add(side + '_thigh', [hip, knee], [0.061, 0.043], look['skin' if look['legwear'] == 'skirt' else 'bottom'])
        add(side + '_shank', [knee, ankle], [0.038, 0.025] if bare_legs else [0.043, 0.034],
            look['skin' if bare_legs else 'bottom'])
        add(side + '_foot', [ankle, p[side + '_toes']], [0.027, 0.024], look['shoe'])
    hips = [p['left_hip'] * 0.9, p['right_hip'] * 0.9]
    waist = [person.torso @ [0.04, 0.07, 0], person.torso @ [-0.04, 0.07, 0]]
    if person.hips[2, 2] > 0.3:  # a buckle in front, pockets behind
        marks = [([(-0.008, 0.06, 0.05), (0.008, 0.06, 0.05)], np.array([90., 190, 210]))]
    elif person.hips[2, 2] < -0.3:
        marks = [([(sign * 0.03, 0, -0.06), (sign * 0.055, 0, -0.06), (sign * 0.042, -0.03, -0.06)],
                  look['bottom'] * 0.5) for _, sign in SIDES]
    else:
        marks = []
    add('pelvis', hips + waist, [0.064, 0.064, 0.055, 0.055], look['bottom'], 0.01,
        [(hull(camera, np.array(places) @ person.hips.T, [0.006] * len(places)), colour) for places, colour in marks])
    if look['legwear'] == 'skirt':
        hem = [p[s + '_hip'] + 0.75 * (p[s + '_knee'] - p[s + '_hip']) for s, _ in SIDES]
        add('skirt', waist + hem, [0.055, 0.055, 0.07, 0.07], look['bottom'], 0.1)
    add('neck', [p['neck'], 0.35 * p['neck'] + 0.65 * p['head']], [0.034, 0.032], look['skin'] * 0.85)
    parts.append(Part('chest', person.torso[2] @ [0, 0.16, 0] + 0.015, chest_polygons(person, camera)))
    if look['backpack']:
        sack = [(0.05, 0.24, -0.09), (-0.05, 0.24, -0.09), (0.05, 0.07, -0.1), (-0.05, 0.07, -0.1)]
        add('backpack', np.array(sack) @ person.torso.T, [0.04] * 4, look['trim'])
    parts.append(Part('head', p['head'][2] + 0.03, head_polygons(person, camera)))
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


def seat(person, camera):
    """Outline (n, 2) of the block under a sitting person, or None for anybody else."""
    points = person.points
    thighs = [points[side + '_knee'] - points[side + '_hip'] for side, _ in SIDES]
    if max(person.hips[:, 1] @ -thigh for thigh in thighs) > 0.1:
        return None
    below = max(points[side + '_ankle'] @ -person.hips[:, 1] for side, _ in SIDES)
    corners = np.array([(x, -y, z) for x in (-0.1, 0.1) for y in (0.075, max(below, 0.12)) for z in (-0.1, 0.1)])
    return hull(camera, corners @ person.hips.T, [0.015] * 8)
