"""Arrays made from an annotation file once, in a process of their own, and read back from a cache at later starts.

The cache lies beside the annotation file, or in the user's cache folder where that one cannot be written. It is taken
for what it says only when it belongs to this very annotation file, is whole, and its arrays fit together: it may have
come with the data, from anybody.
"""
import contextlib
import gc
import hashlib
import io
import logging
import multiprocessing
import os
import signal
import stat
import zipfile

import numpy as np

from pose_cli import UserError, write_file
from pose_files import open_file, read_file

MAX_BYTES, MAX_ARRAYS, MAX_HEADER = 2 ** 31, 64, 1024


def read_arrays(annotation_file, make, version, fit_together):
    """The arrays of an annotation file, from its cache when there is a good one.

    Args:
        make: function (annotation_file) -> dict of arrays; it runs in a process of its own and may raise UserError.
        version: text, another one when make returns other arrays for the same file.
        fit_together: function (dict of arrays) -> whether these, from a file that anybody may have written, are what
            make returns; it may raise anything if they are not.
    Raises:
        UserError: the annotation file cannot be read, from make, or its process was killed.
    """
    state = _state(annotation_file)
    cached = (_load_cache(path, annotation_file, version, state, fit_together)
              for path in _cache_paths(annotation_file))
    return next((arrays for arrays in cached if arrays), None) or _make_in_child(annotation_file, make, version, state)


def _state(annotation_file):
    """What changes whenever a file is written, as text: its last time (ctime) cannot be set, unlike the one before."""
    try:
        status = os.stat(annotation_file)
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    return '%d %d %d %d' % (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest(annotation_file):
    """The hash of a file's content; empty for what is no file, as a pipe, which can be read only once."""
    if not stat.S_ISREG(os.stat(annotation_file).st_mode):
        return ''
    digest = hashlib.blake2b(digest_size=32)
    with open_file(annotation_file) as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _cache_paths(annotation_file):
    """Beside the annotation file, or in the user's cache folder where that one cannot be written."""
    folder, name = os.path.split(annotation_file)
    cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    digest = hashlib.sha256(os.fsencode(os.path.realpath(annotation_file))).hexdigest()[:16]
    return [os.path.join(folder, '.%s.arrays.npz' % name),
            os.path.join(cache_home, 'openpose-training', '%s.%s.npz' % (name, digest))]


def _make_in_child(annotation_file, make, version, state):
    """make(annotation_file) in a process of its own: what json allocates goes back to the system when that ends."""
    logging.info('reading %s (later starts read a cache)', annotation_file)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_make_and_send, daemon=True,
                            args=(annotation_file, make, version, state, here, there))
    child.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        raise UserError('the process that read %s was killed; it needs about 2 GB of free memory for all of COCO'
                        % annotation_file)
    child.join()
    if isinstance(result, UserError):
        raise result
    return result


def _make_and_send(annotation_file, make, version, state, parents_end, connection):
    parents_end.close()  # or sending would wait for ever for a parent that was killed
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is reported by the parent
    gc.disable()  # nothing here is garbage before the end, and looking for it takes a third of the time
    try:
        digest = _digest(annotation_file)
        arrays = make(annotation_file)
        unchanged = digest and _state(annotation_file) == state
    except (UserError, OSError) as error:
        connection.send(error if isinstance(error, UserError) else
                        UserError('cannot read %s: %s' % (annotation_file, error.strerror)))
        return
    if unchanged:
        _store_cache(annotation_file, dict(arrays, version=np.array(version), state=np.array(state),
                                           digest=np.array(digest)))
    with contextlib.suppress(ConnectionError):
        connection.send(arrays)
    os._exit(0)  # at once: taking millions of objects apart would take seconds


def _store_cache(annotation_file, arrays):
    """Several processes may start at once, and any may be killed: a cache is whole or not there."""
    content = io.BytesIO()  # a full disk is write_file's affair: zipfile would speak of it once more for each array
    np.savez(content, **arrays)
    for path in _cache_paths(annotation_file):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, content.getbuffer())
            return
        except (UserError, OSError) as error:
            reason = error
    logging.warning('no cache of the annotations, each start will take as long: %s', reason)


def _load_cache(path, annotation_file, version, state, fit_together):
    """The arrays, or None when the cache is missing, stale, truncated, foreign or not readable."""
    try:
        arrays = _read_arrays(path)
        belongs = str(arrays.pop('version')) == version
        made_of, digest = str(arrays.pop('state')), str(arrays.pop('digest'))
        # A copy of the folder has other states but the same content.
        if belongs and fit_together(arrays) and (made_of == state or digest == _digest(annotation_file)):
            return arrays
    except Exception:  # zip, npy headers and their contents fail in many ways; making the arrays again mends them all
        pass
    return None


def _read_arrays(path):
    """The arrays of a file that numpy.savez wrote, {name: array}; not larger in memory than the file is.

    Raises anything for other files, also for one that is compressed or has objects in it.
    """
    data = read_file(path, MAX_BYTES)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if (len(entries) > MAX_ARRAYS or sum(entry.file_size for entry in entries) > len(data)
                or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)):
            raise ValueError('this is not as numpy.savez writes files')
        return {entry.filename[:-len('.npy')]: _array(archive.read(entry)) for entry in entries}


def _array(content):
    """The array of the bytes of a .npy file, which may not be written to."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0) or int.from_bytes(content[8:10], 'little') > MAX_HEADER:
        raise ValueError('this is not as numpy.savez writes arrays')
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order='F' if is_fortran else 'C')
