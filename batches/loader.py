"""Loader processes that make training batches and hand them over in shared memory.

    trainer  --- a socket pair per worker: "batch b into slot k" -> / <- "slot k is filled" ---  worker 0, worker 1, ...
       |                                                                                         |
       +---- control socket: its end means the other side is gone ----  supervisor (forks and re-forks the workers)

The supervisor is forked once, before TensorFlow starts threads, so that a killed worker can be replaced by a plain fork
at any time. No lock is shared: a process that is killed while it holds one would stop the others. Messages are small
JSON packets; batches stay where the worker wrote them.
"""
import collections
import contextlib
import ctypes
import heapq
import itertools
import json
import logging
import mmap
import os
import select
import selectors
import signal
import socket
import time
import traceback

import cv2
import numpy as np

from annotations.images import BadSample
from pose_dataset import BadSampleCounter
from pose_errors import UserError

from . import START, SampleOrder, batch_positions
from .batch import BatchBuffer, batch_layout, check_memory

# What decides what is in the batch of a number; trainer and data workers compare a checksum of it.
SAMPLE_SOURCES = 'pose_augment.py', 'pose_dataset.py', 'pose_labels.py', 'annotations/*.py', 'batches/*.py'
SLOTS_PER_WORKER = 2  # at most: one to fill while the trainer fetches the other
HELD_SLOTS = 2  # that the caller of get() may still read
SPARE_SLOTS = HELD_SLOTS + 1  # beside one per worker: many workers need not all be ahead, and a batch of 64 takes 28 MB
MAX_PACKET = 1 << 16
POLL_SECONDS = 0.5
CLOSE_SECONDS = 10
MAX_DEATHS_IN_A_ROW = 5
PR_SET_PDEATHSIG = 1
LOADERS_GONE = 'the loader processes were killed; start the command again'


class BatchLoader:
    """Training batches, made by `workers` processes, at least 1. What is in them depends on seed and number alone.

    Args:
        dataset: a pose_dataset.PoseDataset.  seed: None draws one.
        first: the number of the first batch of an endless sequence, delivered in order; or None: only the batches that
            `request` names are made, and delivered as they are ready.
        batchsize, shard, num_shards, sequence: as for batch_positions.
    samples: of the data set.  digest: of their order and content.  skeleton: of its labels.  layout:
        batches.batch.batch_layout of the batches.  number: of the batch that get() returned last.
    Raises UserError: batches that memory does not hold; from get(): too many bad samples, loaders that keep dying.
    """

    def __init__(self, dataset, batchsize, workers, seed=None, first=0, shard=0, num_shards=1, sequence=START):
        self.samples, self.skeleton, self.number = len(dataset), dataset.skeleton, None
        self._dataset, self._counter = dataset, BadSampleCounter(self.samples)
        self.layout = batch_layout(batchsize, dataset.input_width, dataset.input_height, dataset.stride,
                                   dataset.skeleton)
        check_memory(self.layout, workers + SPARE_SLOTS)
        self._slots = [BatchBuffer(self.layout, _shared_array) for _ in range(workers + SPARE_SLOTS)]
        self._slots_of = [{} for _ in range(workers)]  # slot -> number of the batch that each worker is to put there
        self._free = set(range(len(self._slots)))
        self._ready = {}  # number of a batch -> slot that holds it
        self._held = collections.deque()  # the slots whose arrays the caller has
        self._deaths = [0] * workers
        self._next = first  # the batch to deliver
        self._sequence = itertools.count(first) if first is not None else iter(())
        self._requests = []  # a heap: what was asked for, or left behind by a process that died
        self._sockets, worker_ends = zip(*(_packet_pair() for _ in range(workers)))
        self._control, supervisor_end = _packet_pair()
        seed = int(np.random.SeedSequence().entropy) % (1 << 64) if seed is None else seed
        self._supervisor = os.fork()
        if self._supervisor == 0:
            for own in self._sockets + (self._control,):
                own.close()
            _run_and_exit(_supervise, supervisor_end, worker_ends, self._slots, dataset, seed,
                          (shard, num_shards, sequence))
        for other in worker_ends + (supervisor_end,):
            other.close()
        self._selector = selectors.DefaultSelector()
        for worker, own in enumerate(self._sockets):
            self._selector.register(own, selectors.EVENT_READ, worker)
        self._selector.register(self._control, selectors.EVENT_READ, None)
        self._generation = [0] * workers
        self._offer_free_slots()

    @property
    def digest(self):
        return self._dataset.digest

    def request(self, numbers):
        """Have these batches made too."""
        for number in numbers:
            heapq.heappush(self._requests, number)
        self._offer_free_slots()

    def forget(self):
        """Drop the requests that no process has begun, and what is ready."""
        self._requests = []
        self._free |= set(self._ready.values())
        self._ready = {}

    def get(self, timeout=None):
        """The next batches.batch.Batch, or None when none came within timeout seconds.

        Its arrays are valid until the next call but one: a batch can be on its way to a device or a socket while the
        next one is prepared.
        """
        if len(self._held) == HELD_SLOTS:
            self._free.add(self._held.popleft())
            self._offer_free_slots()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._receive(0)
        while not self.ready():
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            self._receive(left)
        if self._next is None:
            self.number = min(self._ready)
        else:
            self.number, self._next = self._next, self._next + 1
        self._held.append(self._ready.pop(self.number))
        return self._slots[self._held[-1]].read()

    def ready(self):
        """How many batches wait to be fetched; of a sequence, those before which none is missing."""
        if self._next is None:
            return len(self._ready)
        return next(count for count in itertools.count() if self._next + count not in self._ready)

    def report(self):
        """Lines for the trainer's log: bad samples so far."""
        line = '%d bad samples skipped, from %d files' % (self._counter.bad, len(self._counter.names))
        return [line] if self._counter.bad else []

    def diagnosis(self):
        """What may help when no batch comes."""
        return 'the disk of --datapath or the loader processes are slow'

    def close(self):
        """End all loader processes."""
        if not self._supervisor:
            return
        with contextlib.suppress(ConnectionError):
            self._control.send(b'stop')
        deadline = time.monotonic() + CLOSE_SECONDS
        os.kill(self._supervisor, signal.SIGCONT)  # it may have been stopped
        while os.waitpid(self._supervisor, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._supervisor, signal.SIGKILL)
            time.sleep(0.01)
        self._supervisor = None
        self._selector.close()
        for own in self._sockets + (self._control,):
            own.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _offer_free_slots(self):
        """Hand the free slots, each with a batch to make, to the workers that have the fewest to fill."""
        while self._free:
            worker = min(range(len(self._slots_of)), key=lambda worker: len(self._slots_of[worker]))
            if len(self._slots_of[worker]) >= SLOTS_PER_WORKER:
                return
            number = heapq.heappop(self._requests) if self._requests else next(self._sequence, None)
            if number is None:
                return
            slot = self._free.pop()
            self._slots_of[worker][slot] = number
            try:
                self._sockets[worker].send(_packet(slot=slot, number=number, generation=self._generation[worker]))
            except ConnectionError:
                raise UserError(LOADERS_GONE)

    def _receive(self, timeout):
        """Take in what workers and supervisor sent, waiting up to timeout seconds for the first."""
        events = self._selector.select(timeout)
        while events:
            for key, _ in events:
                message = _read_packet(key.fileobj)
                if message is not None and key.data is None:
                    self._replace(**message)
                elif message is not None:
                    self._handle(key.data, message)
            events = self._selector.select(0)

    def _handle(self, worker, message):
        if 'failed' in message:
            raise RuntimeError('a loader process failed:\n%s' % message['failed'])
        self._counter.add_good(message['good'])
        if 'bad' in message:
            self._counter.add_bad(*message['bad'])
        if 'filled' in message:
            self._deaths[worker] = 0
            slot = message['filled']
            self._ready[self._slots_of[worker].pop(slot)] = slot
            self._offer_free_slots()

    def _replace(self, worker, generation, status):
        """A worker died and the supervisor has forked another: what its predecessor was to make is handed out again."""
        self._deaths[worker] += 1
        # What it had sent before it died; its successor has been offered nothing yet.
        for message in iter(lambda: _read_packet(self._sockets[worker]), None):
            self._handle(worker, message)
        self._generation[worker] = generation
        lost, self._slots_of[worker] = self._slots_of[worker], {}
        place, remedy = '', 'check the memory of this machine, or start with fewer --workers'
        for buffer in (self._slots[slot] for slot in lost):
            if buffer.current_sample is not None:
                place = '; it was at ' + self._dataset.image_of(buffer.current_sample)
                remedy += ', or remove that image when it is always the same one'
                buffer.current_sample = None
        logging.warning('loader process %d died (%s); a new one took its place%s', worker, status, place)
        if self._deaths[worker] >= MAX_DEATHS_IN_A_ROW:
            raise UserError('loader process %d died %d times in a row (%s)%s; %s'
                            % (worker, self._deaths[worker], status, place, remedy))
        self._free |= set(lost)
        self.request(lost.values())


def _packet_pair():
    # SEQPACKET: a packet arrives whole or not at all, also when its sender is killed.
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _packet(**message):
    return json.dumps(message).encode()


def _read_packet(end):
    """The next message, or None when there is none. Raises UserError when the other side is gone."""
    try:
        packet = end.recv(MAX_PACKET, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionError:  # closed by the other side before it had read everything
        packet = b''
    if not packet:
        raise UserError(LOADERS_GONE)
    return json.loads(packet.decode())


def _shared_array(shape, dtype):
    """An array in memory that forked processes share; pages that nobody writes are not there."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)


def _run_and_exit(function, *args):
    """Run a forked child's function and leave without the parent's clean-up handlers."""
    code = 1
    try:
        # The trainer decides when loading ends: signals to the whole process group are its business.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _supervise(control, worker_ends, slots, dataset, seed, part):
    """Keep one process per worker alive until the trainer closes the control socket or dies. part: shard, num_shards
    and sequence of batch_positions."""
    worker_of = {}

    def start(worker, generation):
        pid = os.fork()
        if pid == 0:
            control.close()
            for other in worker_ends[:worker] + worker_ends[worker + 1:]:
                other.close()
            _run_and_exit(_work, worker_ends[worker], slots, dataset, seed, part, generation)
        worker_of[pid] = worker

    generation = 0
    for worker in range(len(worker_ends)):
        start(worker, generation)
    while not select.select([control], [], [], POLL_SECONDS)[0]:  # until the trainer says stop, or is gone
        for pid in list(worker_of):
            dead, status = os.waitpid(pid, os.WNOHANG)
            if not dead:
                continue
            worker = worker_of.pop(pid)
            generation += 1
            start(worker, generation)
            reason = 'signal %d' % os.WTERMSIG(status) if os.WIFSIGNALED(status) else 'exit %d' % os.WEXITSTATUS(status)
            with contextlib.suppress(ConnectionError):  # the trainer may end at the same moment
                control.send(_packet(worker=worker, generation=generation, status=reason))
    for pid in worker_of:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _work(trainer, slots, dataset, seed, part, generation):
    """Fill the slots that the trainer offers, until it or the supervisor is gone."""
    # Linux kills this process when its parent is gone, also when it is stopped and cannot check by itself.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(0)
    supervisor = os.getppid()
    order = SampleOrder(len(dataset), seed)
    try:
        while os.getppid() == supervisor:
            if not select.select([trainer], [], [], POLL_SECONDS)[0]:
                continue
            packet = trainer.recv(MAX_PACKET)
            if not packet:
                return
            offer = json.loads(packet.decode())
            if offer['generation'] == generation:  # else: offered to a predecessor that died
                buffer = slots[offer['slot']]
                positions = batch_positions(offer['number'], buffer.batchsize, *part)
                good = _fill(buffer, positions, dataset, order, trainer)
                trainer.send(_packet(filled=offer['slot'], good=good))
    except ConnectionError:
        return
    except Exception:
        trainer.send(_packet(failed=traceback.format_exc()[-MAX_PACKET // 4:]))


def _fill(buffer, positions, dataset, order, trainer):
    """Make the samples of these positions. Returns how many were good since the last message about a bad one."""
    good = 0
    for row, position in enumerate(positions):
        for index, rng in order.draws(position):
            buffer.current_sample = index
            try:
                sample = dataset.training_sample(index, rng)
                break
            except BadSample as error:
                trainer.send(_packet(bad=[error.path, error.reason], good=good))
                good = 0
        buffer.current_sample = None
        buffer.write(row, *sample[:5])
        good += 1
    return good
