"""Batch norm and what else scales and shifts channels: folded into the weights beside it, and out of training mode."""
import re

import numpy as np

from networks.tensorflow import tf

from .graphdef import ADDITIONS, BATCH_NORM, INPUT, LINEAR, OUTPUT, SCALINGS, GraphView, data_format_of, flag, \
    is_training, node_name, port, strip_unused, training_batch_norms


def fold_depthwise_1x1(graph):
    """Fold depthwise 1x1 convolutions, which only scale channels, into the weights of the convolution after them."""
    view = GraphView(graph)
    for depthwise in view.of('DepthwiseConv2dNative'):
        scale = view.constant(depthwise.input[1])
        users = view.users(depthwise)
        if (scale is None or scale.shape[:2] != (1, 1) or scale.shape[3] != 1 or len(users) != 1
                or users[0].op != 'Conv2D' or node_name(users[0].input[0]) != depthwise.name
                or any(stride != 1 for stride in depthwise.attr['strides'].list.i)
                or data_format_of(depthwise) != data_format_of(users[0])):
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


def fold_batch_norm(graph):
    """Fold what scales and shifts the channels after a convolution or matrix product into its weights and one BiasAdd.

    That is inference batch norm, fused or written as multiplication and addition, together with biases. Only the one
    user of an output may be folded into what makes it: others would see it scaled too.
    """
    view = GraphView(graph)
    for linear in view.of(*LINEAR):
        weights = view.constant(linear.input[1])
        if weights is None or data_format_of(linear) not in ('NHWC', 'NCHW'):
            continue
        # Of the weights' output channels, so that what has it multiplies these.
        shape = weights.shape[2:] if linear.op == 'DepthwiseConv2dNative' else \
            (weights.shape[0], 1) if flag(linear, 'transpose_b', False) else weights.shape[-1:]
        channels = int(np.prod(shape))
        scale, shift, chain = np.ones(channels), np.zeros(channels), []
        node = linear
        while node.name != OUTPUT and len(view.users(node)) == 1:
            affine = channel_affine(view, view.users(node)[0], node, linear, channels)
            if affine is None:
                break
            scale, shift = scale * affine[0], shift * affine[0] + affine[1]
            node = view.users(node)[0]
            chain.append(node)
        if not chain or [node.op for node in chain] == ['BiasAdd']:
            continue
        if (scale != 1).any():
            scaled = weights.astype(np.float64) * scale.reshape(shape)
            linear.input[1] = view.add_constant(linear.name + '/folded_weights', scaled.astype(weights.dtype))
        # The sum takes the name of the last node it replaces, so that what comes after need not change.
        last = chain[-1]
        bias = view.add_constant(last.name + '/folded_bias', shift.astype(weights.dtype))
        last.CopyFrom(tf.NodeDef(name=last.name, op='BiasAdd', input=[linear.name, bias]))
        last.attr['T'].type = linear.attr['T'].type
        last.attr['data_format'].s = data_format_of(linear).encode()
    return strip_unused(view.graph)


def channel_affine(view, node, source, linear, channels):
    """(scale, shift), each (channels,) float64, when node only scales and shifts the channels of source, which has the
    layout of linear, the convolution or matrix product that it is computed from; else None."""
    operands = [node_name(ref) for ref in node.input]
    if node.op in BATCH_NORM:
        if (operands[0] != source.name or is_training(node) or data_format_of(node) != data_format_of(linear)
                or any(port(ref) for user in view.users(node) for ref in user.input if node_name(ref) == node.name)):
            return None
        values = [view.constant(ref) for ref in node.input[1:5]]
        if any(value is None for value in values):
            return None
        gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
        epsilon = node.attr['epsilon'].f if 'epsilon' in node.attr else 1e-4
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale
    if node.op not in ADDITIONS + SCALINGS or source.name not in operands:
        return None
    is_first = operands[0] == source.name
    value = view.constant(node.input[1 if is_first else 0])
    if value is None or (node.op == 'BiasAdd' and data_format_of(node) != data_format_of(linear)):
        return None
    value = value.ravel() if node.op == 'BiasAdd' else _per_channel(value, linear, channels)
    if value is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == 'Mul':
        return value, zero
    if node.op in ('RealDiv', 'Div'):
        return (1 / value, zero) if is_first and value.all() else None
    if node.op == 'Sub':
        return (one, -value) if is_first else (-one, value)
    return one, value


def other_operand(view, node, min_dimensions=1):
    """The operand that node combines with a constant of at least so many dimensions, else None."""
    for ref, other in (node.input, node.input[::-1]):
        value = view.constant(ref)
        if value is not None and value.ndim >= min_dimensions:
            return other
    return None


def skip_scale_and_shift(view, ref):
    """The node before any additions and scalings with constants that end in ref."""
    node = view.node(ref)
    while node.op in ADDITIONS + SCALINGS and other_operand(view, node, 0) is not None:
        node = view.node(other_operand(view, node, 0))
    return node


def is_computed_by_linear(view, node):
    """Whether node is, or is computed from, a convolution or matrix product."""
    return _depends_on(view, node, {linear.name for linear in view.of(*LINEAR)})


def why_not_folded(view, ref):
    origin = skip_scale_and_shift(view, ref)
    if origin.op in LINEAR and view.constant(origin.input[1]) is None:
        return 'the weights of %s are not constant' % origin.name
    if origin.op in LINEAR:
        return 'the output of %s is also used elsewhere' % origin.name
    return 'it follows %s (%s)' % (origin.name, origin.op)


def _per_channel(value, linear, channels):
    """A value combined with the output of linear as (channels,) float64 if it varies by channel alone, else None."""
    rank = 2 if linear.op == 'MatMul' else 4
    axis = 1 if rank == 2 or data_format_of(linear) == 'NCHW' else 3
    shape = (1,) * (rank - value.ndim) + value.shape
    if len(shape) != rank or shape[axis] not in (1, channels) or any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (channels,))


def estimate_batch_norm(graph, images):
    """Fused batch norm in training mode becomes that of inference, with the statistics of its input over images.

    Layer by layer: what a layer sees depends on those before it, so these have theirs first. Mean and variance are
    those of all pixels of all images, exactly. Batch norm that is written out as single operations stays as it is.

    images: a sequence of uint8 (height, width, 3), of any sizes that the frozen graph takes.
    """
    view = GraphView(graph)
    waiting = [view.node(node.name) for node in training_batch_norms(graph) if node.op in BATCH_NORM]
    while waiting:
        names = {node.name for node in waiting}
        ready = [node for node in waiting if not _depends_on(view, view.node(node.input[0]), names)]
        for node, (mean, variance) in zip(ready, _channel_moments(view.graph, ready, images)):
            for place, leaf, value in ((3, 'moving_mean', mean), (4, 'moving_variance', variance)):
                layer = re.sub(r'/FusedBatchNorm\w*$', '', node.name)  # named like the variables of networks
                node.input[place] = view.add_constant('%s/%s' % (layer, leaf), value.astype(np.float32))
            node.attr['is_training'].b = False
        waiting = [node for node in waiting if node not in ready]
    return strip_unused(view.graph)


def _depends_on(view, node, names):
    """Whether node is, or is computed from, a node of these names."""
    seen, to_visit = set(), [node]
    while to_visit:
        node = to_visit.pop()
        if node.name in names:
            return True
        if node.name not in seen:
            seen.add(node.name)
            to_visit.extend(view.node(ref) for ref in node.input)
    return False


def _channel_moments(graph, nodes, images):
    """[(mean, variance)] of the first input of each node, over all images: float64 (channels,)."""
    with tf.Graph().as_default() as tf_graph, tf.Session() as session:
        tf.import_graph_def(graph, name='')
        sums = []
        for node in nodes:
            x = tf.cast(tf_graph.get_operation_by_name(node.name).inputs[0], tf.float64)
            axes = [0, 2, 3] if data_format_of(node) == 'NCHW' else [0, 1, 2]
            ones = tf.ones_like(x)
            sums.append([tf.reduce_sum(each, axes) for each in (ones, x, tf.square(x))])
        totals = [np.zeros((3, 1))] * len(nodes)
        for image in images:
            totals = [total + found for total, found in zip(totals, session.run(sums, {INPUT + ':0': image[None]}))]
    return [(total / count, squares / count - (total / count) ** 2) for count, total, squares in totals]
