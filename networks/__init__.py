"""The networks. `get_network(name, image, is_training)` builds one of NAMES in the default graph."""
import pose_skeleton
from pose_cli import UserError

from .network_cmu import Cmu, Vgg
from .network_mobilenet import Mobilenet, MobilenetAccurate, MobilenetFast, MobilenetThin

NETWORKS = {
    'cmu': Cmu,
    'vgg': Vgg,
    'mobilenet': Mobilenet,
    'mobilenet_thin': MobilenetThin,
    'mobilenet_fast': MobilenetFast,
    'mobilenet_accurate': MobilenetAccurate,
}
NAMES = tuple(NETWORKS)


def network_class(name):
    """The class of a network, which knows its stride and pretrained source. Raises UserError for an unknown name."""
    if name not in NETWORKS:
        raise UserError('%r is not a network: choose one of %s' % (name, ', '.join(NAMES)))
    return NETWORKS[name]


def stride(name):
    """Input pixels per output cell."""
    return network_class(name).stride


def get_network(name, image, is_training, skeleton=pose_skeleton.COCO):
    """Build the network `name` on `image`.

    image: (B,H,W,3) BGR pixels 0..255, float32 or uint8; H and W are multiples of the network's stride, or unknown.
    is_training: a bool. True: batch norm uses the batch's statistics, and its updates of the moving averages are added
        to tf.GraphKeys.UPDATE_OPS (run them with the train op). False: it uses the moving averages.
    skeleton: the pose_skeleton.Skeleton to look for: COCO's 18 parts and 19 limbs unless told otherwise.
    Returns a network_base.Network. Variables go through tf.get_variable: reuse, scopes and devices are the caller's.
    """
    return network_class(name)(name, image, is_training, skeleton)
