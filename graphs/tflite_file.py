"""A .tflite file, which may come from anybody, before an interpreter follows the offsets in it.

The interpreters check little: they end the process when an offset leads out of the file. The file is a FlatBuffer: a
table starts with the distance back to a list of its fields' places; a vector with its length.
"""
import struct

from pose_cli import UserError
from pose_files import read_file

IDENTIFIER = b'TFL3'  # bytes 4 to 8 of every .tflite file
MAX_BYTES, MAX_TABLES, MAX_ELEMENTS, MAX_RANK = 2 ** 31, 10 ** 5, 2 ** 28, 8

# Numbers of fields in the schema of TensorFlow Lite: of a model, ...
OPERATOR_CODES, SUBGRAPHS, BUFFERS = 1, 2, 4
OLD_CODE, CUSTOM_CODE, CODE = 0, 1, 3  # an operator code,
TENSORS, INPUTS, OUTPUTS, OPERATORS = 0, 1, 2, 3  # a subgraph,
SHAPE, BUFFER = 0, 2  # a tensor,
OPCODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2  # and an operator
BUFFER_DATA = 0

# Numbers of operators that hold a graph or a state, or are not the interpreter's own: no network needs them.
REFUSED = {32: 'CUSTOM', 51: 'DELEGATE', 118: 'IF', 119: 'WHILE', 129: 'CALL_ONCE', 136: 'HASHTABLE',
           142: 'VAR_HANDLE', 143: 'READ_VARIABLE', 144: 'ASSIGN_VARIABLE'}
OLD_CODES = 127  # a file with this one has the number in a field of its own


def check_file(path):
    """Refuse a .tflite file that is missing, cut short, something else, or more than a network.

    Offsets are followed, numbers of tensors, buffers and operators looked up, sizes bounded.

    Raises:
        UserError: naming what is wrong.
    """
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise UserError('cannot read the graph %s: %s' % (path, error.strerror))
    if data[4:8] != IDENTIFIER:
        raise UserError('%s is not a TensorFlow Lite file; give one that scripts/freeze_and_optimize.sh --tflite made'
                        % path)
    try:
        _check_model(data)
    except (struct.error, IndexError):
        raise UserError('%s is damaged or only a part of a file; copy or convert it again' % path)
    except UserError as error:
        raise UserError('%s is refused: %s' % (path, error))


def _check_model(data):
    model = find_target(data, 0)
    codes = [_code(data, table) for table in find_tables(data, model, OPERATOR_CODES)]
    buffers = find_tables(data, model, BUFFERS)
    for buffer in buffers:
        find_vector(data, buffer, BUFFER_DATA, '<B')
    subgraphs = find_tables(data, model, SUBGRAPHS)
    if len(subgraphs) != 1:
        raise UserError('it has %d graphs; a network has one' % len(subgraphs))
    tensors = find_tables(data, subgraphs[0], TENSORS)
    for tensor in tensors:
        shape = _numbers(data, tensor, SHAPE)
        elements = 1
        for side in shape:
            elements *= side
        if len(shape) > MAX_RANK or min(shape, default=0) < 0 or elements > MAX_ELEMENTS:
            raise UserError('a tensor has the shape %s' % (shape[:MAX_RANK],))
        _within([_number(data, tensor, BUFFER, '<I')], len(buffers))
    _within(_numbers(data, subgraphs[0], INPUTS) + _numbers(data, subgraphs[0], OUTPUTS), len(tensors))
    for operator in find_tables(data, subgraphs[0], OPERATORS):
        code = _number(data, operator, OPCODE, '<I')
        _within([code], len(codes))
        if codes[code] in REFUSED:
            raise UserError('it has the operator %s, which no network needs' % REFUSED[codes[code]])
        _within(_numbers(data, operator, OPERATOR_INPUTS), len(tensors), least=-1)  # -1: an input that is left out
        _within(_numbers(data, operator, OPERATOR_OUTPUTS), len(tensors))


def _code(data, table):
    """The number of an operator; 32 for one that has a name of its own."""
    if find_field(data, table, CUSTOM_CODE) is not None:
        return 32
    old = _number(data, table, OLD_CODE, '<b')
    return max(old, _number(data, table, CODE, '<i')) if old in (0, OLD_CODES) else old


def _within(numbers, count, least=0):
    if not all(least <= number < count for number in numbers):
        raise IndexError


def find_target(data, at):
    return at + struct.unpack_from('<I', data, at)[0]


def find_field(data, table, number):
    """The place of a table's field, or None when it is left out."""
    places = table - struct.unpack_from('<i', data, table)[0]
    if places < 0:
        raise IndexError
    places_bytes, table_bytes = struct.unpack_from('<HH', data, places)
    if places + places_bytes > len(data) or table + table_bytes > len(data):
        raise IndexError
    place = struct.unpack_from('<H', data, places + 4 + 2 * number)[0] if 4 + 2 * number < places_bytes else 0
    return table + place if place else None


def _number(data, table, number, form):
    """A table's field as a number; 0 where it is left out."""
    field = find_field(data, table, number)
    return struct.unpack_from(form, data, field)[0] if field else 0


def find_vector(data, table, number, form):
    """(start, length) of the vector that is a table's field."""
    field = find_field(data, table, number)
    if field is None:
        return 0, 0
    start = find_target(data, field)
    length = struct.unpack_from('<I', data, start)[0]
    if start + 4 + length * struct.calcsize(form) > len(data):
        raise IndexError
    return start + 4, length


def _numbers(data, table, number):
    """The int32 vector that is a table's field, as a list."""
    start, length = find_vector(data, table, number, '<i')
    if length > MAX_TABLES:
        raise IndexError
    return list(struct.unpack_from('<%di' % length, data, start))


def find_tables(data, table, number):
    """The places of the tables in the vector that is a table's field; all of each is in the data."""
    start, length = find_vector(data, table, number, '<I')
    if length > MAX_TABLES:
        raise IndexError
    tables = [find_target(data, start + 4 * i) for i in range(length)]
    for entry in tables:
        find_field(data, entry, 0)
    return tables
