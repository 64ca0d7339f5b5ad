"""YOLO-pose data sets, as Ultralytics, Roboflow and CVAT write them -> the content of a COCO annotation file.

A text file for each image has an object a line: its class, centre and size of its box, then x, y and perhaps v of each
keypoint, as shares of the image's sides.
"""
import contextlib
import os
import re

from pose_errors import UserError

from .images import BadSample, image_size
from .skeleton import COCO_SKELETON
from .yolo_config import find_labels, find_yolo_split, label_lines, read_config, split_of

SLACK = 0.01  # how far out of 0 .. 1 a share may be, as rounding makes it
MAX_BAD_LINES = 0.5  # a larger share of bad lines is a wrong kpt_shape or another format, and is refused
COCO_FLIP = [0] + [k + other for k in range(1, 17, 2) for other in (1, 0)]


def read_content(annotation_file, root, inferred, skipped):
    """The content of a split as that of a COCO annotation file; what is missing or wrong is counted.

    An object with a box whose keypoints are broken or all absent is a region in which nobody is labelled.

    Args:
        root: the folder that names of images start from; None for that of data.yaml.
        inferred, skipped: Counters of what, in words.
    Raises UserError: data.yaml is broken, there are no images or labels, or most lines are bad.
    """
    root, config = root or find_yolo_split(*split_of(annotation_file))[1], read_config(split_of(annotation_file)[0])
    shape, categories = config['kpt_shape'], _categories(config, split_of(annotation_file)[0], inferred)
    labels = find_labels(annotation_file, config, root, skipped)
    stems = [os.path.splitext(os.path.basename(path))[0] for path in labels]
    numbered = all(re.fullmatch('[0-9]{1,18}', stem) for stem in stems) and len(set(map(int, stems))) == len(stems)
    images, annotations, unreadable, faults, lines = [], [], [], {}, 0  # faults: the places of each
    for (path, label_file), stem in zip(labels.items(), stems):
        name, size = os.path.relpath(path, root), None
        with contextlib.suppress(BadSample):
            size = image_size(path)[0]  # as viewers show it, from its header
        if size is None:
            unreadable.append(path)
            continue
        inferred['images of nobody, as they have no label file'] += label_file is None
        name = path if name.startswith('..') else name
        images.append({'id': int(stem) if numbered else name, 'file_name': name, 'width': size[0], 'height': size[1]})
        for number, line in label_lines(label_file):
            fault, entry = _annotation(line.split(), categories, shape, size)
            lines += 1
            if fault:
                faults.setdefault(fault, []).append((label_file, number))
            if entry:
                annotations.append(dict(entry, id=len(annotations) + 1, image_id=images[-1]['id'], iscrowd=0))
    for fault, places in faults.items():
        skipped['label lines %s (as %s, line %d)' % (fault, *places[0])] += len(places)
    if unreadable:
        skipped['images that cannot be read (as %s)' % unreadable[0]] += len(unreadable)
    bad = sum(map(len, faults.values()))
    if bad > MAX_BAD_LINES * lines:
        fault = max(faults, key=lambda fault: len(faults[fault]))
        raise UserError('%s: %d of %d label lines are bad, most are %s (as %s, line %d); a line is class, cx, cy, w, h '
                        'and %d values for each of %d keypoints, shares from 0 to 1: mend the labels, or kpt_shape'
                        % (annotation_file, bad, lines, fault, *faults[fault][0], shape[1], shape[0]))
    used = {entry['category_id'] for entry in annotations if entry['num_keypoints']}
    for entry in categories.values():  # CVAT lists all labels, those of boxes too
        entry['keypoints'] = entry['keypoints'] if entry['id'] in used or not used else []
    return {'images': images, 'annotations': annotations, 'categories': list(categories.values())}


def _categories(config, config_file, inferred):
    """{class: its entry of COCO's categories}."""
    classes, count = config.get('names'), config['kpt_shape'][0]
    classes = dict(enumerate(classes)) if isinstance(classes, list) else classes
    if not isinstance(classes, dict) or not classes or not all(type(number) is int for number in classes):
        raise UserError('%s has no names of classes; write "names: {0: person}"' % config_file)
    given = {key: config[key] for key in ('flip_idx', 'flip_pairs', 'sigmas', 'skeleton') if config.get(key)}
    usual, chain = ['keypoint_%d' % (k + 1) for k in range(count)], [[k, k + 1] for k in range(1, count)]
    if count == len(COCO_FLIP) and given.get('flip_idx', COCO_FLIP) == COCO_FLIP:
        usual = list(COCO_SKELETON.keypoints)
    categories, named = {}, config.get('kpt_names') or usual
    if isinstance(named, list):  # of the only class or of all, else a list for each
        named = dict(enumerate(named)) if isinstance(named[0], list) else dict.fromkeys(classes, named)
    for number, name in classes.items():
        keypoints = named.get(number, usual) if isinstance(named, dict) else None
        if not isinstance(keypoints, list) or len(keypoints) != count:
            raise UserError('%s: kpt_names and kpt_shape differ; write a name for each of %d keypoints of each class'
                            % (config_file, count))
        categories[number] = {'skeleton': chain, **given, 'id': number + 1, 'name': str(name), 'keypoints': keypoints}
    if 'skeleton' not in given and tuple(keypoints) != COCO_SKELETON.keypoints:
        inferred['limbs, a chain of the keypoints (write "skeleton: [[1, 2], ...]" into data.yaml)'] += len(chain)
    return categories


def _annotation(fields, categories, shape, size):
    """(what is wrong with a line of labels, its annotation), each or None; the latter is masked where keypoints are."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return 'with other things than numbers', None
    if len(values) < 5 or values[0] not in categories or not _are_shares(values[1:5]) or min(values[3:5]) <= 0:
        return 'without a class of "names" and a box of shares', None
    (count, dims), (width, height), fault, points = shape, size, None, []
    w, h = values[3] * width, values[4] * height
    x, y = values[1] * width - w / 2, values[2] * height - h / 2
    for k in range(5, len(values) - dims + 1, dims):
        visible = values[k + 2] if dims == 3 else 2 * (values[k:k + 2] != [0, 0])
        if visible != 0 and not (visible > 0 and _are_shares(values[k:k + 2])):
            fault = 'with keypoints that are no shares'
        points += [values[k] * width, values[k + 1] * height, visible] if visible else [0, 0, 0]
    if len(values) != 5 + count * dims:
        fault = 'of other than %d values' % (5 + count * dims)
    labelled = 0 if fault else sum(v > 0 for v in points[2::3])
    return fault, {'category_id': int(values[0]) + 1, 'bbox': [x, y, w, h], 'area': w * h, 'num_keypoints': labelled,
                   'keypoints': points if labelled else [],
                   'segmentation': [] if labelled else [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def _are_shares(values):
    return all(-SLACK <= value <= 1 + SLACK for value in values)  # false for a NaN
