"""Running a network that lies in a file, a frozen graph or a checkpoint, as a function of images.

TensorFlow is only imported once there is something to run.
"""
from pose_cli import UserError


def load_network(graph_file=None, checkpoint=None, model=None):
    """A network from a file, as a function of images.

    Args:
        graph_file: a frozen graph with the nodes `image` and `Openpose/concat_stage7`; or
        checkpoint: prefix or folder, and model: one of networks.NAMES.
    Returns:
        predict_maps: function (images uint8 (B, H, W, 3) BGR, joints) -> float32 maps (B, h, w, C); the joints are for
            oracles that stand in for a network, it has no use for them. Raises UserError for a size it does not take.
        size: (width, height) of the images, or None when it is free.
    Raises:
        UserError: a missing or broken file, a graph that is not of this project, a checkpoint of another model.
    """
    from graphs import freeze
    from networks.pretrained import find_checkpoint
    if graph_file:
        graph_def = freeze.load_frozen(graph_file)
    else:
        prefix = find_checkpoint(checkpoint)
        graph_def = freeze.freeze(freeze.inference_graph(model), prefix)
    return graph_network(graph_def, graph_file or checkpoint)


def graph_network(graph_def, name):
    """load_network for a frozen GraphDef; name is what errors call it."""
    import tensorflow.compat.v1 as tf
    from graphs.graphdef import INPUT, OUTPUT
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(graph_def, name='')
            image, output = (graph.get_tensor_by_name(node + ':0') for node in (INPUT, OUTPUT))
        except (ValueError, tf.errors.OpError) as error:
            raise UserError('TensorFlow %s cannot read the graph %s: %s' % (tf.__version__, name, error))
    shape = image.shape.as_list()[1:3] if image.shape.rank == 4 else [None, None]
    session = tf.Session(graph=graph)

    def predict_maps(images, joints):
        try:
            return session.run(output, {image: images})
        except (tf.errors.OpError, ValueError) as error:
            reason = getattr(error, 'message', str(error)).splitlines()[0]
            raise UserError('the network does not run on an input of %dx%d: %s'
                            % (images.shape[2], images.shape[1], reason))
    return predict_maps, None if None in shape else (shape[1], shape[0])
