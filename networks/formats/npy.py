"""Weights in .npy files: a pickled dictionary {layer: {'weights': array, 'biases': array}}, however deep.

Files of this project (write_npy) are {variable name: array}, in half precision where the values allow it, and say under
the name METADATA what they are for: JSON text as an array of bytes, so that the file holds nothing but arrays.

A pickle is a program. This one may do nothing but name numbers, text, plain containers and arrays, and the arrays are
built here from their parts (dtype, shape, bytes), each checked: numpy's own reconstruction would take bytes for
pointers.
"""
import collections
import io
import json
import pickle

import numpy as np

from pose_errors import UserError
from pose_files import write_file

METADATA = 'about'  # the name of an array
MAX_ARRAYS, MAX_DEPTH = 10000, 16
NUMBER_TYPES = {kind + str(size) for kind, sizes in (('f', (2, 4, 8)), ('i', (1, 2, 4, 8)), ('u', (1, 2, 4, 8)))
                for size in sizes}


def is_npy(file):
    """Whether a file open for reading begins as .npy files do; it is then back at its start."""
    magic = file.read(len(np.lib.format.MAGIC_PREFIX))
    file.seek(0)
    return magic == np.lib.format.MAGIC_PREFIX


def read_npy(file, path):
    """An open .npy file -> {'layer/weights': array of floats or integers, ...}. Keys may be bytes, as of Python 2.

    Raises UserError when it is truncated, not a dictionary of arrays, or a pickle of anything else.
    """
    try:
        file = io.BytesIO(file.read())  # of a file, as many bytes would be asked for as a damaged length says
        version = np.lib.format.read_magic(file)
        shape, _, dtype = {(1, 0): np.lib.format.read_array_header_1_0,
                           (2, 0): np.lib.format.read_array_header_2_0}[version](file)
        if dtype != object or shape != ():
            raise UserError('it is an array of %s %s and not a dictionary' % (dtype, shape))
        outermost = _ArrayUnpickler(file, encoding='bytes').load()
        if not isinstance(outermost, _Array) or not isinstance(outermost.value, list) or len(outermost.value) != 1:
            raise UserError('it is not a dictionary')
        weights = {}
        _flatten(outermost.value[0], '', weights, MAX_DEPTH)
        return weights
    except UserError as error:
        raise UserError('%s is refused: %s' % (path, error))
    except Exception as error:  # a truncated or hostile pickle raises anything at all
        raise UserError('%s is broken (%s: %s); get it again' % (path, type(error).__name__, error))


def write_npy(path, weights, metadata):
    """Write {variable name: float array} and metadata, a dictionary of text. Raises UserError."""
    content = {name: half_precision(np.asarray(value)) for name, value in weights.items()}
    content[METADATA] = np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), np.uint8)
    file = io.BytesIO()
    np.save(file, np.array(content, object), allow_pickle=True)
    write_file(path, file.getvalue())


def half_precision(values):
    """Floats as float16, or as they are where one is too large for it."""
    with np.errstate(over='ignore'):
        half = values.astype(np.float16)
    return half if np.isfinite(half).all() else values


def take_metadata(weights, path):
    """Take METADATA out of what read_npy returned: the dictionary that write_npy was given, {} for other files."""
    if METADATA not in weights:
        return {}
    try:
        metadata = json.loads(weights.pop(METADATA).tobytes().decode())
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError('no dictionary of text')
        return metadata
    except (ValueError, RecursionError) as error:
        raise UserError('%s is damaged: what it says about itself is no JSON (%s); get it again' % (path, error))


def _flatten(tree, name, weights, depth):
    """{layer: {'weights': array}} -> weights['layer/weights'] = array."""
    if isinstance(tree, _Array) and name:
        if not isinstance(tree.value, np.ndarray):
            raise UserError('%s is an array of objects' % name)
        weights[name] = tree.value
        return
    if not isinstance(tree, dict) or not depth:
        raise UserError('%s is a %s: a dictionary {layer: {weights, biases}} of arrays is expected'
                        % (name or 'it', type(tree).__name__.strip('_').lower()))
    for key, value in tree.items():
        key = key.decode() if isinstance(key, bytes) else str(key)
        _flatten(value, name + '/' + key if name else key, weights, depth - 1)
        if len(weights) > MAX_ARRAYS:
            raise UserError('it holds more than %d arrays' % MAX_ARRAYS)


class _Dtype:
    """Takes the place of numpy.dtype in a pickle."""

    def __init__(self, text, *_):
        self.text = text.decode() if isinstance(text, bytes) else text
        self.order = '|'

    def __setstate__(self, state):
        self.order = state[1].decode() if isinstance(state[1], bytes) else state[1]


class _Array:
    """Takes the place of numpy.ndarray: value is an array of numbers, or the list of an array of objects."""

    def __init__(self, value=None):
        self.value = value

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        if dtype.text in ('O', 'O8') and isinstance(data, list):
            self.value = data
        else:
            self.value = _numbers(data, dtype, shape, 'F' if is_fortran else 'C')


def _numbers(data, dtype, shape, order):
    """An array from its parts; numpy checks that there are as many bytes as the shape needs."""
    if not all(type(side) is int and side >= 0 for side in shape):
        raise UserError('it has an array of shape %.50r' % (shape,))
    if dtype.text not in NUMBER_TYPES or dtype.order not in ('<', '>', '=', '|'):
        raise UserError('it has an array of dtype %.20r; only floats and integers are weights' % (dtype.text,))
    numbers = np.dtype(dtype.text).newbyteorder(dtype.order)
    values = np.frombuffer(bytes(data, 'latin1') if isinstance(data, str) else bytes(data), numbers)
    return values.reshape(shape, order=order).astype(numbers.newbyteorder('='))


def _encode(text, encoding):
    """What `_codecs.encode` is for in a pickle: bytes, written as text by an old protocol."""
    if encoding not in ('latin1', b'latin1'):
        raise UserError('it has bytes in the encoding %.20r' % (encoding,))
    return text.encode('latin1') if isinstance(text, str) else text


def _bytes(*args):
    """Old protocols call bytes() for what is empty, the newest calls bytearray(data)."""
    if args and not (len(args) == 1 and isinstance(args[0], (bytes, bytearray))):
        raise UserError('it calls bytes')
    return bytes(*args)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of numbers and plain containers; refuses to look up anything else."""

    def find_class(self, module, name):
        found = ALLOWED_IN_PICKLES.get((module.replace('numpy._core', 'numpy.core'), name))
        if found is None:
            raise UserError('it refers to the code %.50s.%.50s, where only arrays are expected' % (module, name))
        return found


ALLOWED_IN_PICKLES = {
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _Dtype,
    ('numpy.core.multiarray', '_reconstruct'): lambda *_: _Array(),
    ('numpy.core.multiarray', 'scalar'): lambda dtype, data: _Array(_numbers(data, dtype, (), 'C')),
    ('numpy.core.numeric', '_frombuffer'): lambda *parts: _Array(_numbers(*parts)),
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('_codecs', 'encode'): _encode,
    ('__builtin__', 'bytes'): _bytes,
    ('builtins', 'bytes'): _bytes,
    ('builtins', 'bytearray'): _bytes,
}
