"""Reading and writing files.

Files that are read may come from anybody: only regular files are opened, and no more of them is read than is wanted (a
pipe called x.jpg would be waited for, a link to /dev/zero read, for ever). Files that are written are never half there.
"""
import contextlib
import errno
import glob
import hashlib
import json
import os
import stat
import tempfile

from pose_errors import UserError


def read_file(path, most):
    """The bytes of a file.

    Args:
        path: text or bytes.
        most: bytes; a longer file is refused before any of it is read.
    Raises:
        OSError: it cannot be read, is not a regular file, or is longer; strerror says which.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b'' if size > most else file.read(size + 1)  # of a longer one it would ask for all the memory at once
        if size > most or len(data) > size:
            raise OSError(errno.EFBIG, 'it grows, or is longer than the %s that are read' % _text(most), path)
        return data


def open_file(path):
    """Open a regular file for reading bytes. Raises OSError for others, also for pipes that nobody writes to."""
    if (b'\0' if isinstance(path, bytes) else '\0') in path:
        raise OSError(errno.EINVAL, 'its name has a zero byte', path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, 'it is a folder' if stat.S_ISDIR(mode) else 'it is not a regular file', path)
        return os.fdopen(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def _text(size):
    return '%d MB' % (size >> 20) if size >> 20 else '%d bytes' % size


def is_utf8(path):
    """Whether a path, as Python got it from the system, is text; TensorFlow takes no others."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def sources_digest(*patterns):
    """A checksum of source files of this project: 12 characters, the same on all machines with the same code.

    patterns: of paths from the project's root, as 'networks/*.py'.
    """
    digest, root = hashlib.sha1(), os.path.dirname(os.path.abspath(__file__))
    for path in sorted(path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(root), pattern))):
        with open(path, 'rb') as file:
            digest.update(os.path.relpath(path, root).encode() + b'\0' + file.read().replace(b'\r\n', b'\n'))
    return digest.hexdigest()[:12]


def make_folder(path):
    """Create an output folder, also its parents; raises UserError when nothing can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError('cannot create the folder %s: %s; choose another' % (path, error.strerror))
    if not writable:
        raise UserError('cannot write in the folder %s; choose another' % path)


def check_folder(path):
    """Raise UserError when make_folder could not make this folder, or write in it; nothing is created."""
    parent = os.path.abspath(path)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError('cannot create the folder %s: %s is no folder; choose another' % (path, parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError('cannot write in the folder %s; choose another' % path)


@contextlib.contextmanager
def output_folder(path):
    """A folder for what a command writes; gone again if that fails before anything is in it. Raises UserError."""
    made, parent = [], os.path.abspath(path)
    while not os.path.lexists(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    make_folder(path)
    try:
        yield path
    except BaseException:
        for folder in made:
            try:
                os.rmdir(folder)
            except OSError:
                break
        raise


def free_folder(path):
    """path, or path-2, path-3, ...: the first that is empty or not there, so that nothing earlier is overwritten."""
    candidate, number = path, 1
    while os.path.lexists(candidate) and not (os.path.isdir(candidate) and not os.listdir(candidate)):
        number += 1
        candidate = '%s-%d' % (path, number)
    return candidate


def write_file(path, data):
    """Write bytes to a temporary file beside path, then rename it: path is never half-written. Raises UserError."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)),
                                         prefix='.' + os.path.basename(path), delete=False) as file:
            temporary = file.name
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.remove(temporary)
        remedy = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'mend that'
        raise UserError('cannot write %s: %s; %s, or choose another place' % (path, error.strerror, remedy))


def write_json(path, value, indent=None, sort_keys=True):
    """Write a JSON file; a run that is killed meanwhile leaves the old one or the new one. Raises UserError."""
    write_file(path, json.dumps(value, indent=indent, sort_keys=sort_keys).encode())
