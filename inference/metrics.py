"""How good a network is: images -> maps -> people -> COCO's keypoint AP.

What makes the maps is a function predict_maps(images), so that a frozen graph and a network that is being trained are
measured in the same way; an oracle decodes the labels' own maps. People are found by inference/predictor.py.
"""
import contextlib
import io
import os

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

import pose_augment
import pose_labels
from annotations.coco import as_pycocotools, read_dataset
from annotations.images import BadSample, read_image
from annotations.skeleton import is_labelled
from annotations.splits import find_images
from pose_errors import UserError

from .decode import keypoint_lists
from .predictor import DEFAULT_SIZE, InputImage, Predictor, Request, make_transforms

METRICS = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR')
PCK_SHARE = 0.2  # of the torso
# Diagonals of the torso, by the names that its corners have in files.
TORSO = (('left_shoulder', 'right_hip'), ('right_shoulder', 'left_hip'))


def label_maps(joints, width, height, stride, skeleton):
    """What a perfect network gives for joints (people, parts, 2) in input pixels: float32 (h, w, channels)."""
    cells = height // stride, width // stride, stride
    return np.concatenate([pose_labels.render_heatmaps(joints, *cells, skeleton=skeleton),
                           pose_labels.render_pafs(joints, *cells, skeleton=skeleton)], axis=2)


def evaluate(predict_maps, annotation_file, image_folder, input_size=None, short_edge=None, limit=None, batchsize=1,
             progress=True, scales=(1.0,), flip=False, decoders=None, dataset=None, oracle_stride=None, **thresholds):
    """COCO keypoint AP of a network, or of the label maps themselves.

    A TensorFlow session is used as `lambda images: session.run(output, {image: images})`.

    Args:
        predict_maps, batchsize, decoders: as for Predictor; predict_maps is None with an oracle_stride.
        annotation_file, image_folder: COCO, as from annotations.splits.find_split.
        input_size, short_edge, scales, flip: as for make_transforms.
        limit: only the first so many images, by id.  progress: whether to show a progress bar.
        dataset: the annotations.coco.Dataset of annotation_file, if it has been read.
        oracle_stride: input pixels per cell of the label maps that take the place of a network's.
        thresholds: threshold and min_score, as for Predictor.
    Returns:
        summary: dict of METRICS (-1 where COCO has nobody to measure it on), images, people (labelled ones),
            detections; decode_ms, network_ms and waiting (Predictor.timings); input, scales and flip: the setting.
        results: list of dicts in COCO's results format.
        evaluation: pycocotools' COCOeval, from which table_of makes its table.
    Raises UserError: an image is missing or broken, or the maps are not a network's of this project.
    """
    dataset = dataset or read_dataset(annotation_file, image_folder=image_folder)
    coco = as_pycocotools(dataset)
    image_ids = sorted(coco.getImgIds())[:limit]
    if not image_ids:
        raise UserError('%s lists no images; there is nothing to evaluate' % annotation_file)
    entries = coco.loadImgs(image_ids)
    paths = dict(zip(image_ids, _image_paths([entry['file_name'] for entry in entries], image_folder, annotation_file)))
    transforms = {image_id: make_transforms(entry['width'], entry['height'], input_size, short_edge, scales, flip)
                  for image_id, entry in zip(image_ids, entries)}
    by_size = sorted(image_ids, key=lambda image_id: [transform[1:] for transform in transforms[image_id]])
    # COCO also counts people with one labelled keypoint, so even a single part is worth reporting.
    predictor = Predictor(predict_maps, dataset.skeleton, batchsize, decoders, min_parts=1, **thresholds)
    requests = (Request(image_id, _reader(coco, dataset.skeleton, image_id, paths[image_id], transforms[image_id],
                                          oracle_stride)) for image_id in by_size)
    results = []
    with tqdm(total=len(image_ids), desc='evaluating', unit='image', disable=None if progress else True) as bar, \
            contextlib.closing(predictor.find_people(requests)) as found:
        for image_id, _, keypoints, scores in found:
            results += coco_results(image_id, keypoints, scores, dataset.skeleton)
            bar.update()
    results.sort(key=lambda result: result['image_id'])
    summary, evaluation = measure(coco, image_ids, results, dataset.skeleton)
    setting = 'short edge %d' % short_edge if short_edge else '%dx%d' % tuple(input_size or DEFAULT_SIZE)
    summary.update(predictor.timings(), input=setting, scales=list(scales), flip=flip)
    return summary, results, evaluation


def _image_paths(names, image_folder, annotation_file):
    """The paths of images. Raises UserError, before hours of evaluation, when one is not there."""
    found = find_images(names, image_folder)
    missing = [name for name, new in zip(names, found) if new is None]
    if missing:
        raise UserError('%d of the %d images of %s are not in %s, or not to be told apart there (%s ...); an AP '
                        'without them would not compare: give their folder by --imgpath'
                        % (len(missing), len(names), annotation_file, image_folder, ', '.join(missing[:3])))
    return [os.path.join(image_folder, name) for name in found]


def _reader(coco, skeleton, image_id, path, transforms, oracle_stride):
    """The function that reads an image of the data set, for a Request."""
    entry = coco.loadImgs(image_id)[0]
    joints = skeleton.joints([person['keypoints'] for person in labelled_people(coco, [image_id])]).astype(np.float64)
    largest = max(pose_augment.matrix_scale(transform.matrix) for transform in transforms)

    def read():
        try:
            pixels, reduction = read_image(path, (entry['width'], entry['height']), largest)
        except BadSample as error:
            raise UserError('%s; an AP without it would not compare: repair the data set' % error)
        return InputImage(pixels, reduction, transforms, oracle_stride and [
            label_maps(pose_augment.transform_joints(joints, transform.matrix, skeleton), transform.width,
                       transform.height, oracle_stride, skeleton) for transform in transforms])
    return read


def load_coco(annotation_file, category=None):
    """pycocotools' COCO of an annotation file, in the regular form of annotations/coco.py."""
    return as_pycocotools(read_dataset(annotation_file, category))


def coco_results(image_id, keypoints, scores, skeleton):
    """keypoints (people, parts, 3) and scores (people,) as dicts in COCO's results format; absent parts are 0, 0, 0."""
    points = keypoints[:, list(skeleton.part_of_keypoint)]  # a copy
    found = np.isfinite(points[:, :, 2])
    points[:, :, 2] = found
    return [{'image_id': image_id, 'category_id': 1, 'keypoints': person, 'score': round(float(score), 6)}
            for person, score, has in zip(keypoint_lists(points), scores, found) if has.any()]


def measure(coco, image_ids, results, skeleton):
    """COCO's keypoint metrics: (dict of METRICS, images, people, detections and PCK; pycocotools' COCOeval)."""
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            detections = coco.loadRes([dict(result) for result in results])  # it adds fields to the dicts
        else:  # loadRes looks at the first result, so it fails when there is none
            detections = COCO()
            detections.dataset = dict(coco.dataset, annotations=[])
            detections.createIndex()
        evaluation = COCOeval(coco, detections, 'keypoints')
        evaluation.params.imgIds, evaluation.params.catIds = image_ids, [1]
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    summary = dict(zip(METRICS, (round(float(value), 4) for value in evaluation.stats)), images=len(image_ids),
                   people=len(labelled_people(coco, image_ids)), detections=len(results))
    reach = pck(coco, image_ids, results, skeleton)
    if reach is not None:
        summary['PCK'] = reach
    return summary, evaluation


def table_of(evaluation):
    """The table that pycocotools prints of a COCOeval."""
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        evaluation.summarize()
    return table.getvalue()


def labelled_people(coco, image_ids):
    return [annotation for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_ids, iscrowd=False))
            if annotation['num_keypoints'] > 0]


def keypoints_by_image(people):
    """{image id: the keypoints of its people}, of dicts in COCO's format."""
    found = {}
    for person in people:
        found.setdefault(person['image_id'], []).append(person['keypoints'])
    return found


def last_stage_loss(maps, heatmap, paf, mask):
    """The training loss of one sample's last stage (networks.network_base.build_losses), for maps (h, w, channels)."""
    return float(np.sum(np.square(mask * (maps - np.concatenate([heatmap, paf], axis=2))), dtype=np.float64) / 2)


def pck(coco, image_ids, results, skeleton):
    """The share of labelled keypoints in reach (keypoints_in_reach), or None where nobody has a labelled torso."""
    in_reach, labelled = keypoints_in_reach(coco, image_ids, results, skeleton)
    return round(float(in_reach.sum() / labelled.sum()), 4) if labelled.any() else None


def keypoints_in_reach(coco, image_ids, results, skeleton):
    """How many keypoints of each kind were found within PCK_SHARE of the torso's length, as in the evaluation of the
    Leeds Sports Pose sets, and how many are labelled: int (keypoints,) each. The torso reaches from a shoulder to the
    opposite hip.

    Each labelled person is compared with the found one that has the most keypoints in reach. People without a labelled
    torso are left out: all of them where the skeleton has none.
    """
    names = {name.lower(): k for k, name in enumerate(skeleton.keypoints)}
    diagonals = [(names[a], names[b]) for a, b in TORSO if a in names and b in names]
    found = keypoints_by_image(results)
    in_reach, labelled = np.zeros((2, len(skeleton.keypoints)), int)
    for person in labelled_people(coco, image_ids):
        truth = np.array(person['keypoints'], np.float64).reshape(-1, 3)
        visible = is_labelled(truth[:, 2])
        torso = max([np.hypot(*(truth[a, :2] - truth[b, :2])) for a, b in diagonals if visible[a] and visible[b]],
                    default=0)
        if not torso:
            continue
        labelled += visible
        if person['image_id'] in found:
            others = np.array(found[person['image_id']]).reshape(-1, len(truth), 3)
            distance = np.hypot(others[:, :, 0] - truth[:, 0], others[:, :, 1] - truth[:, 1])
            hits = (distance <= PCK_SHARE * torso) & (others[:, :, 2] > 0) & visible
            in_reach += hits[hits.sum(axis=1).argmax()]
    return in_reach, labelled
