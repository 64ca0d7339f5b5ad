"""The maps that a .tflite file makes, without TensorFlow: NETWORK.tflite IMAGES.npy MAPS.npy"""
import sys

import numpy as np

from inference import open_network

predict_maps, _ = open_network(sys.argv[1], threads=1)
np.save(sys.argv[3], predict_maps(np.load(sys.argv[2])))
assert not [name for name in sys.modules if name.split('.')[0] == 'tensorflow']
