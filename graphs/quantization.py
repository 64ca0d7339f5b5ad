"""What a graph gets before it is quantized to 8 bits (after Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction"), here with ranges and means measured on images.

In 8 bits a tensor has one step for all its channels, a convolution's weights one for each output channel. So what makes
a channel is multiplied, and what reads it divided, by a factor (equalize); the graph computes what it did before, since
convolutions and ReLU pass factors on. The largest gain is where a stage's maps, which are about 1, stand beside
features that reach 60. And by how much rounded weights shift the mean of a channel is known, and taken off its bias
(correct_biases).
"""
import collections
import itertools

import numpy as np

from networks.tensorflow import tf

from .graphdef import INPUT, GraphView, import_graph, node_name, strip_unused

CONVOLUTIONS = 'Conv2D', 'DepthwiseConv2dNative'
MAX_FACTOR = 30  # a channel that the images hardly show may reach far more than its range in them
SMALLEST_WEIGHT = 1e-30
EXPONENTS = 9  # that are tried, from 0 to 1

# A tensor that only convolutions read. readers: these nodes.  parts: names of the nodes that it is made of, along
# channels.  makers: of each part, the (convolution, its BiasAdd or None) that may be scaled, or None.
Tensor = collections.namedtuple('Tensor', 'readers parts makers')


def equalize(graph, images):
    """Scale the channels of each tensor between convolutions so that 8 bits add the least noise behind it.

    Args:
        graph: a frozen GraphDef whose batch norms are folded, that takes these images one at a time.
        images: uint8 (N, height, width, 3).
    Returns:
        a new GraphDef.
    """
    view = GraphView(graph)
    tensors = _equalizable(view)
    for tensor, parts in zip(tensors, _channel_statistics(graph, [tensor.parts for tensor in tensors], images)):
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        scalable = np.concatenate([np.full(part.shape[1], maker is not None)
                                   for part, maker in zip(parts, tensor.makers)])
        weights = [(reader.op, view.constant(reader.input[1])) for reader in tensor.readers]
        factors = _factors(np.concatenate(parts, 1), weights, scalable)
        for maker, factor in zip(tensor.makers, np.split(factors, ends)):
            if maker:
                _scale_outputs(view, *maker, factor)
        for reader in tensor.readers:
            _replace(view, reader, view.constant(reader.input[1]) / factors[:, None])
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


def _channel_statistics(graph, parts, images):
    """[[smallest value, largest value and mean square of each channel, of each part]]: float32 (3, channels)."""
    with tf.Graph().as_default(), tf.Session() as session:
        import_graph(graph)
        wanted = [[_statistics(session.graph.get_tensor_by_name(name + ':0')) for name in names] for names in parts]
        found = [session.run(wanted, {INPUT + ':0': image[None].astype(np.float32)}) for image in images]
    return [[np.stack([of_part[:, 0].min(0), of_part[:, 1].max(0), of_part[:, 2].mean(0)])
             for of_part in map(np.array, zip(*of_tensor))] for of_tensor in zip(*found)]


def _statistics(tensor):
    return tf.stack([tf.reduce_min(tensor, [0, 1, 2]), tf.reduce_max(tensor, [0, 1, 2]),
                     tf.reduce_mean(tensor ** 2, [0, 1, 2])])


def _factors(statistics, weights, scalable):
    """Of the factors range ** -a * weight ** b the ones with the least noise: float (channels,), 1 where fixed.

    a = 1 brings all channels to one range, a = b = 1/2 (Nagel et al.) ranges and weights to each other. statistics: of
    _channel_statistics.  weights: [(op, weights)] of what reads the tensor.  scalable: bool (channels,).
    """
    ranges = np.abs(statistics[:2]).max(0)
    scalable = scalable & (ranges > 0)
    if not scalable.any():
        return np.ones_like(ranges)
    largest = np.max([np.abs(values).max((0, 1, 3)) for _, values in weights], 0)[scalable]
    candidates = []
    for a, b in itertools.product(np.linspace(0, 1, EXPONENTS), repeat=2):
        factors = ranges[scalable] ** -a * np.maximum(largest, SMALLEST_WEIGHT) ** b
        # What cannot be scaled keeps its step: the largest range stays.
        factors *= ranges.max() / (factors * ranges[scalable]).max()
        candidates.append(np.ones_like(ranges))
        candidates[-1][scalable] = np.clip(factors, 1 / MAX_FACTOR, MAX_FACTOR)
    return min(candidates, key=lambda factors: _noise(factors, statistics, weights))


def _noise(factors, statistics, weights):
    """12 times the variance that steps of a scaled tensor and of the weights that read it add behind these."""
    low, high, square = statistics
    step = (max((high * factors).max(), 0) - min((low * factors).min(), 0)) / 255
    noise = 0
    for op, values in weights:
        scaled = values / factors[:, None]
        noise += step ** 2 * (scaled ** 2).sum()
        if op == 'Conv2D':  # a depthwise convolution's weights of each channel have a step of their own
            steps = np.abs(scaled).max((0, 1, 2)) / 127
            noise += (steps ** 2).sum() * values[..., 0, 0].size * (square * factors ** 2).sum()
    return noise


def _scale_outputs(view, convolution, bias, factors):
    weights = view.constant(convolution.input[1])
    along = factors.reshape(weights.shape[2:]) if convolution.op == 'DepthwiseConv2dNative' else factors
    _replace(view, convolution, weights * along)
    if bias is not None:
        _replace(view, bias, view.constant(bias.input[1]) * factors)


def _replace(view, node, value):
    node.input[1] = view.add_constant(node.name + '/adjusted', value.astype(np.float32))
