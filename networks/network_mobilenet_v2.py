"""The pose network on MobileNet v2 (Sandler et al. 2018), the original's last family; stages as mobilenet_thin's.

Variables have slim's names. Pixels stay 0..255: so do those of the published graphs.
"""
from .network_mobilenet import MobilenetThin, spatial_size
from .tensorflow import tf

# (expansion, filters at width 1, stride) of expanded_conv, expanded_conv_1, ...; before them Conv, 3x3, stride 2.
BACKBONE = ((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1),
            (6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1), (6, 96, 1), (6, 96, 1), (6, 96, 1))
LAYER_7, LAYER_14 = 6, 13  # slim counts Conv as layer 1


def rounded(filters):
    """Slim's rounding: to the next multiple of 8, but not to less than 90 % of it."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8


class MobilenetV2(MobilenetThin):
    """Stride 8: layer 7 (stride 8) and layer 14 (stride 16, enlarged to it) together are the features."""
    backbone_width = 1.0
    refine_width = 1.0

    def scale(self, image):
        return image

    def backbone(self, x):
        """The outputs of Conv, expanded_conv, expanded_conv_1, ..."""
        x = self.conv_norm(x, 'MobilenetV2/Conv', 3, rounded(32 * self.backbone_width), 2, gamma=True,
                           activation='Relu6')
        outputs = [x]
        for number, (expansion, filters, stride) in enumerate(BACKBONE):
            name = 'MobilenetV2/expanded_conv' + ('_%d' % number if number else '')
            outputs.append(self.expanded_conv(outputs[-1], name, expansion, rounded(filters * self.backbone_width),
                                              stride))
        return outputs

    def expanded_conv(self, x, name, expansion, filters, stride):
        """An inverted residual: wider, depthwise, narrow again and linear, added to its input where shapes allow."""
        inner, channels = x, x.shape.as_list()[3]
        if expansion > 1:
            inner = self.conv_norm(x, name + '/expand', 1, expansion * channels, gamma=True, activation='Relu6')
        inner = self.depthwise_norm(inner, name + '/depthwise', 3, stride)
        inner = self.conv_norm(inner, name + '/project', 1, filters, gamma=True, activation=None)
        return tf.add(inner, x, name=name + '/add') if stride == 1 and channels == filters else inner

    def join(self, layers):
        like = layers[LAYER_7]
        larger = tf.image.resize(layers[LAYER_14], spatial_size(like), tf.image.ResizeMethod.BILINEAR)
        return tf.concat([like, larger], axis=3, name='feat_concat')
