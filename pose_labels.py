"""What the network learns to predict: heatmaps, part affinity fields (PAFs) and the loss mask.

Parts, limbs and maps follow Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields"
(CVPR 2017, section 2) in CMU's COCO-18 order. Maps are written straight at the output stride. Everything here is a
pure function on numpy arrays.
"""
import cv2
import numpy as np

PART_NAMES = ('Nose', 'Neck', 'RShoulder', 'RElbow', 'RWrist', 'LShoulder', 'LElbow', 'LWrist', 'RHip', 'RKnee',
              'RAnkle', 'LHip', 'LKnee', 'LAnkle', 'REye', 'LEye', 'REar', 'LEar')
BACKGROUND = len(PART_NAMES)  # the heatmap's last channel
# Limb k is written to PAF channels 2k (x) and 2k + 1 (y); its vector points from the first part to the second.
LIMBS = ((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 2), (2, 3), (3, 4), (2, 16), (1, 5), (5, 6), (6, 7),
         (5, 17), (1, 0), (0, 14), (0, 15), (14, 16), (15, 17))
LIMB_STARTS, LIMB_ENDS = (np.array(parts) for parts in zip(*LIMBS))
# joints[:, FLIP_ORDER] swaps left and right parts, as a mirrored image needs it.
FLIP_ORDER = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)

GAUSSIAN_CUTOFF = 4.6052  # a heatmap is exactly 0 where its exponent passes this: below 1 %
SUBPIXEL_BITS = 4  # of OpenCV's fixed-point drawing coordinates
FAR_OUTSIDE = 1 << 20  # input pixels; beyond, OpenCV's coordinates would overflow


def render_heatmaps(joints, height, width, stride, sigma=7.0):
    """Confidence maps of all parts: the maximum over people of exp(-d^2 / (2 sigma^2)), and the background.

    Args:
        joints: (people, 18, 2) in input pixels, NaN where not labelled.
        height, width: of the maps, in cells.
        stride: input pixels per cell; cell g has its centre at stride * g + stride / 2 - 0.5.
        sigma: in input pixels.
    Returns:
        float32 (height, width, 19); channel 18 = 1 - the maximum of the others (Cao et al., equation 7).
    """
    joints = np.asarray(joints, np.float64).reshape(-1, BACKGROUND, 2)
    grid = np.array([width, height])
    radius = np.sqrt(2 * GAUSSIAN_CUTOFF) * sigma / stride  # in cells
    centre = (joints.reshape(-1, 2) - (stride / 2 - 0.5)) / stride
    with np.errstate(invalid='ignore'):
        near = np.flatnonzero(((centre > -1 - radius) & (centre < grid + radius)).all(axis=1))  # not NaN, not infinity
    centre, part = centre[near], near % BACKGROUND

    # A Gaussian is the product of one in x and one in y: both are taken over a window of cells around the joint.
    cell = np.ceil(centre - radius)[:, :, None] + np.arange(int(2 * radius) + 1)
    exponent = ((cell - centre[:, :, None]) * stride) ** 2 / (2 * sigma ** 2)
    exponent[(cell < 0) | (cell >= grid[:, None])] = np.inf
    gaussian = np.exp(-exponent)
    keep = exponent[:, 1, :, None] + exponent[:, 0, None, :] <= GAUSSIAN_CUTOFF
    value = (gaussian[:, 1, :, None] * gaussian[:, 0, None, :])[keep].astype(np.float32)
    row = part[:, None] * height + cell[:, 1]
    position = (row[:, :, None] * width + cell[:, 0, None, :])[keep].astype(np.int64)

    # Where people overlap, the plain assignment lets the last one win; the few larger values are then put back.
    parts = np.zeros((BACKGROUND, height, width), np.float32)
    flat = parts.reshape(-1)
    flat[position] = value
    lost = np.flatnonzero(flat[position] < value)
    np.maximum.at(flat, position[lost], value[lost])
    heatmaps = np.empty((height, width, BACKGROUND + 1), np.float32)
    heatmaps[..., :BACKGROUND] = np.moveaxis(parts, 0, -1)
    heatmaps[..., BACKGROUND] = 1 - parts.max(axis=0)
    return heatmaps


def render_pafs(joints, height, width, stride, limb_width=1.0):
    """Part affinity fields: on each limb its unit vector, averaged over the people whose limb covers the cell.

    With joints divided by the stride, cell g belongs to the limb a -> b when |cross(g - a, unit)| <= limb_width and g
    lies in the box from round(min(a, b) - limb_width) (inclusive) to round(max(a, b) + limb_width) (exclusive).
    Source: Cao et al., equations 8 and 9. Limbs of zero length are left out.

    Args:
        joints: (people, 18, 2) in input pixels, NaN where not labelled.
        height, width: of the maps, in cells.
        stride: input pixels per cell.
        limb_width: half the width of a limb, in cells.
    Returns:
        float32 (height, width, 38), limb k in channels 2k (x) and 2k + 1 (y).
    """
    joints = np.asarray(joints, np.float64).reshape(-1, BACKGROUND, 2) / stride
    start, end = joints[:, LIMB_STARTS].reshape(-1, 2), joints[:, LIMB_ENDS].reshape(-1, 2)
    with np.errstate(invalid='ignore', over='ignore'):
        vector = end - start
        length = np.sqrt((vector ** 2).sum(axis=1))
        low = np.maximum(np.round(np.minimum(start, end) - limb_width), 0)
        high = np.minimum(np.round(np.maximum(start, end) + limb_width), [width, height])
        covers = np.flatnonzero((length > 0) & (length < np.inf) & (low < high).all(axis=1))
    unit = vector[covers] / length[covers, None]
    limb = covers % len(LIMBS)

    # Walk along the axis in which the limb is longer: at each step only a few cells across it can belong to it. From
    # here on the last axis is not x and y, but along and across.
    geometry = np.stack([start[covers], unit, low[covers], high[covers], np.broadcast_to([1, width], unit.shape)], axis=1)
    steep = np.abs(unit[:, 1]) > np.abs(unit[:, 0])
    geometry[steep] = geometry[steep, :, ::-1]
    steps = (geometry[:, 3, 0] - geometry[:, 2, 0]).astype(np.int64)
    owner = np.repeat(np.arange(len(covers)), steps)
    (start_along, start_across, unit_along, unit_across, low_along, low_across, _, high_across, jump_along,
     jump_across) = geometry.reshape(-1, 10).T[:, owner]
    step = np.arange(len(owner)) - (np.cumsum(steps) - steps)[owner] + low_along
    done = step - start_along
    reach = limb_width / np.abs(unit_along) + 1e-6  # more than rounding can lose; the exact test follows
    first = np.clip(np.ceil(start_across + done * unit_across / unit_along - reach), low_across, high_across)
    candidates = int(2 * np.sqrt(2) * limb_width + 1e-5) + 1
    cell = first[:, None] + np.arange(candidates)
    cross = (done * unit_across)[:, None] - (cell - start_across[:, None]) * unit_along[:, None]
    keep = (np.abs(cross) <= limb_width) & (cell < high_across[:, None])

    # Cells of one limb are written at once; where limbs of several people meet, their mean is put in place.
    position = ((step * jump_along)[:, None] + cell * jump_across[:, None]) * len(LIMBS) + limb[owner, None]
    position = position[keep].astype(np.int64)
    value = unit.astype(np.float32).view(np.complex64)[:, 0][np.repeat(owner, keep.sum(axis=1))]
    pafs = np.zeros(height * width * len(LIMBS), np.complex64)
    pafs[position] = value
    people = np.bincount(position, minlength=len(pafs))[position]
    shared = np.flatnonzero(people > 1)
    pafs[position[shared]] = 0
    np.add.at(pafs, position[shared], value[shared] / people[shared])
    return pafs.view(np.float32).reshape(height, width, 2 * len(LIMBS))


def render_mask(polygons, bitmaps, matrix, height, width, stride):
    """Where the loss counts: 1, but 0 over people that nobody labelled, averaged down to the grid.

    Args:
        polygons: list of (points, 2) arrays in image pixels, regions to leave out of the loss.
        bitmaps: list of uint8 (image height, image width) arrays, 1 on pixels to leave out of the loss.
        matrix: 2x3 affine, image pixels -> input pixels.
        height, width: of the mask, in cells.
        stride: input pixels per cell.
    Returns:
        float32 (height, width, 1) in 0..1; 1 outside the image.
    """
    if not polygons and not bitmaps:
        return np.ones((height, width, 1), np.float32)
    ignored = np.zeros((height * stride, width * stride), np.uint8)
    for bitmap in bitmaps:
        warped = cv2.warpAffine(bitmap, matrix, (width * stride, height * stride), flags=cv2.INTER_NEAREST)
        np.maximum(ignored, warped, out=ignored)
    for polygon in polygons:
        points = np.clip(polygon @ matrix[:, :2].T + matrix[:, 2], -FAR_OUTSIDE, FAR_OUTSIDE)
        cv2.fillPoly(ignored, [np.round(points * (1 << SUBPIXEL_BITS)).astype(np.int32)], 1, shift=SUBPIXEL_BITS)
    covered = cv2.resize(ignored.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (1 - covered)[:, :, None]
