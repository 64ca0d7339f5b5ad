"""Maps -> people.

`decode_people` is the method of Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (CVPR
2017, section 2): peaks of the heatmaps, line integrals over the PAFs, a greedy matching for each limb, and people put
together from the limbs. It works on the grid of the maps; no map is enlarged.
"""
import cv2
import numpy as np

from annotations.skeleton import COCO_SKELETON
from pose_errors import UserError

PEAK_THRESHOLD = 0.1
LABEL_SIGMA = 7.0  # of pose_labels.render_heatmaps, in input pixels
LOG_FLOOR = 1e-3  # below the labels' cutoff
MAX_PEAKS_PER_PART = 100  # bounds the time on the noise of an untrained network
LIMB_SAMPLES = 10  # points of a line integral
LIMB_THRESHOLD = 0.05  # on the PAF along the limb ...
LIMB_SUPPORT = 0.8  # ... for at least this share of the points
# Three of the points: of a limb at most 2 in 10 are below the threshold, so at least one of these is not.
PROBES = np.linspace(0, 1, LIMB_SAMPLES)[[2, 4, 7]]
CHUNK = 512  # pairs of peaks
MIN_PARTS = 3
MAX_GAP = 1.5  # between the pieces of a person around an absent part, in lengths of the pieces' longest limb


def decode_people(maps, stride, min_parts=MIN_PARTS, skeleton=COCO_SKELETON, threshold=PEAK_THRESHOLD):
    """Find the people in the maps of one image.

    Args:
        maps: float (h, w, skeleton.map_channels), heatmaps, then PAFs, as the network gives them.
        stride: input pixels per cell.  min_parts: people with fewer parts are left out.  threshold: of a part's peak.
    Returns:
        keypoints: float32 (people, parts, 3) of x, y in network-input pixels and the peak's score; NaN where absent.
        scores: float32 (people,), best first: the sum over parts and limbs as a share of a complete person's, 0..1, so
            that a few certain parts count less than a whole person.
    Raises UserError: maps of another shape, or with NaN or infinity in them.
    """
    maps, parts = np.asarray(maps, np.float32), len(skeleton.parts)
    min_parts = min(min_parts, parts)
    if maps.ndim != 3 or maps.shape[2] != skeleton.map_channels or not maps.size:
        raise UserError('maps of shape %s instead of (h, w, %d), %d heatmaps and %d PAF channels: give a network of '
                        'this project' % (maps.shape, skeleton.map_channels, skeleton.heatmap_channels,
                                          skeleton.paf_channels))
    if not np.isfinite(maps).all():
        raise UserError('the maps hold NaN or infinity: the network has diverged; take an earlier checkpoint')
    part, position, peak_score = find_peaks(maps[:, :, :parts], stride, threshold)
    limb, start, end, limb_score = score_limbs(part, position, maps[:, :, skeleton.heatmap_channels:], stride,
                                               skeleton.limbs)
    chosen = match_limbs(limb, start, end, limb_score)
    people = assemble_people(part, start[chosen], end[chosen])
    people = join_pieces(people, part, position, skeleton.limbs)
    people = [person for person in people if len(person) >= min_parts]

    keypoints = np.full((len(people), parts, 3), np.nan, np.float32)
    owner = np.full(len(part), -1)
    for number, person in enumerate(people):
        owner[person] = number
        keypoints[number, part[person], :2] = position[person]
        keypoints[number, part[person], 2] = peak_score[person]
    inside = chosen[(owner[start[chosen]] >= 0) & (owner[start[chosen]] == owner[end[chosen]])]
    total = np.bincount(owner[owner >= 0], peak_score[owner >= 0], minlength=len(people))
    total += np.bincount(owner[start[inside]], limb_score[inside], minlength=len(people))
    scores = (total / (parts + len(skeleton.limbs))).astype(np.float32)
    best_first = np.argsort(-scores, kind='stable')
    return keypoints[best_first], scores[best_first]


def least_parts(parts):
    """How many parts of a skeleton of so many a person has at least, to be worth a picture."""
    return min(MIN_PARTS, parts)


def keypoint_lists(keypoints):
    """Keypoints (people, parts, 3) for JSON: each person is a list, x, y, score of each part, 0, 0, 0 where absent."""
    points = np.round(np.nan_to_num(np.asarray(keypoints, np.float64)), 3)
    return [person.ravel().tolist() for person in points]


def find_peaks(heatmaps, stride, threshold=PEAK_THRESHOLD):
    """Local maxima of the heatmaps in their 3x3 neighbourhood, refined to a fraction of a cell.

    The logarithm of a Gaussian is a parabola: the one through a peak and its two neighbours, in each axis, has its
    vertex at the exact centre. Where two cells of a peak are equal, only the first one is taken.

    heatmaps: float32 (h, w, parts).
    Returns part int64 (peaks,), ascending; position float64 (peaks, 2), x and y in input pixels; score float32
    (peaks,).
    """
    heatmaps = np.ascontiguousarray(heatmaps)
    earlier = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.uint8)
    is_peak = ((heatmaps > threshold) & (heatmaps > cv2.dilate(heatmaps, earlier))
               & (heatmaps >= cv2.dilate(heatmaps, earlier[::-1, ::-1].copy())))
    part, row, column = np.nonzero(is_peak.transpose(2, 0, 1))
    score = heatmaps[row, column, part]
    if len(part) > MAX_PEAKS_PER_PART:
        order = np.lexsort((-score, part))
        rank = np.arange(len(part)) - np.searchsorted(part, part)  # part is ascending
        keep = np.sort(order[rank < MAX_PEAKS_PER_PART])
        part, row, column, score = part[keep], row[keep], column[keep], score[keep]

    height, width = heatmaps.shape[:2]
    x = _refine(column, width, score, lambda cell: heatmaps[row, cell, part], stride)
    y = _refine(row, height, score, lambda cell: heatmaps[cell, column, part], stride)
    return part, np.stack([x, y], axis=1), score


def _refine(cell, size, score, value_at, stride):
    """The vertex, along one axis, of the parabola through the logarithms of a peak and its neighbours, in pixels."""
    peak = np.log(score)
    before, after = (np.log(np.maximum(value_at(np.clip(neighbour, 0, size - 1)), LOG_FLOOR))
                     for neighbour in (cell - 1, cell + 1))
    # At the border one neighbour is missing: there the parabola's curvature is taken from the labels' Gaussian.
    curvature = -(stride / LABEL_SIGMA) ** 2
    before = np.where(cell > 0, before, 2 * peak - after + curvature)
    after = np.where(cell < size - 1, after, 2 * peak - before + curvature)
    curvature = before - 2 * peak + after
    offset = (before - after) / (2 * np.minimum(curvature, -1e-6))
    return stride * (cell + np.clip(offset, -0.5, 0.5)) + stride / 2 - 0.5


def score_limbs(part, position, pafs, stride, limbs):
    """Line integrals (Cao et al., equation 10) between all pairs of peaks that could be a limb.

    The PAF is sampled at LIMB_SAMPLES points, bilinearly. Its cell g stands for the input pixel stride * g (the
    heatmap's for stride * g + stride / 2 - 0.5): that is how the labels are made. A limb longer than half the height of
    the picture loses score, as in OpenPose.

    part (peaks,), position (peaks, 2): as from find_peaks.  pafs: float32 (h, w, 2 * limbs).  limbs: pairs of parts.

    Returns limb, start, end: int64 (candidates,), the limb and its two peaks; score: float64 (candidates,), above 0, at
    most about 1. Candidates without the PAF's support are left out.
    """
    height = pafs.shape[0]
    first = np.searchsorted(part, np.arange(np.max(limbs) + 2))
    peaks = np.arange(len(part))
    pairs = [np.meshgrid(k, peaks[first[a]:first[a + 1]], peaks[first[b]:first[b + 1]], indexing='ij')
             for k, (a, b) in enumerate(limbs)]
    limb, start, end = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(3))

    # Most pairs are of two people and have no PAF between them: three points show that.
    probes = integrals(limb, start, end, position, pafs, stride, PROBES)
    good = np.nonzero((probes > LIMB_THRESHOLD).any(axis=1))[0]
    limb, start, end = limb[good], start[good], end[good]
    integrand = integrals(limb, start, end, position, pafs, stride, np.linspace(0, 1, LIMB_SAMPLES))
    length = np.hypot(*(position[end] - position[start]).T)
    score = integrand.mean(axis=1) + np.minimum(0.5 * height * stride / np.maximum(length, 1e-6) - 1, 0)
    good = (score > 0) & ((integrand > LIMB_THRESHOLD).mean(axis=1) >= LIMB_SUPPORT)
    return limb[good], start[good], end[good], score[good]


def integrals(limb, start, end, position, pafs, stride, steps):
    """The PAF along pairs of peaks: float32 (pairs, steps), at the given shares of the way from start to end. A crowd
    has ten thousand pairs; they are done CHUNK at a time: small arrays stay in the processor's cache, and their memory
    need not come anew from the system for each."""
    height, width = pafs.shape[:2]
    limbs = pafs.shape[2] // 2
    cells = pafs.reshape(height * width * limbs, 2)
    result = np.empty((len(limb), len(steps)), np.float32)
    for first in range(0, len(limb), CHUNK):
        chunk = slice(first, first + CHUNK)
        origin = position[start[chunk]]
        vector = position[end[chunk]] - origin
        unit = (vector / np.maximum(np.hypot(vector[:, 0], vector[:, 1]), 1e-6)[:, None]).astype(np.float32)
        grid = (origin[:, None] + np.reshape(steps, (-1, 1)) * vector[:, None]) / stride
        x, y = np.clip(grid[:, :, 0], 0, width - 1), np.clip(grid[:, :, 1], 0, height - 1)
        left, top = x.astype(np.int64), y.astype(np.int64)
        right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
        x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)

        def along(row, column):
            vectors = cells.take((row * width + column) * limbs + limb[chunk, None], axis=0)
            return vectors[:, :, 0] * unit[:, None, 0] + vectors[:, :, 1] * unit[:, None, 1]

        result[chunk] = ((1 - y) * ((1 - x) * along(top, left) + x * along(top, right))
                         + y * ((1 - x) * along(bottom, left) + x * along(bottom, right)))
    return result


def match_limbs(limb, start, end, score):
    """Greedy matching, each peak in at most one limb of a kind: indices of the chosen candidates, best first."""
    taken, chosen = set(), []
    order = np.argsort(-score, kind='stable')
    for index, k, a, b in zip(order.tolist(), limb[order].tolist(), start[order].tolist(), end[order].tolist()):
        if (k, a) not in taken and (k, b) not in taken:  # no limb joins a part to itself: a and b cannot be mixed up
            taken.update(((k, a), (k, b)))
            chosen.append(index)
    return np.array(chosen, np.int64)


def assemble_people(part, start, end):
    """Join peaks into people along limbs, the first limb first, unless both sides already have a part in common.

    Taking limbs by score instead of in a fixed order lets the certain limbs decide who is who: the limbs to the ears
    and shoulders are redundant, and where they disagree with others the better one wins.

    part: (peaks,); start, end: (limbs,) indices of peaks.
    Returns a list of people, lists of indices of peaks with no part twice; a peak without limbs is a person too.
    """
    people = [[peak] for peak in range(len(part))]
    owner = list(range(len(part)))
    parts = [1 << p for p in part.tolist()]  # as bits
    for a, b in zip(start.tolist(), end.tolist()):
        a, b = owner[a], owner[b]
        if a != b and not parts[a] & parts[b]:
            for peak in people[b]:
                owner[peak] = a
            people[a] += people[b]
            parts[a] |= parts[b]
            people[b] = []
    return [person for person in people if person]


def join_pieces(people, part, position, limbs):
    """Join the pieces into which a person falls where a part that links them is hidden or outside the picture.

    Without a neck, two legs, both arms and the head have no limb in common; without a knee, an ankle hangs in the air.
    Two pieces belong together when both lack the same part, both have a neighbour of it, no part is in both, and the
    two neighbours are near each other in terms of the pieces' longest limb. The nearest ones are joined first.

    people: as from assemble_people, and so is what is returned; part (peaks,), position (peaks, 2): as from find_peaks;
        limbs: pairs of parts.
    """
    parts = max(map(max, limbs)) + 1
    first, second = zip(*limbs)
    is_limb = np.zeros((parts, parts), bool)
    is_limb[first, second] = is_limb[second, first] = True
    people = [list(person) for person in people]
    owner = np.empty(len(part), np.int64)
    places = np.full((len(people), parts, 2), np.nan)
    for number, person in enumerate(people):
        owner[person] = number
        places[number, part[person]] = position[person]
    has = np.isfinite(places[:, :, 0])
    # Each piece's longest limb; 0 where it has none.
    length = np.nan_to_num(np.linalg.norm(places[:, first] - places[:, second], axis=2)).max(axis=1)

    gaps = []
    for absent in range(parts):
        ends = np.nonzero(is_limb[absent, part] & ~has[owner, absent])[0]
        gaps += _gaps_between(ends, owner, has, position, length)
    merged = list(range(len(people)))  # the piece that took a piece in
    for _, a, b in sorted(gaps):
        while merged[a] != a:
            a = merged[a]
        while merged[b] != b:
            b = merged[b]
        if a != b and not (has[a] & has[b]).any():
            people[a] += people[b]
            people[b], merged[b] = [], a
            has[a] |= has[b]
    return [person for person in people if person]


def _gaps_between(ends, owner, has, position, length):
    """Which pieces may belong together around an absent part: [(gap in lengths of a limb, piece, other piece)].

    ends: peaks of the absent part's neighbours, in pieces that lack it.
    owner (peaks,): their pieces; has (pieces, parts): what these have; length (pieces,): their longest limbs.
    """
    if len(set(owner[ends].tolist())) < 2:
        return []
    scale = length[owner[ends]]
    scale = np.maximum(np.maximum(scale[:, None], scale), 1e-6)
    gap = np.hypot(*(position[ends][:, None] - position[ends]).transpose(2, 0, 1)) / scale
    first, second = np.nonzero(np.triu(gap <= MAX_GAP, 1))
    a, b = owner[ends[first]], owner[ends[second]]
    fit = ~(has[a] & has[b]).any(axis=1)  # also false for two ends of the same piece
    return list(zip(gap[first, second][fit].tolist(), a[fit].tolist(), b[fit].tolist()))
