"""What both ends of a connection share: addresses, signs of life, and what a failed handshake means."""
import re

import zmq

from pose_cli import UserError

LINK_TIMEOUT = 20.0  # seconds without a sign of life after which a connection counts as dead
SILENT_LINKS = 3  # times LINK_TIMEOUT without a word after which a worker believes that the trainer has forgotten it
HANDSHAKE_REMEDY = "give --curve-keys on both sides or on none, the worker's key made in the trainer's folder"


def check_address(address, flag):
    """Raise UserError unless address reads tcp://HOST:PORT. Returns (host, port)."""
    match = re.match(r'tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d+)$', address)
    if not match or not 0 < int(match.group(2)) < 65536:
        raise UserError('%s=%s is not an address like tcp://HOST:PORT with a port of 1 to 65535' % (flag, address))
    return match.group(1), int(match.group(2))


def watch_link(zmq_socket, link_timeout):
    """Have ZeroMQ's own heartbeats end a connection after link_timeout seconds without a sign of life."""
    zmq_socket.setsockopt(zmq.LINGER, 0)
    zmq_socket.setsockopt(zmq.HEARTBEAT_IVL, int(link_timeout * 250))
    zmq_socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(link_timeout * 1000))
