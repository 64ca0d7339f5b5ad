"""Weights of a network for some keypoints, as those of the same network for others.

The parts and limbs that both have, by name, keep their maps: later stages do not see those of new ones at first.
"""
import collections

import numpy as np

from annotations.common_keypoints import same_name

READS, HEAT, PAF = 'reads', 'heat', 'paf'  # what a layer does with maps: it reads all of them, or makes one kind

# For each channel of the new network that of the old one, or -1: int64 arrays.
Channels = collections.namedtuple('Channels', 'heat paf')


def common_channels(new, old):
    """Channels of two Skeletons."""
    parts = {same_name(name): k for k, name in enumerate(old.parts)}
    part_of = [parts.get(same_name(name), -1) for name in new.parts]
    limbs = {limb: k for k, limb in enumerate(old.limbs)}
    limb_of = np.array([limbs.get((part_of[a], part_of[b]), -1) for a, b in new.limbs])
    paf = np.stack([2 * limb_of, 2 * limb_of + 1], axis=1)
    paf[limb_of < 0] = -1
    return Channels(np.array(part_of + [old.background]), paf.reshape(-1))


def converted(name, value, shape, role, channels, old):
    """The weights of one variable for other keypoints, or None where its shape in the file is not what it has to be.

    Args:
        name: of the variable.  value: its float32 array in the file.  shape: that of the new network.
        role: READS, HEAT or PAF.  channels: see common_channels.  old: the Skeleton of the file.
    """
    axis, source = len(shape) - 1, channels.paf if role == PAF else channels.heat
    expected = old.paf_channels if role == PAF else old.heatmap_channels
    if role == READS:
        axis, features = 2, None
        if len(shape) == 4:
            features = shape[2] - len(channels.paf) - len(channels.heat)
            source = np.concatenate([channels.paf, _after(channels.heat, old.paf_channels),
                                     old.map_channels + np.arange(features)])
            expected = old.map_channels + features
    if name.endswith('depthwise_weights') and role != READS or role == READS and len(shape) < 4:
        return value if value.shape == shape else None  # of the hidden channels before an output, or behind a reader
    if value.ndim != len(shape) or value.shape[axis] != expected or len(source) != shape[axis]:
        return None
    new = _initial(name, shape)
    place = (slice(None),) * axis
    new[place + (source >= 0,)] = value[place + (source[source >= 0],)]
    return new


def _after(source, offset):
    return np.where(source < 0, -1, source + offset)


def _initial(name, shape):
    """Where channels start that the file lacks: their maps are empty, and later stages see nothing of them."""
    if name.endswith(('gamma', 'moving_variance')):
        return np.ones(shape, np.float32)
    new = np.zeros(shape, np.float32)
    if name.endswith('depthwise_weights'):  # the layer after it ignores them; were both zero, neither would ever learn
        new[shape[0] // 2, shape[1] // 2] = 1
    return new
