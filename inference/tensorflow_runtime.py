"""Running frozen graphs and checkpoints with TensorFlow."""
import logging

import numpy as np

from graphs import freeze, graphdef
from networks.pretrained import find_checkpoint
from networks.tensorflow import tf
from pose_errors import UserError, reason_of

load_frozen = freeze.load_frozen


def skeleton_text(graph_file):
    """The skeleton that a frozen graph holds, as JSON, or None."""
    return freeze.skeleton_text(freeze.load_graph(graph_file))


def limit_threads(threads):
    """Hold TensorFlow to so many threads (None: all cores) in this process: the first session makes the pool of threads
    that all others use, whatever they ask for, so this is to be called before any other is made."""
    tf.Session(graph=tf.Graph(), config=_config(threads)).close()


def _config(threads):
    return tf.ConfigProto(intra_op_parallelism_threads=threads or 0, inter_op_parallelism_threads=threads or 0)


def freeze_checkpoint(checkpoint, model, skeleton):
    """The GraphDef of a network, for images of any size, with a checkpoint's values."""
    return freeze.freeze(freeze.network_graph(model, skeleton), find_checkpoint(checkpoint))


def graph_network(graph_def, name, threads=None):
    """open_network for a frozen GraphDef, which errors call `name`. Where batch norm is in training mode, images run
    one by one, so that what is found does not depend on how many go through at once; the log says so."""
    training = graphdef.training_batch_norms(graph_def)
    if training:
        logging.warning('%s: %d batch norms are in training mode (%s, ...), so images run one by one, and worse than '
                        'they should; mend it with scripts/freeze_and_optimize.sh --graph=%s --batch-norm-from=PHOTOS',
                        name, len(training), training[0].name, name)
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(graph_def, name='')
            image, output = (graph.get_tensor_by_name(name + ':0') for name in (graphdef.INPUT, graphdef.OUTPUT))
        except (ValueError, tf.errors.OpError) as error:
            raise UserError('TensorFlow %s cannot read the graph %s: %s' % (tf.__version__, name, error))
    batch, *shape = image.shape.as_list()[:3] if image.shape.rank == 4 else [None, None, None]
    session = tf.Session(graph=graph, config=_config(threads))

    def predict_maps(images):
        try:
            if (batch == 1 or training) and len(images) > 1:  # as graphs that were made elsewhere often are
                return np.concatenate([session.run(output, {image: single[None]}) for single in images])
            return session.run(output, {image: images})
        except (tf.errors.OpError, ValueError) as error:
            raise UserError('the network does not run on an input of %dx%d: %s'
                            % (images.shape[2], images.shape[1], reason_of(error)))
    predict_maps.close = session.close
    return predict_maps, None if None in shape else (shape[1], shape[0])
