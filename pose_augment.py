"""Augmentation the CMU way: scale, rotate, crop and flip, composed into one affine and applied in one warp.

One function draws the random numbers, another turns them into a 2x3 matrix, and pure functions apply the matrix to the
image and to the joints. Pixel coordinates refer to pixel centres: the first pixel of a row is at x = 0. What changes
the look of the crop (colour, blur, noise, JPEG artefacts, patches) is drawn and applied in the same way, after that.
"""
import collections
import math

import cv2
import numpy as np

PERSON_HEIGHT = 0.6  # of the input's height, before the random scale
BORDER_GREY = 128
MAX_PATCHES = 8
NEGATIVE_SIDES = 0.25, 1.0  # of an image without people: what a crop is made around, as a share of its shorter side

# What is drawn for each sample: scale, angle (degrees) and offset (input pixels, in x and in y) from (lowest, highest).
# log_scale: the logarithm of the scale is uniform, not the scale.  colour: how far brightness, contrast, saturation and
# hue change, from 0 to 1.  grey, blur, noise, jpeg: probabilities of each.  patches: the most that cover a part of it.
# whole_image: samples are images, not people; the scale is a factor on the size that fits into the input, the offset a
# share of what is left over.  stretch: how far the scales of x and y differ from that, each by itself.
Ranges = collections.namedtuple(
    'Ranges', 'scale angle offset flip_probability log_scale colour grey blur noise jpeg patches whole_image stretch',
    defaults=(False, 0.0, 0.0, 0.0, 0.0, 0.0, 0, False, 0.0))
CMU_RANGES = Ranges(scale=(0.5, 1.1), angle=(-40.0, 40.0), offset=(-40.0, 40.0), flip_probability=0.5)
PRESETS = {
    'cmu': CMU_RANGES,  # of 2017
    'cmu2019': CMU_RANGES._replace(scale=(1 / 3, 1.1), angle=(-45.0, 45.0), patches=2),  # of openpose_train
    'original': CMU_RANGES._replace(scale=(0.95, 1.6), angle=(-15.0, 15.0), offset=(-1.0, 1.0), whole_image=True,
                                    stretch=0.2),  # of the original TensorFlow trainer
    'strong': CMU_RANGES._replace(scale=(0.25, 2.0), log_scale=True, colour=0.5, grey=0.05, blur=0.1, noise=0.1,
                                  jpeg=0.1, patches=2)}

# scale: factor on PERSON_HEIGHT; angle: degrees, clockwise on the screen; offset_x, offset_y: of the crop's centre from
# the person's, in input pixels; flip: whether the crop is mirrored; stretch_x, stretch_y: factors on the scale.
Augmentation = collections.namedtuple('Augmentation', 'scale angle offset_x offset_y flip stretch_x stretch_y',
                                      defaults=(1.0, 1.0))


def draw_augmentation(rng, ranges=CMU_RANGES):
    """Draw an Augmentation from a numpy RandomState, in this order: scale, angle, offset x, offset y, flip, and
    stretch in x and y where there is any."""
    scale = rng.uniform(*(np.log(ranges.scale) if ranges.log_scale else ranges.scale))
    return Augmentation(math.exp(scale) if ranges.log_scale else scale, rng.uniform(*ranges.angle),
                        rng.uniform(*ranges.offset), rng.uniform(*ranges.offset),
                        bool(rng.uniform() < ranges.flip_probability),
                        *(rng.uniform(1 - ranges.stretch, 1 + ranges.stretch, 2) if ranges.stretch else ()))


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


def image_matrix(augmentation, image_width, image_height, input_width, input_height):
    """The same for a sample that is a whole image: stretched, rotated about its centre, and cropped anywhere.

    augmentation: scale is a factor on the size that fits into the input, offset_x and offset_y shares, from -1 to 1, of
        what the image is larger than the input.
    """
    stretch = np.array([augmentation.stretch_x, augmentation.stretch_y])
    size, target = np.array([image_width, image_height]) * stretch, np.array([input_width, input_height])
    scale = min(target / size) * augmentation.scale
    angle = math.radians(augmentation.angle)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turn * stretch
    room = np.maximum(scale * size - target, 0) / 2
    centre = (target - 1) / 2 - room * [augmentation.offset_x, augmentation.offset_y]
    matrix = np.column_stack([linear, centre - linear @ [(image_width - 1) / 2, (image_height - 1) / 2]])
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


# How the look of a crop changes. colour: 3x4, BGR to BGR with an offset, or None.  blur: sigma in pixels, or 0.
# noise: int16 (NOISE_TILE, NOISE_TILE, 3) to add, repeated over the crop, or None.  jpeg: a quality, or 0.
# patches: [(x, y, width, height as shares of the crop's sides, colour)].
Look = collections.namedtuple('Look', 'colour blur noise jpeg patches')
LUMINANCE_BGR = 0.114, 0.587, 0.299
NOISE_TILE = 64


def draw_look(rng, ranges):
    """Draw a Look from a numpy RandomState; None, and nothing is drawn, where the ranges leave the look alone."""
    if not any((ranges.colour, ranges.grey, ranges.blur, ranges.noise, ranges.jpeg, ranges.patches)):
        return None
    colour = draw_colour(rng, ranges.colour) if ranges.colour else None
    if rng.uniform() < ranges.grey:
        colour = np.tile(LUMINANCE_BGR, (3, 1)) @ (np.eye(3, 4) if colour is None else colour)
    blur = rng.uniform(0.5, 2.0) if rng.uniform() < ranges.blur else 0
    noise = None
    if rng.uniform() < ranges.noise:
        noise = rng.normal(0, rng.uniform(2, 12), (NOISE_TILE, NOISE_TILE, 3)).astype(np.int16)
    jpeg = rng.randint(10, 60) if rng.uniform() < ranges.jpeg else 0
    patches = [(*rng.uniform(0, 0.9, 2), *rng.uniform(0.05, 0.25, 2), rng.randint(0, 256, 3).tolist())
               for _ in range(rng.randint(ranges.patches + 1))]
    return Look(colour, blur, noise, jpeg, patches)


def draw_colour(rng, strength):
    """A random 3x4 matrix on BGR pixels 0..255: brightness, contrast, saturation and hue in one."""
    brightness, contrast = rng.uniform(-64, 64) * strength, math.exp(rng.uniform(-0.5, 0.5) * strength)
    saturation, hue = 1 + rng.uniform(-1, 1) * strength, math.radians(rng.uniform(-36, 36)) * strength
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMINANCE_BGR, (3, 1))
    turn, _ = cv2.Rodrigues(np.full(3, hue / math.sqrt(3)))  # about the axis of greys
    return np.column_stack([contrast * turn @ saturate, np.full(3, brightness + 128 * (1 - contrast))])


def change_look(image, look):
    """A uint8 (H, W, 3) BGR image with a Look, as a new one; with None, the image itself."""
    if look is None:
        return image
    height, width, _ = image.shape
    if look.patches:
        image = image.copy()
    for x, y, wide, high, colour in look.patches:
        image[int(y * height):int((y + high) * height) + 1, int(x * width):int((x + wide) * width) + 1] = colour
    if look.colour is not None:
        image = cv2.transform(image, look.colour)
    if look.blur:
        image = cv2.GaussianBlur(image, (0, 0), look.blur)
    if look.noise is not None:
        repeats = -(-height // NOISE_TILE), -(-width // NOISE_TILE), 1
        image = np.clip(image + np.tile(look.noise, repeats)[:height, :width], 0, 255).astype(np.uint8)
    if look.jpeg:
        _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, look.jpeg])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image
