"""Weights of a Keras .h5 file (Keras 1 and 2: save_weights or save), as the Keras port of OpenPose has them.

A dataset lies at LAYER/.../LEAF, where LEAF is kernel:0 or LAYER_W:0 (Keras 1), bias:0 or LAYER_b:0, and so on; in a
file of a whole model the layers are below model_weights. Layers of the port bear the names of the original's, and Keras
keeps kernels as TensorFlow does: (height, width, in, out). Only datasets are read; the description of the model, which
may hold code, is not looked at.
"""
import functools
import re

from pose_errors import UserError

from . import MAX_ELEMENTS, LazyArrays

LEAVES = {'kernel': 'weights', 'W': 'weights', 'bias': 'biases', 'b': 'biases', 'depthwise_kernel': 'depthwise_weights',
          'beta': 'BatchNorm/beta', 'gamma': 'BatchNorm/gamma', 'moving_mean': 'BatchNorm/moving_mean',
          'moving_variance': 'BatchNorm/moving_variance'}
LEAF = re.compile(r'(?:^|_)(%s)(?::\d+)?$' % '|'.join(sorted(LEAVES, key=len, reverse=True)))


def read(path):
    """The weights of a Keras .h5 file: Mapping {'conv1_1/weights': array, ...}. Raises UserError."""
    try:
        import h5py
    except ImportError:
        raise UserError('%s needs the package h5py: pip install h5py' % path)
    try:
        file = h5py.File(path, 'r')
        datasets = {}

        def add(name, item):  # neither soft nor external links are visited
            if isinstance(item, h5py.Dataset):
                variable = _variable(name)
                if variable:
                    datasets[variable] = item
        file.visititems(add)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError('%s cannot be read as HDF5: %s; get it again' % (path, error))
    if not datasets:
        raise UserError('%s has no layers with kernels in it; give the .h5 of Keras\' save_weights (of Keras 1 or 2: '
                        'files of Keras 3 do not name their weights)' % path)
    return LazyArrays(datasets, functools.partial(_array, path))


def _variable(name):
    """'model_weights/conv1_1/conv1_1/kernel:0' -> 'conv1_1/weights'; None for what is no weight."""
    parts = name.split('/')
    parts = parts[1:] if parts[0] == 'model_weights' else parts
    leaf = LEAF.search(parts[-1]) if len(parts) > 1 and parts[0] != 'optimizer_weights' else None
    return '%s/%s' % (parts[0], LEAVES[leaf.group(1)]) if leaf else None


def _array(path, name, dataset):
    if dataset.dtype.kind != 'f' or dataset.size > MAX_ELEMENTS or dataset.external:
        raise UserError('%s: %s is not an array of weights (%s %s)' % (path, name, dataset.dtype, dataset.shape))
    try:
        return dataset[()]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError('%s is broken (%s: %s); get it again' % (path, name, error))
