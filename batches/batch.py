"""A batch on its way: the one form that it has from the process that makes its samples to the tower that trains on it.

Label maps are almost everywhere empty: 0, and 1 in the heatmap's background. Only the items that differ from an empty
map travel, through shared memory, the network, TensorFlow's queue and the bus to a GPU: a 32-bit position and a 16-bit
fixed-point value in -1..1 (steps of 3e-5, finer than float16 above 0.06; no bit pattern is NaN or infinite). The mask
travels as a whole number of pixels. The maps are written out where they are used (training/towers.py).
"""
import collections

import numpy as np

from pose_errors import UserError
from pose_files import usable_memory

FIXED_POINT = 32767
MAX_ITEMS = 1 << 31  # of a batch's map: positions are int32
# How maps are cut into items, a position each: a heatmap's single values, and the vectors (x, y) of a PAF.
HEATMAP_ITEM, PAF_ITEM = np.uint32, np.uint64

# image uint8 (B, H, W, 3), mask uint8 (B, h, w, 1): pixels of a cell that count, of mask_steps;
# labelled uint8 (B, parts): 1 for the parts that the sample's data set labels;
# heatmap_positions int32 (n,), rising, in the flat (B, h, w, parts + 1); heatmap_values uint16 (n,);
# paf_positions int32 (m,), rising, in the flat (B, h, w, limbs); paf_values uint16 (m, 2).
# A value v is stored as FIXED_POINT * (1 + v), rounded.
Batch = collections.namedtuple('Batch', 'image mask labelled heatmap_positions heatmap_values paf_positions paf_values')


def batch_layout(batchsize, input_width, input_height, stride, skeleton):
    """[(name, dtype, shape)] of a Batch's arrays; the first sides of positions and values are the largest possible."""
    cells = (batchsize, input_height // stride, input_width // stride)
    values, vectors = product(cells) * skeleton.heatmap_channels, product(cells) * len(skeleton.limbs)
    return list(zip(Batch._fields, (np.uint8, np.uint8, np.uint8, np.int32, np.uint16, np.int32, np.uint16),
                    ((batchsize, input_height, input_width, 3), cells + (1,), (batchsize, len(skeleton.parts)),
                     (values,), (values,), (vectors,), (vectors, 2))))


def check_memory(layout, batches):
    """Raise UserError when so many batches of a layout are more than this machine's memory holds."""
    batchsize, height, width, _ = layout[0][2]
    size = batches * sum(product(shape) * np.dtype(dtype).itemsize for _, dtype, shape in layout)
    memory = usable_memory()
    if size > memory:
        raise UserError('%d batch(es) of %d samples of %dx%d take %d MB, there are %d; take a smaller '
                        '--batchsize or input, or fewer --workers'
                        % (batches, batchsize, width, height, size >> 20, memory >> 20))


def product(shape):
    """How many items an array of this shape has, without overflow."""
    return np.prod(np.array(shape, object))


def mask_steps(image, mask):
    """The number that a mask of 1 is stored as, for arrays or tensors of images and masks: the pixels of a cell, so
    that nothing is rounded, unless that is more than 8 bits hold."""
    stride = int(image.shape[1]) // int(mask.shape[1])
    return min(stride * stride, 255)


def encode_batch(image, heatmap, paf, mask, labelled=None):
    """Dense arrays to a Batch. Raises ValueError for map values that are not in -1..1.

    image: uint8 (B, H, W, 3); heatmap: float32 (B, h, w, parts + 1) and paf: (B, h, w, 2 limbs), in -1..1; mask:
        float32 (B, h, w, 1), in 0..1; labelled: bool (B, parts), None where all parts are.
    """
    labelled = np.ones((len(image), heatmap.shape[3] - 1)) if labelled is None else labelled
    return Batch(image, (mask * mask_steps(image, mask) + 0.5).astype(np.uint8), np.asarray(labelled, np.uint8),
                 *encode_maps(heatmap, HEATMAP_ITEM), *encode_maps(paf, PAF_ITEM))


def encode_maps(maps, item):
    """Where maps float32 (B, h, w, channels) differ from empty ones, and their values there.

    item: HEATMAP_ITEM or PAF_ITEM.  Returns (positions int32 (n,), rising; values uint16 (n,) or (n, 2)).
    """
    items = np.ascontiguousarray(maps, np.float32).reshape(len(maps), -1).view(item)
    positions = np.flatnonzero(items != empty_map(maps.shape[1:], item).reshape(-1).view(item))
    values = items.reshape(-1).take(positions).view(np.float32)
    if len(values) and not np.abs(values).max() <= 1.00001:
        raise ValueError('label maps hold values outside -1..1')
    # Adding half a step rounds to the nearest, as the cast cuts off.
    values = (values * FIXED_POINT + (FIXED_POINT + 0.5)).astype(np.uint16)
    return positions.astype(np.int32), values if item is HEATMAP_ITEM else values.reshape(-1, 2)


def empty_map(shape, item):
    """The map float32 (h, w, channels) of a sample without people: all 0, but the heatmap's background 1."""
    empty = np.zeros(shape, np.float32)
    if item is HEATMAP_ITEM:
        empty[..., -1] = 1
    return empty


def empty_batch(layout):
    """A Batch of black images whose masks leave everything out, without people."""
    return Batch(*(np.zeros(shape if name in ('image', 'mask', 'labelled') else (0,) + shape[1:], dtype)
                   for name, dtype, shape in layout))


def decode_batch(batch, skeleton):
    """A Batch to the dense arrays (image, heatmap, paf, mask) of encode_batch; new ones, but for the image.

    The mask is one for each channel of the output, (B, h, w, channels): 0 in those that are not labelled.
    """
    cells = batch.mask.shape[:3]
    heatmap = np.tile(empty_map((skeleton.heatmap_channels,), HEATMAP_ITEM), cells + (1,))
    heatmap.reshape(-1)[batch.heatmap_positions] = decode_values(batch.heatmap_values)
    paf = np.zeros(cells + (skeleton.paf_channels,), np.float32)
    paf.reshape(-1, 2)[batch.paf_positions] = decode_values(batch.paf_values)
    mask = batch.mask / np.float32(mask_steps(batch.image, batch.mask))
    return batch.image, heatmap, paf, mask * skeleton.labelled_channels(batch.labelled)[:, None, None]


def decode_values(values):
    """uint16 fixed point -> float32. Multiplied, not divided: so does TensorFlow, which makes a division into that."""
    return (values.astype(np.float32) - FIXED_POINT) * np.float32(1 / FIXED_POINT)


class BatchBuffer:
    """Memory for one batch of a batch_layout, which is written sample by sample, perhaps by another process, and read
    as a Batch. allocate: a function from shape and dtype to an array; memory that is never touched should cost nothing.
    """

    def __init__(self, layout, allocate=np.empty):
        self._arrays = Batch(*(allocate(shape, dtype) for _, dtype, shape in layout))
        self._state = allocate((3,), np.int64)  # lengths of positions: heatmap, PAF; current_sample
        self.current_sample = None
        self.batchsize = len(self._arrays.image)

    def write(self, row, image, heatmap, paf, mask, labelled=None):
        """Write sample `row`, as arrays of one sample each (see encode_batch); the rows come in order, from 0."""
        arrays = self._arrays
        if row == 0:
            self._state[:2] = 0
        sample = encode_batch(*(np.asarray(field)[None] for field in (image, heatmap, paf, mask)),
                              labelled=None if labelled is None else labelled[None])
        arrays.image[row], arrays.mask[row], arrays.labelled[row] = image, sample.mask[0], sample.labelled[0]
        for k, (positions, values, new_positions, new_values, items) in enumerate((
                (*arrays[3:5], *sample[3:5], heatmap.size), (*arrays[5:], *sample[5:], paf.size // 2))):
            end = self._state[k] + len(new_positions)
            np.add(new_positions, row * items, out=positions[self._state[k]:end], casting='unsafe')
            values[self._state[k]:end] = new_values
            self._state[k] = end

    @property
    def current_sample(self):
        """The number of the sample that is being made, None between two; kept when the process that makes it dies."""
        return int(self._state[2]) if self._state[2] >= 0 else None

    @current_sample.setter
    def current_sample(self, index):
        self._state[2] = -1 if index is None else index

    def read(self):
        """The Batch, as views of this memory."""
        arrays = self._arrays
        heatmap, paf = self._state[:2].tolist()
        return arrays._replace(
            heatmap_positions=arrays.heatmap_positions[:heatmap], heatmap_values=arrays.heatmap_values[:heatmap],
            paf_positions=arrays.paf_positions[:paf], paf_values=arrays.paf_values[:paf])
