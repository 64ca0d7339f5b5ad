"""Limits on the connections to the trainer, kept by a guard with a thread of its own.

ZeroMQ accepts every connection by itself and only reports it afterwards. So a connection that is one too many, too slow
or no longer accepted is disconnected: the guard shuts its descriptor down, which ZeroMQ sees as the other side's end.

    more than MAX_CONNECTIONS in all, or MAX_PER_HOST of one host           disconnected at once
    no handshake within HANDSHAKE_SECONDS                                   ended by ZeroMQ
    no worker's hello within HELLO_SECONDS                                  disconnected
    more bytes than MAX_GREETING_BYTES, for a worker than its batches have  disconnected
    a key that is no longer accepted (read every KEYS_SECONDS)              disconnected
"""
import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time

import zmq

from . import keys
from .protocol import HANDSHAKE_REMEDY

MAX_CONNECTIONS, MAX_PER_HOST = 1024, 128
RESERVED_FILES = 256  # descriptors that are left for checkpoints, logs and images, however many connections come
HANDSHAKE_SECONDS, HELLO_SECONDS, KEYS_SECONDS = 5.0, 15.0, 10.0
MAX_GREETING_BYTES = 1 << 16  # that may wait to be read; those of the handshake count too
TURN_SECONDS = 0.2
TCP_INFO_BYTES_RECEIVED = 128  # where it lies in Linux's struct tcp_info, 64 bits
EVENTS_PER_TURN = 1000
EVENTS = (zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
          | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
MONITOR = 'inproc://connections'


class _Connection:
    def __init__(self, remote):
        self.remote = remote  # (host, port) of the other side
        self.since = time.monotonic()
        self.owner = self.key = None  # the worker that has sent a hello there, and its key
        self.disconnected = False
        self.bytes_read = 0


class ConnectionGuard:
    """Watches the trainer's socket from before it binds until close(). Raises UserError for bad keys.

    Args:
        zmq_socket, context: the trainer's.  log: a workers.WorkerStats.  curve_keys: folder of keys, or None.
        max_bytes: that may wait to be read from one worker.
        poll: a function that the guard's thread calls every TURN_SECONDS.
    """

    def __init__(self, zmq_socket, context, log, curve_keys, max_bytes, poll):
        self._socket, self._log, self._curve_keys, self._poll = zmq_socket, log, curve_keys, poll
        self._max_bytes = max_bytes + MAX_GREETING_BYTES
        self._limit = connection_limit()
        self._lock = threading.Lock()
        self._connections = {}  # descriptor -> _Connection
        self._failed = False  # the connection whose end comes next has failed its handshake
        self._keys_read = time.monotonic()
        zmq_socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_SECONDS * 1000))
        self._zap_socket = keys.open_server(zmq_socket, context, curve_keys) if curve_keys else None
        zmq_socket.monitor(MONITOR, EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full pipe would stop ZeroMQ's own thread
        self._monitor.connect(MONITOR)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name='connections', daemon=True)
        self._thread.start()

    def register(self, descriptor, owner, key):
        """A worker has sent a hello: its connection may stay. owner: its routing id; key: its public key, or None."""
        with self._lock:
            connection = self._connections.setdefault(descriptor, _Connection(_remote_of(descriptor)))
            connection.owner, connection.key = owner, key

    def add_bytes_read(self, descriptor, count):
        """Count bytes that have been read from a connection."""
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection:
                connection.bytes_read += count

    def expire(self, descriptor, owner):
        """A worker is to leave: its connection has HELLO_SECONDS left, or until the next hello."""
        with self._lock:
            for connection in self._owned(descriptor, owner):
                connection.owner, connection.since = None, time.monotonic()

    def disconnect(self, descriptor, owner):
        """End the connection that a message of `owner` came from, unless it has become another worker's."""
        with self._lock:
            for connection in self._owned(descriptor, owner):
                self._disconnect(descriptor, connection)

    def _owned(self, descriptor, owner):
        connection = self._connections.get(descriptor)
        return [connection] if connection and connection.owner in (None, owner) else []

    def close(self):
        """Stop watching."""
        if not self._closing.is_set():
            # While the thread still reads: ZeroMQ waits for room in the pipe.
            self._socket.monitor(None, 0)
            self._closing.set()
            self._thread.join()
            self._monitor.close(0)
            if self._zap_socket:
                self._zap_socket.close(0)

    def _run(self):
        poller = zmq.Poller()
        for zmq_socket in filter(None, (self._monitor, self._zap_socket)):
            poller.register(zmq_socket, zmq.POLLIN)
        next_turn = time.monotonic()
        while not self._closing.is_set():
            events = dict(poller.poll(TURN_SECONDS * 1000))
            if self._monitor in events:
                self._read_events()
            if self._zap_socket in events:
                refused = keys.answer(self._zap_socket, self._curve_keys)
                if refused is not None:
                    self._log.dropped(refused, 'a worker whose key is not accepted was refused')
            if time.monotonic() >= next_turn:
                self._enforce_limits()
                self._poll()
                next_turn = time.monotonic() + TURN_SECONDS

    def _read_events(self):
        for _ in range(EVENTS_PER_TURN):
            try:
                event, value = struct.unpack('=HI', self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._disconnected(value)
            elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
                self._failed = True

    def _accepted(self, descriptor):
        remote = _remote_of(descriptor)
        with self._lock:
            known = self._connections.get(descriptor)
            connection = known if known and known.owner and known.remote == remote else _Connection(remote)
            self._connections[descriptor] = connection
            hosts = [other.remote[0] for other in self._connections.values() if not other.disconnected]
            of_host, of_all = hosts.count(remote[0]), len(hosts)
            if of_host > MAX_PER_HOST or of_all > self._limit:
                self._disconnect(descriptor, connection)
        if connection.disconnected:
            self._log.dropped(remote[0], 'more than %d connections' % (
                MAX_PER_HOST if of_host > MAX_PER_HOST else self._limit))

    def _disconnected(self, descriptor):
        with self._lock:
            connection = self._connections.pop(descriptor, None)
        if self._failed and connection and not connection.disconnected:
            self._log.dropped('a connection from %s' % connection.remote[0],
                              "it does not speak ZeroMQ, or not with this trainer's keys: " + HANDSHAKE_REMEDY)
        self._failed = False

    def _enforce_limits(self):
        """Disconnect whatever breaks the rules above, but for those of connecting."""
        now, accepted = time.monotonic(), self._accepted_keys()
        violations = []
        with self._lock:
            for descriptor, connection in self._connections.items():
                violation = not connection.disconnected and self._violation(descriptor, connection, now, accepted)
                if violation:
                    self._disconnect(descriptor, connection)
                    violations.append((connection.remote[0], violation))
        for host, violation in violations:
            self._log.dropped(host, violation)

    def _violation(self, descriptor, connection, now, accepted):
        """The rule that a connection breaks, or None."""
        if connection.owner is None and now - connection.since > HELLO_SECONDS:
            return 'a connection on which no worker says hello'
        if accepted is not None and connection.key is not None and connection.key not in accepted:
            return 'a worker whose key has been removed was disconnected'
        received = _bytes_received(descriptor)
        connection.bytes_read = min(connection.bytes_read, received)
        if received - connection.bytes_read > (MAX_GREETING_BYTES if connection.owner is None else self._max_bytes):
            return 'more bytes than it may send'
        return None

    def _accepted_keys(self):
        """The accepted keys when it is time to read them again, else None."""
        if not self._curve_keys or time.monotonic() - self._keys_read < KEYS_SECONDS:
            return None
        self._keys_read = time.monotonic()
        try:
            return keys.accepted_keys(self._curve_keys)
        except OSError as error:  # a file server may be away for a moment: nobody is disconnected for that
            logging.warning('cannot read the accepted keys: %s', error.strerror)
            return None

    def _disconnect(self, descriptor, connection):
        """Under the lock. Nothing happens when the descriptor has become that of something else."""
        if connection.disconnected:
            return
        connection.disconnected = True
        with contextlib.suppress(OSError), _borrowed(descriptor) as its_socket:
            if its_socket.getpeername()[:2] == connection.remote:
                its_socket.shutdown(socket.SHUT_RDWR)


def connection_limit():
    """How many connections there may be at once: MAX_CONNECTIONS, or what this process's limit on files leaves."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    used = len(os.listdir('/proc/self/fd'))
    return min(MAX_CONNECTIONS, max(files - used - RESERVED_FILES, files // 4))


@contextlib.contextmanager
def _borrowed(descriptor):
    """A socket object of a descriptor that stays ZeroMQ's. Raises OSError when it is no socket any more."""
    its_socket = socket.socket(fileno=descriptor)
    try:
        yield its_socket
    finally:
        its_socket.detach()


def _remote_of(descriptor):
    """(host, port) of a connection's other side; ('a host that has gone', 0) when it has closed it already."""
    try:
        with _borrowed(descriptor) as its_socket:
            return its_socket.getpeername()[:2]
    except OSError:
        return 'a host that has gone', 0


def _bytes_received(descriptor):
    """How many bytes have come over a connection; 0 where the system does not say."""
    try:
        with _borrowed(descriptor) as its_socket:
            info = its_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return 0
    known = len(info) >= TCP_INFO_BYTES_RECEIVED + 8
    return struct.unpack_from('=Q', info, TCP_INFO_BYTES_RECEIVED)[0] if known else 0
