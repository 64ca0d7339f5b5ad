"""Images from strangers: what could hang, fill the memory or end the process is refused before it is decoded."""
import os
import random
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from annotations.images import MAX_SIDE, BadSample, read_image, read_photograph, write_picture
from image_folders import grey_image, jpeg
from pose_errors import UserError

FORMATS = {extension: cv2.imencode(extension, grey_image())[1].tobytes()
           for extension in ('.jpg', '.png', '.bmp', '.webp')}


def png_bomb(width, height):
    """A PNG of one colour: the bits of all its rows, compressed to a thousandth."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = zlib.compressobj(9)
    data = b''.join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def scans(count):
    """A progressive JPEG with its last scan over and over."""
    data = cv2.imencode('.jpg', grey_image(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2] * count + b'\xff\xd9'


@pytest.mark.parametrize('extension', sorted(FORMATS))
def test_four_formats_are_read_whole_and_not_in_part(extension, tmp_path):
    path = str(tmp_path / 'a')
    (tmp_path / 'a').write_bytes(FORMATS[extension])
    assert np.abs(read_photograph(path).astype(int) - grey_image()).max() < 5
    assert read_image(path, (640, 480), 1)[0].shape == (480, 640, 3)
    with pytest.raises(BadSample, match='not of the size 640x481'):
        read_image(path, (640, 481), 1)
    for length in (4, 20, 30, len(FORMATS[extension]) // 2, len(FORMATS[extension]) - 40):
        (tmp_path / 'a').write_bytes(FORMATS[extension][:length])
        with pytest.raises(BadSample, match='not an image|truncated'):
            read_photograph(path)


def test_size_is_bounded_by_the_header(tmp_path):
    """400 million pixels in 49 kB would take gigabytes; not one of them is decoded."""
    (tmp_path / 'a.png').write_bytes(png_bomb(20000, 20000))
    begin = time.process_time()
    for read in (lambda: read_photograph(str(tmp_path / 'a.png')),
                 lambda: read_image(str(tmp_path / 'a.png'), (20000, 20000), 0.01)):
        with pytest.raises(BadSample, match='20000x20000 pixels'):
            read()
    assert time.process_time() - begin < 0.5
    (tmp_path / 'a.png').write_bytes(png_bomb(8000, 8000))
    with pytest.raises(BadSample, match='has only [0-9]+ bytes for 8000x8000 pixels'):
        read_photograph(str(tmp_path / 'a.png'))
    for width, height, let_in in ((MAX_SIDE, 2, True), (MAX_SIDE + 1, 2, False), (2, 40000, False), (0, 5, False)):
        (tmp_path / 'a.png').write_bytes(png_bomb(width, height))
        try:
            assert read_photograph(str(tmp_path / 'a.png')).shape == (height, width, 3) and let_in
        except BadSample as error:
            assert not let_in, error


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe.jpg'))
    os.symlink('/dev/zero', str(tmp_path / 'zero.jpg'))
    for name in ('pipe.jpg', 'zero.jpg'):
        with pytest.raises(BadSample, match='not a regular file'):
            read_image(str(tmp_path / name), (640, 480), 1)


def test_scans_are_counted(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(scans(20))
    assert read_photograph(str(tmp_path / 'a.jpg')).shape == (480, 640, 3)
    (tmp_path / 'a.jpg').write_bytes(scans(2000))
    with pytest.raises(BadSample, match='scans'):
        read_photograph(str(tmp_path / 'a.jpg'))


@pytest.mark.parametrize('progressive', [0, 1])
def test_motion_photographs_have_a_film_behind_the_picture(progressive, tmp_path):
    photo = cv2.imencode('.jpg', grey_image(), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive,
                                                cv2.IMWRITE_JPEG_RST_INTERVAL, 7])[1].tobytes()
    film = b'ftypmp42' + random.Random(0).getrandbits(8 * 20000).to_bytes(20000, 'big').replace(b'\xff', b'\xfe')
    (tmp_path / 'a.jpg').write_bytes(photo + film)
    assert read_image(str(tmp_path / 'a.jpg'), (640, 480), 1)[0].shape == (480, 640, 3)
    (tmp_path / 'a.jpg').write_bytes(photo[:-2] + film)  # its own end is missing
    with pytest.raises(BadSample, match='truncated'):
        read_image(str(tmp_path / 'a.jpg'), (640, 480), 1)


def test_names_need_not_be_text(tmp_path):
    name = os.path.join(os.fsencode(str(tmp_path)), b'M\xfcller.jpg')
    with open(name, 'wb') as file:
        file.write(jpeg(grey_image()))
    assert read_photograph(os.fsdecode(name)).shape == read_photograph(name).shape == (480, 640, 3)


@pytest.mark.slow
def test_no_damaged_image_ends_the_process(tmp_path):
    """160 files with bytes changed, cut out and doubled: an array or a BadSample."""
    rng, results = random.Random(1), {True: 0, False: 0}
    small = {ext: cv2.imencode(ext, grey_image()[:48, :64])[1].tobytes() for ext in FORMATS}
    for number in range(160):
        data = bytearray(small[sorted(small)[number % 4]])
        for _ in range(rng.randint(1, 6)):
            at, kind = rng.randrange(len(data) if rng.random() < 0.5 else 60), rng.random()
            if kind < 0.6:
                data[at:at + 1] = bytes([rng.randrange(256)])
            elif kind < 0.8:
                del data[at:at + rng.randint(1, 40)]
            else:
                data[at:at] = data[at:at + rng.randint(1, 40)]
        (tmp_path / 'a').write_bytes(bytes(data))
        try:
            pixels = read_photograph(str(tmp_path / 'a'))
        except BadSample:
            results[False] += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
            results[True] += 1
    assert min(results.values()) > 20


def test_a_full_disk_is_told(tmp_path):
    write_picture(str(tmp_path / 'a.png'), grey_image())
    assert read_photograph(str(tmp_path / 'a.png')).shape == (480, 640, 3)
    with pytest.raises(UserError, match='cannot write'):
        write_picture('/dev/full/a.png', grey_image())
