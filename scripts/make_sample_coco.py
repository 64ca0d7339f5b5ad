"""Render people into a small data set in the layout and annotation format of COCO keypoints.

    python3 scripts/make_sample_coco.py --output-dir=DIR [--train=200 --val=24 --seed=0]

writes DIR/train2017, DIR/val2017 (JPEG) and DIR/annotations/person_keypoints_{train,val}2017.json.

Beside each picture a map of labels is painted with the same shapes: it tells which part of which person
(sample_people.py) each pixel shows, and segmentation, area, bbox and the visibility of each joint are read off it.
Each image has its own random stream, made of seed, split and number.
"""
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pose_cli

pose_cli.prepare_process()

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from pose_errors import UserError
from sample_people import CIRCLE, KEYPOINTS, PARTS, SHOWN_BY, Camera, body_parts, fill, keypoint_faces_viewer, paint, \
    paint_labels, project, sample_person, seat, snap_joints

SKELETON = [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10],
            [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]]
SPLITS = (('train2017', 1), ('val2017', 500001))  # folder, first image id
DESCRIPTION = 'Rendered people in the format of COCO 2017 keypoints'
UNFINISHED = '.unfinished'

# --------------------------------------------------------------------------------------------------------------- scene

SIZES = [(640, 480), (640, 480), (480, 640), (640, 427), (640, 427), (427, 640), (640, 360), (500, 375), (375, 500),
         (640, 640)]  # width, height
OCCLUDER = 1000  # the label number of things in front of everybody

Instance = namedtuple('Instance', 'kind people')  # kind: 'keypoints', 'plain' or 'crowd'; people: [(Person, Camera)]


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
    """A Camera that shows the given body height (pixels) at a random place; off the image in part when may_leave."""
    points = np.array(list(person.points.values())) * body_height
    low, high = points[:, :2].min(0) - 0.08 * body_height, points[:, :2].max(0) + 0.08 * body_height
    room = np.array([width, height]) - (high - low)
    slack = 0.35 * (high - low) if may_leave else np.minimum(room, 0) * -0.5
    first, last = np.minimum(0, room) - slack, np.maximum(0, room) + slack
    corner = rng.uniform(first, last)
    if not may_leave and room[1] > 0:
        corner[1] = rng.triangular(0, room[1], room[1] + 1)  # people stand on the ground: rather low than high
    return Camera(body_height, *(corner - low))


def sample_instances(rng, width, height):
    """Draw who is in the picture, from far to near: Instances, each with its people and where they stand."""
    instances = []
    if rng.rand() < 0.15:  # a crowd in the distance, not annotated one by one
        size, centre, base = rng.uniform(0.06, 0.13) * height, rng.uniform(0, width), rng.uniform(0.3, 0.8) * height
        people = [(sample_person(rng), Camera(size * rng.uniform(0.85, 1.15), centre + rng.normal(0, 0.12) * width,
                                              base + rng.normal(0, 0.25) * size)) for _ in range(rng.randint(12, 28))]
        instances.append(Instance('crowd', sorted(people, key=lambda entry: entry[1].y)))
    for _ in range(rng.choice([0, 1, 2], p=[0.8, 0.14, 0.06])):  # too small to label joints
        person = sample_person(rng)
        camera = place_person(rng, person, rng.uniform(22, 48), width, height * 0.8, False)
        instances.append(Instance('plain', [(person, camera)]))
    heights = np.sort(rng.uniform(0.25, 0.95, rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.27, 0.2, 0.13, 0.1])) * height)
    for body_height in heights:
        person = sample_person(rng)
        camera = place_person(rng, person, body_height, width, height, rng.rand() < 0.25)
        instances.append(Instance('keypoints', [(snap_joints(person, camera), camera)]))
    return instances


def draw_scene(rng, width, height):
    """Draw a picture: image (H, W, 3) uint8 BGR, labels (H, W) uint16 (see paint_labels), the Instances drawn."""
    image, labels, drawn = draw_background(rng, width, height), np.zeros((height, width), np.uint16), []
    for instance in sample_instances(rng, width, height):
        number, covered = len(drawn) + 1, labels.copy()
        seats = [seat(person, camera) for person, camera in instance.people]
        parts = [body_parts(person, camera) for person, camera in instance.people]
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
    grain = rng.uniform(-12, 12) + rng.uniform(1, 8) / 128 * rng.randint(-128, 128, (height, width), np.int8)
    image = image * (light[..., None] * gain) + grain[..., None].astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- annotation


def label_joints(person, camera, labels, number):
    """The 51 numbers x, y, v of COCO for person `number` of the labels.

    v is 2 in sight, 1 behind a body (another or the person's own), 0 where an annotator could not tell: outside the
    image, behind furniture, on the far side of the face.
    """
    height, width = labels.shape
    pixels = np.rint(project(camera, [person.points[name] for name in KEYPOINTS])[0]).astype(int)
    keypoints = []
    for name, (x, y) in zip(KEYPOINTS, pixels.tolist()):
        side, _, joint = name.rpartition('_')
        faces = keypoint_faces_viewer(person, name)
        far_face = joint in ('nose', 'eye', 'ear') and not faces
        if not (0 <= x < width and 0 <= y < height) or labels[y, x] >> 6 == OCCLUDER or far_face:
            keypoints += [0, 0, 0]
        else:
            shown = [64 * number + PARTS.index(p if p in PARTS else side + '_' + p) for p in SHOWN_BY[joint]]
            keypoints += [x, y, 2 if faces and labels[y, x] in shown else 1]
    return keypoints


def mask_polygons(mask):
    """Outlines [[x0, y0, x1, y1, ...], ...] of a mask (H, W), in COCO's coordinates (a pixel spans x to x + 1)."""
    x, y, width, height = cv2.boundingRect(mask)
    fine = np.repeat(np.repeat(mask[y:y + height, x:x + width], 4, 0), 4, 1)  # so that outlines run on pixel edges
    contours = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    outlines = [cv2.approxPolyDP(contour, 1.5, True)[:, 0] for contour in contours
                if cv2.contourArea(contour) > 12 * 4 ** 2]  # leave out specks of less than 12 pixels
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
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / name / file_name).write_bytes(jpeg.tobytes())
        images.append({'license': 1, 'file_name': file_name, 'coco_url': '', 'height': image.shape[0],
                       'width': image.shape[1], 'date_captured': '2017-09-01 00:00:00', 'flickr_url': '',
                       'id': image_id})
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
        raise UserError('%s is not a folder; %s' % (folder, remedy))
    content = {path.name for path in folder.iterdir()} - {UNFINISHED} if folder.exists() else set()
    strange = content - {'annotations'} - {name for name, _ in SPLITS}
    if strange:
        raise UserError('%s already contains %s; %s' % (folder, sorted(strange)[0], remedy))
    for name, _ in SPLITS if content else ():
        try:
            data = json.loads((folder / 'annotations' / annotation_file(name)).read_text())
            files = {image['file_name'] for image in data['images']}
            known = data['info']['description'] == DESCRIPTION and \
                files >= {path.name for path in (folder / name).iterdir()}
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise UserError('%s contains a %s that this script did not write; %s' % (folder, name, remedy))


def write_dataset(folder, seed, counts):
    """Render so many images of each split aside, then move them into place over an earlier output of this script."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(str(unfinished), ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with tqdm(total=sum(counts), desc='rendering', unit='image', disable=None) as progress:
            for split, count in enumerate(counts):
                write_split(unfinished, seed, split, count, progress)
        for name in [name for name, _ in SPLITS] + ['annotations']:
            if (folder / name).exists():
                shutil.rmtree(str(folder / name))
            os.replace(str(unfinished / name), str(folder / name))
    finally:
        shutil.rmtree(str(unfinished), ignore_errors=True)


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output-dir', type=Path, required=True, help='folder to write the data set to')
    parser.add_argument('--train', type=pose_cli.non_negative_int, default=200, help='number of training images')
    parser.add_argument('--val', type=pose_cli.non_negative_int, default=24, help='number of validation images')
    parser.add_argument('--seed', type=pose_cli.seed, default=0, help='the same seed gives the same bytes')
    flags = parser.parse_args(args)
    if flags.train + flags.val == 0:
        raise UserError('--train=0 and --val=0 leave nothing to render; give one of them a positive number')
    if flags.seed >= 2 ** 32:
        raise UserError('--seed=%d is too large; use a number below 2**32' % flags.seed)
    return flags


def main():
    flags = parse_flags()
    folder = flags.output_dir
    try:
        check_replaceable(folder)
        write_dataset(folder, flags.seed, (flags.train, flags.val))
    except OSError as error:
        raise UserError('cannot write to %s: %s; choose another --output-dir' % (folder, error.strerror))
    print('%d training and %d validation images in %s' % (flags.train, flags.val, folder))


if __name__ == '__main__':
    pose_cli.run(main)
