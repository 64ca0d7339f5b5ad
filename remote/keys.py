"""Key files of --curve-keys, and who gets in with them.

The two sides know each other by CurveZMQ keys. A trainer needs trainer.key_secret and accepted_workers/ in its folder,
a worker needs worker.key_secret and trainer.key in its own; scripts/make_curve_keys.py makes them.
"""
import logging
import os
import shutil
import stat

import zmq.auth
from zmq.utils import z85

from pose_cli import UserError

TRAINER, WORKER = 'trainer', 'worker'  # whose pair it is: NAME.key is public, NAME.key_secret holds both halves
ACCEPTED = 'accepted_workers'  # folder of the public keys that the trainer lets in
MAKE_KEYS = 'scripts/make_curve_keys.py'
HANDSHAKE_REMEDY = "give --curve-keys on both sides or on none, the worker's key made in the trainer's folder"


# --- files


def public_path(folder, name):
    return os.path.join(folder, name + '.key')


def secret_path(folder, name):
    return os.path.join(folder, name + '.key_secret')


def make_pair(folder, name):
    """Write the key files of TRAINER or WORKER into a folder that only the owner can enter.

    Raises:
        UserError: there is such a pair.  OSError.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = secret_path(folder, name)
    if os.path.exists(path):
        raise UserError('%s is there already; remove it, or add a worker with --worker=NAME' % path)
    zmq.auth.create_certificates(folder, name)


def accept(folder, worker_folder, name):
    """Let in the worker whose pair is in worker_folder: the trainer of `folder` knows it as `name`. Raises OSError."""
    accepted = os.path.join(folder, ACCEPTED)
    os.makedirs(accepted, mode=0o700, exist_ok=True)
    shutil.copy(public_path(worker_folder, WORKER), public_path(accepted, name))


def read_secret_key(folder, name):
    """(public, secret) of TRAINER or WORKER, as z85 bytes. Raises UserError."""
    path = secret_path(folder, name)
    public, secret = _read(folder, path)
    if not secret:
        raise UserError('%s holds no secret key; make new keys with %s' % (path, MAKE_KEYS))
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logging.warning('other users of this machine can read %s; chmod 600 it', path)
    return public, secret


def read_public_key(folder, name):
    """The public key of TRAINER or WORKER, as z85 bytes. Raises UserError."""
    return _read(folder, public_path(folder, name))[0]


def _read(folder, path):
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise UserError('--curve-keys=%s: %s cannot be read (%s); make keys with %s'
                        % (folder, path, getattr(error, 'strerror', None) or 'it is not a key file', MAKE_KEYS))


def accepted_keys(folder):
    """The public keys of the workers that the trainer lets in: {key: name}. Broken files are named in the log."""
    accepted, keys = os.path.join(folder, ACCEPTED), {}
    for file in sorted(os.listdir(accepted)) if os.path.isdir(accepted) else []:
        name, extension = os.path.splitext(file)
        if extension == '.key':
            try:
                keys[zmq.auth.load_certificate(os.path.join(accepted, file))[0]] = name
            except (OSError, ValueError):
                logging.warning('%s is not a key file; it is ignored', os.path.join(accepted, file))
    return keys


# --- sockets


def secure_trainer(zmq_socket, folder):
    """Make the trainer's socket one that only workers with accepted keys can connect to. Raises UserError."""
    zmq_socket.curve_publickey, zmq_socket.curve_secretkey = read_secret_key(folder, TRAINER)
    if not accepted_keys(folder):
        raise UserError('--curve-keys=%s accepts no worker: %s/ holds no key; make one with %s'
                        % (folder, ACCEPTED, MAKE_KEYS))
    zmq_socket.curve_server = True


def secure_worker(zmq_socket, folder):
    """Make the worker's socket one that connects to the trainer of its keys only. Raises UserError."""
    zmq_socket.curve_publickey, zmq_socket.curve_secretkey = read_secret_key(folder, WORKER)
    zmq_socket.curve_serverkey = read_public_key(folder, TRAINER)


def answer_zap(request, folder):
    """Answer one ZAP request (RFC 27), by which ZeroMQ asks whether a worker may connect.

    The accepted keys are read anew each time: a file that is added or removed counts from the next connection on.

    Args:
        request: the frames, bytes: version, request id, domain, address, identity, mechanism, public key.
    Returns:
        (frames of the answer, the address of the worker if it is refused, else None).
    """
    version, request_id, _, address, _, mechanism = request[:6]
    name = None
    if mechanism == b'CURVE' and len(request) == 7:
        name = accepted_keys(folder).get(z85.encode(request[6]))
    status = [b'200', b'OK', name.encode()] if name else [b'400', b'key not accepted', b'']
    return [version, request_id] + status + [b''], None if name else address.decode(errors='replace')
