"""The trainer's end of the wire: a source of training batches that data workers on other machines make."""
import collections
import logging
import os
import socket
import threading
import time

import numpy as np
import zmq
from zmq.utils.monitor import parse_monitor_message

import pose_augment
from pose_cli import UserError
from pose_samples import batch_layout
from remote import keys, wire
from remote.wire import BadMessage

SESSION_BYTES = 16
MAX_PEERS = 4096
# Bounds of what is on the way from one worker: bytes, but at least 2 and at most 16 batches.
CREDIT_BYTES, MIN_CREDIT, MAX_CREDIT = 1 << 24, 2, 16
TOTAL_CREDIT_BYTES = 1 << 30  # from all workers together, but at least MIN_CREDIT batches from each
MESSAGES_PER_TURN = 100
PING_SECONDS = 2.0
FAREWELL_SECONDS = 5.0
NAMED_SENDERS = 20  # bad senders that are told apart in one log interval


class _Peer:
    """A worker as the trainer sees it."""

    def __init__(self, route, name, host, number):
        self.route, self.name, self.host, self.number = route, name, host, number
        self.ready = False  # it has a loader and may be given credit
        self.credit = 0  # batches that it may send or has sent, and that nobody has taken yet
        self.expected = 0  # batches that it may still send

    def __str__(self):
        return '%s (%s)' % (self.name, self.host)


class Activity:
    """Who is there, what they have sent and what was dropped: for the log.

    The thread that receives writes it, and the one that logs reads it; each method takes the lock.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._peers = {}  # routing id -> _Peer
        self._samples = {}  # routing id -> samples since the last report, of the workers that are ready
        self._events = []  # lines for report()
        self._bad = {}  # sender -> [number of bad messages since the last report, the last one's fault]
        self._reported = time.monotonic()

    def greeted(self, peer):
        """A worker has introduced itself; it may be one that is there already."""
        with self._lock:
            self._peers[peer.route] = peer
            self._samples.pop(peer.route, None)

    def joined(self, peer):
        """A worker is ready to send."""
        with self._lock:
            self._samples[peer.route] = 0
            self._events.append('data worker joined: %s' % peer)

    def left(self, peer):
        with self._lock:
            del self._peers[peer.route]
            if self._samples.pop(peer.route, None) is not None:
                self._events.append('data worker left: %s' % peer)

    def sent(self, peer, samples):
        with self._lock:
            self._samples[peer.route] += samples

    def misbehaved(self, sender, fault):
        """Count a bad message; the first one of each sender since the last report is logged at once."""
        with self._lock:
            if sender not in self._bad and len(self._bad) >= NAMED_SENDERS:
                sender = 'others'
            count = self._bad.get(sender, (0,))[0] + 1
            self._bad[sender] = [count, str(fault)]
        if count == 1:
            logging.warning('dropped a bad message from %s: %s', sender, fault)

    def workers(self):
        """The workers that are connected, as text."""
        with self._lock:
            return [str(peer) if route in self._samples else '%s, still preparing' % peer
                    for route, peer in self._peers.items()]

    def report(self):
        """Lines on the time since the last report."""
        now = time.monotonic()
        with self._lock:
            seconds, self._reported = max(now - self._reported, 1e-3), now
            lines, self._events = self._events, []
            bad, self._bad = self._bad, {}
            rates = ['%s %.1f' % (peer.name, self._samples[route] / seconds)
                     for route, peer in self._peers.items() if route in self._samples]
            self._samples = dict.fromkeys(self._samples, 0)
        if rates:
            lines.append('data workers, samples/s: ' + ', '.join(rates))
        return lines + ['dropped %d bad messages from %s (last: %s)' % (count, sender, fault)
                        for sender, (count, fault) in sorted(bad.items())]


class BatchReceiver:
    """A source of training batches that data workers on other machines make.

    get() and wait_for_worker() do all receiving and answering; ZeroMQ's own thread takes in batches meanwhile. One
    thread at a time may call them. Others may call ready(), report() and hint() meanwhile, which do not wait for it,
    and close(), which does.

    Args:
        address: tcp://HOST:PORT to listen on; 0.0.0.0 or * for all interfaces.
        settings: dict of input_width, input_height, stride, batchsize (int), seed (int, or None to draw one), and
            augmentation (a dict of pose_augment.Ranges; CMU's when left out).
        curve_keys: folder of scripts/make_curve_keys.py; only workers with accepted keys get in then.
        link_timeout: seconds without a sign of life after which a worker counts as gone.
    Attributes:
        samples: of the data set, as the first data worker counts them; None until it has joined.
    Raises:
        UserError: bad address, address in use, bad keys.
    """

    def __init__(self, address, settings, curve_keys=None, link_timeout=wire.LINK_TIMEOUT):
        host, port = wire.check_address(address, '--remote-data')
        self._settings = dict({'augmentation': dict(pose_augment.CMU_RANGES._asdict())}, **settings,
                              definitions=wire.definitions())
        if self._settings.get('seed') is None:
            self._settings['seed'] = int.from_bytes(os.urandom(4), 'little')
        wire.check_settings(self._settings)
        self._layout = batch_layout(settings['batchsize'], settings['input_width'], settings['input_height'],
                                    settings['stride'])
        self._image_bytes = int(np.prod(self._layout[0][2]))
        self._decoder = wire.BatchDecoder(self._layout)
        self._command = 'python3 pose_dataworker.py --master=tcp://%s:%d%s' % (
            socket.gethostname() if host in ('*', '0.0.0.0', '[::]') else host, port,
            ' --curve-keys=DIR' if curve_keys else '')
        self._session = os.urandom(SESSION_BYTES)
        self.samples = None
        self._workers_seen = 0
        self._peers = {}  # routing id -> _Peer
        self._queue = collections.deque()  # (_Peer, frames) of batches not yet taken
        self._activity = Activity()
        self._pinged = time.monotonic()
        self._farewell = False
        self._lock = threading.Lock()  # of the sockets and what is known of the workers; report() does without

        self._curve_keys = curve_keys
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._open(address, host, link_timeout)
        except Exception:
            self._context.destroy(linger=0)
            raise

    def _open(self, address, host, link_timeout):
        wire.set_link_options(self._socket, link_timeout)
        self._socket.ipv6 = host.startswith('[')
        self._socket.router_mandatory = True  # sending to a worker that is gone fails at once
        self._socket.rcvhwm = 2 * MAX_CREDIT
        self._socket.maxmsgsize = wire.max_frame_size(self._layout)
        self._zap = None
        if self._curve_keys:
            keys.secure_trainer(self._socket, self._curve_keys)
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind('inproc://zeromq.zap.01')
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
                        return batch
                left = PING_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._receive(min(left, PING_SECONDS))

    def wait_for_worker(self, timeout):
        """Wait up to timeout seconds for the first data worker. Returns whether `samples` is known."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self.samples is None and time.monotonic() < deadline:
                self._receive(min(timeout, PING_SECONDS))
        return self.samples is not None

    def ready(self):
        """How many batches have arrived and wait to be fetched."""
        return len(self._queue)

    def report(self):
        """Lines for the trainer's log, on the time since the last call: who came and went, samples/s, bad messages."""
        return self._activity.report()

    def hint(self):
        """What may help when no batch comes."""
        workers = self._activity.workers()
        state = 'no data worker is connected'
        if workers:
            state = 'waiting for %s; look at the log there' % ', '.join(workers)
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
            self._activity.misbehaved(str(peer), error)
            return None

    def _grant(self, peer):
        """Top up a worker's credit, in few messages: when half of it has been used."""
        workers = sum(other.ready for other in self._peers.values())
        limit = min(CREDIT_BYTES, TOTAL_CREDIT_BYTES // workers) // self._image_bytes
        limit = max(MIN_CREDIT, min(MAX_CREDIT, limit))
        count = limit - peer.credit
        if count >= limit // 2 and self._send(peer.route, 'credit', count=count):
            peer.credit += count
            peer.expected += count

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
            self._activity.left(peer)

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
                self._authenticate()
            if self._monitor in events:
                parse_monitor_message(self._monitor.recv_multipart())
                self._activity.misbehaved('a connection', "it does not speak ZeroMQ, or not with this trainer's keys: "
                                          + keys.HANDSHAKE_REMEDY)
            if self._socket in events:
                route, *frames = self._socket.recv_multipart(copy=False)
                route = route.bytes
                try:
                    self._handle(route, frames)
                except BadMessage as error:
                    self._activity.misbehaved(str(self._peers.get(route, _host(frames))), error)

    def _authenticate(self):
        answer, refused = keys.answer_zap(self._zap.recv_multipart(), self._curve_keys)
        if refused is not None:
            self._activity.misbehaved(refused, 'a worker whose key is not accepted was refused')
        self._zap.send_multipart(answer)

    def _handle(self, route, frames):
        if not frames:
            raise BadMessage('an empty message')
        peer = self._peers.get(route)
        if peer and len(frames) == 1 + wire.WIRE_FRAMES:
            self._enqueue(peer, frames[0].bytes, frames[1:])
            return
        header = wire.unpack(frames[0].buffer)
        kind = header['type']
        self._check_version(route, header)
        if kind != 'batch' and len(frames) > 1:
            raise BadMessage('%.20r with array frames' % kind)
        if kind == 'hello':
            self._welcome(route, header, _host(frames))
        elif kind == 'batch' and peer:
            self._enqueue(peer, frames[0].bytes, frames[1:])
        elif kind == 'ready' and peer:
            self._join(peer, header)
        elif kind == 'bye' and peer:
            wire.check_fields(header)
            self._remove(route)
        else:
            raise BadMessage('%.20r out of turn' % kind)

    def _check_version(self, route, header):
        theirs = header['version']
        if theirs == wire.VERSION:
            return
        if header['type'] == 'hello':
            self._send(route, 'refused', reason='the trainer speaks version %d of the wire, the worker version %d'
                       % (wire.VERSION, theirs))
            raise BadMessage('a worker that speaks version %d of the wire, not %d, was refused; update the code there '
                             'or here' % (theirs, wire.VERSION))
        raise BadMessage('version %d of the wire, not %d' % (theirs, wire.VERSION))

    def _welcome(self, route, header, host):
        wire.check_fields(header, name=str, session=bytes, number=int)
        if not 0 < len(header['name']) <= wire.MAX_NAME or not header['name'].isprintable():
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
        self._activity.greeted(self._peers[route])
        if self._farewell:
            self._send(route, 'end')
        else:
            self._send(route, 'welcome', session=self._session, number=number,
                       settings=dict(self._settings, seed=wire.worker_seed(self._settings['seed'], number)))

    def _join(self, peer, header):
        wire.check_fields(header, samples=int)
        if not 0 < header['samples'] <= wire.MAX_SAMPLES:
            raise BadMessage("'ready' with %d samples" % header['samples'])
        self.samples = self.samples or header['samples']
        if not peer.ready:
            peer.ready = True
            self._activity.joined(peer)
            self._grant(peer)

    def _enqueue(self, peer, header, frames):
        if not peer.expected:
            raise BadMessage('a batch that was not asked for')
        peer.expected -= 1
        try:
            wire.check_frames(header, [frame.buffer for frame in frames], self._layout)
        except BadMessage:
            peer.credit -= 1
            self._grant(peer)
            raise
        self._activity.sent(peer, self._settings['batchsize'])
        self._queue.append((peer, frames))


def _host(frames):
    try:
        return frames[0].get('Peer-Address')
    except (IndexError, zmq.ZMQError):  # an empty message
        return 'unknown'
