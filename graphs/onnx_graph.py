"""From a frozen graph to ONNX, by tf2onnx (TensorFlow 2 only). inference/onnx_runtime.py runs the files."""
import logging

from pose_errors import UserError, reason_of

from . import graphdef

OPSET = 17


def convert(graph):
    """A frozen graph as the bytes of an .onnx file: float32 pixels (N, height, width, 3) -> float32 maps.

    Args:
        graph: frozen GraphDef with the nodes graphdef.INPUT and graphdef.OUTPUT.
    Raises:
        UserError: tf2onnx is missing, or refuses the graph.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise UserError('--onnx needs tf2onnx (%s); run TF=2 bash scripts/setup_env.sh, and this in that environment'
                        % error)
    before = logging.root.level
    try:
        model, _ = tf2onnx.convert.from_graph_def(graph, input_names=[graphdef.INPUT + ':0'],
                                                  output_names=[graphdef.OUTPUT + ':0'], opset=OPSET)
    except Exception as error:  # it raises whatever its passes meet
        raise UserError('tf2onnx refuses the graph: %s' % reason_of(error)[:300])
    finally:
        logging.root.setLevel(before)
    return model.SerializeToString()
