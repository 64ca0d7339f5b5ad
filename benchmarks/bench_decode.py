"""How long decode_people takes for 1 to 50 people, beside enlarging the maps to the input's size first.

    python3 benchmarks/bench_decode.py [--json]

Maps are ground truth, rendered from people in random places, at 368x368 unless said otherwise, stride 8. `enlarged`
only does what comes first in the usual way: 18 heatmaps enlarged to the input's size, smoothed, and searched for peaks.

In crowds people hide each other: a part near a limb of somebody nearer is not labelled. `AP` is COCO's, but over all
the people of an image where COCO counts the first 20; `noisy` maps have noise added, as a network's have.
"""
import contextlib
import io
import json
import time

import cv2
import numpy as np
from pycocotools.cocoeval import COCOeval

from bench_inputs import flag_parser, hide_behind, random_people, render_maps
import pose_cli
from annotations.coco import Dataset, as_pycocotools
from annotations.skeleton import COCO_SKELETON
from inference.decode import PEAK_THRESHOLD, decode_people
from inference.metrics import coco_results

STRIDE = 8
CASES = ((1, 368), (5, 368), (25, 368), (5, 736), (25, 736), (50, 736))
CROWD = 25
CROWD_SIZES = (368, 736)
NOISE = 0.02  # of the largest value of a label


def find_peaks_enlarged(maps, width, height):
    for part in range(len(COCO_SKELETON.parts)):
        heatmap = cv2.resize(maps[:, :, part], (width, height), interpolation=cv2.INTER_CUBIC)
        heatmap = cv2.GaussianBlur(heatmap, (0, 0), 3)
        np.nonzero((heatmap == cv2.dilate(heatmap, np.ones((3, 3)))) & (heatmap > PEAK_THRESHOLD))


def median_ms(function, repeats):
    function()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return 1000 * float(np.median(seconds))


def measure(people, size, repeats, rng):
    """The figures of one case."""
    maps = render_maps(random_people(rng, people, size, size), size, size, STRIDE)
    found = len(decode_people(maps, STRIDE)[0])
    decode = median_ms(lambda: decode_people(maps, STRIDE), repeats)
    enlarged = median_ms(lambda: find_peaks_enlarged(maps, size, size), max(3, repeats // 3))
    return {'found': found, 'decode_ms': round(decode, 2), 'enlarged_ms': round(enlarged, 2),
            'enlarged_to_decode': round(enlarged / decode, 2)}


def crowd(rng, people, size):
    """People behind each other, the nearest first: float64 (people, 18, 2), NaN where somebody nearer hides a part."""
    joints = random_people(rng, people, size, size)
    seen = hide_behind(joints)
    neck, *shoulders = [COCO_SKELETON.parts.index(name) for name in ('Neck', 'LShoulder', 'RShoulder')]
    seen[:, neck] = seen[:, shoulders].mean(axis=1)  # as annotation files give it
    return seen


def measure_crowds(images, size, noise, rng):
    """AP and decoding time on crowds of CROWD people."""
    annotations, results, milliseconds = [], [], []
    for image_id in range(1, images + 1):
        people = crowd(rng, CROWD, size)
        maps = render_maps(people, size, size, STRIDE)
        maps += noise * cv2.GaussianBlur(rng.normal(0, 1, maps.shape), (0, 0), 1).astype(np.float32) * 3.5
        milliseconds.append(median_ms(lambda: decode_people(maps, STRIDE, min_parts=1), 3))
        results += coco_results(image_id, *decode_people(maps, STRIDE, min_parts=1), COCO_SKELETON)
        for person in people[:, list(COCO_SKELETON.part_of_keypoint)]:
            labelled = np.isfinite(person[:, 0])
            if not labelled.any():
                continue
            box = np.concatenate([np.nanmin(person, axis=0), np.nanmax(person, axis=0) - np.nanmin(person, axis=0)])
            keypoints = np.concatenate([np.nan_to_num(person), 2.0 * labelled[:, None]], axis=1)
            annotations.append({'id': len(annotations) + 1, 'image_id': image_id, 'category_id': 1, 'iscrowd': 0,
                                'keypoints': keypoints.ravel().tolist(), 'num_keypoints': int(labelled.sum()),
                                'bbox': box.tolist(), 'area': float(0.5 * box[2] * box[3])})
    entries = [{'id': image_id, 'file_name': '', 'width': size, 'height': size} for image_id in range(1, images + 1)]
    coco = as_pycocotools(Dataset(COCO_SKELETON, entries, annotations, {}, {}, 1, None, 17, None))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), 'keypoints')
        evaluation.params.maxDets = [CROWD + 5]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, 0, 0, 0]
    return {'AP': round(float(precision.mean()), 3), 'AP50': round(float(precision[0].mean()), 3),
            'found': round(len(results) / images, 1), 'decode_ms': round(float(np.median(milliseconds)), 2)}


def parse_flags(args=None):
    parser = flag_parser('Time the decoding of maps into people.')
    parser.add_argument('--repeats', type=pose_cli.positive_int, default=15)
    parser.add_argument('--crowds', type=pose_cli.positive_int, default=20, help='images of %d people' % CROWD)
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    rng = np.random.RandomState(0)
    figures = {}
    print('people  input    found  decode ms  enlarged ms  enlarged/decode')
    for people, size in CASES:
        row = figures['people_%d_size_%d' % (people, size)] = measure(people, size, flags.repeats, rng)
        print('%6d  %dx%d  %5d  %9.1f  %11.1f  %15.1f'
              % (people, size, size, row['found'], row['decode_ms'], row['enlarged_ms'], row['enlarged_to_decode']))
    print('crowds of %d     found  decode ms     AP   AP50' % CROWD)
    for size in CROWD_SIZES:
        for name, noise in (('labels', 0), ('noisy', NOISE)):
            row = figures['crowd_%d_%s' % (size, name)] = measure_crowds(flags.crowds, size, noise, rng)
            print('%dx%d %-7s %5.1f  %9.1f  %.3f  %.3f' % (size, size, name, row['found'], row['decode_ms'], row['AP'],
                                                           row['AP50']))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
