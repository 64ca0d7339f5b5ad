"""Where the annotation file and the images of a split are, whatever tools call them."""
import collections
import functools
import hashlib
import json
import os
import re
import unicodedata
import urllib.parse

from pose_errors import UserError

from .yolo import CONFIG_SUFFIXES, config_in, find_yolo_split

PART = re.compile(r'(.+):(train|valid)=(0\.\d+)', re.S)
COPY = re.compile(r'\.rf\.[0-9a-f]+(?=\.)')  # what Roboflow adds to the names of copies of an image, one each


def find_split(datapath, split, imgpath=None):
    """(annotation file, image folder) of a split. Raises UserError, naming what is missing.

    Args:
        datapath: the COCO root (annotations/, train2017/, val2017/) or its annotations folder; or the data.yaml of a
            YOLO-pose data set, or its folder.
        split: 'train2017', 'val2017', another that a tool's file is named after, or the path of an annotation file;
            or a part of one, as part_name calls it.
        imgpath: overrides where the image folders are.
    """
    whole, part = part_of(split)
    if part:
        annotation_file, folder = find_split(datapath, whole, imgpath)
        return annotation_file + split[len(whole):], folder
    if datapath.endswith(CONFIG_SUFFIXES) and not os.path.isdir(datapath):
        return find_yolo_split(datapath, split, imgpath)
    if not os.path.isdir(datapath):
        raise UserError('--datapath=%s is not a folder; give the COCO folder that holds annotations/ and %s/'
                        % (datapath, split))
    if split.endswith('.json'):
        name, candidates = split, [os.path.join(datapath, split), os.path.join(datapath, 'annotations', split), split]
        split = re.sub('^person_keypoints_', '', os.path.splitext(os.path.basename(split))[0])
    else:
        name = 'person_keypoints_%s.json' % split
        candidates = [os.path.join(datapath, 'annotations', name), os.path.join(datapath, name)]
    found = next(filter(os.path.isfile, candidates), None)
    if found:
        return os.path.abspath(found), _image_folder(os.path.abspath(found), split, datapath, imgpath)
    config = config_in(datapath)
    if config:
        return find_yolo_split(config, split, imgpath)
    raise UserError('no %s in %s, and no data.yaml; --datapath must be the COCO root or its annotations folder, or the '
                    'data.yaml of a YOLO-pose data set' % (name, datapath))


def _image_folder(annotation_file, split, datapath, imgpath):
    """The folder with the images of an annotation file: the first of the usual ones that has them."""
    root = imgpath or os.path.dirname(os.path.dirname(annotation_file))
    folders = [os.path.join(root, split), os.path.join(root, 'images', split), imgpath or os.path.join(root, 'images')]
    if not imgpath and not os.path.basename(annotation_file).startswith('person_keypoints_'):
        folders += [os.path.join(datapath, split), os.path.join(datapath, 'images'), os.path.dirname(annotation_file),
                    datapath]
    present, first = list(filter(os.path.isdir, folders)), _first_file_name(annotation_file)
    if first:
        # Others are looked at last: COCO's test-dev2017 lies in test2017, and tools call folders as they like.
        others = [os.path.join(folder, name) for folder in (root, os.path.join(root, 'images'))
                  for name in sorted(_names_in(folder)) if os.path.isdir(os.path.join(folder, name))]
        if not any(os.path.isfile(os.path.join(folder, first)) for folder in present):
            _check_one(others, first, annotation_file)
        for held in (lambda folder: os.path.isfile(os.path.join(folder, first)),
                     lambda folder: image_finder(folder)(first)):
            holding = next(filter(held, present + others), None)
            if holding:
                return holding
    if not present:
        raise UserError('no image folder %s; give the folder that holds %s/ with --imgpath' % (folders[0], split))
    return present[0]


def _check_one(folders, first, annotation_file):
    """Raise UserError where several of these folders have an image of that name, as of colour and of depth."""
    holding = {os.path.realpath(folder) for folder in folders if os.path.isfile(os.path.join(folder, first))}
    if len(holding) > 1:
        raise UserError('the images of %s may be in any of %s; give the right one with --imgpath'
                        % (annotation_file, ', '.join(sorted(holding)[:5])))


def _first_file_name(annotation_file):
    """The first file name near the beginning of an annotation file, or None: tools differ in the folder it starts from.

    The file is read as a whole only once, later.
    """
    try:
        with open(annotation_file, 'rb') as file:
            start = file.read(1 << 16)
        text = start.decode(json.detect_encoding(start), errors='replace')
        found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text)
        return json.loads(found.group(1)).replace('\0', '') if found else None
    except (OSError, ValueError):
        return None


def part_name(split, part, share):
    """What the part `train` or `valid` of a split is called, of which a share of the images is for validation."""
    return '%s:%s=%g' % (part_of(split)[0], part, share) if share else split


def part_of(name):
    """(The split or annotation file that a name means a part of, a function from an image's file name to whether it is
    in that part); (the name, None) where it is whole. Names of images alone decide: the same on all machines."""
    match = PART.fullmatch(name)
    if not match:
        return name, None
    whole, part, share = match.groups()

    def is_in(file_name):
        base = COPY.sub('', re.split(r'[/\\]', file_name)[-1])
        digest = hashlib.blake2b(base.encode(errors='surrogateescape'), digest_size=4).digest()
        return (int.from_bytes(digest, 'little') < float(share) * 2 ** 32) == (part == 'valid')
    return whole, is_in


def image_finder(folder):
    """A function from the name that an annotation file gives an image to its name below the folder, or None.

    Tools write backslashes, paths of other machines, percent codes, and letters in other forms or cases: the name
    itself is tried first, then what is left of it without its first folders. Folders are listed once, when a name is
    not there.
    """
    @functools.lru_cache(maxsize=None)
    def listing(parent):
        names = collections.defaultdict(list)
        for name in _names_in(os.path.join(folder, parent)):
            names[_plain(name)].append(name)
        return names

    def find(name):
        parts = [part for part in name.replace('\\', '/').split('/') if part not in ('', '.')]
        for candidate in [name] + ['/'.join(parts[k:]) for k in range(len(parts))]:
            parent, base = os.path.split(candidate)
            if os.path.isfile(os.path.join(folder, candidate)):
                return candidate
            alike = listing(parent).get(_plain(base), [])
            if len(alike) == 1 and os.path.isfile(os.path.join(folder, parent, alike[0])):
                return os.path.join(parent, alike[0])
        return None

    return find


def find_images(names, folder):
    """For each name that an annotation file gives an image, its name below the folder, as image_finder; None where it
    is not there, or where several of these names would be one file. Raises UserError when there is no such folder."""
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise UserError('cannot read the image folder %s: %s' % (folder, error.strerror))
    find = image_finder(folder)
    found = [name if name in present else find(name) for name in names]
    uses = collections.Counter(found)  # of images of the same name in different folders one may be there: whose?
    return [None if uses[new] > 1 and new != name else new for name, new in zip(names, found)]


def image_paths(folder):
    """A function from the name that an annotation file gives an image to its path, where it would be if it is not."""
    find = image_finder(folder)
    return lambda name: os.path.join(folder, find(name) or name)


def _plain(name):
    return unicodedata.normalize('NFC', urllib.parse.unquote(name)).casefold()


def _names_in(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []
