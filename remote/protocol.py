"""The wire between data workers on other machines and the trainer: its messages, and their bytes.

    data worker (DEALER)                                   trainer (ROUTER)
      hello: name                                    ->
                                                     <-    welcome: settings
      ready: the loader runs, on these samples       ->
                                                     <-    credit: make and send the batches of these numbers
      batch: header, number and array frames         ->
                                                     <-    credit ... ping ... end
      pong: to each ping; bye: to the end            ->

A header is a msgpack map of version, type and the fields in FROM_WORKER or FROM_TRAINER; a batch carries its number and
its arrays as raw frames behind its header. A worker sends a batch only for a credit, and a credit comes back when the
trainer takes the batch: what is on the way is bounded, and no worker waits for a slower one. What a batch holds follows
from its number (batches/loader.py): whatever a worker had not delivered when its connection ended is asked of another.
A worker that was disconnected makes a new connection and sends a new hello.

The arrays are those of a batches.batch.Batch, little-endian: what the loader processes wrote is what the tower gets.

Nothing from the network is unpickled or evaluated. Whatever does not fit the trainer's settings to the byte is dropped,
counted and reported with its sender.
"""
import re

import msgpack
import msgpack.fallback
import numpy as np
import zmq

import pose_augment
from annotations.skeleton import parse_skeleton
from batches import MAX_GAPS, Sequence
from batches.batch import MAX_ITEMS, Batch, batch_layout, mask_steps, product
from batches.loader import SAMPLE_SOURCES
from pose_dataset import check_input_size
from pose_errors import UserError
from pose_files import sources_digest

VERSION = 6
MAX_CREDIT = 16  # batches that one message asks for, and that are on the way from one worker
MAX_NUMBER = 1 << 40  # of a batch: its samples' positions stay far below 64 bits
MAX_SAMPLES = 1 << 30
MAX_NAME = 100  # characters
DIGEST_LENGTH = 32
MAX_REASON = 500  # characters
MAX_POSITION = 1 << 60  # of a sample
MAX_HEADER = 65536  # bytes, of the longest kind: a welcome with a skeleton
MAX_GREETING = 512  # bytes, of a worker's headers but for those of batches
MAX_FIELDS = 4  # of a worker's header
# First bytes of msgpack's lists and maps; a worker's header, in ASCII, has one, and at most a few within its numbers.
CONTAINERS, MAX_CONTAINERS = bytes(range(0x80, 0xa0)) + bytes(range(0xdc, 0xe0)), 8
CURVE_OVERHEAD = 64  # bytes that encryption adds to a frame, rounded up
ARRAY_FRAMES = len(Batch._fields)  # of a batch, behind its header and its number
BATCH_FRAMES = 2 + ARRAY_FRAMES
LINK_TIMEOUT = 20.0  # seconds without a sign of life after which a connection counts as dead
PING_SECONDS = 2.0  # between the trainer's pings; each is answered
HANDSHAKE_REMEDY = "give --curve-keys on both sides or on none, the worker's key made in the trainer's folder"

MAX_SIDE, MAX_BATCHSIZE = 8192, 65536
MAX_SEED = 1 << 63
MAX_IMAGE_BYTES = 1 << 32  # of a batch
SETTING_LIMITS = {'batchsize': (1, MAX_BATCHSIZE), 'input_width': (1, MAX_SIDE), 'input_height': (1, MAX_SIDE),
                  'stride': (1, MAX_SIDE), 'seed': (0, MAX_SEED - 1)}
SETTINGS = frozenset(SETTING_LIMITS) | {'augmentation', 'skeleton', 'category', 'code', 'negatives', 'sequence'}
SHARES = 'flip_probability', 'colour', 'grey', 'blur', 'noise', 'jpeg', 'stretch'  # of augmentation
# Bounds of augmentation's other numbers: scales, degrees, pixels.
RANGE_LIMITS = {'scale': (1e-3, 1e3), 'angle': (-360, 360), 'offset': (-MAX_SIDE, MAX_SIDE)}


class BadMessage(Exception):
    """A message that breaks the rules of the wire; the text says which."""


class OtherVersion(BadMessage):
    """A message of another version of the wire."""

    def __init__(self, header):
        super().__init__('version %d of the wire, not %d' % (header['version'], VERSION))
        self.header = header


# {kind: {field: (its type, whether a value of it is right)}}; batches are apart, see check_frames.
FROM_WORKER = {
    'hello': {'name': (str, lambda name: 0 < len(name) <= MAX_NAME and all(' ' <= c <= '~' for c in name))},
    'ready': {'samples': (int, lambda count: 0 < count <= MAX_SAMPLES),
              'data': (str, lambda digest: len(digest) == DIGEST_LENGTH and digest.isalnum())},
    'pong': {}, 'bye': {}}
FROM_TRAINER = {
    'welcome': {'settings': (dict, lambda settings: True)},
    'credit': {'batches': (list, lambda numbers: 0 < len(numbers) <= MAX_CREDIT and all(
        type(number) is int and 0 <= number < MAX_NUMBER for number in numbers))},
    'ping': {}, 'end': {},
    'refused': {'reason': (str, lambda reason: len(reason) <= MAX_REASON)}}


def pack(kind, **fields):
    """The bytes of a message of this kind."""
    return msgpack.packb(dict(fields, version=VERSION, type=kind))


def unpack_from_worker(data):
    """A worker's header as a dict of str -> value. Raises BadMessage, OtherVersion."""
    start = bytes(data[:MAX_GREETING])
    if len(start) - len(start.translate(None, CONTAINERS)) > MAX_CONTAINERS:
        raise BadMessage('a header with lists or maps in it')  # to unpack these would take far longer than to send them
    return _checked(_unpack(data, MAX_GREETING, max_map_len=MAX_FIELDS, max_array_len=0), FROM_WORKER)


def unpack_from_trainer(data):
    """A trainer's header as a dict of str -> value. Raises BadMessage, OtherVersion."""
    return _checked(_unpack(data, MAX_HEADER), FROM_TRAINER)


def _unpack(data, max_bytes, **limits):
    if len(data) > max_bytes:
        raise BadMessage('a header of %d bytes' % len(data))
    try:
        # Not the compiled unpacker: that of msgpack 1.0.5 (Python 3.7) never frees unfinished nested arrays.
        return msgpack.fallback.unpackb(data, raw=False, strict_map_key=True, **limits)
    except Exception as error:  # msgpack documents ValueError, but passes on more than that
        raise BadMessage('a header that is not msgpack (%s)' % type(error).__name__)


def _checked(header, kinds):
    if type(header) is not dict or type(header.get('version')) is not int or type(header.get('type')) is not str:
        raise BadMessage('a header without version and type')
    if header['version'] != VERSION:
        raise OtherVersion(header)
    kind = header['type']
    fields = kinds.get(kind)
    if fields is None:
        raise BadMessage('%.20r, which is not expected here' % kind)
    if set(header) != {'version', 'type'} | set(fields):
        raise BadMessage('%r with wrong field names' % kind)
    for name, (kind_of_value, is_right) in fields.items():
        if type(header[name]) is not kind_of_value or not is_right(header[name]):
            raise BadMessage('%r with %s=%.50r' % (kind, name, header[name]))
    return header


def check_frames(header, frames, layout):
    """Check a batch's frames (buffers) against its packed header and the batches.batch.batch_layout of the trainer's
    settings, before anything is read from them: these leave one right header, byte for byte.

    Raises BadMessage, naming the first thing that does not fit.
    """
    if len(frames) != ARRAY_FRAMES:
        raise BadMessage('%d array frames, not %d' % (len(frames), ARRAY_FRAMES))
    expected = _wire_layout(layout, frames)
    if header != batch_header(expected):
        raise BadMessage('version, array names, dtypes or shapes that do not fit the settings')
    for frame, (name, dtype, shape) in zip(frames, expected):
        size = product(shape) * np.dtype(dtype).itemsize
        if len(frame) != size:
            raise BadMessage('%s of %d bytes, not %d' % (name, len(frame), size))


def _wire_layout(layout, frames):
    """[(name, dtype, shape)] of a batch's frames, with as many items of its maps as there are positions."""
    batchsize = layout[0][2][0]
    counts = [batchsize] * 3 + [len(frames[3]) // 4] * 2 + [len(frames[5]) // 4] * 2
    return [(name, np.dtype(dtype).newbyteorder('<').str, (count,) + shape[1:])
            for (name, dtype, shape), count in zip(layout, counts)]


def read_batch(frames, layout):
    """The batches.batch.Batch that lies in buffers which check_frames has checked, without a copy.

    Raises BadMessage for positions or masks that no sample has.
    """
    batch = Batch(*(np.frombuffer(frame, dtype).reshape(shape)
                    for frame, (_, dtype, shape) in zip(frames, _wire_layout(layout, frames))))
    for positions, (_, _, largest) in ((batch.heatmap_positions, layout[3]), (batch.paf_positions, layout[5])):
        if len(positions) and (positions[0] < 0 or positions[-1] >= largest[0]
                               or (positions[1:] <= positions[:-1]).any()):
            raise BadMessage('positions of map values out of order or range')
    if batch.mask.max() > mask_steps(batch.image, batch.mask):
        raise BadMessage('a mask above 1')
    if batch.labelled.max() > 1:
        raise BadMessage('labelled parts that are neither 0 nor 1')
    return batch


def max_sizes(layout):
    """Bytes, encrypted or not, of the largest frame that a batch may have, and of the largest batch."""
    frames = [MAX_HEADER + CURVE_OVERHEAD] + [product(shape) * np.dtype(dtype).itemsize + CURVE_OVERHEAD
                                              for _, dtype, shape in layout]
    return max(frames), sum(frames)


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


def check_address(address, flag):
    """Raise UserError unless address reads tcp://HOST:PORT. Returns (host, port)."""
    match = re.match(r'tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d+)$', address)
    if not match or not 0 < int(match.group(2)) < 65536:
        raise UserError('%s=%s is not an address like tcp://HOST:PORT with a port of 1 to 65535' % (flag, address))
    return match.group(1), int(match.group(2))


def set_limits(zmq_socket, max_frame_bytes):
    """Set what both ends have in common.

    There are no heartbeats of ZeroMQ's and no bound on the messages that wait to be read: libzmq 4.3 ends the process
    (an assertion, !_io_error) when it has stopped reading a connection because of such a bound, the other side resets
    it, and a heartbeat is due. Both ends ping by themselves, and the trainer's guard bounds bytes.
    """
    zmq_socket.setsockopt(zmq.LINGER, 0)
    zmq_socket.setsockopt(zmq.RCVHWM, 0)
    zmq_socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)


def check_settings(settings, sender='the trainer'):
    """Check settings, a dict with anything in it, before memory is allocated by them. sender: for the messages.

    Raises UserError when they are out of range, or made by code that draws other samples.
    """
    if set(settings) != SETTINGS:
        names = ', '.join(sorted('%.30s' % name for name in SETTINGS ^ set(settings)))
        raise UserError('%s sent other settings than this version of the code knows (%s); use the same version of the '
                        'code on both' % (sender, names))
    for name, (low, high) in SETTING_LIMITS.items():
        value = settings[name]
        if type(value) is not int or not low <= value <= high:
            raise UserError('%s asks for %s=%.20r; it must be from %d to %d' % (sender, name, value, low, high))
    check_input_size(settings['input_width'], settings['input_height'], settings['stride'])
    skeleton = skeleton_of_settings(settings)
    (_, _, image), *maps = batch_layout(*(settings[name] for name in
                                          ('batchsize', 'input_width', 'input_height', 'stride')), skeleton)
    if product(image) > MAX_IMAGE_BYTES or max(product(shape) for _, _, shape in maps) >= MAX_ITEMS:
        raise UserError('%s asks for batches of %d images of %dx%d, more than %d bytes or map values; take a smaller '
                        '--batchsize' % (sender, settings['batchsize'], settings['input_width'],
                                         settings['input_height'], MAX_IMAGE_BYTES))
    if type(settings['negatives']) is not float or not 0 <= settings['negatives'] < 1:
        raise UserError('%s asks for negatives=%.20r; it must be from 0 to below 1' % (sender, settings['negatives']))
    augmentation_ranges(settings)
    sequence_of(settings)
    if settings['code'] != sources_digest(*SAMPLE_SOURCES):
        raise UserError('the code that makes samples differs between trainer and worker; use the same version of the '
                        'code on both')


def skeleton_of_settings(settings):
    """The annotations.skeleton.Skeleton among the settings that came from a trainer. Raises UserError."""
    if type(settings['skeleton']) is not str or type(settings['category']) is not str:
        raise UserError('the trainer sent no skeleton; is it the trainer of this project?')
    return parse_skeleton(settings['skeleton'], 'what the trainer sent')


def sequence_of(settings):
    """The batches.Sequence among the settings that came from a trainer. Raises UserError."""
    try:
        gaps, after = settings['sequence']
        ends = [0] + [end for gap in gaps for end in gap] + [after]
        if (all(len(gap) == 2 for gap in gaps) and len(gaps) <= MAX_GAPS and ends == sorted(ends)
                and all(type(end) is int for end in ends) and after < MAX_POSITION):
            return Sequence(tuple(map(tuple, gaps)), after)
    except (TypeError, ValueError):
        pass
    raise UserError('the trainer sent sequence=%.100r; is it the trainer of this project?' % (settings['sequence'],))


def augmentation_ranges(settings):
    """The pose_augment.Ranges among the settings that came from a trainer. Raises UserError."""
    augmentation = settings['augmentation']
    if type(augmentation) is dict and set(augmentation) == set(pose_augment.Ranges._fields) \
            and all(_are_rising(augmentation[name], 2, *limits) for name, limits in RANGE_LIMITS.items()) \
            and all(_are_rising([augmentation[name]], 1, 0, 1) for name in SHARES) \
            and all(type(augmentation[name]) is bool for name in ('log_scale', 'whole_image')) \
            and type(augmentation['patches']) is int and 0 <= augmentation['patches'] <= pose_augment.MAX_PATCHES:
        return pose_augment.Ranges(**augmentation)
    raise UserError('the trainer sent augmentation=%.100r; is it the trainer of this project?' % (augmentation,))


def _are_rising(values, count, low, high):
    """Whether these are so many numbers, one not below the other, from low to high; NaN is not."""
    return (type(values) in (list, tuple) and len(values) == count
            and all(type(value) in (int, float) and low <= value <= high for value in values)
            and list(values) == sorted(values))
