"""The ways to run a network: one function, whatever file the network is in.

    frozen graph (.pb)          TensorFlow
    checkpoint                  TensorFlow
    TensorFlow Lite (.tflite)   graphs/tflite_runtime.py, no TensorFlow

Each becomes predict_maps(images, joints) -> maps. TensorFlow is only imported for the ways that need it.
"""
import os

import numpy as np

import pose_skeleton
from networks.about import skeleton_of
from pose_cli import UserError

SKELETON_FILE = 'skeleton.json'  # beside a graph


def load_network(graph_file=None, checkpoint=None, model=None, threads=None, skeleton=pose_skeleton.COCO):
    """A network from a file, as a function of images.

    Args:
        graph_file: a frozen graph with the nodes `image` and `Openpose/concat_stage7`, or a .tflite file; or
        checkpoint: prefix or folder, and model: one of networks.NAMES.
        skeleton: what the network of a checkpoint finds, see read_skeleton.
        threads: of the processor, at most; None leaves it to the runtime, which takes all.
    Returns:
        predict_maps: function (images uint8 (B, H, W, 3) BGR, joints) -> float32 maps (B, h, w, C); the joints are for
            oracles that stand in for a network, it has no use for them. Raises UserError for a size it does not take.
        size: (width, height) of the images, or None when it is free.
    Raises:
        UserError: a missing or broken file, a graph that is not of this project, a checkpoint of another model.
    """
    if graph_file and graph_file.endswith('.tflite'):
        from graphs import tflite_runtime
        return tflite_runtime.load_network(graph_file, threads)
    freeze = _import_freeze(graph_file or checkpoint)
    limit_threads(threads)
    if graph_file:
        graph_def = freeze.load_frozen(graph_file)
    else:
        graph_def = frozen_checkpoint(checkpoint, model, skeleton)
    return graph_network(graph_def, graph_file or checkpoint, threads)


def _import_freeze(file):
    """graphs/freeze.py, which needs TensorFlow. Raises UserError without it."""
    try:
        from graphs import freeze
    except ImportError as error:
        raise UserError('%s needs TensorFlow, which is not installed (%s); run bash scripts/setup_env.sh, or give a '
                        '.tflite file' % (file, error))
    return freeze


def read_skeleton(graph_file=None, checkpoint=None):
    """What a network finds, as its file or its neighbour says; None when nothing says so.

    A frozen graph has it in a constant of its own, a .tflite file in skeleton.json beside it, a checkpoint in run.json,
    weights that scripts/export_weights.py wrote in themselves.

    Raises UserError when it is damaged.
    """
    if graph_file:
        text = None
        if not graph_file.endswith('.tflite'):
            freeze = _import_freeze(graph_file)
            text = freeze.skeleton_text(freeze.load_graph(graph_file))
        path = os.path.join(os.path.dirname(graph_file), SKELETON_FILE)
        if text is None and os.path.isfile(path):
            with open(path, encoding='utf-8', errors='replace') as file:
                text = file.read(1 << 20)
        return None if text is None else pose_skeleton.from_json(text, graph_file)
    return skeleton_of(checkpoint)


def limit_threads(threads):
    """Hold TensorFlow to so many threads (None: all cores) in this process.

    The first session of a process makes the pool of threads that all others use, whatever they ask for: to be called
    before any other session is made.
    """
    import tensorflow.compat.v1 as tf
    tf.Session(graph=tf.Graph(), config=_config(threads)).close()


def _config(threads):
    import tensorflow.compat.v1 as tf
    return tf.ConfigProto(intra_op_parallelism_threads=threads or 0, inter_op_parallelism_threads=threads or 0)


def frozen_checkpoint(checkpoint, model, skeleton=pose_skeleton.COCO):
    """The GraphDef of a network, for images of any size, with a checkpoint's values."""
    from graphs import freeze
    from networks.pretrained import find_checkpoint
    return freeze.freeze(freeze.network_graph(model, skeleton=skeleton), find_checkpoint(checkpoint))


def graph_network(graph_def, name, threads=None):
    """load_network for a frozen GraphDef; name is what errors call it."""
    import tensorflow.compat.v1 as tf
    from graphs import graphdef
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(graph_def, name='')
            image, output = (graph.get_tensor_by_name(name + ':0') for name in (graphdef.INPUT, graphdef.OUTPUT))
        except (ValueError, tf.errors.OpError) as error:
            raise UserError('TensorFlow %s cannot read the graph %s: %s' % (tf.__version__, name, error))
    batch, *shape = image.shape.as_list()[:3] if image.shape.rank == 4 else [None, None, None]
    session = tf.Session(graph=graph, config=_config(threads))

    def predict_maps(images, joints):
        try:
            if batch == 1 and len(images) > 1:  # as graphs that were made elsewhere often are
                return np.concatenate([session.run(output, {image: single[None]}) for single in images])
            return session.run(output, {image: images})
        except (tf.errors.OpError, ValueError) as error:
            reason = getattr(error, 'message', str(error)).splitlines()[0]
            raise UserError('the network does not run on an input of %dx%d: %s'
                            % (images.shape[2], images.shape[1], reason))
    return predict_maps, None if None in shape else (shape[1], shape[0])
