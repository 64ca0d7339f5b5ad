"""People in many images: reading, network and decoding side by side.

Threads read and warp images ahead of the network (OpenCV leaves Python's lock while it works), the network takes images
of equal size in batches, and processes decode its maps, so that it need not wait for Python.

    with start_decoders() as decoders:
        finder = Finder(predict_maps, batchsize=4, decoders=decoders)
        for key, picture, keypoints, scores in finder.find(jobs):
            ...
        finder.figures()
"""
import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time

import cv2
import numpy as np

import pose_augment
import pose_average
import pose_skeleton
from pose_cli import UserError
from pose_decode import MIN_PARTS, decode_people

MAX_DECODERS = 8
READERS = 4
# What goes through the network at once, in pixels: bounds its memory for large inputs, which then go one by one.
MAX_BATCH_PIXELS = 8 * 368 * 496
# What waits for the network, or after it for its people, in bytes of images: large photographs wait one by one.
MAX_HELD_BYTES = 128 << 20

# key: the caller's; read: function () -> Picture, or None to leave it out. It is called in a thread.
Job = collections.namedtuple('Job', 'key read')
# pixels: uint8 (H, W, 3), the image at 1 / reduction of its size; views: its pose_average.Views;
# joints: (people, parts, 2) labels in image pixels, or None.
Picture = collections.namedtuple('Picture', 'pixels reduction views joints')
# images, joints: of each view; size: of all images, in bytes.
_Item = collections.namedtuple('_Item', 'key picture images joints size')


class Finder:
    """Finds people with a network, and knows where the time went.

    Args:
        predict_maps: function (images uint8 (B, H, W, 3), joints) -> maps (B, h, w, channels); a network has no use for
            the joints, a list of B arrays (people, parts, 2) in input pixels.
        batchsize: images of equal size that go through the network at once, at most; a mirror image counts as one more.
        decoders: an executor of decoding, from start_decoders; None decodes in this process.
        min_parts: people with fewer parts are left out.
        ahead: images that are read before, and decoded after the network had them, at most.
    """

    def __init__(self, predict_maps, batchsize=1, decoders=None, min_parts=MIN_PARTS, skeleton=pose_skeleton.COCO,
                 ahead=None):
        self._predict_maps, self._batchsize, self._decoders = predict_maps, batchsize, decoders
        self._min_parts, self._skeleton = min_parts, skeleton
        self._ahead = ahead or max(4, 2 * batchsize)
        self._batches = []  # (images, network seconds, seconds of waiting)
        self._decode_seconds = []

    def find(self, jobs):
        """Yield (key, picture, keypoints (people, parts, 3) in image pixels, scores (people,)), in the jobs' order.

        Raises:
            UserError: from job.read and the network, or a decoding process died.
        """
        decoding = collections.deque()
        items = _read_ahead(jobs, self._ahead + self._batchsize, self._skeleton)
        with contextlib.closing(self._batches_of(items)) as batches:
            for batch, waited in batches:
                begin = time.perf_counter()
                maps = self._run(batch)
                network = time.perf_counter() - begin
                begin = time.perf_counter()
                for item, item_maps in zip(batch, maps):
                    decoding.append((item, self._decode(item_maps, item.picture.views)))
                while decoding and (len(decoding) > self._ahead or decoding[0][1].done()
                                    or sum(item.size for item, _ in decoding) > MAX_HELD_BYTES):
                    yield self._decoded(decoding.popleft())
                self._batches.append((len(batch), network, waited + time.perf_counter() - begin))
            while decoding:
                yield self._decoded(decoding.popleft())

    def figures(self):
        """{'network_ms', 'decode_ms': means an image, 'waiting': the share of the time in which the network had nothing
        to do}, without the first batch, which warms up."""
        if not self._batches:
            return {'decode_ms': None, 'network_ms': None, 'waiting': None}
        batches = np.array(self._batches[1:] or self._batches).reshape(-1, 3)
        images, network, waited = batches.sum(axis=0)
        first = int(self._batches[0][0]) if len(self._batches) > 1 else 0
        return {'decode_ms': round(1000 * float(np.mean(self._decode_seconds[first:])), 3),
                'network_ms': round(1000 * network / images, 3),
                'waiting': round(waited / max(waited + network, 1e-9), 3)}

    def _batches_of(self, items):
        """Batches of consecutive items whose views have the same sizes, and the seconds that each took to come."""
        batch, begin = [], time.perf_counter()
        for item in items:
            sizes = [image.shape for image in item.images]
            if batch and (len(batch) == self._batchsize or sizes != [image.shape for image in batch[0].images]
                          or (len(batch) + 1) * item.size > MAX_HELD_BYTES):
                yield batch, time.perf_counter() - begin
                batch, begin = [], time.perf_counter()
            batch.append(item)
        if batch:
            yield batch, time.perf_counter() - begin

    def _run(self, batch):
        """Maps of all views of a batch: for each item, a list of arrays (h, w, channels)."""
        maps = [[None] * len(item.images) for item in batch]
        for shape in collections.OrderedDict.fromkeys(image.shape for image in batch[0].images):
            places = [(k, view) for k, item in enumerate(batch) for view in range(len(item.images))
                      if item.images[view].shape == shape]
            count = max(1, min(self._batchsize, MAX_BATCH_PIXELS // (shape[0] * shape[1])))
            for first in range(0, len(places), count):
                part = places[first:first + count]
                found = np.asarray(self._predict_maps(np.stack([batch[k].images[view] for k, view in part]),
                                                      [batch[k].joints[view] for k, view in part]))
                if found.ndim != 4 or len(found) != len(part):
                    raise UserError('the network gives maps of shape %s for %d images; give a network of this project'
                                    % (found.shape, len(part)))
                for (k, view), single in zip(part, found):
                    maps[k][view] = single
        return maps

    def _decode(self, maps, views):
        arguments = maps, views, self._min_parts, self._skeleton
        try:
            if self._decoders:
                return self._decoders.submit(decode_views, *arguments)
            return _Done(decode_views(*arguments))
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError('a process that decodes maps died; is the memory full? Give --decoders=1')

    def _decoded(self, item):
        (key, picture, *_), future = item
        try:
            keypoints, scores, seconds = future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError('a process that decodes maps died; is the memory full? Give --decoders=1')
        self._decode_seconds.append(seconds)
        return key, picture, keypoints, scores


def decode_views(maps, views, min_parts=MIN_PARTS, skeleton=pose_skeleton.COCO):
    """Average the maps of an image's views and decode them.

    Returns:
        keypoints (people, parts, 3) of x, y in image pixels and score; scores (people,); seconds that it took.
    """
    begin = time.perf_counter()
    averaged, stride, matrix = pose_average.average_maps(maps, views, skeleton)
    keypoints, scores = decode_people(averaged, stride, min_parts, skeleton)
    inverse = cv2.invertAffineTransform(matrix)
    keypoints[:, :, :2] = keypoints[:, :, :2] @ inverse[:, :2].T + inverse[:, 2]
    return keypoints, scores, time.perf_counter() - begin


class _Done:
    """A result that is there already, as a future."""

    def __init__(self, value):
        self._value = value

    def done(self):
        return True

    def result(self):
        return self._value


def _read_ahead(jobs, ahead, skeleton):
    """An _Item of each job, read by threads at most `ahead` jobs before their turn; fewer where images are large."""
    jobs = iter(jobs)
    waiting, size = collections.deque(), MAX_HELD_BYTES  # of an image; the first one is read alone
    executor = concurrent.futures.ThreadPoolExecutor(READERS)
    try:
        while True:
            room = max(1, min(ahead, MAX_HELD_BYTES // size)) - len(waiting)
            waiting.extend(executor.submit(_read, job, skeleton) for job in itertools.islice(jobs, max(0, room)))
            if not waiting:
                return
            item = waiting.popleft().result()
            if item is not None:
                size = item.size
                yield item
    finally:
        for future in waiting:
            future.cancel()
        executor.shutdown()


def _read(job, skeleton):
    picture = job.read()
    if picture is None:
        return None
    images = [pose_average.view_image(picture.pixels, view, picture.reduction) for view in picture.views]
    joints = [None if picture.joints is None else pose_augment.transform_joints(picture.joints, view.matrix, skeleton)
              for view in picture.views]
    return _Item(job.key, picture, images, joints, sum(image.nbytes for image in [picture.pixels] + images))


@contextlib.contextmanager
def start_decoders(count=None):
    """An executor with processes that decode maps; they start while the caller goes on, as to load the network.

    count: of processes; None for one less than the processor has cores, at most MAX_DECODERS; 0 gives None, which
        decodes in the caller's process.
    """
    if count is None:
        count = min(MAX_DECODERS, (os.cpu_count() or 1) - 1)
    if not count:
        yield None
        return
    # Not forked from this process: the threads of OpenCV and TensorFlow do not survive that.
    context = multiprocessing.get_context('forkserver' if 'forkserver' in multiprocessing.get_all_start_methods()
                                          else 'spawn')
    with concurrent.futures.ProcessPoolExecutor(count, context, _start_decoder) as executor:
        executor.submit(os.getpid)
        yield executor


def _start_decoder():
    """In a decoding process: Ctrl-C is the parent's affair, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
