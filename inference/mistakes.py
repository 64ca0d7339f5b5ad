"""What a network got wrong, image by image, as COCO's evaluation sees it at an OKS of 0.5.

A labelled person is found when a found one has an OKS (object keypoint similarity: 1 in the right place, 0 far away) of
at least 0.5 with it; else it is missed. A found person without a labelled one is a false one. Crowds and people without
labelled keypoints count neither way.
"""
import collections

import numpy as np

from annotations.skeleton import is_labelled

from .decode import least_parts

MISPLACED = 0.5  # the similarity of a keypoint below which it is in the wrong place

# missed: labelled people; false: found people of at least least_parts keypoints, all as dicts in COCO's format.
# matches: a Match for each other labelled person.
ImageMistakes = collections.namedtuple('ImageMistakes', 'image_id missed false matches')

# labelled, found: dicts.  oks.  similarity: float64 (keypoints,), NaN where not labelled, 0 where not found.
# misplaced, absent: bool (keypoints,), whether a labelled keypoint was found in the wrong place, or not at all.
Match = collections.namedtuple('Match', 'labelled found oks similarity misplaced absent')


def find_mistakes(evaluation):
    """A list of ImageMistakes of pycocotools' COCOeval, once it has evaluated; images with nobody are left out."""
    sigmas = evaluation.params.kpt_oks_sigmas
    # First come all images for people of all sizes, at the first threshold an OKS of 0.5.
    entries = evaluation.evalImgs[:len(evaluation.params.imgIds)]
    return [_mistakes_in(entry, evaluation.cocoGt, evaluation.cocoDt, sigmas) for entry in entries if entry]


def _mistakes_in(entry, labels, results, sigmas):
    found = {dt: results.anns[dt] for dt in entry['dtIds']}
    of_label = {int(gt): found[dt] for dt, gt in zip(entry['dtIds'], entry['dtMatches'][0]) if gt > 0}
    false = [found[dt] for dt, gt, ignored in zip(entry['dtIds'], entry['dtMatches'][0], entry['dtIgnore'][0])
             if gt == 0 and not ignored
             and np.count_nonzero(found[dt]['keypoints'][2::3]) >= least_parts(len(sigmas))]
    people = [labels.anns[gt] for gt, ignored in zip(entry['gtIds'], entry['gtIgnore']) if not ignored]
    return ImageMistakes(int(entry['image_id']), [person for person in people if person['id'] not in of_label], false,
                         [_match(person, of_label[person['id']], sigmas) for person in people
                          if person['id'] in of_label])


def _match(labelled, found, sigmas):
    """The terms of the OKS, as COCO's evaluation computes them."""
    truth, guess = (np.reshape(person['keypoints'], (-1, 3)).astype(np.float64) for person in (labelled, found))
    distance = ((truth[:, :2] - guess[:, :2]) ** 2).sum(axis=1)
    similarity = np.exp(-distance / (2 * (2 * np.asarray(sigmas)) ** 2 * (labelled['area'] + np.spacing(1))))
    here, there = is_labelled(truth[:, 2]), guess[:, 2] > 0
    oks = float(similarity[here].mean())
    return Match(labelled, found, oks, np.where(here, similarity * there, np.nan),
                 here & there & (similarity < MISPLACED), here & ~there)


def missed_people(image):
    return len(image.missed)


def false_score(image):
    """False people by their scores: one that the network hardly believes in costs little, as in AP."""
    return sum(person['score'] for person in image.false)


def misplaced_keypoints(image):
    return sum(int(match.misplaced.sum()) for match in image.matches)


def quality(image):
    """From 0 to 1, where everybody labelled is in the right place and nobody else was found."""
    people = len(image.missed) + len(image.matches)
    return sum(match.oks for match in image.matches) / (people + false_score(image)) if people else 0


def highest(images, measure, count, without=()):
    """The images with the most of a measure, if any, at most `count`; more people go first where it is equal.

    without: image ids that are left out.
    """
    ranked = sorted((image for image in images if measure(image) > 0 and image.image_id not in without),
                    key=lambda image: (-measure(image), -len(image.matches), image.image_id))
    return ranked[:count]
