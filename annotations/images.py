"""Image files: their size, their pixels.

One that is read may come from anybody, and decoders are where images do harm: a few bytes may ask for gigabytes, and of
the many formats that OpenCV knows most are hardly ever used and little tested. So JPEG, PNG, BMP and WebP are read, and
their headers are checked before they are decoded.
"""
import contextlib
import os
import re
import struct

import cv2
import numpy as np

from pose_files import open_file, read_file, write_file

MAX_BYTES, MAX_PIXELS = 2 ** 28, 2 ** 27
HEADER_BYTES = 2 ** 17  # that are read for an image's size alone
FREE_PIXELS, MAX_PIXELS_A_BYTE = 2 ** 24, 500  # a larger picture with fewer bytes shows nothing, and takes seconds
MAX_SIDE = 2 ** 15 - 2  # what OpenCV warps
MAX_SCANS = 250  # of a progressive JPEG: each of a thousand empty ones takes as long as the picture
JPEG_QUALITY = 90  # of pictures that are written
UNUSABLE_NAME = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')  # with control characters, or halves of others

READ_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
              8: cv2.IMREAD_REDUCED_COLOR_8}
# Bilinear warping averages only 4 pixels: far below scale 1 fine patterns would alias. So the image is reduced to 1/2,
# 1/4 or 1/8 before, whatever comes nearest to the size it gets. These are powers of two: the nearest one is at most
# this much too small.
MAX_SCALE_AFTER_REDUCING = 2 ** 0.5

JPEG_START, JPEG_END, JPEG_TAIL = b'\xff\xd8', b'\xff\xd9', 4096
START_OF_SCAN = 0xda
FRAMES = set(range(0xc0, 0xd0)) - {0xc4, 0xc8, 0xcc}  # the markers of a JPEG that give its size
WITHOUT_LENGTH = {0x01} | set(range(0xd0, 0xd9))
MARKER = re.compile(b'\xff[^\x00\xff]')
AFTER_A_SCAN = re.compile(b'\xff[^\x00\x01\xd0-\xd7\xff]')  # the next marker; others belong to the scan
APP1, EXIF_START = 0xe1, b'Exif\0\0'
ORIENTATION = 0x112  # the tag in EXIF
# How pixels are turned upright, by their orientation in EXIF: 5 to 8 swap width and height.
TURNS = {2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1], 4: lambda pixels: pixels[::-1],
         5: lambda pixels: pixels.transpose(1, 0, 2), 6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
         7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1], 8: lambda pixels: pixels.transpose(1, 0, 2)[::-1]}

HEIC_STARTS = {b'ftyp' + brand for brand in (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')}
HEIC_REMEDY = 'heif-convert IN.heic OUT.jpg, of libheif, makes a JPEG of it'

PNG_START = b'\x89PNG\r\n\x1a\n'
PICTURE_CHUNKS = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
ANIMATION_CHUNKS = {b'acTL', b'fcTL', b'fdAT'}
MAX_CHUNKS = 2 ** 17
WEBP_ANIMATED = 0x02  # of the flags in VP8X


class BadSample(Exception):
    """An image that cannot be used; the run goes on without it. kind: by which such files are counted."""

    def __init__(self, path, reason, kind='damaged'):
        super().__init__('%s %s' % (path, reason))
        self.path, self.reason, self.kind = path, reason, kind


def read_image(path, size, scale):
    """Read an image of a data set, reduced as far as a later warp by `scale` (pixels that one becomes) allows.

    It is turned as its EXIF header says where the annotations give the turned size, as labelling tools show it; where
    they give the stored size alone, as COCO does, it is not. size: the (width, height) that the annotations give.

    Returns (uint8 (H, W, 3) BGR, reduction): reduction 1, 2, 4 or 8 is the factor by which the image is smaller.
    Raises BadSample: missing, empty, truncated, too large, not an image, or not of that size.
    """
    data, stored, orientation = _read(path)
    wanted, upright = (int(size[0]), int(size[1])), _upright_size(stored, orientation)
    if wanted not in (stored, upright):
        raise BadSample(path, 'is %dx%d%s and not of the size %dx%d that the annotations give' % (
            stored + (', turned by its EXIF header,' if orientation > 1 else '',) + wanted))
    reduction = max(r for r in READ_FLAGS if r == 1 or scale * r <= MAX_SCALE_AFTER_REDUCING)
    if wanted == upright and orientation > 1:
        return shrink(_decode(path, data, cv2.IMREAD_COLOR, orientation), reduction), reduction
    if data.startswith(JPEG_START):  # libjpeg averages while it decodes, and is faster then
        return _decode(path, data, READ_FLAGS[reduction]), reduction
    return shrink(_decode(path, data, cv2.IMREAD_COLOR), reduction), reduction


def read_photograph(path):
    """The pixels of an image file, uint8 (H, W, 3) BGR, turned as its EXIF header says. Raises BadSample."""
    data, _, orientation = _read(path)
    return _decode(path, data, cv2.IMREAD_COLOR, orientation)


def image_size(path):
    """(width, height) of an image file as viewers show it, and whether its EXIF header turns it. Raises BadSample."""
    try:
        with open_file(path) as file:
            stored, orientation, *_ = _read_header(file.read(HEADER_BYTES))
    except (OSError, struct.error, AttributeError, TypeError):  # damaged, or what is wanted lies further behind
        _, stored, orientation = _read(path)
    return _upright_size(stored, orientation), orientation > 1


def shrink(pixels, reduction):
    """Means of reduction x reduction pixels of an image uint8 (H, W, 3), whose edge is repeated to whole ones."""
    if reduction == 1:
        return pixels
    height, width = (-(-side // reduction) for side in pixels.shape[:2])
    pixels = cv2.copyMakeBorder(pixels, 0, height * reduction - pixels.shape[0], 0,
                                width * reduction - pixels.shape[1], cv2.BORDER_REPLICATE)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def write_picture(path, pixels, tidy=True):
    """Write uint8 (H, W, 3) BGR pixels as a .png or .jpg file. Raises UserError when it cannot be written. tidy: as in
    pose_files.write_file."""
    write_file(path, encode_picture(pixels, os.path.splitext(path)[1]), tidy)


def encode_picture(pixels, suffix):
    """The bytes of a '.png' or '.jpg' file of uint8 (H, W, 3) BGR pixels."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == '.jpg' else []
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def _read(path):
    """(bytes, size as stored, orientation as in EXIF) of an image file that may be decoded, else BadSample."""
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise BadSample(path, '(%s)' % (error.strerror or 'cannot be read'), 'unreadable')
    if not data:
        raise BadSample(path, 'is empty', 'empty')
    if data.startswith(JPEG_START) and JPEG_END not in data[-JPEG_TAIL:] and not _has_end(data):
        raise BadSample(path, 'is a truncated JPEG', 'truncated JPEG')
    try:
        (width, height), orientation, animated, data = _read_header(data)
    except (struct.error, AttributeError, TypeError):
        if data[4:12] in HEIC_STARTS:
            raise BadSample(path, 'is a HEIC image, whatever its name says; %s' % HEIC_REMEDY, '.heic')
        raise BadSample(path, 'is not an image (JPEG, PNG, BMP or WebP), or a damaged one')
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BadSample(path, 'has %dx%d pixels; images have at most %d million, and sides of %d'
                        % (width, height, MAX_PIXELS // 10 ** 6, MAX_SIDE), 'too large')
    if width * height > max(FREE_PIXELS, MAX_PIXELS_A_BYTE * len(data)):
        raise BadSample(path, 'has only %d bytes for %dx%d pixels' % (len(data), width, height))
    if data.startswith(JPEG_START) and data.count(bytes([0xff, START_OF_SCAN])) > MAX_SCANS \
            and sum(code == START_OF_SCAN for code in _all_markers(data)) > MAX_SCANS:  # not in what lies behind it
        raise BadSample(path, 'has more than %d scans' % MAX_SCANS)
    if animated:  # each frame may be as large as the picture, and OpenCV 4.11 crashes on some
        raise BadSample(path, 'is an animation, not one image', 'animated')
    return data, (width, height), orientation


def _decode(path, data, flags, orientation=1):
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise BadSample(path, 'is not an image that OpenCV can read')
    return np.ascontiguousarray(TURNS[orientation](pixels)) if orientation in TURNS else pixels


def _upright_size(size, orientation):
    return size[::-1] if orientation > 4 else size


def _read_header(data):
    """((width, height), orientation as in EXIF, whether it is animated, the bytes to decode) of an image file.

    Raises struct.error, AttributeError or TypeError for what is no JPEG, PNG, BMP or WebP, or ends too early.
    """
    exif, animated = b'', False
    if data.startswith(JPEG_START):
        segments = list(_segments(data))
        size = struct.unpack_from('>HH', data, 5 + next((at for code, at in segments if code in FRAMES), None))[::-1]
        exif = next((data[at + 4:_after(data, at)] for code, at in segments
                     if code == APP1 and data.startswith(EXIF_START, at + 4)), b'')
    elif data.startswith(PNG_START) and data[12:16] == b'IHDR':
        size, chunks = struct.unpack_from('>II', data, 16), list(_chunks(data))
        exif = next((data[at + 8:end] for kind, at, end in chunks if kind == b'eXIf'), b'')
        animated = any(kind in ANIMATION_CHUNKS for kind, _, _ in chunks)
        # The picture alone: other chunks may ask for gigabytes and are not needed.
        data = PNG_START + b''.join(data[at:end] for kind, at, end in chunks if kind in PICTURE_CHUNKS)
    elif data.startswith(b'BM'):
        if struct.unpack_from('<I', data, 14)[0] == 12:  # the header of OS/2
            size = struct.unpack_from('<HH', data, 18)
        else:
            width, height = struct.unpack_from('<ii', data, 18)
            size = width, abs(height)  # negative where the first row is the upper one
    elif data.startswith(b'RIFF') and data[8:16] == b'WEBPVP8X':
        size = tuple(1 + int.from_bytes(data[at:at + 3], 'little') for at in (24, 27))
        exif = next((data[at + 8:end] for kind, at, end in _chunks(data) if kind == b'EXIF'), b'')
        animated = bool(int.from_bytes(data[20:21], 'little') & WEBP_ANIMATED)
    elif data.startswith(b'RIFF') and data[8:16] == b'WEBPVP8L':
        bits = struct.unpack_from('<I', data, 21)[0]
        size = 1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff)
    elif data.startswith(b'RIFF') and data[8:16] == b'WEBPVP8 ':
        size = tuple(side & 0x3fff for side in struct.unpack_from('<HH', data, 26))
    else:
        raise TypeError
    return size, _orientation(exif), animated, data


def _chunks(data):
    """(kind, place, end) of the chunks of a PNG up to its last one, or of a WebP. Raises struct.error past the end."""
    png = data.startswith(PNG_START)
    at, kind = len(PNG_START) if png else 12, None
    for _ in range(MAX_CHUNKS):
        if kind == b'IEND' or not png and at >= len(data) - 7:
            return
        length, kind = struct.unpack_from('>I4s', data, at) if png else struct.unpack_from('<4sI', data, at)[::-1]
        end = at + (12 + length if png else 8 + length + length % 2)
        if end > len(data) + (not png):
            raise struct.error
        yield kind, at, end
        at = end
    raise struct.error


def _orientation(exif):
    """How an image has to be turned to be upright, as in EXIF: 1 (not at all) to 8."""
    tiff = exif[len(EXIF_START):] if exif.startswith(EXIF_START) else exif
    order = {b'II': '<', b'MM': '>'}.get(tiff[:2])
    if not order:
        return 1
    try:
        start, = struct.unpack_from(order + 'I', tiff, 4)
        entries, = struct.unpack_from(order + 'H', tiff, start)
        for k in range(entries):
            tag, _, _, value = struct.unpack_from(order + 'HHIH', tiff, start + 2 + 12 * k)
            if tag == ORIENTATION:
                return value if value in TURNS else 1
    except struct.error:  # a damaged header turns nothing
        pass
    return 1


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
    return JPEG_END[1] in _all_markers(data)


def _all_markers(data):
    """The codes of a JPEG's markers from its first scan on, as far as its end marker or its last byte."""
    with contextlib.suppress(struct.error, AttributeError):  # AttributeError: no match
        for code, at in _segments(data):
            pass
        while code != JPEG_END[1]:
            yield code
            at = AFTER_A_SCAN.search(data, _after(data, at)).start()
            code = data[at + 1]
        yield code


def _after(data, at):
    """The place behind a marker and its segment."""
    return at + 2 if data[at + 1] in WITHOUT_LENGTH else at + 2 + struct.unpack_from('>H', data, at + 2)[0]
