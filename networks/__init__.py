"""The networks. `get_network(name, image, is_training)` builds one of NAMES in the default graph.

What is known of a network without building it is in the table here, and needs no TensorFlow: flags are checked against
it before anything that takes time. A network's class is imported when it is asked for.
"""
import difflib
import importlib
from collections import namedtuple

from annotations.skeleton import COCO_SKELETON
from pose_errors import UserError

# Where a network's pretrained weights lie.
#   paths: below the models folder, the first that exists is taken
#   download: its name in scripts/download_pretrained.sh
#   prefixes: the variables that come from the file are those whose names start with one of these
Pretrained = namedtuple('Pretrained', 'paths download prefixes')

# place: module and class.  stride: input pixels per output cell.  pretrained: a Pretrained.  widths: attributes of the
# class: what the filters of its backbone, and of its stages, are multiplied by.
Entry = namedtuple('Entry', 'place stride pretrained widths', defaults=({},))


def mobilenet_v1(width):
    """The ImageNet weights of MobileNet v1 of that width ('0.75')."""
    name = 'mobilenet_v1_%s_224' % width
    path = 'pretrained/%s_2017_06_14/%s.ckpt' % (name, name)
    return Pretrained((path,), 'mobilenet_v1_' + width, ('MobilenetV1/',))


def mobilenet_v2(width, refine_width):
    """The Entry of a network on MobileNet v2, whose ImageNet weights slim published for the width ('1.0')."""
    path = 'pretrained/mobilenet_v2_%s_224/mobilenet_v2_%s_224.ckpt' % (width, width)
    return Entry('network_mobilenet_v2.MobilenetV2', 8,
                 Pretrained((path,), 'mobilenet_v2_' + width, ('MobilenetV2/',)),
                 {'backbone_width': float(width), 'refine_width': refine_width})


CMU = Pretrained(('numpy/openpose_coco.npy', 'pretrained/pose_iter_440000.caffemodel'), 'cmu', ('',))
VGG = Pretrained(('numpy/openpose_vgg16.npy', 'pretrained/vgg_19_2016_08_28/vgg_19.ckpt'), 'vgg',
                 ('conv1_', 'conv2_', 'conv3_', 'conv4_1/', 'conv4_2/'))

NETWORKS = {
    'cmu': Entry('network_cmu.Cmu', 8, CMU),
    'vgg': Entry('network_cmu.Vgg', 8, VGG),
    'mobilenet': Entry('network_mobilenet.Mobilenet', 4, mobilenet_v1('0.75')),
    'mobilenet_thin': Entry('network_mobilenet.MobilenetThin', 8, mobilenet_v1('0.75')),
    'mobilenet_fast': Entry('network_mobilenet.Mobilenet', 4, mobilenet_v1('0.50'),
                            {'backbone_width': 0.5, 'refine_width': 0.5}),
    'mobilenet_accurate': Entry('network_mobilenet.Mobilenet', 4, mobilenet_v1('1.0'), {'backbone_width': 1.0}),
    'mobilenet_light': Entry('network_light.MobilenetLight', 8, mobilenet_v1('0.75')),
    'mobilenet_light_1.0': Entry('network_light.MobilenetLight', 8, mobilenet_v1('1.0'), {'backbone_width': 1.0}),
    'mobilenet_v2_large': mobilenet_v2('1.4', 1.0),
    'mobilenet_v2_w1.4_r0.5': mobilenet_v2('1.4', 0.5),
    'mobilenet_v2_w1.0_r1.0': mobilenet_v2('1.0', 1.0),
    'mobilenet_v2_w1.0_r0.75': mobilenet_v2('1.0', 0.75),
    'mobilenet_v2_w1.0_r0.5': mobilenet_v2('1.0', 0.5),
    'mobilenet_v2_w0.75_r0.75': mobilenet_v2('0.75', 0.75),
    'mobilenet_v2_small': mobilenet_v2('0.5', 0.5),
    'mobilenet_v2_0.75': mobilenet_v2('0.75', 1.0),
    'mobilenet_v2_0.5': mobilenet_v2('0.5', 1.0),
}
NAMES = tuple(NETWORKS)
# Other names of the same networks, from the original.
ALIASES = {'openpose': 'cmu', 'mobilenet_v2_1.4': 'mobilenet_v2_large', 'mobilenet_v2_w1.4_r1.0': 'mobilenet_v2_large',
           'mobilenet_v2_1.0': 'mobilenet_v2_w1.0_r1.0', 'mobilenet_v2_w0.5_r0.5': 'mobilenet_v2_small'}


def model_name(name):
    """The name in NAMES of a network, which may be given by another of its names. Raises UserError for no network's."""
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NAMES + tuple(ALIASES), 1)
        raise UserError('%r is not a network: choose one of %s%s' % (
            name, ', '.join(NAMES), '; did you mean %s?' % near[0] if near else ''))
    return name


def entry(name):
    """The Entry of a network. Raises UserError for an unknown name."""
    return NETWORKS[model_name(name)]


def network_class(name):
    """The class of a network; imports TensorFlow. Raises UserError for an unknown name."""
    place, stride_, pretrained, widths = entry(name)
    module, class_name = place.split('.')
    base = getattr(importlib.import_module('.' + module, __name__), class_name)
    return type(class_name, (base,), dict(widths, stride=stride_, pretrained=pretrained))


def stride(name):
    """Input pixels per output cell. Raises UserError for an unknown name."""
    return entry(name).stride


def get_network(name, image, is_training, skeleton=COCO_SKELETON, freeze_batch_norm=False):
    """Build the network `name` on `image`.

    image: (B,H,W,3) BGR pixels 0..255, float32 or uint8; H and W are multiples of the network's stride, or unknown.
    is_training: a bool. True: batch norm uses the batch's statistics, and its updates of the moving averages are added
        to tf.GraphKeys.UPDATE_OPS (run them with the train op). False: it uses the moving averages.
    skeleton: the annotations.skeleton.Skeleton to find: COCO's 18 parts and 19 limbs unless told otherwise.
    freeze_batch_norm: in training, that of the layers that come from the pretrained file stays as in inference.
    Returns a network_base.Network. Variables go through tf.get_variable: reuse, scopes and devices are the caller's.
    """
    return network_class(name)(name, image, is_training, skeleton, freeze_batch_norm)
