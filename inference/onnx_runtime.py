"""Running .onnx files with ONNX Runtime; no TensorFlow."""
import collections
import os

import numpy as np

from pose_errors import UserError, reason_of
from pose_files import usable_cores

SKELETON = 'skeleton'  # among the metadata of a file
MAX_BYTES = 2 ** 31


def open_session(path, threads=None):
    """An onnxruntime.InferenceSession. Raises UserError: the file is missing or broken, or there is no ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError('%s needs ONNX Runtime (%s); run TF=2 bash scripts/setup_env.sh, or pip install onnxruntime'
                        % (path, error))
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
        raise UserError('there is no file %s, or it is none of a network; give the path of an .onnx file' % path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # it has exceptions of its own for each fault of a file
        raise UserError('%s cannot be run: %s; copy or convert it again' % (path, reason_of(error)[:300]))


def load_onnx(path, threads=None):
    """An .onnx file as a function of images, and the size that they must have, or None; see inference.open_network."""
    session = open_session(path, threads)
    (image, *_), (maps, *_) = session.get_inputs(), session.get_outputs()
    if len(image.shape) != 4 or image.shape[3] != 3:
        raise UserError('%s takes %s and no images (N, height, width, 3); convert a network of this project'
                        % (path, image.shape))
    height, width = (side if isinstance(side, int) else None for side in image.shape[1:3])

    def predict_maps(images):
        try:
            return session.run([maps.name], {image.name: np.asarray(images, np.float32)})[0]
        except Exception as error:
            raise UserError('%s does not run on an input of %dx%d: %s'
                            % (path, images.shape[2], images.shape[1], reason_of(error)[:300]))
    return predict_maps, (width, height) if height and width else None


def with_skeleton(data, skeleton):
    """The bytes of an .onnx file with what its network finds."""
    import onnx
    model = onnx.load_from_string(data)
    model.metadata_props.add(key=SKELETON, value=skeleton.to_json())
    return model.SerializeToString()


def skeleton_text(path):
    """The skeleton that an .onnx file holds, as JSON, or None."""
    return open_session(path, 1).get_modelmeta().custom_metadata_map.get(SKELETON)


def count_ops(path):
    """{op: how many of them} in an .onnx file, the most frequent first."""
    import onnx
    return dict(collections.Counter(node.op_type for node in onnx.load(path).graph.node).most_common())
