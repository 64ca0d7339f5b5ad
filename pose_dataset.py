"""One sample: a main person of an image, augmented, with the label maps of all people of the image.

    python3 pose_dataset.py --datapath=DIR --output-dir=DIR      draws augmented samples with their labels

Start to end: `PoseDataset.training_sample` draws the augmentation (pose_augment.py), reads the image, warps it, and
renders the maps (pose_labels.py). batches/loader.py makes batches of them in processes of their own; get_dataflow gives
them as a tensorpack DataFlow.
"""
import collections
import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import logging
import os

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

import numpy as np

import pose_augment
import pose_draw
import pose_files
import pose_labels
from annotations.arrays import ignored_regions, images_without_people, people_of, read_annotations, samples_digest
from annotations.images import MAX_SIDE, BadSample, read_image, write_picture
from annotations.splits import find_split
from pose_draw import draw_sample
from pose_errors import UserError

# More bad samples than this share, of so many at least, end the run.
BAD_SAMPLE_LIMIT = 0.2
MIN_ATTEMPTS = 100
MAX_STRIDE = 255  # 16 bits count a cell's pixels
MAX_ROWS = 32  # of the contact sheet
AHEAD = 4  # samples that a thread of validation makes before their turn

# labelled: bool (parts,), those that are in the loss.  joints (people, parts, 2) in input pixels.  augmentation: None
# for validation samples.  name: the image's file name.
Sample = collections.namedtuple('Sample', 'image heatmap paf mask labelled joints augmentation name')


class PoseDataset:
    """The samples of one split of a COCO folder, at one input size (pixels, multiples of stride) and output stride.

    Args:
        datapath, split, imgpath: as in annotations.splits.find_split.
        ranges: pose_augment.Ranges of the augmentation.
        category, skeleton: as for annotations.coco.read_dataset.
        negatives: the share of the training samples that show images without people, 0 <= negatives < 1.
    Attributes:
        skeleton: the annotations.skeleton.Skeleton of the annotations.
    Raises UserError: from annotations.arrays.
    """

    def __init__(self, datapath, split, input_width, input_height, stride, imgpath=None,
                 ranges=pose_augment.CMU_RANGES, category=None, negatives=0.0, skeleton=None):
        annotation_file, self.image_folder = find_split(datapath, split, imgpath)
        self.annotations = read_annotations(annotation_file, self.image_folder, category, skeleton)
        self.skeleton = self.annotations.skeleton
        self.input_width, self.input_height, self.stride, self.ranges = input_width, input_height, stride, ranges
        # Validation sees each image with a main person once.
        self.validation_images = np.unique(self.annotations.sample_image)
        # The image of each sample that shows people.
        self._sample_images = self.validation_images if ranges.whole_image else self.annotations.sample_image
        people = len(self._sample_images)
        self._negatives, self._without_people = int(round(people * negatives / (1 - negatives))), []
        if self._negatives:
            self._without_people = images_without_people(self.annotations, self.image_folder)
            if not len(self._without_people):
                raise UserError('--negatives=%g, but %s lists no image without people that is in %s; leave it out'
                                % (negatives, annotation_file, self.image_folder))

    def __len__(self):
        return len(self._sample_images) + self._negatives

    @property
    def digest(self):
        """32 characters: the same for the same samples in the same order."""
        digest = samples_digest(self.annotations)
        if not self._negatives:
            return digest
        drawn = '%s %d %s' % (digest, self._negatives, self._without_people.tolist())  # of the images that are there
        return hashlib.blake2b(drawn.encode(), digest_size=16).hexdigest()

    def training_sample(self, index, rng):
        """Sample number index, 0 <= index < len(self), augmented as rng (a RandomState) draws. Raises BadSample."""
        augmentation = pose_augment.draw_augmentation(rng, self.ranges)
        shows_people = index < len(self._sample_images)
        # Of images without people there may be many more than samples: each is another one.
        image = self._sample_images[index] if shows_people else \
            self._without_people[rng.randint(len(self._without_people))]
        image_size, input_size = self.annotations.image_size[image], (self.input_width, self.input_height)
        if self.ranges.whole_image:
            matrix = pose_augment.image_matrix(augmentation, *image_size, *input_size)
        else:
            box = self.annotations.bbox[self.annotations.sample_person[index]].astype(np.float64) if shows_people else \
                pose_augment.draw_box(rng, *image_size)
            matrix = pose_augment.augmentation_matrix(augmentation, box, *input_size)
        sample = self._sample(image, matrix, augmentation)
        return sample._replace(image=pose_augment.change_look(sample.image,
                                                              pose_augment.draw_look(rng, self.ranges)))

    def image_of(self, index):
        """The path of the image of sample number index, in words where it is drawn anew each time."""
        if index >= len(self._sample_images):
            return 'an image without people'
        name = self.annotations.file_name[self._sample_images[index]].decode()
        return os.path.join(self.image_folder, name)

    def validation_sample(self, index):
        """Image number index, 0 <= index < len(validation_images), fitted into the input. Raises BadSample."""
        image = self.validation_images[index]
        width, height = self.annotations.image_size[image]
        return self._sample(image, pose_augment.fit_matrix(width, height, self.input_width, self.input_height), None)

    def _sample(self, image, matrix, augmentation):
        name = self.annotations.file_name[image].decode()
        pixels, reduction = read_image(os.path.join(self.image_folder, name), self.annotations.image_size[image],
                                       pose_augment.matrix_scale(matrix))
        people, _ = people_of(self.annotations, image)
        labelled = self.annotations.labelled_parts[image]
        joints = pose_augment.transform_joints(people.astype(np.float64), matrix, self.skeleton)
        cells = (self.input_height // self.stride, self.input_width // self.stride, self.stride)
        return Sample(
            image=pose_augment.warp_image(pixels, pose_augment.reduced_matrix(matrix, reduction),
                                          self.input_width, self.input_height),
            heatmap=pose_labels.render_heatmaps(joints, *cells, skeleton=self.skeleton),
            paf=pose_labels.render_pafs(joints, *cells, skeleton=self.skeleton),
            mask=pose_labels.render_mask(*ignored_regions(self.annotations, image), matrix, *cells),
            labelled=labelled[list(self.skeleton.flip_order)] if pose_augment.is_mirrored(matrix) else labelled,
            joints=joints, augmentation=augmentation, name=name)


class BadSampleCounter:
    """Counts bad samples of a data set of so many, names each file once in the log, and ends the run, with a UserError,
    when over BAD_SAMPLE_LIMIT of the samples, from more than one file, were bad, or all of them."""

    def __init__(self, samples):
        self.min_attempts = min(MIN_ATTEMPTS, samples)
        self.attempts = self.bad = 0
        self.names, self.last = set(), None

    def add_good(self, samples):
        self.attempts += samples
        self._check()

    def add_bad(self, path, reason):
        self.attempts += 1
        self.bad += 1
        self.last = '%s %s' % (path, reason)
        if path not in self.names:
            self.names.add(path)
            logging.warning('skipped bad sample %d: %s', len(self.names), self.last)
        self._check()

    def _check(self):
        too_many = len(self.names) > 1 and self.bad > BAD_SAMPLE_LIMIT * self.attempts
        if self.attempts >= self.min_attempts and (too_many or self.bad == self.attempts):
            raise UserError('%d of %d samples were bad (last: %s); repair or remove these files'
                            % (self.bad, self.attempts, self.last))


def training_samples(dataset, rng, counter=None):
    """All samples of a PoseDataset once, in the random order of rng (a RandomState), as a generator of Samples.

    Bad ones are skipped; too many raise UserError. counter: the BadSampleCounter of several passes.
    """
    return _good_samples(lambda index: dataset.training_sample(index, rng), rng.permutation(len(dataset)),
                         counter or BadSampleCounter(len(dataset)))


def validation_samples(dataset, threads=1):
    """All validation images of a PoseDataset in order, made by so many threads ahead of their turn, as a generator of
    Samples. Bad ones are skipped; too many raise UserError."""
    images = len(dataset.validation_images)
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        def futures():
            waiting = collections.deque()
            for index in range(images):
                waiting.append(executor.submit(dataset.validation_sample, index))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft()
            yield from waiting
        yield from _good_samples(lambda future: future.result(), futures(), BadSampleCounter(images))


def _good_samples(make_sample, indices, counter):
    for index in indices:
        try:
            sample = make_sample(index)
        except BadSample as error:
            counter.add_bad(error.path, error.reason)
        else:
            counter.add_good(1)
            yield sample


def add_augmentation_flags(parser):
    """Add --augment, and a flag for each part of it."""
    share = pose_cli.real_number(0, 1)
    add = parser.add_argument
    add('--augment', choices=sorted(pose_augment.PRESETS), help="cmu: the authors' of 2017 (default); cmu2019: their "
        'later one; original: that of the original TensorFlow trainer, one sample an image; strong: wider scales, '
        'colour, grey, blur, noise, JPEG artefacts, patches')
    add('--aug-scale', type=pose_cli.interval(0.01, 100), metavar='MIN,MAX', help="factors on the person's height, "
        "which is %g of the input's" % pose_augment.PERSON_HEIGHT)
    add('--aug-rotate', type=pose_cli.real_number(0, 180), metavar='DEGREES', help='to either side')
    add('--aug-offset', type=pose_cli.real_number(0, 10000), metavar='PIXELS', help='of the crop, in each direction')
    add('--aug-flip', type=share, metavar='P', help='probability of a mirror image')
    add('--aug-colour', type=share, metavar='STRENGTH', help='of changes of brightness, contrast, saturation and hue')
    for name in ('grey', 'blur', 'noise', 'jpeg'):
        add('--aug-' + name, type=share, metavar='P', help='probability of ' + {
            'grey': 'a grey image', 'jpeg': 'JPEG artefacts'}.get(name, name))
    add('--aug-patches', type=pose_cli.whole_number(0, pose_augment.MAX_PATCHES), metavar='N',
        help='the most patches that cover a part')


def ranges_of(flags):
    """The pose_augment.Ranges that add_augmentation_flags' flags ask for."""
    given = {name: getattr(flags, 'aug_' + name) for name in ('scale', 'colour', 'grey', 'blur', 'noise', 'jpeg',
                                                              'patches')}
    given['flip_probability'] = flags.aug_flip
    for name, bound in (('angle', flags.aug_rotate), ('offset', flags.aug_offset)):
        given[name] = None if bound is None else (-bound, bound)
    return pose_augment.PRESETS[flags.augment or 'cmu']._replace(
        **{name: value for name, value in given.items() if value is not None})


def check_input_size(input_width, input_height, stride, flag=None):
    """Raise UserError when a side of the input is not a multiple of the output stride, or longer than MAX_SIDE.

    flag: the one that gives both sides as WxH; without it these are --input-width and --input-height.
    """
    both = flag and '%s=%dx%d: ' % (flag, input_width, input_height)
    for name, side in (('--input-width', input_width), ('--input-height', input_height)):
        if side > MAX_SIDE:
            raise UserError('%s%d is more than %d, the longest side of an image' % (both or name + '=', side, MAX_SIDE))
        if side % stride:
            raise UserError('%s%d is not a multiple of the output stride %d; take %d or %d'
                            % (both or name + '=', side, stride, side // stride * stride or stride,
                               (side // stride + 1) * stride))


def get_dataflow(datapath, split, input_width, input_height, stride, is_train, imgpath=None, seed=None):
    """training_samples or validation_samples as a tensorpack DataFlow, for code that is built of these.

    Of [image uint8 (H, W, 3), heatmap float32 (h, w, 19), paf (h, w, 38), mask (h, w, 1)]. It imports TensorFlow.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no TensorFlow, where there is none
        from tensorpack.dataflow import RNGDataFlow

    class PoseDataFlow(RNGDataFlow):
        def __init__(self):
            self._pid = os.getpid()

        def __len__(self):
            return len(dataset) if is_train else len(dataset.validation_images)

        def reset_state(self):
            super().reset_state()
            if seed is not None:
                # A forked copy, as tensorpack's parallel runners make them, must not repeat this process's samples.
                copy = [] if os.getpid() == self._pid else [os.getpid()]
                self.rng = np.random.RandomState([seed % (1 << 32)] + copy)

        def __iter__(self):
            for sample in training_samples(dataset, self.rng) if is_train else validation_samples(dataset):
                yield list(sample[:4])

    dataset = PoseDataset(datapath, split, input_width, input_height, stride, imgpath)
    return PoseDataFlow()


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Draw augmented samples with their label maps.')
    pose_cli.add_data_flags(parser)
    parser.add_argument('--output-dir', required=True, help='where the pictures go')
    parser.add_argument('--split', default='train2017', help='train2017, val2017, or a path to an annotation file')
    parser.add_argument('--category', help='of the annotations, where several have keypoints, or all')
    parser.add_argument('--count', type=pose_cli.positive_int, default=8, help='number of samples')
    parser.add_argument('--input-width', type=pose_cli.positive_int, default=368, help='of a sample, in pixels')
    parser.add_argument('--input-height', type=pose_cli.positive_int, default=368, help='the same')
    parser.add_argument('--stride', type=pose_cli.whole_number(1, MAX_STRIDE), default=8,
                        help='output stride of the network')
    parser.add_argument('--seed', type=pose_cli.seed, default=0)
    add_augmentation_flags(parser)
    flags = parser.parse_args()
    if not flags.datapath:
        parser.error('give --datapath=DIR or set $COCO_DIR')
    check_input_size(flags.input_width, flags.input_height, flags.stride)
    find_split(flags.datapath, flags.split, flags.imgpath)
    return flags


def main():
    flags = parse_flags()
    pose_cli.log_to_stderr()
    dataset = PoseDataset(flags.datapath, flags.split, flags.input_width, flags.input_height, flags.stride,
                          flags.imgpath, ranges_of(flags), flags.category)
    counter = BadSampleCounter(len(dataset))
    rng = np.random.RandomState(flags.seed)
    samples = itertools.chain.from_iterable(training_samples(dataset, rng, counter) for _ in itertools.count())
    drawn = (draw_sample(sample, dataset.skeleton) for sample in itertools.islice(samples, flags.count))
    first = list(itertools.islice(drawn, MAX_ROWS))  # before anything is written: bad data shows here
    sheet = os.path.join(flags.output_dir, 'contact_sheet.png')
    with pose_files.output_folder(flags.output_dir):
        for number, row in enumerate(itertools.chain(first, drawn)):
            write_picture(os.path.join(flags.output_dir, 'sample_%02d.png' % number), pose_draw.contact_sheet([row]))
        write_picture(sheet, pose_draw.contact_sheet(first))
    print('%d samples: %s' % (flags.count, sheet))


if __name__ == '__main__':
    pose_cli.run(main)
