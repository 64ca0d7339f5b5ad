"""Which ops a graph may have. A graph is a program: it may hold ops that write files, and functions that hide them.

A network's forward pass needs few ops. A frozen graph is checked against their list while it is still data, before
TensorFlow has seen it, which computes with constants as soon as it imports a graph.
"""
import collections

import numpy as np

from networks.formats import MAX_ELEMENTS
from networks.tensorflow import tf
from pose_errors import UserError

from .graphdef import INPUT, OUTPUT, RUN_TIME_BRANCHES, drop_attributes, input_shape, like, node_name, port, \
    set_input_shape

ALLOWED_OPS = frozenset((
    'Const Placeholder PlaceholderWithDefault Identity CheckNumerics StopGradient PreventGradient Snapshot '
    'Conv2D DepthwiseConv2dNative MatMul BiasAdd BiasAddV1 FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 '
    'BatchNormWithGlobalNormalization MaxPool AvgPool ResizeBilinear ResizeNearestNeighbor '
    'Relu Relu6 LeakyRelu Elu Selu Sigmoid Tanh Softplus Softmax '
    'Add AddV2 AddN Sub Mul Div RealDiv FloorDiv FloorMod Maximum Minimum Neg Square Sqrt Rsqrt Exp Log Pow '
    'SquaredDifference Mean Sum Max Min Prod Cast '
    'Concat ConcatV2 Split SplitV Slice StridedSlice Pack Unpack Pad PadV2 MirrorPad Reshape Squeeze ExpandDims '
    'Transpose Shape Fill DepthToSpace SpaceToDepth BatchToSpaceND SpaceToBatchND '
    # What quantize_weights and quantize_nodes of the Graph Transform Tool add.
    'Dequantize QuantizeV2 QuantizedAdd QuantizedBiasAdd QuantizedConcat QuantizedConv2D QuantizedMaxPool QuantizedMul '
    'QuantizedRelu QuantizedRelu6 QuantizedReshape QuantizedResizeBilinear RequantizationRange Requantize').split())
INTEGERS, FLOATS = (tf.int32, tf.int64), (tf.float16, tf.bfloat16, tf.float32, tf.float64)
INTEGER_TYPES = {dtype.as_datatype_enum for dtype in INTEGERS}
ALLOWED_TYPES = {dtype.as_datatype_enum for dtype in INTEGERS + FLOATS + (
    tf.bool, tf.uint8, tf.int8, tf.quint8, tf.qint8, tf.quint16, tf.qint16, tf.qint32)}

# Of the attributes that are text: TensorFlow 1.15 ends the process over others.
ALLOWED_TEXTS = {b'', b'NHWC', b'NCHW', b'SAME', b'VALID', b'EXPLICIT', b'REFLECT', b'SYMMETRIC', b'MIN_COMBINED',
                 b'MIN_FIRST', b'SCALED', b'HALF_AWAY_FROM_ZERO', b'HALF_TO_EVEN'}

MAX_NODES = 100000
MAX_INTEGERS = 1024  # of a constant: shapes, axes and paddings; TensorFlow computes with these while it imports
TRIAL_SIZE = 368  # of the input, to see the shapes of a graph for any size


def check_nodes(graph):
    """Refuse a graph that is anything but a network's forward pass, with a UserError that names node and op. Nothing of
    it is run. graph: a frozen GraphDef after graphdef.strip_unused, whose functions are dropped by the caller."""
    if len(graph.node) > MAX_NODES:
        raise UserError('it has %d nodes; this is no network' % len(graph.node))
    for node in graph.node:
        if node.op not in ALLOWED_OPS:
            raise UserError('the node %s is a %s, %s' % (node.name, node.op, (
                'which branches at run time; build the graph for inference, with is_training=False instead of a tensor'
                if node.op in RUN_TIME_BRANCHES else 'which no network needs; nothing of the graph was run')))
    names = collections.Counter(node.name for node in graph.node)
    elements = 0
    for node in graph.node:
        if node.op == 'Placeholder' and node.name != INPUT:
            raise UserError('the node %s is a second input, beside %s; make it constant' % (node.name, INPUT))
        if names[node.name] > 1:
            raise UserError('two nodes are called %s; export the graph again' % node.name)
        _check_attributes(node)
        if node.op == 'Cast' and _computes_integers(node) and node.attr['SrcT'].type not in INTEGER_TYPES:
            raise UserError('the node %s (Cast) makes integers of other numbers; no network needs that' % node.name)
        if node.op == 'Const':
            elements += _constant_elements(node)
    if elements > MAX_ELEMENTS:
        raise UserError('its constants have %d elements; no network here has as many' % elements)
    _order(graph)


def _check_attributes(node):
    for name, value in node.attr.items():
        kind = value.WhichOneof('value')
        if kind in ('func', 'placeholder') or (kind == 'list' and value.list.func) or (
                kind == 'tensor' and node.op != 'Const'):
            raise UserError('the node %s (%s) has the attribute %s, a %s; nothing of the graph was run'
                            % (node.name, node.op, name, 'function' if kind == 'list' else kind))
        if not {value.s, *value.list.s} <= ALLOWED_TEXTS:
            raise UserError('the node %s (%s) has the attribute %s=%.40r, which no network needs'
                            % (node.name, node.op, name, value.s or list(value.list.s)))
        for dtype in [value.type] * (kind == 'type') + list(value.list.type):
            if dtype not in ALLOWED_TYPES:
                raise UserError('the node %s (%s) is not of numbers (its %s is %d)' % (node.name, node.op, name, dtype))


def _constant_elements(node):
    """How many a constant has. Raises UserError when its values are not as many, or it is too large."""
    tensor = node.attr['value'].tensor
    if tensor.dtype not in ALLOWED_TYPES or tensor.dtype != node.attr['dtype'].type or tensor.tensor_shape.unknown_rank:
        raise UserError('the constant %s is not an array of numbers' % node.name)
    dtype, sides = tf.as_dtype(tensor.dtype), [dim.size for dim in tensor.tensor_shape.dim]
    elements = np.prod(np.array(sides, object))  # in Python's integers, which do not overflow
    if sides and min(sides) < 0:
        raise UserError('the constant %s has a side of %d' % (node.name, min(sides)))
    if elements > (MAX_INTEGERS if dtype in INTEGERS else MAX_ELEMENTS):
        raise UserError('the constant %s has %d elements; no network here has as many' % (node.name, elements))
    lists = sum(len(getattr(tensor, field.name)) for field, _ in tensor.ListFields() if field.name.endswith('_val'))
    found = len(tensor.tensor_content) / np.dtype(dtype.as_numpy_dtype).itemsize if tensor.tensor_content else lists
    if found != elements and not (lists == 1 and not tensor.tensor_content):  # one value may stand for all
        raise UserError('the constant %s has %d values for %d elements; copy or export the graph again'
                        % (node.name, found, elements))
    return elements


def _order(graph):
    """The names of all nodes, each after its inputs.

    Raises UserError when nodes wait for each other in a circle, or an input is no output of a node.
    """
    waits_for, users = {}, collections.defaultdict(list)
    for node in graph.node:
        for ref in node.input:
            if not ref.partition(':')[2].isdigit() and ':' in ref:
                raise UserError('the node %s takes %s, which is no output of a node' % (node.name, ref))
            users[node_name(ref)].append(node.name)
        waits_for[node.name] = len(node.input)
    order = [name for name, count in waits_for.items() if not count]
    for name in order:
        for user in users[name]:
            waits_for[user] -= 1
            if not waits_for[user]:
                order.append(user)
    stuck = [name for name, count in waits_for.items() if count]
    if stuck:
        raise UserError('its nodes wait for each other in a circle, or for nodes that are not there: %s' % stuck[0])
    return order


def check_shapes(graph):
    """Refuse a graph, one that check_nodes accepts, whose tensors are too large, or whose output is not maps (batch,
    rows, columns, channels), with a UserError that names the node.

    Only shapes are computed, of the graph without its large constants; at TRIAL_SIZE where it takes any size.
    """
    batch, height, width, _ = _sides(input_shape(graph))
    shape = [batch or 1, height or TRIAL_SIZE, width or TRIAL_SIZE, 3]
    if np.prod(np.array(shape, object)) > MAX_ELEMENTS:
        raise UserError('it takes images of %dx%d, %d at once; no network here takes as large ones'
                        % (shape[2], shape[1], shape[0]))
    names = _order(graph)
    with tf.Graph().as_default() as tf_graph:
        for part in _parts(_numbered(_without_large_constants(set_input_shape(graph, shape)), names)):
            own = {node.name for node in part.node}
            earlier = {ref for node in part.node for ref in node.input if node_name(ref) not in own}
            try:
                tf.import_graph_def(part, name='',
                                    input_map={ref: tf_graph.get_tensor_by_name(ref) for ref in earlier})
            except (ValueError, KeyError, tf.errors.OpError) as error:
                raise UserError('TensorFlow %s refuses it: %.300s' % (tf.__version__, error))
            for node in part.node:
                _check_sizes(tf_graph.get_operation_by_name(node.name), names[int(node.name)])
    _check_output(tf_graph.get_operation_by_name(str(names.index(OUTPUT))), shape)


def _numbered(graph, names):
    """The nodes in the order of names, called 0, 1, ...: names with slashes collide when a graph comes in parts."""
    numbers = {name: number for number, name in enumerate(names)}
    numbered = like(graph, sorted(graph.node, key=lambda node: numbers[node.name]))
    for node in numbered.node:
        node.name = str(numbers[node.name])
        node.input[:] = ['%d:%d' % (numbers[node_name(ref)], port(ref)) for ref in node.input]
    return numbered


def _parts(graph):
    """The nodes as GraphDefs that end where integers are computed.

    To know a shape that others' values give, TensorFlow computes them during the import. So these must have been found
    small before what takes them is imported.
    """
    first = 0
    for number, node in enumerate(graph.node, start=1):
        if number == len(graph.node) or node.op != 'Const' and _computes_integers(node):
            yield like(graph, graph.node[first:number])
            first = number


def _computes_integers(node):
    return node.op == 'Shape' or any(node.attr[name].type in INTEGER_TYPES
                                     for name in ('T', 'DstT', 'out_type', 'dtype') if name in node.attr)


def _check_sizes(op, name):
    for tensor in op.outputs:
        known = [side for side in tensor.shape.as_list() if side] if tensor.shape.rank else []
        if op.type == 'Fill' and not tensor.shape.is_fully_defined():
            raise UserError('the node %s (Fill) makes as much as other nodes say' % name)
        if np.prod(np.array(known, object)) > (MAX_INTEGERS if tensor.dtype in INTEGERS else MAX_ELEMENTS):
            raise UserError('the node %s (%s) makes %s, too much for a network here' % (name, op.type, tensor.shape))


def _check_output(op, shape):
    tensor = op.outputs[0] if op.outputs else None
    if tensor is None or tensor.dtype not in FLOATS or tensor.shape.rank not in (None, 4):
        raise UserError('the output %s is not maps of floats (batch, rows, columns, channels)' % OUTPUT)
    sides = _sides(tensor.shape)
    if 0 in sides or any((side or 1) > limit for side, limit in zip(sides[:3], shape)):
        raise UserError('the output %s has shape %s for an input of %s; maps have at least one cell, and no more than '
                        'the image has pixels' % (OUTPUT, tensor.shape, tuple(shape)))


def _sides(shape):
    """The sides of a tf.TensorShape of rank 4, or of one that is unknown."""
    return shape.as_list() if shape.rank else [None] * 4


def _without_large_constants(graph):
    """The graph with inputs of the same shape in place of large constants: for shapes, no value of these matters."""
    light = like(graph, graph.node)
    for node in light.node:
        if node.op == 'Const' and _constant_elements(node) > MAX_INTEGERS:
            node.op = 'Placeholder'
            node.attr['shape'].shape.CopyFrom(node.attr['value'].tensor.tensor_shape)
            drop_attributes(node, [name for name in node.attr if name not in ('dtype', 'shape')])
    return light
