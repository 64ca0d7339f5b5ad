"""After Lightweight OpenPose (Osokin 2018): a dilated MobileNet v1, and one trunk for both heads of a stage.

Other than there, a block of refinement is one 7x7 depthwise-separable layer (Wang et al. 2022, LitePose) in place of
two 3x3 layers, the second dilated: the same field of view for a tenth of the operations.
"""
from .network_base import Network
from .network_mobilenet import BACKBONE, depth
from .other_keypoints import HEAT, PAF, READS

FEATURES, FIRST_HEAD = 128, 512  # filters
REFINEMENT_BLOCKS = 5
STRIDES = (1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1)  # of Conv2d_1, Conv2d_2, ..., so that the output stride is 8
DILATED_LAYER = 7  # by 2: here a 5x5 kernel, which starts as that (formats/slim_mobilenet.py)


class MobilenetLight(Network):
    """Stride 8. Slim's own MobileNet v1 to Conv2d_11, so that all of its ImageNet weights have a place."""
    stage_count = 2
    training_stages = 2
    backbone_width = 0.75

    def scale(self, image):
        return image / 127.5 - 1.0

    def features(self, x):
        x = self.conv_norm(x, 'MobilenetV1/Conv2d_0', 3, depth(32, self.backbone_width), 2, gamma=True,
                           activation='Relu6')
        for number, ((filters, _), stride) in enumerate(zip(BACKBONE, STRIDES), start=1):
            name = 'MobilenetV1/Conv2d_%d' % number
            x = self.depthwise_norm(x, name + '_depthwise', 5 if number == DILATED_LAYER else 3, stride)
            x = self.conv_norm(x, name + '_pointwise', 1, depth(filters, self.backbone_width), gamma=True,
                               activation='Relu6')
        x = y = self.conv_norm(x, 'Openpose/align', 1, FEATURES)
        for number in range(1, 4):
            y = self.separable(y, 'Openpose/align_%d' % number, 3, FEATURES)
        return self.conv_norm(x + y, 'Openpose/features', 3, FEATURES)

    def stage(self, x, stage):
        name = 'Openpose/Stage%d' % stage
        x = self.initial_trunk(x, name) if stage == 1 else self.refinement_trunk(x, name)
        return tuple(self.head(x, '%s_%s' % (name, branch), FIRST_HEAD if stage == 1 else FEATURES, mean, role)
                     for branch, mean, role in zip(('L1', 'L2'), self.map_means, (PAF, HEAT)))

    def initial_trunk(self, x, name):
        for number in range(1, 4):
            x = self.conv_norm(x, '%s_%d' % (name, number), 3, FEATURES)
        return x

    def refinement_trunk(self, x, name):
        for number in range(1, REFINEMENT_BLOCKS + 1):
            block = '%s_%d' % (name, number)
            with self.of_skeleton(READS, number == 1):
                x = self.conv_norm(x, block, 1, FEATURES)
            x = x + self.separable(x, block + '_wide', 7, FEATURES)
        return x

    def head(self, x, name, filters, mean, role):
        x = self.conv_norm(x, name + '_1', 1, filters)
        with self.of_skeleton(role):
            return self.conv(x, name + '_2', 1, len(mean), mean)
