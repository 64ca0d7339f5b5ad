"""One image seen several times, at other sizes and mirrored, and the maps of all views averaged.

Cao et al. report their COCO results both for one size and for maps averaged over four sizes and mirror images. A View
says how the image becomes one input of the network; `average_maps` brings the maps of all views to the grid of the
largest one.
"""
import collections

import cv2
import numpy as np

import pose_augment
import pose_skeleton

# A size that every network here takes: some halve the image three times although their output stride is 4.
SIZE_MULTIPLE = 8
DEFAULT_SIZE = (368, 368)
# The longer edge of an input, in shorter ones: what a panorama may cost in memory and time.
MAX_ASPECT = 4
# Bilinear warping averages only 4 pixels: images that shrink are first averaged down, or fine patterns would alias.
MAX_WARP_SCALE = 1.25
KEYS = -0.5  # the cubic of Keys (1981), which is exact for parabolas

# matrix: 2x3 float64 affine, image pixels -> input pixels, with a negative determinant where it mirrors;
# width, height: of the input.
View = collections.namedtuple('View', 'matrix width height')


def fitted_size(image_width, image_height, input_size=None, short_edge=None, scale=1.0):
    """The network input's (width, height) for an image: input_size, or the image's shape with the given short edge.

    Both times `scale`. Sides are rounded up to multiples of SIZE_MULTIPLE; the image is letterboxed into them, never
    distorted. With a short edge the longer one has at most MAX_ASPECT times its length.
    """
    if short_edge is None:
        sides = input_size or DEFAULT_SIZE
    else:
        ratio = short_edge / min(image_width, image_height)
        sides = [min(side * ratio, MAX_ASPECT * short_edge) for side in (image_width, image_height)]
    return tuple(max(1, int(np.ceil(side * scale / SIZE_MULTIPLE - 1e-6))) * SIZE_MULTIPLE for side in sides)


def make_views(image_width, image_height, input_size=None, short_edge=None, scales=(1.0,), flip=False):
    """The Views of an image: one for each scale, and with `flip` a mirrored one after each."""
    views = []
    for scale in scales:
        width, height = fitted_size(image_width, image_height, input_size, short_edge, scale)
        matrix = pose_augment.fit_matrix(image_width, image_height, width, height)
        views.append(View(matrix, width, height))
        if flip:
            views.append(View(np.stack([[0, 0, width - 1] - matrix[0], matrix[1]]), width, height))
    return views


def is_mirrored(view):
    return np.linalg.det(view.matrix[:, :2]) < 0


def view_image(pixels, view, reduction=1):
    """The network's input for a view: uint8 (height, width, 3).

    Args:
        pixels: uint8 (H, W, 3), the image at 1 / reduction of its size.
    """
    factor = max(1, int(MAX_WARP_SCALE / (pose_augment.matrix_scale(view.matrix) * reduction)))
    if factor > 1:
        rows, columns = (-(-side // factor) for side in pixels.shape[:2])
        pixels = cv2.copyMakeBorder(pixels, 0, rows * factor - pixels.shape[0], 0,
                                    columns * factor - pixels.shape[1], cv2.BORDER_REPLICATE)
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    return pose_augment.warp_image(pixels, pose_augment.reduced_matrix(view.matrix, factor * reduction),
                                   view.width, view.height)


def average_maps(maps, views, skeleton=pose_skeleton.COCO):
    """The mean of the maps of several views of an image, on the grid of the largest view that is not mirrored.

    Maps of other sizes are interpolated with cubics, as smooth as the maps are. Only the sum is kept beside the maps.

    Args:
        maps: for each view float32 (h, w, channels), heatmaps, then PAFs, as the network gives them.
        views: their Views.
    Returns:
        (float32 (h, w, channels), stride, matrix): the maps, input pixels per cell, and the 2x3 affine from image
        pixels to the input pixels that they refer to.
    """
    reference = max((k for k in range(len(views)) if not is_mirrored(views[k])), key=lambda k: views[k].width)
    target, shape = views[reference], maps[reference].shape
    stride = target.width / shape[1]
    if len(views) == 1:
        return maps[0], stride, target.matrix
    heat = skeleton.heatmap_channels
    heat_order, paf_order, paf_sign = mirrored_channels(skeleton)
    total = np.zeros(shape, np.float32)
    weight = np.zeros(shape[2], np.float32)
    for single, view in zip(maps, views):
        if not is_mirrored(view):
            weight += 1
        else:
            single = np.concatenate([single[:, :, heat_order], single[:, :, heat + paf_order] * paf_sign], axis=2)
            weight += np.concatenate([np.ones(heat), np.abs(paf_sign)])
        # A cell g of the heatmaps stands for the input pixel stride * g + stride / 2 - 0.5, one of the PAFs for
        # stride * g: that is how the labels are made.
        for channels, shift in ((slice(0, heat), 0.5), (slice(heat, None), 0.0)):
            cells = [_cells_of_view(axis, shape[1 - axis], single.shape[1 - axis], target, view, shift)
                     for axis in (0, 1)]
            total[:, :, channels] += _resampled(single[:, :, channels], *cells)
    return total / weight, stride, target.matrix


def mirrored_channels(skeleton):
    """Which channels of a mirrored image's maps take the place of a channel, once the picture is turned back.

    Returns:
        heat_order (heatmap channels,) and paf_order (PAF channels,): indices; paf_sign (PAF channels,): the factor of
        each PAF channel, -1 for x, and 0 for a limb without a counterpart.
    """
    heat_order = np.array(list(skeleton.flip_order) + [skeleton.background])
    paf_order, paf_sign = [], []
    for a, b in skeleton.limbs:
        mirrored = skeleton.flip_order[a], skeleton.flip_order[b]
        for limb, sign in ((mirrored, 1), (mirrored[::-1], -1)):
            if limb in skeleton.limbs:
                first = 2 * skeleton.limbs.index(limb)
                paf_order += [first, first + 1]
                paf_sign += [-sign, sign]
                break
        else:
            paf_order += [0, 0]
            paf_sign += [0, 0]
    return heat_order, np.array(paf_order), np.array(paf_sign, np.float32)


def _cells_of_view(axis, target_cells, view_cells, target, view, shift):
    """Where the centres of the target's cells lie among the view's, in one axis: float64 (target_cells,).

    For matrices without rotation, as fit_matrix gives.
    """
    size = (target.width, target.height)[axis], (view.width, view.height)[axis]
    strides = size[0] / target_cells, size[1] / view_cells
    offsets = [shift * (stride - 1) for stride in strides]
    pixel = strides[0] * np.arange(target_cells) + offsets[0]
    image = (pixel - target.matrix[axis, 2]) / target.matrix[axis, axis]
    return (view.matrix[axis, axis] * image + view.matrix[axis, 2] - offsets[1]) / strides[1]


def _resampled(maps, columns, rows):
    """maps (h, w, channels) at the given columns and rows, in cells: float32 (len(rows), len(columns), channels)."""
    maps = np.asarray(maps, np.float32)
    for axis, positions in ((0, rows), (1, columns)):
        maps = interpolated(maps, positions, axis)
    return maps


def interpolated(maps, positions, axis):
    """Cubic interpolation along one axis; outside, the border's value goes on.

    Four weighted sums and no matrix product: several decoding processes would fight over a BLAS library's threads.
    """
    count = maps.shape[axis]
    nearest = np.round(positions)
    if np.abs(positions - nearest).max() < 1e-6:  # the same grid, or its mirror image
        return maps.take(np.clip(nearest, 0, count - 1).astype(int), axis=axis)
    first = np.floor(positions).astype(int) - 1
    total = 0
    for cell in (first, first + 1, first + 2, first + 3):
        distance = np.abs(positions - cell)
        near = ((KEYS + 2) * distance - (KEYS + 3)) * distance ** 2 + 1
        far = KEYS * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0)).astype(np.float32)
        total = total + maps.take(np.clip(cell, 0, count - 1), axis=axis) * weight.reshape((-1,) + (1,) * (2 - axis))
    return total
