"""A network with everything that the real ones have and few layers, so that its graphs are made in a moment."""
import sys

import networks
from networks.network_base import Network, max_pool

NAME, PLAIN = 'small', 'plain'
for name, place in ((NAME, 'Small'), (PLAIN, 'Plain')):
    networks.NETWORKS[name] = networks.Entry('network_small.' + place, 8, networks.mobilenet_v1('0.75'))
sys.modules['networks.network_small'] = sys.modules[__name__]  # where classes of networks are looked for


class Small(Network):
    """Batch norm, a bias, and two stages."""
    stage_count = 2

    def scale(self, image):
        return image / 127.5 - 1

    def features(self, x):
        x = self.conv_norm(x, 'First', 3, 8, stride=4)
        return self.conv(self.separable(x, 'Second', 3, 8, stride=2), 'Third', 3, 8)

    def stage_layers(self, stage, branch):
        name = 'Stage%d_%s' % (stage, branch)
        return [(name + '_1', 3, 8), (name + '_2', 1, None)]

    def layer(self, x, name, kernel, filters, mean=None):
        return self.separable(x, name, kernel, filters, mean)


class Wide(Small):
    """With as many weights as mobilenet_thin has, so that a save takes a while."""

    def features(self, x):
        return self.conv(self.conv(super().features(x), 'Fourth', 3, 480), 'Fifth', 3, 480)


class Plain(Small):
    """Without batch norm, so that a batch does the same in parts as whole."""
    layer = Network.conv

    def features(self, x):
        for number in range(3):
            x = max_pool(self.conv(x, 'Conv%d' % number, 3, 8), 'VALID', 'pool%d' % number)
        return x
