"""What both ends of a connection share: addresses, signs of life, and what a failed handshake means."""
import re

import zmq

from pose_cli import UserError

LINK_TIMEOUT = 20.0  # seconds without a sign of life after which a connection counts as dead
PING_SECONDS = 2.0  # between the trainer's pings; each is answered
HANDSHAKE_REMEDY = "give --curve-keys on both sides or on none, the worker's key made in the trainer's folder"


def check_address(address, flag):
    """Raise UserError unless address reads tcp://HOST:PORT. Returns (host, port)."""
    match = re.match(r'tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d+)$', address)
    if not match or not 0 < int(match.group(2)) < 65536:
        raise UserError('%s=%s is not an address like tcp://HOST:PORT with a port of 1 to 65535' % (flag, address))
    return match.group(1), int(match.group(2))


def set_limits(zmq_socket, max_frame_bytes):
    """Set what both ends have in common.

    There are no heartbeats of ZeroMQ's and no bound on the messages that wait to be read: libzmq 4.3 ends the process
    (an assertion, !_io_error) when it has stopped reading a connection because of such a bound, the other side resets
    it, and a heartbeat is due. Both ends ping by themselves, and the trainer's door bounds bytes.
    """
    zmq_socket.setsockopt(zmq.LINGER, 0)
    zmq_socket.setsockopt(zmq.RCVHWM, 0)
    zmq_socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
