"""The wire between data workers on other machines and the trainer: what is said, and in which bytes.

    data worker (DEALER)                                   trainer (ROUTER)
      hello: name                                    ->
                                                     <-    welcome: settings
      ready: the loader runs, on these samples       ->
                                                     <-    credit: make and send the batches of these numbers
      batch: header, number and array frames         ->
                                                     <-    credit ... ping ... end
      pong: to each ping; bye: to the end            ->

What else the messages say is in headers.py and settings.py; a batch carries its number and its arrays as raw frames
behind its header. A worker sends a batch only for a credit, and a credit comes back when the trainer takes the batch:
what is on the way is bounded, and a slow worker keeps nobody waiting. What a batch holds follows from its number
(pose_order.py): whatever a worker had not delivered when its connection ended is asked for again, of any other. A
worker that the trainer has turned away, or forgotten, makes a new connection and says hello again.

Label maps are almost everywhere empty. Only the items that differ from an empty map travel: a 32-bit position and a
16-bit fixed-point value in -1..1 (steps of 3e-5, finer than float16 above 0.06; no bit pattern is NaN or infinite).
The mask travels as 8 bits.

Nothing from the network is unpickled or evaluated. Whatever does not fit the trainer's settings to the byte is dropped,
counted and reported with its sender.
"""
import numpy as np

from .headers import MAX_HEADER, BadMessage, pack

CURVE_OVERHEAD = 64  # bytes that encryption adds to a frame, rounded up
FIXED_POINT = 32767
MAX_ITEMS = 1 << 32  # of a batch's map: positions have 32 bits
ARRAY_FRAMES = 6  # of a batch, behind its header and its number
BATCH_FRAMES = 2 + ARRAY_FRAMES
# How maps are cut into items, a position each: a heatmap's single values, and the vectors (x, y) of a PAF.
HEATMAP_ITEM, PAF_ITEM = np.uint32, np.uint64


def encode_batch(batch):
    """Encode (image, heatmap, paf, mask) for the wire.

    Args:
        batch: arrays as in pose_samples.batch_layout; heatmap and paf in -1..1, mask in 0..1.
    Returns:
        [(name, array)]; the image is the caller's own array.
    Raises:
        ValueError: map values that are not in -1..1.
    """
    image, heatmap, paf, mask = batch
    return [('image', image), ('mask', (mask * 255 + 0.5).astype(np.uint8))] + [
        (name + part, array) for name, maps, item in (('heatmap', heatmap, HEATMAP_ITEM), ('paf', paf, PAF_ITEM))
        for part, array in zip(('_positions', '_values'), encode_maps(maps, item))]


class BatchDecoder:
    """Decodes the frames that encode_batch's arrays became, into arrays of its own that it uses again and again.

    Args:
        layout: pose_samples.batch_layout of the trainer's settings.
    """

    def __init__(self, layout):
        (_, _, self._image_shape), *labels = layout
        self._heatmap, self._paf, self._mask = (np.empty(shape, dtype) for _, dtype, shape in labels)
        self._empty = [np.resize(empty_map(maps, item), items_of(maps.shape, item))
                       for maps, item in ((self._heatmap, HEATMAP_ITEM), (self._paf, PAF_ITEM))]
        self._written = None  # positions of heatmap and PAF that differ from empty maps

    def decode(self, frames):
        """Decode buffers that check_frames has checked.

        Returns:
            (image, heatmap, paf, mask), valid until the next call; the image is a view of its frame.
        Raises:
            BadMessage: the maps do not fit.
        """
        image = np.frombuffer(frames[0], np.uint8).reshape(self._image_shape)
        np.divide(np.frombuffer(frames[1], np.uint8).reshape(self._mask.shape), np.float32(255), out=self._mask)
        before, self._written = self._written or (None, None), None
        self._written = (decode_maps(frames[2:4], self._empty[0], self._heatmap, before[0]),
                         decode_maps(frames[4:6], self._empty[1], self._paf, before[1]))
        return image, self._heatmap, self._paf, self._mask


def items_of(shape, item):
    """How many items float32 maps of that shape are cut into."""
    return product(shape) * 4 // np.dtype(item).itemsize


def empty_map(maps, item):
    """The items of one sample's map without people: all 0, but the heatmap's background 1."""
    empty = np.zeros(maps.shape[1:], np.float32)
    if item is HEATMAP_ITEM:
        empty[..., -1] = 1  # the background
    return empty.reshape(-1).view(item)


def encode_maps(maps, item):
    """Where maps float32 (B, h, w, channels) differ from empty ones, and their values there.

    Args:
        item: HEATMAP_ITEM or PAF_ITEM.
    Returns:
        (positions uint32 (n,), rising; values uint16 (n * floats per item,): FIXED_POINT * (1 + value)).
    """
    items = maps.reshape(len(maps), -1).view(item)
    positions = np.flatnonzero(items != empty_map(maps, item))
    values = items.reshape(-1).take(positions).view(np.float32)
    if len(values) and not np.abs(values).max() <= 1.00001:
        raise ValueError('label maps hold values outside -1..1')
    # Adding half a step rounds to the nearest, as the cast cuts off.
    return positions.astype('<u4'), (values * FIXED_POINT + (FIXED_POINT + 0.5)).astype('<u2')


def decode_maps(frames, empty, out, before=None):
    """The inverse of encode_maps.

    Args:
        empty: items of an empty batch.
        out: float32 array for the maps.
        before: what this returned when it filled `out` the last time: only those items are then made empty first.
    Returns:
        The positions that have been written.
    Raises:
        BadMessage: the positions do not fit.
    """
    positions, values = np.frombuffer(frames[0], '<u4').astype(np.intp), np.frombuffer(frames[1], '<u2')
    if len(positions) and (positions[-1] >= len(empty) or (positions[1:] <= positions[:-1]).any()):
        raise BadMessage('positions of map values out of order or range')
    items = out.reshape(-1).view(empty.dtype)
    if before is None:
        np.copyto(items, empty)
    else:
        items[before] = empty[before]
    items[positions] = ((values.astype(np.float32) - FIXED_POINT) / FIXED_POINT).view(empty.dtype)
    return positions


def check_frames(header, frames, layout):
    """Check a batch's frames against its header and the trainer's settings, before anything is read from them.

    Args:
        header: the packed header. The frames' lengths and the settings leave one right header, byte for byte.
        frames: buffers.
        layout: pose_samples.batch_layout of the trainer's settings.
    Raises:
        BadMessage: naming the first thing that does not fit.
    """
    if len(frames) != ARRAY_FRAMES:
        raise BadMessage('%d array frames, not %d' % (len(frames), ARRAY_FRAMES))
    expected = wire_layout(layout, len(frames[2]) // 4, len(frames[4]) // 4)
    if header != batch_header(expected):
        raise BadMessage('version, array names, dtypes or shapes that do not fit the settings')
    for frame, (name, dtype, shape) in zip(frames, expected):
        size = product(shape) * np.dtype(dtype).itemsize
        if len(frame) != size:
            raise BadMessage('%s of %d bytes, not %d' % (name, len(frame), size))


def wire_layout(layout, heatmap_items, paf_items):
    """[(name, dtype, shape)] of a batch's frames, when so many items of its maps differ from empty ones."""
    shapes = {name: shape for name, _, shape in layout}
    expected = [('image', '|u1', shapes['image']), ('mask', '|u1', shapes['mask'])]
    for name, items, item in (('heatmap', heatmap_items, HEATMAP_ITEM), ('paf', paf_items, PAF_ITEM)):
        expected += [(name + '_positions', '<u4', (items,)),
                     (name + '_values', '<u2', (items * np.dtype(item).itemsize // 4,))]
    return expected


def max_frame_size(layout):
    """Bytes of the largest frame that a batch may have, encrypted or not."""
    return max([MAX_HEADER + CURVE_OVERHEAD] + _full_frames(layout))


def max_batch_size(layout):
    """Bytes of the largest batch that there may be, encrypted or not."""
    return MAX_HEADER + CURVE_OVERHEAD + sum(_full_frames(layout))


def _full_frames(layout):
    """Bytes of the frames of a batch with full maps."""
    shapes = {name: shape for name, _, shape in layout}
    full = wire_layout(layout, items_of(shapes['heatmap'], HEATMAP_ITEM), items_of(shapes['paf'], PAF_ITEM))
    return [product(shape) * np.dtype(dtype).itemsize + CURVE_OVERHEAD for _, dtype, shape in full]


def batch_header(layout):
    """The packed header of a batch, for [(name, dtype, shape)] of its frames."""
    return pack('batch', arrays=layout)


def pack_number(number):
    """The number of a batch as a frame."""
    return number.to_bytes(8, 'little')


def unpack_number(frame):
    """The inverse of pack_number. Raises BadMessage."""
    if len(frame) != 8:
        raise BadMessage('a batch number of %d bytes' % len(frame))
    return int.from_bytes(frame, 'little')


def product(shape):
    """How many items an array of this shape has, without overflow."""
    size = 1
    for side in shape:
        size *= side
    return size
