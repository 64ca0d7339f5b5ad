"""TensorFlow, imported quietly: `from networks.tensorflow import tf`.

TensorFlow 2 writes pages of notices while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL. With that variable at 0
everything is shown, for example why a GPU is not used.
"""
import contextlib
import logging
import os
import sys
import tempfile
import warnings

LEVEL = 'TF_CPP_MIN_LOG_LEVEL'


@contextlib.contextmanager
def without(package):
    """A package that is not there meanwhile, unless it has been imported before."""
    if sys.modules.setdefault(package) is not None:
        yield
        return
    try:
        yield
    finally:
        sys.modules.pop(package)


@contextlib.contextmanager
def stderr_to(file):
    """Send what this process and its children write to stderr, by whatever way, into an open file."""
    try:
        before = os.dup(2)
    except OSError:  # closed: there is nothing to keep off it
        yield
        return
    if sys.stderr:
        sys.stderr.flush()
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        if sys.stderr:
            sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _import_quietly():
    """tensorflow.compat.v1. What it writes to stderr is shown only when the import fails."""
    # Errors too: without a GPU, looking for one is logged as an error. What matters raises an exception besides.
    os.environ.setdefault(LEVEL, '3')
    warnings.filterwarnings('ignore', category=FutureWarning, module='tensor(flow|board)')
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    with tempfile.TemporaryFile() as notices:
        try:
            # Keras, which TensorFlow 2 imports if it can, is a third of the time that a start takes.
            with without('keras'), contextlib.nullcontext() if os.environ[LEVEL] == '0' else stderr_to(notices):
                import tensorflow.compat.v1 as tensorflow
        except BaseException:
            notices.seek(0)
            print(notices.read().decode(errors='replace'), end='', file=sys.stderr)
            raise
    return tensorflow


tf = _import_quietly()
