"""From a frozen graph to TensorFlow Lite: in float, with weights in float16, and in 8 bits by calibration on images.

The converter is the one in either platform's TensorFlow, 1.15 and 2.x. It takes frozen graphs as they are: it folds
batch norm itself, and the layers that graphs/separable.py splits for TensorFlow are slower in TensorFlow Lite.
inference/tflite_runtime.py runs the files.
"""
import contextlib
import os
import sys
import tempfile

import numpy as np

from networks.tensorflow import stderr_to, tf
from pose_errors import UserError
from tensorflow.lite.python.convert import ConverterError

from . import freeze, graphdef, optimize
from .fold_batch_norm import fold_batch_norm
from .quantization import correct_biases, equalize


def convert(graph, input_shape, half=False):
    """A frozen graph as the bytes of a .tflite file: float32 pixels of input_shape (1, height, width, 3) -> maps.

    half: with weights in float16, in a file of half the size; a CPU computes in float32 with them.
    Raises UserError: the converter refuses the graph.
    """
    with _converter(graph, input_shape) as converter:
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def quantize(graph, images):
    """A frozen graph in 8 bits as the bytes of a .tflite file: uint8 pixels (1, height, width, 3) -> float32 maps.

    Full-integer post-training quantization: weights have a step for each output channel, activations one for each
    tensor, wide enough for all values that the tensor takes on the images; quantization.py prepares the graph.

    images: uint8 (N, height, width, 3) BGR, like those that the network will see.  Raises as convert.
    """
    # Mirrored, too: a few images show a channel's range badly, and what is beyond it is cut off.
    images = np.array(images, np.uint8)
    images = np.concatenate([images, images[:, :, ::-1]])
    # A black and a white pixel in each: then the steps of the quantized input are the pixels' own.
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    input_shape = [1] + list(images.shape[1:])
    graph = fold_batch_norm(optimize.simplify(graphdef.set_input_shape(graph, input_shape)))
    with _converter(correct_biases(equalize(graph, images), images), input_shape) as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
        return converter.convert()


@contextlib.contextmanager
def _converter(graph, input_shape):
    """A TFLiteConverter of the graph. It is quiet; what stops it becomes a UserError."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'graph.pb')
        freeze.save_graph(optimize.simplify(graphdef.set_input_shape(graph, input_shape)), path)
        try:
            # The converter reports each of its steps.
            with tempfile.TemporaryFile() as log, stderr_to(log), _programs_on_path():
                yield tf.lite.TFLiteConverter.from_frozen_graph(path, [graphdef.INPUT], [graphdef.OUTPUT],
                                                                {graphdef.INPUT: input_shape})
        except (ConverterError, RuntimeError, ValueError, tf.errors.OpError) as error:
            # It may hold the log of a program.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            telling = [line for line in lines if 'not supported' in line or 'rror' in line and 'Traceback' not in line]
            raise UserError('the converter to TensorFlow Lite of TensorFlow %s refuses the graph: %s; give '
                            'graph_frozen.pb, not an optimized graph' % (tf.__version__, (telling or lines)[-1][:300]))


@contextlib.contextmanager
def _programs_on_path():
    """TensorFlow 1.15 starts toco_from_protos, which lies beside the interpreter, by its name."""
    before = os.environ.get('PATH', os.defpath)
    os.environ['PATH'] = os.pathsep.join([os.path.dirname(sys.executable), before])
    try:
        yield
    finally:
        os.environ['PATH'] = before
