"""Augmentation the CMU way: scale, rotate, crop and flip, composed into one affine and applied in one warp.

One function draws the random numbers, another turns them into a 2x3 matrix, and pure functions apply the matrix to the
image and to the joints. Pixel coordinates refer to pixel centres: the first pixel of a row is at x = 0.
"""
import collections
import math

import cv2
import numpy as np

PERSON_HEIGHT = 0.6  # of the input's height, before the random scale
BORDER_GREY = 128
NEGATIVE_SIDES = 0.25, 1.0  # of an image without people: what a crop is made around, as a share of its shorter side

# What is drawn for each sample: scale, angle (degrees) and offset (input pixels, in x and in y) from (lowest, highest).
Ranges = collections.namedtuple('Ranges', 'scale angle offset flip_probability')
CMU_RANGES = Ranges(scale=(0.5, 1.1), angle=(-40.0, 40.0), offset=(-40.0, 40.0), flip_probability=0.5)

# scale: factor on PERSON_HEIGHT; angle: degrees, clockwise on the screen; offset_x, offset_y: of the crop's centre from
# the person's, in input pixels; flip: whether the crop is mirrored.
Augmentation = collections.namedtuple('Augmentation', 'scale angle offset_x offset_y flip')


def draw_augmentation(rng, ranges=CMU_RANGES):
    """Draw an Augmentation from a numpy RandomState, in this order: scale, angle, offset x, offset y, flip."""
    return Augmentation(rng.uniform(*ranges.scale), rng.uniform(*ranges.angle), rng.uniform(*ranges.offset),
                        rng.uniform(*ranges.offset), bool(rng.uniform() < ranges.flip_probability))


def draw_box(rng, width, height):
    """A square x, y, width, height in an image without people, for augmentation_matrix in place of a person's."""
    side = rng.uniform(*NEGATIVE_SIDES) * min(width, height)
    return rng.uniform(0, width - side), rng.uniform(0, height - side), side, side


def augmentation_matrix(augmentation, bbox, input_width, input_height):
    """The 2x3 float64 affine from image pixels to input pixels.

    Scales the person to PERSON_HEIGHT * augmentation.scale of the input's height, rotates about the centre of its
    bounding box (bbox: x, y, width, height in image pixels, the height positive), moves the crop and mirrors it.
    """
    x, y, width, height = map(float, bbox)
    scale = PERSON_HEIGHT * input_height / height * augmentation.scale
    angle = math.radians(augmentation.angle)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    centre_x, centre_y = x + width / 2, y + height / 2
    matrix = np.array([
        [cos, -sin, (input_width - 1) / 2 - augmentation.offset_x - (cos * centre_x - sin * centre_y)],
        [sin, cos, (input_height - 1) / 2 - augmentation.offset_y - (sin * centre_x + cos * centre_y)]])
    if augmentation.flip:
        matrix[0] = [0, 0, input_width - 1] - matrix[0]
    return matrix


def fit_matrix(image_width, image_height, input_width, input_height):
    """The 2x3 float64 affine that fits the whole image into the input, centred, with one scale for both axes."""
    scale = min(input_width / image_width, input_height / image_height)
    return np.array([[scale, 0, (input_width - 1 - scale * (image_width - 1)) / 2],
                     [0, scale, (input_height - 1 - scale * (image_height - 1)) / 2]])


def matrix_scale(matrix):
    """How many input pixels one image pixel becomes (the square root of the affine's area factor)."""
    return math.sqrt(abs(_determinant(matrix)))


def reduced_matrix(matrix, reduction):
    """The affine for an image that was decoded at 1 / reduction of its size: its pixels average reduction^2 pixels."""
    (a, b, x), (c, d, y) = matrix.tolist()
    centre = (reduction - 1) / 2
    return np.array([[a * reduction, b * reduction, (a + b) * centre + x],
                     [c * reduction, d * reduction, (c + d) * centre + y]])


def warp_image(image, matrix, input_width, input_height):
    """Warp a uint8 (H, W, 3) image to uint8 (input_height, input_width, 3), bilinear, grey outside the image."""
    return cv2.warpAffine(image, matrix, (input_width, input_height), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=(BORDER_GREY,) * 3)


def transform_joints(joints, matrix, skeleton):
    """Send joints (people, parts, 2) through the affine, in float; NaN stays NaN.

    A matrix that mirrors (negative determinant) also swaps the left and right parts, as seen from the new image.
    """
    moved = joints @ matrix[:, :2].T + matrix[:, 2]
    return moved[:, list(skeleton.flip_order)] if is_mirrored(matrix) else moved


def is_mirrored(matrix):
    """Whether an affine mirrors the image."""
    return _determinant(matrix) < 0


def _determinant(matrix):
    (a, b, _), (c, d, _) = matrix.tolist()
    return a * d - b * c
