"""Weights made elsewhere: find the file, read it, fit it to a network's variables by name and shape.

    path = resolve('cmu', args.pretrained)             # before a graph is built
    match = fit(network, path)
    tf.train.Scaffold(init_fn=match.init_fn)

A file is one of
- a .npy dictionary {layer: {'weights': array, 'biases': array}}, keys str or bytes;
- a TensorFlow checkpoint (its prefix, or a folder: the latest one in it): of this project, a published OpenPose one, or
  slim's MobileNet v1, which is taken as it is. Slim's MobileNet differs in more than names: it has gammas, a batch norm
  and a ReLU after each depthwise layer, and RGB input. It is a start for training, not the same function;
- slim's vgg_19.ckpt, whose first layer is converted (`convert_conv1_1`).
"""
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import tensorflow.compat.v1 as tf

from pose_cli import UserError

from . import network_class

VGG_MEAN_RGB = (123.68, 116.78, 103.94)

# What a pickle of arrays, numbers and containers refers to. Where numpy's helpers live depends on its version: its own
# pickles tell.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]


def _latin1(text, encoding):
    """What `_codecs.encode` is for in a pickle: bytes, written as text by an old protocol."""
    if encoding != 'latin1':
        raise UserError('it has bytes in the encoding %r' % (encoding,))
    return text.encode('latin1')


ALLOWED_IN_PICKLES = {
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT,
    ('numpy._core.multiarray', '_reconstruct'): _RECONSTRUCT,
    ('numpy.core.multiarray', 'scalar'): _SCALAR,
    ('numpy._core.multiarray', 'scalar'): _SCALAR,
    ('collections', 'OrderedDict'): OrderedDict,
    ('_codecs', 'encode'): _latin1,
}


def models_folder():
    return os.environ.get('OPENPOSE_MODEL', 'models')


def resolve(name, flag=None):
    """The weights that training of the network `name` starts from: a path, or None for --pretrained=none.

    flag: the value of --pretrained; None means the model's own file below $OPENPOSE_MODEL or ./models.
    Raises UserError when the file is missing: a network never starts from scratch unasked.
    """
    if flag == 'none':
        return None
    if flag is not None:
        if not _exists(flag):
            raise UserError('--pretrained=%s: there is no such .npy file, checkpoint or folder; give another path or '
                            '--pretrained=none' % flag)
        return flag
    source = network_class(name).pretrained
    paths = [os.path.join(models_folder(), path) for path in source.paths]
    for path in paths:
        if _exists(path):
            return path
    command = 'bash scripts/download_pretrained.sh ' + source.download
    if models_folder() != 'models':
        command += ' --dir=' + models_folder()
    raise UserError('no pretrained weights of %s: looked for %s; run `%s`, or give --pretrained=PATH, or '
                    '--pretrained=none to start from random weights' % (name, ' and '.join(paths), command))


def _exists(path):
    return os.path.exists(path) or os.path.exists(_prefix(path) + '.index')


def _prefix(path):
    """The prefix of a checkpoint, also when one of its files was given."""
    return re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)


def find_checkpoint(path):
    """The prefix of a checkpoint, given as prefix, as one of its files or as the folder of which it is the newest.

    Raises UserError when there is none.
    """
    if os.path.isdir(path):
        prefix = tf.train.latest_checkpoint(path)
        if prefix is None:
            # The `checkpoint` file is missing or names files that are elsewhere now.
            prefixes = [os.path.join(path, name)[:-len('.index')] for name in os.listdir(path)
                        if name.endswith('.index')]
            if not prefixes:
                raise UserError('no checkpoint in the folder %s; give the folder that train.py wrote with --modelpath'
                                % path)
            prefix = max(prefixes, key=lambda prefix: os.path.getmtime(prefix + '.index'))
        return prefix
    for prefix in (path, _prefix(path)):
        if os.path.isfile(prefix + '.index'):
            return prefix
    raise UserError('no checkpoint %s; give its prefix, as in model-1000 for model-1000.index, or its folder' % path)


class Match:
    """How a file fits a network.

    values: {variable name: float32 array} to restore.  new: names of variables that the file lacks.
    missing: those of them that come from the network's own pretrained file.
    unfit: names in the file that the network has no place for.
    """

    def __init__(self, network, path, values, unfit):
        self.path = path
        self.values = values
        self.unfit = unfit
        self.new = [v.op.name for v in network.variables if v.op.name not in values]
        self.missing = [v.op.name for v in network.pretrained_variables if v.op.name not in values]
        self._variables = [v for v in network.variables if v.op.name in values]

    def init_fn(self, scaffold, session):
        """For tf.train.Scaffold: sets the variables through their initializers, so nothing is added to the graph."""
        session.run([v.initializer for v in self._variables],
                    {v.initializer.inputs[1]: self.values[v.op.name] for v in self._variables})

    def __str__(self):
        text = '%d variables restored, %d new' % (len(self.values), len(self.new))
        if self.missing:
            text += '; not in the file: ' + ', '.join(self.missing)
        if self.unfit:
            text += '; in the file and not in the network: ' + ', '.join(self.unfit)
        return text


def fit(network, path, flag='--pretrained'):
    """Match of the weights file `path`, which `flag` gave, with a network, by name and shape.

    Raises UserError when it cannot be read, an array has the wrong shape, or no array has a variable's name: the file
    is another network's.
    """
    weights = read_weights(path)
    other_file = 'give a file of %s with %s=PATH, or --pretrained=none instead' % (network.name, flag)
    if 'vgg_19/conv1/conv1_1/weights' in set(weights):
        weights = _SlimVgg(weights)
    names = set(weights)
    values, wrong = {}, []
    for variable in network.variables:
        name, shape = variable.op.name, tuple(variable.shape.as_list())
        if name not in names:
            continue
        value = weights[name]
        if value.shape != shape:
            wrong.append('%s is %s in the file and %s in %s' % (name, value.shape, shape, network.name))
        else:
            values[name] = value.astype(np.float32, copy=False)
    if wrong:
        more = ' (and %d more)' % (len(wrong) - 3) if len(wrong) > 3 else ''
        raise UserError('%s does not fit: %s%s; %s' % (path, '; '.join(wrong[:3]), more, other_file))
    if not values:
        raise UserError('%s has no variable of %s (it has %s, ...); %s'
                        % (path, network.name, ', '.join(sorted(names)[:3]), other_file))
    return Match(network, path, values, [name for name in sorted(names - set(values))
                                         if not _is_training_state(name, values)])


def _is_training_state(name, values):
    """Counters, and slots of an optimizer or moving average, which are named after their variable."""
    return (name in ('global_step', 'beta1_power', 'beta2_power')
            or any(name[:i] in values for i, c in enumerate(name) if c == '/'))


def read_weights(path):
    """A weights file -> Mapping {variable name: array}. Arrays of a checkpoint are read when they are asked for.

    Raises UserError for a file that is missing, broken, of another kind, or a pickle of more than arrays.
    """
    if os.path.isdir(path):
        return _Checkpoint(find_checkpoint(path))
    if os.path.isfile(path):
        with open(path, 'rb') as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                return _read_npy(file, path)
        if path.endswith('.npy'):
            raise UserError('%s is not a .npy file: it may be a broken download, get it again' % path)
    return _Checkpoint(_prefix(path))


class _Checkpoint(Mapping):
    def __init__(self, path):
        self.path = path
        self.reader = self._read(tf.train.NewCheckpointReader, path)
        self.shapes = self._read(self.reader.get_variable_to_shape_map)

    def __getitem__(self, name):
        if name not in self.shapes:
            raise KeyError(name)
        return np.asarray(self._read(self.reader.get_tensor, name))

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)

    def _read(self, call, *args):
        try:
            return call(*args)
        except (tf.errors.OpError, RuntimeError, ValueError, LookupError) as error:  # TF 1 and 2 differ in which.
            raise UserError('%s cannot be read as a checkpoint or .npy file: %s' % (self.path, error))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays, numbers, strings and plain containers; refuses to look up anything else."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED_IN_PICKLES:
            raise UserError('it refers to the code %s.%s, where only arrays are expected' % (module, name))
        return ALLOWED_IN_PICKLES[module, name]


def _read_npy(file, path):
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = {(1, 0): np.lib.format.read_array_header_1_0,
                           (2, 0): np.lib.format.read_array_header_2_0}[version](file)
        if dtype != object or shape != ():
            raise UserError('it is an array of %s %s and not a dictionary' % (dtype, shape))
        # encoding: keys and arrays that Python 2 wrote are bytes.
        tree = _ArrayUnpickler(file, encoding='bytes').load().item()
        return dict(_flatten(tree))
    except UserError as error:
        raise UserError('%s is refused: %s' % (path, error))
    except Exception as error:  # A truncated or hostile pickle raises anything at all.
        raise UserError('%s is broken (%s: %s); get it again' % (path, type(error).__name__, error))


def _flatten(tree, prefix=''):
    """{layer: {'weights': array}} -> ('layer/weights', array), ..."""
    if isinstance(tree, np.ndarray) and tree.dtype.kind in 'fiu' and prefix:
        yield prefix, tree
        return
    if not isinstance(tree, dict):
        raise UserError('%s is a %s: a dictionary {layer: {weights, biases}} of arrays is expected'
                        % (prefix or 'it', type(tree).__name__))
    for key, value in tree.items():
        key = key.decode() if isinstance(key, bytes) else str(key)
        yield from _flatten(value, prefix + '/' + key if prefix else key)


class _SlimVgg(Mapping):
    """Slim's vgg_19.ckpt under our names (`vgg_19/conv1/conv1_1/weights` is conv1_1/weights), conv1_1 converted."""

    def __init__(self, weights):
        self.weights = weights
        self.slim_names = {re.sub(r'^vgg_19/conv\d/', '', name): name for name in weights}

    def __getitem__(self, name):
        if name in ('conv1_1/weights', 'conv1_1/biases'):
            kernel, biases = convert_conv1_1(self.weights['vgg_19/conv1/conv1_1/weights'],
                                             self.weights['vgg_19/conv1/conv1_1/biases'])
            return kernel if name == 'conv1_1/weights' else biases
        return self.weights[self.slim_names[name]]

    def __iter__(self):
        return iter(self.slim_names)

    def __len__(self):
        return len(self.slim_names)


def convert_conv1_1(weights, biases):
    """VGG's first layer, made for RGB 0..255 less the mean -> for ours, BGR x / 256 - 0.5.

    weights: (3,3,3,64), biases: (64,). With pixel p = 256 (x + 0.5): w (p - mean) = 256 w x + w (128 - mean).
    Activations are equal everywhere but in the outermost ring of pixels. There both pad with zeros, which to VGG is a
    border of the mean colour and here one of grey 128, the grey that the augmentation fills in outside the image.
    """
    shift = 128.0 - np.asarray(VGG_MEAN_RGB)
    biases = biases + np.einsum('hwcf,c->f', weights.astype(np.float64), shift)
    return 256.0 * weights[:, :, ::-1], biases.astype(np.float32)
