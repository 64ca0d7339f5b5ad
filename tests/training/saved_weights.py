"""What is in a checkpoint folder."""
import tensorflow.compat.v1 as tf


def saved_step(model):
    """The step that a run in this folder resumes from."""
    return int(tf.train.latest_checkpoint(str(model)).rsplit('-', 1)[1])


def load_all(prefix):
    """{variable name: array} of a checkpoint."""
    reader = tf.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
