"""CURVE keys of trainer and workers: their files, and which are accepted.

    trainer.key_secret, trainer.key      the trainer's pair
    worker.key_secret, worker.key        a worker's pair
    accepted_workers/NAME.key            the trainer accepts workers that have the secret of one of these
"""
import logging
import os
import stat
import struct

import zmq
import zmq.auth
from zmq.utils import z85

from pose_errors import UserError

TRAINER, WORKER, ACCEPTED = 'trainer', 'worker', 'accepted_workers'
PUBLIC, SECRET = '.key', '.key_secret'  # endings that ZeroMQ's own functions write
KEY_BYTES = 32
REMEDY = 'make keys with scripts/make_curve_keys.py'


def read_secret_key(folder, name):
    """(public, secret) from a key file of scripts/make_curve_keys.py. Raises UserError."""
    path = os.path.join(folder, name + SECRET)
    public, secret = _read_key_file(folder, path)
    if not _is_key(secret) or zmq.curve_public(secret) != public:
        raise UserError('%s holds no whole secret key, or not that of its public key; %s' % (path, REMEDY))
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logging.warning('other users of this machine can read %s; chmod 600 it', path)
    return public, secret


def _read_key_file(folder, path):
    try:
        return _load(path)
    except (OSError, ValueError) as error:
        raise UserError('--curve-keys=%s: %s cannot be read (%s); %s'
                        % (folder, path, getattr(error, 'strerror', None) or 'it is not a key file', REMEDY))


def _load(path):
    """(public, secret or None) of a key file. Raises OSError, ValueError."""
    public, secret = zmq.auth.load_certificate(path)
    if not _is_key(public):
        raise ValueError
    return public, secret


def _is_key(text):
    """Whether these are the 40 characters of a key."""
    try:
        return len(z85.decode(text)) == KEY_BYTES
    except (KeyError, TypeError, ValueError, struct.error):
        return False


def accepted_keys(folder):
    """The set of public keys of the accepted workers. Broken files are named in the log. Raises OSError."""
    accepted, accepted_now = os.path.join(folder, ACCEPTED), set()
    for name in sorted(os.listdir(accepted)):
        if name.endswith(PUBLIC):
            try:
                accepted_now.add(_load(os.path.join(accepted, name))[0].decode())
            except (OSError, ValueError):
                logging.warning('%s is not a key file; it is ignored', os.path.join(accepted, name))
    return accepted_now


def open_server(zmq_socket, context, folder):
    """Make a socket, before it binds, accept only workers with accepted keys. Raises UserError without any.

    Returns the socket on which ZeroMQ asks which keys to accept, see answer.
    """
    zmq_socket.curve_publickey, zmq_socket.curve_secretkey = read_secret_key(folder, TRAINER)
    if not os.path.isdir(os.path.join(folder, ACCEPTED)) or not accepted_keys(folder):
        raise UserError('--curve-keys=%s accepts no worker: %s/ holds no key; %s' % (folder, ACCEPTED, REMEDY))
    zmq_socket.curve_server = 1
    questions = context.socket(zmq.REP)
    questions.bind('inproc://zeromq.zap.01')
    return questions


def open_client(zmq_socket, folder):
    """Make a socket, before it connects, use the worker's keys. Raises UserError."""
    zmq_socket.curve_publickey, zmq_socket.curve_secretkey = read_secret_key(folder, WORKER)
    zmq_socket.curve_serverkey, _ = _read_key_file(folder, os.path.join(folder, TRAINER + PUBLIC))


def answer(questions, folder):
    """Answer one ZAP request (ZeroMQ RFC 27) by the accepted keys, which are read anew each time. The key becomes the
    User-Id of all that its worker sends. Returns None, or the address of the worker that was refused."""
    version, request_id, _, address, _, mechanism, *credentials = questions.recv_multipart()
    key = z85.encode(credentials[0]).decode() if mechanism == b'CURVE' and len(credentials) == 1 else None
    try:
        accepted = key in accepted_keys(folder)
    except OSError as error:
        logging.warning('cannot read the accepted keys (%s); nobody is let in', error.strerror)
        accepted = False
    status = [b'200', b'OK', key.encode()] if accepted else [b'400', b'key not accepted', b'']
    questions.send_multipart([version, request_id] + status + [b''])
    return None if accepted else address.decode(errors='replace')
