"""Network output -> people, COCO AP and pictures.

    python3 pose_eval.py --graph=graph_opt.pb --datapath=COCO                     AP of a frozen graph
    python3 pose_eval.py --checkpoint=DIR --model=mobilenet_thin --datapath=COCO  AP of a checkpoint
    python3 pose_eval.py --oracle --datapath=COCO                                 AP of perfect maps: the upper bound
    python3 pose_eval.py --graph=graph_opt.pb --images=DIR --output-dir=DIR       skeletons on photographs

`decode_people` is the method of Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (CVPR
2017, section 2): peaks of the heatmaps, line integrals over the PAFs, a greedy matching for each limb, and people put
together from the limbs. It works on the grid of the maps; no map is enlarged. TensorFlow is only imported to run a
network.
"""
import contextlib
import io
import json
import logging
import os
import time

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

import pose_annotations
import pose_augment
import pose_cli
import pose_draw
import pose_labels
from pose_annotations import COCO_PARTS
from pose_cli import UserError
from pose_labels import LIMBS, PART_NAMES
from pose_decode import MIN_PARTS, PARTS, decode_people
from pose_samples import BadSample, read_image

# A size that every network here takes: some halve the image three times although their output stride is 4.
SIZE_MULTIPLE = 8
DEFAULT_SIZE = (368, 368)
MAX_WARP_SCALE = 1.25
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')

PART_OF_COCO = [COCO_PARTS.index(coco_part) for coco_part in range(17)]  # the neck is no COCO keypoint
METRICS = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR')


# Images -> maps -> people.

def fitted_size(image_width, image_height, input_size=None, short_edge=None):
    """The network input's (width, height) for an image: input_size, or the image's shape with the given short edge.

    Sides are rounded up to multiples of SIZE_MULTIPLE; the image is letterboxed into them, never distorted.
    """
    if short_edge is None:
        return input_size or DEFAULT_SIZE
    scale = short_edge / min(image_width, image_height)
    return tuple(int(np.ceil(side * scale / SIZE_MULTIPLE - 1e-6)) * SIZE_MULTIPLE
                 for side in (image_width, image_height))


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
    joints = pose_annotations.coco_to_joints([person['keypoints'] for person in _labelled_people(coco, [image_id])])
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
                   people=len(_labelled_people(coco, image_ids)), detections=len(results))
    return summary, table.getvalue()


def _labelled_people(coco, image_ids):
    return [annotation for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_ids, iscrowd=False))
            if annotation['num_keypoints'] > 0]


# Networks, files and the command.

def load_network(graph_file=None, checkpoint=None, model=None):
    """A frozen graph, or a checkpoint of a model, as a function for find_people and the input size it is fixed to.

    Args:
        graph_file: a frozen graph with the nodes `image` and `Openpose/concat_stage7`; or
        checkpoint: prefix or folder, and model: one of networks.NAMES.
    Returns:
        (predict_maps, (width, height) or None when the input's size is free).
    Raises:
        UserError: a missing or broken file, a graph that is not of this project, a checkpoint of another model.
    """
    import tensorflow.compat.v1 as tf
    import networks
    from graphs import optimize

    def build():
        networks.get_network(model, tf.placeholder(tf.float32, (None, None, None, 3), name=optimize.INPUT),
                             is_training=False)

    if graph_file:
        graph_def = optimize.load_frozen(graph_file)
    else:
        prefix = optimize.find_checkpoint(checkpoint)
        graph_def = optimize.freeze(optimize.inference_graph(build), prefix)
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(graph_def, name='')
            image, output = (graph.get_tensor_by_name(name + ':0') for name in (optimize.INPUT, optimize.OUTPUT))
        except (ValueError, tf.errors.OpError) as error:
            raise UserError('TensorFlow %s cannot read the graph %s: %s' % (tf.__version__, graph_file, error))
    shape = image.shape.as_list()[1:3] if image.shape.rank == 4 else [None, None]
    session = tf.Session(graph=graph)

    def predict_maps(images, joints):
        try:
            return session.run(output, {image: images})
        except (tf.errors.OpError, ValueError) as error:
            reason = getattr(error, 'message', str(error)).splitlines()[0]
            raise UserError('the network does not run on an input of %dx%d: %s'
                            % (images.shape[2], images.shape[1], reason))
    return predict_maps, None if None in shape else (shape[1], shape[0])


def evaluate_data_set(predict_maps, args):
    """AP on a data set: table, results file and picture; the summary is the last line on stdout."""
    annotation_file, image_folder = pose_annotations.find_split(args.datapath, args.split, args.imgpath)
    summary, results, table = evaluate(predict_maps, annotation_file, image_folder, args.input_size, args.scale,
                                       args.limit)
    if args.oracle:
        summary['network_ms'] = None  # there is no network
    results_file = os.path.join(args.output_dir, 'keypoints_%s_results.json' % args.split)
    write_json(results, results_file)
    picture = os.path.join(args.output_dir, 'people_%s.png' % args.split)
    write_image(draw_results(load_coco(annotation_file), image_folder, results, args.pictures, args.limit), picture)
    print(table, end='')
    print('results: %s' % results_file)
    print('picture: %s' % picture)
    print(json.dumps(summary))


def draw_results(coco, image_folder, results, count, limit=None):
    """A contact sheet of the first images with people: labelled people on the left, found people on the right."""
    found, labelled = {}, {}
    for result in results:
        found.setdefault(result['image_id'], []).append(result['keypoints'])
    for person in _labelled_people(coco, sorted(coco.getImgIds())[:limit]):
        labelled.setdefault(person['image_id'], []).append(person['keypoints'])
    cells = []
    for image_id in sorted(labelled or found)[:count]:
        pixels = cv2.imread(os.path.join(image_folder, coco.loadImgs(image_id)[0]['file_name']),
                            cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        for people, title in ((labelled, 'labelled'), (found, 'found')):
            joints = pose_annotations.coco_to_joints(people.get(image_id, []))
            joints = joints[np.isfinite(joints[:, :, 0]).sum(axis=1) >= MIN_PARTS]
            cells.append(pose_draw.caption(pose_draw.draw_skeletons(pixels, joints), '%s %s' % (image_id, title)))
    return pose_draw.contact_sheet([cells[i:i + 4] for i in range(0, len(cells), 4)])


def draw_photographs(predict_maps, args):
    """Skeletons on each photograph of a folder, and a JSON file beside each in the manner of OpenPose."""
    names = find_photographs(args.images)[:args.limit]
    stems = [os.path.splitext(name)[0] for name in names]
    summary = {'images': 0, 'people': 0}
    seconds = []
    for name, stem in zip(tqdm(names, desc='finding people', unit='image', disable=None), stems):
        pixels = cv2.imread(os.path.join(args.images, name))
        if pixels is None:
            logging.warning('skipped %s: OpenCV cannot read it', os.path.join(args.images, name))
            continue
        image, matrix = letterbox(pixels, args.input_size, args.scale)
        nobody = np.zeros((0, PARTS, 2))
        [(keypoints, scores)], network, decode = find_people(predict_maps, image[None], [nobody], [matrix])
        seconds.append((network, decode))
        summary['images'] += 1
        summary['people'] += len(scores)
        output = os.path.join(args.output_dir, stem if stems.count(stem) == 1 else name)
        write_image(pose_draw.draw_skeletons(pixels, keypoints), output + '_rendered.png')
        write_json(openpose_json(name, pixels.shape, keypoints, scores), output + '_keypoints.json')
    if not seconds:
        raise UserError('none of the %d files in --images=%s could be read' % (len(names), args.images))
    network_ms, decode_ms = 1000 * np.mean(seconds[1:] or seconds, axis=0)
    summary.update(decode_ms=round(float(decode_ms), 3), network_ms=round(float(network_ms), 3))
    print('pictures and keypoints: %s' % args.output_dir)
    print(json.dumps(summary))


def find_photographs(folder):
    """The sorted names of the image files in a folder. Raises UserError when there are none."""
    if not os.path.isdir(folder):
        raise UserError('--images=%s is not a folder; give a folder of photographs' % folder)
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise UserError('no photographs in --images=%s (looked for %s)' % (folder, ' '.join(IMAGE_SUFFIXES)))
    return names


def letterbox(pixels, input_size=None, short_edge=None):
    """Fit an image of any size into the network's input: (uint8 (H, W, 3), 2x3 affine from image to input pixels)."""
    height, width = pixels.shape[:2]
    input_width, input_height = fitted_size(width, height, input_size, short_edge)
    matrix = pose_augment.fit_matrix(width, height, input_width, input_height)
    # Bilinear warping averages only 4 pixels: large photographs are first averaged down, or fine patterns would alias.
    reduction = max(1, int(MAX_WARP_SCALE / pose_augment.matrix_scale(matrix)))
    if reduction > 1:
        rows, columns = -(-height // reduction), -(-width // reduction)
        pixels = cv2.copyMakeBorder(pixels, 0, rows * reduction - height, 0, columns * reduction - width,
                                    cv2.BORDER_REPLICATE)
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    reduced = pose_augment.reduced_matrix(matrix, reduction)
    return pose_augment.warp_image(pixels, reduced, input_width, input_height), matrix


def openpose_json(name, shape, keypoints, scores):
    """People as OpenPose's JSON: 18 times x, y, score in image pixels in one list, 0, 0, 0 where a part is absent."""
    flat = np.round(np.nan_to_num(keypoints.astype(np.float64)), 3).reshape(-1, 3 * PARTS)
    return {'image': name, 'width': shape[1], 'height': shape[0], 'part_names': list(PART_NAMES),
            'people': [{'score': round(float(score), 4), 'pose_keypoints_2d': person.tolist()}
                       for person, score in zip(flat, scores)]}


def write_json(content, path):
    pose_cli.write_file(path, json.dumps(content).encode())


def write_image(image, path):
    pose_cli.write_file(path, cv2.imencode('.png', image)[1].tobytes())


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Find people with a network: COCO AP, or pictures and JSON files.')
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--graph', help='frozen graph (.pb) to evaluate')
    network.add_argument('--checkpoint', help='checkpoint to evaluate: its prefix or its folder; needs --model')
    network.add_argument('--oracle', nargs='?', type=int, const=8, choices=(4, 8), metavar='STRIDE',
                         help='evaluate the label maps themselves, at output stride 8 or 4, instead of a network')
    parser.add_argument('--model', help='network of the checkpoint')
    task = parser.add_mutually_exclusive_group()
    task.add_argument('--datapath', help='COCO root or its annotations folder, for AP ($COCO_DIR)')
    task.add_argument('--images', help='folder of photographs, for pictures and JSON files')
    parser.add_argument('--imgpath', help='where the image folders of --datapath are, if elsewhere')
    parser.add_argument('--split', default='val2017', help='split of --datapath')
    parser.add_argument('--limit', type=pose_cli.positive_int, help='only the first so many images')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--input-size', type=pose_cli.size, metavar='WxH',
                      help="of the network's input, as 432x368; images are letterboxed into it (the graph's own, or "
                           '%dx%d)' % DEFAULT_SIZE)
    size.add_argument('--scale', type=pose_cli.positive_int, metavar='PIXELS',
                      help='short edge of the input; each image keeps its shape')
    parser.add_argument('--output-dir', default=os.path.join('logs', 'eval'), help='where results and pictures go')
    parser.add_argument('--pictures', type=pose_cli.positive_int, default=8,
                        help='number of images in the picture beside the results')
    args = parser.parse_args()
    if not args.images:
        args.datapath = args.datapath or os.environ.get('COCO_DIR')
        if not args.datapath:
            parser.error('give --datapath=DIR (or $COCO_DIR) for AP, or --images=DIR for pictures')
    if args.checkpoint and not args.model:
        parser.error('--checkpoint needs --model, the network it was trained with')
    if args.model and not args.checkpoint:
        parser.error('--model goes with --checkpoint; a graph needs none')
    if args.oracle and args.images:
        parser.error('--oracle needs labels: give --datapath')
    for side in args.input_size or ():
        if side % SIZE_MULTIPLE:
            parser.error('--input-size=%dx%d: both sides must be multiples of %d' % (*args.input_size, SIZE_MULTIPLE))
    if args.images and os.path.realpath(args.images) == os.path.realpath(args.output_dir):
        parser.error('--output-dir is the folder of the photographs; give another one')
    return args


def main():
    args = parse_flags()
    pose_cli.log_to_stderr()
    # What is missing shows before TensorFlow takes its time.
    if args.datapath:
        pose_annotations.find_split(args.datapath, args.split, args.imgpath)
    else:
        find_photographs(args.images)
    if args.oracle:
        predict_maps, fixed_size = oracle_maps(args.oracle), None
    else:
        predict_maps, fixed_size = load_network(args.graph, args.checkpoint, args.model)
    if fixed_size:
        if args.scale or (args.input_size or fixed_size) != fixed_size:
            raise UserError('the input of %s is fixed to %dx%d; leave out --input-size and --scale, or freeze the '
                            'graph with --input-size=dynamic' % (args.graph, *fixed_size))
        args.input_size = fixed_size
    pose_cli.make_folder(args.output_dir)
    if args.datapath:
        evaluate_data_set(predict_maps, args)
    else:
        draw_photographs(predict_maps, args)


if __name__ == '__main__':
    pose_cli.run(main)
