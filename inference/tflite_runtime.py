"""Running .tflite files: no TensorFlow, only an interpreter of TensorFlow Lite.

The interpreter is that of ai-edge-litert (Python 3.10 and newer) or of tflite-runtime (3.7). TensorFlow's own is not
used: 2.x's is deprecated in favour of ai-edge-litert's, and 1.15's knows fewer ops. On x86 processors the 8-bit layers
are fast in ai-edge-litert only: tflite-runtime computes them there with reference code, some 50 times slower.
"""
import collections
import mmap
import os
import struct
import subprocess
import sys

import numpy as np

from pose_errors import UserError
from pose_files import open_file, usable_cores

IDENTIFIER = b'TFL3'  # bytes 4 to 8 of every .tflite file
BUFFERS = 4  # the field of the weights in the table of a model
MAX_BYTES, MAX_SKELETON_BYTES = 2 ** 31, 2 ** 20
SKELETON_MARK = b'skeleton'  # at the end of a file that has one


def load_tflite(path, threads=None):
    """A .tflite file as a function of images, and the size that they must have; see inference.open_network. Images go
    in one by one, as the pixels that they are: files in 8 bits take uint8, others float32."""
    interpreter = open_interpreter(path, threads)
    image, maps = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    height, width = (int(side) for side in image['shape'][1:3])

    def predict_maps(images):
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
    """An interpreter of a network of this project, ready to run on so many threads (None: all cores). Raises UserError:
    the file is missing, broken or not of this project, or no interpreter is installed."""
    check_file(path)
    if runtime_name() == 'tflite-runtime' and skeleton_text(path) is None:
        # Its end may be missing, and tflite-runtime, which checks nothing, then often ends the process.
        program = 'import sys, tflite_runtime.interpreter as lite; lite.Interpreter(sys.argv[1]).allocate_tensors()'
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        if subprocess.run([sys.executable, '-c', program, path], **quiet).returncode < 0:
            raise UserError('%s is damaged or only a part of a file; copy or convert it again' % path)
    try:
        interpreter = interpreter_class()(model_path=path, num_threads=threads or usable_cores())
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise UserError('the interpreter cannot run %s: %s; copy or convert it again' % (path, error))
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


def check_file(path):
    """Raise UserError for a .tflite file that is missing, empty, cut short, too large or something else. The
    interpreter trusts what is inside: it is for a sandbox to contain what files of strangers do."""
    try:
        with open_file(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            if start[4:] != IDENTIFIER or size > MAX_BYTES:
                raise UserError('%s is not a TensorFlow Lite file; give one that scripts/freeze_and_optimize.sh '
                                '--tflite made' % path)
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                if _end_of_buffers(data) > size:
                    raise ValueError
    except OSError as error:
        raise UserError('cannot read the graph %s: %s' % (path, error.strerror))
    except (struct.error, ValueError):
        raise UserError('%s is only a part of a file; copy or convert it again' % path)


def _end_of_buffers(data):
    """Where the last of the weights in a .tflite file (FlatBuffers, schema version 3) ends. Raises struct.error or
    ValueError for a file that ends before it says so."""
    def field(table, number):
        """The place that a field of a table refers to, or None."""
        vtable = table - struct.unpack_from('<i', data, table)[0]
        size, = struct.unpack_from('<H', data, vtable)
        offset = struct.unpack_from('<H', data, vtable + 4 + 2 * number)[0] if size > 4 + 2 * number else 0
        return follow(table + offset) if offset else None

    def follow(place):
        return place + struct.unpack_from('<I', data, place)[0]

    buffers, end = field(follow(0), BUFFERS), 0
    for number in range(struct.unpack_from('<I', data, buffers)[0] if buffers else 0):
        content = field(follow(buffers + 4 + 4 * number), 0)
        if content:
            end = max(end, content + 4 + struct.unpack_from('<I', data, content)[0])
    return end


def with_skeleton(data, skeleton):
    """The bytes of a .tflite file with what the network finds behind them, where no interpreter looks."""
    text = skeleton.to_json().encode()
    return data + text + struct.pack('<I', len(text)) + SKELETON_MARK


def skeleton_text(path):
    """The text that with_skeleton put into a file, or None."""
    with open_file(path) as file:
        size, end = os.fstat(file.fileno()).st_size, struct.calcsize('<I') + len(SKELETON_MARK)
        file.seek(max(0, size - end))
        tail = file.read(end)
        if len(tail) < end or not tail.endswith(SKELETON_MARK):
            return None
        length = struct.unpack_from('<I', tail)[0]
        file.seek(max(0, size - end - length))
        return file.read(min(length, MAX_SKELETON_BYTES)).decode(errors='replace')


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
