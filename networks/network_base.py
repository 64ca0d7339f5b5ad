"""What all the networks share: layers, the loop over stages and branches, initial values, losses."""
import contextlib

import numpy as np

from pose_errors import UserError

from .other_keypoints import HEAT, PAF, READS
from .tensorflow import tf


def build_losses(stages, heatmap, paf, mask, batchsize, last=-1):
    """The losses of all stages: l2_loss(mask * (prediction - label)) / batchsize (Cao et al., equation 5).

    mask: (B,h,w,1), or one for each channel of the output, heat then PAF.
    last: the number of the stage whose maps inference gives, an index of stages.

    Returns:
        dict of scalars: loss (all stages and branches), loss_ll (that stage), loss_ll_paf, loss_ll_heat, and
        loss_ll_background, the loss_ll of predicting an empty image.
    """
    def l2(mask, prediction, label):
        return tf.nn.l2_loss(mask * (prediction - label)) / batchsize

    with tf.name_scope('losses'):
        heat_mask = paf_mask = mask
        if mask.shape[-1] != 1:
            heat_mask, paf_mask = mask[..., :heatmap.shape[-1]], mask[..., heatmap.shape[-1]:]
        per_stage = [(l2(paf_mask, stage_paf, paf), l2(heat_mask, stage_heat, heatmap))
                     for stage_paf, stage_heat in stages]
        loss_ll_paf, loss_ll_heat = per_stage[last]
        background = tf.one_hot(heatmap.shape[-1] - 1, heatmap.shape[-1])
        return {'loss': tf.add_n([loss for pair in per_stage for loss in pair]),
                'loss_ll': loss_ll_paf + loss_ll_heat, 'loss_ll_paf': loss_ll_paf, 'loss_ll_heat': loss_ll_heat,
                'loss_ll_background': l2(paf_mask, 0.0, paf) + l2(heat_mask, background, heatmap)}


# Where the last layers start: at the mean of their maps. PAFs are zero nearly everywhere, and so are the heatmaps of
# the parts; the background is nearly one (see Network.conv).
BACKGROUND_MEAN = 0.97
OUTPUT_WEIGHT_SCALE = 1e-3
# Adam moves every weight by about the learning rate, however small the weight is. The depthwise filters before an
# output layer start small too, or its first steps would lift it from its mean to unit variance at once.
OUTPUT_DEPTHWISE_SCALE = 0.02

BATCH_NORM_EPSILON = 0.001
BATCH_NORM_DECAY = 0.999


class Network:
    """A network built in the default graph. Subclasses are tables: what to scale, which layers, in what order.

    name: as in networks.NAMES.  stride: input pixels per output cell; it, pretrained and the widths are set by
    networks.network_class, from its table.
    scaled: the image as the first layer sees it.
    skeleton: the annotations.skeleton.Skeleton that it finds.
    stages: [(paf (B,h,w,2 limbs), heat (B,h,w,parts + 1))] float32, one pair per stage, stage 1 first; in training
        those that follow the last one of inference too, whose losses help the earlier ones.
    output: (B,h,w,channels), heat then PAF of the last stage of inference; the node `Openpose/concat_stage7`.
    skeleton_variables: {name of a variable of a layer that makes maps or reads them: HEAT, PAF or READS}.
    variables: all its variables.  inference_variables: those that its output depends on.  pretrained_variables: those
        that come from its pretrained file.
    pretrained: a networks.Pretrained.
    """
    stride = None
    stage_count = None  # of inference
    training_stages = 0  # that follow in training
    pretrained = None
    untrained = ()  # layers of the published checkpoints that no output depends on: prefixes of their names

    def __init__(self, name, image, is_training, skeleton, freeze_batch_norm=False):
        """image: (B,H,W,3) float32 or uint8, BGR 0..255; H and W are multiples of the stride, or unknown."""
        for axis, size in zip(('height', 'width'), image.shape.as_list()[1:3]):
            if size is not None and size % self.stride:
                raise UserError('an input %s of %d is not a multiple of %d, the stride of %s'
                                % (axis, size, self.stride, name))
        self.name = name
        self.skeleton = skeleton
        self.is_training = is_training
        self._frozen_norms = self.pretrained.prefixes if freeze_batch_norm else ()
        self.variables = []
        self.skeleton_variables = {}
        self._decay = batch_norm_decay() if is_training else None
        self.scaled = self.scale(tf.cast(image, tf.float32))
        self.map_means = (0.0,) * skeleton.paf_channels, (0.0,) * len(skeleton.parts) + (BACKGROUND_MEAN,)
        self.stages = self._build_stages(self.features(self.scaled))
        paf, heat = self.stages[self.stage_count - 1]
        self.output = tf.concat([heat, paf], axis=3, name='Openpose/concat_stage7')

    @property
    def pretrained_variables(self):
        return [v for v in self.variables if v.op.name.startswith(self.pretrained.prefixes)]

    # What a subclass gives.

    def scale(self, image):
        """(B,H,W,3) pixels 0..255 -> the same shape in the range that the first layer expects."""
        raise NotImplementedError

    def features(self, x):
        """The scaled image -> the features (B,H/stride,W/stride,C) that every stage sees."""
        raise NotImplementedError

    def stage_layers(self, stage, branch):
        """The layers of a branch ('L1' or 'L2') of a stage (from 1) as [(name, kernel size, filters)].

        The last one is the linear output layer; the number of its filters follows from the branch and is None here.
        """
        raise NotImplementedError

    def layer(self, x, name, kernel, filters, mean=None):
        """One layer of a stage: `conv` or `separable`."""
        raise NotImplementedError

    # The stages.

    def _build_stages(self, features):
        stages = []
        x = features
        for stage in range(1, self.stage_count + (self.training_stages if self.is_training else 0) + 1):
            stages.append(self.stage(x, stage))
            x = tf.concat(stages[-1] + (features,), axis=3, name='Openpose/concat_stage%d' % stage)
            if stage == self.stage_count:
                self.inference_variables = list(self.variables)
        return stages

    def stage(self, x, stage):
        """The (paf, heat) of a stage (from 1): here two branches that share nothing."""
        return tuple(self._build_branch(x, stage, branch, mean) for branch, mean in zip(('L1', 'L2'), self.map_means))

    def _build_branch(self, x, stage, branch, mean):
        *hidden, (last, kernel, _) = self.stage_layers(stage, branch)
        for number, (name, size, filters) in enumerate(hidden):
            with self.of_skeleton(READS, number == 0 and stage > 1):
                x = self.layer(x, name, size, filters)
        with self.of_skeleton(PAF if branch == 'L1' else HEAT):
            return self.layer(x, last, kernel, len(mean), mean)

    @contextlib.contextmanager
    def of_skeleton(self, role, when=True):
        """Around a layer whose variables depend on the skeleton, `when` they do.

        role: it READS maps, or makes HEAT or PAF.
        """
        before = len(self.variables)
        yield
        if when:
            self.skeleton_variables.update((v.op.name, role) for v in self.variables[before:])

    # Layers. Names are full names: those of the published checkpoints, whatever scope the caller is in.

    def conv(self, x, name, kernel, filters, mean=None):
        """kernel x kernel convolution, bias, ReLU. With `mean` it is an output layer: linear, output near `mean`."""
        x = self._convolve(x, name, kernel, filters, 1, OUTPUT_WEIGHT_SCALE if mean else 1.0)
        biases = self._variable(name + '/biases', [filters], tf.constant_initializer(mean or 0.0))
        x = tf.nn.bias_add(x, biases, name=name + '/BiasAdd')
        return x if mean else tf.nn.relu(x, name=name + '/Relu')

    def conv_norm(self, x, name, kernel, filters, stride=1, mean=None, gamma=False, activation='Relu'):
        """Convolution, batch norm, ReLU. With `mean` it is an output layer: linear, its output near `mean`.

        Batch norm without gamma would bring any output to unit variance; weights so small that their variance is far
        below its epsilon keep an output layer near its beta at the start.

        gamma: whether batch norm has it.  activation: 'Relu', 'Relu6', or None for linear.
        """
        x = self._convolve(x, name, kernel, filters, stride, OUTPUT_WEIGHT_SCALE if mean else 1.0)
        x = self._batch_norm(x, name + '/BatchNorm', mean, gamma)
        return activate(x, name, None if mean else activation)

    def separable(self, x, name, kernel, filters, mean=None, stride=1):
        """Depthwise convolution, bare, then a 1x1 convolution with batch norm and ReLU (linear with `mean`)."""
        x = self._depthwise(x, name + '_depthwise', kernel, stride, OUTPUT_DEPTHWISE_SCALE if mean else 1.0)
        return self.conv_norm(x, name + '_pointwise', 1, filters, mean=mean)

    def depthwise_norm(self, x, name, kernel, stride=1):
        """Depthwise convolution, batch norm with gamma, ReLU6, as in slim's MobileNets."""
        x = self._batch_norm(self._depthwise(x, name, kernel, stride), name + '/BatchNorm', gamma=True)
        return activate(x, name, 'Relu6')

    def _depthwise(self, x, name, kernel, stride, weight_scale=1.0):
        # He's fan-in of a depthwise filter is its own kernel: it sees one channel.
        weights = self._variable(name + '/depthwise_weights', [kernel, kernel, x.shape.as_list()[3], 1],
                                 he_normal(kernel * kernel, weight_scale))
        return tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], 'SAME', name=name + '/depthwise')

    def _convolve(self, x, name, kernel, filters, stride, weight_scale):
        channels = x.shape.as_list()[3]
        weights = self._variable(name + '/weights', [kernel, kernel, channels, filters],
                                 he_normal(kernel * kernel * channels, weight_scale))
        return tf.nn.conv2d(x, weights, [1, stride, stride, 1], 'SAME', name=name + '/Conv2D')

    def _batch_norm(self, x, name, mean=None, gamma=False):
        """Batch norm with beta. Training adds updates of the moving averages to tf.GraphKeys.UPDATE_OPS."""
        shape = [x.shape.as_list()[3]]
        scale = self._variable(name + '/gamma', shape, tf.ones_initializer()) if gamma else \
            tf.constant(1.0, shape=shape, name=name + '/gamma')
        beta = self._variable(name + '/beta', shape, tf.constant_initializer(mean or 0.0))
        moving_mean = self._variable(name + '/moving_mean', shape, tf.zeros_initializer(), trainable=False)
        moving_variance = self._variable(name + '/moving_variance', shape, tf.ones_initializer(), trainable=False)
        if not self.is_training or name.startswith(self._frozen_norms):
            return tf.nn.fused_batch_norm(x, scale, beta, moving_mean, moving_variance, epsilon=BATCH_NORM_EPSILON,
                                          is_training=False, name=name + '/FusedBatchNorm')[0]
        x, batch_mean, batch_variance = tf.nn.fused_batch_norm(x, scale, beta, epsilon=BATCH_NORM_EPSILON,
                                                               name=name + '/FusedBatchNorm')
        for average, value in ((moving_mean, batch_mean), (moving_variance, batch_variance)):
            update = tf.assign_sub(average, (average - value) * (1 - self._decay))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
        return x

    def _variable(self, name, shape, initializer, trainable=True):
        trainable = trainable and not name.startswith(self.untrained)
        variable = tf.get_variable(name, shape, tf.float32, initializer, trainable=trainable, use_resource=False)
        self.variables.append(variable)
        return variable


def activate(x, name, activation):
    """x through 'Relu' or 'Relu6', under that name; None: as it is."""
    return getattr(tf.nn, activation.lower())(x, name='%s/%s' % (name, activation)) if activation else x


def batch_norm_decay():
    """Of the moving averages: BATCH_NORM_DECAY, but less in the first steps, as tf.train.ExponentialMovingAverage does.

    Otherwise inference would see the initial values of the averages for thousands of steps.
    """
    step = tf.train.get_global_step()
    if step is None:
        return BATCH_NORM_DECAY
    step = tf.cast(step, tf.float32)
    return tf.minimum(BATCH_NORM_DECAY, (1 + step) / (10 + step))


def he_normal(fan_in, scale=1.0):
    """Initializer of weights before a ReLU (He et al. 2015), times `scale`."""
    return tf.random_normal_initializer(stddev=scale * np.sqrt(2.0 / fan_in))


def max_pool(x, padding, name):
    """2x2 max pooling."""
    return tf.nn.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], padding, name=name)
