"""How fast films are written, and how large they are: ffmpeg's H.264, OpenCV's VP9 where there is no ffmpeg, and MPEG-4
Part 2 (mp4v), which no browser plays, as the yardstick.

    python3 benchmarks/bench_film.py [--json]

A camera pans over a rendered picture with grain. `frames/s` is the whole time, the end of the file included; `PSNR`
tells how near the film is to its pictures.
"""
import collections
import json
import os
import tempfile
import time

import cv2
import numpy as np

from bench_inputs import flag_parser
import pose_cli
from inference.film import FFmpegWriter, OpenCVWriter, find_ffmpeg
from make_sample_coco import draw_background
from pose_errors import UserError

RATE = 25.0
GRAIN = 4
PAN = 3, 1  # pixels a frame


def pictures(rng, width, height, count):
    """A list of uint8 (height, width, 3)."""
    wide = draw_background(rng, width + PAN[0] * count, height + PAN[1] * count).astype(np.int16)
    views = (wide[PAN[1] * k:, PAN[0] * k:][:height, :width] for k in range(count))
    return [np.clip(view + rng.randint(-GRAIN, GRAIN + 1, view.shape), 0, 255).astype(np.uint8) for view in views]


def write(make_writer, path, frames):
    """{frames_per_s, bytes_per_frame, psnr} of a film of these frames."""
    begin = time.perf_counter()
    writer = make_writer(path, RATE, frames[0].shape[1], frames[0].shape[0])
    for frame in frames:
        writer.write(frame)
    writer.release()
    seconds = time.perf_counter() - begin
    film, errors = cv2.VideoCapture(path), []
    for frame in frames:
        errors.append(cv2.PSNR(frame, film.read()[1]))
    return {'frames_per_s': round(len(frames) / seconds, 1), 'bytes_per_frame': os.path.getsize(path) // len(frames),
            'psnr': round(float(np.mean(errors)), 1)}


def parse_flags(args=None):
    parser = flag_parser('Time the writing of films.')
    parser.add_argument('--sizes', type=pose_cli.size, nargs='+', default=[(640, 480), (1920, 1080)], metavar='WxH')
    parser.add_argument('--frames', type=pose_cli.positive_int, default=40)
    return parser.parse_args(args)


def main():
    flags, figures = parse_flags(), {}
    program = find_ffmpeg()
    if not program:
        raise UserError('there is no ffmpeg here: pip install imageio-ffmpeg')
    writers = collections.OrderedDict([
        ('ffmpeg', lambda path, *film: FFmpegWriter(program, path, *film)), ('opencv', OpenCVWriter),
        ('mp4v', lambda path, fps, *size: cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), fps, size))])
    print('size       writer  frames/s  kB a frame  PSNR')
    with tempfile.TemporaryDirectory() as folder:
        for size in flags.sizes:
            frames = pictures(np.random.RandomState(0), *size, flags.frames)
            rows = figures['%dx%d' % size] = {}
            for name, make_writer in writers.items():
                row = rows[name] = write(make_writer, os.path.join(folder, 'film.mp4'), frames)
                print('%-9s  %-6s  %8.1f  %10.1f  %.1f' % ('%dx%d' % size, name, row['frames_per_s'],
                                                           row['bytes_per_frame'] / 1e3, row['psnr']))
            rows['ffmpeg_to_opencv'] = round(rows['ffmpeg']['frames_per_s'] / rows['opencv']['frames_per_s'], 1)
            print('%-9s  ffmpeg is %.1f times as fast as OpenCV' % ('%dx%d' % size, rows['ffmpeg_to_opencv']))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
