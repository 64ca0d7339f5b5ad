"""The pose network on MobileNet v1 (Howard et al. 2017): depthwise-separable layers with batch norm throughout."""
from .network_base import Network, max_pool
from .tensorflow import tf

# (filters at width 1, stride) of the separable layers Conv2d_1, Conv2d_2, ...; Conv2d_0 is a full 3x3, stride 2.
BACKBONE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 1),
            (512, 1), (512, 1), (512, 1), (512, 1), (512, 1))


def depth(filters, width):
    return max(int(filters * width), 8)


class Mobilenet(Network):
    """Stride 4: the features join strides 2, 4 and 8 at 4. Conv2d_8 is there for the checkpoints' sake."""
    stage_count = 5
    backbone_width = 0.75
    refine_width = 1.0
    backbone_layers = 8
    refine_kernel = 7
    untrained = ('MobilenetV1/Conv2d_8_',)
    layer = Network.separable

    def scale(self, image):
        return image / 127.5 - 1.0

    def features(self, x):
        return self.join(self.backbone(x))

    def backbone(self, x):
        """The outputs of Conv2d_0, Conv2d_1, ..."""
        outputs = [self.conv_norm(x, 'MobilenetV1/Conv2d_0', 3, depth(32, self.backbone_width), stride=2)]
        for i, (filters, stride) in enumerate(BACKBONE[:self.backbone_layers], start=1):
            outputs.append(self.separable(outputs[-1], 'MobilenetV1/Conv2d_%d' % i, 3,
                                          depth(filters, self.backbone_width), stride=stride))
        return outputs

    def join(self, conv2d):
        """The outputs of the backbone's layers -> features at the network's stride."""
        return tf.concat([max_pool(conv2d[1], 'SAME', 'Conv2d_1_pool'), conv2d[3], upsample(conv2d[7], conv2d[3])],
                         axis=3, name='feat_concat')

    def stage_layers(self, stage, branch):
        kernel = 3 if stage == 1 else self.refine_kernel
        sizes = [(kernel, 128)] * 3 + [(1, 512 if stage == 1 else 128)]
        names = ['Openpose/MConv_Stage%d_%s_%d' % (stage, branch, i) for i in range(1, 6)]
        hidden = [(name, size, depth(filters, self.refine_width)) for name, (size, filters) in zip(names, sizes)]
        return hidden + [(names[-1], 1, None)]


class MobilenetThin(Mobilenet):
    """Stride 8, 3x3 refinement, six stages: the features join strides 4 and 8 at 8."""
    stage_count = 6
    refine_width = 0.5
    backbone_layers = 11
    refine_kernel = 3
    untrained = ()

    def join(self, conv2d):
        return tf.concat([max_pool(conv2d[3], 'SAME', 'Conv2d_3_pool'), conv2d[7], conv2d[11]],
                         axis=3, name='feat_concat')


def upsample(x, like):
    """Bilinear x2, cut to the height and width of `like`: an odd number of its rows or columns had been rounded up."""
    up = tf.image.resize(x, [2 * size for size in spatial_size(x)], tf.image.ResizeMethod.BILINEAR)
    height, width = spatial_size(like)
    if up.shape.as_list()[1:3] == [height, width]:
        return up
    return up[:, :height, :width]


def spatial_size(x):
    """[height, width] of (B,H,W,C): numbers where they are known, else tensors."""
    return [tf.shape(x)[axis] if x.shape.as_list()[axis] is None else x.shape.as_list()[axis] for axis in (1, 2)]
