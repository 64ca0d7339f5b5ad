"""Channels of one tensor brought to one range, before a graph is quantized: in 8 bits a tensor has one step for all.

Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"),
here with ranges measured on images: what makes a channel is multiplied, and what reads it divided, by the same factor.
The graph computes what it did before, since convolutions and ReLU pass factors on. The largest gain is where a stage's
maps, which are about 1, stand beside features that reach 60.
"""
import collections

import numpy as np

from networks.tensorflow import tf

from .graphdef import GraphView, import_graph, node_name, strip_unused

CONVOLUTIONS = 'Conv2D', 'DepthwiseConv2dNative'
MAX_FACTOR = 1e4

# A tensor that only convolutions read. readers: these nodes.  parts: names of the nodes that it is made of, along
# channels.  makers: of each part, the (convolution, its BiasAdd or None) that may be scaled, or None.
Tensor = collections.namedtuple('Tensor', 'readers parts makers')


def equalize(graph, images):
    """Bring the channels of each tensor between convolutions to the tensor's largest range.

    Args:
        graph: a frozen GraphDef whose batch norms are folded, that takes these images one at a time.
        images: uint8 (N, height, width, 3).
    Returns:
        a new GraphDef.
    """
    view = GraphView(graph)
    tensors = _equalizable(view)
    for tensor, ranges in zip(tensors, _channel_ranges(graph, [tensor.parts for tensor in tensors], images)):
        largest = max(part.max() for part in ranges)
        factors = [_factors(largest, part) if maker else np.ones_like(part)
                   for part, maker in zip(ranges, tensor.makers)]
        for maker, factor in zip(tensor.makers, factors):
            if maker:
                _scale_outputs(view, *maker, factor)
        for reader in tensor.readers:
            _replace(view, reader, view.constant(reader.input[1]) / np.concatenate(factors)[:, None])
    return strip_unused(view.graph)


def _equalizable(view):
    tensors = []
    for node in view.graph.node:
        readers = view.users(node)
        if not readers or not all(_reads(view, reader, node) for reader in readers):
            continue
        if node.op == 'ConcatV2':
            parts = list(node.input[:-1])
            makers = [_maker(view, part) if len(view.users(view.node(part))) == 1 else None for part in parts]
        else:
            parts, makers = [node.name], [_maker(view, node.name)]
        if any(makers):
            tensors.append(Tensor(readers, [node_name(part) for part in parts], makers))
    return tensors


def _reads(view, reader, node):
    return reader.op in CONVOLUTIONS and node_name(reader.input[0]) == node.name \
        and view.constant(reader.input[1]) is not None


def _maker(view, ref):
    """The (convolution, BiasAdd or None) that alone makes a tensor, through a ReLU or not; None for other tensors."""
    node, bias = view.node(ref), None
    while node.op in ('Relu', 'BiasAdd'):
        if node.op == 'BiasAdd':
            bias = node
        node = view.node(node.input[0])
        if len(view.users(node)) != 1:
            return None
    constants = [node.input[1]] + ([bias.input[1]] if bias else []) if node.op in CONVOLUTIONS else [ref]
    return (node, bias) if all(view.constant(constant) is not None for constant in constants) else None


def _channel_ranges(graph, parts, images):
    """[[largest absolute value of each channel, of each part]]: float32 (channels,)."""
    with tf.Graph().as_default(), tf.Session() as session:
        import_graph(graph)
        maxima = [[tf.reduce_max(tf.abs(session.graph.get_tensor_by_name(name + ':0')), [0, 1, 2]) for name in names]
                  for names in parts]
        ranges = None
        for image in images:
            found = session.run(maxima, {'image:0': image[None].astype(np.float32)})
            ranges = found if ranges is None else [list(map(np.maximum, *rows)) for rows in zip(ranges, found)]
    return ranges


def _factors(largest, ranges):
    """What brings each range to the largest one; 1 for a channel that is always 0."""
    return np.where(ranges > 0, np.minimum(largest / np.maximum(ranges, 1e-30), MAX_FACTOR), 1)


def _scale_outputs(view, convolution, bias, factors):
    weights = view.constant(convolution.input[1])
    along = factors.reshape(weights.shape[2:]) if convolution.op == 'DepthwiseConv2dNative' else factors
    _replace(view, convolution, weights * along)
    if bias is not None:
        _replace(view, bias, view.constant(bias.input[1]) * factors)


def _replace(view, node, value):
    node.input[1] = view.add_constant(node.name + '/equalized', value.astype(np.float32))
