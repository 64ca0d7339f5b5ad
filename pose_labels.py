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
    heatmaps = np.zeros((height, width, BACKGROUND + 1), np.float32)
    joints = np.asarray(joints, np.float64).reshape(-1, BACKGROUND, 2)
    radius = np.sqrt(2 * GAUSSIAN_CUTOFF) * sigma / stride  # in cells
    centre = (joints.reshape(-1, 2) - (stride / 2 - 0.5)) / stride
    grid = np.array([width, height])
    with np.errstate(invalid='ignore'):
        near = ((centre > -1 - radius) & (centre < grid + radius)).all(axis=1)  # False for NaN and infinity
    centre = centre[near]
    part = np.nonzero(near)[0] % BACKGROUND

    # A Gaussian is the product of one in x and one in y: both are taken over a window of cells around the joint.
    cell = np.ceil(centre - radius).astype(np.int64)[:, :, None] + np.arange(int(2 * radius) + 1)
    exponent = ((cell - centre[:, :, None]) * stride) ** 2 / (2 * sigma ** 2)
    inside = (cell >= 0) & (cell < grid[:, None])
    keep = ((exponent[:, 1, :, None] + exponent[:, 0, None, :] <= GAUSSIAN_CUTOFF)
            & inside[:, 1, :, None] & inside[:, 0, None, :])
    gaussian = np.exp(-exponent)
    value = (gaussian[:, 1, :, None] * gaussian[:, 0, None, :])[keep].astype(np.float32)
    position = ((cell[:, 1, :, None] * width + cell[:, 0, None, :]) * (BACKGROUND + 1) + part[:, None, None])[keep]

    # Where people overlap, the plain assignment lets the last one win; the few larger values are then put back.
    flat = heatmaps.reshape(-1)
    flat[position] = value
    lost = flat[position] < value
    np.maximum.at(flat, position[lost], value[lost])
    heatmaps[..., BACKGROUND] = 1 - heatmaps[..., :BACKGROUND].max(axis=-1)
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
    pafs = np.zeros((height * width * len(LIMBS), 2), np.float32)
    joints = np.asarray(joints, np.float64).reshape(-1, BACKGROUND, 2) / stride
    start, end = joints[:, LIMB_STARTS].reshape(-1, 2), joints[:, LIMB_ENDS].reshape(-1, 2)
    vector = end - start
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        length = np.sqrt((vector ** 2).sum(axis=1))
        usable = np.isfinite(length) & (length > 0)
    start, end, unit = start[usable], end[usable], vector[usable] / length[usable, None]
    limb = np.nonzero(usable)[0] % len(LIMBS)
    grid = np.array([width, height])
    low = np.clip(np.round(np.minimum(start, end) - limb_width), 0, grid).astype(np.int64)
    high = np.clip(np.round(np.maximum(start, end) + limb_width), 0, grid).astype(np.int64)

    # Walk along the axis in which the limb is longer: at each step only a few cells across it can belong to it.
    each = np.arange(len(limb))
    along = (np.abs(unit[:, 1]) > np.abs(unit[:, 0])).astype(np.int64)  # 0: steps in x, 1: steps in y
    steps = high[each, along] - low[each, along]
    steps[(high <= low).any(axis=1)] = 0
    owner = np.repeat(each, steps)
    first_step = np.cumsum(steps) - steps
    along, across = along[owner], 1 - along[owner]
    step = np.arange(len(owner)) - first_step[owner] + low[owner, along]
    unit_along, unit_across = unit[owner, along], unit[owner, across]
    middle = start[owner, across] + (step - start[owner, along]) * unit_across / unit_along
    reach = limb_width / np.abs(unit_along)
    candidates = int(2 * limb_width * np.sqrt(2)) + 2
    first_cell = np.clip(np.floor(middle - reach), -candidates, grid.max()).astype(np.int64)
    cell = first_cell[:, None] + np.arange(candidates + 1)
    x = np.where(along[:, None] == 0, step[:, None], cell)
    y = np.where(along[:, None] == 0, cell, step[:, None])
    unit = unit[owner]
    cross = (x - start[owner, 0, None]) * unit[:, 1, None] - (y - start[owner, 1, None]) * unit[:, 0, None]
    keep = ((np.abs(cross) <= limb_width)
            & (cell >= low[owner, across][:, None]) & (cell < high[owner, across][:, None]))
    position = ((y * width + x) * len(LIMBS) + limb[owner][:, None])[keep]
    value = np.broadcast_to(unit[:, None, :], keep.shape + (2,))[keep]

    # Cells of one limb are written at once; where limbs of several people meet, their mean is put in place.
    pafs[position] = value
    people = np.bincount(position, minlength=len(pafs))[position]
    shared = people > 1
    pafs[position[shared]] = 0
    np.add.at(pafs, position[shared], value[shared] / people[shared, None])
    return pafs.reshape(height, width, 2 * len(LIMBS))


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
    fixed_point_bits = 4
    for polygon in polygons:
        points = polygon @ matrix[:, :2].T + matrix[:, 2]
        cv2.fillPoly(ignored, [np.round(points * (1 << fixed_point_bits)).astype(np.int32)], 1, shift=fixed_point_bits)
    covered = cv2.resize(ignored.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (1 - covered)[:, :, None]
