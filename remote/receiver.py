"""The trainer's end of the wire: a batch source, filled by data workers on other machines."""
import collections
import logging
import os
import socket
import threading
import time

import zmq

import pose_augment
from annotations.skeleton import COCO_SKELETON
from batches.batch import batch_layout, check_memory, product
from batches.loader import SAMPLE_SOURCES
from pose_errors import UserError
from pose_files import sources_digest

from . import protocol
from .connections import ConnectionGuard
from .protocol import LINK_TIMEOUT, PING_SECONDS, BadMessage, OtherVersion, check_address, check_settings, set_limits, \
    skeleton_of_settings
from .workers import BatchScheduler, WorkerState, WorkerStats

MAX_BAD_MESSAGES = 100  # of one worker, after which it has to connect again
MESSAGES_PER_TURN = 100
FRAME_OVERHEAD = 64  # bytes at most that a frame takes on the way beside its own, encrypted or not
FAREWELL_SECONDS, END_SECONDS = 5.0, 5.0
FEW_STEPS = 20  # an epoch of fewer is more likely a mistake


class Refused(BadMessage):
    """A worker that cannot take part, and has been told why."""


class BatchReceiver:
    """A source of training batches that data workers on other machines make.

    One thread calls get(), in which messages are received and answered. ZeroMQ's own thread takes in batches meanwhile;
    the door's (door.py) watches who connects, and answers messages when get() is not called for long. ready(), report()
    and diagnosis() may be called by any other thread.

    Args:
        address: tcp://HOST:PORT to listen on; 0.0.0.0 or * for all interfaces.
        settings: dict of input_width, input_height, stride, batchsize (int), seed (int, or None to draw one), and
            augmentation (a dict of pose_augment.Ranges; CMU's when left out), skeleton (JSON; COCO's), category and
            negatives (0).
        curve_keys: folder of scripts/make_curve_keys.py; only workers with accepted keys get in then.
        first, every: the number of the first batch and from each to the next; all of them are made once each, and
            come as they are ready.
        link_timeout: seconds without a sign of life after which a worker counts as gone.
        data: (number of samples, annotations.arrays.samples_digest) that each worker's data set must have; without it, the first
            worker's decides.
    Attributes:
        samples: of the data set, as the first data worker counts them; None until it has joined.
        layout: batches.batch.batch_layout of the batches.
        number: of the batch that get() returned last.
    Raises:
        UserError: bad address, address in use, bad keys.
    """

    def __init__(self, address, settings, curve_keys=None, first=0, every=1, link_timeout=LINK_TIMEOUT,
                 data=None):
        host, port = check_address(address, '--remote-data')
        defaults = {'augmentation': dict(pose_augment.CMU_RANGES._asdict()), 'skeleton': COCO_SKELETON.to_json(),
                    'category': '', 'negatives': 0.0}
        self._settings = dict(defaults, **settings, code=sources_digest(*SAMPLE_SOURCES))
        if self._settings.get('seed') is None:
            self._settings['seed'] = int.from_bytes(os.urandom(4), 'little')
        check_settings(self._settings, 'this command')
        self.skeleton = skeleton_of_settings(self._settings)
        self.layout = batch_layout(settings['batchsize'], settings['input_width'], settings['input_height'],
                                    settings['stride'], self.skeleton)
        check_memory(self.layout, 1)
        self._command = 'python3 pose_dataworker.py --master=tcp://%s:%d%s' % (
            socket.gethostname() if host in ('*', '0.0.0.0', '[::]') else host, port,
            ' --curve-keys=DIR' if curve_keys else '')
        self.samples = self.number = None
        self._data, self._first_worker = data, None
        self._credits = BatchScheduler(first, every, product(self.layout[0][2]))
        self._peers = {}  # routing id -> Peer
        self._queue = collections.deque()  # (Peer, number, frames) of batches not yet taken
        self._log = WorkerStats()
        self._pinged = time.monotonic()
        self._ping_seconds, self._link_timeout = min(PING_SECONDS, link_timeout / 4), link_timeout
        self._farewell = False
        self._lock = threading.Lock()

        self._curve_keys = curve_keys
        self._context = zmq.Context()
        self._socket, self._door = self._context.socket(zmq.ROUTER), None
        try:
            self._open(address, host)
        except Exception:
            if self._door:
                self._door.close()
            self._context.destroy(linger=0)
            raise

    def _open(self, address, host):
        set_limits(self._socket, protocol.max_frame_size(self.layout))
        self._socket.setsockopt(zmq.IPV6, host.startswith('['))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone fails at once
        if not self._curve_keys and not (host in ('localhost', '[::1]') or host.startswith('127.')):
            logging.warning('%s is open to everyone who can reach it, without encryption: on a network that you do not '
                            'trust, use --curve-keys', address)
        self._door = ConnectionGuard(self._socket, self._context, self._log, self._curve_keys,
                          self._credits.most * protocol.max_batch_size(self.layout), self._attend_if_nobody_does)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise UserError('cannot listen on %s (%s); choose another port or address with --remote-data'
                            % (address, error.strerror))

    def get(self, timeout=None):
        """The next batch, or None when none came within timeout seconds.

        Returns:
            A batches.batch.Batch, of arrays that cannot be written.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if not self._socket.closed:
                self._receive(0)
            while not self._socket.closed:
                while self._queue:
                    batch = self._take()
                    if batch:
                        return batch
                left = self._ping_seconds if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._receive(min(left, self._ping_seconds))

    def attend(self, timeout):
        """Receive and answer messages, waiting up to timeout seconds for the first, without taking a batch."""
        with self._lock:
            self._receive(timeout)

    def _attend_if_nobody_does(self):
        """Answer messages while get() is not called, as in a long validation: workers know then that they are known."""
        if self._lock.acquire(False):
            try:
                if not self._socket.closed:
                    self._receive(0)
            finally:
                self._lock.release()

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

    def diagnosis(self):
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
            self._door.close()
            self._socket.close(500 if ended else 0)
            # In a thread, as nobody can interrupt it: whatever may hold it up, the run ends.
            ending = threading.Thread(target=self._context.term, daemon=True)
            ending.start()
            ending.join(END_SECONDS)

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
            batch = protocol.read_batch([frame.buffer for frame in frames], self.layout)
            self.number = number
        except BadMessage as error:
            self._drop(peer.route, str(peer), error)
            self._credits.again(number)
            batch = None
        if self._peers.get(peer.route) is peer:
            self._grant(peer)
        return batch

    def _grant(self, peer):
        """Top up a worker's credit."""
        numbers = self._credits.grant(peer, sum(other.ready for other in self._peers.values()))
        if numbers and not self._send(peer.route, 'credit', batches=numbers):
            self._credits.take_back(peer, numbers)

    def _send(self, route, kind, **fields):
        """Send to a worker if it is still there. Returns whether it went out."""
        try:
            self._socket.send_multipart([route, protocol.pack(kind, **fields)], zmq.NOBLOCK)
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
            self._credits.take_back(peer, list(peer.wanted))
            if peer.ready:
                self._log.left(peer)
                for other in [other for other in self._peers.values() if other.ready]:
                    self._grant(other)  # they may have had nothing to do

    def _receive(self, timeout):
        """Take in what has arrived, waiting up to timeout seconds for the first; at most MESSAGES_PER_TURN messages."""
        if time.monotonic() - self._pinged > self._ping_seconds:
            self._ping()
        for _ in range(MESSAGES_PER_TURN):
            try:
                route, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if not timeout or not self._socket.poll(timeout * 1000):
                    return
                timeout = 0
                continue
            timeout, route, descriptor = 0, route.bytes, _descriptor(frames)
            self._door.taken(descriptor, sum(len(frame) + FRAME_OVERHEAD for frame in frames))
            try:
                self._handle(route, descriptor, frames)
            except BadMessage as error:
                self._drop(route, str(self._peers.get(route, _host(frames))), error, descriptor)

    def _ping(self):
        """Ping the workers, and give those up that have a loader and answer no more."""
        self._pinged = time.monotonic()
        for peer in list(self._peers.values()):
            if peer.ready and peer.pings * self._ping_seconds > self._link_timeout:
                self._remove(peer.route)
                self._door.show_out(peer.descriptor, peer.route)
            elif self._send(peer.route, 'ping'):
                peer.pings += 1

    def _drop(self, route, sender, error, descriptor=None):
        """Report a bad message. Who is no worker has to go, and so has a worker that goes on with them."""
        self._log.dropped(sender, error)
        peer = self._peers.get(route)
        if isinstance(error, Refused):
            self._door.dismiss(descriptor, route)
        elif peer:
            peer.bad += 1
            if peer.bad > MAX_BAD_MESSAGES:
                self._door.show_out(peer.descriptor, route)
        elif descriptor is not None:
            self._door.show_out(descriptor, route)

    def _handle(self, route, descriptor, frames):
        peer = self._peers.get(route)
        if peer:
            peer.pings = 0
        if peer and len(frames) == protocol.BATCH_FRAMES:
            self._enqueue(peer, frames)
            return
        if len(frames) != 1:
            raise BadMessage('a message of %d frames' % len(frames))
        try:
            header = protocol.unpack_from_worker(frames[0].buffer)
        except OtherVersion as other:
            self._refuse_version(route, other)
        kind = header['type']
        if kind == 'hello' and not peer:
            self._welcome(route, descriptor, header, frames[0])
        elif kind == 'ready' and peer and not peer.ready:
            self._start(peer, header)
        elif kind == 'pong' and peer:
            pass  # any message is an answer
        elif kind == 'bye' and peer:
            self._remove(route)
            self._door.dismiss(peer.descriptor, route)
        else:
            raise BadMessage('%r out of turn' % kind)

    def _refuse_version(self, route, other):
        versions = protocol.VERSION, other.header['version']
        if other.header['type'] != 'hello':
            raise other
        self._send(route, 'refused', reason='the trainer speaks version %d of the wire, the worker version %d; use the '
                                            'same version of the code on both' % versions)
        raise Refused('a worker that speaks version %d of the wire, not %d, was refused; update the code there or '
                      'here' % versions[::-1])

    def _welcome(self, route, descriptor, header, frame):
        self._peers[route] = WorkerState(route, descriptor, header['name'], _host([frame]))
        self._door.admit(descriptor, route, frame.get('User-Id') if self._curve_keys else None)
        if self._farewell:
            self._send(route, 'end')
        else:
            self._send(route, 'welcome', settings=self._settings)

    def _start(self, peer, header):
        """A worker's loader runs: it gets credit, unless its data are not those of the others."""
        data = header['samples'], header['data']
        if data != (self._data or data):
            others = 'the trainer has' if self._first_worker is None else 'the others have'
            numbers = '%d samples, %s %s' % (data[0], others,
                                             '%d' % self._data[0] if data[0] != self._data[0] else 'others')
            self._send(peer.route, 'refused', reason='this worker has %s; give all the same data set' % numbers)
            self._remove(peer.route)
            raise Refused('a worker with %s was refused; give all the same data set' % numbers)
        if self._first_worker is None:
            self._first_worker, self._data, self.samples = peer, data, data[0]
            self._tell_data(peer)
        peer.ready = True
        self._log.joined(peer)
        self._grant(peer)

    def _tell_data(self, peer):
        """Epochs and learning rates follow from the number of samples: say it, and when it is likely a mistake."""
        steps = self.samples // self._settings['batchsize']
        logging.info('%s has %d samples: %d steps per epoch', peer, self.samples, steps)
        if steps < FEW_STEPS:
            logging.warning('%d samples are few, and the length of an epoch follows from them: if this is not the '
                            'whole data set, stop this run and mend that of %s; a trainer with training images in '
                            '--datapath compares by itself', self.samples, peer)

    def _enqueue(self, peer, frames):
        number = protocol.unpack_number(frames[1].bytes) if len(frames) > 1 else None
        if number not in peer.wanted:
            raise BadMessage('a batch that was not asked for')
        try:
            protocol.check_frames(frames[0].bytes, [frame.buffer for frame in frames[2:]], self.layout)
        except BadMessage:
            self._credits.take_back(peer, [number])
            self._grant(peer)
            raise
        peer.wanted.remove(number)
        peer.queued += 1
        self._log.received(peer, self._settings['batchsize'])
        self._queue.append((peer, number, frames[2:]))


def _host(frames):
    try:
        return frames[0].get('Peer-Address')
    except (IndexError, zmq.ZMQError):
        return 'unknown'


def _descriptor(frames):
    """The descriptor of the connection that a message came from, None when that is not known."""
    try:
        return frames[0].get(zmq.SRCFD)
    except (IndexError, zmq.ZMQError):
        return None
