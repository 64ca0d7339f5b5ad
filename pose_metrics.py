"""How good a network is: images -> maps -> people -> COCO's keypoint AP.

What makes the maps is a function predict_maps(images, joints), so that a frozen graph, a network that is being trained
and the labels themselves are measured in the same way.
"""
import contextlib
import io
import os
import time

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

import pose_annotations
import pose_augment
import pose_labels
from pose_annotations import COCO_PARTS
from pose_cli import UserError
from pose_decode import MIN_PARTS, decode_people
from pose_samples import BadSample, read_image

# A size that every network here takes: some halve the image three times although their output stride is 4.
SIZE_MULTIPLE = 8
DEFAULT_SIZE = (368, 368)
# Photographs are averaged down by any whole factor before the warp. Those lie close together: to enlarge by a quarter
# at most after that blurs little, and never makes the warp take steps of more than 1.6 pixels.
MAX_SCALE_AFTER_AVERAGING = 1.25

PART_OF_COCO = [COCO_PARTS.index(coco_part) for coco_part in range(17)]  # the neck is no COCO keypoint
METRICS = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR')


def fitted_size(image_width, image_height, input_size=None, short_edge=None):
    """The network input's (width, height) for an image: input_size, or the image's shape with the given short edge.

    Sides are rounded up to multiples of SIZE_MULTIPLE; the image is letterboxed into them, never distorted.
    """
    if short_edge is None:
        return input_size or DEFAULT_SIZE
    scale = short_edge / min(image_width, image_height)
    return tuple(int(np.ceil(side * scale / SIZE_MULTIPLE - 1e-6)) * SIZE_MULTIPLE
                 for side in (image_width, image_height))


def letterbox(pixels, input_size=None, short_edge=None):
    """Fit an image of any size into the network's input: (uint8 (H, W, 3), 2x3 affine from image to input pixels)."""
    height, width = pixels.shape[:2]
    input_width, input_height = fitted_size(width, height, input_size, short_edge)
    matrix = pose_augment.fit_matrix(width, height, input_width, input_height)
    # Bilinear warping averages only 4 pixels: large photographs are first averaged down, or fine patterns would alias.
    reduction = max(1, int(MAX_SCALE_AFTER_AVERAGING / pose_augment.matrix_scale(matrix)))
    if reduction > 1:
        rows, columns = -(-height // reduction), -(-width // reduction)
        pixels = cv2.copyMakeBorder(pixels, 0, rows * reduction - height, 0, columns * reduction - width,
                                    cv2.BORDER_REPLICATE)
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    reduced = pose_augment.reduced_matrix(matrix, reduction)
    return pose_augment.warp_image(pixels, reduced, input_width, input_height), matrix


def oracle_maps(stride):
    """A predict_maps that gives the ground truth's own label maps at this stride: what a perfect network would give."""
    def predict_maps(images, joints):
        cells = (images.shape[1] // stride, images.shape[2] // stride, stride)
        return np.stack([np.concatenate([pose_labels.render_heatmaps(people, *cells),
                                         pose_labels.render_pafs(people, *cells)], axis=2) for people in joints])
    return predict_maps


def find_people(predict_maps, images, joints, matrices, min_parts=MIN_PARTS):
    """Run the network on a batch and decode its maps.

    Args:
        predict_maps: function (images, joints) -> (B, h, w, 57); a network has no use for the joints.
        images: uint8 (B, H, W, 3) network inputs.
        joints: list of (people, 18, 2), the labels in network-input pixels.
        matrices: list of B 2x3 affines, image pixels -> network-input pixels.
    Returns:
        people: list of B (keypoints (people, 18, 3) in image pixels, scores (people,)).
        network_seconds, decode_seconds: for the whole batch.
    """
    begin = time.perf_counter()
    maps = np.asarray(predict_maps(images, joints))
    predicted = time.perf_counter()
    if maps.ndim != 4 or len(maps) != len(images):
        raise UserError('the network gives maps of shape %s for %d images; give a network of this project'
                        % (maps.shape, len(images)))
    stride = images.shape[2] / maps.shape[2]
    people = []
    for single, matrix in zip(maps, matrices):
        keypoints, scores = decode_people(single, stride, min_parts)
        inverse = cv2.invertAffineTransform(matrix)
        keypoints[:, :, :2] = keypoints[:, :, :2] @ inverse[:, :2].T + inverse[:, 2]
        people.append((keypoints, scores))
    return people, predicted - begin, time.perf_counter() - predicted


def evaluate(predict_maps, annotation_file, image_folder, input_size=None, short_edge=None, limit=None, batchsize=1,
             progress=True):
    """COCO keypoint AP of a network, or of anything else that makes maps.

    A TensorFlow session is used as `lambda images, joints: session.run(output, {image: images})`.

    Args:
        predict_maps: function (images uint8 (B, H, W, 3), joints) -> maps (B, h, w, 57); see find_people.
        annotation_file, image_folder: COCO, as from pose_annotations.find_split.
        input_size: (width, height) of the network's input; or short_edge: images keep their shape, one in a batch.
        limit: only the first so many images, by id.
        progress: whether to show a progress bar.
    Returns:
        summary: dict of METRICS (-1 where COCO has nobody to measure it on), images, people (labelled ones),
            detections, decode_ms and network_ms (means an image, without the first batch, which warms up).
        results: list of dicts in COCO's results format.
        table: pycocotools' table as text.
    Raises:
        UserError: an image is missing or broken, or the maps are not a network's of this project.
    """
    coco = load_coco(annotation_file)
    image_ids = sorted(coco.getImgIds())[:limit]
    if not image_ids:
        raise UserError('%s lists no images; there is nothing to evaluate' % annotation_file)
    category = person_category(coco)
    if short_edge is not None:
        batchsize = 1  # each image has its own size
    results, network_seconds, decode_seconds = [], [], []
    with tqdm(total=len(image_ids), desc='evaluating', unit='image', disable=None if progress else True) as bar:
        for first in range(0, len(image_ids), batchsize):
            batch_ids = image_ids[first:first + batchsize]
            inputs = [_labelled_input(coco, image_id, image_folder, input_size, short_edge) for image_id in batch_ids]
            images, joints, matrices = zip(*inputs)
            # COCO also counts people with one labelled keypoint, so even a single part is worth reporting.
            people, network, decode = find_people(predict_maps, np.stack(images), joints, matrices, min_parts=1)
            network_seconds.append(network / len(batch_ids))
            decode_seconds.append(decode / len(batch_ids))
            for image_id, (keypoints, scores) in zip(batch_ids, people):
                results += coco_results(image_id, keypoints, scores, category)
            bar.update(len(batch_ids))
    summary, table = measure(coco, image_ids, results)
    warm = slice(1 if len(network_seconds) > 1 else 0, None)
    summary.update(decode_ms=round(1000 * float(np.mean(decode_seconds[warm])), 3),
                   network_ms=round(1000 * float(np.mean(network_seconds[warm])), 3))
    return summary, results, table


def load_coco(annotation_file):
    """pycocotools' COCO, with the fields that its evaluation needs filled in where a custom file leaves them out."""
    coco = pose_annotations.load_coco(annotation_file)
    coco.dataset.setdefault('info', {})
    if not coco.dataset.get('categories'):
        coco.dataset['categories'] = [{'id': 1, 'name': 'person'}]
    for annotation in coco.dataset['annotations']:
        if len(annotation.get('keypoints') or []) != 51:  # not a labelled person
            annotation.update(keypoints=[0] * 51, num_keypoints=0)
        annotation.setdefault('num_keypoints', sum(visible > 0 for visible in annotation['keypoints'][2::3]))
        annotation.setdefault('iscrowd', 0)
        annotation.setdefault('bbox', [0, 0, 0, 0])
        annotation.setdefault('area', annotation['bbox'][2] * annotation['bbox'][3])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        coco.createIndex()
    return coco


def person_category(coco):
    """The id of the category `person`, or of the first one where a custom data set calls it something else."""
    return (coco.getCatIds(catNms=['person']) or coco.getCatIds())[0]


def _labelled_input(coco, image_id, image_folder, input_size, short_edge):
    """The network's input for an image of the data set, its labelled joints there, and the matrix to it."""
    entry = coco.loadImgs(image_id)[0]
    size = entry['width'], entry['height']
    input_width, input_height = fitted_size(*size, input_size, short_edge)
    matrix = pose_augment.fit_matrix(*size, input_width, input_height)
    try:
        pixels, reduction = read_image(os.path.join(image_folder, entry['file_name']), size,
                                       pose_augment.matrix_scale(matrix))
    except BadSample as error:
        raise UserError('%s; an AP without it would not compare: repair the data set' % error)
    image = pose_augment.warp_image(pixels, pose_augment.reduced_matrix(matrix, reduction), input_width, input_height)
    joints = pose_annotations.coco_to_joints([person['keypoints'] for person in labelled_people(coco, [image_id])])
    return image, pose_augment.transform_joints(joints.astype(np.float64), matrix), matrix


def coco_results(image_id, keypoints, scores, category=1):
    """keypoints (people, 18, 3) and scores (people,) as dicts in COCO's results format; absent parts are 0, 0, 0."""
    points = keypoints[:, PART_OF_COCO].astype(np.float64)
    points[:, :, 2] = np.isfinite(points[:, :, 2])
    points = np.round(np.nan_to_num(points), 3)
    return [{'image_id': image_id, 'category_id': category, 'keypoints': person.ravel().tolist(),
             'score': round(float(score), 6)} for person, score in zip(points, scores) if person[:, 2].any()]


def measure(coco, image_ids, results):
    """COCO's keypoint metrics: (dict of METRICS, images, people, detections; pycocotools' table as text)."""
    table = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            detections = coco.loadRes([dict(result) for result in results])  # it adds fields to the dicts
        else:  # loadRes looks at the first result, so it fails when there is none
            detections = COCO()
            detections.dataset = dict(coco.dataset, annotations=[])
            detections.createIndex()
        evaluation = COCOeval(coco, detections, 'keypoints')
        evaluation.params.imgIds, evaluation.params.catIds = image_ids, [person_category(coco)]
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(table):
            evaluation.summarize()
    ap, ap50, ap75, ap_medium, ap_large, recall = (round(float(value), 4) for value in evaluation.stats[:6])
    summary = dict(zip(METRICS, (ap, ap50, ap75, ap_medium, ap_large, recall)), images=len(image_ids),
                   people=len(labelled_people(coco, image_ids)), detections=len(results))
    return summary, table.getvalue()


def labelled_people(coco, image_ids):
    return [annotation for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_ids, iscrowd=False))
            if annotation['num_keypoints'] > 0]
