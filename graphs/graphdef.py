"""GraphDefs: names, shapes and nodes, and what all passes stand on. Nothing here changes the graph that it is given."""
import collections

import numpy as np

from networks.tensorflow import tf
from pose_errors import UserError

INPUT, OUTPUT = 'image', 'Openpose/concat_stage7'

BATCH_NORM = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3')
OTHER_BATCH_NORM = ('BatchNormWithGlobalNormalization',)
PASS_THROUGH = ('Identity', 'CheckNumerics', 'StopGradient', 'PreventGradient', 'Snapshot', 'PlaceholderWithDefault')
LINEAR = ('Conv2D', 'DepthwiseConv2dNative', 'MatMul')
VARIABLES = ('Variable', 'VariableV2')
# What runs, or with which data, is decided in these at run time, and the passes cannot see through them.
RUN_TIME_BRANCHES = ('Switch', 'Merge', 'RefSwitch', 'RefMerge', 'Enter', 'RefEnter', 'Exit', 'NextIteration', 'If',
                     'StatelessIf', 'While', 'StatelessWhile', 'PartitionedCall', 'StatefulPartitionedCall')

ADDITIONS = ('BiasAdd', 'Add', 'AddV2', 'Sub')
SCALINGS = ('Mul', 'RealDiv', 'Div')


def strip_unused(graph):
    """Keep INPUT and what OUTPUT is computed from. Raises UserError when one of them is not there.

    Control inputs go too: without variables nothing in the graph has an effect that another node could wait for. So do
    devices and attributes that start with _: hints about machines and nodes that inference does not have.
    """
    nodes = {node.name: node for node in graph.node}
    for name in (INPUT, OUTPUT):
        if name not in nodes:
            raise UserError('the graph has no node %s; it must have the input %s and the output %s'
                            % (name, INPUT, OUTPUT))
    needed, to_visit = {INPUT}, [OUTPUT]
    while to_visit:
        name = to_visit.pop()
        if name in needed:
            continue
        if name not in nodes:
            raise UserError('the graph is incomplete: there is no node %s; copy or export it again' % name)
        needed.add(name)
        to_visit.extend(node_name(ref) for ref in nodes[name].input if not ref.startswith('^'))
    stripped = like(graph, [node for node in graph.node if node.name in needed])
    for node in stripped.node:
        node.input[:] = [ref for ref in node.input if not ref.startswith('^')]
        node.device = ''
        drop_attributes(node, [name for name in node.attr if name.startswith('_')])
    return stripped


class GraphView:
    """A copy of a graph with lookups by name and by user. Inputs of its nodes may be changed, constants be added;
    `users` still answers as before the changes."""

    def __init__(self, graph):
        self.graph = like(graph, graph.node)
        self._nodes = {node.name: node for node in self.graph.node}
        self._names = set(self._nodes)
        self._users = collections.defaultdict(list)
        for node in self.graph.node:
            for ref in node.input:
                self._users[node_name(ref)].append(node)

    def of(self, *ops):
        """The nodes with one of these ops."""
        return [node for node in self.graph.node if node.op in ops]

    def node(self, ref):
        return self._nodes[node_name(ref)]

    def users(self, node):
        """The nodes that use an output of node, once for each time they do."""
        return self._users[node.name]

    def constant(self, ref):
        """The value of a constant as an array, else None."""
        node = self.node(ref)
        return tf.make_ndarray(node.attr['value'].tensor) if node.op == 'Const' else None

    def add_constant(self, name, value):
        """Add a constant; returns its name, made unique."""
        node = self.graph.node.add()
        node.CopyFrom(constant_node(new_name(name, self._names), value))
        self._nodes[node.name] = node
        return node.name


def like(graph, nodes=()):
    """A GraphDef of the same version and with the same function library, which has copies of these nodes."""
    copy = tf.GraphDef(versions=graph.versions, library=graph.library)
    copy.node.extend(nodes)
    return copy


def import_graph(graph):
    """Import a graph into the default one. Raises UserError when TensorFlow refuses it."""
    try:
        tf.import_graph_def(graph, name='')
    except (ValueError, tf.errors.OpError) as error:
        raise UserError('TensorFlow %s refuses the graph: %s' % (tf.__version__, error))


def input_shape(graph):
    """The tf.TensorShape of INPUT. Raises UserError when INPUT is not a placeholder for images."""
    node = next(node for node in graph.node if node.name == INPUT)
    # Old graphs write no dimensions for an unknown shape.
    dims = node.attr['shape'].shape.dim if 'shape' in node.attr else []
    shape = tf.TensorShape([dim.size if dim.size >= 0 else None for dim in dims] or None)
    if node.op not in ('Placeholder', 'PlaceholderWithDefault') or not shape.is_compatible_with([None, None, None, 3]):
        raise UserError('the node %s of the graph is no input for images (batch, height, width, 3)' % INPUT)
    return shape


def set_input_shape(graph, shape):
    """Make INPUT a placeholder, of this shape unless it is None. Raises UserError when it has another size."""
    found = input_shape(graph)
    if shape and not found.is_compatible_with(shape):
        raise UserError('the graph takes an input of %s, not %s; give that size, or none' % (found, shape))
    changed = like(graph, graph.node)
    node = next(node for node in changed.node if node.name == INPUT)
    dtype = node.attr['dtype'].type
    node.Clear()
    node.name, node.op = INPUT, 'Placeholder'
    node.attr['dtype'].type = dtype
    node.attr['shape'].shape.CopyFrom((tf.TensorShape(shape) if shape else found).as_proto())
    return changed


def constant_node(name, value):
    """A node that holds an array."""
    node = tf.NodeDef(name=name, op='Const')
    node.attr['dtype'].type = tf.as_dtype(np.asarray(value).dtype).as_datatype_enum
    node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


def new_name(name, names):
    """name, or name with a number, that is not in the set names; adds it there."""
    candidate, number = name, 0
    while candidate in names:
        number += 1
        candidate = '%s_%d' % (name, number)
    names.add(candidate)
    return candidate


def is_training(batch_norm):
    """Whether a fused batch norm uses the statistics of its batch."""
    return flag(batch_norm, 'is_training', True)


def flag(node, name, default):
    """A boolean attribute of a node."""
    # Asking a node for an attribute that it does not have would add it.
    return node.attr[name].b if name in node.attr else default


def drop_default_attributes(graph):
    """The graph without attributes that have their op's default value. A newer TensorFlow writes those that it has
    added to an op; an older one, which computes the same, refuses them."""
    with tf.Graph().as_default() as tf_graph:
        import_graph(graph)
        ops = {op.type: op.op_def for op in tf_graph.get_operations()}
    changed = like(graph, graph.node)
    for node in changed.node:
        drop_attributes(node, [attribute.name for attribute in ops[node.op].attr
                               if attribute.HasField('default_value') and attribute.name in node.attr
                               and node.attr[attribute.name] == attribute.default_value])
    return changed


def training_batch_norms(graph):
    """The nodes of a graph that normalize by the statistics of the batch, as in training: each image's output then
    depends on the others of its batch, and no pass can fold them."""
    view = GraphView(graph)

    def averages_batch(node):
        axes = view.constant(node.input[1]) if node.op == 'Mean' else None
        return axes is not None and 0 in np.atleast_1d(axes)
    return [node for node in view.of(*BATCH_NORM, 'SquaredDifference') if node.op in BATCH_NORM and is_training(node)
            or node.op == 'SquaredDifference' and any(map(averages_batch, view.users(node)))]


def drop_attributes(node, names):
    for name in names:
        del node.attr[name]


def data_format_of(node):
    """NHWC or NCHW."""
    return node.attr['data_format'].s.decode() if 'data_format' in node.attr else 'NHWC'


def node_name(ref):
    """The name of the node that an input refers to."""
    return ref.lstrip('^').split(':')[0]


def port(ref):
    """Which of that node's outputs."""
    return int(ref.split(':')[1]) if ':' in ref else 0


def reference(name, port):
    return '%s:%d' % (name, port) if port else name


def canonical(ref):
    """A reference as TensorFlow writes it: without the port 0."""
    return reference(node_name(ref), port(ref))
