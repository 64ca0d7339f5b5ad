"""Weights made elsewhere: find the file, read it, fit it to a network's variables by name and shape.

    path = resolve('cmu', args.pretrained)             # before a graph is built
    match = fit(network, path)
    tf.train.Scaffold(init_fn=match.init_fn)

A file is one of
- a .npy dictionary {layer: {'weights': array, 'biases': array}}, keys str or bytes, or {variable name: array} as
  scripts/export_weights.py writes it;
- a TensorFlow checkpoint (its prefix, or a folder: the latest one in it): of this project, a published OpenPose one, or
  slim's MobileNets (formats/slim_mobilenet.py);
- a .caffemodel, a frozen graph (.pb) or a Keras .h5: networks/formats/.
VGG-19 as trained on ImageNet, by slim, Caffe or Keras, gets its first layer converted (formats/vgg19.py).

TensorFlow is imported to read a checkpoint or a .pb, not to find out that there is none.
"""
import importlib
import json
import os
import re
from collections.abc import Mapping

import numpy as np

from annotations.skeleton import RUN_FILE, parse_skeleton
from networks import NAMES, entry
from pose_errors import UserError
from pose_files import check_tensorflow_path

from . import other_keypoints
from .formats import slim_mobilenet, vgg19
from .formats.npy import is_npy, read_npy, take_metadata

MAX_NAMES = 8  # of variables in a line of the log
# Modules of formats/.
FORMATS = {'.caffemodel': 'caffemodel', '.pb': 'frozen_graph', '.h5': 'keras_h5', '.hdf5': 'keras_h5'}
STATE_FILE = 'checkpoint'  # TensorFlow's, in a folder of checkpoints
MAX_STATE_BYTES = 1 << 20
AVERAGE = 'ExponentialMovingAverage'  # what TensorFlow calls it, behind the name of its variable
LEAF = re.compile(r'(_depthwise|_pointwise)?/(BatchNorm/)?\w+$')  # of a variable's name: what follows its layer's


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
            raise UserError('--pretrained=%s: there is no such file of weights (.npy, .caffemodel, .pb, .h5), '
                            'checkpoint or folder; give another path or --pretrained=none' % flag)
        return flag
    source = entry(name).pretrained
    paths = [os.path.join(models_folder(), path) for path in source.paths]
    for path in paths:
        if _exists(path):
            return path
    command = 'bash scripts/download_pretrained.sh ' + source.download
    if models_folder() != 'models':
        command += ' --dir=' + models_folder()
    raise UserError('no pretrained weights of %s: looked for %s; run `%s`, or give --pretrained=PATH, or '
                    '--pretrained=none to start from random weights' % (name, ' and '.join(paths), command))


def find_start(name, checkpoint=None, pretrained=None):
    """Raise UserError when the weights of --checkpoint, or else those of --pretrained, are not there. No TensorFlow."""
    if not checkpoint:
        resolve(name, pretrained)
    elif os.path.isdir(checkpoint):
        find_checkpoint(checkpoint)
    elif not _exists(checkpoint):
        raise UserError('there is no checkpoint or file of weights %s; give its path' % checkpoint)


def _exists(path):
    return os.path.exists(path) or os.path.exists(checkpoint_prefix(path) + '.index')


class Match:
    """How a file fits a network.

    values: {variable name: float32 array} to restore.  missing: names of variables that the file lacks.
    missing_pretrained: those of them that come from the network's own pretrained file.
    unmatched: names in the file that the network has no place for.
    reinitialized: those of missing whose values in the file are for other keypoints: of layers that make or read maps.
    kept_parts: where the file is for other keypoints, the names of the parts whose maps are kept.
    """

    def __init__(self, network, path, values, unmatched, reinitialized=(), kept_parts=()):
        self.path = path
        self.kept_parts = kept_parts
        self._parts = network.skeleton.parts
        self.values = values
        self.unmatched = unmatched
        self.reinitialized = list(reinitialized)
        self.missing = [v.op.name for v in network.variables if v.op.name not in values]
        self.missing_pretrained = [v.op.name for v in network.pretrained_variables if v.op.name not in values]
        self._variables = [v for v in network.variables if v.op.name in values]

    def init_fn(self, scaffold, session):
        """For tf.train.Scaffold: sets the variables through their initializers, so nothing is added to the graph."""
        session.run([v.initializer for v in self._variables],
                    {v.initializer.inputs[1]: self.values[v.op.name] for v in self._variables})

    def __str__(self):
        text = '%d variables restored, %d new' % (len(self.values), len(self.missing))
        if self.kept_parts:
            others = [part for part in self._parts if part not in self.kept_parts]
            text += '; for other keypoints: the maps of %d of %d parts are kept, those of %s start anew' % (
                len(self.kept_parts), len(self._parts), ', '.join(others) or 'some limbs')
        if self.reinitialized:
            layers = dict.fromkeys(LEAF.sub('', name) for name in self.reinitialized)
            text += '; for other keypoints, so these layers start anew: ' + ', '.join(layers)
        if self.missing_pretrained:
            text += '; not in the file: ' + _some(self.missing_pretrained)
        if self.unmatched:
            text += '; in the file and not in the network: ' + _some(self.unmatched)
        return text


def _some(names):
    """The first names of a list, and how many more there are."""
    return ', '.join(names[:MAX_NAMES]) + (' and %d more' % (len(names) - MAX_NAMES) if len(names) > MAX_NAMES else '')


def fit(network, path, flag='--pretrained', read=None):
    """Match of the weights file `path`, which `flag` gave, with a network, by name and shape.

    Layers that make maps for other keypoints, or read such maps, keep what is for keypoints of the same name, where the
    file is known to be for another skeleton (see other_keypoints.py); otherwise they start anew.

    Raises UserError when it cannot be read, an array has the wrong shape, or no array has a variable's name: the file
    is another network's.

    read: what read_with_metadata gave for the file, if it has been read.
    """
    weights, metadata = read or read_with_metadata(path)
    other_file = 'give a file of %s with %s=PATH, or --pretrained=none instead' % (network.name, flag)
    shapes = {variable.op.name: tuple(variable.shape.as_list()) for variable in network.variables}
    weights = vgg19.converted(slim_mobilenet.converted(weights, shapes))
    names = set(weights)
    values, wrong = {}, {}
    for name, shape in shapes.items():
        if name not in names:
            continue
        value = weights[name]
        if value.shape != shape:
            wrong[name] = '%s is %s in the file and %s in %s' % (name, value.shape, shape, network.name)
        else:
            values[name] = checked_values(value, name, path)
    reinitialized, kept = [], []
    skeleton = skeleton_of(path, metadata)
    others = bool(wrong) or skeleton is not None and not skeleton.finds_the_same(network.skeleton)
    if others and skeleton is not None:
        kept, changed = _of_other_keypoints(network, weights, names, shapes, skeleton)
        values.update(changed)
        wrong = {name: text for name, text in wrong.items() if name not in changed}
    if set(wrong) <= set(network.skeleton_variables) and len(wrong) < len(network.variables) and values:
        reinitialized = sorted(set(network.skeleton_variables) & names) if others and not kept else []
        for name in reinitialized:
            values.pop(name, None)
        wrong = {}
    if wrong:
        more = ' (and %d more)' % (len(wrong) - 3) if len(wrong) > 3 else ''
        raise UserError('%s does not fit: %s%s; %s' % (path, '; '.join(list(wrong.values())[:3]), more, other_file))
    _check_batch_norm(network, values, path)
    if not values:
        raise UserError('%s has no variable of %s (it has %s, ...); %s'
                        % (path, network.name, ', '.join(sorted(names)[:3]), other_file))
    return Match(network, path, values, [name for name in sorted(names - set(values))
                                         if name not in reinitialized and not _is_training_state(name, values)],
                 reinitialized, kept)


def _of_other_keypoints(network, weights, names, shapes, skeleton):
    """([name of a part whose maps are kept], {name of a variable: its value}) of weights for another Skeleton; nothing
    where no part has the same name, or a shape is not what it has to be."""
    channels = other_keypoints.common_channels(network.skeleton, skeleton)
    kept = [name for name, channel in zip(network.skeleton.parts, channels.heat) if channel >= 0]
    values = {name: other_keypoints.converted(name, checked_values(weights[name], name, 'the file'), shapes[name], role,
                                              channels, skeleton)
              for name, role in network.skeleton_variables.items() if name in names}
    if not kept or any(value is None for value in values.values()):
        return [], {}
    return kept, values


def checked_values(value, name, path):
    """An array of weights as float32. Raises UserError, which names it, when it holds anything but finite numbers."""
    if value.dtype.kind not in 'fiu':
        raise UserError('%s: %s holds %s, not numbers; get the file again' % (path, name, value.dtype))
    value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        raise UserError('%s: %s holds NaN or infinity; take other weights, such as an earlier checkpoint'
                        % (path, name))
    return value


def _check_batch_norm(network, values, path):
    """Weights into which their batch norm was folded would be normalized twice."""
    for name in [v.op.name for v in network.variables if v.op.name.endswith('/BatchNorm/beta')
                 and v.op.name not in values]:
        if re.sub(r'BatchNorm/.*', 'weights', name) in values:
            raise UserError('%s has the weights of %s without its batch norm, which was folded into them; give a '
                            'file from before that step (graph_frozen.pb, or the checkpoint)'
                            % (path, name.split('/BatchNorm')[0]))


def _is_training_state(name, values):
    """Counters, and slots of an optimizer or moving average, which are named after their variable."""
    return (name in ('global_step', 'beta1_power', 'beta2_power')
            or any(name[:i] in values for i, c in enumerate(name) if c == '/'))


def is_weights_file(path):
    """Whether it is a file of weights other than a checkpoint."""
    return os.path.isfile(path) and os.path.splitext(path)[1].lower() in ('.npy',) + tuple(FORMATS)


def find_checkpoint(path):
    """The prefix of a checkpoint, given as prefix, as one of its files or as the folder of which it is the newest.

    Another file of weights (is_weights_file) is returned as it is.
    """
    if is_weights_file(path):
        return path
    if os.path.isdir(path):
        prefix = newest_checkpoint(path)
        if prefix is None:
            raise UserError('no checkpoint in the folder %s; give the folder that train.py wrote with --modelpath'
                            % path)
        return prefix
    for prefix in (path, os.path.splitext(path)[0]):
        if os.path.isfile(prefix + '.index'):
            return prefix
    raise UserError('no checkpoint %s; give its prefix, as in model-1000 for model-1000.index, or its folder' % path)


def read_weights(path):
    """A weights file -> Mapping {variable name: array}. Arrays of a checkpoint are read when they are asked for.

    Raises UserError for a file that is missing, broken, of another kind, or a pickle of more than arrays.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path):
    """The same, and what a .npy file says about itself (take_metadata); {} for other files."""
    if os.path.isdir(path):
        return _Checkpoint(find_checkpoint(path)), {}
    if os.path.isfile(path):
        with open(path, 'rb') as file:
            if is_npy(file):
                weights = read_npy(file, path)
                metadata = take_metadata(weights, path)
                return weights, metadata
        if path.endswith('.npy'):
            raise UserError('%s is not a .npy file: it may be a broken download, get it again' % path)
        suffix = os.path.splitext(path)[1].lower()
        if suffix in FORMATS:
            return importlib.import_module('.formats.' + FORMATS[suffix], __package__).read(path), {}
    find_start(None, path)
    return _Checkpoint(checkpoint_prefix(path)), {}


class _Checkpoint(Mapping):
    """A checkpoint's variables: the moving average of a variable where there is one, which is the better network. Those
    of step 0 are left out: the first step makes them."""

    def __init__(self, path):
        from .tensorflow import tf
        check_tensorflow_path(path, 'the checkpoint')
        self.path, self._tf_error = path, tf.errors.OpError
        self.reader = self._read(tf.train.NewCheckpointReader, path)
        self.shapes = self._read(self.reader.get_variable_to_shape_map)
        self._averages = 'global_step' not in self.shapes or self._read(self.reader.get_tensor, 'global_step') > 0

    def __getitem__(self, name):
        if name not in self.shapes:
            raise KeyError(name)
        average = '%s/%s' % (name, AVERAGE)
        stored = average if average in self.shapes and self._averages else name
        return np.asarray(self._read(self.reader.get_tensor, stored))

    def __iter__(self):
        return (name for name in self.shapes if not name.endswith('/' + AVERAGE))

    def __len__(self):
        return sum(1 for _ in self)

    def _read(self, call, *args):
        try:
            return call(*args)
        except (self._tf_error, RuntimeError, ValueError, LookupError) as error:  # TF 1 and 2 differ in which.
            raise UserError('%s cannot be read as a checkpoint or .npy file: it is damaged, or none (%s); take another '
                            'one' % (self.path, error))


def skeleton_of(path, metadata=None):
    """The Skeleton that weights were trained for, as their file or the run that they are in says; else None.

    metadata: what the file says about itself (npy.take_metadata), where it has been read already.
    Raises UserError when the file is a .npy and cannot be read.
    """
    text = (_npy_metadata(path) if metadata is None else metadata).get('skeleton')
    if text:
        return parse_skeleton(text, path)
    for run_file, run in _runs_around(path):
        try:
            return parse_skeleton(run['skeleton'], run_file)
        except (UserError, KeyError, TypeError):
            continue
    return None


def model_of(path):
    """The name of the network whose weights these are, in the same way. Raises as skeleton_of does."""
    names = [_npy_metadata(path).get('model')]
    names += [run['flags'].get('model') for _, run in _runs_around(path) if isinstance(run.get('flags'), dict)]
    return next((name for name in names if name in NAMES), None)


def _npy_metadata(path):
    """What a .npy file of scripts/export_weights.py says about itself: {'model': ..., 'skeleton': JSON}, or less."""
    if not os.path.isfile(path) or not path.lower().endswith('.npy'):
        return {}
    with open(path, 'rb') as file:
        return take_metadata(read_npy(file, path), path) if is_npy(file) else {}


def _runs_around(path):
    """[(path, content)] of the run.json in a checkpoint's folder and in the one above, as those are there."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    runs = []
    for run_file in (os.path.join(folder, RUN_FILE), os.path.join(os.path.dirname(os.path.abspath(folder)), RUN_FILE)):
        try:
            with open(run_file, encoding='utf-8') as file:
                run = json.load(file)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(run, dict):
            runs.append((run_file, run))
    return runs


def named_checkpoints(folder):
    """The prefixes that the file `checkpoint` of a folder names, the latest last; [] when it is missing or damaged.

    tf.train.get_checkpoint_state raises ValueError and UnicodeDecodeError for damaged ones.
    """
    try:
        with open(os.path.join(folder, STATE_FILE), 'rb') as file:
            text = file.read(MAX_STATE_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return []
    names = dict.fromkeys(re.findall(r'^all_model_checkpoint_paths: "([^"\0]+)"', text, re.MULTILINE))
    latest = re.search(r'^model_checkpoint_path: "([^"\0]+)"', text, re.MULTILINE)
    if latest is None:
        return []
    names.pop(latest.group(1), None)
    return [os.path.join(folder, name) for name in list(names) + [latest.group(1)]]


def newest_checkpoint(folder):
    """The prefix of the checkpoint that a folder's file `checkpoint` names, or else of the newest there; or None."""
    named = named_checkpoints(folder)
    if named and os.path.isfile(named[-1] + '.index'):
        return named[-1]
    # The file is missing, or names files that are elsewhere now.
    prefixes = [os.path.join(folder, name)[:-len('.index')] for name in os.listdir(folder) if name.endswith('.index')]
    return max(prefixes, key=lambda prefix: os.path.getmtime(prefix + '.index')) if prefixes else None


def checkpoint_prefix(path):
    """The prefix of a checkpoint, also when one of its files was given."""
    return re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
