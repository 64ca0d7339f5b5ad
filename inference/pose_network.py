"""A network as a function from images to people, for programs: inference.load_network makes it."""
import collections
import numbers
import os

import numpy as np

import networks
from annotations.skeleton import COCO_SKELETON, MAX_NAMED
from networks.pretrained import find_checkpoint, model_of
from pose_draw import draw_skeletons
from pose_errors import UserError

from . import graph_kind, open_network, read_skeleton
from .decode import MIN_PARTS, PEAK_THRESHOLD
from .predictor import InputImage, Predictor, Request, make_transforms

SHORT_EDGE = 368
WHOLE_NUMBERS = {'short_edge': 1, 'batchsize': 1, 'min_parts': 0, 'threads': 1}  # options, and what they are at least
SHARES = 'threshold', 'min_score'
SCALES = 0.1, 4  # the least and the greatest

# keypoints: {name of a part that was found: (x, y, score)}.  score: from 0 to 1.  box: x, y, width, height around them.
# All in pixels of the image.
Person = collections.namedtuple('Person', 'keypoints score box')


def load(path, model=None, threads=None, **options):
    """The PoseNetwork of a file, see inference.load_network. threads: of the processor, None for all."""
    check_options(options if threads is None else dict(options, threads=threads))
    path = os.path.expanduser(str(path))
    if graph_kind(path):
        skeleton = read_skeleton(graph_file=path) or COCO_SKELETON
        return PoseNetwork(*open_network(path, threads=threads), skeleton, **options)
    checkpoint = find_checkpoint(path)
    model = model or model_of(checkpoint) or ('cmu' if path.lower().endswith('.caffemodel') else None)
    if model is None:
        raise UserError('%s does not say of which network it is; give model=NAME, one of %s'
                        % (path, ', '.join(networks.NAMES)))
    skeleton = read_skeleton(checkpoint=checkpoint) or COCO_SKELETON
    maps_and_size = open_network(checkpoint=checkpoint, model=networks.model_name(model), threads=threads,
                                 skeleton=skeleton)
    return PoseNetwork(*maps_and_size, skeleton, **options)


def check_options(options):
    """Raise UserError for a value that an option of load cannot have."""
    for name, value in options.items():
        if name in WHOLE_NUMBERS and not _is_number(value, WHOLE_NUMBERS[name], kind=numbers.Integral):
            wanted = 'a whole number of at least %d' % WHOLE_NUMBERS[name]
        elif name in SHARES and not _is_number(value, 0, 1):
            wanted = 'a number from 0 to 1'
        elif name == 'scales' and not _are_scales(value):
            wanted = 'a list of numbers from %g to %g, as [0.5, 1, 1.5]' % SCALES
        else:
            continue
        raise UserError('load_network: %s=%.40r is not %s' % (name, value, wanted))


def _is_number(value, least, greatest=np.inf, kind=numbers.Real):
    return isinstance(value, kind) and least <= value <= greatest


def _are_scales(value):
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(values, (list, tuple)) and bool(values) and all(_is_number(scale, *SCALES) for scale in values)


class PoseNetwork:
    """Images -> people. A context manager that frees the network at the end of its block.

    Args:
        predict_maps, size: as from inference.open_network.  skeleton: what the network finds.
        short_edge: to which images are brought, in pixels; a graph of a fixed size takes that instead.
        scales, flip: as for predictor.make_transforms: several sizes, and the mirror image too.
        batchsize: images of one size that go through the network at once.
        threshold, min_parts, min_score: as for predictor.Predictor.
    """

    def __init__(self, predict_maps, size, skeleton, short_edge=SHORT_EDGE, scales=(1.0,), flip=False, batchsize=1,
                 threshold=PEAK_THRESHOLD, min_parts=MIN_PARTS, min_score=0.0):
        self.skeleton, self._predict_maps, self._batchsize = skeleton, predict_maps, batchsize
        self._setting = dict({'input_size': size} if size else {'short_edge': short_edge}, scales=scales, flip=flip)
        self._thresholds = dict(threshold=threshold, min_parts=min_parts, min_score=min_score)

    def __call__(self, images):
        """One image, uint8 (H, W, 3) BGR -> its people, the best first, as a list of Person; a list of images, of any
        sizes, or an array (N, H, W, 3) -> a list of such lists. Raises UserError for anything else."""
        single = images is None or isinstance(images, np.ndarray) and images.ndim != 4
        requests = [self._request(image) for image in ([images] if single else images)]
        predictor = Predictor(self._predict_maps, self.skeleton, self._batchsize, **self._thresholds)
        found = [[self._person(*person) for person in zip(keypoints, scores)]
                 for _, _, keypoints, scores in predictor.find_people(requests)]
        return found[0] if single else found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Free the network; it cannot be called any more."""
        getattr(self._predict_maps, 'close', lambda: None)()
        self._predict_maps = None

    def _request(self, image):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 \
                or not image.size:
            raise UserError('an image must be a uint8 array (height, width, 3), BGR as from cv2.imread, not %s' % (
                '%s %s' % (image.dtype, image.shape) if isinstance(image, np.ndarray) else
                'None, which cv2.imread gives for a file that it cannot read' if image is None else
                type(image).__name__))
        transforms = make_transforms(image.shape[1], image.shape[0], **self._setting)
        return Request(None, lambda: InputImage(image, 1, transforms, None))

    def _person(self, keypoints, score):
        points = {name: tuple(map(float, point)) for name, point in zip(self.skeleton.parts, keypoints)
                  if np.isfinite(point[0])}
        (left, top), (right, bottom) = np.nanmin(keypoints[:, :2], 0), np.nanmax(keypoints[:, :2], 0)
        return Person(points, float(score), tuple(map(float, (left, top, right - left, bottom - top))))


def draw(image, people, skeleton):
    """See inference.draw_people."""
    foreign = sorted({name for person in people for name in person.keypoints}.difference(skeleton.parts))
    if foreign:
        raise UserError('draw_people: the skeleton has no %s; pass skeleton=network.skeleton' % ', '.join(
            foreign[:MAX_NAMED]))
    absent = (np.nan,) * 3
    keypoints = [[person.keypoints.get(name, absent) for name in skeleton.parts] for person in people]
    return draw_skeletons(image, np.reshape(keypoints, (len(people), len(skeleton.parts), 3)), skeleton)
