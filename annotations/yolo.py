"""YOLO-pose data sets, as Ultralytics, Roboflow and CVAT write them -> the content of a COCO annotation file.

A data.yaml says which keypoints there are, and where the images and labels of each split are. A text file for each
image has an object a line: its class, centre and size of its box, then x, y and perhaps v of each keypoint, as shares
of the image's sides.

What other modules call the annotation file is here data.yaml with the split's key there: `/dogs/data.yaml#train`.
"""
import collections
import contextlib
import glob
import hashlib
import itertools
import os
import re

from pose_errors import UserError
from pose_files import read_file

from .images import UNUSABLE_NAME, BadSample, image_size
from .skeleton import COCO_SKELETON, MAX_PARTS

CONFIG, CONFIG_SUFFIXES = 'data.yaml', ('.yaml', '.yml')
SPLIT = re.compile(r'(.*\.ya?ml)#([^#/]+)', re.S)
KEYS = {'train2017': ('train',), 'val2017': ('val', 'valid'), 'valid': ('val', 'valid'), 'val': ('val', 'valid')}
# Listed as images; those of kinds that are not read here are counted then.
IMAGE_SUFFIXES = {'.' + suffix for suffix in 'bmp dng heic jpeg jpg mpo png tif tiff webp'.split()}
MAX_CONFIG, MAX_LABELS, MAX_LIST = 1 << 17, 1 << 24, 1 << 28  # bytes
MAX_NAME = 1 << 10  # characters of a path in a list
SLACK = 0.01  # how far out of 0 .. 1 a share may be, as rounding makes it
MAX_BAD_LINES = 0.5  # a larger share of bad lines is a wrong kpt_shape or another format, and is refused
COCO_FLIP = [0] + [k + other for k in range(1, 17, 2) for other in (1, 0)]


def split_of(annotation_file):
    """(data.yaml, the split's key there); for other annotation files (the file, None)."""
    match = SPLIT.fullmatch(annotation_file)
    return match.groups() if match else (annotation_file, None)


def config_in(folder):
    """The path of the data.yaml, or of the only YAML file, in a folder; None where there is no such file."""
    paths = [path for suffix in CONFIG_SUFFIXES for path in glob.glob(os.path.join(glob.escape(folder), '*' + suffix))]
    paths = [path for path in paths if os.path.basename(path) == CONFIG] or paths
    return paths[0] if len(paths) == 1 else None


def find_yolo_split(config_file, split, imgpath=None):
    """(annotation file, the folder that names of images start from) of a split: COCO's names, or a key in data.yaml.

    imgpath: takes the place of `path` in data.yaml. Raises UserError, naming what is missing.
    """
    config_file = os.path.abspath(config_file)
    config, keys = read_config(config_file), KEYS.get(split, (split,))
    annotation_file = '%s#%s' % (config_file, next((key for key in keys if config.get(key)), ''))
    if not SPLIT.fullmatch(annotation_file):
        raise UserError('%s has no "%s:"; write the folder of these images there' % (config_file, keys[0]))
    root = imgpath or os.path.join(os.path.dirname(config_file), _path(config.get('path')))
    root = os.path.normpath(root if imgpath or os.path.isdir(root) else os.path.dirname(config_file))
    _sources(annotation_file, config, root)
    return annotation_file, root


def read_config(path):
    """The mapping in a data.yaml, whose kpt_shape is [keypoints, 2 or 3]. Raises UserError."""
    import yaml  # only who reads such a file needs it

    class Loader(yaml.SafeLoader):  # it makes plain values, runs no code
        def compose_node(self, parent, index):  # a few aliases of aliases would stand for gigabytes
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError('it has an alias, *name')
            return super().compose_node(parent, index)

    try:
        config = yaml.load(read_file(path, MAX_CONFIG), Loader)
    except OSError as error:
        raise UserError('cannot read %s: %s; give the data.yaml of a YOLO-pose data set' % (path, error.strerror))
    except Exception as error:  # PyYAML's own, and many others for values that are not what their tags say
        raise UserError('%s is not valid YAML (%.200s); mend it, or export it anew' % (path, error))
    shape = config.get('kpt_shape') if isinstance(config, dict) else None
    if not (isinstance(shape, list) and [type(side) for side in shape] == [int, int] and 0 < shape[0] <= MAX_PARTS
            and shape[1] in (2, 3)):
        raise UserError('%s has no kpt_shape of a YOLO-pose data set; write "kpt_shape: [K, 3]" for K keypoints with '
                        'x, y, v, or [K, 2] with x, y' % path)
    return config


def _sources(annotation_file, config, root):
    """The paths of the folders and lists of images of a split. Raises UserError for one that is not there."""
    config_file, key = split_of(annotation_file)
    places = []
    for entry in map(_path, config[key] if isinstance(config[key], list) else [config[key]]):
        # As Ultralytics does: Roboflow writes ../train/images for what is train/images.
        tried = [os.path.normpath(os.path.join(folder, name)) for name in (entry, re.sub(r'^(\.\./)+', '', entry))
                 for folder in (root, os.path.dirname(config_file))]
        places += [place for place in tried if entry and (os.path.isdir(place) or place.endswith('.txt')
                                                          and os.path.isfile(place))][:1] or [None]
        if not places[-1]:
            raise UserError('%s: "%s: %.200s" is no folder of images and no .txt that lists them (looked for %s); mend '
                            'it, or "path", or give what it starts from with --imgpath'
                            % (config_file, key, entry, tried[0]))
    return places


def find_labels(annotation_file, config, root, skipped):
    """{path of an image: that of its label file, or None} of a split, sorted. Raises UserError where there are none."""
    found, sources = set(), _sources(annotation_file, config, root)
    for source in sources:
        if os.path.isdir(source):
            inside = {path for path in _files(source) if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES}
            folder = os.path.dirname(_label_files(source + '/image')[0])
            if folder != source:
                lonely = {path for path in _files(folder) if path.endswith('.txt')} - {folder + '/classes.txt'}
                lonely -= {_label_files(path)[0] for path in inside}
                skipped['label files without an image (in %s)' % folder] += len(lonely)
        else:
            listed = [_listed(line.strip().replace('\\', '/'), source, root) for _, line in _lines(source, MAX_LIST)]
            skipped['images of %s that are not there' % source] += listed.count(None)
            inside = set(listed) - {None}
        found |= inside
    if not found:
        raise UserError('%s: no images in %s; put them there, or mend the path' % (annotation_file, ', '.join(sources)))
    labels = {path: next(filter(os.path.isfile, _label_files(path)), None) for path in sorted(found)}
    if not any(labels.values()):
        raise UserError('%s: none of its %d images has labels (there is no %s); labels/ must lie beside images/, with '
                        'the same folders and names' % (annotation_file, len(labels), _label_files(min(found))[0]))
    return labels


def labels_digest(annotation_file, root):
    """Text that changes whenever an image or a label file of a split does; '' for other annotation files."""
    if not split_of(annotation_file)[1]:
        return ''
    hashed, config = hashlib.blake2b(digest_size=16), read_config(split_of(annotation_file)[0])
    labels = find_labels(annotation_file, config, root, collections.Counter())
    for path in filter(None, itertools.chain(*labels.items())):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            hashed.update(os.fsencode('%s %d %d %d\n' % (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)))
    return ' ' + hashed.hexdigest()


def label_lines(label_file):
    """[(number, line)] of the lines of a label file, or of None, that are not empty."""
    return _lines(label_file, MAX_LABELS) if label_file else []


def _files(folder):
    return (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if name[0] != '.')


def _listed(name, source, root):
    """The path of an image in a list: from the list's folder or the root, perhaps without its own first folders."""
    parts = name.split('/') if len(name) <= MAX_NAME and not UNUSABLE_NAME.search(name) else []
    places = (os.path.normpath(os.path.join(folder, *(parts[k:] if k else [name]))) for k in range(len(parts))
              for folder in (os.path.dirname(source), root))
    return next(filter(os.path.isfile, places), None)


def _label_files(image):
    """Where an image's label file may be: in labels/ for images/, or beside it."""
    beside = os.path.splitext(image)[0] + '.txt'
    head, images, tail = beside.rpartition('/images/')
    return [head + '/labels/' + tail if images else beside, beside]


def _lines(path, most):
    try:
        lines = enumerate(read_file(path, most).decode('utf-8-sig', 'replace').splitlines(), 1)
    except OSError as error:
        raise UserError('cannot read %s: %s; mend or remove it' % (path, error.strerror))
    return [(number, line) for number, line in lines if line.strip()]


def _path(value):
    """A path in data.yaml, as this system writes it; empty for what is none."""
    return value.replace('\\', '/') if isinstance(value, str) and not UNUSABLE_NAME.search(value) else ''


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
