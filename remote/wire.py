"""The wire between data workers on other machines and the trainer: what is said, and in which bytes.

    data worker (DEALER)                                   trainer (ROUTER)
      hello: name                                    ->
                                                     <-    welcome: settings
      ready: the loader runs, on so many samples     ->
                                                     <-    credit: make and send the batches of these numbers
      batch: header, number and array frames         ->
                                                     <-    credit ... ping ... end
      bye                                            ->

Each message is a msgpack map with `version` and `type`; a batch carries its number and its arrays as raw frames behind
it. A worker sends a batch only for a credit, and a credit comes back when the trainer takes the batch: what is on the
way is bounded, and a slow worker keeps nobody waiting. What a batch holds follows from its number (pose_order.py):
whatever a worker had not delivered when its connection ended is asked for again, of any other.

The arrays are those of a pose_batches.Batch, little-endian: what the loader processes wrote is what the tower gets.

Nothing from the network is unpickled or evaluated. Whatever does not fit the trainer's settings to the byte is dropped,
counted and reported with its sender.
"""
import msgpack
import msgpack.fallback
import numpy as np

import pose_augment
import pose_batches
import pose_labels
import pose_order
import pose_skeleton
from pose_batches import MAX_ITEMS, Batch, mask_steps, product
from pose_cli import UserError
from pose_samples import check_input_size

VERSION = 3
MAX_HEADER = 16384  # bytes
CURVE_OVERHEAD = 64  # bytes that encryption adds to a frame, rounded up
MAX_SIDE, MAX_BATCHSIZE = 8192, 65536
MAX_SAMPLES = 1 << 30
MAX_SEED = MAX_NUMBER = 1 << 63
MAX_CREDIT = 16  # batches that one message asks for, and that are on the way from one worker

ARRAY_FRAMES = len(Batch._fields)  # of a batch, behind its header and its number
BATCH_FRAMES = 2 + ARRAY_FRAMES


class BadMessage(Exception):
    """A message that breaks the rules of the wire; the text says which."""


# Arrays <-> frames.


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
    sizes = [product(shape) * np.dtype(dtype).itemsize for _, dtype, shape in layout]
    return CURVE_OVERHEAD + max([MAX_HEADER] + sizes)


# Headers.


def pack(kind, **fields):
    """The bytes of a message of this kind."""
    return msgpack.packb(dict(fields, version=VERSION, type=kind))


def batch_header(layout):
    """The packed header of a batch, for [(name, dtype, shape)] of its frames."""
    return pack('batch', arrays=layout)


def unpack(data):
    """A message's header as a dict of str -> value, with `version` and `type`. Raises BadMessage."""
    if len(data) > MAX_HEADER:
        raise BadMessage('a header of %d bytes' % len(data))
    try:
        # Not the compiled unpacker: that of msgpack 1.0.5 (Python 3.7) never frees unfinished nested arrays.
        header = msgpack.fallback.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack documents ValueError, but passes on more than that
        raise BadMessage('a header that is not msgpack (%s)' % type(error).__name__)
    if type(header) is not dict or type(header.get('version')) is not int or type(header.get('type')) is not str:
        raise BadMessage('a header without version and type')
    return header


def check_fields(header, **types):
    """Raise BadMessage unless header has exactly these fields beside version and type, each of the given type."""
    if set(header) != {'version', 'type'} | set(types):
        raise BadMessage('%.20r with wrong field names' % header['type'])
    for name, kind in types.items():
        if type(header[name]) is not kind:
            raise BadMessage('%.20r with a %s that is not %s' % (header['type'], name, kind.__name__))


def pack_number(number):
    """The number of a batch as a frame."""
    return number.to_bytes(8, 'little')


def unpack_number(frame):
    """The inverse of pack_number. Raises BadMessage."""
    if len(frame) != 8:
        raise BadMessage('a batch number of %d bytes' % len(frame))
    return int.from_bytes(frame, 'little')


def requested_batches(credit):
    """The batch numbers of a credit that came from a trainer. Raises UserError."""
    numbers = credit.get('batches')
    if (type(numbers) is not list or not 0 < len(numbers) <= MAX_CREDIT
            or not all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers)):
        raise UserError('the trainer asks for the batches %.50r; is it the trainer of this project?' % (numbers,))
    return numbers


def definitions():
    """What must be the same in the code of trainer and worker: the constants of geometry, label maps and order."""
    return {'%s.%s' % (module.__name__, name): repr(value)
            for module in (pose_augment, pose_batches, pose_labels, pose_order)
            for name, value in sorted(vars(module).items())
            if name.isupper() and type(value) in (int, float, tuple)}


def check_settings(settings):
    """Check settings that came from a trainer, before memory is allocated by them.

    Raises:
        UserError: out of range, or made by code that draws other samples.
    """
    limits = {'batchsize': MAX_BATCHSIZE, 'input_width': MAX_SIDE, 'input_height': MAX_SIDE, 'stride': MAX_SIDE}
    for name, limit in limits.items():
        value = settings.get(name)
        if type(value) is not int or not 1 <= value <= limit:
            raise UserError('the trainer sent %s=%.20r; is it the trainer of this project?' % (name, value))
    check_input_size(settings['input_width'], settings['input_height'], settings['stride'])
    skeleton = skeleton_of(settings)
    cells = settings['input_width'] * settings['input_height'] // settings['stride'] ** 2
    if settings['batchsize'] * cells * max(skeleton.paf_channels, skeleton.heatmap_channels) >= MAX_ITEMS:
        raise UserError('the trainer asks for batches of more than %d map values' % MAX_ITEMS)
    if type(settings.get('seed')) is not int or not 0 <= settings['seed'] < MAX_SEED:
        raise UserError('the trainer sent seed=%.20r; is it the trainer of this project?' % settings.get('seed'))
    if type(settings.get('negatives')) is not float or not 0 <= settings['negatives'] < 1:
        raise UserError('the trainer sent negatives=%.20r; is it the trainer of this project?'
                        % settings.get('negatives'))
    augmentation_ranges(settings)
    theirs, ours = settings.get('definitions'), definitions()
    if theirs != ours:
        differing = [name for name, value in ours.items() if not isinstance(theirs, dict) or theirs.get(name) != value]
        raise UserError('trainer and worker make different samples (%s); use the same version of the code on both'
                        % ', '.join(differing or ['the trainer has more settings']))


def skeleton_of(settings):
    """The pose_skeleton.Skeleton among the settings that came from a trainer. Raises UserError."""
    if type(settings.get('skeleton')) is not str or type(settings.get('category')) is not str:
        raise UserError('the trainer sent no skeleton; is it the trainer of this project?')
    return pose_skeleton.from_json(settings['skeleton'], 'what the trainer sent')


def augmentation_ranges(settings):
    """The pose_augment.Ranges among the settings that came from a trainer. Raises UserError."""
    try:
        ranges = pose_augment.Ranges(**settings['augmentation'])
        pairs = np.array([ranges.scale, ranges.angle, ranges.offset, (0, ranges.flip_probability)], np.float64)
        if pairs.shape == (4, 2) and np.isfinite(pairs).all() and (pairs[:, 0] <= pairs[:, 1]).all() \
                and pairs[0, 0] > 0 and pairs[3, 1] <= 1:
            return ranges
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError('the trainer sent augmentation=%.100r; is it the trainer of this project?'
                    % settings.get('augmentation'))
