"""A data worker's end of the wire: one connection to a trainer."""
import time

import zmq
from zmq.utils.monitor import parse_monitor_message

from pose_errors import UserError

from . import keys, protocol
from .protocol import HANDSHAKE_REMEDY, LINK_TIMEOUT, BadMessage, OtherVersion, check_address, set_limits


class ConnectionLost(Exception):
    """The trainer is gone, or the link to it."""


class TrainerConnection:
    """One connection of a data worker to a trainer; after ConnectionLost, make another.

    Args:
        address: tcp://HOST:PORT of the trainer; UserError for others.
        curve_keys: folder with worker.key_secret and trainer.key; UserError for bad ones.
        link_timeout: seconds without a sign of life after which the connection counts as dead.
    """

    def __init__(self, address, curve_keys=None, link_timeout=LINK_TIMEOUT):
        check_address(address, '--master')
        self.trouble = 'no answer'  # why there is no connection yet
        self._address, self._link_timeout = address, link_timeout
        self._last_message = time.monotonic()
        self._connected = False
        self._sending = None  # tracker of the batch on its way out
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        set_limits(self._socket, protocol.MAX_HEADER + protocol.CURVE_OVERHEAD)
        for option, value in ((zmq.IPV6, 1), (zmq.CONNECT_TIMEOUT, 5000), (zmq.RECONNECT_IVL, 200),
                              (zmq.RECONNECT_IVL_MAX, 5000)):
            self._socket.setsockopt(option, value)
        if curve_keys:
            try:
                keys.open_client(self._socket, curve_keys)
            except UserError:
                self._context.destroy(linger=0)
                raise
        self._monitor = self._socket.get_monitor_socket()
        self._socket.connect(address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def receive(self, timeout):
        """The header, a dict, of the trainer's next message, or None when none came within timeout seconds. Type
        `connected` means that a hello may be sent.

        Raises ConnectionLost, and UserError when the trainer refuses this worker, or speaks another version.
        """
        events = dict(self._poller.poll(timeout * 1000))
        if self._socket in events:  # first: the last message may be followed by the end of the connection
            header = self._checked(self._socket.recv_multipart())
            self._last_message = time.monotonic()
            if header['type'] == 'ping':
                self.send('pong')
            return header
        if self._monitor in events:
            return self._link_event(parse_monitor_message(self._monitor.recv_multipart())['event'])
        if self._connected and time.monotonic() - self._last_message > self._link_timeout:
            raise ConnectionLost()  # also when only this worker is forgotten: the trainer pings those that it knows
        return None

    def _checked(self, frames):
        try:
            if len(frames) != 1:
                raise BadMessage('a message of %d frames' % len(frames))
            header = protocol.unpack_from_trainer(frames[0])
        except OtherVersion as other:
            header = other.header
            if header['type'] != 'refused':
                raise UserError('the trainer speaks version %d of the wire, this worker version %d; use the same '
                                'version of the code on both' % (header['version'], protocol.VERSION))
        except BadMessage as error:
            raise UserError('%s from the trainer; is %s the trainer of this project, in the same version?'
                            % (error, self._address))
        if header['type'] == 'refused':
            raise UserError('refused by the trainer: %.300s' % (header.get('reason'),))
        return header

    def _link_event(self, event):
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected, self._last_message = True, time.monotonic()
            return {'type': 'connected'}
        if event == zmq.EVENT_DISCONNECTED and self._connected:
            raise ConnectionLost()
        if event in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED) and self.trouble == 'no answer':
            self.trouble = 'no trainer listens there'
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.trouble = 'the trainer does not accept this key'
        elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
            self.trouble = 'the handshake fails, or the trainer has too many connections; ' + HANDSHAKE_REMEDY
        return None

    def send(self, kind, **fields):
        """Send a message without arrays."""
        self._socket.send(protocol.pack(kind, **fields))

    def send_batch(self, number, batch):
        """Send batch `number`, a batches.batch.Batch. It is not copied: it must not change until sent() is true."""
        header = protocol.batch_header([(name, array.dtype.str, array.shape)
                                        for name, array in batch._asdict().items()])
        self._sending = self._socket.send_multipart([header, protocol.pack_number(number), *batch], copy=False,
                                                    track=True)

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
