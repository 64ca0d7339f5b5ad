"""People in many images: reading, network and decoding side by side.

    threads that read images -> the network, in the caller's thread -> processes that decode maps -> people, in order

Test-time augmentation shows an image to the network several times, at other sizes and mirrored: Cao et al. report
their COCO results both for one size and for maps averaged over four sizes and mirror images. An InputTransform says how
the image becomes one input of the network; `average_maps` brings all maps to the grid of the largest one.
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
from annotations.images import shrink
from pose_errors import UserError
from pose_files import usable_cores

from .decode import MIN_PARTS, PEAK_THRESHOLD, decode_people

# A size that every network here takes: some halve the image three times although their output stride is 4.
SIZE_MULTIPLE = 8
DEFAULT_SIZE = (368, 368)
# The longer edge of an input, in shorter ones: what a panorama may cost in memory and time.
MAX_ASPECT = 4
# Bilinear warping averages only 4 pixels: images that shrink are first averaged down, or fine patterns would alias.
MAX_WARP_SCALE = 1.25
KEYS = -0.5  # the cubic of Keys (1981), which is exact for parabolas

MAX_DECODERS = 8
READERS = 4
RECENT = 10000  # batches and images: a camera may run for ever
# What goes through the network at once, in pixels: bounds its memory for large inputs, which then go one by one.
MAX_BATCH_PIXELS = 8 * 368 * 496
# What waits for the network, or after it for its people, in bytes of images: large photographs wait one by one.
MAX_HELD_BYTES = 128 << 20

# How an image becomes one input of the network. matrix: 2x3 float64 affine, image pixels -> input pixels, with a
# negative determinant where it mirrors; width, height: of the input.
InputTransform = collections.namedtuple('InputTransform', 'matrix width height')

# pixels: uint8 (H, W, 3), the image at 1 / reduction of its size; transforms: its InputTransforms; maps: what takes the
# place of the network's output for each transform, float32 (h, w, channels), or None to ask the network.
InputImage = collections.namedtuple('InputImage', 'pixels reduction transforms maps')

# key: the caller's; read: function () -> InputImage, or None to leave it out. It is called in a thread.
Request = collections.namedtuple('Request', 'key read')

# inputs: uint8 (height, width, 3) for each transform; size: of all pixels, in bytes.
_Item = collections.namedtuple('_Item', 'key image inputs size')


def fitted_size(image_width, image_height, input_size=None, short_edge=None, scale=1.0):
    """The network input's (width, height) for an image: input_size, or the image's shape with the given short edge and
    a longer one of at most MAX_ASPECT times that; both times `scale`.

    Sides other than those of input_size itself are rounded up to multiples of SIZE_MULTIPLE; the image is letterboxed
    into them, never distorted.
    """
    if short_edge is None:
        sides = input_size or DEFAULT_SIZE
        if scale == 1:
            return tuple(sides)
    else:
        ratio = short_edge / min(image_width, image_height)
        sides = [min(side * ratio, MAX_ASPECT * short_edge) for side in (image_width, image_height)]
    return tuple(max(1, int(np.ceil(side * scale / SIZE_MULTIPLE - 1e-6))) * SIZE_MULTIPLE for side in sides)


def make_transforms(image_width, image_height, input_size=None, short_edge=None, scales=(1.0,), flip=False):
    """The InputTransforms of an image: one for each scale, and with `flip` a mirrored one after each."""
    transforms = []
    for scale in scales:
        width, height = fitted_size(image_width, image_height, input_size, short_edge, scale)
        matrix = pose_augment.fit_matrix(image_width, image_height, width, height)
        transforms.append(InputTransform(matrix, width, height))
        if flip:
            transforms.append(InputTransform(np.stack([[0, 0, width - 1] - matrix[0], matrix[1]]), width, height))
    return transforms


def transform_image(pixels, transform, reduction=1):
    """The network's input, uint8 (height, width, 3), of an image uint8 (H, W, 3) at 1 / reduction of its size."""
    factor = max(1, int(MAX_WARP_SCALE / (pose_augment.matrix_scale(transform.matrix) * reduction)))
    matrix = pose_augment.reduced_matrix(transform.matrix, factor * reduction)
    return pose_augment.warp_image(shrink(pixels, factor), matrix, transform.width, transform.height)


def average_maps(maps, transforms, skeleton):
    """The mean of the maps of several inputs of an image, on the grid of the largest one that is not mirrored.

    Maps of other sizes are interpolated with cubics, as smooth as the maps are. Only the sum is kept beside the maps.

    Args:
        maps: for each input float32 (h, w, channels), heatmaps, then PAFs, as the network gives them.
        transforms: the InputTransforms of the inputs.
    Returns:
        (float32 (h, w, channels), stride, matrix): the maps, input pixels per cell, and the 2x3 affine from image
        pixels to the input pixels that they refer to.
    """
    upright = [k for k, transform in enumerate(transforms) if not pose_augment.is_mirrored(transform.matrix)]
    reference = max(upright, key=lambda k: transforms[k].width)
    target, shape = transforms[reference], maps[reference].shape
    stride = target.width / shape[1]
    if len(transforms) == 1:
        return maps[0], stride, target.matrix
    heat = skeleton.heatmap_channels
    heat_order, paf_order, paf_sign = mirrored_channels(skeleton)
    total = np.zeros(shape, np.float32)
    weight = np.zeros(shape[2], np.float32)
    for single, transform in zip(maps, transforms):
        if not pose_augment.is_mirrored(transform.matrix):
            weight += 1
        else:
            single = np.concatenate([single[:, :, heat_order], single[:, :, heat + paf_order] * paf_sign], axis=2)
            weight += np.concatenate([np.ones(heat), np.abs(paf_sign)])
        for channels, part in _resampled(single, shape, target, transform, heat):
            total[:, :, channels] += part
    return total / weight, stride, target.matrix


def maps_over_image(maps, transforms, skeleton, width, height):
    """The averaged maps on a grid that covers an image of that size, in cells as large as theirs: float32 (h, w, C).

    Inputs that are letterboxed show more than the image, or less than their own borders. maps, transforms: as for
    average_maps.
    """
    averaged, stride, matrix = average_maps(maps, transforms, skeleton)
    source = InputTransform(matrix, averaged.shape[1] * stride, averaged.shape[0] * stride)
    target = InputTransform(np.eye(2, 3), width, height)
    cell = stride / pose_augment.matrix_scale(matrix)
    shape = [max(1, int(round(side / cell))) for side in (height, width)]
    return np.concatenate([part for _, part in _resampled(averaged, shape, target, source, skeleton.heatmap_channels)],
                          axis=2)


def mirrored_channels(skeleton):
    """Which channels of a mirrored image's maps take the place of a channel, once the picture is turned back.

    Returns:
        heat_order (heatmap channels,) and paf_order (PAF channels,): indices; paf_sign (PAF channels,): the factor of
        each PAF channel, -1 for x, and 0 for a limb without a counterpart.
    """
    places = {limb[::-1]: (k, -1) for k, limb in enumerate(skeleton.limbs)}  # of limbs and their directions
    places.update({limb: (k, 1) for k, limb in enumerate(skeleton.limbs)})
    paf_order, paf_sign = [], []
    for a, b in skeleton.limbs:
        k, sign = places.get((skeleton.flip_order[a], skeleton.flip_order[b]), (0, 0))
        paf_order += [2 * k, 2 * k + 1]
        paf_sign += [-sign, sign]
    heat_order = np.array(list(skeleton.flip_order) + [skeleton.background])
    return heat_order, np.array(paf_order), np.array(paf_sign, np.float32)


def _resampled(maps, shape, target, transform, heat):
    """Yield (channels, maps on the target's grid of `shape` cells) for the heatmaps, the first `heat` channels of a
    transform's maps, and for the PAFs."""
    # A cell g of the heatmaps stands for the input pixel stride * g + stride / 2 - 0.5, one of the PAFs for
    # stride * g: that is how the labels are made.
    for channels, shift in ((slice(0, heat), 0.5), (slice(heat, None), 0.0)):
        part = np.asarray(maps[:, :, channels], np.float32)
        for axis in (0, 1):  # rows, then columns
            cells = _input_cells(1 - axis, shape[axis], maps.shape[axis], target, transform, shift)
            part = interpolated(part, cells, axis)
        yield channels, part


def _input_cells(axis, target_cells, input_cells, target, transform, shift):
    """Where the centres of the target's cells lie among another transform's, in one axis: float64 (target_cells,). For
    matrices without rotation, as fit_matrix gives."""
    size = (target.width, target.height)[axis], (transform.width, transform.height)[axis]
    strides = size[0] / target_cells, size[1] / input_cells
    offsets = [shift * (stride - 1) for stride in strides]
    pixel = strides[0] * np.arange(target_cells) + offsets[0]
    image = (pixel - target.matrix[axis, 2]) / target.matrix[axis, axis]
    return (transform.matrix[axis, axis] * image + transform.matrix[axis, 2] - offsets[1]) / strides[1]


def interpolated(maps, positions, axis):
    """Cubic interpolation along one axis; outside, the border's value goes on. Four weighted sums and no matrix
    product: several decoding processes would fight over a BLAS library's threads."""
    count = maps.shape[axis]
    nearest = np.round(positions)
    if np.abs(positions - nearest).max() < 1e-6:  # the same grid, or its mirror image
        return maps.take(np.clip(nearest, 0, count - 1).astype(int), axis=axis)
    first = np.floor(positions).astype(int) - 1
    total = 0
    for cell in (first, first + 1, first + 2, first + 3):
        distance = np.abs(positions - cell)
        near = ((KEYS + 2) * distance - (KEYS + 3)) * distance ** 2 + 1
        far = KEYS * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0)).astype(np.float32)
        total = total + maps.take(np.clip(cell, 0, count - 1), axis=axis) * weight.reshape((-1,) + (1,) * (2 - axis))
    return total


class Predictor:
    """Finds people with a network, and knows where the time went.

    Args:
        predict_maps: function (images uint8 (B, H, W, 3)) -> maps (B, h, w, channels).  skeleton: what it finds.
        batchsize: images of equal size that go through the network at once, at most; a mirror image counts as one more.
        decoders: an executor of decoding, from start_decoders; None decodes in this process.
        min_parts, threshold: as for decode_people.  min_score: people of a lower score are left out.
        ahead: images that are read before, and decoded after the network had them, at most.
        keep_maps: whether find_people's images have the maps of each transform.
    """

    def __init__(self, predict_maps, skeleton, batchsize=1, decoders=None, min_parts=MIN_PARTS, ahead=None,
                 threshold=PEAK_THRESHOLD, min_score=0.0, keep_maps=False):
        self._predict_maps, self._batchsize, self._decoders = predict_maps, batchsize, decoders
        self._min_parts, self._threshold, self._min_score, self._skeleton = min_parts, threshold, min_score, skeleton
        self._ahead, self._keep_maps = ahead or max(4, 2 * batchsize), keep_maps
        self._batches = collections.deque(maxlen=RECENT)  # (images, network seconds, seconds of waiting)
        self._decode_seconds = collections.deque(maxlen=RECENT)

    def find_people(self, requests):
        """Yield (key, image, keypoints (people, parts, 3) in image pixels, scores (people,)), in the requests' order.

        Raises UserError: from request.read and the network, or a decoding process died.
        """
        decoding = collections.deque()
        items = _read_ahead(requests, self._ahead + self._batchsize)
        try:
            with contextlib.closing(self._batches_of(items)) as batches:
                for batch, waited in batches:
                    begin = time.perf_counter()
                    maps = self._run(batch)
                    network = time.perf_counter() - begin
                    begin = time.perf_counter()
                    for item, item_maps in zip(batch, maps):
                        if self._keep_maps:
                            item = item._replace(image=item.image._replace(maps=item_maps))
                        decoding.append((item, self._decode(item_maps, item.image.transforms)))
                    while decoding and (len(decoding) > self._ahead or decoding[0][1].done()
                                        or sum(item.size for item, _ in decoding) > MAX_HELD_BYTES):
                        yield self._decoded(decoding.popleft())
                    self._batches.append((len(batch), network, waited + time.perf_counter() - begin))
                while decoding:
                    yield self._decoded(decoding.popleft())
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError('a process that decodes maps died; is the memory full? Give --decoders=1')

    def timings(self):
        """{'network_ms', 'decode_ms': means an image, 'waiting': the share of the time in which the network had nothing
        to do}, of the last RECENT ones, without the first batch, which warms up."""
        if not self._batches:
            return {'decode_ms': None, 'network_ms': None, 'waiting': None}
        batches, decoding = list(self._batches), list(self._decode_seconds)
        images, network, waited = np.sum(batches[1:] or batches, axis=0)
        first = batches[0][0] if len(batches) > 1 else 0
        return {'decode_ms': round(1000 * float(np.mean(decoding[first:])), 3),
                'network_ms': round(1000 * network / images, 3),
                'waiting': round(waited / max(waited + network, 1e-9), 3)}

    def _batches_of(self, items):
        """Batches of consecutive items whose inputs have the same sizes, and the seconds that each took to come."""
        batch, begin = [], time.perf_counter()
        for item in items:
            sizes = [single.shape for single in item.inputs]
            if batch and (len(batch) == self._batchsize or sizes != [single.shape for single in batch[0].inputs]
                          or (len(batch) + 1) * item.size > MAX_HELD_BYTES):
                yield batch, time.perf_counter() - begin
                batch, begin = [], time.perf_counter()
            batch.append(item)
        if batch:
            yield batch, time.perf_counter() - begin

    def _run(self, batch):
        """Maps of all inputs of a batch: for each item, a list of arrays (h, w, channels)."""
        maps = [list(item.image.maps or [None] * len(item.inputs)) for item in batch]
        missing = [(k, number) for k, item in enumerate(batch) for number in range(len(item.inputs))
                   if maps[k][number] is None]
        for shape in collections.OrderedDict.fromkeys(single.shape for single in batch[0].inputs):
            places = [(k, number) for k, number in missing if batch[k].inputs[number].shape == shape]
            count = max(1, min(self._batchsize, MAX_BATCH_PIXELS // (shape[0] * shape[1])))
            for first in range(0, len(places), count):
                part = places[first:first + count]
                found = np.asarray(self._predict_maps(np.stack([batch[k].inputs[number] for k, number in part])))
                if found.ndim != 4 or len(found) != len(part):
                    raise UserError('the network gives maps of shape %s for %d images; give a network of this project'
                                    % (found.shape, len(part)))
                for (k, number), single in zip(part, found):
                    maps[k][number] = single
        return maps

    def _decode(self, maps, transforms):
        arguments = maps, transforms, self._min_parts, self._skeleton, self._threshold
        if self._decoders:
            return self._decoders.submit(average_and_decode, *arguments)
        done = concurrent.futures.Future()
        done.set_result(average_and_decode(*arguments))
        return done

    def _decoded(self, item):
        (key, image, *_), future = item
        keypoints, scores, seconds = future.result()
        self._decode_seconds.append(seconds)
        kept = scores >= self._min_score
        return key, image, keypoints[kept], scores[kept]


def average_and_decode(maps, transforms, min_parts, skeleton, threshold=PEAK_THRESHOLD):
    """Average the maps of an image's inputs and decode them: keypoints (people, parts, 3) of x, y in image pixels and
    score; scores (people,); seconds that it took."""
    begin = time.perf_counter()
    averaged, stride, matrix = average_maps(maps, transforms, skeleton)
    keypoints, scores = decode_people(averaged, stride, min_parts, skeleton, threshold)
    inverse = cv2.invertAffineTransform(matrix)
    keypoints[:, :, :2] = keypoints[:, :, :2] @ inverse[:, :2].T + inverse[:, 2]
    return keypoints, scores, time.perf_counter() - begin


def _read_ahead(requests, ahead):
    """An _Item of each request, read by threads at most `ahead` before their turn, fewer where images are large."""
    requests = iter(requests)
    waiting, size = collections.deque(), MAX_HELD_BYTES  # of an image; the first one is read alone
    executor = concurrent.futures.ThreadPoolExecutor(READERS)
    try:
        while True:
            room = max(1, min(ahead, MAX_HELD_BYTES // size)) - len(waiting)
            waiting.extend(executor.submit(_read, request) for request in itertools.islice(requests, max(0, room)))
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


def _read(request):
    image = request.read()
    if image is None:
        return None
    inputs = [transform_image(image.pixels, transform, image.reduction) for transform in image.transforms]
    return _Item(request.key, image, inputs, sum(pixels.nbytes for pixels in [image.pixels] + inputs))


@contextlib.contextmanager
def start_decoders(count=None):
    """An executor with so many processes that decode maps; they start while the caller goes on. None for one less than
    the processor has cores, at most MAX_DECODERS; 0 gives None, which decodes in the caller's process."""
    if count is None:
        count = min(MAX_DECODERS, usable_cores() - 1)
    if not count:
        yield None
        return
    # Not forked from this process: the threads of OpenCV and TensorFlow do not survive that.
    context = multiprocessing.get_context('forkserver' if 'forkserver' in multiprocessing.get_all_start_methods()
                                          else 'spawn')
    # Nothing is ever sent: the pipe ends when this process does, however that comes about.
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, concurrent.futures.ProcessPoolExecutor(count, context, _start_decoder, (reader,)) as executor:
        executor.submit(os.getpid)
        yield executor


def _start_decoder(parent):
    """In a decoding process: Ctrl-C is the parent's affair, and it does not outlive its parent. That is, in the
    system's eyes, a server that forks it, which lives as long as one of its children does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def watch():
        parent.poll(None)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
