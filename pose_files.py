"""Reading files that may come from anybody: only regular files, and no more of them than is wanted.

A name alone says nothing: a pipe called x.jpg would be waited for, a link to /dev/zero read, for ever.
"""
import errno
import os
import stat


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
