"""The wire between data workers on other machines and the trainer.

    data worker (DEALER)                                   trainer (ROUTER)
      hello: name, and what the last welcome said    ->
                                                     <-    welcome: session, worker number, settings
      ready: the loader runs                         ->
                                                     <-    credit: send so many batches
      batch: header and array frames                 ->
                                                     <-    credit ... ping ... end
      bye                                            ->

Each message is a msgpack map with `version` and `type`; a batch carries its arrays as raw frames behind it. A worker
sends a batch only for a credit, and a credit comes back when the trainer takes the batch: what is on the way is
bounded, and a slow worker keeps nobody waiting. ZeroMQ's own heartbeats find dead links; a worker then connects anew.

Label maps are almost everywhere empty. Only the items that differ from an empty map travel: a 32-bit position and a
16-bit fixed-point value in -1..1 (steps of 3e-5, finer than float16 above 0.06; no bit pattern is NaN or infinite).
The mask travels as 8 bits.

Nothing from the network is unpickled or evaluated. Whatever does not fit the trainer's settings to the byte is dropped,
counted and reported with its sender.
"""
import collections
import logging
import os
import re
import socket
import stat
import threading
import time

import msgpack
import msgpack.fallback
import numpy as np
import zmq
import zmq.auth
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

import pose_augment
import pose_labels
from pose_cli import UserError
from pose_samples import batch_layout

VERSION = 1
MAX_HEADER = 16384  # bytes
CURVE_OVERHEAD = 64  # bytes that encryption adds to a frame, rounded up
MAX_NAME = 100  # characters
MAX_SIDE, MAX_BATCHSIZE = 8192, 65536
MAX_SAMPLES = 1 << 30
MAX_PEERS = 4096
SESSION_BYTES = 16

# Bounds of what is on the way from one worker: bytes, but at least 2 and at most 16 batches.
CREDIT_BYTES, MIN_CREDIT, MAX_CREDIT = 1 << 24, 2, 16
TOTAL_CREDIT_BYTES = 1 << 30  # from all workers together, but at least MIN_CREDIT batches from each
MESSAGES_PER_TURN = 100
PING_SECONDS = 2.0
LINK_TIMEOUT = 20.0  # seconds without a sign of life after which a connection counts as dead
STARVED_SECONDS = 30.0
FAREWELL_SECONDS = 5.0
NAMED_SENDERS = 20  # bad senders that are told apart in one log interval

FIXED_POINT = 32767
MAX_ITEMS = 1 << 32  # of a batch's map: positions have 32 bits
WIRE_FRAMES = 6  # of a batch, behind the header
# How maps are cut into items, a position each: a heatmap's single values, and the vectors (x, y) of a PAF.
HEATMAP_ITEM, PAF_ITEM = np.uint32, np.uint64


class BadMessage(Exception):
    """A message that breaks the rules of the wire; the text says which."""


class ConnectionLost(Exception):
    """The trainer is gone, or the link to it."""


# --- arrays <-> frames


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
    return _product(shape) * 4 // np.dtype(item).itemsize


def empty_map(maps, item):
    """The items of one sample's map without people: all 0, but the heatmap's background 1."""
    empty = np.zeros(maps.shape[1:], np.float32)
    if item is HEATMAP_ITEM:
        empty[..., pose_labels.BACKGROUND] = 1
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
    if len(frames) != WIRE_FRAMES:
        raise BadMessage('%d array frames, not %d' % (len(frames), WIRE_FRAMES))
    expected = wire_layout(layout, len(frames[2]) // 4, len(frames[4]) // 4)
    if header != batch_header(expected):
        raise BadMessage('version, array names, dtypes or shapes that do not fit the settings')
    for frame, (name, dtype, shape) in zip(frames, expected):
        size = _product(shape) * np.dtype(dtype).itemsize
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
    shapes = {name: shape for name, _, shape in layout}
    full = wire_layout(layout, items_of(shapes['heatmap'], HEATMAP_ITEM), items_of(shapes['paf'], PAF_ITEM))
    return CURVE_OVERHEAD + max([MAX_HEADER] + [_product(shape) * np.dtype(dtype).itemsize for _, dtype, shape in full])


def _product(shape):
    size = 1
    for side in shape:
        size *= side
    return size


# --- headers


def pack(kind, **fields):
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


def definitions():
    """What must be the same in the code of trainer and worker: the constants of geometry and label maps."""
    return {'%s.%s' % (module.__name__, name): repr(value)
            for module in (pose_augment, pose_labels) for name, value in sorted(vars(module).items())
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
    if settings['input_width'] % settings['stride'] or settings['input_height'] % settings['stride']:
        raise UserError('the trainer sent an input size that is not a multiple of its stride')
    cells = settings['input_width'] * settings['input_height'] // settings['stride'] ** 2
    if settings['batchsize'] * cells * 2 * len(pose_labels.LIMBS) >= MAX_ITEMS:
        raise UserError('the trainer asks for batches of more than %d map values' % MAX_ITEMS)
    if type(settings.get('seed')) is not int or not 0 <= settings['seed'] < 1 << 32:
        raise UserError('the trainer sent seed=%.20r; is it the trainer of this project?' % settings.get('seed'))
    augmentation_ranges(settings)
    theirs, ours = settings.get('definitions'), definitions()
    if theirs != ours:
        differing = [name for name, value in ours.items() if not isinstance(theirs, dict) or theirs.get(name) != value]
        raise UserError('trainer and worker make different samples (%s); use the same version of the code on both'
                        % ', '.join(differing or ['the trainer has more settings']))


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


def worker_seed(seed, number):
    """A seed of its own for each worker number, from the trainer's seed."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


# --- addresses and keys


def check_address(address, flag):
    """Raise UserError unless address reads tcp://HOST:PORT. Returns (host, port)."""
    match = re.match(r'tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d+)$', address)
    if not match or not 0 < int(match.group(2)) < 65536:
        raise UserError('%s=%s is not an address like tcp://HOST:PORT with a port of 1 to 65535' % (flag, address))
    return match.group(1), int(match.group(2))


def read_secret_key(folder, name):
    """(public, secret) from a key file of scripts/make_curve_keys.py. Raises UserError."""
    path = os.path.join(folder, name + '.key_secret')
    public, secret = _read_key_file(folder, path)
    if not secret:
        raise UserError('%s holds no secret key; make new keys with scripts/make_curve_keys.py' % path)
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logging.warning('other users of this machine can read %s; chmod 600 it', path)
    return public, secret


def read_public_key(folder, name):
    return _read_key_file(folder, os.path.join(folder, name + '.key'))[0]


def _read_key_file(folder, path):
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise UserError('--curve-keys=%s: %s cannot be read (%s); make keys with scripts/make_curve_keys.py'
                        % (folder, path, getattr(error, 'strerror', None) or 'it is not a key file'))


def accepted_keys(folder):
    """The public keys of the workers that the trainer lets in: {key: name}. Broken files are named in the log."""
    accepted, keys = os.path.join(folder, 'accepted_workers'), {}
    for name in sorted(os.listdir(accepted)) if os.path.isdir(accepted) else []:
        if name.endswith('.key'):
            try:
                keys[zmq.auth.load_certificate(os.path.join(accepted, name))[0]] = name[:-len('.key')]
            except (OSError, ValueError):
                logging.warning('%s is not a key file; it is ignored', os.path.join(accepted, name))
    return keys


def _set_up(zmq_socket, link_timeout):
    zmq_socket.setsockopt(zmq.LINGER, 0)
    zmq_socket.setsockopt(zmq.HEARTBEAT_IVL, int(link_timeout * 250))
    zmq_socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(link_timeout * 1000))


# --- the trainer's end


class _Peer:
    """A worker as the trainer sees it."""

    def __init__(self, route, name, host, number):
        self.route, self.name, self.host, self.number = route, name, host, number
        self.ready = False  # it has a loader and may be given credit
        self.credit = 0  # batches that it may send or has sent, and that nobody has taken yet
        self.expected = 0  # batches that it may still send
        self.samples = 0  # since the last report

    def __str__(self):
        return '%s (%s)' % (self.name, self.host)


class BatchReceiver:
    """A source of training batches that data workers on other machines make.

    Everything happens inside get(), which one thread may call; ZeroMQ's own thread takes in batches meanwhile.

    Args:
        address: tcp://HOST:PORT to listen on; 0.0.0.0 or * for all interfaces.
        settings: dict of input_width, input_height, stride, batchsize (int), seed (int, or None to draw one), and
            augmentation (a dict of pose_augment.Ranges; CMU's when left out).
        curve_keys: folder of scripts/make_curve_keys.py; only workers with accepted keys get in then.
        link_timeout: seconds without a sign of life after which a worker counts as gone.
        starved_seconds: how long to wait for a batch before saying so in the log.
    Attributes:
        samples: of the data set, as the first data worker counts them; None until it has joined.
    Raises:
        UserError: bad address, address in use, bad keys.
    """

    def __init__(self, address, settings, curve_keys=None, link_timeout=LINK_TIMEOUT, starved_seconds=STARVED_SECONDS):
        host, port = check_address(address, '--remote-data')
        self._settings = dict({'augmentation': dict(pose_augment.CMU_RANGES._asdict())}, **settings,
                              definitions=definitions())
        if self._settings.get('seed') is None:
            self._settings['seed'] = int.from_bytes(os.urandom(4), 'little')
        check_settings(self._settings)
        self._layout = batch_layout(settings['batchsize'], settings['input_width'], settings['input_height'],
                                    settings['stride'])
        self._decoder = BatchDecoder(self._layout)
        self._command = 'python3 pose_dataworker.py --master=tcp://%s:%d%s' % (
            socket.gethostname() if host in ('*', '0.0.0.0', '[::]') else host, port,
            ' --curve-keys=DIR' if curve_keys else '')
        self._session = os.urandom(SESSION_BYTES)
        self.samples = None
        self._workers_seen = 0
        self._peers = {}  # routing id -> _Peer
        self._queue = collections.deque()  # (_Peer, frames) of batches not yet taken
        self._events = collections.deque()  # lines for report()
        self._bad = {}  # sender -> [number of bad messages since the last report, the last one's fault]
        self._reported = self._pinged = time.monotonic()
        self._starved_seconds, self._starving_since = starved_seconds, None
        self._farewell = False
        self._lock = threading.Lock()

        self._curve_keys = curve_keys
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._open(address, host, link_timeout)
        except Exception:
            self._context.destroy(linger=0)
            raise

    def _open(self, address, host, link_timeout):
        _set_up(self._socket, link_timeout)
        self._socket.setsockopt(zmq.IPV6, host.startswith('['))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone fails at once
        self._socket.setsockopt(zmq.RCVHWM, 2 * MAX_CREDIT)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_frame_size(self._layout))
        self._zap = None
        if self._curve_keys:
            public, secret = read_secret_key(self._curve_keys, 'trainer')
            if not accepted_keys(self._curve_keys):
                raise UserError('--curve-keys=%s accepts no worker: accepted_workers/ holds no key; make one with '
                                'scripts/make_curve_keys.py' % self._curve_keys)
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind('inproc://zeromq.zap.01')
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        elif not (host in ('localhost', '[::1]') or host.startswith('127.')):
            logging.warning('%s is open to everyone who can reach it, without encryption: on a network that you do not '
                            'trust, use --curve-keys', address)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                                                        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise UserError('cannot listen on %s (%s); choose another port or address with --remote-data'
                            % (address, error.strerror))
        self._poller = zmq.Poller()
        for zmq_socket in filter(None, (self._socket, self._monitor, self._zap)):
            self._poller.register(zmq_socket, zmq.POLLIN)

    def get(self, timeout=None):
        """The next batch, or None when none came within timeout seconds.

        Returns:
            (image uint8 (B, H, W, 3), heatmap float32 (B, h, w, 19), paf float32 (B, h, w, 38), mask float32
            (B, h, w, 1)). The arrays are valid until the next call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._receive(0)
            while not self._socket.closed:
                while self._queue:
                    batch = self._take()
                    if batch:
                        self._starving_since = None
                        return batch
                self._warn_when_starved()
                left = PING_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._receive(min(left, PING_SECONDS))

    def wait_for_worker(self, timeout):
        """Wait up to timeout seconds for the first data worker. Returns whether `samples` is known."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self.samples is None and time.monotonic() < deadline:
                self._warn_when_starved()
                self._receive(min(timeout, PING_SECONDS))
        return self.samples is not None

    def ready(self):
        """How many batches have arrived and wait to be fetched."""
        return len(self._queue)

    def report(self):
        """Lines for the trainer's log, on the time since the last call: who came and went, samples/s, bad messages."""
        now = time.monotonic()
        seconds, self._reported = now - self._reported, now
        lines = [self._events.popleft() for _ in range(len(self._events))]
        rates = []
        for peer in [peer for peer in list(self._peers.values()) if peer.ready]:
            rates.append('%s %.1f' % (peer.name, peer.samples / max(seconds, 1e-3)))
            peer.samples = 0
        if rates:
            lines.append('data workers, samples/s: ' + ', '.join(rates))
        bad, self._bad = self._bad, {}
        for sender, (count, fault) in sorted(bad.items()):
            lines.append('dropped %d bad messages from %s (last: %s)' % (count, sender, fault))
        return lines

    def close(self, ended=True):
        """Stop listening. With `ended`, workers are told that training is over and exit; else they wait."""
        with self._lock:
            if self._socket.closed:
                return
            if ended:
                self._say_farewell()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(500 if ended else 0)
            if self._zap:
                self._zap.close(0)
            self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, exception, *_):
        # After an error or Ctrl-C the trainer is likely to be started again: the workers wait for that.
        self.close(ended=exception is None)

    def _say_farewell(self):
        self._farewell = True
        for peer in list(self._peers.values()):
            self._send(peer.route, 'end')
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self._peers and time.monotonic() < deadline:
            self._receive(0.1)
            self._queue.clear()

    def _take(self):
        """The oldest batch of the queue, or None when it is bad."""
        peer, frames = self._queue.popleft()
        peer.credit -= 1
        if self._peers.get(peer.route) is peer:
            self._grant(peer)
        try:
            return self._decoder.decode([frame.buffer for frame in frames])
        except BadMessage as error:
            self._count_bad(str(peer), error)
            return None

    def _grant(self, peer):
        """Top up a worker's credit, in few messages: when half of it has been used."""
        workers = sum(other.ready for other in self._peers.values())
        limit = min(CREDIT_BYTES, TOTAL_CREDIT_BYTES // workers) // _product(self._layout[0][2])
        limit = max(MIN_CREDIT, min(MAX_CREDIT, limit))
        count = limit - peer.credit
        if count >= limit // 2 and self._send(peer.route, 'credit', count=count):
            peer.credit += count
            peer.expected += count

    def _send(self, route, kind, **fields):
        """Send to a worker if it is still there. Returns whether it went out."""
        try:
            self._socket.send_multipart([route, pack(kind, **fields)], zmq.NOBLOCK)
            return True
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._remove(route)
            return False

    def _remove(self, route):
        peer = self._peers.pop(route, None)
        if peer and peer.ready:
            self._events.append('data worker left: %s' % peer)

    def _receive(self, timeout):
        """Take in what has arrived, waiting up to timeout seconds for the first; at most MESSAGES_PER_TURN messages."""
        now = time.monotonic()
        if now - self._pinged > PING_SECONDS:
            self._pinged = now
            for peer in list(self._peers.values()):
                self._send(peer.route, 'ping')
        for _ in range(MESSAGES_PER_TURN):
            events = dict(self._poller.poll(timeout * 1000))
            timeout = 0
            if not events:
                return
            if self._zap in events:
                self._authenticate(self._zap.recv_multipart())
            if self._monitor in events:
                parse_monitor_message(self._monitor.recv_multipart())
                self._count_bad('a connection', "it does not speak ZeroMQ, or not with this trainer's keys: give --curve-keys "
                                "on both sides, the worker's key made in the trainer's folder")
            if self._socket in events:
                route, *frames = self._socket.recv_multipart(copy=False)
                route = route.bytes
                try:
                    self._handle(route, frames)
                except BadMessage as error:
                    self._count_bad(str(self._peers.get(route, _host(frames))), error)

    def _authenticate(self, request):
        """Answer one ZAP request (RFC 27): the trainer lets in the accepted keys only. They are read anew each time."""
        version, request_id, _, address, _, mechanism = request[:6]
        name = None
        if mechanism == b'CURVE' and len(request) == 7:
            name = accepted_keys(self._curve_keys).get(z85.encode(request[6]))
        if name is None:
            self._count_bad(address.decode(errors='replace'), 'a worker whose key is not accepted was refused')
        status = [b'200', b'OK', name.encode()] if name else [b'400', b'key not accepted', b'']
        self._zap.send_multipart([version, request_id] + status + [b''])

    def _handle(self, route, frames):
        if not frames:
            raise BadMessage('an empty message')
        peer = self._peers.get(route)
        if peer and len(frames) == 1 + WIRE_FRAMES:
            self._enqueue(peer, frames[0].bytes, frames[1:])
            return
        header = unpack(frames[0].buffer)
        kind = header['type']
        if kind == 'hello' and header['version'] != VERSION:
            self._send(route, 'refused', reason='the trainer speaks version %d of the wire, the worker version %d'
                       % (VERSION, header['version']))
            raise BadMessage('a worker that speaks version %d of the wire, not %d, was refused; update the code there '
                             'or here' % (header['version'], VERSION))
        if header['version'] != VERSION:
            raise BadMessage('version %d of the wire, not %d' % (header['version'], VERSION))
        if kind != 'batch' and len(frames) > 1:
            raise BadMessage('%.20r with array frames' % kind)
        if kind == 'hello':
            self._welcome(route, header, _host(frames))
        elif kind == 'batch' and peer:
            self._enqueue(peer, frames[0].bytes, frames[1:])
        elif kind == 'ready' and peer:
            check_fields(header, samples=int)
            if not 0 < header['samples'] <= MAX_SAMPLES:
                raise BadMessage("'ready' with %d samples" % header['samples'])
            self.samples = self.samples or header['samples']
            if not peer.ready:
                peer.ready = True
                self._events.append('data worker joined: %s' % peer)
                self._grant(peer)
        elif kind == 'bye' and peer:
            check_fields(header)
            self._remove(route)
        else:
            raise BadMessage('%.20r out of turn' % kind)

    def _welcome(self, route, header, host):
        check_fields(header, name=str, session=bytes, number=int)
        if not 0 < len(header['name']) <= MAX_NAME or not header['name'].isprintable():
            raise BadMessage('a worker without a proper name')
        if route not in self._peers and len(self._peers) >= MAX_PEERS:
            raise BadMessage('more than %d workers' % MAX_PEERS)
        number = header['number']
        if header['session'] != self._session or not 0 <= number < self._workers_seen:
            number = self._workers_seen
            self._workers_seen += 1
        for old in [old for old in self._peers.values() if old.number == number]:
            self._remove(old.route)  # its connection broke, and it was faster to come back than we to notice
        self._peers[route] = _Peer(route, header['name'], host, number)
        if self._farewell:
            self._send(route, 'end')
        else:
            self._send(route, 'welcome', session=self._session, number=number,
                       settings=dict(self._settings, seed=worker_seed(self._settings['seed'], number)))

    def _enqueue(self, peer, header, frames):
        if not peer.expected:
            raise BadMessage('a batch that was not asked for')
        peer.expected -= 1
        try:
            check_frames(header, [frame.buffer for frame in frames], self._layout)
        except BadMessage:
            peer.credit -= 1
            self._grant(peer)
            raise
        peer.samples += self._settings['batchsize']
        self._queue.append((peer, frames))

    def _count_bad(self, sender, fault):
        if sender not in self._bad and len(self._bad) >= NAMED_SENDERS:
            sender = 'others'
        if sender not in self._bad:
            logging.warning('dropped a bad message from %s: %s', sender, fault)
        self._bad[sender] = [self._bad.get(sender, (0,))[0] + 1, str(fault)]

    def _warn_when_starved(self):
        now = time.monotonic()
        if self._starving_since is None:
            self._starving_since = now
        elif now - self._starving_since > self._starved_seconds:
            self._starving_since = now
            for line in self.report():
                logging.info(line)
            names = [str(peer) if peer.ready else '%s, still preparing' % peer for peer in self._peers.values()]
            logging.warning('no batch for %.0f s: %s. To start a data worker: %s', self._starved_seconds,
                            'waiting for %s; look at the log there' % ', '.join(names) if names
                            else 'no data worker is connected', self._command)


def _host(frames):
    try:
        return frames[0].get('Peer-Address')
    except (IndexError, zmq.ZMQError):  # an empty message
        return 'unknown'


# --- the worker's end


class TrainerConnection:
    """One connection of a data worker to a trainer; after ConnectionLost, make another.

    Args:
        address: tcp://HOST:PORT of the trainer.
        curve_keys: folder with worker.key_secret and trainer.key.
        link_timeout: seconds without a sign of life after which the connection counts as dead.
    Raises:
        UserError: bad address, bad keys.
    """

    def __init__(self, address, curve_keys=None, link_timeout=LINK_TIMEOUT):
        check_address(address, '--master')
        keys = read_secret_key(curve_keys, 'worker') + (read_public_key(curve_keys, 'trainer'),) if curve_keys else None
        self.trouble = 'no answer'  # why there is no connection yet
        self._connected = False
        self._sending = None  # tracker of the batch on its way out
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _set_up(self._socket, link_timeout)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER + CURVE_OVERHEAD)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 200)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        if keys:
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys[0])
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys[1])
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys[2])
        self._monitor = self._socket.get_monitor_socket()
        self._socket.connect(address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def receive(self, timeout):
        """The trainer's next message, or None when none came within timeout seconds.

        Returns:
            The header, a dict. Type `connected` means that a hello may be sent.
        Raises:
            ConnectionLost.
            UserError: the trainer refuses this worker, or speaks another version of the wire.
        """
        events = dict(self._poller.poll(timeout * 1000))
        if self._socket in events:  # first: the last message may be followed by the end of the connection
            frames = self._socket.recv_multipart()
            try:
                header = unpack(frames[0])
            except BadMessage as error:
                raise UserError('%s from the trainer; is it the trainer of this project?' % error)
            if header['type'] == 'refused':
                raise UserError('refused by the trainer: %.200s; use the same version of the code on both'
                                % header.get('reason'))
            if header['version'] != VERSION:
                raise UserError('the trainer speaks version %d of the wire, this worker version %d; use the same '
                                'version of the code on both' % (header['version'], VERSION))
            return header
        if self._monitor in events:
            return self._link_event(parse_monitor_message(self._monitor.recv_multipart())['event'])
        return None

    def _link_event(self, event):
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected = True
            return {'type': 'connected'}
        if event == zmq.EVENT_DISCONNECTED and self._connected:
            raise ConnectionLost()
        if event in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED) and self.trouble == 'no answer':
            self.trouble = 'no trainer listens there'
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.trouble = 'the trainer does not accept this key'
        elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
            self.trouble = "the handshake fails; give --curve-keys on both sides or on none, the worker's key " \
                           "made in the trainer's folder"
        return None

    def send(self, kind, **fields):
        self._socket.send(pack(kind, **fields))

    def send_batch(self, arrays):
        """Send what encode_batch returned. The image is not copied: it must not change until sent() is true."""
        header = batch_header([(name, array.dtype.str, array.shape) for name, array in arrays])
        self._sending = self._socket.send_multipart([header] + [array for _, array in arrays], copy=False, track=True)

    def sent(self, timeout):
        """Whether the last batch has left this process, waiting up to timeout seconds for it."""
        try:
            if self._sending:
                self._sending.wait(timeout)
            self._sending = None
        except zmq.NotDone:
            pass
        return self._sending is None

    def close(self, linger=0):
        """Close, after at most `linger` seconds for messages that still have to go out."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger * 1000))
        self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
