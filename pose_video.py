"""People in a video or before a camera: an annotated video and a JSON line for each frame.

One thread reads frames, others warp them, the network runs in the caller's thread, processes decode (pose_finder.py),
and one more thread draws and writes.
"""
import collections
import concurrent.futures
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time

import cv2
import numpy as np
from tqdm import tqdm

import pose_average
import pose_cli
import pose_draw
import pose_skeleton
from pose_cli import UserError
from pose_finder import Finder, Job, Picture
from pose_track import Tracker

# FFmpeg's own remarks on broken files; what matters of them becomes an error line.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
CODEC = 'mp4v'
DEFAULT_FPS = 25.0
FRAMES_AHEAD = 8
END = object()
ESCAPE, QUIT = 27, ord('q')


class Frames:
    """The frames of a video file, or of a camera: iterable of (index, uint8 (H, W, 3)), read by a thread of its own.

    A file's frames wait for the reader; of a camera's only the newest one is kept.

    Args:
        source: path of a file, or the number of a camera as text.
    Raises:
        UserError: there is no such file or camera, or it holds no video.
    """

    def __init__(self, source):
        self.is_camera = source.isdigit()
        if not self.is_camera and not os.path.isfile(source):
            raise UserError('--video=%s: there is no such file; give a video, or the number of a camera' % source)
        cv2.setLogLevel(0)  # OpenCV's own remarks
        self._capture = cv2.VideoCapture(int(source) if self.is_camera else source)
        readable, first = self._capture.read()
        if not readable:
            self._capture.release()
            raise UserError('camera %s gives no picture; is it connected and free?' % source if self.is_camera else
                            '--video=%s: OpenCV cannot read a frame of it; convert it, for example to H.264 in .mp4'
                            % source)
        self.height, self.width = first.shape[:2]
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if np.isfinite(fps) and 1 <= fps <= 1000 else DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not self.is_camera and 0 < count < 1e9 else None
        self._queue = queue.Queue(1 if self.is_camera else FRAMES_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(first,), daemon=True)
        self._thread.start()

    def __iter__(self):
        while True:
            item = self._queue.get()
            if item is END:
                return
            yield item

    def close(self):
        """Stop reading; the iteration ends."""
        self._closed.set()
        self._thread.join()
        self._capture.release()

    def _read(self, frame):
        index, readable = 0, True
        while readable and not self._closed.is_set():
            self._put((index, frame))
            index += 1
            readable, frame = self._capture.read()
        self._put(END)

    def _put(self, item):
        while True:
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.05)
            if self.is_camera or self._closed.is_set():
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()


class Output:
    """The annotated video and the JSON lines. They get their names when they are whole: `close` gives them these.

    Raises:
        UserError: OpenCV cannot write the video.
    """

    def __init__(self, prefix, fps, width, height):
        self.video, self.lines = prefix + '_people.mp4', prefix + '_people.jsonl'
        self._parts = {prefix + '_people.part.mp4': self.video, prefix + '_people.part.jsonl': self.lines}
        video_part, lines_part = self._parts
        self._writer = cv2.VideoWriter(video_part, cv2.VideoWriter_fourcc(*CODEC), fps, (width, height))
        try:
            self._file = open(lines_part, 'w')
        except OSError as error:
            raise UserError('cannot write %s: %s; choose another --output-dir' % (lines_part, error.strerror))
        if not self._writer.isOpened():
            raise UserError('OpenCV cannot write %s; choose another --output-dir' % video_part)

    def write(self, picture, record):
        try:
            self._writer.write(picture)
            self._file.write(json.dumps(record) + '\n')
        except OSError as error:
            raise UserError('cannot write %s: %s; free some space' % (self.lines, error.strerror))

    def close(self):
        self._writer.release()
        self._file.close()
        for part, name in self._parts.items():
            os.replace(part, name)


def find_people_in_video(predict_maps, args, decoders, skeleton=pose_skeleton.COCO):
    """--video: write the annotated video and its JSON lines, show frames per second, print a summary.

    Ctrl-C and SIGTERM end it early; what was found until then is written as a whole.
    """
    stop = pose_cli.StopSignal()
    with contextlib.closing(Frames(args.video)) as frames:
        name = 'camera' + args.video if frames.is_camera else os.path.splitext(os.path.basename(args.video))[0]
        views = pose_average.make_views(frames.width, frames.height, args.input_size, args.scale, args.scales,
                                        args.flip)
        # A camera's frames should not wait for others to come.
        finder = Finder(predict_maps, 1 if frames.is_camera else args.batchsize, decoders,
                        ahead=1 if frames.is_camera else None, skeleton=skeleton)
        tracker = Tracker(skeleton)
        found = finder.find(_jobs(frames, views, stop, args.limit))
        total = min(filter(None, (frames.count, args.limit)), default=None)
        people, written, begin = 0, 0, time.perf_counter()
        with contextlib.closing(Output(os.path.join(args.output_dir, name), frames.fps, frames.width,
                                       frames.height)) as output, \
                concurrent.futures.ThreadPoolExecutor(1) as writer, contextlib.closing(found):
            writing = collections.deque()
            for index, picture, keypoints, scores in tqdm(found, 'finding people', total, unit='frame', disable=None):
                numbers = tracker.update(keypoints)
                people, written = people + len(numbers), written + 1
                record = frame_record(index, index / frames.fps, numbers, keypoints, scores)
                writing.append(writer.submit(_draw_and_write, output, picture.pixels, keypoints, numbers, record,
                                             skeleton))
                while len(writing) > (0 if args.show else FRAMES_AHEAD):
                    drawn = writing.popleft().result()
                if args.show and _show(name, drawn):
                    break
            for future in writing:
                future.result()
        seconds = time.perf_counter() - begin
    if frames.count and written < frames.count and not (args.limit or stop() or args.show):
        logging.warning('%s says that it has %d frames, and %d could be read', args.video, frames.count, written)
    print('video: %s\njson lines: %s' % (output.video, output.lines))
    print(json.dumps(dict(finder.figures(), frames=written, people=people, tracks=tracker.count,
                          frames_per_s=round(written / seconds, 2), scales=list(args.scales), flip=args.flip)))


def _jobs(frames, views, stop, limit):
    for number, (index, pixels) in enumerate(frames, start=1):
        if stop():
            return
        yield Job(index, lambda pixels=pixels: Picture(pixels, 1, views, None))
        if number == limit:
            return


def frame_record(index, seconds, numbers, keypoints, scores):
    """A frame's people for its JSON line: their number, score, and x, y, score of each part, 0, 0, 0 where absent."""
    flat = np.round(np.nan_to_num(np.asarray(keypoints, np.float64)), 3).reshape(len(numbers), -1)
    return {'frame': index, 'time': round(seconds, 4),
            'people': [{'id': number, 'score': round(float(score), 4), 'pose_keypoints_2d': person.tolist()}
                       for number, person, score in zip(numbers, flat, scores)]}


def _draw_and_write(output, pixels, keypoints, numbers, record, skeleton):
    picture = draw_numbered(pixels, keypoints, numbers, skeleton)
    output.write(picture, record)
    return picture


def draw_numbered(image, keypoints, numbers, skeleton=pose_skeleton.COCO):
    """Skeletons with each person's number above the highest part: a new uint8 (H, W, 3) image."""
    picture = pose_draw.draw_skeletons(image, keypoints, skeleton=skeleton)
    size = max(0.4, image.shape[0] / 800)
    for person, number in zip(keypoints, numbers):
        x, y = person[np.nanargmin(person[:, 1]), :2]
        place = int(np.clip(x, 0, image.shape[1])), int(np.clip(y - 12 * size, 20 * size, image.shape[0]))
        for colour, thickness in ((pose_draw.INK, 4), (pose_draw.PAPER, 1)):
            cv2.putText(picture, str(number), place, pose_draw.FONT, size, colour, max(1, int(thickness * size)),
                        cv2.LINE_AA)
    return picture


def check_display():
    """Raise UserError where OpenCV cannot open windows."""
    if 'GUI:                           NONE' in cv2.getBuildInformation():
        raise UserError('--show needs an OpenCV with windows: install opencv-python in place of opencv-python-headless')
    if sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError('--show needs a display, and $DISPLAY is not set; leave it out, or use `ssh -X`')


def _show(title, picture):
    """Show a frame; whether the user wants to end (q or Escape)."""
    cv2.imshow(title, picture)
    return cv2.waitKey(1) & 0xff in (ESCAPE, QUIT)
