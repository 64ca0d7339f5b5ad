"""What the processes of a run tell each other beside TensorFlow: that they live, what was started, when to stop.

Each process publishes its state on a ZeroMQ socket of its own and hears those of all others. Nothing but subscriptions
comes in on the own port: messages are taken from the addresses of the cluster only. That a process died or its link
was cut is seen from the connection, which ZeroMQ's own thread keeps alive also while Python is busy. TensorFlow's
collectives would wait for ever for such a process: so a thread ends this one, whatever the main thread does.
"""
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid

import zmq
from zmq.utils.monitor import recv_monitor_message

from pose_cli import Stopped, UserError, printable
from remote.link import LINK_TIMEOUT

DIVERGED_EXIT_CODE = 3  # NaN: all processes see it at the same step
LOST_EXIT_CODE = 4
BEAT_SECONDS = 1.0
BIND_SECONDS = 10.0
RETURN_SECONDS = 10.0  # for a broken connection to come back
REPORT_SECONDS = 30.0
FAREWELL_SECONDS = 15.0
POLL_SECONDS = 0.1
MAX_MESSAGE = 1 << 20
EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
REMEDY = 'look at its log, then start the same commands again: they resume from the last checkpoint'


class _Other:
    """Another process as this one sees it."""

    def __init__(self, name, socket):
        self.name, self.socket = name, socket
        self.monitor = socket.get_monitor_socket(EVENTS)
        self.life = None  # drawn by that process when it started
        self.gone_since = None  # when its connection broke; None while it stands
        self.state = {}  # what it published last


class Peers:
    """The other processes of a run, from the first contact to the end of training.

    Args:
        cluster: a cluster.Cluster. Alone in it, nothing is opened, and all below answers at once.
        stop: this process's StopSignal.
        link_timeout, report_seconds: of a silent link, and between lines about missing processes.
    Raises:
        UserError: the address cannot be listened on.
    """

    def __init__(self, cluster, stop, link_timeout=LINK_TIMEOUT, report_seconds=REPORT_SECONDS):
        self.cluster, self._stop, self._report_seconds = cluster, stop, report_seconds
        self._state = {'life': uuid.uuid4().hex, 'facts': {}, 'stop': False, 'left': False, 'failed': None}
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._others, self._end_alike = [], False
        if cluster.size == 1:
            return
        self._context = zmq.Context()
        self._own = self._context.socket(zmq.PUB)
        self._own.setsockopt(zmq.LINGER, 2000)
        try:
            _bind(self._own, 'tcp://%s:%d' % _own_address(cluster))
        except (zmq.ZMQError, OSError) as error:
            self._context.destroy(linger=0)
            raise UserError('cannot listen on %s:%d (%s); start each worker on the machine that the cluster names for '
                            'it, or choose another port' % (cluster.addresses[cluster.index] + (error.strerror,)))
        for k, (host, port) in enumerate(cluster.addresses):
            if k != cluster.index:
                self._others.append(self._subscribe(cluster.workers[k], 'tcp://%s:%d' % (host, port), link_timeout))
        logging.info('worker %d of %d; listening on %s:%d', cluster.index, cluster.size, *_own_address(cluster))
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _subscribe(self, name, address, link_timeout):
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.setsockopt(zmq.RECONNECT_IVL, 1000)
        subscriber.setsockopt(zmq.HEARTBEAT_IVL, int(link_timeout * 250))
        subscriber.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(link_timeout * 1000))
        subscriber.setsockopt(zmq.IPV6, '[' in address)
        subscriber.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        subscriber.setsockopt(zmq.SUBSCRIBE, b'')
        other = _Other(name, subscriber)
        subscriber.connect(address)
        return other

    def __call__(self):
        """Whether to stop: this process or any other was told to."""
        return self._stop() or any(other.state.get('stop') for other in self._others)

    def check(self):
        """Raise Stopped if one was told to stop."""
        if self():
            raise Stopped('stopped by a signal before the first step')

    def exchange(self, topic, facts, binding=False):
        """Tell all the others something, and wait until each has told its own about the same topic.

        Logs every report_seconds which processes are missing.

        Args:
            facts: a dict for JSON.
            binding: who has told does not stop before all have; none goes on alone then.
        Returns:
            the facts of all processes, in order.
        Raises:
            Stopped: one of the processes was told to stop.
        """
        self.check()
        self._state['facts'] = dict(self._state['facts'], **{topic: facts})
        start = reported = time.monotonic()
        while True:
            missing = [other for other in self._others if topic not in other.state.get('facts', {})]
            if not missing:
                break
            if not binding or any(other.state.get('left') for other in missing):
                self.check()
            if time.monotonic() - reported >= self._report_seconds:
                reported = time.monotonic()
                logging.warning(self._who_is_missing(missing, reported - start))
            time.sleep(POLL_SECONDS)
        told = [other.state['facts'][topic] for other in self._others]
        return told[:self.cluster.index] + [facts] + told[self.cluster.index:]

    def _who_is_missing(self, missing, seconds):
        absent = [other.name for other in missing if not other.state]
        busy = [other.name for other in missing if other.state]
        parts = ['not heard of yet: %s (start the same command there; the ports of all workers, and the next ones, '
                 'have to be open between them)' % ', '.join(absent)] if absent else []
        parts += ['still preparing: %s' % ', '.join(busy)] if busy else []
        return 'waiting for %d of %d workers for %.0f s; %s' % (
            len(missing), self.cluster.size, seconds, '; '.join(parts))

    def agree(self, topic, facts):
        """Exchange facts that must be the same everywhere. Raises UserError, everywhere alike, naming what differs."""
        told = self.exchange(topic, facts)
        for worker, other in zip(self.cluster.workers[1:], told[1:]):
            differing = [name for name in sorted(set(other) | set(told[0])) if other.get(name) != told[0].get(name)]
            if differing:
                # All must have heard all before the first one leaves.
                self.exchange(topic + ' compared', {}, binding=True)
                self._end_alike = True
                raise UserError('the workers differ: %s has %s, %s has %s; start all with the same command, code and '
                                'data' % (self.cluster.workers[0], _listed(told[0], differing), worker,
                                          _listed(other, differing)))

    def explain(self):
        """After TensorFlow failed: wait for what this may come from. Ends the process if another one is lost."""
        time.sleep(LINK_TIMEOUT + RETURN_SECONDS + 5 if self._others else 0)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not self._others:
            return
        alike = self._end_alike or getattr(error, 'exit_code', None) == DIVERGED_EXIT_CODE
        if alike or error is None or isinstance(error, Stopped):
            self._wait_for_the_others()
        else:
            reason = str(error).strip().splitlines() or ['']
            self._state['failed'] = '%s%s' % ('' if isinstance(error, UserError) else kind.__name__ + ': ',
                                              reason[0][:300])
        with self._lock:
            self._closing.set()
            self._state['left'] = True
            self._publish()
            for other in self._others:
                other.socket.disable_monitor()
                other.monitor.close(0)
                other.socket.close(0)
            self._own.close()
        self._context.term()

    def _wait_for_the_others(self):
        """What the last step sent may still be on its way to slower ones."""
        self._state['facts'] = dict(self._state['facts'], end={})
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline and not all(
                other.state.get('left') or 'end' in other.state.get('facts', {}) for other in self._others
                if other.state):
            time.sleep(POLL_SECONDS)
        time.sleep(2 * BEAT_SECONDS)  # so that they hear it too

    # The thread.

    def _watch(self):
        poller, published = zmq.Poller(), 0.0
        for other in self._others:
            poller.register(other.socket, zmq.POLLIN)
            poller.register(other.monitor, zmq.POLLIN)
        while not self._closing.is_set():
            with self._lock:
                if self._closing.is_set():
                    return
                if time.monotonic() - published > BEAT_SECONDS or self._stop() != self._state['stop']:
                    published = time.monotonic()
                    self._state['stop'] = bool(self._stop())
                    self._publish()
                events = dict(poller.poll(0))
                for other in self._others:
                    if other.monitor in events:
                        self._connection_changed(other)
                    if other.socket in events:
                        self._heard(other)
                    if other.gone_since and time.monotonic() - other.gone_since > RETURN_SECONDS:
                        self._lose(other, 'its process ended or the network to it broke')
            time.sleep(POLL_SECONDS)

    def _publish(self):
        self._own.send(json.dumps(self._state).encode())

    def _connection_changed(self, other):
        while other.monitor.poll(0):
            event = recv_monitor_message(other.monitor)['event']
            other.gone_since = None if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else \
                other.gone_since or time.monotonic()
        if not other.life or other.state.get('left') or 'end' in other.state.get('facts', {}):
            other.gone_since = None  # not come yet, or gone as it should

    def _heard(self, other):
        """Take in what it published; the last message counts."""
        while other.socket.poll(0):
            try:
                state = json.loads(other.socket.recv().decode())
                life, facts = state['life'], dict(state['facts'])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # something else listens there; it stays missing
            if other.life not in (None, life):
                self._lose(other, 'it was started anew')
            other.life, other.state = life, dict(state, facts=facts)
            if state.get('failed'):
                self._lose(other, 'it ended: %s' % state['failed'])

    def _lose(self, other, why):
        """End this process: what waits for the other one would wait for ever."""
        print('error: lost worker %s: %s; %s' % (other.name, printable(str(why)), REMEDY), file=sys.stderr, flush=True)
        os._exit(LOST_EXIT_CODE)


def _listed(facts, names):
    return ', '.join('%s=%s' % (name, json.dumps(facts.get(name))) for name in names)


def _bind(publisher, address):
    """Bind, for BIND_SECONDS again and again: what tries to connect to a port of its own machine on which nobody
    listens yet may be given that very port to come from, and holds it for a moment."""
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return publisher.bind(address)
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _own_address(cluster):
    """(address, port) to listen on: of the host that the cluster names for this process, and of no other.

    Debian gives a machine's own name to 127.0.1.1, where no other machine gets in; then it is the address from which
    the others are reached.
    """
    host, port = cluster.addresses[cluster.index]
    address = _resolve(host)
    others = [other for other, _ in cluster.addresses if other != host]
    if address.startswith('127.') and others and host != address and host != 'localhost':
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect((_resolve(others[0]), port))  # sends nothing
            address = probe.getsockname()[0]
    return address, port


def _resolve(host):
    return host if host.startswith('[') else socket.gethostbyname(host)
