"""Keypoints of several data sets, which meet by name: left_knee, LKnee and "Knee (L)" are one."""
import collections

import numpy as np

from pose_errors import UserError

from .skeleton import MAX_LIMBS, MAX_PARTS, SIDES, components, connected, is_labelled, name_tokens


def same_name(name):
    """What is the same for two names of one keypoint: its side, and its other words."""
    side, words = '', []
    for token in map(str.lower, name_tokens(name)):
        sides = [pair[0] for pair in zip(*SIDES) if token in pair]
        if sides:
            side = sides[0]
        else:
            words.append(''.join(filter(str.isalnum, token)))
    return side, ''.join(words)


def common_keypoints(skeleton, other):
    """For each keypoint of a Skeleton the index of another one's keypoint of the same name, or -1: int64 (keypoints,).

    Each keypoint of the other one goes to at most one.
    """
    index = {}
    for k, name in enumerate(other.keypoints):
        index.setdefault(same_name(name), k)
    return np.array([index.pop(same_name(name), -1) for name in skeleton.keypoints], np.int64)


def labelled_parts(skeleton, common):
    """Which parts of a Skeleton annotations for another one label, which has these common_keypoints: bool (parts,)."""
    return np.array([all(common[k] >= 0 for k in source) for source in skeleton.sources])


def converted(keypoints, common):
    """Keypoints (x, y, v, x, y, v ...) of one person as those of another skeleton, see common_keypoints; 0 where it has
    none. Returns (the list, how many of them are labelled)."""
    rows = np.array(keypoints + [0, 0, 0], np.float64).reshape(-1, 3)[common]
    return rows.reshape(-1).tolist(), int(is_labelled(rows[:, 2]).sum())


def merge_skeletons(skeleton, other, origin):
    """A Skeleton with the keypoints that another one has besides, each a part, and the limbs that reach them.

    Raises UserError, which names origin, where they have no keypoint in common: no limb would connect the two.
    """
    common = common_keypoints(skeleton, other)
    if (common < 0).all():
        raise UserError('%s has no keypoint of the same name as the other data (%s; there: %s); rename some in its '
                        'categories' % (origin, ', '.join(other.keypoints[:5]), ', '.join(skeleton.keypoints[:5])))
    # A part that is a mean, as COCO's neck, stands for a keypoint of its name.
    means = {same_name(name): part for part, name in enumerate(skeleton.parts) if len(skeleton.sources[part]) > 1}
    new = [(k, same_name(name)) for k, name in enumerate(other.keypoints) if k not in common]
    added = [k for k, name in new if name not in means]
    parts, first = skeleton.parts + tuple(other.keypoints[k] for k in added), len(skeleton.parts)
    twice = [name for name, count in collections.Counter(map(same_name, parts)).items() if count > 1]
    if twice:
        raise UserError('%s: %s are one name for two keypoints; rename one in its categories' % (
            origin, ' and '.join(part for part in parts if same_name(part) == twice[0])))
    if len(parts) > MAX_PARTS:
        raise UserError('%s: %d parts together; at most %d can be trained' % (origin, len(parts), MAX_PARTS))
    # From the other one's parts to those of both; a part that is a mean of keypoints has none.
    part_of = {other.part_of_keypoint[k]: first + number for number, k in enumerate(added)}
    part_of.update((other.part_of_keypoint[k], skeleton.part_of_keypoint[own])
                   for own, k in enumerate(common) if k >= 0)
    part_of.update((other.part_of_keypoint[k], means[name]) for k, name in new if name in means)
    limbs = [(part_of[a], part_of[b]) for a, b in other.limbs
             if a in part_of and b in part_of and max(part_of[a], part_of[b]) >= first]
    limbs += _instead_of_means(other, part_of, parts, skeleton.limbs + tuple(limbs))
    if len(skeleton.limbs) + len(limbs) > MAX_LIMBS:
        raise UserError('%s: more than %d limbs together' % (origin, MAX_LIMBS))
    pieces = connected(parts, skeleton.limbs + tuple(limbs))
    if len(pieces) > 1:
        one, other_piece = (', '.join(names[:5]) for names in pieces[:2])
        raise UserError('%s: no limb connects %s with %s; give the data with more keypoints first, or add a limb to '
                        'its skeleton' % (origin, other_piece, one))
    flip_order = list(range(len(parts)))
    flip_order[:first] = skeleton.flip_order
    for part in (other.part_of_keypoint[k] for k in added):
        twin = part_of.get(other.flip_order[part], part_of[part])
        if flip_order[twin] == twin:  # of the base, too, if its other side was missing there
            flip_order[part_of[part]], flip_order[twin] = twin, part_of[part]
    return skeleton._replace(
        keypoints=skeleton.keypoints + parts[first:], parts=parts, limbs=skeleton.limbs + tuple(limbs),
        sigmas=skeleton.sigmas + tuple(other.sigmas[k] for k in added),
        sources=skeleton.sources + tuple((len(skeleton.keypoints) + number,) for number in range(len(added))),
        flip_order=tuple(flip_order))


def _instead_of_means(other, part_of, parts, limbs):
    """Limbs to a keypoint that a mean is made of, of the same side if possible, for those of a Skeleton to that mean,
    which the merged one lacks: as far as without them parts would lie apart.

    part_of: {part of the other Skeleton: of the merged one}.  parts: names of the merged one's.  limbs: that it has.
    """
    added = []
    for limb in other.limbs:
        for end, mean in (limb, limb[::-1]):
            if end in part_of and mean not in part_of:
                side = same_name(other.parts[end])[0]
                for k in sorted(other.sources[mean], key=lambda k: same_name(other.keypoints[k])[0] != side):
                    start = part_of.get(other.part_of_keypoint[k])
                    component = components(len(parts), limbs + tuple(added))
                    if start is not None and component[start] != component[part_of[end]]:
                        added.append((start, part_of[end]))
    return added
