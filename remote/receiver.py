"""The trainer's end of the wire: a batch source, filled by data workers on other machines."""
import collections
import logging
import os
import socket
import threading
import time

import zmq

import pose_augment
from batches import START
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
LEAVE_SECONDS, END_SECONDS = 5.0, 5.0
FEW_STEPS = 20  # an epoch of fewer is more likely a mistake


class Refused(BadMessage):
    """A worker that cannot take part; it has been sent the reason."""


class BatchReceiver:
    """A source of training batches that data workers on other machines make.

    One thread calls get(), in which messages are received and answered. ZeroMQ's own thread takes in batches meanwhile;
    the guard's (connections.py) limits connections, and answers messages when get() is not called for long. Any other
    thread may call ready(), report() and diagnosis().

    Args:
        address: tcp://HOST:PORT to listen on; 0.0.0.0 or * for all interfaces.
        settings: dict of input_width, input_height, stride, batchsize (int), skeleton (JSON), seed (int, or None to
            draw one), and perhaps augmentation (a dict of pose_augment.Ranges; CMU's), category, negatives (0) and
            sequence (a batches.Sequence, which batch 0 begins).
        curve_keys: folder of scripts/make_curve_keys.py; only workers with accepted keys get in then.
        first, every: the number of the first batch and from each to the next; they come as they are ready.
        link_timeout: seconds without a sign of life after which a worker counts as gone.
        data: (number of samples, annotations.arrays.samples_digest) that each worker's data set must have; without it,
            the first worker's decides.
    Attributes:
        samples: of the data set, as the first data worker counts them; None until it has joined.
        layout: batches.batch.batch_layout of the batches.  number: of the batch that get() returned last.
    Raises UserError: bad address, address in use, bad keys.
    """

    def __init__(self, address, settings, curve_keys=None, first=0, every=1, link_timeout=LINK_TIMEOUT,
                 data=None):
        host, port = check_address(address, '--remote-data')
        defaults = {'augmentation': dict(pose_augment.CMU_RANGES._asdict()), 'category': '', 'negatives': 0.0,
                    'sequence': START}
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
        self._samples_per_step = settings['batchsize'] * every  # of all processes
        self._scheduler = BatchScheduler(first, every, product(self.layout[0][2]))
        self._workers = {}  # routing id -> WorkerState
        self._queue = collections.deque()  # (WorkerState, number, frames) of batches not yet taken
        self._log, self._lock = WorkerStats(), threading.Lock()
        self._ping_seconds, self._link_timeout = min(PING_SECONDS, link_timeout / 4), link_timeout
        self._pinged, self._ending, self._curve_keys = time.monotonic(), False, curve_keys
        self._context = zmq.Context()
        self._socket, self._guard = self._context.socket(zmq.ROUTER), None
        try:
            self._open(address, host)
        except Exception:
            if self._guard:
                self._guard.close()
            self._context.destroy(linger=0)
            raise

    def _open(self, address, host):
        max_frame, max_batch = protocol.max_sizes(self.layout)
        set_limits(self._socket, max_frame)
        self._socket.setsockopt(zmq.IPV6, host.startswith('['))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone fails at once
        if not self._curve_keys and not (host in ('localhost', '[::1]') or host.startswith('127.')):
            logging.warning('%s is open to everyone who can reach it, without encryption: on a network that you do not '
                            'trust, use --curve-keys', address)
        self._guard = ConnectionGuard(self._socket, self._context, self._log, self._curve_keys,
                                      self._scheduler.max_credit * max_batch, self._poll_when_idle)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise UserError('cannot listen on %s (%s); choose another port or address with --remote-data'
                            % (address, error.strerror))

    def get(self, timeout=None):
        """The next batches.batch.Batch, of read-only arrays; None when none came within timeout seconds."""
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

    def poll(self, timeout):
        """Receive and answer messages, waiting up to timeout seconds for the first, without taking a batch."""
        with self._lock:
            self._receive(timeout)

    def _poll_when_idle(self):
        """Answer messages while get() is not called, as in a long validation: workers wait for pings."""
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
            self.poll(min(timeout, PING_SECONDS))
        return self.samples is not None

    @property
    def digest(self):
        """Of the data set that all data workers have, once `samples` is known."""
        return self._data[1]

    def ready(self):
        """How many batches have arrived and wait to be fetched."""
        return len(self._queue)

    def report(self):
        """Lines for the log, on the time since the last call: workers that joined or left, samples/s, bad messages."""
        return self._log.lines()

    def diagnosis(self):
        """What may help when no batch comes."""
        names = [str(worker) if worker.ready else '%s, still preparing' % worker
                 for worker in list(self._workers.values())]
        state = 'waiting for %s; look at the log there' % ', '.join(names) if names else 'no data worker is connected'
        return '%s. To start a data worker: %s' % (state, self._command)

    def close(self, ended=True):
        """Stop listening. With `ended`, workers are told that training is over and exit; else they wait."""
        with self._lock:
            if self._socket.closed:
                return
            if ended:
                self._ending, deadline = True, time.monotonic() + LEAVE_SECONDS
                for worker in list(self._workers.values()):
                    self._send(worker.route, 'end')
                while self._workers and time.monotonic() < deadline:
                    self._receive(0.1)
                    self._queue.clear()
            self._guard.close()
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

    def _take(self):
        """The oldest batch of the queue, or None when it is bad."""
        worker, number, frames = self._queue.popleft()
        worker.queued -= 1
        batch = None
        try:
            batch = protocol.read_batch([frame.buffer for frame in frames], self.layout)
            self.number = number
        except BadMessage as error:
            self._drop(worker.route, str(worker), error)
            self._scheduler.retry(number)
        if self._workers.get(worker.route) is worker:
            self._grant(worker)
        return batch

    def _grant(self, worker):
        """Top up a worker's credit."""
        numbers = self._scheduler.grant(worker, sum(other.ready for other in self._workers.values()))
        if numbers and not self._send(worker.route, 'credit', batches=numbers):
            self._scheduler.requeue(worker, numbers)

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
        worker = self._workers.pop(route, None)
        if worker:
            self._scheduler.requeue(worker, list(worker.wanted))
            if worker.ready:
                self._log.left(worker)
                for other in [other for other in self._workers.values() if other.ready]:
                    self._grant(other)  # they may have had nothing to do

    def _receive(self, timeout):
        """Handle messages, at most MESSAGES_PER_TURN, waiting up to timeout seconds for the first."""
        if time.monotonic() - self._pinged > self._ping_seconds:
            self._pinged = time.monotonic()
            for worker in list(self._workers.values()):
                if worker.ready and worker.pings * self._ping_seconds > self._link_timeout:  # it answers no more
                    self._remove(worker.route)
                    self._guard.disconnect(worker.descriptor, worker.route)
                elif self._send(worker.route, 'ping'):
                    worker.pings += 1
        for _ in range(MESSAGES_PER_TURN):
            try:
                route, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if not timeout or not self._socket.poll(timeout * 1000):
                    return
                timeout = 0
                continue
            timeout, route = 0, route.bytes
            descriptor, host = _property(frames, zmq.SRCFD, None), _property(frames, 'Peer-Address', 'unknown')
            self._guard.add_bytes_read(descriptor, sum(len(frame) + FRAME_OVERHEAD for frame in frames))
            try:
                self._handle(route, descriptor, host, frames)
            except BadMessage as error:
                self._drop(route, str(self._workers.get(route, host)), error, descriptor)

    def _drop(self, route, sender, error, descriptor=None):
        """Report a bad message. The connection of a stranger is ended, and that of a worker that sends too many."""
        self._log.dropped(sender, error)
        worker = self._workers.get(route)
        if isinstance(error, Refused):
            self._guard.expire(descriptor, route)
        elif worker:
            worker.bad += 1
            if worker.bad > MAX_BAD_MESSAGES:
                self._guard.disconnect(worker.descriptor, route)
        elif descriptor is not None:
            self._guard.disconnect(descriptor, route)

    def _handle(self, route, descriptor, host, frames):
        worker = self._workers.get(route)
        if worker:
            worker.pings = 0
        if worker and len(frames) == protocol.BATCH_FRAMES:
            self._enqueue(worker, frames)
            return
        if len(frames) != 1:
            raise BadMessage('a message of %d frames' % len(frames))
        try:
            header = protocol.unpack_from_worker(frames[0].buffer)
        except OtherVersion as other:
            if other.header['type'] != 'hello':
                raise
            versions = protocol.VERSION, other.header['version']
            self._send(route, 'refused', reason='the trainer speaks version %d of the wire, the worker version %d; use '
                                                'the same version of the code on both' % versions)
            raise Refused('a worker that speaks version %d of the wire, not %d, was refused; update the code there or '
                          'here' % versions[::-1])
        kind = header['type']
        if kind == 'hello' and not worker:
            self._workers[route] = WorkerState(route, descriptor, header['name'], host)
            self._guard.register(descriptor, route, frames[0].get('User-Id') if self._curve_keys else None)
            if self._ending:
                self._send(route, 'end')
            else:
                self._send(route, 'welcome', settings=self._settings)
        elif kind == 'ready' and worker and not worker.ready:
            self._accept(worker, header)
        elif kind == 'pong' and worker:
            pass  # any message is an answer
        elif kind == 'bye' and worker:
            self._remove(route)
            self._guard.expire(worker.descriptor, route)
        else:
            raise BadMessage('%r out of turn' % kind)

    def _accept(self, worker, header):
        """A worker's loader runs: it gets credit, unless its data are not those of the others."""
        data = header['samples'], header['data']
        if data != (self._data or data):
            others = 'the trainer has' if self._first_worker is None else 'the others have'
            numbers = '%d samples, %s %s' % (data[0], others,
                                             '%d' % self._data[0] if data[0] != self._data[0] else 'others')
            remedy = 'give all the same data and --add-data'
            self._send(worker.route, 'refused', reason='this worker has %s; %s' % (numbers, remedy))
            self._remove(worker.route)
            raise Refused('a worker with %s was refused; %s' % (numbers, remedy))
        if self._first_worker is None:
            self._first_worker, self._data, self.samples = worker, data, data[0]
            steps = self.samples // self._samples_per_step  # which epochs and learning rates follow from
            logging.info('%s has %d samples: %d steps per epoch', worker, self.samples, steps)
            if steps < FEW_STEPS:
                logging.warning('%d samples are few, and the length of an epoch follows from them: if this is not the '
                                'whole data set, stop this run and mend that of %s; a trainer with training images in '
                                '--datapath compares by itself', self.samples, worker)
        worker.ready = True
        self._log.joined(worker)
        self._grant(worker)

    def _enqueue(self, worker, frames):
        number = protocol.unpack_number(frames[1].bytes) if len(frames) > 1 else None
        if number not in worker.wanted:
            raise BadMessage('a batch that was not asked for')
        try:
            protocol.check_frames(frames[0].bytes, [frame.buffer for frame in frames[2:]], self.layout)
        except BadMessage:
            self._scheduler.requeue(worker, [number])
            self._grant(worker)
            raise
        worker.wanted.remove(number)
        worker.queued += 1
        self._log.received(worker, self._settings['batchsize'])
        self._queue.append((worker, number, frames[2:]))


def _property(frames, name, default):
    """A property of the connection that a message came from: its host ('Peer-Address') or descriptor (zmq.SRCFD)."""
    try:
        return frames[0].get(name)
    except (IndexError, zmq.ZMQError):
        return default
