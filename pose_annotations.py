"""COCO keypoint annotations as a few flat numpy arrays, with a cache beside the annotation file.

Millions of Python objects, as json gives them, cost gigabytes, and each forked loader process would copy them as soon
as their reference counts are touched. Arrays are shared by all processes. The annotation file is parsed once; later
starts read the arrays back (pose_annotation_cache.py).
"""
import collections
import contextlib
import io
import json
import logging
import math
import os
from array import array

import numpy as np
from pycocotools.coco import COCO

import pose_annotation_cache
from pose_cli import UserError
from pose_labels import PARTS

# The COCO index of the 18 parts; the neck (1) is made from the shoulders.
COCO_PARTS = (0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
NECK, COCO_LEFT_SHOULDER, COCO_RIGHT_SHOULDER = 1, 5, 6

MAIN_MIN_KEYPOINTS = 5
MAIN_MIN_AREA = 32 * 32
MAIN_MIN_DISTANCE = 0.3  # of the longer bbox side of an earlier main person

MAX_SIDE = (1 << 15) - 1  # of an image: OpenCV warps no larger ones
MAX_COORDINATE = 1 << 16  # what lies further out than this is a mistake

CACHE_VERSION = 3  # of the arrays below
MISSING_LIMIT = 0.2  # more missing images than this are taken for a wrong folder

# image_id int64 (I), file_name bytes (I), image_size int32 (I, 2: width, height)
# person_start int64 (I + 1): people of image i are person_start[i] .. person_start[i + 1] of
#   joints float32 (P, 18, 2), NaN where not labelled, and bbox float32 (P, 4)
# polygon_start (I + 1) -> point_range (polygons, 2) -> points float32 (N, 2): regions that nobody labelled; polygon p
#   has the points point_range[p, 0] .. point_range[p, 1]
# run_start (I + 1) -> count_range (regions, 2) -> counts uint32: the same as COCO run lengths
# sample_image, sample_person int64 (S): the main people, in the order of the annotation file
Annotations = collections.namedtuple('Annotations', (
    'image_id', 'file_name', 'image_size', 'person_start', 'joints', 'bbox', 'polygon_start', 'point_range', 'points',
    'run_start', 'count_range', 'counts', 'sample_image', 'sample_person'))


def find_split(datapath, split, imgpath=None):
    """Find the annotation file and the image folder of a split ('train2017' or 'val2017').

    Args:
        datapath: the COCO root (annotations/, train2017/, val2017/) or its annotations folder.
        imgpath: overrides where the image folders are.
    Returns:
        (annotation file, image folder).
    Raises:
        UserError: naming what is missing.
    """
    name = 'person_keypoints_%s.json' % split
    if not os.path.isdir(datapath):
        raise UserError('--datapath=%s is not a folder; give the COCO folder that holds annotations/ and %s/'
                        % (datapath, split))
    candidates = [os.path.join(datapath, 'annotations', name), os.path.join(datapath, name)]
    found = [path for path in candidates if os.path.isfile(path)]
    if not found:
        raise UserError('no %s in %s; --datapath must be the COCO root or its annotations folder' % (name, datapath))
    annotation_file = os.path.abspath(found[0])
    root = imgpath or os.path.dirname(os.path.dirname(annotation_file))
    folders = [os.path.join(root, split), os.path.join(root, 'images', split)]
    if imgpath:
        folders.append(imgpath)
    for folder in folders:
        if os.path.isdir(folder):
            return annotation_file, folder
    raise UserError('no image folder %s; give the folder that holds %s/ with --imgpath' % (folders[0], split))


def read_annotations(annotation_file, image_folder):
    """Read a COCO keypoint annotation file, from its cache when there is a valid one.

    Images that are not in image_folder are left out, counted and named in the log.

    Returns:
        Annotations.
    Raises:
        UserError: the file is broken, holds no usable person, or more than MISSING_LIMIT of its images are missing.
    """
    arrays = pose_annotation_cache.read_arrays(
        annotation_file, lambda path: build_arrays(load_json(path), path), CACHE_VERSION, _fit_together)
    for problem in arrays['problems']:
        logging.warning('%s: %s', annotation_file, problem.decode())
    return _drop_missing_images(_annotations_of(arrays), annotation_file, image_folder)


def _annotations_of(arrays):
    return Annotations(**{name: arrays[name] for name in Annotations._fields})


def people_of(annotations, image):
    """joints float32 (people, 18, 2) and bbox float32 (people, 4) of one image, in image pixels."""
    rows = slice(annotations.person_start[image], annotations.person_start[image + 1])
    return annotations.joints[rows], annotations.bbox[rows]


def ignored_regions(annotations, image):
    """The regions of one image in which people are not labelled.

    Returns:
        (polygons, bitmaps): a list of float32 (points, 2) arrays in image pixels, and a list of uint8 (height, width).
    """
    a = annotations
    polygons = [a.points[first:last]
                for first, last in a.point_range[a.polygon_start[image]:a.polygon_start[image + 1]]]
    width, height = a.image_size[image]
    bitmaps = [_decode_run_lengths(a.counts[first:last], height, width)
               for first, last in a.count_range[a.run_start[image]:a.run_start[image + 1]]]
    return polygons, bitmaps


def coco_to_joints(keypoints):
    """COCO keypoints (people, 17, 3) as x, y, v -> joints float32 (people, 18, 2) in CMU's order, NaN where v < 1."""
    keypoints = np.asarray(keypoints, np.float64).reshape(-1, 17, 3)
    labelled = np.where(keypoints[:, :, 2:] >= 1, keypoints[:, :, :2], np.nan)
    labelled[~np.isfinite(labelled).all(axis=2)] = np.nan
    joints = labelled[:, COCO_PARTS]
    joints[:, NECK] = (labelled[:, COCO_LEFT_SHOULDER] + labelled[:, COCO_RIGHT_SHOULDER]) / 2
    return joints.astype(np.float32)


def select_main_people(num_keypoints, area, bbox):
    """The main people of one image, for each of which there is one sample (Cao et al.'s training code).

    A main person has at least 5 labelled keypoints and an area of at least 32 * 32, and no earlier main person (largest
    first) whose centre is nearer than 0.3 times that person's longer bounding box side.

    Args:
        num_keypoints (people,), area (people,), bbox (people, 4) of the people of one image; no crowds.
    Returns:
        list of indices, largest first.
    """
    chosen, circles = [], []  # x, y and radius: no other main person has its centre in there
    for person in sorted(range(len(area)), key=lambda person: -area[person]):
        x, y, width, height = bbox[person]
        x, y = x + width / 2, y + height / 2
        if (num_keypoints[person] >= MAIN_MIN_KEYPOINTS and area[person] >= MAIN_MIN_AREA and min(width, height) >= 1
                and all(math.hypot(x - other_x, y - other_y) >= radius for other_x, other_y, radius in circles)):
            chosen.append(person)
            circles.append((x, y, MAIN_MIN_DISTANCE * max(width, height)))
    return chosen


class _People:
    """The labelled people, each noted in flat arrays as soon as it is looked at."""

    def __init__(self):
        self.keypoints, self.boxes = array('d'), array('d')
        self.areas, self.num_keypoints, self.image_rows = [], [], []

    def add(self, image_row, annotation):
        self.keypoints.fromlist(annotation['keypoints'])
        self.boxes.fromlist(annotation['bbox'])
        self.areas.append(annotation.get('area', 0))
        self.num_keypoints.append(annotation['num_keypoints'])
        self.image_rows.append(image_row)


class _Regions:
    """Regions that nobody labelled, as rows of numbers of different lengths, one after the other in one flat array."""

    def __init__(self, typecode):
        self.numbers = array(typecode)
        self.lengths, self.image_rows = [], []

    def add(self, image_row, numbers):
        self.numbers.fromlist(numbers)
        self.lengths.append(len(numbers))
        self.image_rows.append(image_row)

    def ranges(self, images):
        """Where the regions of each image start, (images + 1,), and the range of numbers of each region, (regions, 2),
        both int64."""
        order, starts = _group_by_image(self.image_rows, images)
        last = np.cumsum(np.array(self.lengths, np.int64))
        return starts, np.stack([last - self.lengths, last], axis=1).astype(np.int64)[order]


def build_arrays(dataset, annotation_file):
    """The content of a COCO annotation file -> the arrays of Annotations and `problems`, lines about bad entries."""
    problems = collections.Counter()
    images = [image for image in _unique(dataset['images'], 'image', problems) if _image_is_sane(image, problems)]
    people, polygons, runs = _collect(dataset['annotations'], images, problems)

    order, person_start = _group_by_image(people.image_rows, len(images))
    boxes = np.array(people.boxes).reshape(-1, 4)[order]
    sample_image, sample_person = _select_samples(
        person_start, np.array(people.num_keypoints)[order], np.array(people.areas)[order], boxes)
    if not len(sample_image):
        raise UserError('%s has no person with %d keypoints and an area of %d pixels to train on; give a COCO keypoint '
                        'annotation file' % (annotation_file, MAIN_MIN_KEYPOINTS, MAIN_MIN_AREA))
    polygon_start, coordinate_range = polygons.ranges(len(images))
    run_start, count_range = runs.ranges(len(images))
    lines = ['%d %s (left out)' % (count, what) for what, count in problems.items() if count]
    return {
        'image_id': np.array([image['id'] for image in images], np.int64),
        'file_name': np.array([image['file_name'].encode() for image in images], np.bytes_),
        'image_size': np.array([(image['width'], image['height']) for image in images], np.int32).reshape(-1, 2),
        'person_start': person_start, 'joints': coco_to_joints(people.keypoints)[order],
        'bbox': boxes.astype(np.float32),
        'polygon_start': polygon_start, 'point_range': coordinate_range // 2,
        # COCO's polygons count from the corner of the first pixel, everything else here from its centre.
        'points': np.array(polygons.numbers, np.float32).reshape(-1, 2) - np.float32(0.5),
        'run_start': run_start, 'count_range': count_range, 'counts': np.array(runs.numbers, np.uint32),
        'sample_image': sample_image, 'sample_person': sample_person,
        'problems': np.array([line.encode() for line in lines], np.bytes_),
    }


def _collect(annotations, images, problems):
    """Look at each annotation once: (_People, _Regions of polygons, _Regions of run lengths); problems are counted.

    All are in the order of the file, which is that of the objects in memory: half of the time goes into waiting for
    memory. They are put in the order of the images afterwards.
    """
    row_of_image = {image['id']: row for row, image in enumerate(images)}
    people, polygons, runs = _People(), _Regions('d'), _Regions('I')
    for annotation in _unique(annotations, 'annotation', problems):
        image_id = annotation.get('image_id')
        row = row_of_image.get(image_id) if isinstance(image_id, int) else None
        if row is None:
            problems['annotations of images that are not listed'] += 1
            continue
        is_labelled = annotation.get('num_keypoints') and not annotation.get('iscrowd')
        if is_labelled and _person_is_sane(annotation):
            people.add(row, annotation)
            continue
        problems['people with broken keypoints or boxes'] += bool(is_labelled)
        segmentation = annotation.get('segmentation') or []
        if isinstance(segmentation, dict):
            counts = _run_lengths(segmentation, images[row])
            if counts is None:
                problems['segmentations that do not fit their image'] += 1
            else:
                runs.add(row, counts)
        else:
            for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
                if _polygon_is_sane(polygon):
                    polygons.add(row, polygon)
                else:
                    problems['broken polygons'] += 1
    return people, polygons, runs


def _select_samples(person_start, *columns):
    """The main people of all images: their images and themselves, int64 (samples,) each.

    Args:
        person_start: as in Annotations.
        columns: what select_main_people takes, of all people in the order of the images.
    """
    columns = [column.tolist() for column in columns]  # numpy would be slow on so few people at a time
    samples = []
    for row, (first, last) in enumerate(zip(person_start[:-1].tolist(), person_start[1:].tolist())):
        if last > first:
            chosen = select_main_people(*(column[first:last] for column in columns))
            samples += [(row, first + person) for person in chosen]
    return np.array(samples, np.int64).reshape(-1, 2).T


def load_json(annotation_file):
    """The content of a COCO annotation file. Raises UserError when it is missing or broken."""
    try:
        with open(annotation_file, 'rb') as file:
            dataset = json.loads(file.read().decode())  # json.load would decode it in slow small steps
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    except (ValueError, RecursionError) as error:  # also wrong encodings and absurd numbers
        raise UserError('%s is not valid JSON (%s); download it again' % (annotation_file, error))
    if not isinstance(dataset, dict) or not (
            isinstance(dataset.get('images'), list) and isinstance(dataset.get('annotations'), list)):
        raise UserError('%s is not a COCO annotation file: it needs the lists "images" and "annotations"'
                        % annotation_file)
    return dataset


def load_coco(annotation_file):
    """pycocotools' COCO of an annotation file. Raises UserError when it is missing or broken."""
    coco = COCO()
    coco.dataset = load_json(annotation_file)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco.createIndex()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError('%s is not a COCO annotation file (%s: %s)' % (annotation_file, type(error).__name__, error))
    return coco


def _unique(entries, kind, problems):
    seen = set()
    for entry in entries:
        number = entry.get('id') if isinstance(entry, dict) else None
        if not isinstance(number, int):
            problems['%ss without an id' % kind] += 1
        elif number in seen:
            problems['%ss with the id of an earlier one' % kind] += 1
        else:
            seen.add(number)
            yield entry


def _image_is_sane(image, problems):
    name = image.get('file_name')
    sane = (isinstance(name, str) and name.isprintable() and 0 < len(name) < 256
            and abs(image['id']) < 1 << 63
            and all(isinstance(image.get(side), int) and 0 < image[side] <= MAX_SIDE for side in ('width', 'height')))
    problems['images without a file name or a usable size'] += not sane
    return sane


def _person_is_sane(annotation):
    keypoints, bbox = annotation.get('keypoints'), annotation.get('bbox')
    return (isinstance(keypoints, list) and len(keypoints) == 51 and isinstance(bbox, list) and len(bbox) == 4
            and _are_numbers_below(keypoints + bbox, MAX_COORDINATE) and bbox[2] >= 0 and bbox[3] >= 0
            and _are_numbers_below([annotation.get('area', 0), annotation['num_keypoints']], MAX_COORDINATE ** 2))


def _polygon_is_sane(polygon):
    return (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            and _are_numbers_below(polygon, MAX_COORDINATE))


def _are_numbers_below(values, limit):
    try:
        return -limit < min(values) and max(values) < limit and sum(values) * 0 == 0  # the last is False with a NaN
    except TypeError:
        return False


def _run_lengths(segmentation, image):
    """COCO's run lengths (column by column, first run outside) as a list, or None when they do not fit the image."""
    counts = segmentation.get('counts')
    if isinstance(counts, str):
        counts = _unpack_counts(counts)
    fit = (segmentation.get('size') == [image['height'], image['width']] and isinstance(counts, list)
           and all(isinstance(count, int) and count >= 0 for count in counts)
           and sum(counts) == image['height'] * image['width'])
    return counts if fit else None


def _unpack_counts(text):
    """COCO's compressed run lengths -> list, or None: 5 bits a character, from the third on differences to the last but
    one (pycocotools has this only together with drawing the bitmap, which trusts the lengths)."""
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its highest bit is the sign
            value -= (bits & 16) << shift - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def _decode_run_lengths(counts, height, width):
    values = np.arange(len(counts), dtype=np.uint8) & 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _group_by_image(image_rows, images):
    """A stable order that puts rows of one image together, and where each image starts in it, int64 (images + 1)."""
    image_rows = np.array(image_rows, np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(image_rows, minlength=images))])
    return np.argsort(image_rows, kind='stable'), starts.astype(np.int64)


def _drop_missing_images(annotations, annotation_file, image_folder):
    try:
        present = set(os.listdir(image_folder))
    except OSError as error:
        raise UserError('cannot read the image folder %s: %s' % (image_folder, error.strerror))
    rows = np.unique(annotations.sample_image)
    names = [name.decode() for name in annotations.file_name[rows]]
    missing = np.array([name not in present and not os.path.isfile(os.path.join(image_folder, name)) for name in names])
    if not missing.any():
        return annotations
    examples = ', '.join(np.array(names)[missing][:3])
    message = ('%d of the %d images with people of %s are not in %s (%s ...)'
               % (missing.sum(), len(names), annotation_file, image_folder, examples))
    if missing.mean() > MISSING_LIMIT:
        raise UserError('%s; give the folder with the images by --imgpath' % message)
    logging.warning('%s: they are left out', message)
    keep = ~np.isin(annotations.sample_image, rows[missing])
    return annotations._replace(sample_image=annotations.sample_image[keep],
                                sample_person=annotations.sample_person[keep])


def _fit_together(arrays):
    """Whether arrays from a file are what Annotations says: shapes agree and no index leads out of its array."""
    a, problems = _annotations_of(arrays), arrays['problems']
    images, people, samples = len(a.image_id), len(a.joints), len(a.sample_image)
    return (a.file_name.shape == (images,) and a.file_name.dtype.kind == 'S' and a.image_size.shape == (images, 2)
            and a.joints.shape == (people, PARTS, 2) and a.bbox.shape == (people, 4) and a.points.shape[1:] == (2,)
            and a.counts.ndim == problems.ndim == 1 and a.sample_image.shape == a.sample_person.shape == (samples,)
            and _are_starts(a.person_start, images, people)
            and _are_starts(a.polygon_start, images, len(a.point_range)) and _are_ranges(a.point_range, len(a.points))
            and _are_starts(a.run_start, images, len(a.count_range)) and _are_ranges(a.count_range, len(a.counts))
            and 0 <= a.sample_image.min() and a.sample_image.max() < images
            and (a.person_start[a.sample_image] <= a.sample_person).all()
            and (a.sample_person < a.person_start[a.sample_image + 1]).all())


def _are_starts(starts, owners, owned):
    """Whether things starts[i] .. starts[i + 1] of `owned` things can be those of owner i of `owners`."""
    return (starts.shape == (owners + 1,) and starts.dtype == np.int64 and starts[0] == 0 and starts[-1] == owned
            and (np.diff(starts) >= 0).all())


def _are_ranges(ranges, owned):
    """Whether each row of ranges is the first and the last (exclusive) of some of `owned` things."""
    return (ranges.shape == (len(ranges), 2) and ranges.dtype == np.int64
            and ((0 <= ranges[:, 0]) & (ranges[:, 0] <= ranges[:, 1]) & (ranges[:, 1] <= owned)).all())
