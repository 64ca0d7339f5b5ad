"""COCO folders for tests with images of our own making, and image files with more in them than pixels."""
import struct
import zlib

import cv2
import numpy as np

from annotation_files import image_entry, person, write_split

WIDTH, HEIGHT = 640, 480


def write_coco(folder, images, people, split='train2017'):
    """images: {file name: uint8 image, or bytes of a file}; people: [(file name, keypoints, bbox)]."""
    sizes = [image.shape[1::-1] if isinstance(image, np.ndarray) else (WIDTH, HEIGHT) for image in images.values()]
    entries = [image_entry(k, name, *size) for k, (name, size) in enumerate(zip(images, sizes), 1)]
    write_split(folder, [person(k, 1 + list(images).index(name), keypoints=keypoints, bbox=bbox, area=20000)
                         for k, (name, keypoints, bbox) in enumerate(people, 1)], entries, split=split)
    for name, image in images.items():
        (folder / split / name).write_bytes(jpeg(image) if isinstance(image, np.ndarray) else image)
    return folder


def jpeg(image, quality=95):
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def keypoints(x=250, y=100):
    return [value for k in range(17) for value in (x + 5 * k, y + 15 * k, 2)]


def grey_image(value=90):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def many_images(folder, good, bad):
    names = ['%03d.jpg' % i for i in range(good + bad)]
    content = jpeg(grey_image())
    images = {name: content if i < good else content[:-100] for i, name in enumerate(names)}
    return write_coco(folder, images, [(name, keypoints(), [230, 80, 150, 300]) for name in names])


def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def behind_header(png, chunk):
    return png[:33] + chunk + png[33:]


def extended_webp(webp, flags, chunks=b''):
    """A WebP in the extended form, with flags and more chunks."""
    header = b'VP8X' + struct.pack('<IB3x', 10, flags) + (WIDTH - 1).to_bytes(3, 'little') \
        + (HEIGHT - 1).to_bytes(3, 'little')
    body = b'WEBP' + header + webp[12:] + chunks
    return b'RIFF' + struct.pack('<I', len(body)) + body


def with_orientation(extension, data, orientation):
    """An image file with an EXIF header that asks viewers to turn it."""
    tiff = b'MM\0*\0\0\0\x08\0\x01' + struct.pack('>HHIHHI', 0x112, 3, 1, orientation, 0, 0)
    if extension == '.jpg':
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(tiff) + 8) + b'Exif\0\0' + tiff + data[2:]
    if extension == '.png':
        return behind_header(data, png_chunk(b'eXIf', tiff))
    return extended_webp(data, 0x08, b'EXIF' + struct.pack('<I', len(tiff)) + tiff)
