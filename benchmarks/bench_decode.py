"""How long pose_decode.decode_people takes for 1 to 50 people, beside enlarging the maps to the input's size first.

    python3 benchmarks/bench_decode.py [--json]

Maps are ground truth, rendered from people in random places, at 368x368 unless said otherwise, stride 8. `enlarged`
only does what comes first in the usual way: 18 heatmaps enlarged to the input's size, smoothed, and searched for peaks.
"""
import json
import time

import cv2
import numpy as np

from bench_inputs import flag_parser, random_people, render_maps
import pose_cli
import pose_decode
import pose_skeleton

STRIDE = 8
CASES = ((1, 368), (5, 368), (25, 368), (5, 736), (25, 736), (50, 736))


def find_peaks_enlarged(maps, width, height):
    for part in range(len(pose_skeleton.COCO.parts)):
        heatmap = cv2.resize(maps[:, :, part], (width, height), interpolation=cv2.INTER_CUBIC)
        heatmap = cv2.GaussianBlur(heatmap, (0, 0), 3)
        np.nonzero((heatmap == cv2.dilate(heatmap, np.ones((3, 3)))) & (heatmap > pose_decode.PEAK_THRESHOLD))


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
    found = len(pose_decode.decode_people(maps, STRIDE)[0])
    decode = median_ms(lambda: pose_decode.decode_people(maps, STRIDE), repeats)
    enlarged = median_ms(lambda: find_peaks_enlarged(maps, size, size), max(3, repeats // 3))
    return {'found': found, 'decode_ms': round(decode, 2), 'enlarged_ms': round(enlarged, 2),
            'enlarged_to_decode': round(enlarged / decode, 2)}


def parse_flags(args=None):
    parser = flag_parser('Time the decoding of maps into people.')
    parser.add_argument('--repeats', type=pose_cli.positive_int, default=15)
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
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
