"""The trainer's end of the wire: a batch source, filled by data workers on other machines."""
import collections
import heapq
import logging
import os
import socket
import threading
import time

import zmq
from zmq.utils.monitor import parse_monitor_message

import pose_augment
import pose_skeleton
from pose_cli import UserError
from pose_samples import batch_layout

from . import keys, wire
from .link import HANDSHAKE_REMEDY, LINK_TIMEOUT, check_address, watch_link
from .senders import SenderLog
from .wire import BadMessage

MAX_NAME = 100  # characters
MAX_PEERS = 4096
# Bounds of what is on the way from one worker: bytes, but at least MIN_CREDIT batches and at most wire.MAX_CREDIT.
CREDIT_BYTES, MIN_CREDIT = 1 << 24, 2
TOTAL_CREDIT_BYTES = 1 << 30  # from all workers together, but at least MIN_CREDIT batches from each
MESSAGES_PER_TURN = 100
PING_SECONDS = 2.0
FAREWELL_SECONDS = 5.0


class _Peer:
    """A worker as the trainer sees it."""

    def __init__(self, route, name, host):
        self.route, self.name, self.host = route, name, host
        self.ready = False  # it has a loader and may be given credit
        self.wanted = set()  # numbers of the batches that it may still send
        self.queued = 0  # batches of it that nobody has taken yet

    def __str__(self):
        return '%s (%s)' % (self.name, self.host)


class BatchReceiver:
    """A source of training batches that data workers on other machines make.

    One thread calls get(), in which messages are received and answered; ZeroMQ's own thread takes in batches meanwhile.
    ready(), report() and hint() may be called by any other thread.

    Args:
        address: tcp://HOST:PORT to listen on; 0.0.0.0 or * for all interfaces.
        settings: dict of input_width, input_height, stride, batchsize (int), seed (int, or None to draw one), and
            augmentation (a dict of pose_augment.Ranges; CMU's when left out), skeleton (JSON; COCO's) and category.
        curve_keys: folder of scripts/make_curve_keys.py; only workers with accepted keys get in then.
        first, every: the number of the first batch and from each to the next; all of them are made once each, and
            come as they are ready.
        link_timeout: seconds without a sign of life after which a worker counts as gone.
    Attributes:
        samples: of the data set, as the first data worker counts them; None until it has joined.
        number: of the batch that get() returned last.
    Raises:
        UserError: bad address, address in use, bad keys.
    """

    def __init__(self, address, settings, curve_keys=None, first=0, every=1, link_timeout=LINK_TIMEOUT):
        host, port = check_address(address, '--remote-data')
        defaults = {'augmentation': dict(pose_augment.CMU_RANGES._asdict()), 'skeleton': pose_skeleton.COCO.to_json(),
                    'category': ''}
        self._settings = dict(defaults, **settings, definitions=wire.definitions())
        if self._settings.get('seed') is None:
            self._settings['seed'] = int.from_bytes(os.urandom(4), 'little')
        wire.check_settings(self._settings)
        self.skeleton = wire.skeleton_of(self._settings)
        self._layout = batch_layout(settings['batchsize'], settings['input_width'], settings['input_height'],
                                    settings['stride'], self.skeleton)
        self._decoder = wire.BatchDecoder(self._layout)
        self._command = 'python3 pose_dataworker.py --master=tcp://%s:%d%s' % (
            socket.gethostname() if host in ('*', '0.0.0.0', '[::]') else host, port,
            ' --curve-keys=DIR' if curve_keys else '')
        self.samples = self.number = None
        self._next, self._every = first, every  # the next batch to ask for ...
        self._again = []  # ... but before it these, a heap: workers that had them to make are gone
        self._peers = {}  # routing id -> _Peer
        self._queue = collections.deque()  # (_Peer, number, frames) of batches not yet taken
        self._log = SenderLog()
        self._pinged = time.monotonic()
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
        watch_link(self._socket, link_timeout)
        self._socket.setsockopt(zmq.IPV6, host.startswith('['))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone fails at once
        self._socket.setsockopt(zmq.RCVHWM, 2 * wire.MAX_CREDIT)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.max_frame_size(self._layout))
        self._questions = None
        if self._curve_keys:
            self._questions = keys.open_server(self._socket, self._context, self._curve_keys)
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
        for zmq_socket in filter(None, (self._socket, self._monitor, self._questions)):
            self._poller.register(zmq_socket, zmq.POLLIN)

    def get(self, timeout=None):
        """The next batch, or None when none came within timeout seconds.

        Returns:
            (image, heatmap, paf, mask) as in pose_samples.batch_layout. The arrays are valid until the next call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._receive(0)
            while not self._socket.closed:
                while self._queue:
                    batch = self._take()
                    if batch:
                        return batch
                left = PING_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._receive(min(left, PING_SECONDS))

    def attend(self, timeout):
        """Receive and answer messages, waiting up to timeout seconds for the first, without taking a batch."""
        with self._lock:
            self._receive(timeout)

    def wait_for_worker(self, timeout):
        """Wait up to timeout seconds for the first data worker. Returns whether `samples` is known."""
        deadline = time.monotonic() + timeout
        while self.samples is None and time.monotonic() < deadline:
            self.attend(min(timeout, PING_SECONDS))
        return self.samples is not None

    def ready(self):
        """How many batches have arrived and wait to be fetched."""
        return len(self._queue)

    def report(self):
        """Lines for the trainer's log, on the time since the last call: who came and went, samples/s, bad messages."""
        return self._log.lines()

    def hint(self):
        """What may help when no batch comes."""
        names = [str(peer) if peer.ready else '%s, still preparing' % peer for peer in list(self._peers.values())]
        state = 'waiting for %s; look at the log there' % ', '.join(names) if names else 'no data worker is connected'
        return '%s. To start a data worker: %s' % (state, self._command)

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
            if self._questions:
                self._questions.close(0)
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
        peer, number, frames = self._queue.popleft()
        peer.queued -= 1
        try:
            batch = self._decoder.decode([frame.buffer for frame in frames])
            self.number = number
        except BadMessage as error:
            self._log.dropped(str(peer), error)
            heapq.heappush(self._again, number)
            batch = None
        if self._peers.get(peer.route) is peer:
            self._grant(peer)
        return batch

    def _grant(self, peer):
        """Top up a worker's credit, in few messages: when half of it has been used."""
        workers = sum(other.ready for other in self._peers.values())
        (_, _, image_shape), *_ = self._layout
        limit = min(CREDIT_BYTES, TOTAL_CREDIT_BYTES // workers) // wire.product(image_shape)
        limit = max(MIN_CREDIT, min(wire.MAX_CREDIT, limit))
        count = limit - len(peer.wanted) - peer.queued
        if count < limit // 2:
            return
        numbers = [self._next_number() for _ in range(count)]
        peer.wanted.update(numbers)
        if not self._send(peer.route, 'credit', batches=numbers):
            self._take_back(peer, numbers)

    def _next_number(self):
        if self._again:
            return heapq.heappop(self._again)
        self._next += self._every
        return self._next - self._every

    def _take_back(self, peer, numbers):
        """What a worker will not send is to be made by others."""
        for number in [number for number in numbers if number in peer.wanted]:
            peer.wanted.remove(number)
            heapq.heappush(self._again, number)

    def _send(self, route, kind, **fields):
        """Send to a worker if it is still there. Returns whether it went out."""
        try:
            self._socket.send_multipart([route, wire.pack(kind, **fields)], zmq.NOBLOCK)
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
        if peer:
            self._take_back(peer, list(peer.wanted))
            if peer.ready:
                self._log.left(peer)
                for other in [other for other in self._peers.values() if other.ready]:
                    self._grant(other)  # they may have had nothing to do

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
            if self._questions in events:
                refused = keys.answer(self._questions, self._curve_keys)
                if refused is not None:
                    self._log.dropped(refused, 'a worker whose key is not accepted was refused')
            if self._monitor in events:
                parse_monitor_message(self._monitor.recv_multipart())
                self._log.dropped('a connection', "it does not speak ZeroMQ, or not with this trainer's keys: "
                                  + HANDSHAKE_REMEDY)
            if self._socket in events:
                route, *frames = self._socket.recv_multipart(copy=False)
                route = route.bytes
                try:
                    self._handle(route, frames)
                except BadMessage as error:
                    self._log.dropped(str(self._peers.get(route, _host(frames))), error)

    def _handle(self, route, frames):
        if not frames:
            raise BadMessage('an empty message')
        peer = self._peers.get(route)
        if peer and len(frames) == wire.BATCH_FRAMES:
            self._enqueue(peer, frames)
            return
        header = wire.unpack(frames[0].buffer)
        kind = header['type']
        if header['version'] != wire.VERSION:
            self._refuse_version(route, header)
        if kind != 'batch' and len(frames) > 1:
            raise BadMessage('%.20r with array frames' % kind)
        if kind == 'hello':
            self._welcome(route, header, _host(frames))
        elif kind == 'batch' and peer:
            self._enqueue(peer, frames)
        elif kind == 'ready' and peer:
            self._start(peer, header)
        elif kind == 'bye' and peer:
            wire.check_fields(header)
            self._remove(route)
        else:
            raise BadMessage('%.20r out of turn' % kind)

    def _refuse_version(self, route, header):
        versions = wire.VERSION, header['version']
        if header['type'] != 'hello':
            raise BadMessage('version %d of the wire, not %d' % versions[::-1])
        self._send(route, 'refused', reason='the trainer speaks version %d of the wire, the worker version %d; use the '
                                            'same version of the code on both' % versions)
        raise BadMessage('a worker that speaks version %d of the wire, not %d, was refused; update the code there or '
                         'here' % versions[::-1])

    def _welcome(self, route, header, host):
        wire.check_fields(header, name=str)
        if not 0 < len(header['name']) <= MAX_NAME or not header['name'].isprintable():
            raise BadMessage('a worker without a proper name')
        if route not in self._peers and len(self._peers) >= MAX_PEERS:
            raise BadMessage('more than %d workers' % MAX_PEERS)
        self._remove(route)
        self._peers[route] = _Peer(route, header['name'], host)
        if self._farewell:
            self._send(route, 'end')
        else:
            self._send(route, 'welcome', settings=self._settings)

    def _start(self, peer, header):
        """A worker's loader runs: it gets credit, unless its data are not those of the others."""
        wire.check_fields(header, samples=int)
        samples = header['samples']
        if not 0 < samples <= wire.MAX_SAMPLES:
            raise BadMessage("'ready' with %d samples" % samples)
        if samples != (self.samples or samples):
            self._send(peer.route, 'refused', reason='this worker has %d samples, the others have %d; give all the '
                                                     'same data set' % (samples, self.samples))
            self._remove(peer.route)
            raise BadMessage('a worker with %d samples was refused, the others have %d; give all the same data set'
                             % (samples, self.samples))
        self.samples = samples
        if not peer.ready:
            peer.ready = True
            self._log.joined(peer)
            self._grant(peer)

    def _enqueue(self, peer, frames):
        number = wire.unpack_number(frames[1].bytes) if len(frames) > 1 else None
        if number not in peer.wanted:
            raise BadMessage('a batch that was not asked for')
        try:
            wire.check_frames(frames[0].bytes, [frame.buffer for frame in frames[2:]], self._layout)
        except BadMessage:
            self._take_back(peer, [number])
            self._grant(peer)
            raise
        peer.wanted.remove(number)
        peer.queued += 1
        self._log.received(peer, self._settings['batchsize'])
        self._queue.append((peer, number, frames[2:]))


def _host(frames):
    try:
        return frames[0].get('Peer-Address')
    except (IndexError, zmq.ZMQError):  # an empty message
        return 'unknown'
