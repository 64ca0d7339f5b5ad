"""Faster separable convolutions over features: an exact rewriting of an inference graph.

Each stage of a MobileNet begins with separable convolutions over the features with the maps of the stage before beside
them, which take most of the time. A separable convolution, depthwise and then 1x1, is a sum over its input channels:
the parts of a concatenation can each be convolved in the way that is fastest for them, and the results be added.
"""
import collections
import functools
import itertools

import numpy as np

from networks.tensorflow import tf

# Parts of a concatenation with a smaller share of its channels are convolved together.
MIN_SHARE_ALONE = 1 / 4
# To convolve before doubling saves less than its edges cost when the kernel is small, or when they are most of the
# image.
MIN_KERNEL_BEFORE_DOUBLING = 5
MIN_SHARE_BEFORE_DOUBLING = 1 / 2

# A depthwise convolution, filters (k, k, channels, 1), and the 1x1 convolution that alone uses it, weights
# (1, 1, channels, n). name is the latter's.
Layer = collections.namedtuple('Layer', 'name filters weights')


def split_layers(graph, output):
    """Split separable layers that take a concatenation of channels into a sum of layers that take its parts.

    The large parts need not be copied then, and what is made of each fits better into the processor's caches. Features
    of half the resolution that were doubled are convolved before that (see `before_doubling`).

    graph: a frozen GraphDef; nodes that nothing uses any more stay in it. output: the name of a node that stays.
    """
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name='')
        split, replaced = set(), {}
        shared_convolver = functools.lru_cache(maxsize=None)(convolver)
        # From the last to the first: a concatenation may be a part of another, which does not need it once split.
        for concat in reversed([op for op in tf_graph.get_operations() if op.type == 'ConcatV2']):
            users = [user for user in concat.outputs[0].consumers() if user.name not in split]
            layers = [separable_layer(user, concat.outputs[0]) for user in users]
            needed_whole = any(layer is None or layer.name == output for layer in layers)
            groups = group_channels(concat) if layers and not needed_whole else []
            if len(groups) < 2:
                continue
            split.add(concat.name)
            for layer in layers:
                convolvers = [shared_convolver(tensor, *layer.filters.shape[:2]) for tensor, _ in groups]
                with tf.name_scope(layer.name):
                    total = tf.add_n([convolve(layer.filters[:, :, own], layer.weights[:, :, own])
                                      for convolve, (_, own) in zip(convolvers, groups)], name='sum')
                replaced[layer.name] = total.op.name
        changed = tf_graph.as_graph_def()
    changed.versions.CopyFrom(graph.versions)
    for node in changed.node:
        node.input[:] = [replaced.get(ref, ref) for ref in node.input]
    return changed


def group_channels(concat):
    """[(tensor, the mask of its channels among all)]: the large parts of a concatenation, and the others together."""
    parts = channel_parts(concat.outputs[0])
    sizes = np.array([channels(part) for part in parts])
    part_of_channel = np.repeat(np.arange(len(parts)), sizes)
    alone = sizes >= MIN_SHARE_ALONE * sizes.sum()
    groups = [(parts[k], part_of_channel == k) for k in np.flatnonzero(alone)]
    others = [parts[k] for k in np.flatnonzero(~alone)]
    if others:
        rest = tf.concat(others, 3, name=concat.name + '/rest') if len(others) > 1 else others[0]
        groups.append((rest, ~alone[part_of_channel]))
    return groups


def separable_layer(depthwise, source):
    """The Layer that `depthwise` begins, if it is one on the tensor source, else None."""
    users = depthwise.outputs[0].consumers() if depthwise.outputs else []
    if [op.type for op in [depthwise] + users] != ['DepthwiseConv2dNative', 'Conv2D']:
        return None
    conv = users[0]
    if depthwise.inputs[0].name != source.name or conv.inputs[0].name != depthwise.outputs[0].name:
        return None
    filters, weights = tf.get_static_value(depthwise.inputs[1]), tf.get_static_value(conv.inputs[1])
    # Without a channel multiplier, and without groups, each channel goes its own way up to the sum.
    if (filters is None or weights is None or filters.shape[3] != 1 or weights.shape[:3] != (1, 1, filters.shape[2])
            or depthwise.get_attr('padding') != b'SAME' or conv.get_attr('padding') == b'EXPLICIT'):
        return None
    for op in (depthwise, conv):
        if (op.get_attr('data_format') != b'NHWC' or list(op.get_attr('strides')) != [1] * 4
                or list(op.get_attr('dilations')) != [1] * 4):
            return None
    return Layer(conv.name, filters, weights)


def channel_parts(tensor):
    """The tensors whose channels stand side by side in tensor: what it concatenates, and those in turn, or itself."""
    op = tensor.op
    if op.type != 'ConcatV2' or tf.get_static_value(op.inputs[-1]) not in (3, -1):
        return [tensor]
    parts = [part for joined in list(op.inputs)[:-1] for part in channel_parts(joined)]
    return parts if all(part.shape.rank == 4 and channels(part) for part in parts) else [tensor]


def channels(tensor):
    return tensor.shape.as_list()[3]


def separable_conv2d(x, filters, weights, padding='SAME'):
    return tf.nn.separable_conv2d(x, filters, weights, [1, 1, 1, 1], padding)


def convolver(tensor, height, width):
    """A function (filters (height, width, channels, 1), weights (1, 1, channels, n)) -> tensor, convolved so."""
    if is_doubled(tensor, height, width):
        return before_doubling(tensor, height)
    return functools.partial(separable_conv2d, tensor)


def is_doubled(tensor, height, width):
    """Whether `before_doubling` can convolve tensor with a kernel of this size, and saves something."""
    op = tensor.op
    if (height != width or height % 2 == 0 or height < MIN_KERNEL_BEFORE_DOUBLING or op.type != 'ResizeBilinear'
            or op.get_attr('align_corners') or op.get_attr('half_pixel_centers') or op.inputs[0].dtype != tensor.dtype):
        return False
    size, doubled = op.inputs[0].shape.as_list()[1:3], tensor.shape.as_list()[1:3]
    if None in size or doubled != [2 * n for n in size]:
        return False
    centre = np.maximum(0, np.array(size) - 2 * border_cells(height))
    return bool(centre.prod() >= MIN_SHARE_BEFORE_DOUBLING * np.prod(size))


def border_cells(kernel):
    """How many rows of x at each edge the kernel, on doubled rows, can look past the edge from."""
    return kernel // 2 // 2 + 1


def before_doubling(doubled, kernel):
    """How to convolve x at its own resolution instead of `doubled`, which is x with rows and columns doubled.

    Bilinear interpolation puts the rows of x at the even rows and their means at the odd ones. Convolving that is
    linear in x: with kernel 7, an even row takes 5 rows of x and an odd one 4, so that the four phases of the pixels
    (even or odd rows, even or odd columns) take 20 products on average where the doubled image takes 49. Only the
    strips along the edges, where the kernel meets the zeros outside, are convolved after doubling.

    Returns a function as `convolver` does. What does not depend on the filters is in the graph once for all its calls.
    """
    x = doubled.op.inputs[0]
    (rows, columns), (height, width) = x.shape.as_list()[1:3], doubled.shape.as_list()[1:3]
    border, reach = border_cells(kernel), kernel // 2
    phases = []  # in the order of tf.depth_to_space: the cells of x that a phase takes, and how
    for (top, y_taps), (left, x_taps) in itertools.product([taps(kernel, phase) for phase in (0, 1)], repeat=2):
        cells = x[:, border + top:rows - border + top + len(y_taps) - 1,
                  border + left:columns - border + left + len(x_taps) - 1]
        phases.append((cells, y_taps, x_taps))
    padded, edge = tf.pad(doubled, [[0, 0], [reach, reach], [reach, reach], [0, 0]]), 2 * border
    # Top and bottom are as wide as the image; left and right lie between them.
    strips = [padded[:, y0:y1 + 2 * reach, x0:x1 + 2 * reach]
              for y0, y1, x0, x1 in ((0, edge, 0, width), (edge, height - edge, 0, edge),
                                     (edge, height - edge, width - edge, width), (height - edge, height, 0, width))]

    def convolve(filters, weights):
        weights, convolved = tf.constant(weights), []
        for cells, y_taps, x_taps in phases:
            seen_from_x = np.einsum('ai,bj,ijcm->abcm', y_taps, x_taps, filters).astype(filters.dtype)
            convolved.append(separable_conv2d(cells, seen_from_x, weights, 'VALID'))
        centre = tf.depth_to_space(tf.concat(convolved, 3), 2)
        filters = tf.constant(filters)
        top, left, right, bottom = (separable_conv2d(strip, filters, weights, 'VALID') for strip in strips)
        return tf.concat([top, tf.concat([left, centre, right], 2), bottom], 1)

    return convolve


def taps(kernel, phase):
    """How an even (phase 0) or odd (phase 1) row of a doubled image, convolved, depends on the rows of the original:
    (start, matrix (n, kernel)). Row 2 i + phase takes rows i + start, ..., i + start + n - 1 by matrix @ filter."""
    reach = kernel // 2
    original = np.arange((phase - reach) // 2, (phase + reach + 1) // 2 + 1)
    distance = np.abs(phase + np.arange(-reach, reach + 1) - 2 * original[:, None])
    return original[0], np.maximum(0, 1 - distance / 2)
