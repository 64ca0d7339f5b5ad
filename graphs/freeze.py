"""From a checkpoint to a frozen graph, and the files of graphs; TensorFlow's own transforms where they exist."""
import os
import shutil
import subprocess
import tempfile

import numpy as np
from google.protobuf import message, text_format

import networks
from networks import pretrained
from networks.formats import vgg19
from networks.tensorflow import tf
from pose_errors import UserError
from pose_files import read_file, write_file

from . import allowed_ops, graphdef
from .graphdef import BATCH_NORM, INPUT, VARIABLES, constant_node, drop_attributes, is_training, like, strip_unused

SKELETON = 'Openpose/skeleton'  # the name of a constant
MAX_BYTES = 2 ** 31 - 1  # of a file; protobuf takes no more
# Of a SavedModel: the signature that clients call when they name none, its input and its output.
SIGNATURE, IMAGE, MAPS = 'serving_default', 'image', 'maps'


def load_graph(path):
    """Read a GraphDef, binary or text. Raises UserError when the file is missing, truncated or something else."""
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise UserError('cannot read the graph %s: %s' % (path, error.strerror))
    graph = tf.GraphDef()
    try:
        graph.ParseFromString(data)
    except message.DecodeError:
        try:
            graph = text_format.Parse(data.decode('ascii'), tf.GraphDef())
        except (text_format.ParseError, UnicodeDecodeError, RecursionError):
            raise UserError('%s is not a TensorFlow graph, or only a part of one; copy or export it again' % path)
    if not graph.node:
        raise UserError('%s holds no graph; copy or export it again' % path)
    return graph


def load_frozen(path):
    """Read a frozen graph, which may come from anybody: INPUT, OUTPUT and all between, without functions. Raises
    UserError when something of it, or weights, lack, and for all that is more than a network's forward pass."""
    graph = load_graph(path)
    graph.ClearField('library')  # where functions hide; one that bears the name of an op would stand in for it
    try:
        graph = strip_unused(graph)
        for node in graph.node:
            if node.op in VARIABLES + ('VarHandleOp',):
                raise UserError('it is not frozen: %s is a variable; give the graph_frozen.pb or graph_opt.pb that '
                                'scripts/freeze_and_optimize.sh makes from a checkpoint' % node.name)
        allowed_ops.check_nodes(graph)
        allowed_ops.check_shapes(graph)
    except UserError as error:
        raise UserError('%s is not a graph of this project: %s' % (path, error))
    return graph


def save_graph(graph, path, text=False):
    """Write a GraphDef. Text is what TF's freeze_graph reads unless told otherwise."""
    write_file(path, text_format.MessageToString(graph).encode('ascii') if text else graph.SerializeToString())


def with_skeleton(graph, skeleton):
    """The graph with a constant that tells what it finds; nothing is computed from it."""
    return like(graph, list(graph.node) + [constant_node(SKELETON, np.array(skeleton.to_json().encode()))])


def skeleton_text(graph):
    """The text that with_skeleton put in, or None."""
    texts = [text for node in graph.node if node.name == SKELETON and node.op == 'Const'
             for text in node.attr['value'].tensor.string_val]
    return texts[0].decode(errors='replace') if texts else None


def network_graph(model, skeleton, input_size=None):
    """The inference graph of a network (one of networks.NAMES) for inputs of this (width, height), or of any."""
    width, height = input_size or (None, None)

    def build():
        image = tf.placeholder(tf.float32, [None, height, width, 3], name=INPUT)
        networks.get_network(model, image, is_training=False, skeleton=skeleton)

    return inference_graph(build)


def inference_graph(build):
    """The GraphDef of a network without anything that trains it, which older versions of TensorFlow read too.

    build: called in an empty default graph; makes the nodes INPUT and OUTPUT.

    Inference batch norm is written as FusedBatchNorm, the first version of that op. It computes the same as its
    successors, and is the only one that TransformGraph's fold_old_batch_norms folds.
    """
    with tf.Graph().as_default() as tf_graph:
        build()
        graph = strip_unused(tf_graph.as_graph_def())
    for node in graph.node:
        if node.op in BATCH_NORM and not is_training(node):
            node.op = 'FusedBatchNorm'
            drop_attributes(node, [name for name in node.attr if name in ('U', 'exponential_avg_factor')])
    return graphdef.drop_default_attributes(graph)


def freeze(graph, checkpoint):
    """Replace the variables of an inference graph by constants with the values of a checkpoint (a prefix or another
    file of weights, as from networks.pretrained.find_checkpoint).

    Raises UserError when it is damaged, or has another model's variables (names the first that does not match).
    """
    try:
        weights = vgg19.converted(pretrained.read_weights(checkpoint))
        frozen = like(graph, graph.node)
        for node in frozen.node:
            if node.op not in VARIABLES:
                continue
            wanted = [dim.size for dim in node.attr['shape'].shape.dim]
            value = weights.get(node.name)
            found = None if value is None else list(value.shape)
            if found != wanted:
                raise UserError('the checkpoint %s is not of this model: its variable %s %s; give the --model that it '
                                'was trained with'
                                % (checkpoint, node.name, 'is missing' if found is None else
                                   'has shape %s, not %s' % (found, wanted)))
            node.CopyFrom(constant_node(node.name, pretrained.checked_values(value, node.name, checkpoint)))
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        raise UserError('the checkpoint %s is damaged: %s; take another one' % (checkpoint, error))
    return frozen


def save_saved_model(graph, folder):
    """Write a frozen graph as the SavedModel folder; one that is there already gives way when the new one is complete.

    Its signature SIGNATURE takes IMAGE, float32 pixels (batch, height, width, 3) BGR, and gives MAPS, float32.
    TensorFlow Serving wants the folder's name to be a number, the version: models/NAME/1.

    Raises UserError when the folder cannot be written.
    """
    temporary = '%s.%d.tmp' % (folder, os.getpid())
    try:
        with tf.Graph().as_default(), tf.Session() as session:
            tensors = [graphdef.INPUT + ':0', graphdef.OUTPUT + ':0']
            image, maps = tf.import_graph_def(graph, name='', return_elements=tensors)
            signature = tf.saved_model.predict_signature_def({IMAGE: image}, {MAPS: maps})
            builder = tf.saved_model.Builder(temporary)
            builder.add_meta_graph_and_variables(session, [tf.saved_model.tag_constants.SERVING],
                                                 {SIGNATURE: signature}, strip_default_attrs=True)
            builder.save()
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError('cannot write the SavedModel %s: %s; choose another --output-dir' % (folder, error))


def run_transforms(graph, inputs, outputs, transforms):
    """Run transforms of TF's Graph Transform Tool: the binary $TRANSFORM_GRAPH, or TransformGraph of TF 1.x.

    transforms: a list as ['fold_constants(ignore_errors=true)', 'quantize_weights'].

    Raises UserError when the tool is missing here, or refuses the graph or the transforms.
    """
    binary = os.environ.get('TRANSFORM_GRAPH')
    if not binary:
        try:
            from tensorflow.tools.graph_transforms import TransformGraph
            return TransformGraph(graph, inputs, outputs, transforms)
        except ImportError:
            raise UserError('TensorFlow %s has no graph transforms; use TF 1.15 (TF=1 bash scripts/setup_env.sh), or '
                            'set $TRANSFORM_GRAPH to a transform_graph binary' % tf.__version__)
        except (tf.errors.OpError, ValueError) as error:
            raise UserError('TransformGraph refuses: %s' % error)
    with tempfile.TemporaryDirectory() as folder:
        source, result = os.path.join(folder, 'in.pb'), os.path.join(folder, 'out.pb')
        save_graph(graph, source)
        command = [binary, '--in_graph=' + source, '--out_graph=' + result, '--inputs=' + ','.join(inputs),
                   '--outputs=' + ','.join(outputs), '--transforms=' + ' '.join(transforms)]
        try:
            finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      universal_newlines=True)
        except OSError as error:
            raise UserError('cannot run $TRANSFORM_GRAPH=%s: %s' % (binary, error.strerror))
        if finished.returncode or not os.path.exists(result):
            last_line = (finished.stdout.strip().splitlines() or ['no message'])[-1]
            raise UserError('$TRANSFORM_GRAPH=%s failed with exit code %d: %s'
                            % (binary, finished.returncode, last_line))
        return load_graph(result)
