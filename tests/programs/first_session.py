"""Import TensorFlow as the commands do, and open a session."""
import pose_cli  # noqa: F401
import tensorflow.compat.v1 as tf

tf.Session(graph=tf.Graph()).close()
