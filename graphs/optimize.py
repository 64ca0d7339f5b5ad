"""From a training checkpoint to a graph that is ready for inference: passes on a TensorFlow GraphDef.

Each pass takes a GraphDef and returns a new one. `freeze` puts a checkpoint's values into the inference graph, `optimize`
folds batch norm into convolutions and drops what inference does not need, and `find_leftovers` proves that it did.
TensorFlow's own tool, TransformGraph, is reached by `run_transforms` where it exists. The same code runs on TF 1.15 and 2.x.
"""
import collections
import os
import subprocess
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf import message, text_format

from graphs import separable
from pose_cli import UserError, write_file

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

MAX_NAMED = 10  # nodes in an error line

# A node that should not be in an optimized graph, and why it is.
Leftover = collections.namedtuple('Leftover', 'name op reason')


# Files.

def load_graph(path):
    """Read a GraphDef, binary or text. Raises UserError when the file is missing, truncated or something else."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise UserError('cannot read the graph %s: %s' % (path, error.strerror))
    graph = tf.GraphDef()
    try:
        graph.ParseFromString(data)
    except message.DecodeError:
        try:
            graph = text_format.Parse(data.decode('ascii'), tf.GraphDef())
        except (text_format.ParseError, UnicodeDecodeError):
            raise UserError('%s is not a TensorFlow graph, or only a part of one; copy or export it again' % path)
    if not graph.node:
        raise UserError('%s holds no graph; copy or export it again' % path)
    return graph


def load_frozen(path):
    """Read a frozen graph: INPUT, OUTPUT and what is between them. Raises UserError when it is none, or has no weights."""
    graph = load_graph(path)
    try:
        graph = strip_unused(graph)
    except UserError as error:
        raise UserError('%s is not a graph of this project: %s' % (path, error))
    for node in graph.node:
        if node.op in VARIABLES + ('VarHandleOp',):
            raise UserError('%s is not frozen: %s is a variable; give the graph_frozen.pb or graph_opt.pb that '
                            'scripts/freeze_and_optimize.sh makes from a checkpoint' % (path, node.name))
    return graph


def save_graph(graph, path, text=False):
    """Write a GraphDef. Text is what TF's freeze_graph reads unless told otherwise."""
    write_file(path, text_format.MessageToString(graph).encode('ascii') if text else graph.SerializeToString())


# From the network to the frozen graph.

def inference_graph(build):
    """The GraphDef of a network without anything that trains it.

    build: called in an empty default graph; makes the nodes INPUT and OUTPUT.

    Inference batch norm is written as FusedBatchNorm, the first version of that op. It computes the same as its
    successors, and is the only one that TransformGraph's fold_old_batch_norms folds.
    """
    with tf.Graph().as_default() as tf_graph:
        build()
        graph = strip_unused(tf_graph.as_graph_def())
    for node in graph.node:
        if node.op in BATCH_NORM and not _is_training(node):
            node.op = 'FusedBatchNorm'
            _drop_attributes(node, [name for name in node.attr if name in ('U', 'exponential_avg_factor')])
    return graph


def find_checkpoint(path):
    """The prefix of a checkpoint, given as prefix, as one of its files or as the folder of which it is the newest."""
    if os.path.isdir(path):
        prefix = tf.train.latest_checkpoint(path)
        if prefix is None:
            # The `checkpoint` file is missing or names files that are elsewhere now.
            prefixes = [os.path.join(path, name)[:-len('.index')] for name in os.listdir(path) if name.endswith('.index')]
            if not prefixes:
                raise UserError('no checkpoint in the folder %s; give the folder that train.py wrote with --modelpath'
                                % path)
            prefix = max(prefixes, key=lambda prefix: os.path.getmtime(prefix + '.index'))
        return prefix
    for prefix in (path, os.path.splitext(path)[0]):
        if os.path.isfile(prefix + '.index'):
            return prefix
    raise UserError('no checkpoint %s; give its prefix, as in model-1000 for model-1000.index, or its folder' % path)


def freeze(graph, checkpoint):
    """Replace the variables of an inference graph by constants with a checkpoint's values.

    checkpoint: a prefix, as from find_checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or has another model's variables (names the first that does not match).
    """
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        shapes = reader.get_variable_to_shape_map()
        frozen = _like(graph)
        for node in graph.node:
            if node.op not in VARIABLES:
                frozen.node.add().CopyFrom(node)
                continue
            wanted = [dim.size for dim in node.attr['shape'].shape.dim]
            found = shapes.get(node.name)
            if found != wanted:
                raise UserError('the checkpoint %s is not of this model: its variable %s %s; give the --model that it was '
                                'trained with' % (checkpoint, node.name, 'is missing' if found is None else
                                                  'has shape %s, not %s' % (found, wanted)))
            frozen.node.add().CopyFrom(_constant(node.name, reader.get_tensor(node.name)))
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        raise UserError('the checkpoint %s is damaged: %s; take another one' % (checkpoint, error))
    return frozen


# The passes.

def optimize(graph, input_shape=None):
    """Turn a frozen graph into one for inference alone.

    Batch norm, as FusedBatchNorm of any version or as multiplication and addition, goes into the weights of the
    convolution before it and one BiasAdd; a 1x1 depthwise convolution goes into the weights of the convolution after it;
    separable convolutions over the features are split (`pose_separable`);
    nodes that pass their input on, and all that OUTPUT does not need, go away.

    input_shape: [1, height, width, 3] fixes the size of the input, so that what depends on the size alone becomes
        constant; None leaves the input as it is.
    Raises:
        UserError: the graph is not one that the passes can see through, or does not work at that size.
    """
    graph = strip_unused(graph)
    branches = [node for node in graph.node if node.op in RUN_TIME_BRANCHES]
    if branches:
        raise UserError('the graph branches at run time, which hides what to fold: %s; build it for inference, with '
                        'is_training=False instead of a tensor'
                        % ', '.join('%s (%s)' % (node.name, node.op) for node in branches[:MAX_NAMED]), exit_code=4)
    graph = simplify(set_input_shape(graph, input_shape))
    return strip_unused(separable.split_layers(fold_affine(fold_depthwise_1x1(graph)), OUTPUT))


def simplify(graph):
    """A graph with the same convolutions, without nodes that only pass on their input or compute with constants."""
    return strip_unused(fold_constants(remove_pass_through(strip_unused(graph))))


def strip_unused(graph):
    """Keep INPUT and what OUTPUT is computed from. Raises UserError when one of them is not there.

    Control inputs go too: without variables nothing in the graph has an effect that another node could wait for. So do
    devices and attributes that start with _: hints about machines and nodes that inference does not have.
    """
    nodes = {node.name: node for node in graph.node}
    for name in (INPUT, OUTPUT):
        if name not in nodes:
            raise UserError('the graph has no node %s; it must have the input %s and the output %s' % (name, INPUT, OUTPUT))
    needed, to_visit = {INPUT}, [OUTPUT]
    while to_visit:
        name = to_visit.pop()
        if name in needed:
            continue
        if name not in nodes:
            raise UserError('the graph is incomplete: there is no node %s; copy or export it again' % name)
        needed.add(name)
        to_visit.extend(_name(ref) for ref in nodes[name].input if not ref.startswith('^'))
    stripped = _like(graph)
    for node in graph.node:
        if node.name in needed:
            copy = stripped.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [ref for ref in node.input if not ref.startswith('^')]
            copy.device = ''
            _drop_attributes(copy, [name for name in node.attr if name.startswith('_')])
    return stripped


def remove_pass_through(graph):
    """Remove the PASS_THROUGH nodes: inference does not need them, and constants must be next to what uses them."""
    nodes = {node.name: node for node in graph.node}

    def source(ref):
        while nodes[_name(ref)].op in PASS_THROUGH and _name(ref) not in (INPUT, OUTPUT):
            ref = nodes[_name(ref)].input[0]
        return ref

    removed = _like(graph)
    for node in graph.node:
        if node.op not in PASS_THROUGH or node.name in (INPUT, OUTPUT):
            copy = removed.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [source(ref) for ref in node.input]
    output = nodes[OUTPUT]
    if output.op in PASS_THROUGH and _name(source(output.input[0])) != INPUT and _port(source(output.input[0])) == 0:
        removed = _rename_to_output(removed, _name(source(output.input[0])))
    return removed


def _rename_to_output(graph, name):
    """Give OUTPUT's name to the node `name`, which OUTPUT passes on."""
    renamed = _like(graph)
    for node in graph.node:
        if node.name == OUTPUT:
            continue
        copy = renamed.node.add()
        copy.CopyFrom(node)
        copy.name = OUTPUT if node.name == name else node.name
        copy.input[:] = [_ref(OUTPUT, _port(ref)) if _name(ref) == name else ref for ref in node.input]
    return renamed


def fold_constants(graph):
    """Compute what depends on constants alone, and on shapes that are known, and skip cuts that are known to cut nothing.

    Raises UserError for a graph that TF refuses.
    """
    with tf.Graph().as_default() as tf_graph:
        _import(graph)
        known, fed = set(), {}
        for op in tf_graph.get_operations():
            if op.type == 'Shape' and op.inputs[0].shape.is_fully_defined():
                fed[op.outputs[0]] = np.array(op.inputs[0].shape.as_list(), op.outputs[0].dtype.as_numpy_dtype)
                known.add(op.name)
            elif op.type == 'Const' or (op.inputs and not op.op_def.is_stateful and op.name not in (INPUT, OUTPUT)
                                        and all(tensor.op.name in known for tensor in op.inputs)):
                known.add(op.name)
        wanted = [tensor for op in tf_graph.get_operations() if op.name in known and op.type != 'Const'
                  for tensor in op.outputs if any(user.name not in known for user in tensor.consumers())]
        with tf.Session() as session:
            values = session.run(wanted, fed)
    names = {node.name for node in graph.node}
    folded, replaced = _like(graph), {}
    for tensor, value in zip(wanted, values):
        constant = _constant(_new_name(tensor.op.name + '/folded', names), value)
        folded.node.add().CopyFrom(constant)
        replaced[_ref(tensor.op.name, tensor.value_index)] = constant.name
    for op in tf_graph.get_operations():
        if op.name not in known and op.name != OUTPUT and _cuts_nothing(op):
            source = _ref(op.inputs[0].op.name, op.inputs[0].value_index)
            replaced[op.name] = replaced.get(source, source)
    for node in graph.node:
        copy = folded.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [replaced.get(ref, ref) for ref in map(_canonical, node.input)]
    return folded


def _cuts_nothing(op):
    """Whether op takes all of its input, as in a graph for any size that was given a fixed one."""
    if op.type != 'StridedSlice':
        return False
    whole, taken, strides = op.inputs[0].shape, op.outputs[0].shape, tf.get_static_value(op.inputs[3])
    return (whole.is_fully_defined() and taken.is_fully_defined() and whole.as_list() == taken.as_list()
            and strides is not None and bool((strides == 1).all()))


def fold_depthwise_1x1(graph):
    """Fold depthwise 1x1 convolutions, which only scale each channel, into the weights of the convolution after them."""
    view = _View(graph)
    for depthwise in view.of('DepthwiseConv2dNative'):
        scale = view.constant(depthwise.input[1])
        users = view.users(depthwise)
        if (scale is None or scale.shape[:2] != (1, 1) or scale.shape[3] != 1 or len(users) != 1
                or users[0].op != 'Conv2D' or _name(users[0].input[0]) != depthwise.name
                or any(stride != 1 for stride in depthwise.attr['strides'].list.i)
                or _data_format(depthwise) != _data_format(users[0])):
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


def fold_affine(graph):
    """Fold what scales and shifts the channels after a convolution or matrix product into its weights and one BiasAdd.

    That is inference batch norm, fused or written as multiplication and addition, together with biases. Only the one
    user of an output may be folded into what makes it: others would see it scaled too.
    """
    view = _View(graph)
    for linear in view.of(*LINEAR):
        weights = view.constant(linear.input[1])
        if weights is None or _data_format(linear) not in ('NHWC', 'NCHW'):
            continue
        channels = _output_channels(linear, weights)
        scale, shift, chain = np.ones(channels), np.zeros(channels), []
        node = linear
        while node.name != OUTPUT and len(view.users(node)) == 1:
            step = view.affine_step(view.users(node)[0], node, linear, channels)
            if step is None:
                break
            scale, shift = scale * step[0], shift * step[0] + step[1]
            node = view.users(node)[0]
            chain.append(node)
        if not chain or [node.op for node in chain] == ['BiasAdd']:
            continue
        if (scale != 1).any():
            scaled = weights.astype(np.float64) * _along_output_channels(linear, weights, scale)
            linear.input[1] = view.add_constant(linear.name + '/folded_weights', scaled.astype(weights.dtype))
        # The sum takes the name of the last node it replaces, so that what comes after need not change.
        last = chain[-1]
        bias = view.add_constant(last.name + '/folded_bias', shift.astype(weights.dtype))
        name, dtype, data_format = last.name, linear.attr['T'].type, _data_format(linear).encode()
        last.Clear()
        last.name, last.op = name, 'BiasAdd'
        last.input.extend([linear.name, bias])
        last.attr['T'].type = dtype
        last.attr['data_format'].s = data_format
    return strip_unused(view.graph)


# Proof.

def find_batch_norms(graph):
    """The batch norms of a frozen graph as Leftovers, however they are written, with what keeps them from folding.

    The graph must have been simplified. A scale per channel counts as (part of) a batch norm when it follows a
    convolution, or when an addition per channel stands beside it; scaling the image itself does not.
    """
    view = _View(graph)
    found = []
    for node in view.of(*BATCH_NORM + OTHER_BATCH_NORM):
        if node.op in BATCH_NORM and _is_training(node):
            reason = 'its is_training is true'
        elif node.op in BATCH_NORM and any(view.constant(ref) is None for ref in node.input[1:]):
            reason = 'its mean, variance, beta or gamma is not constant'
        else:
            reason = view.why_not_folded(node.input[0])
        found.append(Leftover(node.name, node.op, reason))
    for node in view.of(*SCALINGS):
        source = view.other_operand(node)
        if source is None:
            continue
        origin = view.before_affine(source)
        beside = view.users(node) + [view.node(source)]
        if origin.op in LINEAR or (view.comes_after_linear(origin) and any(
                neighbour.op in ADDITIONS and view.other_operand(neighbour) for neighbour in beside)):
            found.append(Leftover(node.name, node.op, view.why_not_folded(source)))
    for node in view.of('SquaredDifference'):
        if any(user.op == 'Mean' and 0 in np.atleast_1d(view.constant(user.input[1])) for user in view.users(node)):
            found.append(Leftover(node.name, node.op, 'its batch norm uses the statistics of the batch, as in training'))
    return found


def find_leftovers(graph):
    """What an optimized graph should not contain: batch norms, nodes that pass on their input, nodes of training."""
    found = find_batch_norms(graph)
    with tf.Graph().as_default() as tf_graph:
        _import(graph)
        stateful = {op.name for op in tf_graph.get_operations() if op.op_def.is_stateful}
    for node in graph.node:
        if node.op in PASS_THROUGH and node.name != INPUT:
            found.append(Leftover(node.name, node.op, 'it passes on its input'))
        elif node.op == 'Placeholder' and node.name != INPUT:
            found.append(Leftover(node.name, node.op, 'it is a second input'))
        elif node.name in stateful:
            found.append(Leftover(node.name, node.op, 'it has a state or is random, as in training'))
    return found


def list_leftovers(leftovers):
    """Leftovers in one line."""
    texts = ['%s (%s): %s' % leftover for leftover in leftovers[:MAX_NAMED]]
    return '; '.join(texts) + ('; and %d more' % (len(leftovers) - MAX_NAMED) if len(leftovers) > MAX_NAMED else '')


# TensorFlow's own tool.

def can_transform():
    """Whether run_transforms works here: on TF 1.x, or with a transform_graph binary."""
    return bool(os.environ.get('TRANSFORM_GRAPH')) or _transform_graph() is not None


def run_transforms(graph, inputs, outputs, transforms):
    """Run transforms of TF's Graph Transform Tool: the binary $TRANSFORM_GRAPH, or TransformGraph of TF 1.x.

    transforms: a list as ['fold_constants(ignore_errors=true)', 'quantize_weights'].

    Raises:
        UserError: the tool is missing here, or refuses the graph or the transforms.
    """
    binary = os.environ.get('TRANSFORM_GRAPH')
    if not binary:
        if _transform_graph() is None:
            raise UserError('TensorFlow %s has no graph transforms; use TF 1.15 (TF=1 bash scripts/setup_env.sh), or set '
                            '$TRANSFORM_GRAPH to a transform_graph binary' % tf.__version__)
        try:
            return _transform_graph()(graph, inputs, outputs, transforms)
        except (tf.errors.OpError, ValueError) as error:
            raise UserError('TransformGraph refuses: %s' % error)
    with tempfile.TemporaryDirectory() as folder:
        source, result = os.path.join(folder, 'in.pb'), os.path.join(folder, 'out.pb')
        save_graph(graph, source)
        command = [binary, '--in_graph=' + source, '--out_graph=' + result, '--inputs=' + ','.join(inputs),
                   '--outputs=' + ','.join(outputs), '--transforms=' + ' '.join(transforms)]
        try:
            finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        except OSError as error:
            raise UserError('cannot run $TRANSFORM_GRAPH=%s: %s' % (binary, error.strerror))
        if finished.returncode or not os.path.exists(result):
            last_line = (finished.stdout.strip().splitlines() or ['no message'])[-1]
            raise UserError('$TRANSFORM_GRAPH=%s failed with exit code %d: %s' % (binary, finished.returncode, last_line))
        return load_graph(result)


def _transform_graph():
    try:
        from tensorflow.tools.graph_transforms import TransformGraph
    except ImportError:
        return None
    return TransformGraph


# Nodes.

class _View:
    """A copy of a graph with lookups by name and by user. Inputs of its nodes may be changed, constants be added;
    `users` still answers as before the changes."""

    def __init__(self, graph):
        self.graph = _like(graph)
        self.graph.CopyFrom(graph)
        self._nodes = {node.name: node for node in self.graph.node}
        self._names = set(self._nodes)
        self._users = collections.defaultdict(list)
        for node in self.graph.node:
            for ref in node.input:
                self._users[_name(ref)].append(node)

    def of(self, *ops):
        """The nodes with one of these ops."""
        return [node for node in self.graph.node if node.op in ops]

    def node(self, ref):
        return self._nodes[_name(ref)]

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
        node.CopyFrom(_constant(_new_name(name, self._names), value))
        self._nodes[node.name] = node
        return node.name

    def affine_step(self, node, source, linear, channels):
        """(scale, shift), each (channels,) float64, when node only scales and shifts the channels of source; else None.

        source has the layout of linear, the convolution or matrix product that it is computed from.
        """
        operands = [_name(ref) for ref in node.input]
        if node.op in BATCH_NORM:
            if (operands[0] != source.name or _is_training(node) or _data_format(node) != _data_format(linear)
                    or any(_port(ref) for user in self.users(node) for ref in user.input if _name(ref) == node.name)):
                return None
            values = [self.constant(ref) for ref in node.input[1:5]]
            if any(value is None for value in values):
                return None
            gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
            epsilon = node.attr['epsilon'].f if 'epsilon' in node.attr else 1e-4
            scale = gamma / np.sqrt(variance + epsilon)
            return scale, beta - mean * scale
        if node.op not in ADDITIONS + SCALINGS or source.name not in operands:
            return None
        is_first = operands[0] == source.name
        value = self.constant(node.input[1 if is_first else 0])
        if value is None or (node.op == 'BiasAdd' and _data_format(node) != _data_format(linear)):
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

    def other_operand(self, node, least_dimensions=1):
        """The operand that node combines with a constant of at least so many dimensions, else None."""
        for ref, other in (node.input, node.input[::-1]):
            value = self.constant(ref)
            if value is not None and value.ndim >= least_dimensions:
                return other
        return None

    def before_affine(self, ref):
        """The node before any additions and scalings with constants that end in ref."""
        node = self.node(ref)
        while node.op in ADDITIONS + SCALINGS and self.other_operand(node, 0) is not None:
            node = self.node(self.other_operand(node, 0))
        return node

    def comes_after_linear(self, node):
        """Whether node is, or is computed from, a convolution or matrix product."""
        seen, to_visit = set(), [node]
        while to_visit:
            node = to_visit.pop()
            if node.op in LINEAR:
                return True
            if node.name not in seen:
                seen.add(node.name)
                to_visit.extend(self.node(ref) for ref in node.input)
        return False

    def why_not_folded(self, ref):
        origin = self.before_affine(ref)
        if origin.op in LINEAR and self.constant(origin.input[1]) is None:
            return 'the weights of %s are not constant' % origin.name
        if origin.op in LINEAR:
            return 'the output of %s is also used elsewhere' % origin.name
        return 'it follows %s (%s)' % (origin.name, origin.op)


def _like(graph):
    """An empty GraphDef of the same version and with the same function library."""
    empty = tf.GraphDef()
    empty.versions.CopyFrom(graph.versions)
    empty.library.CopyFrom(graph.library)
    return empty


def _import(graph):
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


def output_shape(graph, shape):
    """(rows, columns) of OUTPUT for an input of this shape. Raises UserError when the graph does not work at that size."""
    with tf.Graph().as_default() as tf_graph:
        _import(fold_constants(strip_unused(set_input_shape(graph, shape))))
        found = tf_graph.get_tensor_by_name(OUTPUT + ':0').shape
    if found.rank != 4 or None in found.as_list()[1:3]:
        raise UserError('the node %s of the graph has shape %s, not (batch, height, width, channels)' % (OUTPUT, found))
    return found.as_list()[1:3]


def set_input_shape(graph, shape):
    """Make INPUT a placeholder, of this shape unless it is None. Raises UserError when it has another size."""
    found = input_shape(graph)
    if shape and not found.is_compatible_with(shape):
        raise UserError('the graph takes an input of %s, not %s; give that size, or none' % (found, shape))
    changed = _like(graph)
    for node in graph.node:
        copy = changed.node.add()
        copy.CopyFrom(node)
        if node.name == INPUT:
            copy.Clear()
            copy.name, copy.op = INPUT, 'Placeholder'
            copy.attr['dtype'].CopyFrom(node.attr['dtype'])
            copy.attr['shape'].shape.CopyFrom((tf.TensorShape(shape) if shape else found).as_proto())
    return changed


def _constant(name, value):
    node = tf.NodeDef(name=name, op='Const')
    node.attr['dtype'].type = tf.as_dtype(np.asarray(value).dtype).as_datatype_enum
    node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


def _new_name(name, names):
    """name, or name with a number, that is not in the set names; adds it there."""
    candidate, number = name, 0
    while candidate in names:
        number += 1
        candidate = '%s_%d' % (name, number)
    names.add(candidate)
    return candidate


def _is_training(batch_norm):
    return _flag(batch_norm, 'is_training', True)


def _flag(node, name, default):
    # Asking a node for an attribute that it does not have would add it.
    return node.attr[name].b if name in node.attr else default


def _drop_attributes(node, names):
    for name in names:
        del node.attr[name]


def _data_format(node):
    return node.attr['data_format'].s.decode() if 'data_format' in node.attr else 'NHWC'


def _output_channels(linear, weights):
    if linear.op == 'DepthwiseConv2dNative':
        return weights.shape[2] * weights.shape[3]
    return weights.shape[0] if _flag(linear, 'transpose_b', False) else weights.shape[-1]


def _along_output_channels(linear, weights, scale):
    """scale (channels,) in a shape that multiplies the weights' output channels."""
    if linear.op == 'DepthwiseConv2dNative':
        return scale.reshape(weights.shape[2:])
    return scale[:, None] if _flag(linear, 'transpose_b', False) else scale


def _per_channel(value, linear, channels):
    """A value that is combined with the output of linear as (channels,) float64 if it varies by channel alone, else None."""
    rank = 2 if linear.op == 'MatMul' else 4
    axis = 1 if rank == 2 or _data_format(linear) == 'NCHW' else 3
    shape = (1,) * (rank - value.ndim) + value.shape
    if len(shape) != rank or shape[axis] not in (1, channels) or any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (channels,))


def _name(ref):
    return ref.lstrip('^').split(':')[0]


def _port(ref):
    return int(ref.split(':')[1]) if ':' in ref else 0


def _ref(name, port):
    return '%s:%d' % (name, port) if port else name


def _canonical(ref):
    return _ref(_name(ref), _port(ref))
