"""Passes that make a frozen graph ready for inference, and the proof that they did.

Each pass takes a GraphDef and returns a new one. `optimize` folds batch norm into convolutions and drops what inference
does not need, and `find_unfolded` proves that it did. The same code runs on TF 1.15 and 2.x.
"""
import collections

import numpy as np

from networks.tensorflow import tf
from pose_errors import UserError

from .fold_batch_norm import fold_batch_norm, fold_depthwise_1x1, is_computed_by_linear, other_operand, \
    skip_scale_and_shift, why_not_folded
from .graphdef import ADDITIONS, BATCH_NORM, INPUT, LINEAR, OTHER_BATCH_NORM, OUTPUT, PASS_THROUGH, RUN_TIME_BRANCHES, \
    SCALINGS, GraphView, canonical, constant_node, drop_default_attributes, import_graph, is_training, like, new_name, \
    node_name, port, reference, set_input_shape, strip_unused, training_batch_norms
from .separable import split_layers

MAX_NAMED = 10  # nodes in an error line

# A node that should not be in an optimized graph, and why it is.
UnfoldedNode = collections.namedtuple('UnfoldedNode', 'name op reason')


def optimize(graph, input_shape=None):
    """Turn a frozen graph into one for inference alone.

    Batch norm, as FusedBatchNorm of any version or as multiplication and addition, goes into the weights of the
    convolution before it and one BiasAdd; a 1x1 depthwise convolution into the weights of the one after it; separable
    convolutions over the features are split (separable.py); what passes its input on, and what OUTPUT does not need,
    goes away.

    input_shape: [1, height, width, 3] fixes the size of the input, so that what depends on the size alone becomes
        constant; None leaves the input as it is.
    Raises UserError: the graph is not one that the passes can see through, or does not work at that size.
    """
    graph = strip_unused(graph)
    branches = [node for node in graph.node if node.op in RUN_TIME_BRANCHES]
    if branches:
        raise UserError('the graph branches at run time, which hides what to fold: %s; build it for inference, with '
                        'is_training=False instead of a tensor'
                        % ', '.join('%s (%s)' % (node.name, node.op) for node in branches[:MAX_NAMED]), exit_code=4)
    graph = simplify(set_input_shape(graph, input_shape))
    return drop_default_attributes(strip_unused(split_layers(fold_batch_norm(fold_depthwise_1x1(graph)), OUTPUT)))


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

    removed = like(graph, [node for node in graph.node if node.op not in PASS_THROUGH or node.name in (INPUT, OUTPUT)])
    for node in removed.node:
        node.input[:] = [source(ref) for ref in node.input]
    passed_on = source(nodes[OUTPUT].input[0]) if nodes[OUTPUT].op in PASS_THROUGH else INPUT
    name = node_name(passed_on)
    if name == INPUT or port(passed_on):
        return removed
    # The node that OUTPUT passes on takes its name.
    renamed = like(graph, [node for node in removed.node if node.name != OUTPUT])
    for node in renamed.node:
        node.name = OUTPUT if node.name == name else node.name
        node.input[:] = [reference(OUTPUT, port(ref)) if node_name(ref) == name else ref for ref in node.input]
    return renamed


def fold_constants(graph):
    """Compute what depends on constants alone, and on known shapes, and skip cuts that are known to cut nothing."""
    with tf.Graph().as_default() as tf_graph:
        import_graph(graph)
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
    constants, replaced = [], {}
    for tensor, value in zip(wanted, values):
        constants.append(constant_node(new_name(tensor.op.name + '/folded', names), value))
        replaced[reference(tensor.op.name, tensor.value_index)] = constants[-1].name
    for op in tf_graph.get_operations():
        if op.name not in known and op.name != OUTPUT and _cuts_nothing(op):
            source = reference(op.inputs[0].op.name, op.inputs[0].value_index)
            replaced[op.name] = replaced.get(source, source)
    folded = like(graph, constants + list(graph.node))
    for node in folded.node:
        node.input[:] = [replaced.get(ref, ref) for ref in map(canonical, node.input)]
    return folded


def _cuts_nothing(op):
    """Whether op takes all of its input, as in a graph for any size that was given a fixed one."""
    if op.type != 'StridedSlice':
        return False
    whole, taken, strides = op.inputs[0].shape, op.outputs[0].shape, tf.get_static_value(op.inputs[3])
    return (whole.is_fully_defined() and taken.is_fully_defined() and whole.as_list() == taken.as_list()
            and strides is not None and bool((strides == 1).all()))


def output_shape(graph, shape):
    """(rows, columns) of OUTPUT for an input of this shape. Raises UserError when it does not work at that size."""
    with tf.Graph().as_default() as tf_graph:
        import_graph(fold_constants(strip_unused(set_input_shape(graph, shape))))
        found = tf_graph.get_tensor_by_name(OUTPUT + ':0').shape
    if found.rank != 4 or None in found.as_list()[1:3]:
        raise UserError('the node %s of the graph has shape %s, not (batch, height, width, channels)' % (OUTPUT, found))
    return found.as_list()[1:3]


def find_batch_norms(graph):
    """The batch norms of a simplified frozen graph as UnfoldedNodes, however they are written, with what keeps them
    from folding. A scale per channel counts as (part of) one when it follows a convolution, or when an addition per
    channel stands beside it; scaling the image itself does not."""
    view = GraphView(graph)
    found = []
    for node in view.of(*BATCH_NORM + OTHER_BATCH_NORM):
        if node.op in BATCH_NORM and is_training(node):
            reason = 'its is_training is true'
        elif node.op in BATCH_NORM and any(view.constant(ref) is None for ref in node.input[1:]):
            reason = 'its mean, variance, beta or gamma is not constant'
        else:
            reason = why_not_folded(view, node.input[0])
        found.append(UnfoldedNode(node.name, node.op, reason))
    for node in view.of(*SCALINGS):
        source = other_operand(view, node)
        if source is None:
            continue
        origin = skip_scale_and_shift(view, source)
        beside = view.users(node) + [view.node(source)]
        if origin.op in LINEAR or (is_computed_by_linear(view, origin) and any(
                neighbour.op in ADDITIONS and other_operand(view, neighbour) for neighbour in beside)):
            found.append(UnfoldedNode(node.name, node.op, why_not_folded(view, source)))
    found += [UnfoldedNode(node.name, node.op, 'its batch norm uses the statistics of the batch, as in training')
              for node in training_batch_norms(graph) if node.op not in BATCH_NORM]
    return found


def find_unfolded(graph):
    """What an optimized graph should not contain: batch norms, nodes that pass on their input, nodes of training."""
    found = find_batch_norms(graph)
    with tf.Graph().as_default() as tf_graph:
        import_graph(graph)
        stateful = {op.name for op in tf_graph.get_operations() if op.op_def.is_stateful}
    for node in graph.node:
        reason = ('it passes on its input' if node.op in PASS_THROUGH and node.name != INPUT else
                  'it is a second input' if node.op == 'Placeholder' and node.name != INPUT else
                  'it has a state or is random, as in training' if node.name in stateful else None)
        if reason:
            found.append(UnfoldedNode(node.name, node.op, reason))
    return found


def list_unfolded(unfolded):
    """UnfoldedNodes in one line."""
    texts = ['%s (%s): %s' % node for node in unfolded[:MAX_NAMED]]
    return '; '.join(texts) + ('; and %d more' % (len(unfolded) - MAX_NAMED) if len(unfolded) > MAX_NAMED else '')
