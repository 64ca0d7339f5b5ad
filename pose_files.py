"""Reading and writing files; and what the system's files say that this process may use of the machine.

Files that are read may come from anybody: only regular files are opened, and no more of them is read than is wanted (a
pipe called x.jpg would be waited for, a link to /dev/zero read, for ever). Files that are written are never half there.
"""
import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import stat
import zlib

from pose_errors import UserError

MAX_NAME = 255  # bytes of a file's name
PATTERN_CHARACTERS = '*?[]\\'


def path_and_share(text):
    """'DIR:0.3' -> ('DIR', 0.3), 'DIR' -> ('DIR', None). Raises ValueError for a share that is not in 0..1."""
    path, colon, share = text.rpartition(':')
    if not colon or os.path.exists(text):
        return text, None
    if not path or not 0 < float(share) < 1:
        raise ValueError(text)
    return path, float(share)


def read_file(path, most):
    """The bytes of a file; one longer than `most` bytes is refused before any of it is read. path: text or bytes.

    Raises OSError when it cannot be read, is not a regular file, or is longer; strerror says which.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b'' if size > most else file.read(size + 1)  # of a longer one it would ask for all the memory at once
        if size > most or len(data) > size:
            limit = '%d MB' % (most >> 20) if most >> 20 else '%d bytes' % most
            raise OSError(errno.EFBIG, 'it grows, or is longer than the %s that are read' % limit, path)
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


def check_tensorflow_path(path, what):
    """Raise UserError for a path that TensorFlow cannot name a file by. what: the flag or file, for the message.

    TensorFlow takes text only, and looks checkpoints up as patterns: those of models/th* would be those of models/thin
    too, and old ones of both would be removed; those of run[1] would never be found again.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError('%s=%s is not UTF-8, which TensorFlow needs; choose another name' % (what, path))
    if set(path) & set(PATTERN_CHARACTERS):
        raise UserError('%s=%s has one of the characters %s, which TensorFlow takes for a pattern of names; choose '
                        'another name' % (what, path, ' '.join(PATTERN_CHARACTERS)))


def sources_digest(*patterns):
    """A checksum of source files of this project ('networks/*.py', ...): 8 characters, equal wherever the code is."""
    checksum, root = 0, os.path.dirname(os.path.abspath(__file__))
    for path in sorted(path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(root), pattern))):
        with open(path, 'rb') as file:
            text = file.read().replace(b'\r\n', b'\n')
        checksum = zlib.crc32(os.path.relpath(path, root).encode() + b'\0' + text, checksum)
    return '%08x' % checksum


def file_digest(path):
    """A checksum of a file: 8 characters."""
    with open(path, 'rb') as file:
        return '%08x' % zlib.crc32(file.read())


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
    *_, parent = _missing_folders(path)
    if not os.path.isdir(parent):
        raise UserError('cannot create the folder %s: %s is no folder; choose another' % (path, parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError('cannot write in the folder %s; choose another' % path)


def _missing_folders(path):
    """A path and its parents as far as they are not there, and the first parent that is."""
    folders = [os.path.abspath(path)]
    while not os.path.lexists(folders[-1]):
        folders.append(os.path.dirname(folders[-1]))
    return folders


@contextlib.contextmanager
def output_folder(path):
    """A folder for what a command writes; gone again if that fails before anything is in it. Raises UserError."""
    *made, _ = _missing_folders(path)
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
    """path, or path-2, path-3, ...: the first that is not there, so that nothing earlier is overwritten, nor what a
    command writes that is still at work."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = '%s-%d' % (path, number)
    return candidate


def short_name(name, limit):
    """A file's name of at most so many bytes: itself, or its beginning and a digest of all of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= limit:
        return name
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return encoded[:limit - len(digest) - 1].decode(errors='ignore') + '-' + digest


def write_file(path, data, tidy=True):
    """Write bytes to a temporary file beside path, then rename it: path is never half-written. Raises UserError.

    The bytes are on the disk before the name is. What a killed process left of an earlier try is removed. tidy: whether
    that is looked for, in all names of the folder: not where there are as many writes as names.
    """
    folder, name = os.path.split(os.path.abspath(path))
    name = short_name(name, MAX_NAME - 30)  # the temporary file's is longer
    temporary = os.path.join(folder, '.%s.%d.tmp' % (name, os.getpid()))
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for other in os.listdir(folder) if tidy else ():
            match = re.match(r'\.%s\.(\d+)\.tmp$' % re.escape(name), other)
            if match and not os.path.exists('/proc/%s' % match.group(1)):
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(folder, other))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        remedy = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'mend that'
        raise UserError('cannot write %s: %s; %s, or choose another place' % (path, error.strerror, remedy))


def write_json(path, value, indent=None, sort_keys=True, tidy=True):
    """Write a JSON file; a run that is killed meanwhile leaves the old one or the new one. Raises as write_file."""
    write_file(path, json.dumps(value, indent=indent, sort_keys=sort_keys).encode(), tidy)


def usable_cores(root='/'):
    """How many cores this process may use: those of its affinity (taskset, Slurm) within its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quotas = [line.split() for line in _control_group(root, 'cpu', 'cpu.max')]
    quotas += zip(_control_group(root, 'cpu', 'cpu.cfs_quota_us'), _control_group(root, 'cpu', 'cpu.cfs_period_us'))
    return max(1, min([cores] + [math.ceil(int(quota) / int(period)) for quota, period in quotas
                                 if quota not in ('max', '-1')]))


def usable_memory(root='/'):
    """How many bytes of memory this process may use: those of the machine within its control group's limit."""
    limits = _control_group(root, 'memory', 'memory.max') + _control_group(root, 'memory', 'memory.limit_in_bytes')
    physical = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return min([physical] + [int(limit) for limit in limits if limit != 'max'])


def _control_group(root, controller, name):
    """The first lines of the files `name` of this process's control group and of those that it lies in: of version 2,
    whose groups have all controllers, or 1, which mounts each controller by itself. root: where /proc and /sys are."""
    lines = []
    try:
        with open(os.path.join(root, 'proc/self/cgroup')) as file:
            groups = [line.rstrip('\n').split(':', 2) for line in file]
    except OSError:
        groups = []
    for _, controllers, group in groups:
        if controllers and controller not in controllers.split(','):
            continue
        mount = os.path.join(root, 'sys/fs/cgroup', controllers and controller)
        parts = group.strip('/').split('/')
        for depth in range(len(parts) + 1):  # a container sees its own group as the root, whatever its path says
            with contextlib.suppress(OSError), open(os.path.join(mount, *parts[:depth], name)) as file:
                lines.append(file.readline().strip())
    return lines
