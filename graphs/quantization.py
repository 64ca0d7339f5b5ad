"""What a graph gets before it is quantized to 8 bits (after Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction"), here with ranges and means measured on images.

In 8 bits a tensor has one step for all its channels. So what makes a channel is multiplied, and what reads it divided,
by the factor that brings it to the range of the tensor (equalize). The graph computes what it did before, since
convolutions and ReLU pass factors on. The largest gain is where a stage's maps, which are about 1, stand beside
features that reach 60. And by how much rounded weights shift the mean of a channel is known, and taken off its bias
(correct_biases).
"""
import collections

import numpy as np

from networks.tensorflow import tf

from .graphdef import INPUT, GraphView, import_graph, node_name, strip_unused

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
        largest, weights = max(part.max() for part in ranges), _input_ranges(view, tensor.readers)
        factors = [_factors(largest, part, of_part) if maker else np.ones_like(part) for part, of_part, maker in
                   zip(ranges, np.split(weights, np.cumsum([len(part) for part in ranges])[:-1]), tensor.makers)]
        for maker, factor in zip(tensor.makers, factors):
            if maker:
                _scale_outputs(view, *maker, factor)
        for reader in tensor.readers:
            _replace(view, reader, view.constant(reader.input[1]) / np.concatenate(factors)[:, None])
    return strip_unused(view.graph)


def correct_biases(graph, images):
    """Take off each bias by how much 8-bit weights will shift the mean of its channel on the images.

    Args, returns: as equalize.
    """
    view = GraphView(graph)
    rounded = [(node, view.users(node)[0], _rounding_error(view.constant(node.input[1]), node.op))
               for node in view.of(*CONVOLUTIONS) if view.constant(node.input[1]) is not None
               and [user.op for user in view.users(node)] == ['BiasAdd']]
    with tf.Graph().as_default(), tf.Session() as session:
        import_graph(graph)
        shifts = []
        for node, _, error in rounded:
            convolve = tf.nn.conv2d if node.op == 'Conv2D' else tf.nn.depthwise_conv2d
            x = session.graph.get_tensor_by_name(node_name(node.input[0]) + ':0')
            shifts.append(tf.reduce_mean(convolve(x, error, list(node.attr['strides'].list.i),
                                                  node.attr['padding'].s.decode()), [0, 1, 2]))
        found = [session.run(shifts, {INPUT + ':0': image[None].astype(np.float32)}) for image in images]
    for (_, bias, _), of_images in zip(rounded, zip(*found)):
        _replace(view, bias, view.constant(bias.input[1]) - np.mean(of_images, 0))
    return strip_unused(view.graph)


def _rounding_error(weights, op):
    """What is added to weights that become integers from -127 to 127 times a step for each output channel."""
    step = np.abs(weights).max((0, 1) if op == 'DepthwiseConv2dNative' else (0, 1, 2), keepdims=True) / 127
    return (np.round(weights / np.maximum(step, 1e-30)) * step - weights).astype(np.float32)


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
            found = session.run(maxima, {INPUT + ':0': image[None].astype(np.float32)})
            ranges = found if ranges is None else [list(map(np.maximum, *rows)) for rows in zip(ranges, found)]
    return ranges


def _input_ranges(view, readers):
    """The largest absolute weight of each input channel in convolutions that mix them; NaN where none does: in a
    depthwise one the weights of each channel have a step of their own."""
    channels = view.constant(readers[0].input[1]).shape[2]
    mixing = [np.abs(view.constant(reader.input[1])).max((0, 1, 3)) for reader in readers if reader.op == 'Conv2D']
    return np.max(mixing, 0) if mixing else np.full(channels, np.nan)


def _factors(largest, ranges, weights):
    """What brings each range to the largest one; 1 for a channel that is always 0.

    Where a convolution mixes the channels, its weights of a channel shrink as much, and their step is one for all: then
    half of it, by the logarithm, as far as the weights are alike.
    """
    wanted = np.where(ranges > 0, largest / np.maximum(ranges, 1e-30), 1)
    if np.isfinite(weights).all():
        balance = np.sqrt(wanted * np.maximum(weights, 1e-30) / max(weights.max(), 1e-30))
        wanted = np.where(ranges > 0, np.clip(balance, 1, wanted), 1)
    return np.minimum(wanted, MAX_FACTOR)


def _scale_outputs(view, convolution, bias, factors):
    weights = view.constant(convolution.input[1])
    along = factors.reshape(weights.shape[2:]) if convolution.op == 'DepthwiseConv2dNative' else factors
    _replace(view, convolution, weights * along)
    if bias is not None:
        _replace(view, bias, view.constant(bias.input[1]) * factors)


def _replace(view, node, value):
    node.input[1] = view.add_constant(node.name + '/adjusted', value.astype(np.float32))
