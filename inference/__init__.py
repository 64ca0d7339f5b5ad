"""From images to people: `load_network` is all that a program needs, whatever file the network is in.

    from inference import draw_people, load_network
    with load_network('graph_opt.pb') as network:
        people = network(image)                        # uint8 (H, W, 3), BGR as from cv2.imread
        cv2.imwrite('people.png', draw_people(image, people, skeleton=network.skeleton))

    frozen graph (.pb)          inference/tensorflow_runtime.py
    checkpoint                  inference/tensorflow_runtime.py
    TensorFlow Lite (.tflite)   inference/tflite_runtime.py, no TensorFlow
    ONNX (.onnx)                inference/onnx_runtime.py, no TensorFlow

`open_network` makes each predict_maps(images) -> maps. predictor.py reads images and finds people with such a function,
decode.py turns maps into people, metrics.py people into AP, video.py follows them through films.

TensorFlow is imported only for the files that need it: the processes that decode maps import this package too.
"""
import os

from annotations.skeleton import COCO_SKELETON, parse_skeleton
from networks.pretrained import skeleton_of
from pose_errors import UserError

SKELETON_FILE = 'skeleton.json'  # beside a graph
GRAPHS = '.pb', '.tflite', '.onnx'


def load_network(path, model=None, **options):
    """A network as a function from images to people: a pose_network.PoseNetwork, which knows the options.

    Args:
        path: a graph (.pb, .tflite, .onnx), weights (.npy, .caffemodel, .h5), a checkpoint's prefix or folder.
        model: one of networks.NAMES, where a checkpoint or weights do not say so.
    Raises UserError: as open_network; an option that is out of its range.
    """
    from .pose_network import load
    return load(path, model, **options)


def draw_people(image, people, skeleton=COCO_SKELETON):
    """The image with skeletons, as a new one.

    people: as a network returns them.  skeleton: its skeleton, network.skeleton; COCO's without it.
    Raises UserError: people have parts that the skeleton has not.
    """
    from .pose_network import draw
    return draw(image, people, skeleton)


def graph_kind(path):
    """Which of GRAPHS a file is by its name, in capitals or not; None: none of them."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in GRAPHS else None


def open_network(graph_file=None, checkpoint=None, model=None, threads=None, skeleton=None):
    """A network from a file, as a function of images.

    Args:
        graph_file: a frozen graph with the nodes `image` and `Openpose/concat_stage7`, or a .tflite or .onnx file; or
        checkpoint: prefix or folder, model: one of networks.NAMES, and skeleton: what it finds, see read_skeleton.
        threads: of the processor, at most; None leaves it to the runtime, which takes all.
    Returns:
        predict_maps: function (images uint8 (B, H, W, 3) BGR) -> float32 maps (B, h, w, C). Raises UserError for a size
            that it does not take.
        size: (width, height) of the images, or None when it is free.
    Raises UserError: a missing or broken file, a graph that is not of this project, a checkpoint of another model.
    """
    kind = graph_file and graph_kind(graph_file)
    if kind == '.tflite':
        from . import tflite_runtime
        return tflite_runtime.load_tflite(graph_file, threads)
    if kind == '.onnx':
        from . import onnx_runtime
        return onnx_runtime.load_onnx(graph_file, threads)
    runtime = _tensorflow_runtime(graph_file or checkpoint)
    runtime.limit_threads(threads)
    if graph_file:
        return runtime.graph_network(runtime.load_frozen(graph_file), graph_file, threads)
    return runtime.graph_network(runtime.freeze_checkpoint(checkpoint, model, skeleton), checkpoint, threads)


def _tensorflow_runtime(file):
    """inference/tensorflow_runtime.py, which needs TensorFlow. Raises UserError without it."""
    try:
        from . import tensorflow_runtime
    except ImportError as error:
        raise UserError('%s needs TensorFlow, which is not installed (%s); run bash scripts/setup_env.sh, or '
                        "pip install -e '.[tf2]' in the checkout, or give a .tflite file" % (file, error))
    return tensorflow_runtime


def read_skeleton(graph_file=None, checkpoint=None):
    """What a network finds, as its file or its neighbour says; None when nothing says so. Raises UserError.

    A frozen graph has it in a constant of its own, a .tflite file at its end, an .onnx file in its metadata, graphs of
    before that in skeleton.json beside them, a checkpoint in run.json, weights of scripts/export_weights.py in
    themselves.
    """
    if graph_file:
        kind = graph_kind(graph_file)
        if kind == '.tflite':
            from . import tflite_runtime
            tflite_runtime.check_file(graph_file)
            text = tflite_runtime.skeleton_text(graph_file)
        elif kind == '.onnx':
            from . import onnx_runtime
            text = onnx_runtime.skeleton_text(graph_file)
        else:
            text = _tensorflow_runtime(graph_file).skeleton_text(graph_file)
        path = os.path.join(os.path.dirname(graph_file), SKELETON_FILE)
        if text is None and os.path.isfile(path):
            with open(path, encoding='utf-8', errors='replace') as file:
                text = file.read(1 << 20)
        return None if text is None else parse_skeleton(text, graph_file)
    return skeleton_of(checkpoint)
