"""What the network learns to predict: heatmaps, part affinity fields (PAFs) and the loss mask.

Maps follow Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (CVPR 2017, section 2);
which parts and limbs there are, the skeleton says (annotations/skeleton.py). Maps are written straight at the output
stride. Everything here is a pure function on numpy arrays.
"""
import cv2
import numpy as np

from annotations.skeleton import COCO_SKELETON

LIMB_HALF_WIDTH = 8.0  # input pixels, at any stride, as in Cao et al.'s code
GAUSSIAN_CUTOFF = 4.6052  # a heatmap is exactly 0 where its exponent passes this: below 1 %
SUBPIXEL_BITS = 4  # of OpenCV's fixed-point drawing coordinates
FAR_OUTSIDE = 1 << 20  # input pixels; beyond, OpenCV's coordinates would overflow


def render_heatmaps(joints, height, width, stride, sigma=7.0, skeleton=COCO_SKELETON):
    """Confidence maps of all parts: the maximum over people of exp(-d^2 / (2 sigma^2)), and the background.

    Args:
        joints: (people, parts, 2) in input pixels, NaN where not labelled.  sigma: in input pixels.
        height, width: of the maps, in cells.
        stride: input pixels per cell; cell g has its centre at stride * g + stride / 2 - 0.5.
    Returns float32 (height, width, parts + 1); the last channel = 1 - the maximum of the others (equation 7).
    """
    parts, channels = len(skeleton.parts), skeleton.heatmap_channels
    joints = np.asarray(joints, np.float64).reshape(-1, 2)
    grid = np.array([width, height])
    radius = (2 * GAUSSIAN_CUTOFF) ** 0.5 * sigma / stride  # in cells
    centre = (joints - (stride / 2 - 0.5)) / stride
    with np.errstate(invalid='ignore'):
        inside = np.abs(centre - (grid - 1) / 2) < grid / 2 + radius  # False for NaN and infinity
        near = np.flatnonzero(inside.all(axis=1))
    centre, part = centre[near], near % parts

    # A Gaussian is the product of one in x and one in y: both are taken over a window of cells around the joint.
    cell = np.ceil(centre - radius)[:, :, None] + np.arange(int(2 * radius) + 1)
    exponent = ((cell - centre[:, :, None]) * stride) ** 2 / (2 * sigma ** 2)
    exponent[(cell < 0) | (cell >= grid[:, None])] = np.inf
    gaussian = np.exp(-exponent)
    keep = exponent[:, 1, :, None] + exponent[:, 0, None, :] <= GAUSSIAN_CUTOFF
    value = (gaussian[:, 1, :, None] * gaussian[:, 0, None, :])[keep].astype(np.float32)
    cell *= channels
    position = (cell[:, 1, :, None] * width + cell[:, 0, None, :] + part[:, None, None])[keep].astype(np.int64)

    heatmaps = np.zeros((height, width, channels), np.float32)
    _put_largest(heatmaps.reshape(-1), position, value)
    largest = np.zeros(height * width, np.float32)
    _put_largest(largest, position // channels, value)
    heatmaps[..., skeleton.background] = 1 - largest.reshape(height, width)
    return heatmaps


def _put_largest(flat, position, value):
    """flat[position] = value, where the largest of several values for one position stays."""
    while len(position):
        flat[position] = value  # of several the last one stays; those that are larger have another go
        lost = np.flatnonzero(flat[position] < value)
        position, value = position[lost], value[lost]


def render_pafs(joints, height, width, stride, skeleton=COCO_SKELETON):
    """Part affinity fields: on each limb its unit vector, averaged over the people whose limb covers the cell.

    With joints divided by the stride and w = LIMB_HALF_WIDTH / stride, cell g belongs to the limb a -> b when
    |cross(g - a, unit)| <= w and g lies in the box from round(min(a, b) - w) (inclusive) to round(max(a, b) + w)
    (exclusive). Source: Cao et al., equations 8 and 9. Limbs of zero length are left out.

    Args:
        joints: (people, parts, 2) in input pixels, NaN where not labelled.
        height, width: of the maps, in cells.  stride: input pixels per cell.
    Returns float32 (height, width, 2 * limbs), limb k in channels 2k (x) and 2k + 1 (y).
    """
    joints = np.asarray(joints, np.float64).reshape(-1, len(skeleton.parts), 2) / stride
    limbs, half_width = len(skeleton.limbs), LIMB_HALF_WIDTH / stride
    limb, segments = _limb_segments(joints, skeleton.limbs, height, width, half_width)
    owner, x, y = _cells_of_segments(segments, half_width)
    unit = segments[:, 1].astype(np.float32).view(np.complex64)[:, 0]  # x and y in one number
    pafs = np.zeros(height * width * limbs, np.complex64)
    _put_mean(pafs, (y * width + x) * limbs + limb[owner], unit[owner])
    return pafs.view(np.float32).reshape(height, width, 2 * limbs)


def _limb_segments(joints, limbs, height, width, half_width):
    """The limbs of all people, joints (people, parts, 2) in cells, that may cover a cell of the grid.

    Returns:
        limb: int64 (segments,), the index in limbs.
        segments: float64 (segments, 4, 2), x and y of the start, of the unit vector, and of the first and the last
            (exclusive) corner of the box of cells, which lies within the grid and is not empty.
    """
    start, end = (joints[:, list(parts)].reshape(-1, 2) for parts in zip(*limbs))
    with np.errstate(invalid='ignore', over='ignore'):
        vector = end - start
        length = np.sqrt((vector ** 2).sum(axis=1))
        low = np.maximum(np.round(np.minimum(start, end) - half_width), 0)
        high = np.minimum(np.round(np.maximum(start, end) + half_width), [width, height])
        covers = np.flatnonzero((length > 0) & (length < np.inf) & (low < high).all(axis=1))
    segments = np.stack([start, vector, low, high], axis=1)[covers]
    segments[:, 1] /= length[covers, None]
    return covers % len(limbs), segments


def _cells_of_segments(segments, half_width):
    """The cells within half_width of each segment and in its box: owner, x, y, int64 (cells,) each, the index of the
    segment and its cell; a cell may belong to several segments."""
    # Walk along the axis in which the segment is longer: at each step only a few cells across it can belong to it. From
    # here on the last axis is not x and y, but along and across.
    steep = np.abs(segments[:, 1, 1]) > np.abs(segments[:, 1, 0])
    turned = np.where(steep[:, None, None], segments[:, :, ::-1], segments)
    steps = (turned[:, 3, 0] - turned[:, 2, 0]).astype(np.int64)
    owner = np.repeat(np.arange(len(segments)), steps)
    start_along, start_across, unit_along, unit_across, low_along, low_across, _, high_across = (
        turned.reshape(-1, 8).T[:, owner])
    along = np.arange(len(owner)) - (np.cumsum(steps) - steps)[owner] + low_along

    done = along - start_along
    reach = half_width / np.abs(unit_along) + 1e-6  # more than rounding can lose; the exact test follows
    first = np.ceil(start_across + done * unit_across / unit_along - reach)
    first = np.minimum(np.maximum(first, low_across), high_across)
    candidates = int(2 * 2 ** 0.5 * half_width + 1e-5) + 1
    across = first[:, None] + np.arange(candidates)
    cross = (done * unit_across)[:, None] - (across - start_across[:, None]) * unit_along[:, None]
    keep = (np.abs(cross) <= half_width) & (across < high_across[:, None])

    step = np.repeat(np.arange(len(owner)), candidates)[keep.ravel()]
    owner, along, across = owner[step], along[step].astype(np.int64), across[keep].astype(np.int64)
    return owner, np.where(steep[owner], across, along), np.where(steep[owner], along, across)


def _put_mean(flat, position, value):
    """flat[position] = value, where several values for one position give their mean; no value is 0."""
    flat[position] = value
    lost = np.flatnonzero(flat[position] != value)
    if len(lost):
        flat[position[lost]] = 0  # marks the positions that need a mean
        shared = np.flatnonzero(flat[position] == 0)
        cells, number = np.unique(position[shared], return_inverse=True)
        total = np.bincount(number, value[shared].real) + 1j * np.bincount(number, value[shared].imag)
        flat[cells] = total / np.bincount(number)


def render_mask(polygons, bitmaps, labelled, matrix, height, width, stride):
    """Where the loss counts: 1, but 0 over people that nobody labelled, averaged down to the grid.

    Args:
        polygons, bitmaps: to leave out: lists of (points, 2) arrays in image pixels, of uint8 (image height, width).
        labelled: list of polygons whose inside counts all the same.
        matrix: 2x3 affine, image pixels -> input pixels.
        height, width: of the mask, in cells.  stride: input pixels per cell.
    Returns float32 (height, width, 1) in 0..1; 1 outside the image.
    """
    if not polygons and not bitmaps:
        return np.ones((height, width, 1), np.float32)
    # Painted with the number of pixels in a cell, so that the mean over a cell is a whole number.
    full = stride * stride
    ignored = np.zeros((height * stride, width * stride), np.uint8 if full < 256 else np.uint16)
    for bitmap in bitmaps:
        warped = cv2.warpAffine(bitmap, matrix, (width * stride, height * stride), flags=cv2.INTER_NEAREST)
        ignored[warped > 0] = full
    for value, shapes in ((full, polygons), (0, labelled)):
        for polygon in shapes:
            points = np.minimum(np.maximum(polygon @ matrix[:, :2].T + matrix[:, 2], -FAR_OUTSIDE), FAR_OUTSIDE)
            points = np.round(points * (1 << SUBPIXEL_BITS)).astype(np.int32)
            cv2.fillPoly(ignored, [points], value, shift=SUBPIXEL_BITS)
    while stride % 2 == 0:  # OpenCV halves with SIMD; all means stay whole numbers
        stride //= 2
        ignored = cv2.resize(ignored, (width * stride, height * stride), interpolation=cv2.INTER_AREA)
    covered = cv2.resize(ignored, (width, height), interpolation=cv2.INTER_AREA)
    return 1 - covered[:, :, None] * np.float32(1 / full)
