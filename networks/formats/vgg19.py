"""VGG-19 as trained on ImageNet (Simonyan and Zisserman 2014), under the names and for the pixels of the networks here.

| file | first layer | takes |
|---|---|---|
| slim's vgg_19.ckpt | vgg_19/conv1/conv1_1/weights | RGB 0..255 less the mean |
| Caffe's VGG_ILSVRC_19_layers.caffemodel | conv1_1/weights, and there is a conv5_4 | BGR 0..255 less the mean |
| Keras's vgg19_weights_tf_dim_ordering_tf_kernels[_notop].h5 | block1_conv1/weights | BGR 0..255 less the mean |
"""
import re

import numpy as np

from . import LazyArrays

VGG_MEAN_RGB = (123.68, 116.78, 103.94)
FIRST = 'conv1_1/weights', 'conv1_1/biases'
SLIM, KERAS = 'vgg_19/conv1/conv1_1/weights', 'block1_conv1/weights'


def converted(weights):
    """A Mapping of weights: VGG-19's under our names, its first layer converted; all else as it is."""
    names = set(weights)
    if SLIM in names:
        own_names, order = {re.sub(r'^vgg_19/conv\d/', '', name): name for name in names}, 'RGB'
    elif KERAS in names:
        own_names, order = {re.sub(r'^block(\d)_conv(\d)/', r'conv\1_\2/', name): name for name in names}, 'BGR'
    elif {'conv1_1/weights', 'conv4_3/weights', 'conv5_4/weights'} <= names:  # OpenPose's own have no such layers
        own_names, order = {name: name for name in names}, 'BGR'
    else:
        return weights

    def read(own_name, name):
        if own_name not in FIRST:
            return weights[name]
        kernel = weights[own_names[FIRST[0]]]
        biases = weights[own_names[FIRST[1]]] if FIRST[1] in own_names else np.zeros(kernel.shape[3:])
        if (kernel.ndim != 4 or kernel.shape[2] != 3 or kernel.shape[3:] != biases.shape
                or kernel.dtype.kind not in 'fiu' or biases.dtype.kind not in 'fiu'):
            return weights[name]  # not VGG's first layer: as it is, to be refused
        return convert_conv1_1(kernel, biases, order)[FIRST.index(own_name)]
    return LazyArrays(own_names, read)


def convert_conv1_1(weights, biases, order='RGB'):
    """VGG's first layer, made for pixels 0..255 in this order less the mean -> for ours, BGR x / 256 - 0.5.

    weights: (3,3,3,64), biases: (64,). With pixel p = 256 (x + 0.5): w (p - mean) = 256 w x + w (128 - mean).
    Activations are equal everywhere but in the outermost ring of pixels. There both pad with zeros, which to VGG is a
    border of the mean colour and here one of grey 128, the grey that the augmentation fills in outside the image.
    """
    if order == 'RGB':
        weights = weights[:, :, ::-1]
    shift = 128.0 - np.asarray(VGG_MEAN_RGB[::-1])
    biases = biases + np.einsum('hwcf,c->f', weights.astype(np.float64), shift)
    return 256.0 * weights, biases.astype(np.float32)
