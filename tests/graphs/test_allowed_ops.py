"""Hostile and odd graphs: each is refused in one line while it is data, and does nothing meanwhile."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from graphs import freeze, graphdef, optimize
from inference import open_network
from pose_errors import UserError
from small_graphs import conv, frozen_graph, fused_norm, positive


def refused(graph, folder, mention):
    path = folder / 'graph.pb'
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(UserError, match=mention) as error:
        open_network(graph_file=str(path))
    assert '\n' not in str(error.value) and 'graph.pb' in str(error.value) and len(str(error.value)) < 600


def add(graph, op, name, inputs=(), **types):
    node = graph.node.add(op=op, name=name, input=list(inputs))
    for attribute, dtype in types.items():
        node.attr[attribute].type = dtype.as_datatype_enum
    return node


def plain():
    return frozen_graph(lambda image: conv(image, 4))


def joined_to_output(graph, ref):
    """Let the output wait for, and be computed from, another node."""
    output = next(node for node in graph.node if node.name == graphdef.OUTPUT)
    output.input[0] = ref
    return graph


def test_a_graph_reads_no_file(tmp_path):
    """What a constant path leads to would be folded into graph_opt.pb, and its bytes would lie there."""
    graph, secret = plain(), tmp_path / 'secret'
    secret.write_bytes(b'0123456789abcdef')
    graph.node.add().CopyFrom(graphdef.constant_node('path', np.array(str(secret).encode())))
    add(graph, 'ReadFile', 'read', ['path'])
    add(graph, 'DecodeRaw', 'bytes', ['read'], out_type=tf.float32)
    refused(joined_to_output(graph, 'bytes'), tmp_path, 'is a (ReadFile|DecodeRaw), which no network needs')


@pytest.mark.parametrize('called', ['StatefulPartitionedCall', 'write', 'Relu'])
def test_a_graph_writes_no_file_from_a_function(tmp_path, called):
    """By way of a call, of an op of the function's name, and of a function that takes an op's name."""
    written = tmp_path / 'written'
    with tf.Graph().as_default() as tf_graph:
        def write(x):
            with tf.control_dependencies([tf.raw_ops.WriteFile(filename=str(written), contents='!')]):
                return tf.identity(x)
        image = tf.placeholder(tf.float32, (1, 16, 16, 3), name=graphdef.INPUT)
        function = tf.function(write).get_concrete_function(tf.TensorSpec((1, 16, 16, 3), tf.float32))
        tf.multiply(1.0, function(image), name=graphdef.OUTPUT)
        graph = tf_graph.as_graph_def()
    call = next(node for node in graph.node if node.op == 'StatefulPartitionedCall')
    if called != 'StatefulPartitionedCall':
        function = next(f for f in graph.library.function if f.signature.name == call.attr['f'].func.name)
        function.signature.name = call.op = called
        for name in list(call.attr):
            del call.attr[name]
        if called == 'Relu':  # TensorFlow would find the function first; it is dropped, so that the op is computed
            call.attr['T'].type = tf.float32.as_datatype_enum
            (tmp_path / 'graph.pb').write_bytes(graph.SerializeToString())
            predict_maps, _ = open_network(graph_file=str(tmp_path / 'graph.pb'))
            assert predict_maps(np.full((1, 16, 16, 3), 3, np.uint8)).max() == 3
    if called != 'Relu':
        refused(graph, tmp_path, call.name + ' is a ' + called)
    assert not written.exists()


def test_nor_does_an_attribute_call_one(tmp_path):
    graph = plain()
    for node in graph.node:
        if node.op == 'Conv2D':
            node.attr['then'].func.name = 'write'
    refused(graph, tmp_path, 'has the attribute then, a func')


def test_attributes_are_of_known_types_and_texts(tmp_path):
    """TensorFlow 1.15 ends the process over a data_format that is none."""
    for change, mention in ((lambda node: setattr(node.attr['data_format'], 's', b'NH\xcfC'), 'attribute data_format='),
                            (lambda node: setattr(node.attr['T'], 'i', 0), 'refuses it'),
                            (lambda node: setattr(node.attr['T'], 'type', 0), 'not of numbers')):
        graph = plain()
        change(next(node for node in graph.node if node.op == 'Conv2D'))
        refused(graph, tmp_path, mention)


def huge(tensor):
    tensor.ClearField('tensor_content')
    tensor.float_val.append(1)
    tensor.tensor_shape.dim[3].size = 10 ** 9


def cut(tensor):
    tensor.tensor_content = tensor.tensor_content[:-5]


def negative(tensor):
    tensor.tensor_shape.dim[0].size = -3


@pytest.mark.parametrize('change, mention', [(huge, 'elements; no network'), (cut, 'values for'),
                                             (negative, 'side of -3')])
def test_constants_have_as_many_values_as_they_say(tmp_path, change, mention):
    graph = plain()
    tensors = [node.attr['value'].tensor for node in graph.node if node.op == 'Const']
    change(next(tensor for tensor in tensors if len(tensor.tensor_content)))
    refused(graph, tmp_path, mention)


def test_many_constants_are_not_too_many(tmp_path):
    graph = plain()
    for number in range(4):
        with tf.Graph().as_default():
            node = graphdef.constant_node('big%d' % number, np.float32(1))
        for side in (1, 16, 16, 2 ** 19):
            node.attr['value'].tensor.tensor_shape.dim.add(size=side)
        graph.node.add().CopyFrom(node)
    add(graph, 'AddN', 'sum', ['big%d' % number for number in range(4)], T=tf.float32).attr['N'].i = 4
    refused(joined_to_output(graph, 'sum'), tmp_path, 'its constants have')


def test_intermediate_tensors_are_bounded_and_tensorflow_computes_little_to_know_a_shape(tmp_path):
    """As the size of an enlarged image, which is the largest of 27 million integers."""
    def large(image):
        rows, columns = tf.constant(1.0, shape=(1, 2 ** 20, 1, 1)), tf.constant(1.0, shape=(1, 1, 2 ** 20, 1))
        return conv(image, 4) + tf.reduce_mean(rows * columns)
    refused(frozen_graph(large), tmp_path, 'makes .1, 1048576, 1048576, 1., too much')

    def build(image):
        column = tf.reshape(tf.constant(1, shape=(300, 1)) * tf.constant(1, shape=(1, 300)), (-1, 1))
        side = tf.reduce_max(column * tf.constant(1, shape=(1, 300)))
        return tf.image.resize_bilinear(conv(image, 4), tf.stack([side, side]))
    refused(frozen_graph(build), tmp_path, 'makes .300, 300., too much')


def with_image(sides):
    graph = plain()
    image = next(node for node in graph.node if node.name == graphdef.INPUT)
    for dim, side in zip(image.attr['shape'].shape.dim, sides):
        dim.size = side
    return graph


@pytest.mark.parametrize('graph, mention', [
    (lambda: with_image((1, 2 ** 31, 2 ** 31, 3)), 'takes images of'),
    (lambda: with_image((2 ** 40, 16, 16, 3)), 'at once'),
    (lambda: frozen_graph(lambda image: conv(image, 4)[..., :0]), 'has shape'),
    (lambda: frozen_graph(lambda image: tf.image.resize_bilinear(conv(image, 4), (64, 64), name='up')), 'has shape'),
    (lambda: frozen_graph(lambda image: tf.reduce_mean(image)), 'not maps of floats'),
    (lambda: joined_to_output(plain(), 'Const:zero'), 'no output of a node|incomplete'),
    (lambda: frozen_graph(lambda image: conv(image, 4) + tf.placeholder(tf.float32, (), name='x')),
     'x is a second input'),
    (lambda: frozen_graph(lambda image: tf.py_func(lambda x: x, [image], tf.float32)), 'is a PyFunc'),
    (lambda: frozen_graph(lambda image: tf.reshape(image, [1, 2, 2, tf.cast(tf.reduce_max(image), tf.int32)])),
     'makes integers'),
])
def test_odd_inputs_and_outputs(tmp_path, graph, mention):
    refused(graph(), tmp_path, mention)


def output_of(op, dtype=None, inputs=()):
    graph = plain()
    output = next(node for node in graph.node if node.name == graphdef.OUTPUT)
    output.Clear()
    output.name, output.op = graphdef.OUTPUT, op
    output.input[:] = inputs
    if dtype:
        output.attr['T'].type = dtype.as_datatype_enum
    return graph


def test_an_output_that_is_no_tensor_or_of_text(tmp_path):
    refused(output_of('NoOp'), tmp_path, 'is a NoOp')
    refused(output_of('Identity', tf.string, [graphdef.INPUT]), tmp_path, 'not of numbers')


@pytest.mark.parametrize('circle', [['Identity'], ['Identity', 'Identity'], ['Relu', 'Identity']])
def test_circles_end(tmp_path, circle):
    graph = plain()
    for number, op in enumerate(circle):
        add(graph, op, 'c%d' % number, ['c%d' % ((number + 1) % len(circle))], T=tf.float32)
    refused(joined_to_output(graph, 'c0'), tmp_path, 'in a circle')


def test_endless_loops_and_doubles_are_refused(tmp_path):
    loop = frozen_graph(lambda image: tf.while_loop(lambda x: True, lambda x: x + 1.0, [image]))
    refused(loop, tmp_path, 'is a (Enter|Exit|Merge|StatelessWhile|While), which branches at run time')
    graph = plain()
    graph.node.add().CopyFrom(graph.node[1])
    refused(graph, tmp_path, 'two nodes')


def test_what_networks_are_made_of_is_accepted(tmp_path):
    """A layer of each kind, before and after the passes."""
    def build(image):
        x = fused_norm(conv(image / 127.5 - 1.0, 4))
        up = tf.image.resize_bilinear(tf.nn.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], 'VALID'), tf.shape(x)[1:3])
        return tf.concat([tf.nn.leaky_relu(up), tf.nn.relu6(x) * positive(4)], 3)
    for shape in ((1, 16, 16, 3), (None, None, None, 3)):
        graph = frozen_graph(build, shape)
        for accepted in (graph, optimize.optimize(graph)):
            freeze.save_graph(accepted, str(tmp_path / 'graph.pb'))
            assert freeze.load_frozen(str(tmp_path / 'graph.pb')).node
