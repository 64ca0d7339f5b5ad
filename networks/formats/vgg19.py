"""VGG-19 as trained on ImageNet (Simonyan and Zisserman 2014), under the names and for the pixels of the networks here.

| file | first layer | takes |
|---|---|---|
| slim's vgg_19.ckpt | vgg_19/conv1/conv1_1/weights | RGB 0..255 less the mean |
| Caffe's VGG_ILSVRC_19_layers.caffemodel | conv1_1/weights, and there is a conv5_4 | BGR 0..255 less the mean |
| Keras's vgg19_weights_tf_dim_ordering_tf_kernels[_notop].h5 | block1_conv1/weights | BGR 0..255 less the mean |
"""
import re
from collections.abc import Mapping

import numpy as np

VGG_MEAN_RGB = (123.68, 116.78, 103.94)
FIRST = 'conv1_1/weights', 'conv1_1/biases'
SLIM, KERAS = 'vgg_19/conv1/conv1_1/weights', 'block1_conv1/weights'


def converted(weights):
    """A Mapping of weights: VGG-19's under our names, its first layer converted; all else as it is."""
    names = set(weights)
    if SLIM in names:
        return _Vgg({re.sub(r'^vgg_19/conv\d/', '', name): name for name in names}, weights, 'RGB')
    if KERAS in names:
        return _Vgg({re.sub(r'^block(\d)_conv(\d)/', r'conv\1_\2/', name): name for name in names}, weights, 'BGR')
    if {'conv1_1/weights', 'conv4_3/weights', 'conv5_4/weights'} <= names:  # OpenPose's own have no such layers
        return _Vgg({name: name for name in names}, weights, 'BGR')
    return weights


class _Vgg(Mapping):
    """names: {our name: name in weights}."""

    def __init__(self, names, weights, order):
        self.names, self.weights, self.order = names, weights, order

    def __getitem__(self, name):
        value = self.weights[self.names[name]]
        if name not in FIRST:
            return value
        kernel = self.weights[self.names[FIRST[0]]]
        biases = self.weights[self.names[FIRST[1]]] if FIRST[1] in self.names else np.zeros(kernel.shape[3:])
        if not can_be_converted(kernel, biases):
            return value
        return convert_conv1_1(kernel, biases, self.order)[FIRST.index(name)]

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def can_be_converted(kernel, biases):
    """Whether arrays of a file can be those of VGG's first layer; others stay as they are, to be refused."""
    return (kernel.ndim == 4 and kernel.shape[2] == 3 and kernel.shape[3:] == biases.shape
            and kernel.dtype.kind in 'fiu' and biases.dtype.kind in 'fiu')


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
