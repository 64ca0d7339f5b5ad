"""From a frozen graph to one that is ready for inference: passes on a TensorFlow GraphDef, and the proof of them.

Each pass takes a GraphDef and returns a new one. `optimize` folds batch norm into convolutions and drops what inference
does not need, and `find_leftovers` proves that it did. The same code runs on TF 1.15 and 2.x.
"""
import collections

import numpy as np
import tensorflow.compat.v1 as tf

from graphs import separable
from graphs.affine import ADDITIONS, LINEAR, SCALINGS, before_affine, fold_affine, fold_depthwise_1x1, other_operand
from graphs.graphdef import (BATCH_NORM, INPUT, OUTPUT, GraphView, canonical, constant_node, empty_like, import_graph,
                             is_training, new_name, node_name, port, reference, set_input_shape, strip_unused,
                             tensor_reference)
from pose_cli import UserError

OTHER_BATCH_NORM = ('BatchNormWithGlobalNormalization',)
PASS_THROUGH = ('Identity', 'CheckNumerics', 'StopGradient', 'PreventGradient', 'Snapshot', 'PlaceholderWithDefault')
# What runs, or with which data, is decided in these at run time, and the passes cannot see through them.
RUN_TIME_BRANCHES = ('Switch', 'Merge', 'RefSwitch', 'RefMerge', 'Enter', 'RefEnter', 'Exit', 'NextIteration', 'If',
                     'StatelessIf', 'While', 'StatelessWhile', 'PartitionedCall', 'StatefulPartitionedCall')

MAX_NAMED = 10  # nodes in an error line

# A node that should not be in an optimized graph, and why it is.
Leftover = collections.namedtuple('Leftover', 'name op reason')


# The passes.

def optimize(graph, input_shape=None):
    """Turn a frozen graph into one for inference alone.

    Batch norm, as FusedBatchNorm of any version or as multiplication and addition, goes into the weights of the
    convolution before it and one BiasAdd; a 1x1 depthwise convolution goes into the weights of the convolution after
    it; separable convolutions over the features are split (graphs/separable.py); nodes that pass their input on, and
    all that OUTPUT does not need, go away.

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


def remove_pass_through(graph):
    """Remove the PASS_THROUGH nodes: inference does not need them, and constants must be next to what uses them."""
    nodes = {node.name: node for node in graph.node}

    def source(ref):
        while nodes[node_name(ref)].op in PASS_THROUGH and node_name(ref) not in (INPUT, OUTPUT):
            ref = nodes[node_name(ref)].input[0]
        return ref

    removed = empty_like(graph)
    for node in graph.node:
        if node.op not in PASS_THROUGH or node.name in (INPUT, OUTPUT):
            copy = removed.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [source(ref) for ref in node.input]
    output = nodes[OUTPUT]
    if output.op in PASS_THROUGH:
        passed_on = source(output.input[0])
        if node_name(passed_on) != INPUT and port(passed_on) == 0:
            removed = rename_to_output(removed, node_name(passed_on))
    return removed


def rename_to_output(graph, name):
    """Give OUTPUT's name to the node `name`, which OUTPUT passes on."""
    renamed = empty_like(graph)
    for node in graph.node:
        if node.name == OUTPUT:
            continue
        copy = renamed.node.add()
        copy.CopyFrom(node)
        copy.name = OUTPUT if node.name == name else node.name
        copy.input[:] = [reference(OUTPUT, port(ref)) if node_name(ref) == name else ref for ref in node.input]
    return renamed


def fold_constants(graph):
    """Compute what depends on constants or known shapes alone, and skip cuts that are known to cut nothing.

    Raises UserError for a graph that TF refuses.
    """
    names = {node.name for node in graph.node}
    folded, replaced = empty_like(graph), {}
    with tf.Graph().as_default() as tf_graph:
        import_graph(graph)
        known, values = known_values(tf_graph)
        for tensor, value in values:
            constant = constant_node(new_name(tensor.op.name + '/folded', names), value)
            folded.node.add().CopyFrom(constant)
            replaced[tensor_reference(tensor)] = constant.name
        for op in tf_graph.get_operations():
            if op.name not in known and op.name != OUTPUT and cuts_nothing(op):
                source = tensor_reference(op.inputs[0])
                replaced[op.name] = replaced.get(source, source)
    for node in graph.node:
        copy = folded.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [replaced.get(ref, ref) for ref in map(canonical, node.input)]
    return folded


def known_values(tf_graph):
    """What of a graph does not depend on its input.

    Returns:
        the names of these operations, and [(tensor, value)] of those among their outputs that others use.
    """
    known, shapes = set(), {}
    for op in tf_graph.get_operations():
        if op.type == 'Shape' and op.inputs[0].shape.is_fully_defined():
            shapes[op.outputs[0]] = np.array(op.inputs[0].shape.as_list(), op.outputs[0].dtype.as_numpy_dtype)
            known.add(op.name)
        elif op.type == 'Const' or (op.inputs and not op.op_def.is_stateful and op.name not in (INPUT, OUTPUT)
                                    and all(tensor.op.name in known for tensor in op.inputs)):
            known.add(op.name)
    wanted = [tensor for op in tf_graph.get_operations() if op.name in known and op.type != 'Const'
              for tensor in op.outputs if any(user.name not in known for user in tensor.consumers())]
    with tf.Session(graph=tf_graph) as session:
        return known, list(zip(wanted, session.run(wanted, shapes)))


def cuts_nothing(op):
    """Whether op takes all of its input, as in a graph for any size that was given a fixed one."""
    if op.type != 'StridedSlice':
        return False
    whole, taken, strides = op.inputs[0].shape, op.outputs[0].shape, tf.get_static_value(op.inputs[3])
    return (whole.is_fully_defined() and taken.is_fully_defined() and whole.as_list() == taken.as_list()
            and strides is not None and bool((strides == 1).all()))


def output_shape(graph, shape):
    """(rows, columns) of OUTPUT for an input of this shape.

    Raises UserError when the graph does not work at that size.
    """
    with tf.Graph().as_default() as tf_graph:
        import_graph(fold_constants(strip_unused(set_input_shape(graph, shape))))
        found = tf_graph.get_tensor_by_name(OUTPUT + ':0').shape
    if found.rank != 4 or None in found.as_list()[1:3]:
        raise UserError('the node %s of the graph has shape %s, not (batch, height, width, channels)' % (OUTPUT, found))
    return found.as_list()[1:3]


# Proof.

def find_batch_norms(graph):
    """The batch norms of a frozen graph as Leftovers, however they are written, with what keeps them from folding.

    The graph must have been simplified. A scale per channel counts as (part of) a batch norm when it follows a
    convolution, or when an addition per channel stands beside it; scaling the image itself does not.
    """
    view = GraphView(graph)
    found = [Leftover(node.name, node.op, why_batch_norm_stays(view, node))
             for node in view.of(*BATCH_NORM + OTHER_BATCH_NORM)]
    for node in view.of(*SCALINGS):
        source = other_operand(view, node)
        if source is not None and scales_as_batch_norm(view, node, source):
            found.append(Leftover(node.name, node.op, why_scaling_stays(view, source)))
    for node in view.of('SquaredDifference'):
        if any(user.op == 'Mean' and 0 in np.atleast_1d(view.constant(user.input[1])) for user in view.users(node)):
            reason = 'its batch norm uses the statistics of the batch, as in training'
            found.append(Leftover(node.name, node.op, reason))
    return found


def scales_as_batch_norm(view, node, source):
    """Whether node, which scales the channels of source, counts as a batch norm."""
    origin = before_affine(view, source)
    beside = view.users(node) + [view.node(source)]
    return origin.op in LINEAR or (comes_after_linear(view, origin) and any(
        neighbour.op in ADDITIONS and other_operand(view, neighbour) for neighbour in beside))


def comes_after_linear(view, node):
    """Whether node is, or is computed from, a convolution or matrix product."""
    seen, to_visit = set(), [node]
    while to_visit:
        node = to_visit.pop()
        if node.op in LINEAR:
            return True
        if node.name not in seen:
            seen.add(node.name)
            to_visit.extend(view.node(ref) for ref in node.input)
    return False


def why_batch_norm_stays(view, node):
    if node.op in BATCH_NORM and is_training(node):
        return 'its is_training is true'
    if node.op in BATCH_NORM and any(view.constant(ref) is None for ref in node.input[1:]):
        return 'its mean, variance, beta or gamma is not constant'
    return why_scaling_stays(view, node.input[0])


def why_scaling_stays(view, source):
    """What keeps a scale that is applied to source from going into the weights before it."""
    origin = before_affine(view, source)
    if origin.op in LINEAR and view.constant(origin.input[1]) is None:
        return 'the weights of %s are not constant' % origin.name
    if origin.op in LINEAR:
        return 'the output of %s is also used elsewhere' % origin.name
    return 'it follows %s (%s)' % (origin.name, origin.op)


def find_leftovers(graph):
    """What an optimized graph should not contain: batch norms, nodes that pass on their input, nodes of training."""
    found = find_batch_norms(graph)
    with tf.Graph().as_default() as tf_graph:
        import_graph(graph)
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
