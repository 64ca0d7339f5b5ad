"""How many processors a graph limited to one thread keeps busy after another session was open: GRAPH.pb"""
import os
import sys
import time

import numpy as np

from inference import open_network, tensorflow_runtime

tensorflow_runtime.limit_threads(1)
import tensorflow.compat.v1 as tf  # noqa: E402

tf.Session().close()
predict_maps, _ = open_network(sys.argv[1], threads=1)
images = np.zeros((1, 64, 64, 3), np.uint8)
predict_maps(images)
begin, wall = os.times(), time.time()
for _ in range(50):
    predict_maps(images)
end = os.times()
print((end.user + end.system - begin.user - begin.system) / (time.time() - wall))
