"""How long pose_eval.decode_people takes for 1 to 50 people, beside enlarging the maps to the input's size first.

    python3 benchmarks/bench_decode.py [--json]

Maps are ground truth, rendered from people in random places, at 368x368 unless said otherwise, stride 8. `enlarged`
only does what comes first in the usual way: 18 heatmaps enlarged to the input's size, smoothed, and searched for peaks.
"""
import json
import os
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli
import pose_eval

STRIDE = 8
CASES = ((1, 368), (5, 368), (25, 368), (5, 736), (25, 736), (50, 736))
# A standing person, one unit tall, about (0, 0); in the order of pose_labels.PART_NAMES.
STANDING = np.array([(0, -.42), (0, -.32), (-.1, -.32), (-.15, -.15), (-.17, .01), (.1, -.32), (.15, -.15), (.17, .01),
                     (-.06, .02), (-.07, .26), (-.07, .48), (.06, .02), (.07, .26), (.07, .48), (-.02, -.44),
                     (.02, -.44), (-.05, -.43), (.05, -.43)])


def random_people(rng, people, width, height, min_height=0.3, max_height=0.7):
    """Standing people of random size, lean and pose, wholly in the picture: float64 (people, 18, 2) in pixels."""
    joints = []
    for _ in range(people):
        pose = STANDING + rng.normal(0, 0.012, STANDING.shape)
        pose[1] = (pose[2] + pose[5]) / 2
        angle, size = rng.uniform(-0.2, 0.2), rng.uniform(min_height, max_height) * min(width, height)
        pose = size * pose @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        room = np.array([width - 1, height - 1]) - np.ptp(pose, axis=0)
        joints.append(pose - pose.min(axis=0) + rng.uniform(0, 1, 2) * room)
    return np.array(joints).reshape(-1, 18, 2)


def render_maps(joints, width, height, stride):
    """The label maps of joints (people, 18, 2) as a perfect network would give them: float32 (h, w, 57)."""
    return pose_eval.oracle_maps(stride)(np.zeros((1, height, width, 3), np.uint8), [joints])[0]


def find_peaks_enlarged(maps, width, height):
    for part in range(pose_eval.PARTS):
        heatmap = cv2.resize(maps[:, :, part], (width, height), interpolation=cv2.INTER_CUBIC)
        heatmap = cv2.GaussianBlur(heatmap, (0, 0), 3)
        np.nonzero((heatmap == cv2.dilate(heatmap, np.ones((3, 3)))) & (heatmap > pose_eval.PEAK_THRESHOLD))


def median_ms(function, repeats):
    function()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return 1000 * float(np.median(seconds))


def main():
    parser = pose_cli.ArgumentParser(description='Time the decoding of maps into people.')
    parser.add_argument('--repeats', type=pose_cli.positive_int, default=15)
    parser.add_argument('--json', action='store_true', help='print one JSON object of the figures on the last line')
    args = parser.parse_args()
    rng = np.random.RandomState(0)
    figures = {}
    print('people  input    found  decode ms  enlarged ms  enlarged/decode')
    for people, size in CASES:
        maps = render_maps(random_people(rng, people, size, size), size, size, STRIDE)
        found = len(pose_eval.decode_people(maps, STRIDE)[0])
        decode = median_ms(lambda: pose_eval.decode_people(maps, STRIDE), args.repeats)
        enlarged = median_ms(lambda: find_peaks_enlarged(maps, size, size), max(3, args.repeats // 3))
        print('%6d  %dx%d  %5d  %9.1f  %11.1f  %15.1f'
              % (people, size, size, found, decode, enlarged, enlarged / decode))
        figures['people_%d_size_%d' % (people, size)] = {
            'found': found, 'decode_ms': round(decode, 2), 'enlarged_ms': round(enlarged, 2),
            'enlarged_to_decode': round(enlarged / decode, 2)}
    if args.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
