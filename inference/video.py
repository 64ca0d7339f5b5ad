"""People in films and cameras: an annotated video, and a line of JSON for each frame.

Reading, network, and drawing and writing run side by side. A file gives each frame once, with the time that its decoder
says; a camera, or another source that goes on meanwhile, gives the newest frame only.
"""
import collections
import concurrent.futures
import contextlib
import logging
import os
import queue
import re
import sys
import threading
import time
import urllib.parse

import cv2
import numpy as np
from tqdm import tqdm

import pose_draw
from pose_errors import UserError

from .decode import keypoint_lists
from .film import SLACK, Output, find_ffmpeg, is_cut_short, opencv_path
from .predictor import InputImage, Predictor, Request, make_transforms
from .tracking import Smoother, Tracker

DEFAULT_FPS = 25.0
MAX_FPS = 240.0  # above, it is the clock of a film whose frames have no rate
RATE_FRAMES = 8  # whose times tell a film's rate
FRAMES_AHEAD = 8
END = object()
ESCAPE, QUIT = 27, ord('q')
CAMERA = re.compile(r'[0-9]{1,4}$')  # a longer number is a file's name
URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*://')

# FFmpeg's own remarks on broken files; what matters of them becomes an error line.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

# index: of the frame, counted from 0, those included that a camera gave while nobody looked; seconds: since the start.
Frame = collections.namedtuple('Frame', 'index seconds pixels')


class Frames:
    """The Frames of a video file, a camera or a stream: an iterable, read by a thread of its own.

    A file's frames wait for the reader; of a live source only the newest one is kept.

    Args:
        source: path of a file or of a camera (/dev/video0), the number of a camera as text, or a URL.
    Attributes:
        height, width: in pixels, upright.  fps: the nominal rate, or that of the first frames where it is higher: a
            film of varying rate names its mean.  count, seconds: of frames and how long they take, as the file says,
            or None.
        is_live: whether it goes on while nobody reads.
    Raises UserError: there is no such file or camera, or it holds no video.
    """

    def __init__(self, source):
        is_url = bool(URL.match(source))
        is_numbered = bool(CAMERA.match(source))
        is_camera = is_numbered or (  # or the path of one, as /dev/video0, there or not
            os.path.realpath(source).startswith('/dev/') and not os.path.isfile(source))
        if not (is_url or is_camera or os.path.isfile(source)):
            raise UserError('--video=%s: there is no such file; give a video, the number of a camera or its device, or '
                            'a URL' % source)
        cv2.setLogLevel(0)  # OpenCV's own remarks
        # A time in a relative name (2024-05-01T12:30:05.mp4) would be taken for a protocol.
        self._capture = cv2.VideoCapture(int(source) if is_numbered else source if is_url else
                                         opencv_path(source, '--video'))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # phones store their films as the sensor lies
        readable, first = self._capture.read()
        if not readable:
            self._capture.release()
            raise UserError('camera %s gives no picture; is it connected and free?' % source if is_camera else
                            '--video=%s cannot be opened, or gives no picture; does a player show it?' % source
                            if is_url else '--video=%s: OpenCV cannot read a frame of it; convert it, for example to '
                            'H.264 in .mp4' % source)
        self.height, self.width = first.shape[:2]
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if np.isfinite(fps) and 1 <= fps <= MAX_FPS else DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not is_camera and 0 < count < 1e9 else None
        self.seconds = self.count and self.count / self.fps
        self.is_live = is_camera or is_url and self.count is None
        self._start = time.monotonic()
        self._first = [Frame(0, self._time_after(None), first)]
        if not self.is_live:
            self._look_ahead()
        self._queue = queue.Queue(1 if self.is_live else FRAMES_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __iter__(self):
        return iter(self._queue.get, END)

    def close(self):
        """Stop reading; the iteration ends."""
        self._closed.set()
        self._thread.join()
        self._capture.release()

    def _next(self, last):
        """The Frame after another one; None at the end."""
        readable, pixels = self._capture.read()
        return Frame(last.index + 1, self._time_after(last.seconds), pixels) if readable else None

    def _look_ahead(self):
        while len(self._first) < RATE_FRAMES:
            frame = self._next(self._first[-1])
            if frame is None:
                return
            self._first.append(frame)
        rate = 1 / np.median(np.diff([frame.seconds for frame in self._first]))
        if 1.2 * self.fps < rate <= MAX_FPS:
            self.fps = float(rate)

    def _read(self):
        for frame in self._first:
            self._put(frame)
        frame, self._first = self._first[-1], None
        while not self._closed.is_set():
            frame = self._next(frame)
            if frame is None:
                break
            self._put(frame)
        self._put(END)

    def _time_after(self, before):
        """When the frame that was just read is shown; before: when the one before it was, or None."""
        if self.is_live:
            return time.monotonic() - self._start if before is not None else 0.0
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if before is None:
            return seconds if np.isfinite(seconds) and seconds > 0 else 0.0
        return seconds if np.isfinite(seconds) and seconds > before else before + 1 / self.fps  # without time stamps

    def _put(self, frame):
        while True:
            with contextlib.suppress(queue.Full):
                return self._queue.put(frame, timeout=0.05)
            if self.is_live or self._closed.is_set():
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()


def output_name(source):
    """What the outputs of a source are called: a file's name without its ending, camera0, the end of a URL's path."""
    if CAMERA.match(source):
        return 'camera' + source
    path = urllib.parse.urlsplit(source).path if URL.match(source) else source
    return re.sub(r'[^\w. -]', '_', os.path.splitext(os.path.basename(path))[0]) or 'stream'


def find_people_in_video(predict_maps, skeleton, source, output_dir, stop, decoders=None, batchsize=1, limit=None,
                         show=False, smooth=False, input_size=None, short_edge=None, scales=(1.0,), flip=False,
                         **thresholds):
    """Write the annotated video of a source and its JSON lines; shows frames per second meanwhile.

    Args:
        predict_maps, skeleton, batchsize, decoders: as for inference.predictor.Predictor.
        source: as for Frames.  limit: only the first so many frames.  show: whether to open a window.
        smooth: whether to steady the keypoints (tracking.Smoother).
        stop: a function; when it returns True, it ends early, and what was found until then is written as a whole.
        input_size, short_edge, scales, flip: as for inference.predictor.make_transforms.  thresholds: for Predictor.
    Returns (path of the video, path of the JSON lines, summary as a dict).
    """
    name = output_name(source)
    with contextlib.closing(Frames(source)) as frames:
        transforms = make_transforms(frames.width, frames.height, input_size, short_edge, scales, flip)
        # A camera's frames should not wait for others to come.
        predictor = Predictor(predict_maps, skeleton, 1 if frames.is_live else batchsize, decoders,
                              ahead=1 if frames.is_live else None, **thresholds)
        tracker, smoother = Tracker(skeleton), Smoother()
        found = predictor.find_people(_requests(frames, transforms, stop, limit))
        total = min(filter(None, (frames.count, limit)), default=None)
        people, written, end, begin = 0, 0, 0.0, time.perf_counter()
        output = Output(os.path.join(output_dir, name), frames.fps, frames.width, frames.height,
                        source if os.path.isfile(source) else None)
        with output, concurrent.futures.ThreadPoolExecutor(1) as writer, contextlib.closing(found):
            writing = collections.deque()
            for frame, _, keypoints, scores in tqdm(found, 'finding people', total, unit='frame', disable=None):
                numbers = tracker.update(keypoints, frame.seconds)
                if smooth:
                    keypoints = smoother.update(keypoints, numbers, frame.seconds)
                people, written, end = people + len(numbers), written + 1, frame.seconds + 1 / frames.fps
                writing.append(writer.submit(_draw_and_write, output, frame, keypoints, numbers, scores, skeleton))
                while len(writing) > (0 if show else FRAMES_AHEAD):
                    drawn = writing.popleft().result()
                if show:
                    cv2.imshow(name, drawn)
                    if cv2.waitKey(1) & 0xff in (ESCAPE, QUIT):
                        break
            for future in writing:
                future.result()
        seconds = time.perf_counter() - begin
    if not (limit or stop() or show) and _is_cut_short(source, frames, written, end):
        logging.warning('%s says that it has %d frames in %.1f seconds, and %d in %.1f could be read; it may have been '
                        'cut short', source, frames.count, frames.seconds, written, end)
    return output.video, output.lines, dict(
        predictor.timings(), frames=written, people=people, tracks=tracker.count,
        frames_per_s=round(written / seconds, 2), scales=list(scales), flip=flip)


def _is_cut_short(source, frames, written, end):
    if not frames.count or written >= frames.count or end + SLACK >= frames.seconds:
        return False
    program = os.path.isfile(source) and find_ffmpeg()
    return not program or is_cut_short(program, source, frames.count, frames.seconds, end)


def _requests(frames, transforms, stop, limit):
    for number, frame in enumerate(frames, start=1):
        if stop():
            return
        yield Request(frame, lambda pixels=frame.pixels: InputImage(pixels, 1, transforms, None))
        if number == limit:
            return


def _draw_and_write(output, frame, keypoints, numbers, scores, skeleton):
    picture = draw_numbered(frame.pixels, keypoints, numbers, skeleton)
    people = [{'id': number, 'score': round(float(score), 4), 'pose_keypoints_2d': person}
              for number, person, score in zip(numbers, keypoint_lists(keypoints), scores)]
    output.write(picture, frame.seconds, {'frame': frame.index, 'time': round(frame.seconds, 4), 'people': people})
    return picture


def draw_numbered(image, keypoints, numbers, skeleton):
    """Skeletons with each person's number above the highest part: a new uint8 (H, W, 3) image."""
    picture = pose_draw.draw_skeletons(image, keypoints, skeleton)
    size = max(0.4, image.shape[0] / 800)
    for person, number in zip(keypoints, numbers):
        x, y = person[np.nanargmin(person[:, 1]), :2]
        place = int(np.clip(x, 0, image.shape[1])), int(np.clip(y - 12 * size, 20 * size, image.shape[0]))
        for colour, thickness in ((pose_draw.BLACK, 4), (pose_draw.WHITE, 1)):
            cv2.putText(picture, str(number), place, pose_draw.FONT, size, colour, max(1, int(thickness * size)),
                        cv2.LINE_AA)
    return picture


def check_display():
    """Raise UserError where OpenCV cannot open windows."""
    if 'GUI:                           NONE' in cv2.getBuildInformation():
        raise UserError('--show needs an OpenCV with windows: install opencv-python in place of opencv-python-headless')
    if sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError('--show needs a display, and $DISPLAY is not set; leave it out, or use `ssh -X`')
