"""Images as people have them, and from strangers: upright, reduced without aliasing, or refused before they do harm."""
import io
import os
import random
import struct
import time
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from annotations.images import MAX_SIDE, BadSample, image_size, read_image, read_photograph, shrink, write_picture
from image_folders import HEIGHT, WIDTH, behind_header, extended_webp, grey_image, jpeg, png_chunk, with_orientation
from pose_augment import reduced_matrix, warp_image
from pose_errors import UserError

FORMATS = {extension: cv2.imencode(extension, grey_image())[1].tobytes()
           for extension in ('.jpg', '.png', '.bmp', '.webp')}


def png_bomb(width, height):
    """A PNG of one colour: the bits of all its rows, compressed to a thousandth."""
    rows = zlib.compressobj(9)
    data = b''.join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(b'IDAT', data) + png_chunk(b'IEND', b'')


def landmark_image():
    """Blue above, red below, a white square at the left."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:240], image[240:], image[200:280, :80] = (200, 40, 40), (40, 40, 200), 255
    return image


def written(tmp_path, content, name='a'):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


# --- upright


# Where viewers show the stored image's pixels: x and y of what was stored at the upper left, as shares of the sides.
SHOWN_AT = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize('extension', ['.jpg', '.png', '.webp'])
@pytest.mark.parametrize('orientation', sorted(SHOWN_AT))
def test_images_are_turned_as_exif_says(extension, orientation, tmp_path):
    """OpenCV turns JPEG files by itself, in all versions: the others are turned as these are."""
    image = landmark_image()
    image[:60, :60] = (0, 255, 0)
    stored = cv2.imencode(extension, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    path = written(tmp_path, with_orientation(extension, stored, orientation))
    example = np.frombuffer(with_orientation('.jpg', jpeg(image), orientation), np.uint8)
    upright = cv2.imdecode(example, cv2.IMREAD_COLOR)
    shown = upright.shape[1], upright.shape[0]
    assert shown == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    at = [int(share * (side - 1)) for share, side in zip(SHOWN_AT[orientation], shown)]
    assert upright[at[1], at[0], 1] > 200
    assert image_size(path) == (shown, orientation > 1)
    for pixels in (read_photograph(path), read_image(path, shown, 1)[0]):
        assert np.abs(pixels.astype(int) - upright).mean() < 2
    reduced, reduction = read_image(path, shown, 0.3)
    assert reduction == 4 and np.abs(reduced.astype(int) - shrink(upright, 4)).mean() < 2


def test_images_stay_as_stored_where_the_annotations_say_so(tmp_path):
    """COCO's annotations are of the stored image."""
    path = written(tmp_path, with_orientation('.jpg', jpeg(landmark_image()), 6))
    assert np.abs(read_image(path, (WIDTH, HEIGHT), 1)[0].astype(int) - landmark_image()).mean() < 2
    with pytest.raises(BadSample, match='is 640x480, turned by its EXIF header, and not of the size 640x481'):
        read_image(path, (640, 481), 1)


@pytest.mark.parametrize('tiff', [b'', b'MM\0*', b'MM\0*\xff\xff\xff\xff', b'II*\0\x08\0\0\0\xff\xff' + bytes(30),
                                  b'XX\0*\0\0\0\x08\0\x01'])
def test_damaged_exif_turns_nothing(tiff, tmp_path):
    path = written(tmp_path, behind_header(FORMATS['.png'], png_chunk(b'eXIf', tiff)))
    assert image_size(path) == ((WIDTH, HEIGHT), False) and (read_photograph(path) == grey_image()).all()


# --- reduced


@pytest.mark.parametrize('extension', sorted(FORMATS))
@pytest.mark.parametrize('width, height', [(640, 480), (639, 425), (129, 481)])
def test_reduced_images_are_where_they_were(extension, width, height, tmp_path):
    """Pixel x of an image at 1 / r shows pixel r * x + (r - 1) / 2, whatever the size."""
    x, y = np.meshgrid(np.linspace(20, 235, width), np.linspace(235, 20, height))
    ramp = np.stack([x, y, (x + y) / 2], axis=2).round().astype(np.uint8)
    path = written(tmp_path, cv2.imencode(extension, ramp, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    for scale, reduction in ((1, 1), (0.6, 2), (0.3, 4), (0.1, 8)):
        pixels, found = read_image(path, (width, height), scale)
        assert found == reduction and pixels.shape == (-(-height // reduction), -(-width // reduction), 3)
        whole = pixels[:height // reduction, :width // reduction].astype(float)
        columns = reduction * np.arange(whole.shape[1]) + (reduction - 1) / 2
        rows = reduction * np.arange(whole.shape[0]) + (reduction - 1) / 2
        expected = 20 + 215 * columns / (width - 1), 235 - 215 * rows / (height - 1)
        for channel, values in ((0, expected[0]), (1, expected[1][:, None])) if whole.size else ():
            difference = np.abs(whole[:, :, channel] - values)
            assert difference.mean() < 5 if extension == '.jpg' else difference.max() < 1.3


@pytest.mark.parametrize('extension', ['.png', '.bmp', '.webp'])
def test_reduced_images_do_not_alias(extension, tmp_path):
    noise = np.random.RandomState(0).normal(128, 30, (481, 639, 3)).clip(0, 255).astype(np.uint8)
    path = written(tmp_path, cv2.imencode(extension, noise, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    for scale, reduction in ((0.5, 2), (0.25, 4), (0.1, 8)):
        assert read_image(path, (639, 481), scale)[0][:-1, :-1].std() < 1.2 * 30 / reduction + 1


def test_downscaling_a_checkerboard_gives_grey(tmp_path):
    rows, columns = np.indices((HEIGHT, WIDTH))
    board = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    for content in (jpeg(board, 100), png(board)):
        path = written(tmp_path, content)
        for scale in (0.3, 0.2, 0.5, 0.1):
            matrix = np.array([[scale, 0, 0], [0, scale, 0]])
            pixels, reduction = read_image(path, (WIDTH, HEIGHT), scale)
            warped = warp_image(pixels, reduced_matrix(matrix, reduction), int(WIDTH * scale), int(HEIGHT * scale))
            assert np.abs(warped[2:-2, 2:-2].astype(float) - 127.5).max() < 12.75


# --- odd and broken


def cmyk(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[:, :, ::-1]).convert('CMYK').save(buffer, 'JPEG', quality=95)
    return buffer.getvalue()


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


ODD_FILES = {
    'png': png, 'png_with_alpha': lambda image: png(np.dstack([image, image[:, :, 0]])),
    'png_16_bit': lambda image: png(image.astype(np.uint16) * 257),
    'png_with_text': lambda image: behind_header(png(image), png_chunk(b'tEXt', b'a\0b')),
    'cmyk': cmyk, 'garbage_at_the_end': lambda image: jpeg(image) + b'\x00' * 1000}


@pytest.mark.parametrize('kind', sorted(ODD_FILES))
def test_odd_images_are_read(kind, tmp_path):
    grey, _ = read_image(written(tmp_path, jpeg(landmark_image()[:, :, 0])), (WIDTH, HEIGHT), 1)
    assert grey.shape == (HEIGHT, WIDTH, 3) and (grey[:, :, 0] == grey[:, :, 2]).all()
    path = written(tmp_path, ODD_FILES[kind](landmark_image()))
    for scale, reduction in ((1.0, 1), (0.3, 4)):
        pixels, used = read_image(path, (WIDTH, HEIGHT), scale)
        assert used == reduction and pixels.dtype == np.uint8
        assert pixels.shape == (HEIGHT // reduction, WIDTH // reduction, 3)
        for x, y, colour in ((400, 60, (200, 40, 40)), (400, 420, (40, 40, 200)), (30, 240, (255, 255, 255))):
            assert np.abs(pixels[y // reduction, x // reduction].astype(int) - colour).max() < 12


BAD_FILES = {
    'missing': (None, 'No such file'), 'empty': (b'', 'is empty'),
    'truncated': (jpeg(landmark_image())[:-600], 'truncated'),
    'half': (jpeg(landmark_image())[:3000], 'truncated'), 'text': (b'<html>404</html>', 'not an image'),
    'jpeg_start_only': (b'\xff\xd8', 'truncated'), 'broken_header': (b'\xff\xd8\xff\xd9', 'not an image'),
    'zeros': (bytes(5000), 'not an image'), 'other_size': (jpeg(landmark_image()[:400]), 'not of the size 640x480'),
    'turned': (jpeg(landmark_image().transpose(1, 0, 2)), 'not of the size')}


@pytest.mark.parametrize('kind', sorted(BAD_FILES))
@pytest.mark.parametrize('scale', [1.0, 0.2])
def test_bad_images_are_bad_samples(kind, scale, tmp_path):
    content, reason = BAD_FILES[kind]
    if content is not None:
        written(tmp_path, content, 'a.jpg')
    with pytest.raises(BadSample, match=reason) as error:
        read_image(str(tmp_path / 'a.jpg'), (WIDTH, HEIGHT), scale)
    assert error.value.path == str(tmp_path / 'a.jpg')


ANIMATIONS = {
    'acTL': behind_header(FORMATS['.png'], png_chunk(b'acTL', struct.pack('>II', 2, 0))),
    'fcTL': behind_header(FORMATS['.png'], png_chunk(b'fcTL', bytes(26))),
    'webp': extended_webp(FORMATS['.webp'], 0x02)}


@pytest.mark.parametrize('kind', sorted(ANIMATIONS))
def test_animations_are_refused(kind, tmp_path):
    """OpenCV 4.11 crashes on a PNG's frame outside of the picture; each frame of a WebP may be as large as it."""
    path = written(tmp_path, ANIMATIONS[kind])
    for read in (lambda: read_photograph(path), lambda: read_image(path, (WIDTH, HEIGHT), 1)):
        with pytest.raises(BadSample, match='is an animation'):
            read()


@pytest.mark.parametrize('kind', [b'IDAT', b'iCCP', b'zTXt', b'eXIf', b'abcd'])
@pytest.mark.parametrize('length', [0x7fffffff, 0xffffffff, 10 ** 6])
def test_chunks_that_are_longer_than_their_file_are_refused(kind, length, tmp_path):
    path = written(tmp_path, behind_header(FORMATS['.png'], struct.pack('>I', length) + kind + bytes(20)))
    with pytest.raises(BadSample, match='a damaged one'):
        read_photograph(path)


# --- from strangers


def scans(count):
    """A progressive JPEG with its last scan over and over."""
    data = cv2.imencode('.jpg', grey_image(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2] * count + b'\xff\xd9'


@pytest.mark.parametrize('extension', sorted(FORMATS))
def test_four_formats_are_read_whole_and_not_in_part(extension, tmp_path):
    path = written(tmp_path, FORMATS[extension])
    assert np.abs(read_photograph(path).astype(int) - grey_image()).max() < 5
    assert read_image(path, (640, 480), 1)[0].shape == (480, 640, 3)
    with pytest.raises(BadSample, match='not of the size 640x481'):
        read_image(path, (640, 481), 1)
    for length in (4, 20, 30, len(FORMATS[extension]) // 2, len(FORMATS[extension]) - 40):
        with pytest.raises(BadSample, match='not an image|truncated'):
            read_photograph(written(tmp_path, FORMATS[extension][:length]))


def test_size_is_bounded_by_the_header(tmp_path):
    """400 million pixels in 49 kB would take gigabytes; not one of them is decoded."""
    path = written(tmp_path, png_bomb(20000, 20000))
    begin = time.process_time()
    for read in (lambda: read_photograph(path), lambda: read_image(path, (20000, 20000), 0.01)):
        with pytest.raises(BadSample, match='20000x20000 pixels'):
            read()
    assert time.process_time() - begin < 0.5
    with pytest.raises(BadSample, match='has only [0-9]+ bytes for 8000x8000 pixels'):
        read_photograph(written(tmp_path, png_bomb(8000, 8000)))
    for width, height, let_in in ((MAX_SIDE, 2, True), (MAX_SIDE + 1, 2, False), (2, 40000, False), (0, 5, False)):
        try:
            pixels = read_photograph(written(tmp_path, png_bomb(width, height)))
            assert pixels.shape == (height, width, 3) and let_in
        except BadSample as error:
            assert not let_in, error


def test_scans_are_counted_and_what_never_ends_is_not_read(tmp_path):
    assert read_photograph(written(tmp_path, scans(20))).shape == (480, 640, 3)
    with pytest.raises(BadSample, match='scans'):
        read_photograph(written(tmp_path, scans(2000)))
    os.mkfifo(str(tmp_path / 'pipe.jpg'))
    os.symlink('/dev/zero', str(tmp_path / 'zero.jpg'))
    for name in ('pipe.jpg', 'zero.jpg'):
        with pytest.raises(BadSample, match='not a regular file'):
            read_image(str(tmp_path / name), (640, 480), 1)


@pytest.mark.parametrize('progressive', [0, 1])
def test_motion_photographs_have_a_film_behind_the_picture(progressive, tmp_path):
    photo = cv2.imencode('.jpg', grey_image(), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive,
                                                cv2.IMWRITE_JPEG_RST_INTERVAL, 7])[1].tobytes()
    film = b'ftypmp42' + random.Random(0).getrandbits(8 * 20000).to_bytes(20000, 'big').replace(b'\xff', b'\xfe')
    for behind in (film, b'\xff\xda' * 1000):  # which looks like scans
        assert read_image(written(tmp_path, photo + behind), (640, 480), 1)[0].shape == (480, 640, 3)
    with pytest.raises(BadSample, match='truncated'):  # its own end is missing
        read_image(written(tmp_path, photo[:-2] + film), (640, 480), 1)


def test_names_need_not_be_text_and_a_full_disk_is_told(tmp_path):
    name = os.path.join(os.fsencode(str(tmp_path)), b'M\xfcller.jpg')
    with open(name, 'wb') as file:
        file.write(jpeg(grey_image()))
    assert read_photograph(os.fsdecode(name)).shape == read_photograph(name).shape == (480, 640, 3)
    write_picture(str(tmp_path / 'a.png'), grey_image())
    assert read_photograph(str(tmp_path / 'a.png')).shape == (480, 640, 3)
    with pytest.raises(UserError, match='cannot write'):
        write_picture('/dev/full/a.png', grey_image())


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
        try:
            pixels = read_photograph(written(tmp_path, bytes(data)))
        except BadSample:
            results[False] += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
            results[True] += 1
    assert min(results.values()) > 20
