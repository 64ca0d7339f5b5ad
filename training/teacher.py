"""A trained network that completes labels in the training step: its maps stand where labels are silent.

Annotators leave out people, and parts of them; a network that has seen more knows some of these. It is run on each
augmented image beside the network that learns (distillation: Hinton et al. 2015).
"""
import collections

from annotations.skeleton import COCO_SKELETON
from graphs import graphdef
from inference import read_skeleton, tensorflow_runtime
from networks.other_keypoints import common_channels
from networks.pretrained import model_of
from networks.tensorflow import tf
from pose_errors import UserError

MIN_HEAT = 0.03  # what the teacher's heatmaps have to show to count
LABELLED_PAF = 0.1  # the length of a vector from which a label is not empty
MAX_GRAPH_BYTES = (1 << 31) - (1 << 27)  # of its copies: TensorFlow's limit, less what the rest of a graph takes
SHOWS_PEOPLE = 0.1  # the least peak of the labels of an image in which the teacher is believed to see more of them

# graph: a frozen GraphDef.  channels: networks.other_keypoints.Channels from the learner's maps to the teacher's.
Teacher = collections.namedtuple('Teacher', 'graph channels')


def read_teacher(path, skeleton, copies=1):
    """The Teacher in a frozen graph (.pb), or in weights that know their network (.npy), for a learner's Skeleton.

    copies: that a graph will have of it.
    Raises UserError: it cannot be read, takes images of one size only, finds no part of the same name, or is too large.
    """
    if path.endswith('.pb'):
        own = read_skeleton(graph_file=path) or COCO_SKELETON
        graph = tensorflow_runtime.load_frozen(path)
    else:
        model, own = model_of(path), read_skeleton(checkpoint=path) or COCO_SKELETON
        if model is None:
            raise UserError('--teacher=%s does not say of which network it is; make it with scripts/export_weights.py, '
                            'or give a frozen graph' % path)
        graph = tensorflow_runtime.freeze_checkpoint(path, model, own)
    if graphdef.training_batch_norms(graph):
        raise UserError('--teacher=%s: its batch norm is in training mode, so that what it finds depends on the other '
                        'images of the batch; mend it (freeze_and_optimize.sh --graph=%s --batch-norm-from=PHOTOS) '
                        'and give the graph_frozen.pb of that' % (path, path))
    with tf.Graph().as_default():  # no session: the first one decides what TensorFlow takes of a GPU
        graphdef.import_graph(graph)
    shape = graphdef.input_shape(graph)
    if shape.rank and shape[1:3].is_fully_defined():
        raise UserError('--teacher=%s takes images of one size; give weights, or a graph frozen with '
                        '--input-size=dynamic' % path)
    channels = common_channels(skeleton, own)
    if max(channels.heat[:-1]) < 0:
        raise UserError('--teacher=%s finds %s: none of these is learned here' % (path, ', '.join(own.parts)))
    if copies * graph.ByteSize() > MAX_GRAPH_BYTES:
        raise UserError('--teacher=%s: %d copies of its %d MB, one for each tower and each batch of --accumulate, are '
                        'more than a TensorFlow graph holds; take a smaller network, or fewer of these'
                        % (path, copies, graph.ByteSize() >> 20))
    return Teacher(graph, channels)


def completed_labels(teacher, image, heatmap, paf, mask):
    """(heatmap, paf, mask) in which the teacher's maps stand where the labels are empty or masked, in images that show
    people.

    image: uint8 (B, H, W, 3).  heatmap (B, h, w, parts + 1), paf, mask (one for each channel of both): float32.
    """
    with tf.name_scope('teacher'):
        graph = teacher.graph
        dtype = next(node.attr['dtype'].type for node in graph.node if node.name == graphdef.INPUT)
        maps, = tf.import_graph_def(graph, {graphdef.INPUT: tf.cast(image, tf.as_dtype(dtype))},
                                    [graphdef.OUTPUT + ':0'])
        maps = tf.stop_gradient(tf.cast(maps, tf.float32))
        parts = len(teacher.channels.heat) - 1
        first_paf = max(teacher.channels.heat) + 1  # behind the background, which is the last of both
        # A heatmap's cell stands for its middle, a PAF's for its corner (pose_labels.py).
        heats = tf.image.resize_bilinear(maps[..., :first_paf], heatmap.shape[1:3], half_pixel_centers=True)
        pafs = tf.image.resize_bilinear(maps[..., first_paf:], heatmap.shape[1:3])
        all_heat, known_heat = _chosen(heats, teacher.channels.heat[:parts])
        found_paf, known_paf = _chosen(pafs, teacher.channels.paf)

        people = tf.cast(tf.reduce_max(heatmap[..., :parts], [1, 2, 3], keepdims=True) > SHOWS_PEOPLE, tf.float32)
        found_heat = tf.clip_by_value(all_heat, 0.0, 1.0) * tf.cast(all_heat > MIN_HEAT, tf.float32) * people
        heat = tf.maximum(heatmap[..., :parts], found_heat)
        pairs = tf.reshape(paf, tf.concat([tf.shape(paf)[:3], [-1, 2]], 0))
        is_empty = tf.reduce_sum(tf.square(pairs), 4, keepdims=True) < LABELLED_PAF ** 2
        is_empty = tf.reshape(tf.tile(tf.cast(is_empty, tf.float32), [1, 1, 1, 1, 2]), tf.shape(paf))
        paf = paf + is_empty * people * known_paf * (found_paf - paf)
        known = tf.concat([known_heat, [tf.reduce_min(known_heat)], known_paf], 0)
        return (tf.concat([heat, 1 - tf.reduce_max(heat, 3, keepdims=True)], 3), paf,
                tf.maximum(mask, people * known))


def _chosen(maps, source):
    """(the channels of maps that source names, 0 where it has -1; whether it names one, float32 (channels,))."""
    known = tf.constant(source >= 0, tf.float32)
    return tf.gather(maps, source.clip(0), axis=3) * known, known
