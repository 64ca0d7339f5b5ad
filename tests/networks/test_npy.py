"""The reader of .npy weights: what numpy writes is read back, and no pickle gets further than numbers."""
import io
import pickle
import struct

import numpy as np
import pytest

from networks.formats.npy import is_npy, read_npy
from pose_errors import UserError


def npy(tree, protocol=2):
    """The bytes of a .npy file that holds a dictionary; the header is numpy's own."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    outer = np.empty((), object)
    outer[()] = tree
    pickle.dump(outer, file, protocol)
    return file.getvalue()


def read(data):
    return read_npy(io.BytesIO(data), 'w.npy')


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_numpy_writes_is_read_back(protocol):
    rng = np.random.RandomState(0)
    values = {'half': rng.standard_normal((3, 4)).astype(np.float16), 'double': rng.standard_normal(5),
              'turned': np.asfortranarray(rng.standard_normal((2, 3)).astype(np.float32)),
              'big': rng.standard_normal(4).astype('>f4'), 'whole': np.arange(6).reshape(2, 3), 'one': np.float32(2.5),
              'empty': np.zeros((0, 3), np.float32)}
    weights = read(npy({'layer': values}, protocol))
    assert set(weights) == {'layer/' + name for name in values}
    for name, value in values.items():
        np.testing.assert_array_equal(weights['layer/' + name], value)
        assert weights['layer/' + name].dtype == value.dtype.newbyteorder('=')


def test_files_are_told_by_their_beginning():
    assert is_npy(io.BytesIO(npy({}))) and not is_npy(io.BytesIO(b'model')) and not is_npy(io.BytesIO(b''))


class Call:
    def __init__(self, function, args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


RECONSTRUCT = np.zeros(1).__reduce__()[0]


def crafted(dtype, data, shape=(1,)):
    """An array as a pickle describes it, whatever numpy would say."""
    return Call(RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, shape, dtype, False, data))


@pytest.mark.parametrize('name, value', [
    ('bytes as pointers', crafted(Call(np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, 0)),
                                  struct.pack('<Q', 0x4141414141414141))),
    ('objects in an array', crafted(np.dtype(object), [1])),
    ('too few bytes', crafted(np.dtype('f4'), b'1234', (1000000,))),
    ('a huge shape', crafted(np.dtype('f4'), b'', (1 << 62, 4))),
    ('a negative side', crafted(np.dtype('f4'), b'1234', (-1,))),
    ('text', np.array(['a'])), ('complex numbers', np.array([1j])), ('truth values', np.array([True])),
    ('a record', np.zeros(2, [('x', 'f4')])), ('a date', np.array(['2020'], 'M8[Y]')),
    ('nothing', None), ('a great many bytes', Call(bytes, (1 << 40,))),
    ('a list', [np.zeros(3)]), ('a class', np.float32), ('a bare number', 1.5)])
def test_what_is_no_array_of_numbers_is_refused(name, value):
    with pytest.raises(UserError) as error:
        read(npy({'conv1_1': {'weights': value}}))
    assert 'w.npy' in str(error.value) and len(str(error.value)) < 400, name


def test_bottomless_and_bursting_dictionaries_are_refused():
    tree = {'x': np.zeros(1)}
    for _ in range(30):  # 2^30 names in a kilobyte
        tree = {'a': tree, 'b': tree}
    endless = {}
    endless['x'] = endless
    for bad in (tree, endless):
        with pytest.raises(UserError, match='w.npy is refused'):
            read(npy(bad))


def test_every_cut_is_one_line():
    whole = npy({'conv1_1': {'weights': np.zeros((3, 3), np.float32)}})
    for length in range(len(whole)):
        with pytest.raises(UserError, match='w.npy'):
            read(whole[:length])
