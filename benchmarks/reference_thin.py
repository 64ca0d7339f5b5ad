"""mobilenet_thin's training step as the published TensorFlow trainer builds it: a yardstick for this project's own.

Written from the description of the network alone, with none of this project's networks, losses or towers, so that
nothing that makes those faster or slower moves it. Plain variables, fused batch norm without gamma and a decay of
0.999, all stages' sums of squares on dense float32 maps, no mask, Adam. Everything is fed and done in one session.run a
step. In float32, on whatever device TensorFlow chooses.

As a program it does steps when asked (see bare_processes.py); bench_train_step.py starts it.
"""
import argparse
import collections
import time

import numpy as np
from bench_inputs import made_up_weights  # first: it puts the project's root on sys.path
from networks.tensorflow import tf

import pose_cli
from bare_processes import answer
from bench_inputs import made_up_batch

STRIDE = 8
# (filters, stride) of Conv2d_1 to Conv2d_11, separable; Conv2d_0 is a full 3x3 convolution of 24 filters, stride 2.
BACKBONE = ((48, 1), (96, 2), (96, 1), (192, 2), (192, 1), (384, 1),
            (384, 1), (384, 1), (384, 1), (384, 1), (384, 1))
STAGES, HEATMAPS, PAFS = 6, 19, 38
DECAY, EPSILON = 0.999, 0.001

# image, heatmap, paf: placeholders.  stages: [(paf, heat)].  loss: a scalar.  step: the operation that trains.
Reference = collections.namedtuple('Reference', 'image heatmap paf stages loss step')


def weights(name, shape):
    return tf.get_variable(name, shape, initializer=tf.glorot_uniform_initializer())


def batch_norm(x, name):
    channels = [x.shape.as_list()[-1]]
    beta = tf.get_variable(name + '/beta', channels, initializer=tf.zeros_initializer())
    mean = tf.get_variable(name + '/moving_mean', channels, initializer=tf.zeros_initializer(), trainable=False)
    variance = tf.get_variable(name + '/moving_variance', channels, initializer=tf.ones_initializer(), trainable=False)
    x, batch_mean, batch_variance = tf.nn.fused_batch_norm(x, tf.ones(channels), beta, epsilon=EPSILON)
    for average, value in ((mean, batch_mean), (variance, batch_variance)):
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(average, (average - value) * (1 - DECAY)))
    return x


def convolution(x, name, kernel, filters, stride=1, relu=True):
    x = tf.nn.conv2d(x, weights(name + '/weights', [kernel, kernel, x.shape.as_list()[-1], filters]),
                     [1, stride, stride, 1], 'SAME')
    x = batch_norm(x, name + '/BatchNorm')
    return tf.nn.relu(x) if relu else x


def separable(x, name, kernel, filters, stride=1, relu=True):
    depthwise = weights(name + '_depthwise/depthwise_weights', [kernel, kernel, x.shape.as_list()[-1], 1])
    x = tf.nn.depthwise_conv2d(x, depthwise, [1, stride, stride, 1], 'SAME')
    return convolution(x, name + '_pointwise', 1, filters, relu=relu)


def build_features(image):
    x = convolution(image / 127.5 - 1.0, 'MobilenetV1/Conv2d_0', 3, 24, stride=2)
    layers = [x]
    for number, (filters, stride) in enumerate(BACKBONE, 1):
        x = separable(x, 'MobilenetV1/Conv2d_%d' % number, 3, filters, stride)
        layers.append(x)
    pooled = tf.nn.max_pool(layers[3], [1, 2, 2, 1], [1, 2, 2, 1], 'SAME')
    return tf.concat([pooled, layers[7], layers[11]], 3)


def build_branch(x, stage, branch, maps):
    name = 'Openpose/MConv_Stage%d_%s_' % (stage, branch)
    for number in (1, 2, 3):
        x = separable(x, name + str(number), 3, 64)
    x = separable(x, name + '4', 1, 256 if stage == 1 else 64)
    return separable(x, name + '5', 1, maps, relu=False)


def build_stages(image):
    features = x = build_features(image)
    stages = []
    for stage in range(1, STAGES + 1):
        paf, heat = build_branch(x, stage, 'L1', PAFS), build_branch(x, stage, 'L2', HEATMAPS)
        stages.append((paf, heat))
        x = tf.concat([paf, heat, features], 3)
    return stages


def build(batchsize, width, height):
    """The graph of a training step, in the default graph: a Reference."""
    cells = [batchsize, height // STRIDE, width // STRIDE]
    image = tf.placeholder(tf.float32, [batchsize, height, width, 3])
    heatmap, paf = (tf.placeholder(tf.float32, cells + [maps]) for maps in (HEATMAPS, PAFS))
    stages = build_stages(image)
    losses = [tf.nn.l2_loss(prediction - label) for stage in stages for prediction, label in zip(stage, (paf, heatmap))]
    loss = tf.add_n(losses) / batchsize
    optimizer = tf.train.AdamOptimizer(1e-4, epsilon=1e-8)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        step = optimizer.minimize(loss, tf.train.get_or_create_global_step(), colocate_gradients_with_ops=True)
    return Reference(image, heatmap, paf, stages, loss, step)


class ReferenceTraining:
    """The graph and its session, on a batch that is fed in each step. input_size: (width, height)."""

    def __init__(self, batchsize, input_size):
        image, heatmap, paf, _ = made_up_batch(np.random.RandomState(0), batchsize, *input_size, STRIDE, people=3)
        config = tf.ConfigProto(allow_soft_placement=True)
        config.gpu_options.allow_growth = True  # the other side of the comparison is on the same GPU
        with tf.Graph().as_default():
            reference = build(batchsize, *input_size)
            self._fetches = [reference.step, reference.loss]
            self._feed = {reference.image: image.astype(np.float32), reference.heatmap: heatmap, reference.paf: paf}
            self._session = tf.Session(config=config)
            self._session.run(tf.global_variables_initializer())
            layers = [variable for variable in tf.trainable_variables() if len(variable.shape) == 4]
            self._session.run([layer.initializer for layer in layers],
                              {layer.initializer.inputs[1]: made_up_weights(layer.op.name, layer.shape.as_list())
                               for layer in layers})

    def steps(self, count):
        """Do so many steps. Returns (seconds that each took, the last one's loss)."""
        seconds, loss = [], None
        for _ in range(count):
            start = time.perf_counter()
            _, loss = self._session.run(self._fetches, self._feed)
            seconds.append(time.perf_counter() - start)
        return seconds, float(loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368))
    parser.add_argument('--batchsize', type=int, default=4)
    flags = parser.parse_args()
    answer(ReferenceTraining(flags.batchsize, flags.input_size), tensorflow=tf.__version__)


if __name__ == '__main__':
    main()
