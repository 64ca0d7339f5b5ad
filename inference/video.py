"""People keep their number from frame to frame.

Each person of a new frame takes the number of the most similar one of the last frames, most similar pairs first. The
similarity of two people is COCO's object keypoint similarity (OKS) of their poses: 1 for equal ones, 0 for ones far
apart in terms of their size. That is all: nothing is predicted and looks do not count, so two people who cross while
one hides the other may come out with each other's number.
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

import pose_draw
from annotations.skeleton import COCO_SKELETON
from pose_errors import UserError

from .predictor import InputImage, Predictor, Request, make_views

MIN_OKS = 0.2  # below, two poses are two people
MAX_HIDDEN_FRAMES = 12  # frames that a person may be hidden
MIN_COMMON_PARTS = 2


def part_sigmas(skeleton=COCO_SKELETON):
    """COCO's spread of each part, in units of the square root of a person's area: float64 (parts,)."""
    return np.array([np.mean([skeleton.sigmas[keypoint] for keypoint in source]) for source in skeleton.sources])


def pose_similarity(poses, others, sigmas):
    """OKS of each pose with each other one, over the parts that both have.

    Args:
        poses: (A, parts, 2 or 3) of x, y in pixels, NaN where absent; others: (B, parts, 2 or 3).
        sigmas: (parts,), as from part_sigmas.
    Returns:
        float64 (A, B), 0 where two poses have fewer than MIN_COMMON_PARTS parts in common.
    """
    poses, others = (np.asarray(people, np.float64)[:, :, :2] for people in (poses, others))
    area = np.maximum(_areas(poses)[:, None], _areas(others))
    distance = ((poses[:, None] - others) ** 2).sum(axis=3)
    common = np.isfinite(distance)
    similarity = np.exp(-np.where(common, distance, 0) / (2 * area[:, :, None] * (2 * sigmas) ** 2)) * common
    count = common.sum(axis=2)
    return np.where(count >= MIN_COMMON_PARTS, similarity.sum(axis=2) / np.maximum(count, 1), 0)


def _areas(poses):
    """Of the boxes around people (people, parts, 2); at least a quarter of the length's square."""
    if not poses.size:
        return np.zeros(len(poses))
    here = np.isfinite(poses)
    sides = np.where(here, poses, -np.inf).max(axis=1) - np.where(here, poses, np.inf).min(axis=1)
    return np.maximum(np.maximum(sides.prod(axis=1), sides.max(axis=1) ** 2 / 4), 1.0)


class Tracker:
    """Numbers people, from 1 on, in the order in which they appear."""

    def __init__(self, skeleton=COCO_SKELETON, min_oks=MIN_OKS, memory=MAX_HIDDEN_FRAMES):
        self._sigmas, self._min_oks, self._memory = part_sigmas(skeleton), min_oks, memory
        self._frame = 0
        self._seen = {}  # number: (frame, pose)
        self.count = 0

    def update(self, keypoints):
        """The numbers of the people of the next frame, keypoints (people, parts, 3): a list of ints."""
        self._frame += 1
        self._seen = {number: seen for number, seen in self._seen.items() if self._frame - seen[0] <= self._memory}
        known = list(self._seen)
        numbers = [None] * len(keypoints)
        if known and len(keypoints):
            similarity = pose_similarity(keypoints, np.array([self._seen[number][1] for number in known]), self._sigmas)
            while similarity.max() >= self._min_oks:
                person, other = np.unravel_index(similarity.argmax(), similarity.shape)
                numbers[person] = known[other]
                similarity[person], similarity[:, other] = -1, -1
        for person, number in enumerate(numbers):
            if number is None:
                self.count += 1
                numbers[person] = self.count
            self._seen[numbers[person]] = self._frame, keypoints[person]
        return numbers


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


def find_people_in_video(predict_maps, args, decoders, stop, skeleton=COCO_SKELETON):
    """--video: write the annotated video and its JSON lines, show frames per second, print a summary.

    stop: a function; when it returns True, it ends early, and what was found until then is written as a whole.
    """
    with contextlib.closing(Frames(args.video)) as frames:
        name = 'camera' + args.video if frames.is_camera else os.path.splitext(os.path.basename(args.video))[0]
        views = make_views(frames.width, frames.height, args.input_size, args.scale, args.scales, args.flip)
        # A camera's frames should not wait for others to come.
        finder = Predictor(predict_maps, 1 if frames.is_camera else args.batchsize, decoders,
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
    print(json.dumps(dict(finder.timings(), frames=written, people=people, tracks=tracker.count,
                          frames_per_s=round(written / seconds, 2), scales=list(args.scales), flip=args.flip)))


def _jobs(frames, views, stop, limit):
    for number, (index, pixels) in enumerate(frames, start=1):
        if stop():
            return
        yield Request(index, lambda pixels=pixels: InputImage(pixels, 1, views, None))
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


def draw_numbered(image, keypoints, numbers, skeleton=COCO_SKELETON):
    """Skeletons with each person's number above the highest part: a new uint8 (H, W, 3) image."""
    picture = pose_draw.draw_skeletons(image, keypoints, skeleton=skeleton)
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


def _show(title, picture):
    """Show a frame; whether the user wants to end (q or Escape)."""
    cv2.imshow(title, picture)
    return cv2.waitKey(1) & 0xff in (ESCAPE, QUIT)
