"""Image files. One that is read may come from anybody: its header is looked at before it is decoded.

Decoders are where images do harm: a few bytes may ask for gigabytes, and of the many formats that OpenCV knows most are
hardly ever used and little tested. JPEG, PNG, BMP and WebP are read.
"""
import collections
import logging
import os
import re
import struct

import cv2
import numpy as np

from pose_errors import UserError
from pose_files import read_file, write_file

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
OTHER_IMAGE_SUFFIXES = ('.heic', '.heif', '.avif', '.tif', '.tiff', '.gif', '.jp2', '.jxl', '.jfif', '.dng', '.cr2',
                        '.cr3', '.nef', '.arw', '.raf', '.orf', '.rw2', '.psd')

MAX_BYTES, MAX_PIXELS = 2 ** 28, 2 ** 27
FREE_PIXELS, MAX_PIXELS_A_BYTE = 2 ** 24, 500  # a larger picture with fewer bytes shows nothing, and takes seconds
MAX_SIDE = 2 ** 15 - 2  # what OpenCV warps
MAX_SCANS = 250  # of a progressive JPEG: each of a thousand empty ones takes as long as the picture

READ_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
              8: cv2.IMREAD_REDUCED_COLOR_8}
# Bilinear warping averages only 4 pixels: far below scale 1 fine patterns would alias. So the JPEG is decoded at 1/2,
# 1/4 or 1/8, whatever comes nearest to the size it gets (libjpeg averages while decoding, and is faster). These are
# powers of two: the nearest one is at most this much too small.
MAX_SCALE_AFTER_DECODING = 2 ** 0.5

JPEG_START, JPEG_END, JPEG_TAIL = b'\xff\xd8', b'\xff\xd9', 4096
START_OF_SCAN = 0xda
FRAMES = set(range(0xc0, 0xd0)) - {0xc4, 0xc8, 0xcc}  # the markers of a JPEG that give its size
WITHOUT_LENGTH = {0x01} | set(range(0xd0, 0xd9))
MARKER = re.compile(b'\xff[^\x00\xff]')
AFTER_A_SCAN = re.compile(b'\xff[^\x00\x01\xd0-\xd7\xff]')  # the next marker; others belong to the scan


class BadSample(Exception):
    """An image that cannot be used; the run goes on without it."""

    def __init__(self, path, reason):
        super().__init__('%s %s' % (path, reason))
        self.path, self.reason = path, reason


def read_image(path, size, scale):
    """Read an image, reduced while decoding as far as a later warp by `scale` allows.

    The pixels are taken as stored, as COCO's annotations are: an EXIF rotation is not applied.

    Args:
        size: the (width, height) that the annotations give.
        scale: how many pixels one image pixel becomes in the warp that follows.
    Returns:
        (uint8 (H, W, 3) BGR, reduction): reduction 1, 2, 4 or 8 is the factor by which the image is smaller.
    Raises:
        BadSample: missing, empty, truncated, too large, not an image, or not of that size.
    """
    data, found = _read(path)
    if found != (int(size[0]), int(size[1])):
        raise BadSample(path, 'is not of the size %dx%d that the annotations give' % tuple(size))
    reduction = max(r for r in READ_FLAGS if r == 1 or scale * r <= MAX_SCALE_AFTER_DECODING)
    return _decode(path, data, READ_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION), reduction


def read_photograph(path, as_stored=False):
    """The pixels of an image file, uint8 (H, W, 3) BGR, turned as its EXIF header says unless as_stored.

    Raises:
        BadSample: missing, empty, truncated, too large, or not an image.
    """
    data, _ = _read(path)
    return _decode(path, data, cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0))


def write_picture(path, pixels):
    """Write uint8 (H, W, 3) BGR pixels as a PNG file. Raises UserError when it cannot be written."""
    write_file(path, cv2.imencode('.png', pixels)[1].tobytes())


def _read(path):
    """(bytes, (width, height)) of an image file that may be decoded. Raises BadSample for others."""
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise BadSample(path, '(%s)' % (error.strerror or 'cannot be read'))
    if not data:
        raise BadSample(path, 'is empty')
    if data.startswith(JPEG_START) and JPEG_END not in data[-JPEG_TAIL:] and not _has_end(data):
        raise BadSample(path, 'is a truncated JPEG')
    try:
        width, height = _size(data)
    except (struct.error, AttributeError, TypeError):
        raise BadSample(path, 'is not an image (JPEG, PNG, BMP or WebP), or a damaged one')
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BadSample(path, 'has %dx%d pixels; images have at most %d million, and sides of %d'
                        % (width, height, MAX_PIXELS // 10 ** 6, MAX_SIDE))
    if width * height > max(FREE_PIXELS, MAX_PIXELS_A_BYTE * len(data)):
        raise BadSample(path, 'has only %d bytes for %dx%d pixels' % (len(data), width, height))
    if data.startswith(JPEG_START) and data.count(bytes([0xff, START_OF_SCAN])) > MAX_SCANS:
        raise BadSample(path, 'has more than %d scans' % MAX_SCANS)
    return data, (width, height)


def _decode(path, data, flags):
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise BadSample(path, 'is not an image that OpenCV can read')
    return pixels


def _size(data):
    """(width, height) from the header of a JPEG, PNG, BMP or WebP file; None or struct.error for anything else."""
    if data.startswith(JPEG_START):
        return next((struct.unpack_from('>HH', data, at + 5)[::-1] for code, at in _segments(data) if code in FRAMES),
                    None)
    if data.startswith(b'\x89PNG\r\n\x1a\n') and data[12:16] == b'IHDR':
        return struct.unpack_from('>II', data, 16)
    if data.startswith(b'BM'):
        if struct.unpack_from('<I', data, 14)[0] == 12:  # the header of OS/2
            return struct.unpack_from('<HH', data, 18)
        width, height = struct.unpack_from('<ii', data, 18)
        return width, abs(height)  # negative where the first row is the upper one
    if data.startswith(b'RIFF') and data[8:12] == b'WEBP':
        return _webp_size(data)
    return None


def _webp_size(data):
    if data[12:16] == b'VP8X':
        return tuple(1 + int.from_bytes(data[at:at + 3], 'little') for at in (24, 27))
    if data[12:16] == b'VP8L':
        bits = struct.unpack_from('<I', data, 21)[0]
        return 1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff)
    if data[12:16] == b'VP8 ':
        return tuple(side & 0x3fff for side in struct.unpack_from('<HH', data, 26))
    return None


def _segments(data):
    """(code, place) of a JPEG's markers up to its first scan. Raises struct.error or AttributeError past the end."""
    code, at = None, 2
    while code != START_OF_SCAN:
        at = MARKER.search(data, at).start()
        code = data[at + 1]
        yield code, at
        at = _after(data, at)


def _has_end(data):
    """Whether a JPEG has its end marker, which other data may follow, as the film of a motion photograph."""
    try:
        at = next(at for code, at in _segments(data) if code == START_OF_SCAN)
        while data[at + 1] != JPEG_END[1]:
            at = AFTER_A_SCAN.search(data, _after(data, at)).start()
    except (struct.error, AttributeError, StopIteration):  # AttributeError: no match
        return False
    return True


def _after(data, at):
    """The place behind a marker and its segment."""
    return at + 2 if data[at + 1] in WITHOUT_LENGTH else at + 2 + struct.unpack_from('>H', data, at + 2)[0]


def image_paths(path, skip=None):
    """The images below a folder, its own folders included, sorted; of a file, this file.

    Images of other kinds are passed over: one line of the log counts them.

    skip: a folder that is left out, as the one for outputs.
    Raises:
        UserError: there is no such folder or file, or no image in it.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError('--images=%s: there is no such folder or file; give photographs' % path)
    paths, others, skipped = [], collections.Counter(), skip and os.path.realpath(skip)
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith('.')
                      and os.path.realpath(os.path.join(folder, name)) != skipped]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                paths.append(os.path.join(folder, name))
            elif suffix in OTHER_IMAGE_SUFFIXES:
                others[suffix] += 1
    counts = ', '.join('%d %s' % (count, suffix) for suffix, count in sorted(others.items()))
    if not paths:
        raise UserError('no photographs in --images=%s (looked for %s%s)'
                        % (path, ' '.join(IMAGE_SUFFIXES), '; there are %s: convert them' % counts if counts else ''))
    if counts:
        logging.warning('passed over in %s: %s; convert them to JPEG or PNG', path, counts)
    return sorted(paths)
