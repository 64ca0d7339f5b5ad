"""The network of Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", 2017: the first ten
layers of VGG-19, then six stages of two branches. `cmu` starts from the authors' weights, `vgg` from ImageNet's."""
from .network_base import Network, max_pool

# (name, filters) of 3x3 convolutions; None is a 2x2 max pool.
VGG_19 = (('conv1_1', 64), ('conv1_2', 64), None,
          ('conv2_1', 128), ('conv2_2', 128), None,
          ('conv3_1', 256), ('conv3_2', 256), ('conv3_3', 256), ('conv3_4', 256), None,
          ('conv4_1', 512), ('conv4_2', 512), ('conv4_3_CPM', 256), ('conv4_4_CPM', 128))


class Cmu(Network):
    stage_count = 6
    layer = Network.conv

    def scale(self, image):
        return image / 256.0 - 0.5

    def features(self, x):
        pools = 0
        for row in VGG_19:
            if row is None:
                pools += 1
                x = max_pool(x, 'VALID', 'pool%d_stage1' % pools)
            else:
                x = self.conv(x, row[0], 3, row[1])
        return x

    def stage_layers(self, stage, branch):
        if stage == 1:
            sizes = [(3, 128)] * 3 + [(1, 512), (1, None)]
            return [('conv5_%d_CPM_%s' % (i, branch), *size) for i, size in enumerate(sizes, start=1)]
        sizes = [(7, 128)] * 5 + [(1, 128), (1, None)]
        return [('Mconv%d_stage%d_%s' % (i, stage, branch), *size) for i, size in enumerate(sizes, start=1)]


class Vgg(Cmu):
    """The same layers, from other weights."""
