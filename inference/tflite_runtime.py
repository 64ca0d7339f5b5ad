"""Running .tflite files: no TensorFlow, only an interpreter of TensorFlow Lite.

The interpreter is that of ai-edge-litert (Python 3.10 and newer) or of tflite-runtime (3.7). TensorFlow's own is not
used: 2.x's is deprecated in favour of ai-edge-litert's, and 1.15's knows fewer ops. On x86 processors the 8-bit layers
are fast in ai-edge-litert only: tflite-runtime computes them there with reference code, some 50 times slower.
"""
import collections
import os
import struct

import numpy as np

from pose_errors import UserError
from pose_files import read_file


def load_tflite(path, threads=None):
    """A .tflite file as a function of images, and the size that they must have; see graphs.predict.load_network.

    Images go in one by one, as the pixels that they are: files in 8 bits take uint8, others float32.
    """
    interpreter = open_interpreter(path, threads)
    image, maps = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    height, width = (int(side) for side in image['shape'][1:3])

    def predict_maps(images, joints):
        if images.shape[1:3] != (height, width):
            raise UserError('%s takes images of %dx%d, not %dx%d; give that size, or convert the graph for the other'
                            % (path, width, height, images.shape[2], images.shape[1]))
        results = []
        for single in images:
            interpreter.set_tensor(image['index'], single[None].astype(image['dtype'], copy=False))
            interpreter.invoke()
            results.append(interpreter.get_tensor(maps['index'])[0])
        return np.stack(results)
    return predict_maps, (width, height)


def open_interpreter(path, threads=None):
    """An interpreter of a network of this project, ready to run on so many threads (None: all cores).

    Raises:
        UserError: the file is missing, broken or not of this project, or no interpreter is installed.
    """
    check_file(path)
    try:
        interpreter = interpreter_class()(model_path=path, num_threads=threads or os.cpu_count())
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise UserError('the interpreter cannot run %s: %s; convert the graph again' % (path, error))
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if (len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]['shape']) != 4 or inputs[0]['shape'][3] != 3
            or inputs[0]['dtype'] not in (np.uint8, np.float32) or len(outputs[0]['shape']) != 4
            or outputs[0]['dtype'] != np.float32):
        raise UserError('%s is not a network of this project: it must take one image (1, height, width, 3) of uint8 or '
                        'float32 and give float32 maps (1, rows, columns, channels); make it with '
                        'scripts/freeze_and_optimize.sh --tflite' % path)
    quantization = inputs[0]['quantization']
    if inputs[0]['dtype'] == np.uint8 and not (abs(quantization[0] - 1) < 1e-3 and quantization[1] == 0):
        raise UserError('%s does not take pixels as they are, but in steps of %g from %d; make it with '
                        'scripts/freeze_and_optimize.sh --quantize=int8' % ((path,) + tuple(quantization)))
    return interpreter


def interpreter_class():
    """The class Interpreter of the package that is installed. Raises UserError when none is."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise UserError('no interpreter for .tflite files is installed; run TF=lite bash scripts/setup_env.sh, or '
                            'pip install -r requirements-infer.txt')
    return Interpreter


def runtime_name():
    """What runs .tflite files here, as in reports."""
    return interpreter_class().__module__.split('.')[0].replace('_', '-')


def count_ops(path):
    """{op: how many} of a .tflite file, the most frequent first."""
    interpreter = open_interpreter(path, threads=1)
    # The one way to them in Python; what stands for a group of the others is no op of the file.
    names = [op['op_name'] for op in interpreter._get_ops_details()]
    return dict(collections.Counter(name for name in names if name != 'DELEGATE').most_common())


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
