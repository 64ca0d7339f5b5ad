"""What a graph gets before it is quantized: the same function, less error of rounding, means that rounding keeps."""
import numpy as np

import tensorflow.compat.v1 as tf
from graphs.graphdef import OUTPUT, GraphView
from graphs.quantization import correct_biases, equalize
from small_graphs import frozen_graph, outputs

IMAGES = np.random.RandomState(8).randint(0, 256, (5, 16, 16, 3)).astype(np.uint8)


def network(image):
    """Depthwise and full convolutions with biases, ReLU and ReLU6, and a concatenation of small beside large."""
    random = np.random.RandomState(9)

    def weights(*shape):
        """Whose output channels differ by a factor of six."""
        channels = -1 if shape[-1] > 1 else -2
        spread = np.logspace(-0.4, 0.4, shape[channels]).reshape((-1,) + (1,) * (-1 - channels))
        return (random.normal(size=shape) * spread).astype(np.float32)

    x = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(image / 255, weights(3, 3, 3, 8), [1, 1, 1, 1], 'SAME'),
                                   weights(1, 8)[0]))
    large = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, weights(1, 1, 8, 6), [1, 1, 1, 1], 'SAME'), weights(1, 6)[0]))
    large = tf.nn.depthwise_conv2d(large, 0.1 * weights(3, 3, 6, 1), [1, 1, 1, 1], 'SAME', name='bare')
    large = tf.nn.bias_add(tf.nn.conv2d(large, 0.1 * weights(1, 1, 6, 4), [1, 1, 1, 1], 'SAME'), weights(1, 4)[0])
    small = tf.nn.bias_add(tf.nn.conv2d(x, 0.01 * weights(1, 1, 8, 3), [1, 1, 1, 1], 'SAME'), 0.01 * weights(1, 3)[0],
                           name='small')
    both = tf.concat([large, small], 3, name='both')
    return tf.nn.conv2d(tf.nn.depthwise_conv2d(both, weights(3, 3, 7, 1), [1, 1, 1, 1], 'SAME'), weights(1, 1, 7, 5),
                        [1, 1, 1, 1], 'SAME')


def rounding_error(graph, name):
    """The mean square of what 256 steps of one tensor change in the output."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph, name='')
        exact, tensor = session.run([OUTPUT + ':0', name + ':0'], {'image:0': IMAGES})
        step = (max(tensor.max(), 0) - min(tensor.min(), 0)) / 255
        rounded = session.run(OUTPUT + ':0', {'image:0': IMAGES, name + ':0': np.round(tensor / step) * step})
    return np.mean((rounded - exact) ** 2)


def test_equalizing_keeps_the_function_and_lessens_the_error_of_rounded_tensors():
    graph = frozen_graph(network, shape=(None, 16, 16, 3))
    equal = equalize(graph, IMAGES)
    images = IMAGES.astype(np.float32)
    expected = outputs(graph, images)
    np.testing.assert_allclose(outputs(equal, images), expected, atol=1e-5 * np.abs(expected).max())
    assert rounding_error(equal, 'both') < 0.25 * rounding_error(graph, 'both')
    assert rounding_error(equal, 'bare') < 0.75 * rounding_error(graph, 'bare')


def test_rounded_weights_keep_the_means_of_their_channels():
    graph = equalize(frozen_graph(network, shape=(None, 16, 16, 3)), IMAGES)

    def rounded(graph):
        """With all weights in 8 bits, as the converter does it."""
        view = GraphView(graph)
        for node in view.of('Conv2D', 'DepthwiseConv2dNative'):
            kernel = view.constant(node.input[1])
            step = np.abs(kernel).max((0, 1) if node.op != 'Conv2D' else (0, 1, 2), keepdims=True) / 127
            node.input[1] = view.add_constant('rounded', (np.round(kernel / step) * step).astype(np.float32))
        return view.graph

    def means(graph):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.import_graph_def(graph, name='')
            return np.mean([session.run('small:0', {'image:0': image[None]}) for image in IMAGES], (0, 1, 2, 3))
    exact = means(graph)
    plain, corrected = (np.abs(means(rounded(each)) - exact).max() for each in (graph, correct_biases(graph, IMAGES)))
    assert corrected < 0.25 * plain
