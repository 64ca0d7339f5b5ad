"""COCO keypoint annotations as a few flat numpy arrays, with a cache beside the annotation file.

Millions of Python objects, as json gives them, cost gigabytes, and each forked loader process would copy them as soon
as their reference counts are touched. Arrays are shared by all processes. The annotation file is parsed once, in a
process of its own; later starts read the arrays back.
"""
import collections
import contextlib
import gc
import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import signal
import tempfile
from array import array

import numpy as np
from pycocotools.coco import COCO

from pose_cli import UserError

# The COCO index of the 18 parts; the neck (1) is made from the shoulders.
COCO_PARTS = (0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
NECK, COCO_LEFT_SHOULDER, COCO_RIGHT_SHOULDER = 1, 5, 6

MAIN_MIN_KEYPOINTS = 5
MAIN_MIN_AREA = 32 * 32
MAIN_MIN_DISTANCE = 0.3  # of the longer bbox side of an earlier main person

MAX_SIDE = (1 << 15) - 1  # of an image: OpenCV warps no larger ones
MAX_COORDINATE = 1 << 16  # what lies further out than this is a mistake

CACHE_VERSION = 3
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
    key = _cache_key(annotation_file)
    cached = (_load_cache(path, key) for path in _cache_paths(annotation_file))
    arrays = next((arrays for arrays in cached if arrays), None) or _parse_in_child(annotation_file, key)
    for problem in arrays.pop('problems'):
        logging.warning('%s: %s', annotation_file, problem.decode())
    return _drop_missing_images(Annotations(**arrays), annotation_file, image_folder)


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


def build_arrays(dataset, annotation_file):
    """The content of a COCO annotation file -> the arrays of Annotations and `problems`, lines about bad entries."""
    problems = collections.Counter()
    images = _unique(dataset['images'], 'image', problems)
    images = [image for image in images if _image_is_sane(image, problems)]
    row_of_image = {image['id']: row for row, image in enumerate(images)}

    # In the order of the file, which is that of the objects in memory, and each into its array as soon as it is looked
    # at: half of the time goes into waiting for memory. The arrays are put in the order of the images at the end.
    keypoints, boxes, areas, counts_of_points, person_image = array('d'), array('d'), [], [], []
    points, points_of_polygon, polygon_image = array('d'), [], []
    counts, counts_of_run, run_image = array('I'), [], []
    for annotation in _unique(dataset['annotations'], 'annotation', problems):
        image_id = annotation.get('image_id')
        row = row_of_image.get(image_id) if isinstance(image_id, int) else None
        if row is None:
            problems['annotations of images that are not listed'] += 1
            continue
        is_labelled = annotation.get('num_keypoints') and not annotation.get('iscrowd')
        if is_labelled and _person_is_sane(annotation):
            keypoints.fromlist(annotation['keypoints'])
            boxes.fromlist(annotation['bbox'])
            areas.append(annotation.get('area', 0))
            counts_of_points.append(annotation['num_keypoints'])
            person_image.append(row)
            continue
        problems['people with broken keypoints or boxes'] += bool(is_labelled)
        segmentation = annotation.get('segmentation') or []
        if isinstance(segmentation, dict):
            run = _run_lengths(segmentation, images[row])
            if run is None:
                problems['segmentations that do not fit their image'] += 1
            else:
                counts.fromlist(run)
                counts_of_run.append(len(run))
                run_image.append(row)
        else:
            for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
                if _polygon_is_sane(polygon):
                    points.fromlist(polygon)
                    points_of_polygon.append(len(polygon) // 2)
                    polygon_image.append(row)
                else:
                    problems['broken polygons'] += 1

    order, person_start = _group_by_image(person_image, len(images))
    joints, boxes = coco_to_joints(keypoints)[order], np.array(boxes).reshape(-1, 4)[order]
    columns = [np.array(counts_of_points)[order].tolist(), np.array(areas)[order].tolist(), boxes.tolist()]
    samples = []
    for row, (first, last) in enumerate(zip(person_start[:-1].tolist(), person_start[1:].tolist())):
        chosen = select_main_people(*(column[first:last] for column in columns)) if last > first else []
        samples += [(row, first + person) for person in chosen]
    if not samples:
        raise UserError('%s has no person with %d keypoints and an area of %d pixels to train on; give a COCO keypoint '
                        'annotation file' % (annotation_file, MAIN_MIN_KEYPOINTS, MAIN_MIN_AREA))
    sample_image, sample_person = np.array(samples, np.int64).T
    polygon_order, polygon_start = _group_by_image(polygon_image, len(images))
    run_order, run_start = _group_by_image(run_image, len(images))
    problems = ['%d %s (left out)' % (count, what) for what, count in problems.items() if count]
    return {
        'image_id': np.array([image['id'] for image in images], np.int64),
        'file_name': np.array([image['file_name'].encode() for image in images], np.bytes_),
        'image_size': np.array([(image['width'], image['height']) for image in images], np.int32).reshape(-1, 2),
        'person_start': person_start, 'joints': joints, 'bbox': boxes.astype(np.float32),
        'polygon_start': polygon_start, 'point_range': _ranges(points_of_polygon)[polygon_order],
        # COCO's polygons count from the corner of the first pixel, everything else here from its centre.
        'points': np.array(points, np.float32).reshape(-1, 2) - np.float32(0.5),
        'run_start': run_start, 'count_range': _ranges(counts_of_run)[run_order],
        'counts': np.array(counts, np.uint32),
        'sample_image': sample_image, 'sample_person': sample_person,
        'problems': np.array([problem.encode() for problem in problems], np.bytes_),
    }


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


def _ranges(lengths):
    """First and last (exclusive) of so many things in a row, one after the other; int64 (lengths, 2)."""
    last = np.cumsum(np.array(lengths, np.int64))
    return np.stack([last - lengths, last], axis=1).astype(np.int64)


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


def _cache_key(annotation_file):
    try:
        status = os.stat(annotation_file)
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    return '%d %d %d' % (CACHE_VERSION, status.st_size, status.st_mtime_ns)


def _cache_paths(annotation_file):
    """Beside the annotation file, or in the user's cache folder where that one cannot be written."""
    folder, name = os.path.split(annotation_file)
    cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    digest = hashlib.sha256(os.fsencode(os.path.realpath(annotation_file))).hexdigest()[:16]
    return [os.path.join(folder, '.%s.arrays.npz' % name),
            os.path.join(cache_home, 'openpose-training', '%s.%s.npz' % (name, digest))]


def _parse_in_child(annotation_file, key):
    """build_arrays in a process of its own: what json allocates goes back to the system when that ends."""
    logging.info('reading %s (later starts read a cache)', annotation_file)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_parse_and_send, args=(annotation_file, key, here, there), daemon=True)
    child.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        raise UserError('the process that read %s was killed; it needs about 2 GB of free memory for all of COCO'
                        % annotation_file)
    child.join()
    if isinstance(result, UserError):
        raise result
    return result


def _parse_and_send(annotation_file, key, parents_end, connection):
    parents_end.close()  # or sending would wait for ever for a parent that was killed
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is reported by the parent
    gc.disable()  # nothing here is garbage before the end, and looking for it takes a third of the time
    try:
        dataset = load_json(annotation_file)
        arrays = build_arrays(dataset, annotation_file)
    except UserError as error:
        connection.send(error)
        return
    for path in _cache_paths(annotation_file):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _store_cache(path, dict(arrays, key=np.array(key)))
            break
        except OSError as error:
            reason = '%s: %s' % (path, error.strerror)
    else:
        logging.warning('no cache could be written, each start will take as long (%s)', reason)
    with contextlib.suppress(ConnectionError):
        connection.send(arrays)
    os._exit(0)  # at once: taking millions of objects apart would take seconds


def _store_cache(path, arrays):
    """Write under a temporary name and rename: several processes may start at once, and any may be killed."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.arrays-', suffix='.tmp')
    try:
        with os.fdopen(handle, 'wb') as file:
            np.savez(file, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _load_cache(path, key):
    """The arrays, or None when the cache is missing, stale, truncated, foreign or not readable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['key']) != key:
                return None
            arrays = {name: stored[name] for name in Annotations._fields + ('problems',)}
            return arrays if _fit_together(**arrays) else None
    except Exception:  # zip, npy headers and their contents fail in many ways; parsing the annotations mends them all
        return None


def _fit_together(image_id, file_name, image_size, person_start, joints, bbox, polygon_start, point_range, points,
                  run_start, count_range, counts, sample_image, sample_person, problems):
    """Whether arrays from a file are what Annotations says: shapes agree and no index leads out of its array."""
    def are_starts(starts, owners, owned):
        return (starts.shape == (owners + 1,) and starts.dtype == np.int64 and starts[0] == 0 and starts[-1] == owned
                and (np.diff(starts) >= 0).all())

    def are_ranges(ranges, owned):
        return (ranges.shape == (len(ranges), 2) and ranges.dtype == np.int64
                and ((0 <= ranges[:, 0]) & (ranges[:, 0] <= ranges[:, 1]) & (ranges[:, 1] <= owned)).all())

    images, people = len(image_id), len(joints)
    return (file_name.shape == (images,) and file_name.dtype.kind == 'S' and image_size.shape == (images, 2)
            and joints.shape == (people, 18, 2) and bbox.shape == (people, 4) and points.shape[1:] == (2,)
            and counts.ndim == problems.ndim == 1 and sample_image.shape == sample_person.shape == (len(sample_image),)
            and are_starts(person_start, images, people)
            and are_starts(polygon_start, images, len(point_range)) and are_ranges(point_range, len(points))
            and are_starts(run_start, images, len(count_range)) and are_ranges(count_range, len(counts))
            and 0 <= sample_image.min() and sample_image.max() < images
            and (person_start[sample_image] <= sample_person).all()
            and (sample_person < person_start[sample_image + 1]).all())
