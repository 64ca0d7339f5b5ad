"""What the processes of a run agree on beside TensorFlow: what was started, that all live, when to stop.

A run of one process needs none of it: SingleProcess answers at once. Of several, each is a MultiProcess: it publishes
its state on a ZeroMQ socket of its own and receives those of all others. Nothing but subscriptions
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

from pose_errors import Stopped, UserError, printable, reason_of
from remote.protocol import LINK_TIMEOUT

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


def open_coordinator(cluster, stop):
    """The coordinator of this process. cluster: a cluster.Cluster.  stop: its StopSignal.  Raises as MultiProcess."""
    return MultiProcess(cluster, stop) if cluster.size > 1 else SingleProcess(cluster, stop)


class SingleProcess:
    """A run of one process, which agrees with itself. cluster: a cluster.Cluster.  stop: its StopSignal."""

    def __init__(self, cluster, stop):
        self.cluster, self._stop = cluster, stop

    def __call__(self):
        """Whether a process of the run was told to stop."""
        return self._stop()

    def check(self):
        """Raise Stopped if one was told to stop."""
        if self():
            raise Stopped('stopped by %s before the first step' % self._stop.reason)

    def stop(self):
        """Ask all processes to stop after the next step, as a signal does."""
        self._stop.after(0)

    def all_gather(self, topic, facts, barrier=False):
        """The facts of all processes about a topic, in order; see MultiProcess."""
        if not barrier:
            self.check()
        return [facts]

    def assert_same(self, topic, facts):
        """Raise UserError, in all processes alike, where facts, a function, gives others in another one of them."""

    def wait_for_failure(self):
        """After TensorFlow failed: wait for the failure of another process that this may come from."""

    def should_stop(self):
        """Whether training ends now, after the step that was the last one for all processes."""
        return self._stop()

    def should_stop_waiting(self):
        """Whether waiting for a batch ends now."""
        return self._stop()

    def feed_dict(self, training):
        """What to feed to a step. training: a towers.Training."""
        return {}

    def pop_control(self, metrics):
        """The metrics of a step without what the processes told each other in it."""
        return metrics

    def straggler_note(self, waited, busy):
        """The end of an interval's log line: which process holds up the others."""
        return ''

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        pass


class _Other:
    """Another process as this one sees it."""

    def __init__(self, name, socket):
        self.name, self.socket = name, socket
        self.monitor = socket.get_monitor_socket(EVENTS)
        self.incarnation = None  # drawn by that process when it started
        self.gone_since = None  # when its connection broke; None while it stands
        self.state = {}  # what it published last

    def is_done(self):
        """Whether it has done all steps, or is gone as it should."""
        return self.state.get('left') or 'end' in self.state.get('facts', {})


class MultiProcess(SingleProcess):
    """The other processes of a run, from the first contact to the end of training.

    All do the same steps: that one is told to stop, it tells the others in its next step's all-reduce.

    link_timeout, report_seconds: of a silent link, and between lines about missing processes.
    Raises UserError when the address cannot be listened on.
    """

    def __init__(self, cluster, stop, link_timeout=LINK_TIMEOUT, report_seconds=REPORT_SECONDS):
        super().__init__(cluster, stop)
        self._report_seconds = report_seconds
        self._state = {'incarnation': uuid.uuid4().hex, 'facts': {}, 'seconds': None, 'stop': False, 'left': False,
                       'failed': None}
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._others, self._end_alike, self._stopped = [], False, False
        self._context = zmq.Context()
        self._own = self._context.socket(zmq.PUB)
        self._own.setsockopt(zmq.LINGER, 2000)
        self._own.setsockopt(zmq.IPV6, cluster.addresses[cluster.index][0].startswith('['))
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
        threading.Thread(target=self._watch, daemon=True).start()

    def _subscribe(self, name, address, link_timeout):
        subscriber = self._context.socket(zmq.SUB)
        for option, value in ((zmq.LINGER, 0), (zmq.RECONNECT_IVL, 1000), (zmq.HEARTBEAT_IVL, int(link_timeout * 250)),
                              (zmq.HEARTBEAT_TIMEOUT, int(link_timeout * 1000)), (zmq.IPV6, '[' in address),
                              (zmq.MAXMSGSIZE, MAX_MESSAGE), (zmq.SUBSCRIBE, b'')):
            subscriber.setsockopt(option, value)
        other = _Other(name, subscriber)
        subscriber.connect(address)
        return other

    def __call__(self):
        return self._stop() or any(other.state.get('stop') for other in self._others)

    def all_gather(self, topic, facts, barrier=False):
        """Send facts (a dict for JSON) to all the others, and wait until each has sent its own about the same topic.

        Logs every report_seconds which processes are missing. Returns the facts of all processes, in order. Raises
        Stopped when one of them was told to stop.

        topic: its name; NAME@20 takes the place of an earlier NAME@10, which all have received then.
        barrier: a stop does not end the wait, nor keep from it: no process goes on alone then.
        """
        if not barrier:
            self.check()
        name, facts = topic.split('@')[0], json.loads(json.dumps(facts))  # a tuple as the list that the others receive
        kept = {other: each for other, each in self._state['facts'].items() if other.split('@')[0] != name}
        self._state['facts'] = dict(kept, **{topic: facts})
        start = reported = time.monotonic()
        while True:
            theirs = [other.state.get('facts', {}).get(topic) for other in self._others]
            missing = [other for other, their in zip(self._others, theirs) if their is None]
            if not missing:
                break
            if not barrier or any(other.state.get('left') for other in missing):
                self.check()
            if time.monotonic() - reported >= self._report_seconds:
                reported = time.monotonic()
                logging.warning(self._who_is_missing(missing, reported - start))
            time.sleep(POLL_SECONDS)
        return theirs[:self.cluster.index] + [facts] + theirs[self.cluster.index:]

    def _who_is_missing(self, missing, seconds):
        absent = ', '.join(other.name for other in missing if not other.state)
        busy = ', '.join(other.name for other in missing if other.state)
        parts = [absent and 'not heard of yet: %s (start the same command there; the ports of all workers, and the '
                 'next ones, have to be open between them)' % absent, busy and 'still preparing: %s' % busy]
        return 'waiting for %d of %d workers for %.0f s; %s' % (
            len(missing), self.cluster.size, seconds, '; '.join(filter(None, parts)))

    def assert_same(self, topic, facts):
        """Raise UserError, in all processes alike, naming what differs between them. facts: a function: a dict for
        JSON."""
        first, *others = self.all_gather(topic, facts())
        for worker, other in zip(self.cluster.workers[1:], others):
            differing = [name for name in sorted(set(other) | set(first)) if other.get(name) != first.get(name)]
            if differing:
                # All must have received all before the first one leaves.
                self.all_gather(topic + ' compared', {}, barrier=True)
                self._end_alike = True
                listed = [', '.join('%s=%s' % (name, json.dumps(each.get(name))) for name in differing)
                          for each in (first, other)]
                raise UserError('the workers differ: %s has %s, %s has %s; start all with the same command, code and '
                                'data' % (self.cluster.workers[0], listed[0], worker, listed[1]))

    def wait_for_failure(self):
        """The process ends meanwhile if another one is lost."""
        time.sleep(LINK_TIMEOUT + RETURN_SECONDS + 5)

    def should_stop(self):
        return self._stopped

    def should_stop_waiting(self):
        """Never: the others are in a step, which this process has to do too (see input_queue.LastBatchRepeater)."""
        return False

    def feed_dict(self, training):
        return {training.stop: float(self())}

    def pop_control(self, metrics):
        metrics = dict(metrics)
        self._stopped = metrics.pop('stop') > 0
        return metrics

    def straggler_note(self, waited, busy):
        """Publish the seconds of the interval in which this process waited for data, and computed gradients, and name
        the process with the most of those that are known."""
        self._state['seconds'] = [round(float(waited), 4), round(float(busy), 4)]
        theirs = [other.state.get('seconds') for other in self._others]
        seconds = theirs[:self.cluster.index] + [self._state['seconds']] + theirs[self.cluster.index:]
        if None in seconds:
            return ''
        total = [max(sum(each), 1e-9) for each in seconds]
        slowest = max(range(len(total)), key=total.__getitem__)
        others = total[:slowest] + total[slowest + 1:]
        return ', slowest=%s data_wait=%.0f%%, the others wait %.0f%% for it' % (
            self.cluster.workers[slowest], 100 * seconds[slowest][0] / total[slowest],
            100 * (1 - sum(others) / len(others) / total[slowest]))

    def __exit__(self, kind, error, traceback):
        alike = self._end_alike or getattr(error, 'exit_code', None) == DIVERGED_EXIT_CODE
        if alike or error is None or isinstance(error, Stopped):
            self._wait_for_others()
        else:
            prefix = '' if isinstance(error, UserError) else kind.__name__ + ': '
            self._state['failed'] = prefix + reason_of(error)[:300]
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

    def _wait_for_others(self):
        """What the last step sent may still be on its way to slower ones."""
        self._state['facts'] = dict(self._state['facts'], end={})
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline and not all(other.is_done() for other in self._others if other.state):
            time.sleep(POLL_SECONDS)
        time.sleep(2 * BEAT_SECONDS)  # so that they receive it too

    def _watch(self):
        """The thread: publishes this process's state and takes in those of the others."""
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
                        self._take_state(other)
                    if other.gone_since and time.monotonic() - other.gone_since > RETURN_SECONDS:
                        self._abort(other, 'its process ended or the network to it broke')
            time.sleep(POLL_SECONDS)

    def _publish(self):
        self._own.send(json.dumps(self._state).encode())

    def _connection_changed(self, other):
        while other.monitor.poll(0):
            event = recv_monitor_message(other.monitor)['event']
            other.gone_since = None if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else \
                other.gone_since or time.monotonic()
        if not other.incarnation or other.is_done():
            other.gone_since = None  # not come yet, or gone as it should

    def _take_state(self, other):
        """Read what another process published; the last message counts."""
        while other.socket.poll(0):
            try:
                state = json.loads(other.socket.recv().decode())
                incarnation, facts = state['incarnation'], dict(state['facts'])
                seconds = state['seconds'] and [float(value) for value in state['seconds'][:2]]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # something else listens there; it stays missing
            if other.incarnation not in (None, incarnation):
                self._abort(other, 'it was started anew')
            other.incarnation, other.state = incarnation, dict(state, facts=facts, seconds=seconds)
            if state.get('failed'):
                self._abort(other, 'it ended: %s' % state['failed'])

    def _abort(self, other, why):
        """End this process at once: what waits for the other one would wait for ever."""
        print('error: lost worker %s: %s; %s' % (other.name, printable(str(why)), REMEDY), file=sys.stderr, flush=True)
        os._exit(LOST_EXIT_CODE)


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
    """(address, port) to listen on: of the host that the cluster names for this process, and of no other. Debian gives
    a machine's own name to 127.0.1.1, where no other gets in; then it is the address that reaches the others."""
    host, port = cluster.addresses[cluster.index]
    address = host if host.startswith('[') else socket.gethostbyname(host)
    others = [other for other, _ in cluster.addresses if other != host]
    if address.startswith('127.') and others and host != address and host != 'localhost':
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect((others[0], port))  # sends nothing
            address = probe.getsockname()[0]
    return address, port
