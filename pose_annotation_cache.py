"""Arrays made from an annotation file once, in a process of their own, and read back from a cache at later starts.

The cache lies beside the annotation file, or in the user's cache folder where that one cannot be written. It is taken
for what it says only when it belongs to this very annotation file, is whole, and its arrays fit together.
"""
import contextlib
import gc
import hashlib
import logging
import multiprocessing
import os
import signal
import tempfile

import numpy as np

from pose_cli import UserError


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
    key = _cache_key(annotation_file, version)
    cached = (_load_cache(path, key, fit_together) for path in _cache_paths(annotation_file))
    return next((arrays for arrays in cached if arrays), None) or _make_in_child(annotation_file, make, key)


def _cache_key(annotation_file, version):
    try:
        status = os.stat(annotation_file)
    except OSError as error:
        raise UserError('cannot read %s: %s' % (annotation_file, error.strerror))
    return '%s %d %d' % (version, status.st_size, status.st_mtime_ns)


def _cache_paths(annotation_file):
    """Beside the annotation file, or in the user's cache folder where that one cannot be written."""
    folder, name = os.path.split(annotation_file)
    cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    digest = hashlib.sha256(os.fsencode(os.path.realpath(annotation_file))).hexdigest()[:16]
    return [os.path.join(folder, '.%s.arrays.npz' % name),
            os.path.join(cache_home, 'openpose-training', '%s.%s.npz' % (name, digest))]


def _make_in_child(annotation_file, make, key):
    """make(annotation_file) in a process of its own: what json allocates goes back to the system when that ends."""
    logging.info('reading %s (later starts read a cache)', annotation_file)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_make_and_send, args=(annotation_file, make, key, here, there), daemon=True)
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


def _make_and_send(annotation_file, make, key, parents_end, connection):
    parents_end.close()  # or sending would wait for ever for a parent that was killed
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is reported by the parent
    gc.disable()  # nothing here is garbage before the end, and looking for it takes a third of the time
    try:
        arrays = make(annotation_file)
    except UserError as error:
        connection.send(error)
        return
    for path in _cache_paths(annotation_file):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _store_cache(path, dict(arrays, key=np.array(key)))
            break
        except OSError as error:
            reason = '%s: %s' % (path, error.strerror)
    else:
        logging.warning('no cache could be written, each start will take as long (%s)', reason)
    with contextlib.suppress(ConnectionError):
        connection.send(arrays)
    os._exit(0)  # at once: taking millions of objects apart would take seconds


def _store_cache(path, arrays):
    """Write under a temporary name and rename: several processes may start at once, and any may be killed."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.arrays-', suffix='.tmp')
    try:
        with os.fdopen(handle, 'wb') as file:
            np.savez(file, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _load_cache(path, key, fit_together):
    """The arrays, or None when the cache is missing, stale, truncated, foreign or not readable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['key']) != key:
                return None
            arrays = {name: stored[name] for name in stored.files}
            return arrays if fit_together(arrays) else None
    except Exception:  # zip, npy headers and their contents fail in many ways; making the arrays again mends them all
        return None
