"""An evaluation as a web page that is one file: metrics, curves, and the images that went worst and best."""
import cv2
import numpy as np

import pose_draw
from annotations.images import read_image
from annotations.splits import image_paths

from .decode import least_parts
from .metrics import PCK_SHARE, keypoints_by_image, keypoints_in_reach, labelled_people
from .mistakes import MISPLACED, false_score, find_mistakes, highest, misplaced_keypoints, missed_people, quality
from .page import NONE, chart, escape, grid, number, page, paragraph, part, picture, section, table, tiles

IMAGES = 4  # of each kind of the worst
BEST_IMAGES = 2
PICTURE_SIDE = 480  # pixels, of the longer one
RED = (40, 40, 225)  # BGR, of what is wrong
CURVES = (0.5, 0.75)  # OKS

# How images are ranked: (title, what of ImageMistakes, what is said of it).
WORST = (
    ('Most people missed', missed_people, 'Labelled people who were not found are framed on the left.'),
    ('Most wrong people', false_score, 'Found people without a labelled one are framed on the right: nobody is there, '
                                       'or the keypoints are of several. Their scores rank the images.'),
    ('Most keypoints misplaced', misplaced_keypoints, 'Of people who were found. Red lines lead to the right places.'))


def evaluation_page(summary, results, evaluation, skeleton, image_folder, title, setting):
    """The page, as bytes.

    Args:
        summary, results, evaluation: as from inference.metrics.evaluate.  skeleton: of the data.
        setting: {name: text}, what was evaluated and how.
    """
    images = find_mistakes(evaluation)
    pictures = _Pictures(evaluation, results, skeleton, image_folder)
    shown, worst = set(), []  # no image twice
    for kind, measure, text in WORST:
        chosen = highest(images, measure, IMAGES, shown)
        shown.update(image.image_id for image in chosen)
        if chosen:
            worst.append(part(kind, paragraph(text, 'note'), grid(map(pictures.figure, chosen))))
    best = highest(images, quality, BEST_IMAGES, shown)
    return page(
        title,
        tiles([(name, number(summary.get(name))) for name in ('AP', 'AP50', 'AP75', 'AR', 'PCK')]),
        paragraph('%d images, %d labelled people, %d found.' % (summary['images'], summary['people'],
                                                                summary['detections'])),
        section('Average precision', _sizes(evaluation), _curves(evaluation)),
        section('Keypoints', _keypoints(evaluation, results, skeleton, images)),
        section('Mistakes', _counts(images, least_parts(len(skeleton.keypoints)))),
        section('Worst images', *worst or [paragraph('None.')]),
        section('Best images', grid(map(pictures.figure, best))),
        section('Setting', table(None, list(setting.items()), 'words')))


def _sizes(evaluation):
    """The table of AP and AR for people of all sizes, and the medium and large ones."""
    precision, recall = evaluation.eval['precision'][:, :, 0, :, -1], evaluation.eval['recall'][:, 0, :, -1]
    thresholds = evaluation.params.iouThrs
    at = [int(np.abs(thresholds - oks).argmin()) for oks in CURVES]
    people = [person['area'] for person in labelled_people(evaluation.cocoGt, evaluation.params.imgIds)]
    rows = []
    for size, (name, (low, high)) in enumerate(zip(evaluation.params.areaRngLbl, evaluation.params.areaRng)):
        rows.append([name, sum(low <= area <= high for area in people), _mean(precision[:, :, size])]
                    + [_mean(precision[k, :, size]) for k in at] + [_mean(recall[:, size])])
    return table(['people', 'number', 'AP', 'AP50', 'AP75', 'AR'],
                 [row[:2] + [number(value) for value in row[2:]] for row in rows]) + paragraph(
        'AP is the mean over ten thresholds of OKS from 0.5 to 0.95; AP50 and AP75 are those at 0.5 and 0.75. OKS is 1 '
        'where all keypoints are in the right place, and 0 far away. Medium are people of 32\u00b2 to 96\u00b2 pixels.',
        'note')


def _mean(values):
    """pycocotools' mean: -1 stands for what there is not."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1


def _curves(evaluation):
    """Precision over recall, people of all sizes."""
    precision, thresholds = evaluation.eval['precision'][:, :, 0, 0, -1], evaluation.params.iouThrs
    if precision.max() < 0:
        return paragraph('Nobody is labelled: there are no curves.')
    recall = evaluation.params.recThrs
    lines = [(('OKS %g' % oks, recall, precision[np.abs(thresholds - oks).argmin()]), {}) for oks in CURVES]
    lines.append((('mean of 0.5 to 0.95', recall, precision.mean(axis=0)), {'linestyle': '--'}))
    sizes = [((name, thresholds, [_mean(each) for each in evaluation.eval['precision'][:, :, 0, size, -1]]),
              {'marker': 'o', 'markersize': 4}) for size, name in enumerate(evaluation.params.areaRngLbl)]
    return grid([chart('Precision and recall', lines, 'recall', 'precision', (0, 1.02), (0, 1.02)),
                 chart('AP at each threshold', [line for line in sizes if max(line[0][2]) >= 0], 'OKS', 'AP',
                       y_limits=(0, 1.02))])


def _keypoints(evaluation, results, skeleton, images):
    """The table of PCK and similarity for each keypoint."""
    in_reach, labelled = keypoints_in_reach(evaluation.cocoGt, evaluation.params.imgIds, results, skeleton)
    matches = [match for image in images for match in image.matches]
    similarity = np.reshape([match.similarity for match in matches], (-1, len(skeleton.keypoints)))
    misplaced = np.reshape([match.misplaced for match in matches], similarity.shape).sum(axis=0)
    absent = np.reshape([match.absent for match in matches], similarity.shape).sum(axis=0)
    count = np.isfinite(similarity).sum(axis=0)
    rows = [[name, labelled[k] or NONE, number(in_reach[k] / labelled[k] if labelled[k] else None), count[k],
             number(np.nansum(similarity[:, k]) / count[k] if count[k] else None), misplaced[k], absent[k]]
            for k, name in enumerate(skeleton.keypoints)]
    return table(['keypoint', 'labelled', 'PCK', 'matched', 'similarity', 'misplaced', 'not found'], rows) + \
        paragraph('PCK is the share of labelled keypoints found within %g of the torso, of everybody whose torso is '
                  'labelled. The other columns are of people who were found (matched): similarity is a keypoint\u2019s '
                  'own term of OKS; below %g it is misplaced.' % (PCK_SHARE, MISPLACED), 'note')


def _counts(images, min_keypoints):
    """The table of mistakes in all images. min_keypoints: of found people who are not left out."""
    missed, matches = sum(map(missed_people, images)), [match for image in images for match in image.matches]
    false = [person['score'] for image in images for person in image.false]
    rows = [('labelled people found', len(matches)), ('labelled people missed', missed),
            ('found people without a labelled one', len(false)),
            ('of these with a score of 0.1 or more', sum(score >= 0.1 for score in false)),
            ('keypoints misplaced', sum(map(misplaced_keypoints, images))),
            ('keypoints not found', sum(int(match.absent.sum()) for match in matches))]
    return table(None, rows) + paragraph(
        'At an OKS of 0.5. Keypoints are those of people who were found; found people of fewer than %d keypoints are '
        'left out.' % min_keypoints, 'note')


def read_shrunk(entry, path_of, side):
    """An image as annotations list it, its longer side at most `side` pixels: (uint8 (H, W, 3) BGR, its scale).

    path_of: annotations.splits.image_paths'.
    """
    pixels, _ = read_image(path_of(entry['file_name']), (entry['width'], entry['height']), scale=1.0)
    scale = min(1, side / max(pixels.shape[:2]))
    return pose_draw.shrunk(pixels, scale), scale


class _Pictures:
    """Draws images of the data set: labelled people beside found ones, with what is wrong in red."""

    def __init__(self, evaluation, results, skeleton, image_folder):
        self._coco, self._skeleton, self._path_of = evaluation.cocoGt, skeleton, image_paths(image_folder)
        self._found = keypoints_by_image(results)

    def figure(self, mistakes):
        """HTML of an image, for its ImageMistakes."""
        entry = self._coco.loadImgs(mistakes.image_id)[0]
        pixels, scale = read_shrunk(entry, self._path_of, PICTURE_SIDE)
        labelled = keypoints_by_image(labelled_people(self._coco, [mistakes.image_id])).get(mistakes.image_id, [])
        left = self._skeletons(pixels, labelled, scale, 1)
        right = self._skeletons(pixels, self._found.get(mistakes.image_id, []), scale,
                                least_parts(len(self._skeleton.parts)))
        for person in mistakes.missed:
            _frame(left, person['keypoints'], scale)
        for person in mistakes.false:
            _frame(right, person['keypoints'], scale)
        for match in mistakes.matches:
            _lines(right, match, scale)
        sheet = pose_draw.contact_sheet([[pose_draw.caption(left, 'labelled'), pose_draw.caption(right, 'found')]], 2)
        return picture(sheet, 'labelled and found people in %s' % entry['file_name'],
                       '<b>%s</b>: %s' % (escape(entry['file_name']), escape(described(mistakes))))

    def _skeletons(self, pixels, people, scale, min_parts):
        joints = self._skeleton.joints(people) * scale
        joints = joints[np.isfinite(joints[:, :, 0]).sum(axis=1) >= min_parts]
        return pose_draw.draw_skeletons(pixels, joints, self._skeleton)


def _places(keypoints, chosen, scale):
    """Some of a person's keypoints in pixels of a picture, int (N, 2), within what OpenCV can count."""
    points = np.reshape(keypoints, (-1, 3))[chosen, :2] * scale
    return np.round(np.clip(points, -10 ** 5, 10 ** 5)).astype(int)


def _frame(image, keypoints, scale):
    places = _places(keypoints, np.array(keypoints[2::3]) > 0, scale)
    cv2.rectangle(image, tuple((places.min(axis=0) - 8).tolist()), tuple((places.max(axis=0) + 8).tolist()), RED, 2,
                  cv2.LINE_AA)


def _lines(image, match, scale):
    ends = (_places(person['keypoints'], match.misplaced, scale) for person in (match.found, match.labelled))
    for found, labelled in zip(*(places.tolist() for places in ends)):
        cv2.line(image, tuple(found), tuple(labelled), RED, 2, cv2.LINE_AA)
        cv2.circle(image, tuple(labelled), 4, RED, 2, cv2.LINE_AA)


def described(mistakes):
    """'2 of 5 people missed, 1 wrong (score 0.31), 3 keypoints misplaced, OKS 0.81'."""
    people = len(mistakes.missed) + len(mistakes.matches)
    texts = ['%d of %d people missed' % (len(mistakes.missed), people)] if mistakes.missed else [
        '%d of %d people found' % (people, people)]
    if mistakes.false:
        texts.append('%d wrong (score %s)' % (len(mistakes.false), ', '.join(
            number(person['score'], 2) for person in mistakes.false[:3])))
    if misplaced_keypoints(mistakes):
        texts.append('%d keypoints misplaced' % misplaced_keypoints(mistakes))
    if mistakes.matches:
        texts.append('OKS %s' % number(np.mean([match.oks for match in mistakes.matches]), 2))
    return ', '.join(texts)
