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

The arrays are those of a pose_batches.Batch, little-endian: what the loader processes wrote is what the tower gets.

Nothing from the network is unpickled or evaluated. Whatever does not fit the trainer's settings to the byte is dropped,
counted and reported with its sender.
"""
import numpy as np

from pose_batches import Batch, mask_steps, product

from .headers import MAX_HEADER, BadMessage, pack

CURVE_OVERHEAD = 64  # bytes that encryption adds to a frame, rounded up
ARRAY_FRAMES = len(Batch._fields)  # of a batch, behind its header and its number
BATCH_FRAMES = 2 + ARRAY_FRAMES


def check_frames(header, frames, layout):
    """Check a batch's frames against its header and the trainer's settings, before anything is read from them.

    Args:
        header: the packed header. The frames' lengths and the settings leave one right header, byte for byte.
        frames: buffers.
        layout: pose_batches.batch_layout of the trainer's settings.
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
    items = {'heatmap_positions': heatmap_items, 'heatmap_values': heatmap_items,
             'paf_positions': paf_items, 'paf_values': paf_items}
    return [(name, np.dtype(dtype).newbyteorder('<').str, (items.get(name, shape[0]),) + shape[1:])
            for name, dtype, shape in layout]


def read_batch(frames, layout):
    """The pose_batches.Batch that lies in buffers which check_frames has checked, without a copy.

    Raises:
        BadMessage: positions or masks that no sample has.
    """
    expected = wire_layout(layout, len(frames[2]) // 4, len(frames[4]) // 4)
    batch = Batch(*(np.frombuffer(frame, dtype).reshape(shape)
                    for frame, (_, dtype, shape) in zip(frames, expected)))
    limits = {name: shape[0] for name, _, shape in layout}
    for name in ('heatmap_positions', 'paf_positions'):
        positions = getattr(batch, name)
        if len(positions) and (positions[0] < 0 or positions[-1] >= limits[name]
                               or (positions[1:] <= positions[:-1]).any()):
            raise BadMessage('positions of map values out of order or range')
    if batch.mask.max() > mask_steps(batch.image, batch.mask):
        raise BadMessage('a mask above 1')
    return batch


def max_frame_size(layout):
    """Bytes of the largest frame that a batch may have, encrypted or not."""
    return max([MAX_HEADER + CURVE_OVERHEAD] + _full_frames(layout))


def max_batch_size(layout):
    """Bytes of the largest batch that there may be, encrypted or not."""
    return MAX_HEADER + CURVE_OVERHEAD + sum(_full_frames(layout))


def _full_frames(layout):
    """Bytes of the frames of a batch with full maps."""
    return [product(shape) * np.dtype(dtype).itemsize + CURVE_OVERHEAD for _, dtype, shape in layout]


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
