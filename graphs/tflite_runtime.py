"""Running .tflite files: no TensorFlow, only an interpreter of TensorFlow Lite.

The interpreter is that of ai-edge-litert (Python 3.10 and newer) or of tflite-runtime (3.7). TensorFlow's own is not used:
1.15's computes 8-bit layers with reference code, 80 times slower, and 2.x's is deprecated in favour of ai-edge-litert's.
"""
import os

import numpy as np

from pose_cli import UserError

IDENTIFIER = b'TFL3'  # bytes 4 to 8 of every .tflite file


def load_network(path, threads=None):
    """A .tflite file as a function of images; see graphs.predict.load_network.

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
    """An interpreter of a network of this project, ready to run.

    Raises:
        UserError: the file is missing, broken or not of this project, or no interpreter is installed.
    """
    read_model(path)
    Interpreter = find_interpreter()
    try:
        interpreter = Interpreter(model_path=path, num_threads=threads or os.cpu_count())
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise UserError('the interpreter cannot read %s: %s; convert the graph again' % (path, error))
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if (len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]['shape']) != 4 or inputs[0]['shape'][3] != 3
            or inputs[0]['dtype'] not in (np.uint8, np.float32) or len(outputs[0]['shape']) != 4
            or outputs[0]['dtype'] != np.float32):
        raise UserError('%s is not a network of this project, which takes one image (1, height, width, 3) and gives float '
                        'maps (1, rows, columns, channels); make it with scripts/freeze_and_optimize.sh --tflite' % path)
    return interpreter


def find_interpreter():
    """The class Interpreter of the package that is installed. Raises UserError when none is."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise UserError('no interpreter for .tflite files is installed; pip install -r requirements-infer.txt')
    return Interpreter


def read_model(path):
    """The bytes of a .tflite file. Raises UserError when it is missing, cut short or something else."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise UserError('cannot read the graph %s: %s' % (path, error.strerror))
    if data[4:8] != IDENTIFIER:
        raise UserError('%s is not a TensorFlow Lite file; give one that scripts/freeze_and_optimize.sh --tflite made' % path)
    return data
