"""Weights of a .caffemodel, as the authors of OpenPose publish theirs (pose_iter_440000.caffemodel), without Caffe.

The file is one protobuf message, NetParameter of Caffe's public caffe.proto. Of its fields these matter:

    NetParameter      layers = 2 (V1LayerParameter, before 2014), layer = 100 (LayerParameter)
    LayerParameter    name = 1, type = 2 (a string), blobs = 7
    V1LayerParameter  name = 4, type = 5 (a number), blobs = 6
    BlobProto         num, channels, height, width = 1 .. 4 (before 2014), data = 5, shape = 7, double_data = 8
    BlobShape         dim = 1

A convolution has the blobs weights (out, in, height, width) and, unless it has no bias, biases (out,). Caffe's
convolution is a correlation as TensorFlow's is, so that only the axes have to be turned. The authors' network takes BGR
pixels as x / 256 - 0.5, which is what networks.network_cmu does: the values are used as they are. (VGG-19 as trained on
ImageNet takes others: vgg19.py.)
"""
import collections
import mmap

import numpy as np

from pose_errors import UserError

# Field of a kind of layer in NetParameter: its fields name, type and blobs, and the type of a convolution.
LAYERS = {100: (1, 2, 7, b'Convolution'), 2: (4, 5, 6, 4)}
DATA, SHAPE, DOUBLE_DATA = 5, 7, 8
OLD_AXES = (1, 2, 3, 4)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
MAX_DEPTH = 8  # axes of a blob


class _Broken(Exception):
    """The bytes are no such message."""


def read(path):
    """The convolutions of a .caffemodel as {'conv1_1/weights': (kh, kw, in, out), 'conv1_1/biases': (out,), ...},
    float32, or float64 where the file has doubles. Raises UserError."""
    try:
        with open(path, 'rb') as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: mmap cannot map an empty file
        raise UserError('cannot read %s: %s' % (path, getattr(error, 'strerror', None) or error))
    weights = {}
    try:
        for number, layer in _fields(content):
            if number in LAYERS and isinstance(layer, memoryview):
                weights.update(_layer(layer, *LAYERS[number]))
    except (_Broken, TypeError, ValueError) as error:
        raise UserError('%s is no .caffemodel, or a part of one (%s); get it again' % (path, error))
    if not weights:
        raise UserError('%s has no convolution in it; give the .caffemodel of a network (not its .prototxt)' % path)
    return weights


def _layer(message, name_field, type_field, blobs_field, convolution):
    fields = _grouped(message)
    names = [bytes(value).decode('utf-8') for value in fields[name_field] if isinstance(value, memoryview)]
    if not any(names[-1:]) or not fields[blobs_field] or fields[type_field][-1:] != [convolution]:
        return
    name, blobs = names[-1], [_blob(blob) for blob in fields[blobs_field][:2]]
    if blobs[0].ndim != 4:
        raise _Broken('layer %s is a convolution of %d axes' % (name, blobs[0].ndim))
    yield name + '/weights', blobs[0].transpose(2, 3, 1, 0).copy()
    if len(blobs) > 1:
        if blobs[1].size != len(blobs[0]):
            raise _Broken('layer %s has %d biases for %d filters' % (name, blobs[1].size, len(blobs[0])))
        yield name + '/biases', blobs[1].reshape(-1).copy()


def _blob(message):
    """A BlobProto -> array."""
    fields = _grouped(message)
    if fields[SHAPE]:
        shape = []
        for value in _grouped(fields[SHAPE][-1])[1]:
            position, packed = 0, not isinstance(value, int)
            while packed and position < len(value):
                size, position = _varint(value, position)
                shape.append(size)
            if not packed:
                shape.append(value)
    else:
        shape = [([1] + [size for size in fields[axis] if isinstance(size, int)])[-1] for axis in OLD_AXES]
    dtype, chunks = ('<f8', fields[DOUBLE_DATA]) if fields[DOUBLE_DATA] else ('<f4', fields[DATA])
    # Floats may also come one by one, or in several pieces.
    chunk = chunks[0] if len(chunks) == 1 else b''.join(chunks)
    size = np.prod(np.array(shape, object)) * np.dtype(dtype).itemsize  # in Python's integers, which do not overflow
    if len(shape) > MAX_DEPTH or len(chunk) != size:
        raise _Broken('a blob of shape %s has %d bytes' % (tuple(shape[:MAX_DEPTH]), len(chunk)))
    return np.frombuffer(chunk, dtype).reshape(shape)


def _grouped(message):
    """{number: [value, ...]} of the fields of a message."""
    fields = collections.defaultdict(list)
    for number, value in _fields(message):
        fields[number].append(value)
    return fields


def _fields(message):
    """The fields of a protobuf message, a memoryview: (number, an int or a memoryview)."""
    if not isinstance(message, memoryview):
        raise _Broken('a number where a message is expected')
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire in (VARINT, BYTES):
            value, position = _varint(message, position)
        elif wire not in (FIXED32, FIXED64):
            raise _Broken('wire type %d at byte %d' % (wire, position))
        if wire != VARINT:
            size = value if wire == BYTES else 4 if wire == FIXED32 else 8
            if size > end - position:
                raise _Broken('it ends inside a field')
            value, position = message[position:position + size], position + size
        yield tag >> 3, value


def _varint(message, position):
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise _Broken('it ends inside a number')
        byte = message[position]
        position += 1
        value |= (byte & 0x7f) << shift
        if byte < 0x80:
            return value, position
        shift += 7
