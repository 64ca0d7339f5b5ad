"""COCO keypoint annotations as a few flat numpy arrays, with a cache.

Millions of Python objects, as json gives them, cost gigabytes, and each forked loader process would copy them as soon
as their reference counts are touched. Arrays are shared by all processes. The annotation file is parsed once, in a
process of its own; later starts read the arrays back from a cache.
"""
import collections
import contextlib
import gc
import hashlib
import io
import logging
import math
import multiprocessing
import os
import signal
import stat

import numpy as np

from pose_errors import UserError
from pose_files import write_file

from .coco import ABSENT, READ_SIZES, box_outline, read_dataset, summary_of
from .images import BadSample, image_size
from .skeleton import flip_notes, parse_skeleton
from .splits import find_images, image_paths, part_of
from .yolo import labels_digest, split_of

MAIN_MIN_KEYPOINTS = 5
MAIN_MIN_AREA = 32 * 32
MAIN_MIN_DISTANCE = 0.3  # of the longer bbox side of an earlier main person

CACHE_VERSION = 10  # of the arrays below
MISSING_LIMIT = 0.2  # more missing images than this are taken for a wrong folder
HEADERS = 32  # of images that are read at the start, to see whether EXIF turns some

# Kinds of regions: polygons and bitmaps of people that nobody labelled; labelled people in such images.
POLYGON, BITMAP, LABELLED = range(3)

# image_id int64 (I), file_name bytes (I), image_size int32 (I, 2: width, height)
# person_start int64 (I + 1): people of image i are person_start[i] .. person_start[i + 1] of
#   joints float32 (P, parts, 2), NaN where not labelled, and bbox float32 (P, 4)
# region_start int64 (I + 1): regions of image i are region_start[i] .. region_start[i + 1] of
#   region_kind uint8 (R) and number_start int64 (R + 1), where their numbers start in
#   numbers uint32: the bits of float32 x, y, x, y ... of a polygon's points; COCO's run lengths of a bitmap
# labelled_parts bool (I, parts): what is labelled in each image, where it shows people
# sample_image, sample_person int64 (S): the main people, in the order of the annotation file
# skeleton: the annotations.skeleton.Skeleton of the category
Annotations = collections.namedtuple('Annotations', (
    'image_id', 'file_name', 'image_size', 'person_start', 'joints', 'bbox', 'region_start', 'region_kind',
    'number_start', 'numbers', 'labelled_parts', 'sample_image', 'sample_person', 'skeleton'))


def read_annotations(annotation_file, image_folder, category=None, skeleton=None):
    """Read an annotation file as annotations.splits.find_split names it, from its cache when there is a valid one.

    Images that are not in image_folder are left out, counted and named in the log; file names are those that it has.
    Raises UserError when the file is broken, holds no usable person, or more than MISSING_LIMIT of its images are
    missing.

    category, skeleton: as for annotations.coco.read_dataset.
    """
    version = '%d %s %s' % (CACHE_VERSION, category or '', os.path.realpath(image_folder))
    arrays = _from_cache(annotation_file, _cache_path(annotation_file, skeleton),
                         lambda path: build_arrays(read_dataset(path, category, image_folder, skeleton), path),
                         version + labels_digest(part_of(annotation_file)[0], image_folder))
    annotations = annotations_of(arrays)
    pairs, doubts = flip_notes(annotations.skeleton) if skeleton is None else ([], [])
    for line in pairs:
        logging.info('%s: %s', annotation_file, line)
    for line in [line.decode() for line in arrays['summary']] + doubts:
        logging.warning('%s: %s', annotation_file, line)
    annotations = _find_images(annotations, annotation_file, image_folder)
    rows = np.unique(annotations.sample_image)
    log_turned_images(image_folder, [name.decode() for name in annotations.file_name[rows]],
                      annotations.image_size[rows].tolist())
    return annotations


def annotations_of(arrays):
    skeleton = parse_skeleton(arrays['skeleton'][0].decode(), 'the cache')
    return Annotations(**dict({name: arrays[name] for name in Annotations._fields}, skeleton=skeleton))


def people_of(annotations, image):
    """joints float32 (people, parts, 2) and bbox float32 (people, 4) of one image, in image pixels."""
    rows = slice(annotations.person_start[image], annotations.person_start[image + 1])
    return annotations.joints[rows], annotations.bbox[rows]


def images_without_people(annotations, image_folder):
    """The numbers of the images that are in image_folder and have nobody, labelled or not, as an int64 array."""
    a = annotations
    nobody = np.diff(a.person_start) + np.diff(a.region_start) == 0
    present = set(os.listdir(image_folder)) if nobody.any() else ()
    rows = [row for row in np.flatnonzero(nobody).tolist()
            if a.file_name[row].decode() in present
            or os.path.isfile(os.path.join(image_folder, a.file_name[row].decode()))]
    return np.array(rows, np.int64)


def samples_digest(annotations):
    """32 characters for what a batch's number stands for: the same for the same samples, people and images (by name and
    size) in one order, on every platform, in whatever folders the images lie."""
    hashed = hashlib.blake2b(digest_size=16)
    names = np.array([os.path.basename(name) for name in annotations.file_name.tolist()], np.bytes_)
    for values in annotations._replace(file_name=names):
        if isinstance(values, np.ndarray):
            if values.dtype.kind == 'f':
                values = np.where(np.isnan(values), np.float32(-1e9), values)  # a NaN may have many bit patterns
            hashed.update(('%s %s ' % (values.dtype.str, values.shape)).encode() + values.tobytes())
    return hashed.hexdigest()


def ignored_regions(annotations, image):
    """The regions of one image in which people are not labelled: (polygons, bitmaps, labelled).

    Lists of float32 (points, 2) arrays in image pixels, of uint8 (height, width), and of the polygons of labelled
    people, which count although they lie in such a region.
    """
    a = annotations
    width, height = a.image_size[image]
    regions = [], [], []  # by kind
    for region in range(a.region_start[image], a.region_start[image + 1]):
        numbers = a.numbers[a.number_start[region]:a.number_start[region + 1]]
        kind = a.region_kind[region]
        if kind == BITMAP:
            runs = np.repeat(np.arange(len(numbers), dtype=np.uint8) & 1, numbers)
            regions[kind].append(np.ascontiguousarray(runs.reshape(width, height).T))
        else:
            regions[kind].append(numbers.view(np.float32).reshape(-1, 2))
    return regions


def min_keypoints(dataset):
    """How many labelled keypoints a main person has at least: 5, or half of them where there are fewer than 10."""
    return min(MAIN_MIN_KEYPOINTS, (dataset.keypoint_count + 1) // 2)


def select_main_people(num_keypoints, area, bbox, min_labelled=MAIN_MIN_KEYPOINTS):
    """The main people of one image, for each of which there is one sample (Cao et al.'s training code).

    A main person has at least min_labelled keypoints and an area of at least 32 * 32, and no earlier main person
    (largest first) whose centre is nearer than 0.3 times that person's longer bounding box side.

    num_keypoints (people,), area (people,), bbox (people, 4): of the people of one image; no crowds.
    Returns a list of indices, largest first.
    """
    chosen, circles = [], []  # x, y and radius: no other main person has its centre in there
    for person in sorted(range(len(area)), key=lambda person: -area[person]):
        x, y, width, height = bbox[person]
        x, y = x + width / 2, y + height / 2
        if (num_keypoints[person] >= min_labelled and area[person] >= MAIN_MIN_AREA and min(width, height) >= 1
                and all(math.hypot(x - other_x, y - other_y) >= radius for other_x, other_y, radius in circles)):
            chosen.append(person)
            circles.append((x, y, MAIN_MIN_DISTANCE * max(width, height)))
    return chosen


def build_arrays(dataset, annotation_file):
    """An annotations.coco.Dataset -> the arrays of Annotations; `summary`, lines for the log; and `is_lasting`, whether
    they will be the same at the next start.

    Raises UserError, which counts the causes, when there is nobody to train on.
    """
    images, skeleton = dataset.images, dataset.skeleton
    row_of_image = {image['id']: row for row, image in enumerate(images)}
    people = sorted((annotation for annotation in dataset.annotations if annotation['num_keypoints']),
                    key=lambda person: row_of_image[person['image_id']])
    starts = np.arange(len(images) + 1)
    person_start = np.searchsorted([row_of_image[person['image_id']] for person in people], starts)
    boxes = np.array([person['bbox'] for person in people], np.float64).reshape(-1, 4)
    columns = [person['num_keypoints'] for person in people], [person['area'] for person in people], boxes.tolist()
    samples = [(row, first + person) for row, (first, last) in enumerate(zip(person_start[:-1], person_start[1:]))
               for person in select_main_people(*(column[first:last] for column in columns), min_keypoints(dataset))]
    if not samples:
        raise UserError(_nobody(dataset, people, annotation_file))
    sample_image, sample_person = np.array(samples, np.int64).T
    regions = sorted(_regions(dataset.annotations, row_of_image), key=lambda region: region[0])
    labelled_parts = np.ones((len(images), len(skeleton.parts)), bool)
    for image_id, labelled in dataset.partial.items():
        if image_id in row_of_image:
            labelled_parts[row_of_image[image_id]] = labelled
    region_rows, kinds, numbers = ([region[k] for region in regions] for k in range(3))
    return {
        'image_id': np.array([image['id'] for image in images], np.int64),
        'file_name': np.array([image['file_name'].encode() for image in images], np.bytes_),
        'image_size': np.array([(image['width'], image['height']) for image in images], np.int32).reshape(-1, 2),
        'person_start': person_start.astype(np.int64), 'bbox': boxes.astype(np.float32),
        'joints': skeleton.joints([person['keypoints'] for person in people]),
        'region_start': np.searchsorted(region_rows, starts).astype(np.int64), 'region_kind': np.array(kinds, np.uint8),
        'number_start': np.cumsum([0] + list(map(len, numbers)), dtype=np.int64),
        'numbers': np.concatenate(numbers + [np.zeros(0, np.uint32)]),
        'labelled_parts': labelled_parts, 'sample_image': sample_image, 'sample_person': sample_person,
        'skeleton': np.array([skeleton.to_json().encode()], np.bytes_),
        'summary': np.array([line.encode() for line in [summary_of(dataset)] if line], np.bytes_),
        # Sizes that were read from the images may be others tomorrow, or be there.
        'is_lasting': not (dataset.inferred[READ_SIZES] or dataset.skipped[ABSENT]),
    }


def _nobody(dataset, people, annotation_file):
    """The error line of a file without a sample: how many people it has, and what each lacks."""
    min_labelled = min_keypoints(dataset)
    causes = collections.Counter()
    for annotation in dataset.annotations:
        if annotation['iscrowd']:
            causes['crowds'] += 1
        elif not annotation['num_keypoints']:
            causes['without labelled keypoints'] += 1
    for person in people:
        few, small = person['num_keypoints'] < min_labelled, person['area'] < MAIN_MIN_AREA
        causes['with fewer than %d labelled keypoints' % min_labelled] += few
        causes['smaller than %d pixels' % MAIN_MIN_AREA] += small
        causes['with a box of no size'] += not few and not small
    counts = ', '.join('%d %s' % (count, cause) for cause, count in causes.items() if count)
    found = 'of %d annotations %s' % (len(dataset.annotations), counts) if counts else 'it has no annotations'
    return ('%s has no person with %d keypoints and an area of %d pixels to train on: %s; give a COCO keypoint '
            'annotation file' % (annotation_file, min_labelled, MAIN_MIN_AREA,
                                 '; '.join(filter(None, [found, summary_of(dataset)]))))


def _regions(annotations, row_of_image):
    """[(row of the image, kind, numbers)]: regions that nobody labelled, and the labelled people in the same images."""
    regions = []
    for annotation in annotations:
        segmentation, row = annotation['segmentation'], row_of_image[annotation['image_id']]
        if annotation['num_keypoints']:
            continue
        if not segmentation and min(annotation['bbox'][2:]) > 0:
            segmentation = box_outline(annotation['bbox'])
        if isinstance(segmentation, dict):
            regions.append((row, BITMAP, np.array(segmentation['counts'], np.uint32)))
        else:
            regions += [(row, POLYGON, _points(polygon)) for polygon in segmentation]
    ignored = {row for row, _, _ in regions}
    for annotation in annotations:
        row = row_of_image[annotation['image_id']]
        if annotation['num_keypoints'] and row in ignored:
            outlines = annotation['segmentation']
            if not outlines or isinstance(outlines, dict):
                outlines = box_outline(annotation['bbox'])
            regions += [(row, LABELLED, _points(polygon)) for polygon in outlines]
    return regions


def _points(polygon):
    """COCO's polygons count from the corner of the first pixel, everything else here from its centre."""
    return (np.array(polygon, np.float32) - np.float32(0.5)).view(np.uint32)


def _find_images(annotations, annotation_file, image_folder):
    """Annotations with the names of files in the image folder, without the samples whose image is not there."""
    names = [name.decode() for name in annotations.file_name.tolist()]
    found, rows = find_images(names, image_folder), np.unique(annotations.sample_image)
    files = [(new or name).encode() for name, new in zip(names, found)]
    missing = {row: names[row] for row in rows.tolist() if found[row] is None}
    keep = ~np.isin(annotations.sample_image, list(missing))
    if missing:
        message = '%d of the %d images with people of %s are not in %s (%s ...)' % (
            len(missing), len(rows), annotation_file, image_folder, ', '.join(list(missing.values())[:3]))
        if len(missing) / len(rows) > MISSING_LIMIT:
            raise UserError('%s; give the folder with the images by --imgpath' % message)
        logging.warning('%s: they are left out', message)
    return annotations._replace(file_name=np.array(files, np.bytes_), sample_image=annotations.sample_image[keep],
                                sample_person=annotations.sample_person[keep])


def log_turned_images(image_folder, names, sizes):
    """One line when EXIF headers turn images; a few of them tell. names, sizes: as in the annotation file."""
    turned, path_of, step = [], image_paths(image_folder), max(1, len(names) // HEADERS)
    for name, size in list(zip(names, sizes))[::step]:
        with contextlib.suppress(BadSample):  # counted when it is to be used
            found, is_turned = image_size(path_of(name))
            if is_turned and found == tuple(size):
                turned.append(name)
    if turned:
        logging.info('%d of %d images that were checked are turned as their EXIF header says, as labelling tools show '
                     'them (%s ...)', len(turned), len(names[::step]), turned[0])


def _from_cache(annotation_file, path, make, version):
    """The dict of arrays that make(annotation_file) gives, from the cache `path` when it has those of this very file.

    version: text, another one when make returns other arrays for the same file.
    """
    key = _key(annotation_file, version)
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if str(arrays.pop('key')) == key:
            return arrays
    except Exception:  # missing or damaged, in many ways; making the arrays again mends them all
        pass
    return _make_in_child(annotation_file, path, make, version, key)


def _key(annotation_file, version):
    """Text that changes whenever the file is written: its last time (ctime) cannot be set, unlike the one before."""
    try:
        status = os.stat(_file_of(annotation_file))
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    return '%s %d %d %d %d' % (version, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _file_of(annotation_file):
    return split_of(part_of(annotation_file)[0])[0]


def _cache_path(annotation_file, skeleton=None):
    """In the user's own cache folder, None where there is none: no cache that somebody else wrote is ever read.
    skeleton: that it is read for."""
    cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    if not os.path.isabs(cache_home):  # ~ of a user without a home
        return None
    source = os.fsencode(os.path.realpath(annotation_file)) + (skeleton.to_json().encode() if skeleton else b'')
    digest = hashlib.sha256(source).hexdigest()[:16]
    return os.path.join(cache_home, 'openpose-training', '%s.%s.npz' % (os.path.basename(annotation_file), digest))


def _make_in_child(annotation_file, path, make, version, key):
    """make(annotation_file) in a process of its own: what json allocates goes back to the system when that ends."""
    logging.info('reading %s (later starts read a cache)', annotation_file)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_make_and_send, daemon=True,
                            args=(annotation_file, path, make, version, key, here, there))
    child.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C, whose signal to this process is still on its way
        raise UserError('the process that read %s was killed; it needs about 2 GB of free memory for all of COCO'
                        % annotation_file)
    child.join()
    if isinstance(result, UserError):
        raise result
    return result


def _make_and_send(annotation_file, path, make, version, key, parents_end, connection):
    parents_end.close()  # or sending would wait for ever for a parent that was killed
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is reported by the parent
    gc.disable()  # nothing here is garbage before the end, and looking for it takes a third of the time
    try:
        arrays = make(annotation_file)
        is_file = stat.S_ISREG(os.stat(_file_of(annotation_file)).st_mode)
        keep = arrays.pop('is_lasting') and path and is_file and _key(annotation_file, version) == key
    except (UserError, OSError) as error:
        connection.send(error if isinstance(error, UserError) else
                        UserError('cannot read %s: %s' % (annotation_file, error.strerror)))
        return
    if keep:  # several processes may start at once, and any may be killed: a cache is whole or not there
        content = io.BytesIO()
        np.savez(content, key=np.array(key), **arrays)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_file(path, content.getbuffer())
        except (UserError, OSError) as error:
            logging.warning('no cache of the annotations, each start will take as long: %s', error)
    with contextlib.suppress(ConnectionError):
        connection.send(arrays)
    os._exit(0)  # at once: taking millions of objects apart would take seconds
