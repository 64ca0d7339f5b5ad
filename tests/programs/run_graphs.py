"""The outputs of frozen graphs, by TensorFlow and numpy alone: IMAGES.npy OUTPUTS.npy GRAPH.pb ..."""
import sys

import numpy as np

import tensorflow.compat.v1 as tf

images = np.load(sys.argv[1])
results = []
for path in sys.argv[3:]:
    graph_def = tf.GraphDef()
    with open(path, 'rb') as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name='')
        with tf.Session() as session:
            results.append([session.run('Openpose/concat_stage7:0', {'image:0': image[None]})[0] for image in images])
np.save(sys.argv[2], results)
