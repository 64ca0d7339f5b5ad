"""A frozen graph as a SavedModel, the form that TensorFlow Serving loads."""
import os
import shutil

import tensorflow.compat.v1 as tf

from graphs import graphdef
from pose_cli import UserError

SIGNATURE = 'serving_default'  # what clients call when they name none
IMAGE, MAPS = 'image', 'maps'


def save(graph, folder):
    """Write a frozen graph as the SavedModel folder; one that is there already gives way when the new one is complete.

    Its signature SIGNATURE takes IMAGE, float32 pixels (batch, height, width, 3) BGR, and gives MAPS, float32.

    Args:
        graph: frozen GraphDef with the nodes graphdef.INPUT and graphdef.OUTPUT.
        folder: TensorFlow Serving wants its name to be a number, the version: models/NAME/1.
    Raises:
        UserError: the folder cannot be written.
    """
    temporary = '%s.%d.tmp' % (folder, os.getpid())
    try:
        with tf.Graph().as_default(), tf.Session() as session:
            tensors = [graphdef.INPUT + ':0', graphdef.OUTPUT + ':0']
            image, maps = tf.import_graph_def(graph, name='', return_elements=tensors)
            signature = tf.saved_model.predict_signature_def({IMAGE: image}, {MAPS: maps})
            builder = tf.saved_model.Builder(temporary)
            builder.add_meta_graph_and_variables(session, [tf.saved_model.tag_constants.SERVING],
                                                 {SIGNATURE: signature})
            builder.save()
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError('cannot write the SavedModel %s: %s; choose another --output-dir' % (folder, error))
