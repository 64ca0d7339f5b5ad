"""People in photographs: a picture with skeletons and a JSON file in the manner of OpenPose for each.

find_photographs finds the files, draw_photographs runs the network. Drawing and compressing a picture takes as long as
a small network: threads do it meanwhile.
"""
import collections
import concurrent.futures
import contextlib
import glob
import logging
import os

from tqdm import tqdm

import pose_draw
import pose_files
from annotations.images import HEIC_REMEDY, BadSample, read_photograph, write_picture
from pose_errors import UserError

from .decode import PEAK_THRESHOLD, keypoint_lists
from .predictor import MAX_HELD_BYTES, InputImage, Predictor, Request, make_transforms, maps_over_image

WRITERS = 2  # threads
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
OTHER_SUFFIXES = ('.heic', '.heif', '.avif', '.tif', '.tiff', '.gif', '.jp2', '.jxl', '.jfif', '.dng', '.cr2', '.cr3',
                  '.nef', '.arw', '.raf', '.orf', '.rw2', '.psd')
PHOTOGRAPHIC = ('.jpg', '.jpeg', '.webp')  # as PNG a picture of one has six times the size, and shows no more
REMEDIES = dict(dict.fromkeys(OTHER_SUFFIXES, 'convert to JPEG or PNG'),
                **dict.fromkeys(('.heic', '.heif'), HEIC_REMEDY))
MAX_STEM = 230  # bytes of a name, without the endings of outputs
PANEL_SIDE = 640  # pixels, at most, of a picture of maps

# paths: sorted; root: a folder that they are below; passed_over: {kind: how many images of other kinds are there}.
Photographs = collections.namedtuple('Photographs', 'paths root passed_over')


def find_photographs(given, output_dir=None):
    """The Photographs of a file, of a folder and its own folders, or of a pattern as 'photos/**/*.jpg'.

    A file or folder of that very name goes before the pattern. output_dir: a folder whose pictures do not count.

    Raises UserError when there is none.
    """
    if os.path.isfile(given):
        return Photographs([given], os.path.dirname(given) or '.', {})
    root, pattern = _split_pattern(given)
    if pattern and not glob.has_magic(pattern):
        raise UserError('--images=%s: there is no such folder or file; give photographs' % given)
    if output_dir and os.path.realpath(root) == os.path.realpath(output_dir):
        raise UserError('--output-dir=%s is the folder of the photographs; give another one' % output_dir)
    matches = glob.glob(os.path.join(glob.escape(root), pattern), recursive=True) if pattern else [root]
    files = {path for match in matches for path in _files_below(match)}
    if output_dir and not _is_below(root, output_dir):
        results = {folder for folder in set(map(os.path.dirname, files)) if _is_below(folder, output_dir)}
        files = {path for path in files if os.path.dirname(path) not in results}
    suffixes = {path: os.path.splitext(path)[1].lower() for path in files}
    others = collections.Counter(suffix for suffix in suffixes.values() if suffix in OTHER_SUFFIXES)
    paths = sorted(path for path in files if suffixes[path] in SUFFIXES)
    if not paths:
        raise UserError('no photographs in --images=%s (looked for %s%s)' % (
            given, ' '.join(SUFFIXES), '; there are %s' % counts_by_kind(others) if others else ''))
    return Photographs(paths, root or '.', others)


def _split_pattern(given):
    """(The longest beginning of a path that is a folder, or '', the rest of it)."""
    root, names = os.path.normpath(given), []
    while root and not os.path.isdir(root):
        root, name = os.path.split(root)
        names.insert(0, name)
    return root, os.path.join('', *names)


def _files_below(path):
    """A file; or the files of a folder and its own folders, except hidden ones, also of folders that are links.

    Each folder counts once: links may lead back to where they are. So they wait until all others have been seen.
    """
    if not os.path.isdir(path):
        yield path
        return
    tops, seen = collections.deque([path]), set()
    while tops:
        for folder, folders, names in os.walk(tops.popleft()):
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:
                folders.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith('.'))
            tops.extend(link for link in (os.path.join(folder, name) for name in folders) if os.path.islink(link))
            for name in names:
                yield os.path.join(folder, name)


def _is_below(folder, other):
    """Whether a folder is another one, or in it."""
    return os.path.join(os.path.realpath(folder), '').startswith(os.path.join(os.path.realpath(other), ''))


def counts_by_kind(counts):
    """'2 .heic (heif-convert ...), 1 truncated JPEG' for {kind: number}."""
    return ', '.join('%d %s%s' % (count, kind, ' (%s)' % REMEDIES[kind] if kind in REMEDIES else '')
                     for kind, count in sorted(counts.items()))


def draw_photographs(predict_maps, skeleton, photographs, output_dir, decoders=None, batchsize=1, limit=None,
                     pictures=True, maps=False, threshold=PEAK_THRESHOLD, min_score=0.0, **setting):
    """Write a picture and a JSON file for each photograph; those that cannot be read are skipped, and counted.

    Args:
        photographs: Photographs.  limit: only the first so many.
        pictures: whether to draw at all.  maps: whether to draw the network's output as well.
        setting: as for inference.predictor.make_transforms.  The others: for Predictor.
    Returns a summary as a dict. Raises UserError when none can be read.
    """
    paths, skipped = photographs.paths[:limit], []
    outputs = output_prefixes(paths, photographs.root, output_dir)
    predictor = Predictor(predict_maps, skeleton, batchsize, decoders, threshold=threshold, min_score=min_score,
                          keep_maps=maps)
    summary = {'images': 0, 'people': 0}
    requests = (Request(path, _reader(path, setting, skipped)) for path in paths)
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as writers, \
            contextlib.closing(predictor.find_people(requests)) as found:
        writing = collections.deque()
        for path, image, keypoints, scores in tqdm(found, 'finding people', len(paths), unit='image', disable=None):
            summary['images'] += 1
            summary['people'] += len(scores)
            future = writers.submit(_write, *outputs[path], image, keypoints, scores, skeleton, pictures, maps)
            writing.append((image.pixels.nbytes, future))
            while len(writing) > 2 * WRITERS or sum(size for size, _ in writing) > MAX_HELD_BYTES:
                writing.popleft()[1].result()
        for _, future in writing:
            future.result()
    skipped = collections.Counter(skipped) + collections.Counter(photographs.passed_over)
    told = 'skipped %d files: %s' % (sum(skipped.values()), counts_by_kind(skipped))
    if not summary['images']:
        raise UserError('none of the photographs in %s could be read; %s; give JPEG, PNG, BMP or WebP files'
                        % (photographs.root, told))
    if skipped:
        logging.warning(told)
    return dict(summary, skipped=dict(sorted(skipped.items())), **predictor.timings(),
                scales=list(setting['scales']), flip=setting['flip'])


def output_prefixes(paths, root, output_dir):
    """{path of a photograph: (prefix of the paths of its outputs, its name below root)}.

    Outputs lie in output_dir as the photographs do below root; two that differ in their endings alone keep these.
    """
    names = [os.path.relpath(path, root) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    taken = collections.Counter(stems)
    taken.update(set(names))  # a.jpg.png does not take the place of a.jpg beside a.png
    return {path: (os.path.join(output_dir, _short(name if taken[stem] > 1 else stem)), name)
            for path, name, stem in zip(paths, names, stems)}


def _short(stem):
    """A path whose last name leaves room for endings."""
    folder, name = os.path.split(stem)
    return os.path.join(folder, pose_files.short_name(name, MAX_STEM))


def _reader(path, setting, skipped):
    """The function that reads a photograph, for a Request. skipped: a list, which gets the kind of one that cannot be
    read."""
    def read():
        try:
            pixels = read_photograph(path)
        except BadSample as error:
            logging.warning('skipped: %s', error)
            skipped.append(error.kind)
            return None
        return InputImage(pixels, 1, make_transforms(pixels.shape[1], pixels.shape[0], **setting), None)
    return read


def _write(prefix, name, image, keypoints, scores, skeleton, pictures, maps):
    """The files of a photograph: people as OpenPose's JSON, in image pixels, and pictures."""
    pose_files.make_folder(os.path.dirname(prefix))
    height, width = image.pixels.shape[:2]
    pose_files.write_json(prefix + '_keypoints.json', {
        'image': name, 'width': width, 'height': height, 'part_names': list(skeleton.parts),
        'people': [{'score': round(float(score), 4), 'pose_keypoints_2d': person}
                   for person, score in zip(keypoint_lists(keypoints), scores)]}, tidy=False)
    suffix = '.jpg' if name.lower().endswith(PHOTOGRAPHIC) else '.png'
    drawn = pose_draw.draw_skeletons(image.pixels, keypoints, skeleton) if pictures else None
    if pictures:
        write_picture(prefix + '_rendered' + suffix, drawn, tidy=False)
    if maps:
        write_picture(prefix + '_maps' + suffix, draw_maps(image, drawn, skeleton), tidy=False)


def draw_maps(image, drawn, skeleton):
    """What the network gave, over the photograph: its people, the heatmaps, the PAFs and the background.

    image: an InputImage with maps.  drawn: uint8 (H, W, 3), its people.
    """
    height, width = image.pixels.shape[:2]
    maps = maps_over_image(image.maps, image.transforms, skeleton, width, height)
    heatmap, pafs = maps[:, :, :skeleton.heatmap_channels], maps[:, :, skeleton.heatmap_channels:]
    drawn, pixels = (pose_draw.shrunk(picture, PANEL_SIDE / max(width, height)) for picture in (drawn, image.pixels))
    panels = [(drawn, 'people'), (pose_draw.overlay_heatmap(pixels, heatmap), 'heatmaps, the highest part'),
              (pose_draw.overlay_paf(pixels, pafs), 'PAFs, hue: direction'),
              (pose_draw.overlay_channel(pixels, heatmap[:, :, skeleton.background]), 'background')]
    panels = [pose_draw.caption(*panel) for panel in panels]
    return pose_draw.contact_sheet([panels[:2], panels[2:]])
