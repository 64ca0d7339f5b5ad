"""Weights of a frozen TensorFlow graph (.pb): its constants, which bear the names of the variables they were.

So do those of this project's graph_frozen.pb (and of graph_opt.pb where there is no batch norm to fold: cmu, vgg) and
of the graphs that other OpenPose projects published for TensorFlow. TensorFlow's own optimizer, Grappler, renames them:
what was read from x, x/read, becomes x/read/_1__cf__1. The graph is parsed and never run.
"""
import functools
import re
import warnings

import numpy as np
from google.protobuf import message

from pose_errors import UserError

from ..tensorflow import tf
from . import MAX_ELEMENTS, LazyArrays

FOLDED = re.compile(r'(/read)?/_\d+__cf__\d+$')  # what Grappler adds to a name
LEAVES = ('weights', 'biases', 'depthwise_weights', 'beta', 'gamma', 'moving_mean', 'moving_variance')


def read(path):
    """The constants of a frozen graph that are called like variables: Mapping {name: array}. Raises UserError."""
    graph = tf.GraphDef()
    try:
        with open(path, 'rb') as file, warnings.catch_warnings(record=True) as doubts:
            graph.ParseFromString(file.read())
    except OSError as error:
        raise UserError('cannot read %s: %s' % (path, error.strerror))
    except message.DecodeError:
        doubts = True
    if doubts:  # protobuf may also only warn of data that it does not understand
        raise UserError('%s is no frozen graph (.pb), or a part of one; get it again' % path)
    constants = {FOLDED.sub('', node.name): node.attr['value'].tensor for node in graph.node if node.op == 'Const'}
    tensors = {name: tensor for name, tensor in constants.items() if name.rpartition('/')[2] in LEAVES}
    # This project's networks have no gamma; frozen, they have one of ones.
    for name in [name for name in tensors if name.endswith('/gamma')]:
        if (_array(path, name, tensors[name]) == 1).all():
            del tensors[name]
    if not tensors:
        variables = [node.name for node in graph.node if node.op.startswith(('Variable', 'VarHandle'))]
        raise UserError('%s is not frozen: %s is a variable; freeze it with its checkpoint, or give the checkpoint'
                        % (path, variables[0]) if variables else
                        '%s has no weights: no constant in it is called .../weights' % path)
    return LazyArrays(tensors, functools.partial(_array, path))


def _array(path, name, tensor):
    elements = np.prod(np.array([max(dim.size, 0) for dim in tensor.tensor_shape.dim], object))
    if elements > MAX_ELEMENTS:
        raise UserError('%s: %s has %d elements; this is no file of weights' % (path, name, elements))
    try:
        array = tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise UserError('%s is broken (%s: %s); get it again' % (path, name, error))
    if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
        raise UserError('%s: %s is %s and not of floats; give a graph that is not quantized'
                        % (path, name, array.dtype))
    return array
