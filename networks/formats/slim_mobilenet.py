"""Slim's MobileNets, trained on ImageNet with RGB pixels of -1..1, as starts of the networks here, which take BGR.

The layers of `mobilenet`, `mobilenet_thin`, `mobilenet_fast` and `mobilenet_accurate` differ from them in more than
that (no gammas, bare depthwise layers): there it is a start for training, not the same function.
"""
import numpy as np

from . import LazyArrays

V1_FIRST, V2_FIRST = 'MobilenetV1/Conv2d_0', 'MobilenetV2/Conv'
BATCH_NORM_EPSILON = 0.001
HALF_RANGE = 127.5  # pixel p is p / 127.5 - 1 to slim


def converted(weights, shapes):
    """A Mapping of weights: slim's ImageNet weights fitted to our networks, all else as it is.

    shapes: {name: shape} of the network's variables.
    """
    names = set(weights)
    marks = {V1_FIRST + '/BatchNorm/gamma', V2_FIRST + '/BatchNorm/gamma'}
    if not marks & names or any(name.startswith('Openpose/') for name in names):
        return weights

    def read(name, _):
        value = weights[name]  # one of another shape is left for fit to refuse
        if name in (V1_FIRST + '/weights', V2_FIRST + '/weights') and value.ndim == 4:
            return value[:, :, ::-1]
        # The same function of pixels 0..255, which MobileNet v2 takes here, but for the zeros around the image.
        if name == V2_FIRST + '/BatchNorm/moving_mean':
            return HALF_RANGE * (value + weights[V2_FIRST + '/weights'].sum((0, 1, 2)))
        if name == V2_FIRST + '/BatchNorm/moving_variance':
            return HALF_RANGE ** 2 * (value + BATCH_NORM_EPSILON) - BATCH_NORM_EPSILON
        return dilated(value, shapes.get(name)) if name.endswith('_depthwise/depthwise_weights') else value
    return LazyArrays(dict.fromkeys(weights), read)


def dilated(weights, shape):
    """3x3 depthwise weights as a 5x5 kernel that does what they do with dilation 2; others, and for others, as is."""
    if shape is None or weights.shape[:2] != (3, 3) or tuple(shape) != (5, 5) + weights.shape[2:]:
        return weights
    larger = np.zeros(shape, weights.dtype)
    larger[::2, ::2] = weights
    return larger
