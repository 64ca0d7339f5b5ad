"""Keeps what libraries write past Python's log off the terminal: pages of notices before a command's own first line.

TensorFlow 2 writes some while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL. TF_CPP_MIN_LOG_LEVEL=0 shows all,
for example why a GPU is not used.
"""
import contextlib
import logging
import os
import sys
import tempfile
import warnings

LEVEL = 'TF_CPP_MIN_LOG_LEVEL'


def quieten_tensorflow():
    """To be called before TensorFlow is imported, whoever does it: from then on it says nothing but exceptions."""
    # Errors too: without a GPU, looking for one is logged as an error. What matters raises an exception besides.
    os.environ.setdefault(LEVEL, '3')
    warnings.filterwarnings('ignore', category=FutureWarning, module='tensor(flow|board)')
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    if os.environ[LEVEL] != '0' and 'tensorflow' not in sys.modules:
        sys.meta_path.insert(0, _QuietImport())


class _QuietImport:
    """A finder that has the others find TensorFlow, and redirects stderr while it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != 'tensorflow':
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec'))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec and spec.loader:
            spec.loader.exec_module = _quietly(spec.loader.exec_module)
        return spec


def _quietly(load):
    def load_quietly(module):
        with tempfile.TemporaryFile() as file:
            try:
                with stderr_to(file):
                    load(module)
            except BaseException:
                file.seek(0)
                print(file.read().decode(errors='replace'), end='', file=sys.stderr)
                raise
    return load_quietly


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
