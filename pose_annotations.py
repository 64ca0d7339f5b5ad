"""COCO keypoint annotations as a few flat numpy arrays, with a cache beside the annotation file.

Millions of Python objects, as json gives them, cost gigabytes, and each forked loader process would copy them as soon
as their reference counts are touched. Arrays are shared by all processes. The annotation file is parsed once; later
starts read the arrays back (pose_annotation_cache.py).
"""
import collections
import hashlib
import json
import logging
import math
import os
import re
from array import array

import numpy as np

import pose_annotation_cache
import pose_coco
import pose_skeleton
from pose_annotation_checks import fit_together
from pose_cli import UserError

MAIN_MIN_KEYPOINTS = 5
MAIN_MIN_AREA = 32 * 32
MAIN_MIN_DISTANCE = 0.3  # of the longer bbox side of an earlier main person

CACHE_VERSION = 5  # of the arrays below
MISSING_LIMIT = 0.2  # more missing images than this are taken for a wrong folder

# image_id int64 (I), file_name bytes (I), image_size int32 (I, 2: width, height)
# person_start int64 (I + 1): people of image i are person_start[i] .. person_start[i + 1] of
#   joints float32 (P, parts, 2), NaN where not labelled, and bbox float32 (P, 4)
# polygon_start (I + 1) -> point_range (polygons, 2) -> points float32 (N, 2): regions that nobody labelled; polygon p
#   has the points point_range[p, 0] .. point_range[p, 1]
# spared_start (I + 1) -> spared_range (polygons, 2) -> spared float32 (N, 2): labelled people in such images
# run_start (I + 1) -> count_range (regions, 2) -> counts uint32: the same as COCO run lengths
# sample_image, sample_person int64 (S): the main people, in the order of the annotation file
# skeleton: the pose_skeleton.Skeleton of the category
Annotations = collections.namedtuple('Annotations', (
    'image_id', 'file_name', 'image_size', 'person_start', 'joints', 'bbox', 'polygon_start', 'point_range', 'points',
    'spared_start', 'spared_range', 'spared', 'run_start', 'count_range', 'counts', 'sample_image', 'sample_person',
    'skeleton'))


def find_split(datapath, split, imgpath=None):
    """Find the annotation file and the image folder of a split.

    Args:
        datapath: the COCO root (annotations/, train2017/, val2017/) or its annotations folder.
        split: 'train2017', 'val2017', another that a tool's file is named after, or the path of an annotation file.
        imgpath: overrides where the image folders are.
    Returns:
        (annotation file, image folder).
    Raises:
        UserError: naming what is missing.
    """
    if not os.path.isdir(datapath):
        raise UserError('--datapath=%s is not a folder; give the COCO folder that holds annotations/ and %s/'
                        % (datapath, split))
    if split.endswith('.json'):
        candidates = [split, os.path.join(datapath, split), os.path.join(datapath, 'annotations', split)]
        split = _split_of_file(split)
        name = candidates[0]
    else:
        name = 'person_keypoints_%s.json' % split
        candidates = [os.path.join(datapath, 'annotations', name), os.path.join(datapath, name)]
    found = [path for path in candidates if os.path.isfile(path)]
    if not found:
        raise UserError('no %s in %s; --datapath must be the COCO root or its annotations folder' % (name, datapath))
    annotation_file = os.path.abspath(found[0])
    root = imgpath or os.path.dirname(os.path.dirname(annotation_file))
    folders = [os.path.join(root, split), os.path.join(root, 'images', split)]
    if imgpath:
        folders.append(imgpath)
    else:
        folders.append(os.path.join(root, 'images'))
        if not os.path.basename(annotation_file).startswith('person_keypoints_'):
            folders += [os.path.join(datapath, split), os.path.join(datapath, 'images'),
                        os.path.dirname(annotation_file), datapath]
    present = [folder for folder in folders if os.path.isdir(folder)]
    if not present:
        raise UserError('no image folder %s; give the folder that holds %s/ with --imgpath' % (folders[0], split))
    first = _first_file_name(annotation_file)
    holding = [folder for folder in present if first and os.path.isfile(os.path.join(folder, first))]
    return annotation_file, (holding or present)[0]


def _first_file_name(annotation_file):
    """The first file name near the beginning of an annotation file, or None: tools differ in the folder it starts from.

    The file is read as a whole only once, later.
    """
    try:
        with open(annotation_file, 'rb') as file:
            found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read(1 << 16).decode(errors='replace'))
        return json.loads(found.group(1)).replace('\0', '') if found else None
    except (OSError, ValueError):
        return None


def _split_of_file(path):
    """The split that an annotation file is named after: person_keypoints_train.json -> train."""
    name = os.path.splitext(os.path.basename(path))[0]
    return name[len('person_keypoints_'):] if name.startswith('person_keypoints_') else name


def read_annotations(annotation_file, image_folder, category=None):
    """Read a COCO keypoint annotation file, from its cache when there is a valid one.

    Images that are not in image_folder are left out, counted and named in the log.

    Args:
        category: the name of one, where the file has several with keypoints.
    Returns:
        Annotations.
    Raises:
        UserError: the file is broken, holds no usable person, or more than MISSING_LIMIT of its images are missing.
    """
    arrays = pose_annotation_cache.read_arrays(
        annotation_file, lambda path: build_arrays(pose_coco.read_dataset(path, category), path),
        '%d %s' % (CACHE_VERSION, category or ''), _fit_together)
    for line in arrays['summary']:
        logging.warning('%s: %s', annotation_file, line.decode())
    return _drop_missing_images(annotations_of(arrays), annotation_file, image_folder)


def annotations_of(arrays):
    skeleton = pose_skeleton.from_json(arrays['skeleton'][0].decode(), 'the cache')
    return Annotations(**dict({name: arrays[name] for name in Annotations._fields}, skeleton=skeleton))


def people_of(annotations, image):
    """joints float32 (people, parts, 2) and bbox float32 (people, 4) of one image, in image pixels."""
    rows = slice(annotations.person_start[image], annotations.person_start[image + 1])
    return annotations.joints[rows], annotations.bbox[rows]


def images_without_people(annotations, image_folder):
    """The numbers of the images that are in image_folder and have nobody, labelled or not, as an int64 array."""
    a = annotations
    nobody = sum(np.diff(starts) for starts in (a.person_start, a.polygon_start, a.run_start)) == 0
    present = set(os.listdir(image_folder)) if nobody.any() else ()
    rows = [row for row in np.flatnonzero(nobody).tolist()
            if a.file_name[row].decode() in present
            or os.path.isfile(os.path.join(image_folder, a.file_name[row].decode()))]
    return np.array(rows, np.int64)


def digest(annotations):
    """32 characters that are the same only for the same samples, people and images (by name and size) in one order.

    The digest is that of what a batch's number stands for; it does not depend on platform or Python.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for values in annotations:
        if isinstance(values, np.ndarray):
            if values.dtype.kind == 'f':
                values = np.where(np.isnan(values), np.float32(-1e9), values)  # a NaN may have many bit patterns
            hashed.update(('%s %s ' % (values.dtype.str, values.shape)).encode() + values.tobytes())
    return hashed.hexdigest()


def ignored_regions(annotations, image):
    """The regions of one image in which people are not labelled.

    Returns:
        (polygons, bitmaps, spared): a list of float32 (points, 2) arrays in image pixels, a list of uint8
        (height, width), and polygons of labelled people, which count although they lie in such a region.
    """
    a = annotations
    polygons, spared = ([points[first:last] for first, last in ranges[starts[image]:starts[image + 1]]]
                        for points, ranges, starts in ((a.points, a.point_range, a.polygon_start),
                                                       (a.spared, a.spared_range, a.spared_start)))
    width, height = a.image_size[image]
    bitmaps = [_decode_run_lengths(a.counts[first:last], height, width)
               for first, last in a.count_range[a.run_start[image]:a.run_start[image + 1]]]
    return polygons, bitmaps, spared


def least_keypoints(skeleton):
    """How many labelled keypoints a main person has at least: 5, or half of them where a skeleton has fewer than 10."""
    return min(MAIN_MIN_KEYPOINTS, (len(skeleton.keypoints) + 1) // 2)


def select_main_people(num_keypoints, area, bbox, least=MAIN_MIN_KEYPOINTS):
    """The main people of one image, for each of which there is one sample (Cao et al.'s training code).

    A main person has at least 5 labelled keypoints and an area of at least 32 * 32, and no earlier main person (largest
    first) whose centre is nearer than 0.3 times that person's longer bounding box side.

    Args:
        num_keypoints (people,), area (people,), bbox (people, 4) of the people of one image; no crowds.
        least: labelled keypoints of a main person, see least_keypoints.
    Returns:
        list of indices, largest first.
    """
    chosen, circles = [], []  # x, y and radius: no other main person has its centre in there
    for person in sorted(range(len(area)), key=lambda person: -area[person]):
        x, y, width, height = bbox[person]
        x, y = x + width / 2, y + height / 2
        if (num_keypoints[person] >= least and area[person] >= MAIN_MIN_AREA and min(width, height) >= 1
                and all(math.hypot(x - other_x, y - other_y) >= radius for other_x, other_y, radius in circles)):
            chosen.append(person)
            circles.append((x, y, MAIN_MIN_DISTANCE * max(width, height)))
    return chosen


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
    """A pose_coco.Dataset -> the arrays of Annotations, `skeleton`, and `summary`, lines for the log.

    Raises UserError, which counts the causes, when there is nobody to train on.
    """
    images, skeleton = dataset.images, dataset.skeleton
    row_of_image = {image['id']: row for row, image in enumerate(images)}
    people = [annotation for annotation in dataset.annotations if annotation['num_keypoints']]
    order, person_start = _group_by_image([row_of_image[person['image_id']] for person in people], len(images))
    people = [people[k] for k in order]
    boxes = np.array([person['bbox'] for person in people], np.float64).reshape(-1, 4)
    samples = _select_samples(person_start, least_keypoints(skeleton), [person['num_keypoints'] for person in people],
                              [person['area'] for person in people], boxes.tolist())
    if not len(samples[0]):
        raise UserError(_nobody(dataset, people, annotation_file))
    polygons, runs, spared = _ignored_regions(dataset.annotations, row_of_image)
    polygon_start, coordinate_range = polygons.ranges(len(images))
    spared_start, spared_range = spared.ranges(len(images))
    run_start, count_range = runs.ranges(len(images))
    return {
        'image_id': np.array([image['id'] for image in images], np.int64),
        'file_name': np.array([image['file_name'].encode() for image in images], np.bytes_),
        'image_size': np.array([(image['width'], image['height']) for image in images], np.int32).reshape(-1, 2),
        'person_start': person_start, 'joints': skeleton.joints([person['keypoints'] for person in people]),
        'bbox': boxes.astype(np.float32),
        'polygon_start': polygon_start, 'point_range': coordinate_range // 2, 'points': _points(polygons.numbers),
        'spared_start': spared_start, 'spared_range': spared_range // 2, 'spared': _points(spared.numbers),
        'run_start': run_start, 'count_range': count_range, 'counts': np.array(runs.numbers, np.uint32),
        'sample_image': samples[0], 'sample_person': samples[1],
        'skeleton': np.array([skeleton.to_json().encode()], np.bytes_),
        'summary': np.array([line.encode() for line in [pose_coco.summary(dataset)] if line], np.bytes_),
    }


def _points(coordinates):
    """COCO's polygons count from the corner of the first pixel, everything else here from its centre."""
    return np.array(coordinates, np.float32).reshape(-1, 2) - np.float32(0.5)


def _nobody(dataset, people, annotation_file):
    """The error line of a file without a sample: how many people it has, and what each lacks."""
    least = least_keypoints(dataset.skeleton)
    causes = collections.Counter()
    for annotation in dataset.annotations:
        if annotation['iscrowd']:
            causes['crowds'] += 1
        elif not annotation['num_keypoints']:
            causes['without labelled keypoints'] += 1
    for person in people:
        few, small = person['num_keypoints'] < least, person['area'] < MAIN_MIN_AREA
        causes['with fewer than %d labelled keypoints' % least] += few
        causes['smaller than %d pixels' % MAIN_MIN_AREA] += small
        causes['with a box of no size'] += not few and not small
    counts = ', '.join('%d %s' % (count, cause) for cause, count in causes.items() if count)
    found = 'of %d annotations %s' % (len(dataset.annotations), counts) if counts else 'it has no annotations'
    left_out = pose_coco.summary(dataset)
    return ('%s has no person with %d keypoints and an area of %d pixels to train on: %s%s; give a COCO keypoint '
            'annotation file' % (annotation_file, least, MAIN_MIN_AREA, found, '; ' + left_out if left_out else ''))


def _ignored_regions(annotations, row_of_image):
    """Regions that nobody labelled, and the labelled people in the same images.

    Returns:
        (polygons, runs, spared): _Regions of coordinates, of run lengths, and of coordinates.
    """
    polygons, runs, spared = _Regions('d'), _Regions('I'), _Regions('d')
    ignored = set()
    for annotation in annotations:
        segmentation, row = annotation['segmentation'], row_of_image[annotation['image_id']]
        if annotation['num_keypoints'] or not segmentation:
            continue
        ignored.add(row)
        if isinstance(segmentation, dict):
            runs.add(row, segmentation['counts'])
        else:
            for polygon in segmentation:
                polygons.add(row, polygon)
    for annotation in annotations:
        row = row_of_image[annotation['image_id']]
        if annotation['num_keypoints'] and row in ignored:
            for polygon in _outlines(annotation):
                spared.add(row, polygon)
    return polygons, runs, spared


def _outlines(person):
    """The polygons of a person, else the corners of the box."""
    if person['segmentation'] and isinstance(person['segmentation'], list):
        return person['segmentation']
    x, y, width, height = person['bbox']
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _select_samples(person_start, least, *columns):
    """The main people of all images: their images and themselves, int64 (samples,) each.

    Args:
        person_start: as in Annotations.  least: labelled keypoints of a main person.
        columns: what select_main_people takes, lists of all people in the order of the images.
    """
    samples = []
    for row, (first, last) in enumerate(zip(person_start[:-1].tolist(), person_start[1:].tolist())):
        if last > first:
            chosen = select_main_people(*(column[first:last] for column in columns), least=least)
            samples += [(row, first + person) for person in chosen]
    return np.array(samples, np.int64).reshape(-1, 2).T


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
    """Whether arrays from a file are what build_arrays makes. May raise anything if they are not."""
    return fit_together(annotations_of(arrays), arrays['summary'])
