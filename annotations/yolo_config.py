"""The data.yaml of a YOLO-pose data set: which keypoints there are, where the images and labels of each split are.

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

from .skeleton import MAX_PARTS

CONFIG, CONFIG_SUFFIXES = 'data.yaml', ('.yaml', '.yml')
SPLIT = re.compile(r'(.*\.ya?ml)#([^#/]+)', re.S)
KEYS = {'train2017': ('train',), 'val2017': ('val', 'valid'), 'valid': ('val', 'valid'), 'val': ('val', 'valid')}
# Listed as images; those of kinds that are not read here are counted then.
IMAGE_SUFFIXES = {'.' + suffix for suffix in 'bmp dng heic jpeg jpg mpo png tif tiff webp'.split()}
MAX_CONFIG, MAX_LABELS, MAX_LIST = 1 << 17, 1 << 24, 1 << 28  # bytes
MAX_NAME = 1 << 10  # characters of a path in a list


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
    parts = name.split('/') if len(name) <= MAX_NAME and name.isprintable() else []
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
    return value.replace('\\', '/') if isinstance(value, str) and value.isprintable() else ''
