"""Skeletons: the parts, the limbs between them, and how annotated keypoints become parts.

A Skeleton is data and travels by value from the annotation file to the optimized graph. COCO is the one of Cao et al.:
COCO's 17 keypoints and the neck between the shoulders, in the order of the published checkpoints. Any other annotation
file brings its own, in `categories` (`from_category`).
"""
import collections
import json
import re

import numpy as np

from pose_errors import UserError

MAX_PARTS, MAX_LIMBS, MAX_NAME = 512, 2048, 64
# Of keypoints whose spread nobody measured: the mean of COCO's 17 (their OKS sigmas run from 0.025 to 0.107).
DEFAULT_SIGMA = 0.067
# What names call the sides; the longer is the likelier.
SPACE = re.compile(r'[^\S ]')  # white space of other kinds
SIDES = (('left', 'right'), ('l', 'r'))
MAX_NAMED = 20  # keypoints or pairs that one line names

RUN_FILE = 'run.json'  # of training/run_log.py, in a run's folder

_FIELDS = 'name keypoints sigmas parts sources limbs flip_order'


def is_labelled(visibility):
    """Whether a keypoint of this v, a number or an array of them, is labelled: COCO has 1 and 2, others confidences."""
    return visibility > 0


class Skeleton(collections.namedtuple('Skeleton', _FIELDS)):
    """An immutable skeleton.

    Attributes:
        name: of the category, 'person'.
        keypoints: names of the keypoints in the annotation file's order.  sigmas: their OKS sigmas, as floats.
        parts: names of the network's parts; heatmap channel k is part k, the last one the background.
        sources: for each part the keypoints that it is the mean of (one, or the shoulders for COCO's neck).
        limbs: pairs of parts; limb k has the PAF channels 2k (x) and 2k + 1 (y), pointing from the first to the second.
        flip_order: parts[flip_order[k]] takes the place of part k in a mirrored image.
    """
    __slots__ = ()

    background = property(lambda self: len(self.parts))  # the heatmap's last channel
    heatmap_channels = property(lambda self: len(self.parts) + 1)
    paf_channels = property(lambda self: 2 * len(self.limbs))
    map_channels = property(lambda self: self.heatmap_channels + self.paf_channels)

    @property
    def parts_of_channels(self):
        """The parts that each channel of the output, heat then PAF, shows; the background shows all: bool (channels,
        parts)."""
        parts = np.eye(len(self.parts), dtype=bool)
        limbs = parts[np.array(self.limbs)].any(axis=1)
        return np.concatenate([parts, [[True] * len(parts)], np.repeat(limbs, 2, axis=0)])

    def labelled_channels(self, labelled):
        """Which channels of the output labels of these parts, bool (..., parts), tell: bool (..., channels)."""
        return ~(~np.asarray(labelled, bool) @ self.parts_of_channels.T)

    @property
    def part_of_keypoint(self):
        """For each keypoint the part that is this keypoint alone."""
        return tuple(self.sources.index((k,)) for k in range(len(self.keypoints)))

    def joints(self, keypoints):
        """Keypoints (people, keypoints, 3) as x, y, v -> float32 (people, parts, 2), NaN where not labelled."""
        keypoints = np.asarray(keypoints, np.float64).reshape(-1, len(self.keypoints), 3)
        labelled = np.where(is_labelled(keypoints[:, :, 2:]), keypoints[:, :, :2], np.nan)
        labelled[~np.isfinite(labelled).all(axis=2)] = np.nan
        # Most parts are one keypoint: their first source. The mean of the others is NaN unless all are labelled.
        joints = labelled[:, [source[0] for source in self.sources]]
        for part, source in enumerate(self.sources):
            if len(source) > 1:
                joints[:, part] = sum(labelled[:, k] for k in source) / len(source)
        return joints.astype(np.float32)

    def finds_the_same(self, other):
        """Whether a network for one of them has the same outputs as one for the other: parts and limbs are equal."""
        return (self.parts, self.limbs) == (other.parts, other.limbs)

    def to_json(self):
        """One line of JSON, the same for equal skeletons."""
        return json.dumps(self._asdict(), sort_keys=True)


def parse_skeleton(text, origin):
    """The inverse of Skeleton.to_json, for text from anywhere. Raises UserError, which names `origin`."""
    try:
        fields = json.loads(text)
        assert set(fields) == set(_FIELDS.split())
        skeleton = Skeleton(
            name=_names([fields['name']])[0], keypoints=_names(fields['keypoints']), parts=_names(fields['parts']),
            sigmas=tuple(float(sigma) for sigma in fields['sigmas']),
            sources=tuple(_indices(source, len(fields['keypoints'])) for source in fields['sources']),
            limbs=tuple(_indices(limb, len(fields['parts'])) for limb in fields['limbs']),
            flip_order=_indices(fields['flip_order'], len(fields['parts'])))
        parts = len(skeleton.parts)
        assert len(skeleton.sigmas) == len(skeleton.keypoints) <= MAX_PARTS and 2 <= parts <= MAX_PARTS
        assert all(0 < sigma < 10 for sigma in skeleton.sigmas)
        assert len(skeleton.sources) == len(skeleton.flip_order) == parts and all(map(len, skeleton.sources))
        assert sorted(skeleton.flip_order) == list(range(parts)) and 1 <= len(skeleton.limbs) <= MAX_LIMBS
        assert all(len(set(limb)) == len(limb) == 2 for limb in skeleton.limbs)
        assert all((k,) in skeleton.sources for k in range(len(skeleton.keypoints)))
    except (AssertionError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError('%s holds no skeleton of this project; make it anew' % origin)
    return skeleton


def skeleton_of_category(category, annotation_file):
    """The Skeleton of an entry of `categories` in an annotation file: COCO's own 17 keypoints give COCO.

    category: {'name', 'keypoints': names, 'skeleton': pairs counted from 1}; also 'sigmas', and who swaps in a
        mirrored image: 'flip_pairs', as 'skeleton' or of names, or 'flip_idx', a number from 0 for each keypoint.

    Raises UserError for names or limbs that make no skeleton; the line names the file and what to mend there.
    """
    def refuse(problem):
        raise UserError('the category %.60r of %s %s' % (category.get('name'), annotation_file, problem))

    try:
        keypoints = _names([SPACE.sub(' ', name) for name in category.get('keypoints')])
    except (AssertionError, TypeError):
        refuse('has no list of names in "keypoints", of 1 to %d printable characters each; write one for each keypoint'
               % MAX_NAME)
    try:
        name, = _names([SPACE.sub(' ', category.get('name'))])
    except (AssertionError, TypeError):
        name = 'object'
    if len(set(keypoints)) < len(keypoints):
        refuse('has two keypoints of the same name; give each its own')
    if keypoints == COCO_SKELETON.keypoints:
        return COCO_SKELETON
    if not 2 <= len(keypoints) <= MAX_PARTS:
        refuse('has %d keypoints; 2 to %d can be trained' % (len(keypoints), MAX_PARTS))
    pairs = category.get('skeleton')
    if not isinstance(pairs, list) or not pairs:
        refuse('has no limbs in "skeleton"; write pairs of keypoint numbers, counted from 1, that connect all of them')
    try:
        limbs = tuple(_indices([int(k) - 1 for k in pair], len(keypoints)) for pair in pairs)
        assert all(len(set(limb)) == len(limb) == 2 for limb in limbs) and len(limbs) <= MAX_LIMBS
    except (AssertionError, ValueError, TypeError):
        refuse('has something else in "skeleton" than pairs of different keypoint numbers from 1 to %d'
               % len(keypoints))
    limbs = tuple(dict.fromkeys(limb for limb in limbs if limb[::-1] not in limbs[:limbs.index(limb)]))
    alone = [keypoints[k] for k in range(len(keypoints)) if not any(k in limb for limb in limbs)]
    if alone:
        refuse('has no limb in "skeleton" that reaches %s; connect it' % ', '.join(alone[:5]))
    pieces = connected(keypoints, limbs)
    if len(pieces) > 1:
        one, other = (', '.join(names[:5]) for names in pieces[:2])
        refuse('has limbs in "skeleton" that leave %s apart from %s; connect them by a limb' % (other, one))
    try:
        flip_order = _given_flip_order(category, keypoints) or flip_order_of(keypoints)
    except (AssertionError, ValueError, TypeError):
        refuse('has something else in "flip_pairs" than pairs of keypoints, or in "flip_idx" than a number from 0 for '
               'each of them')
    return Skeleton(name, keypoints, _sigmas(category, len(keypoints)), keypoints,
                    tuple((k,) for k in range(len(keypoints))), limbs, flip_order)


def components(count, limbs):
    """For each of so many parts a number that is the same for those that limbs, pairs of indices, connect."""
    component = list(range(count))
    for a, b in limbs:
        component = [component[a] if number == component[b] else number for number in component]
    return component


def connected(names, limbs):
    """The names of parts as lists of those that limbs connect."""
    component = components(len(names), limbs)
    return [[name for name, k in zip(names, component) if k == number] for number in dict.fromkeys(component)]


def flip_order_of(names):
    """For each name, as ('nose', 'left_eye', 'right_eye'), the index of its other side's name, as (0, 2, 1); its own
    where it has no side or the other side is missing."""
    index = {name: k for k, name in enumerate(names)}
    others = [next((index[other] for other in _other_sides(name) if other in index), index[name]) for name in names]
    return tuple(other if others[other] == k else k for k, other in enumerate(others))


def flip_notes(skeleton):
    """(lines that name what swaps in mirrored images, lines on what is likely a mistake there); none for COCO's."""
    if skeleton == COCO_SKELETON:
        return [], []
    parts, order = skeleton.parts, skeleton.flip_order
    pairs = ['%s - %s' % (parts[k], parts[other]) for k, other in enumerate(order) if k < other]
    more = ['%d more pairs' % (len(pairs) - MAX_NAMED)] if len(pairs) > MAX_NAMED else []
    swaps = ['mirrored images swap ' + ', '.join(pairs[:MAX_NAMED] + more)] if pairs else []
    sides = {side for pair in SIDES for side in pair}
    alone = [name for k, name in enumerate(parts) if order[k] == k and sides & set(map(str.lower, name_tokens(name)))]
    doubt = '%s: there is no keypoint of the other side' % ', '.join(alone[:MAX_NAMED]) if alone \
        else '' if pairs else 'no keypoint has another side'
    remedy = '; where this is wrong, write the pairs that swap in mirrored images into the category, as "flip_pairs"'
    return swaps, [doubt + remedy] if doubt else []


def _given_flip_order(category, keypoints):
    """What the category itself says, None when it says nothing. Raises AssertionError, ValueError or TypeError."""
    order = list(range(len(keypoints)))
    if category.get('flip_idx') is not None:
        order = list(_indices(category['flip_idx'], len(keypoints)))
        assert len(order) == len(keypoints)
    elif category.get('flip_pairs') is not None:
        pairs = [[keypoints.index(k) if isinstance(k, str) else k for k in pair] for pair in category['flip_pairs']]
        numbered = not any(isinstance(k, str) for pair in category['flip_pairs'] for k in pair)
        from_one = numbered and not any(0 in pair for pair in pairs)
        for first, second in (_indices([k - from_one for k in pair], len(keypoints)) for pair in pairs):
            order[first], order[second] = second, first
    else:
        return None
    assert all(order[other] == k for k, other in enumerate(order))
    return tuple(order)


def name_tokens(name):
    """The words of a name, as capitals and other characters part them, and what is between: Hip, ' (', L, ')'."""
    return re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+', name)


def _other_sides(name):
    """What the other side of a name may be called: with its words changed, then with its beginning or its end."""
    tokens = name_tokens(name)
    for left, right in SIDES:
        other = {left: right, right: left}
        swapped = [_in_case_of(token, other.get(token.lower(), token)) for token in tokens]
        changed = [k for k, token in enumerate(swapped) if token != tokens[k]]
        if changed:
            yield ''.join(swapped)
        for k in changed:
            yield ''.join(tokens[:k] + [swapped[k]] + tokens[k + 1:])
    for old, new in (pair[::step] for pair in SIDES for step in (1, -1)):
        start, end = name[:len(old)], name[-len(old):]
        if start.lower() == old:
            yield _in_case_of(start, new) + name[len(old):]
        if end.lower() == old:
            yield name[:-len(old)] + _in_case_of(end, new)


def _in_case_of(example, word):
    """A word in capitals, or with one, as the example."""
    if example.isupper():
        return word.upper()
    return word.capitalize() if example[:1].isupper() else word


def _sigmas(category, count):
    """The category's own sigmas where they are usable, else DEFAULT_SIGMA for all."""
    try:
        sigmas = tuple(map(float, category.get('sigmas')))
    except (ValueError, TypeError):
        sigmas = ()
    return sigmas if len(sigmas) == count and all(0 < sigma < 10 for sigma in sigmas) else (DEFAULT_SIGMA,) * count


def _names(names):
    assert isinstance(names, (list, tuple))
    assert all(isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() for name in names)
    return tuple(names)


def _indices(values, limit):
    assert isinstance(values, (list, tuple)) and all(type(value) is int and 0 <= value < limit for value in values)
    return tuple(values)


COCO_SKELETON = Skeleton(
    name='person',
    keypoints=('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder',
               'left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee',
               'right_knee', 'left_ankle', 'right_ankle'),
    sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089),
    parts=('Nose', 'Neck', 'RShoulder', 'RElbow', 'RWrist', 'LShoulder', 'LElbow', 'LWrist', 'RHip', 'RKnee', 'RAnkle',
           'LHip', 'LKnee', 'LAnkle', 'REye', 'LEye', 'REar', 'LEar'),
    sources=((0,), (5, 6), (6,), (8,), (10,), (5,), (7,), (9,), (12,), (14,), (16,), (11,), (13,), (15,), (2,), (1,),
             (4,), (3,)),
    limbs=((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 2), (2, 3), (3, 4), (2, 16), (1, 5), (5, 6),
           (6, 7), (5, 17), (1, 0), (0, 14), (0, 15), (14, 16), (15, 17)),
    flip_order=(0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16))
