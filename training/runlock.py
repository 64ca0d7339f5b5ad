"""One run per folder: a lock that its holder loses when it ends, however it ends."""
import contextlib
import datetime
import errno
import fcntl
import logging
import os
import socket

from pose_cli import UserError

LOCK_FILE = '.lock'
HELD = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def hold(folder):
    """Hold a run folder while the block runs.

    A record lock (fcntl): the system releases it when the process dies, forked processes do not inherit it, and NFS
    passes it on to other machines. Where a file system has no locks, a line says so and the run goes on. Where nothing
    came beside the lock's file, that goes as well.

    Raises:
        UserError: another process holds the folder; the message says which.
    """
    path = os.path.join(folder, LOCK_FILE)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError('cannot open %s: %s; remove it, or choose another --modelpath' % (path, error.strerror))
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(path) or not os.path.samestat(os.fstat(handle), os.stat(path)):
                raise UserError('%s was in use until a moment ago; start again' % folder)
        except OSError as error:
            if error.errno in HELD:
                holder = os.read(handle, 200).decode('ascii', 'replace').strip() or 'another process'
                raise UserError('%s is in use by %s; wait for it, stop it, or choose another --modelpath'
                                % (folder, holder))
            logging.warning('%s cannot be locked (%s): do not start a second run there', folder, error.strerror)
        else:
            _sign(handle)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.listdir(folder) == [LOCK_FILE]:
                os.remove(path)
        os.close(handle)


def _sign(handle):
    holder = 'process %d on %s, since %s' % (os.getpid(), socket.gethostname(),
                                             datetime.datetime.now().isoformat(' ', 'seconds'))
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode('ascii', 'replace') + b'\n', 0)
