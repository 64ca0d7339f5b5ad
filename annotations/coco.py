"""COCO annotation files as people and tools write them -> one regular form, for training and evaluation alike.

Labelling tools differ: ids are numbers or text, sizes are floats, num_keypoints, area or boxes are missing, several
categories share a file. Here all of it becomes what COCO's own files hold, and what had to be derived or left out is
counted.
"""
import collections
import contextlib
import io
import json
import math
import os
import re

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pose_errors import UserError

from .images import MAX_SIDE
from .skeleton import COCO_SKELETON, skeleton_of_category

MAX_COORDINATE = 1 << 16  # what lies further out than this is a mistake
MAX_NAME = 255  # characters of a file name
PERSON = 'person'

# skeleton: of the chosen category. images, annotations: lists of COCO's dicts with integer ids, category_id 1, all
# fields of the right type; an image also has `original_id`. inferred, skipped: Counters of what, for people to read.
Dataset = collections.namedtuple('Dataset', 'skeleton images annotations inferred skipped')


def read_dataset(annotation_file, category=None):
    """The images and annotations of one category of a COCO annotation file.

    Args:
        category: its name; None for the only one with keypoints, or `person`.
    Returns:
        Dataset. Annotations without keypoints have num_keypoints 0: nobody labelled these people.
    Raises:
        UserError: the file is missing or broken, or its categories give no skeleton.
    """
    content = load_json(annotation_file)
    inferred, skipped = collections.Counter(), collections.Counter()
    skeleton, category_keys = choose_category(content, annotation_file, category)
    images, number_of = _regular_images(content['images'], skipped)
    sizes = {image['id']: image for image in images}
    annotations = []
    seen = set()
    for entry in content['annotations']:
        annotation = _regular_annotation(entry, len(annotations) + 1, seen, category_keys, number_of, sizes,
                                         len(skeleton.keypoints), inferred, skipped)
        if annotation is not None:
            annotations.append(annotation)
    return Dataset(skeleton, images, annotations, inferred, skipped)


def summary_of(dataset):
    """What was derived and what was left out, in one line; empty for a file that is as COCO's."""
    inferred = {what: count for what, count in dataset.inferred.items() if count}
    parts = ['derived ' + ', '.join('%d %s' % (count, what) for what, count in sorted(inferred.items()))
             if inferred else '',
             'left out ' + ', '.join('%d %s' % (count, what) for what, count in sorted(dataset.skipped.items()))
             if dataset.skipped else '']
    return '; '.join(filter(None, parts))


def load_json(annotation_file):
    """The content of a COCO annotation file. Raises UserError when it is missing or broken."""
    try:
        with open(annotation_file, 'rb') as file:
            content = json.loads(file.read().decode())  # json.load would decode it in slow small steps
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    except (ValueError, RecursionError) as error:  # also wrong encodings and absurd numbers
        raise UserError('%s is not valid JSON (%s); download it again' % (annotation_file, error))
    if not isinstance(content, dict) or not (
            isinstance(content.get('images'), list) and isinstance(content.get('annotations'), list)):
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


def choose_category(content, annotation_file, name=None):
    """The skeleton of the category to train on, and the keys of that category's ids (None: any will do).

    Raises UserError when there is none of that name, or several with keypoints and nothing to tell which.
    """
    categories = [entry for entry in _as_list(content.get('categories')) if isinstance(entry, dict)]
    if name is not None:
        chosen = [entry for entry in categories if entry.get('name') == name]
        if not chosen:
            raise UserError('--category=%s is not in %s; it has %s' % (name, annotation_file, _names_of(categories)))
    else:
        chosen = [entry for entry in categories if _as_list(entry.get('keypoints'))]
        people = [entry for entry in chosen or categories if entry.get('name') == PERSON]
        if len(chosen) > 1 and not people:
            raise UserError('%s has several categories with keypoints: choose one with --category=NAME of %s'
                            % (annotation_file, _names_of(chosen)))
        chosen = people or chosen
    if not chosen:  # files of people alone need not say so
        return COCO_SKELETON, {key(entry.get('id')) for entry in categories} if len(categories) == 1 else None
    if not _as_list(chosen[0].get('keypoints')):
        if name not in (None, PERSON):
            raise UserError('the category %s of %s has no keypoints; give another with --category=NAME'
                            % (name, annotation_file))
        return COCO_SKELETON, {key(chosen[0].get('id'))}
    return skeleton_of_category(chosen[0], annotation_file), {key(chosen[0].get('id'))}


def key(value):
    """What makes ids equal, whatever type a tool gives them: 7, 7.0 and '7' are one."""
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return None
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else None
    return str(value)


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


def _regular_images(entries, skipped):
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
    images, number_of = [], {}
    for count, (image_key, entry) in enumerate(unique, 1):
        name, width, height = entry.get('file_name'), *(number(entry.get(side)) for side in ('width', 'height'))
        if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME and width and height
                and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width == int(width) and height == int(height)):
            skipped['images without a file name or a usable size'] += 1
            continue
        number_of[image_key] = entry['id'] if own else count
        images.append({'id': number_of[image_key], 'original_id': entry['id'], 'file_name': name, 'width': int(width),
                       'height': int(height)})
    return images, number_of


def _regular_annotation(entry, identity, seen, category_keys, number_of, sizes, keypoints, inferred, skipped):
    """A COCO annotation with all its fields, or None when it is left out, which is then counted."""
    if not isinstance(entry, dict):
        skipped['annotations that are no objects'] += 1
        return None
    own_key = key(entry.get('id'))
    if own_key is None:
        inferred['ids of annotations'] += 1
    elif own_key in seen:
        skipped['annotations with the id of an earlier one'] += 1
        return None
    seen.add(own_key)
    image_id = number_of.get(key(entry.get('image_id')))
    if image_id is None:
        skipped['annotations of images that are not listed'] += 1
        return None
    if category_keys is not None and 'category_id' in entry and key(entry['category_id']) not in category_keys:
        skipped['annotations of other categories'] += 1
        return None
    image = sizes[image_id]
    is_crowd = int(entry.get('iscrowd') is True or key(entry.get('iscrowd')) == '1')
    segmentation = _regular_segmentation(entry.get('segmentation'), image, skipped)
    points = _regular_keypoints(entry.get('keypoints'), keypoints)
    claimed = number(entry.get('num_keypoints'))
    if points is None and (claimed or entry.get('keypoints') and claimed is None) and not is_crowd:
        skipped['people with broken keypoints'] += 1  # as a region, they stay out of the loss
    labelled = sum(v > 0 for v in points[2::3]) if points and claimed != 0 and not is_crowd else 0
    if labelled and claimed is None:
        inferred['num_keypoints'] += 1
    box = _regular_box(entry.get('bbox'))
    if labelled and not (box and box[2] and box[3]) or segmentation and box is None:
        inferred['boxes'] += bool(labelled)
        box = _box_of(points if labelled else [], segmentation, image)
    area = number(entry.get('area'))
    if labelled and (area is None or area <= 0):
        inferred['areas'] += 1
        area = _area_of(segmentation, box, image)
    return {'id': identity, 'image_id': image_id, 'category_id': 1, 'iscrowd': is_crowd, 'segmentation': segmentation,
            'keypoints': points if labelled else [0] * (3 * keypoints), 'num_keypoints': labelled,
            'bbox': box or [0, 0, 0, 0], 'area': min(area or 0, float(MAX_COORDINATE ** 2))}


def _regular_keypoints(values, count):
    """x, y, v of each keypoint as a list of numbers, or None when they are not."""
    if not isinstance(values, list) or len(values) != 3 * count:
        return None
    if not _are_numbers_below(values, MAX_COORDINATE):
        values = [number(value) for value in values]
        if None in values or not _are_numbers_below(values, MAX_COORDINATE):
            return None
    return values


def _regular_box(values):
    """x, y, width, height as a list of numbers, or None when they are not."""
    if not isinstance(values, list) or len(values) != 4:
        return None
    values = [number(value) for value in values]
    usable = None not in values and _are_numbers_below(values, MAX_COORDINATE) and values[2] >= 0 and values[3] >= 0
    return values if usable else None


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
        if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0:
            if not _are_numbers_below(polygon, MAX_COORDINATE):
                polygon = [number(value) for value in polygon]
            if None not in polygon and _are_numbers_below(polygon, MAX_COORDINATE):
                polygons.append(polygon)
                continue
        skipped['broken polygons'] += 1
    return polygons


def _box_of(points, segmentation, image):
    """The box of a segmentation, else of the labelled keypoints, a little larger than these; inside the image."""
    box = [float(side) for side in coco_mask.toBbox(_encoded(segmentation, image))] if segmentation else [0] * 4
    if box[2] and box[3] or not points:
        return box
    xs = [x for x, v in zip(points[0::3], points[2::3]) if v > 0]
    ys = [y for y, v in zip(points[1::3], points[2::3]) if v > 0]
    margin = 0.1 * max(max(xs) - min(xs), max(ys) - min(ys), 10)
    left, top = max(min(xs) - margin, 0), max(min(ys) - margin, 0)
    right, bottom = min(max(xs) + margin, image['width']), min(max(ys) + margin, image['height'])
    return [left, top, max(right - left, 0), max(bottom - top, 0)]


def _area_of(segmentation, box, image):
    """The area of a segmentation, else of the box."""
    return float(coco_mask.area(_encoded(segmentation, image))) if segmentation else float(box[2] * box[3])


def _encoded(segmentation, image):
    size = image['height'], image['width']
    if isinstance(segmentation, dict):
        return coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))


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


def _are_numbers_below(values, limit):
    try:
        return -limit < min(values) and max(values) < limit and sum(values) * 0 == 0  # the last is False with a NaN
    except TypeError:
        return False


def _as_list(value):
    return value if isinstance(value, list) else []


def _names_of(categories):
    return ', '.join('%.40s' % entry.get('name') for entry in categories[:10]) or 'no categories'


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
