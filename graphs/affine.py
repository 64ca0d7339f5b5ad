"""What only scales and shifts channels, folded into the weights of a convolution or matrix product beside it.

That is inference batch norm, fused or written as multiplication and addition, together with biases; and depthwise 1x1
convolutions.
"""
import collections

import numpy as np

from graphs.graphdef import OUTPUT, BATCH_NORM, GraphView, data_format, flag, is_training, node_name, port, strip_unused

LINEAR = ('Conv2D', 'DepthwiseConv2dNative', 'MatMul')
ADDITIONS = ('BiasAdd', 'Add', 'AddV2', 'Sub')
SCALINGS = ('Mul', 'RealDiv', 'Div')

# Channel c becomes scale[c] * channel + shift[c]: both (channels,) float64.
Affine = collections.namedtuple('Affine', 'scale shift')


# The passes.

def fold_affine(graph):
    """Fold what scales and shifts the channels after a convolution or matrix product into its weights and one BiasAdd.

    Only the one user of an output may be folded into what makes it: others would see it scaled too.
    """
    view = GraphView(graph)
    for linear in view.of(*LINEAR):
        weights = view.constant(linear.input[1])
        if weights is None or data_format(linear) not in ('NHWC', 'NCHW'):
            continue
        chain, affine = affine_chain(view, linear, output_channels(linear, weights))
        if not chain or [node.op for node in chain] == ['BiasAdd']:
            continue
        if (affine.scale != 1).any():
            scaled = weights.astype(np.float64) * along_output_channels(linear, weights, affine.scale)
            linear.input[1] = view.add_constant(linear.name + '/folded_weights', scaled.astype(weights.dtype))
        replace_by_bias(view, chain[-1], linear, affine.shift.astype(weights.dtype))
    return strip_unused(view.graph)


def fold_depthwise_1x1(graph):
    """Fold depthwise 1x1 convolutions, which only scale each channel, into the weights of the convolution after."""
    view = GraphView(graph)
    for depthwise in view.of('DepthwiseConv2dNative'):
        scale = view.constant(depthwise.input[1])
        users = view.users(depthwise)
        if (scale is None or scale.shape[:2] != (1, 1) or scale.shape[3] != 1 or len(users) != 1
                or users[0].op != 'Conv2D' or node_name(users[0].input[0]) != depthwise.name
                or any(stride != 1 for stride in depthwise.attr['strides'].list.i)
                or data_format(depthwise) != data_format(users[0])):
            continue
        conv = users[0]
        weights = view.constant(conv.input[1])
        # In grouped convolutions the weights have fewer input channels than the input.
        if weights is None or weights.shape[2] != scale.shape[2]:
            continue
        scaled = weights.astype(np.float64) * scale.astype(np.float64).reshape(1, 1, -1, 1)
        conv.input[0] = depthwise.input[0]
        conv.input[1] = view.add_constant(conv.name + '/folded_input_scale', scaled.astype(weights.dtype))
    return strip_unused(view.graph)


def replace_by_bias(view, node, linear, bias):
    """Make node the sum of linear's output and a bias; it keeps its name, so that what comes after need not change."""
    name, dtype = node.name, linear.attr['T'].type
    constant = view.add_constant(name + '/folded_bias', bias)
    node.Clear()
    node.name, node.op = name, 'BiasAdd'
    node.input.extend([linear.name, constant])
    node.attr['T'].type = dtype
    node.attr['data_format'].s = data_format(linear).encode()


# What a node does to the channels.

def affine_chain(view, linear, channels):
    """The nodes that, one after the other, only scale and shift the output of linear, and all they do as one Affine."""
    chain, total = [], Affine(np.ones(channels), np.zeros(channels))
    node = linear
    while node.name != OUTPUT and len(view.users(node)) == 1:
        user = view.users(node)[0]
        step = affine_of(view, user, node, linear, channels)
        if step is None:
            break
        total = Affine(total.scale * step.scale, total.shift * step.scale + step.shift)
        chain.append(user)
        node = user
    return chain, total


def affine_of(view, node, source, linear, channels):
    """The Affine of a node that only scales and shifts the channels of the node source, else None.

    source has the layout of linear, the convolution or matrix product that it is computed from.
    """
    if node.op in BATCH_NORM:
        return affine_of_batch_norm(view, node, source, linear)
    if node.op not in ADDITIONS + SCALINGS:
        return None
    return affine_of_arithmetic(view, node, source, linear, channels)


def affine_of_batch_norm(view, node, source, linear):
    has_other_outputs_used = any(port(ref) for user in view.users(node) for ref in user.input
                                 if node_name(ref) == node.name)
    if (node_name(node.input[0]) != source.name or is_training(node) or data_format(node) != data_format(linear)
            or has_other_outputs_used):
        return None
    values = [view.constant(ref) for ref in node.input[1:5]]
    if any(value is None for value in values):
        return None
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
    epsilon = node.attr['epsilon'].f if 'epsilon' in node.attr else 1e-4
    scale = gamma / np.sqrt(variance + epsilon)
    return Affine(scale, beta - mean * scale)


def affine_of_arithmetic(view, node, source, linear, channels):
    """Of an addition or scaling with a constant."""
    operands = [node_name(ref) for ref in node.input]
    if source.name not in operands:
        return None
    is_first = operands[0] == source.name
    value = view.constant(node.input[1 if is_first else 0])
    if value is None or (node.op == 'BiasAdd' and data_format(node) != data_format(linear)):
        return None
    value = value.ravel() if node.op == 'BiasAdd' else per_channel(value, linear, channels)
    if value is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == 'Mul':
        return Affine(value, zero)
    if node.op in ('RealDiv', 'Div'):
        return Affine(1 / value, zero) if is_first and value.all() else None
    if node.op == 'Sub':
        return Affine(one, -value) if is_first else Affine(-one, value)
    return Affine(one, value)


def other_operand(view, node, least_dimensions=1):
    """The operand that node combines with a constant of at least so many dimensions, else None."""
    for ref, other in (node.input, node.input[::-1]):
        value = view.constant(ref)
        if value is not None and value.ndim >= least_dimensions:
            return other
    return None


def before_affine(view, ref):
    """The node before any additions and scalings with constants that end in ref."""
    node = view.node(ref)
    while node.op in ADDITIONS + SCALINGS and other_operand(view, node, 0) is not None:
        node = view.node(other_operand(view, node, 0))
    return node


# Channels of weights and values.

def output_channels(linear, weights):
    if linear.op == 'DepthwiseConv2dNative':
        return weights.shape[2] * weights.shape[3]
    return weights.shape[0] if flag(linear, 'transpose_b', False) else weights.shape[-1]


def along_output_channels(linear, weights, scale):
    """scale (channels,) in a shape that multiplies the weights' output channels."""
    if linear.op == 'DepthwiseConv2dNative':
        return scale.reshape(weights.shape[2:])
    return scale[:, None] if flag(linear, 'transpose_b', False) else scale


def per_channel(value, linear, channels):
    """A value that is combined with the output of linear, as (channels,) float64; None if not by channel alone."""
    rank = 2 if linear.op == 'MatMul' else 4
    axis = 1 if rank == 2 or data_format(linear) == 'NCHW' else 3
    shape = (1,) * (rank - value.ndim) + value.shape
    if len(shape) != rank or shape[axis] not in (1, channels) or any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (channels,))
