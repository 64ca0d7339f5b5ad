"""COCO annotation files as people and tools write them -> one regular form, for training and evaluation alike.

Labelling tools differ: ids are numbers or text, sizes are floats, num_keypoints, area or boxes are missing, several
categories share a file. Here all of it becomes what COCO's own files hold; what is inferred or skipped is counted, and
so are people whose numbers fit no picture.
"""
import collections
import contextlib
import io
import json
import os

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pose_errors import UserError

from .categories import as_list, choose_category, key
from .common_keypoints import common_keypoints, converted, labelled_parts
from .images import MAX_SIDE, UNUSABLE_NAME, BadSample, image_size
from .skeleton import is_labelled
from .splits import image_finder, part_of
from .yolo import read_content, split_of

MAX_COORDINATE = 1 << 16  # what lies further out than this is a mistake
MAX_NAME = 255  # characters of a file name
MAX_IMPLAUSIBLE = 0.5  # a larger share of people whose numbers fit no picture is refused ...
SILENT_IMPLAUSIBLE = 0.001  # ... and one as small as this is not worth a line
BOX_SLACK, IMAGE_SLACK = 0.25, 0.02  # of the longer side: how far hidden points lie outside of good boxes and images
MAX_COUNTS = 8  # that one line names
# What depends on the images that are there when the file is read.
READ_SIZES, ABSENT = 'sizes of images', 'images without a size that are not in the image folder (--imgpath)'

# skeleton: of the chosen category, whose id in the file is category_id. images, annotations: lists of COCO's dicts with
# integer ids, category_id 1, all fields of the right type; an image also has `original_id`. inferred, skipped: Counters
# of what, in words.  implausible: a line on people whose numbers fit no picture, or None.  keypoint_count: of the
# skeleton's keypoints, those that the file labels at all.  partial: {id of an image: bool (parts,), which parts are
# labelled there}, of the images with people for whom some are not.
Dataset = collections.namedtuple('Dataset', 'skeleton images annotations inferred skipped category_id implausible '
                                            'keypoint_count partial')


def read_dataset(annotation_file, category=None, image_folder=None, skeleton=None):
    """The Dataset of one category of a COCO annotation file, a YOLO-pose split (annotations/yolo.py), or a part.

    Annotations without keypoints have num_keypoints 0: nobody labelled these people.

    Args:
        category: as for categories.choose_category.
        image_folder: where to look for the sizes of images that the file does not give.
        skeleton: of the Dataset, whose keypoints those of the file become by name; None is the category's own.
    Raises UserError: the file is missing or broken, its categories give no skeleton, or most people fit no picture.
    """
    inferred, skipped = collections.Counter(), collections.Counter()
    whole, is_in_part = part_of(annotation_file)
    if split_of(whole)[1]:
        content = read_content(whole, image_folder, inferred, skipped)
    else:
        content = load_json(whole)
    chosen = choose_category(content, annotation_file, category)
    skeleton = skeleton or chosen.skeleton
    matches = {own: common_keypoints(skeleton, own) for own in chosen.skeletons}
    labelled = {own: labelled_parts(skeleton, common) for own, common in matches.items()}
    if not any((common >= 0).any() for common in matches.values()):
        raise UserError('%s labels %s: none of these is one of %s; rename keypoints in its categories'
                        % (annotation_file, ', '.join(chosen.skeleton.keypoints), ', '.join(skeleton.keypoints)))
    images, number_of = _regular_images(content['images'], image_folder, inferred, skipped)
    sizes = {image['id']: image for image in images}
    repeated = collections.Counter(key(entry.get('id')) for entry in content['annotations'] if isinstance(entry, dict))
    repeated = {own_key for own_key, count in repeated.items() if count > 1 and own_key is not None}
    annotations, seen, partial = [], set(), {}
    for entry in content['annotations']:
        if _is_usable(entry, repeated, seen, chosen, inferred, skipped):
            image_id = number_of.get(key(entry.get('image_id')))
            if image_id is None:
                skipped['annotations of images that are not listed'] += 1
                continue
            own = chosen.skeleton_of(entry)
            annotation = _regular_annotation(entry, len(annotations) + 1, sizes[image_id], len(own.keypoints),
                                             chosen.masked, inferred, skipped)
            if own != skeleton:
                annotation['keypoints'], annotation['num_keypoints'] = converted(annotation['keypoints'], matches[own])
                if not labelled[own].all():
                    partial[image_id] = partial.get(image_id, True) & labelled[own]
            annotations.append(annotation)
    implausible = _implausible(annotations, sizes, annotation_file)
    if is_in_part:
        images = [image for image in images if is_in_part(image['file_name'])]
        kept = {image['id'] for image in images}
        annotations = [annotation for annotation in annotations if annotation['image_id'] in kept]
    count = int(np.any([common >= 0 for common in matches.values()], axis=0).sum())
    return Dataset(skeleton, images, annotations, inferred, skipped, chosen.id, implausible, count, partial)


def summary_of(dataset):
    """What was inferred, skipped or is implausible, in one line; empty for a file that is as COCO's."""
    parts = []
    for verb, counts in (('derived', dataset.inferred), ('left out', dataset.skipped)):
        counts = ['%d %s' % (count, what) for what, count in sorted(counts.items()) if count]
        parts.append(counts and '%s %s' % (verb, ', '.join(counts[:MAX_COUNTS] + ['...'] * (len(counts) > MAX_COUNTS))))
    return '; '.join(filter(None, parts + [dataset.implausible]))


def load_json(annotation_file):
    """The content of a COCO annotation file, in UTF-8, with a byte order mark or without, or UTF-16 or 32.

    Raises UserError when it is missing or broken. Files of images alone (COCO's test sets) have no annotations.
    """
    try:
        with open(annotation_file, 'rb') as file:
            content = json.loads(file.read())
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    except UnicodeDecodeError as error:
        raise UserError('%s is no text in UTF-8 or UTF-16 (%s at byte %d); save it as UTF-8'
                        % (annotation_file, error.reason, error.start))
    except (ValueError, RecursionError) as error:  # also absurd numbers
        raise UserError('%s is not valid JSON (%s); download it again, or export it anew' % (annotation_file, error))
    lists = [content.get('images'), content.setdefault('annotations', [])] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        raise UserError('%s is not a COCO annotation file: it needs the lists "images" and "annotations"'
                        % annotation_file)
    return content


def as_pycocotools(dataset):
    """pycocotools' COCO of a Dataset, for its evaluation."""
    skeleton = dataset.skeleton
    coco = COCO()
    coco.dataset = {'info': {}, 'images': dataset.images, 'annotations': dataset.annotations,
                    'categories': [{'id': 1, 'name': skeleton.name, 'keypoints': list(skeleton.keypoints)}]}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        coco.createIndex()
    return coco


def number(value):
    """A finite number, also when it is written as text; else None."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -1e300 < value < 1e300 else None


def _regular_images(entries, image_folder, inferred, skipped):
    """Images with integer ids, their own where all are integers; and the id of each key."""
    unique, keys = [], set()
    for entry in entries:
        image_key = key(entry.get('id')) if isinstance(entry, dict) else None
        if image_key is None:
            skipped['images without an id'] += 1
        elif image_key in keys:
            skipped['images with the id of an earlier one'] += 1
        else:
            keys.add(image_key)
            unique.append((image_key, entry))
    own = all(type(entry['id']) is int and abs(entry['id']) < 1 << 63 for _, entry in unique)
    images, number_of, find = [], {}, image_finder(image_folder)
    for count, (image_key, entry) in enumerate(unique, 1):
        name, width, height = entry.get('file_name'), *(number(entry.get(side)) for side in ('width', 'height'))
        named = isinstance(name, str) and 0 < len(name) <= MAX_NAME and not UNUSABLE_NAME.search(name)
        if named and image_folder and not (width or height):
            found = find(name)
            if found is None:
                skipped[ABSENT] += 1
                continue
            with contextlib.suppress(BadSample):
                width, height = image_size(os.path.join(image_folder, found))[0]
            inferred[READ_SIZES] += bool(width)
        if not (named and width and height and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE
                and width == int(width) and height == int(height)):
            skipped['images without a file name or a usable size'] += 1
            continue
        number_of[image_key] = entry['id'] if own else count
        images.append({'id': number_of[image_key], 'original_id': entry['id'], 'file_name': name, 'width': int(width),
                       'height': int(height)})
    return images, number_of


def _is_usable(entry, repeated, seen, chosen, inferred, skipped):
    """Whether an annotation is a new one of the categories.Choice, or masked there; else it is counted.

    repeated: ids that several have: some tools count anew in each image.  seen: texts of such annotations.
    """
    if not isinstance(entry, dict):
        skipped['annotations that are no objects'] += 1
        return False
    own_key = key(entry.get('id'))
    if own_key in repeated:
        text = json.dumps(entry, sort_keys=True)
        if text in seen:
            skipped['annotations that are there twice'] += 1
            return False
        seen.add(text)
    inferred['ids of annotations'] += own_key is None or own_key in repeated
    if not chosen.takes(entry):
        skipped['annotations of other categories'] += 1
        return False
    return True


def _regular_annotation(entry, identity, image, keypoints, masked_keys, inferred, skipped):
    """A COCO annotation with all its fields; of a category in masked_keys only where it is."""
    is_crowd = int(entry.get('iscrowd') is True or key(entry.get('iscrowd')) == '1')
    is_masked = bool(masked_keys) and key(entry.get('category_id')) in masked_keys
    segmentation = _regular_segmentation(entry.get('segmentation'), image, skipped)
    given = entry.get('keypoints')
    points = None if is_crowd or is_masked else _points(given, 3 * keypoints, inferred)
    claimed = number(entry.get('num_keypoints'))
    if points is None and (claimed or given and claimed is None) and not is_crowd and not is_masked:
        differ = isinstance(given, list) and len(given) != 3 * keypoints
        lengths = ' (%d numbers, not %d)' % (len(given), 3 * keypoints) if differ else ''
        skipped['people with broken keypoints' + lengths] += 1
        is_masked = True  # or they would be learned as background
    labelled = sum(map(is_labelled, points[2::3])) if points else 0
    if labelled and not claimed:
        inferred['num_keypoints'] += 1
    box = _regular_box(entry.get('bbox'))
    if labelled and not (box and box[2] and box[3]) or segmentation and box is None:
        inferred['boxes'] += bool(labelled)
        box = _box_of(points if labelled else [], segmentation, image)
    area = number(entry.get('area'))
    if labelled and (area is None or area <= 0):
        inferred['areas'] += 1
        area = float(coco_mask.area(_encoded(segmentation, image)) if segmentation else box[2] * box[3])
    return {'id': identity, 'image_id': image['id'], 'category_id': 1, 'iscrowd': is_crowd,
            'segmentation': segmentation, 'keypoints': points if labelled else [0] * (3 * keypoints),
            'num_keypoints': labelled, 'bbox': box or [0, 0, 0, 0], 'area': min(area or 0, float(MAX_COORDINATE ** 2))}


def box_outline(box):
    """The polygons of a segmentation that is a box x, y, width, height."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _implausible(annotations, sizes, annotation_file):
    """A line on the labelled people whose numbers fit no picture, with an example; None when there are next to none.

    Raises UserError when that is more than MAX_IMPLAUSIBLE of them.
    """
    people = [annotation for annotation in annotations if annotation['num_keypoints']]
    if not people:
        return None
    points = np.array([person['keypoints'] for person in people], np.float64).reshape(len(people), -1, 3)
    corner, side = np.split(np.array([person['bbox'] for person in people], np.float64), 2, axis=1)
    size = np.array([(image['width'], image['height']) for image in
                     (sizes[person['image_id']] for person in people)], np.float64)
    labelled, slack = is_labelled(points[:, :, 2]), BOX_SLACK * side.max(axis=1, keepdims=True)
    position, margin = points[:, :, :2], IMAGE_SLACK * size.max(axis=1, keepdims=True)

    def outside(low, high):
        return ((position < low[:, None]) | (position > high[:, None])).any(axis=2) & labelled

    faults = {
        'points at exactly 0, 0': ((position == 0).all(axis=2) & labelled).any(axis=1),
        'all points in the first pixel': ((position <= 1).all(axis=2) | ~labelled).all(axis=1),
        'points outside their image': outside(-margin, size + margin).any(axis=1),
        'most points outside their box': outside(corner - slack, corner + side + slack).sum(axis=1)
        > labelled.sum(axis=1) / 2,
        'boxes that reach out of their image': (corner + side > size + margin).any(axis=1)}
    faulty = np.any(list(faults.values()), axis=0)
    if faulty.mean() <= SILENT_IMPLAUSIBLE:
        return None
    counts = ', '.join('%d with %s' % (fault.sum(), what) for what, fault in faults.items() if fault.any())
    example = people[int(np.argmax(faulty))]
    line = ('%d of %d people fit no picture: %s (as in image %s, box %s)'
            % (faulty.sum(), len(people), counts, sizes[example['image_id']]['file_name'],
               ', '.join('%g' % value for value in example['bbox'])))
    if faulty.mean() > MAX_IMPLAUSIBLE:
        raise UserError('%s: %s; x and y are pixels from the upper left corner, boxes x, y, width and height, and a '
                        'point that nobody labelled is 0, 0, 0' % (annotation_file, line))
    return line


def _points(values, count, inferred):
    """As _numbers, where the x and y of a keypoint that is not labelled may also be null or NaN."""
    points = _numbers(values, count)
    if points is None and isinstance(values, list) and len(values) == count:
        rows = [[number(value) for value in values[k:k + 3]] for k in range(0, count, 3)]
        rows = [[0, 0, 0] if v == 0 or x is None and y is None else [x, y, v] for x, y, v in rows]
        points = _numbers([value for row in rows for value in row], count) if any(map(any, rows)) else None
        inferred['people without numbers at keypoints that nobody labelled'] += points is not None
    return points


def _numbers(values, count):
    """A list of so many coordinates as numbers, also when some are written as text; None for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not _are_coordinates(values):
        values = [number(value) for value in values]
    return values if _are_coordinates(values) else None


def _are_coordinates(values):
    try:
        return -MAX_COORDINATE < min(values) and max(values) < MAX_COORDINATE and sum(values) * 0 == 0  # not for a NaN
    except TypeError:
        return False


def _regular_box(values):
    """x, y, width, height as a list of numbers, or None when they are not."""
    values = _numbers([number(value) for value in as_list(values)], 4)
    return values if values and values[2] >= 0 and values[3] >= 0 else None


def _regular_segmentation(segmentation, image, skipped):
    """A list of polygons, or run lengths that fit the image as {'size', 'counts': list}."""
    if isinstance(segmentation, dict) and segmentation:
        counts = run_lengths(segmentation, image)
        if counts is None:
            skipped['segmentations that do not fit their image'] += 1
            return []
        return {'size': [image['height'], image['width']], 'counts': counts}
    polygons = []
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation] if segmentation else []:
        length = len(as_list(polygon))
        points = _numbers(polygon, length) if length >= 6 and length % 2 == 0 else None
        if points:
            polygons.append(points)
        else:
            skipped['broken polygons'] += 1
    return polygons


def _box_of(points, segmentation, image):
    """The box of a segmentation, else of the labelled keypoints, a little larger than these; inside the image."""
    box = [float(side) for side in coco_mask.toBbox(_encoded(segmentation, image))] if segmentation else [0] * 4
    if box[2] and box[3] or not points:
        return box
    points = np.array(points, np.float64).reshape(-1, 3)
    places = points[is_labelled(points[:, 2]), :2]
    margin = 0.1 * max(np.ptp(places, axis=0).max(), 10)
    low = np.maximum(places.min(axis=0) - margin, 0)
    high = np.minimum(places.max(axis=0) + margin, (image['width'], image['height']))
    return low.tolist() + np.maximum(high - low, 0).tolist()


def _encoded(segmentation, image):
    encoded = coco_mask.frPyObjects(segmentation, image['height'], image['width'])
    return encoded if isinstance(segmentation, dict) else coco_mask.merge(encoded)


def run_lengths(segmentation, image):
    """COCO's run lengths (column by column, first run outside) as a list, or None when they do not fit the image."""
    counts, size = segmentation.get('counts'), segmentation.get('size')
    if isinstance(counts, str):
        counts = _unpack_counts(counts)
    fit = (isinstance(size, list) and [number(side) for side in size] == [image['height'], image['width']]
           and isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
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
