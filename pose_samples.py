"""One sample: a main person of an image, augmented, with the label maps of all people of the image.

Start to end: `PoseDataset.training_sample` draws the augmentation (pose_augment.py), reads the image, warps it, and
renders the maps (pose_labels.py). pose_loader.py makes batches of them (pose_batches.py) in processes of their own.
"""
import collections
import logging
import os

import numpy as np

import pose_annotations
import pose_augment
import pose_labels
from pose_cli import UserError
from pose_image import BadSample, read_image

# joints (people, parts, 2) in input pixels; augmentation is None for validation samples; name: the image's file name.
Sample = collections.namedtuple('Sample', 'image heatmap paf mask joints augmentation name')

BAD_SAMPLE_LIMIT = 0.2
MIN_ATTEMPTS = 100


class PoseDataset:
    """The samples of one split of a COCO folder, at one input size and output stride.

    Args:
        datapath, split, imgpath: as in pose_annotations.find_split.
        input_width, input_height: of the network's input, in pixels; multiples of stride.
        stride: the network's output stride.
        ranges: pose_augment.Ranges of the augmentation.
        category: the name of one, where the annotation file has several with keypoints.
        negatives: the share of the training samples that show images without people, 0 <= negatives < 1.
    Attributes:
        skeleton: the pose_skeleton.Skeleton of the annotations.
    Raises:
        UserError: from pose_annotations.
    """

    def __init__(self, datapath, split, input_width, input_height, stride, imgpath=None,
                 ranges=pose_augment.CMU_RANGES, category=None, negatives=0.0):
        annotation_file, self.image_folder = pose_annotations.find_split(datapath, split, imgpath)
        self.annotations = pose_annotations.read_annotations(annotation_file, self.image_folder, category)
        self.skeleton = self.annotations.skeleton
        self.input_width, self.input_height, self.stride, self.ranges = input_width, input_height, stride, ranges
        # Validation sees each image with a main person once.
        self.validation_images = np.unique(self.annotations.sample_image)
        people = len(self.annotations.sample_image)
        self._negatives, self._without_people = int(round(people * negatives / (1 - negatives))), []
        if self._negatives:
            self._without_people = pose_annotations.images_without_people(self.annotations, self.image_folder)
            if not len(self._without_people):
                raise UserError('--negatives=%g, but %s lists no image without people that is in %s; leave it out'
                                % (negatives, annotation_file, self.image_folder))

    def __len__(self):
        return len(self.annotations.sample_image) + self._negatives

    def training_sample(self, index, rng):
        """Sample number index, 0 <= index < len(self), with an augmentation drawn from rng (a RandomState).

        Raises:
            BadSample: the image cannot be used.
        """
        augmentation = pose_augment.draw_augmentation(rng, self.ranges)
        if index < len(self.annotations.sample_image):
            image = self.annotations.sample_image[index]
            box = self.annotations.bbox[self.annotations.sample_person[index]].astype(np.float64)
        else:  # there may be many more of these images than samples: each is another one
            image = self._without_people[rng.randint(len(self._without_people))]
            box = pose_augment.draw_box(rng, *self.annotations.image_size[image])
        matrix = pose_augment.augmentation_matrix(augmentation, box, self.input_width, self.input_height)
        return self._sample(image, matrix, augmentation)

    def validation_sample(self, index):
        """Image number index, 0 <= index < len(self.validation_images), fitted into the input without randomness.

        Raises:
            BadSample: the image cannot be used.
        """
        image = self.validation_images[index]
        width, height = self.annotations.image_size[image]
        return self._sample(image, pose_augment.fit_matrix(width, height, self.input_width, self.input_height), None)

    def _sample(self, image, matrix, augmentation):
        name = self.annotations.file_name[image].decode()
        pixels, reduction = read_image(os.path.join(self.image_folder, name), self.annotations.image_size[image],
                                       pose_augment.matrix_scale(matrix))
        people, _ = pose_annotations.people_of(self.annotations, image)
        joints = pose_augment.transform_joints(people.astype(np.float64), matrix, self.skeleton)
        cells = (self.input_height // self.stride, self.input_width // self.stride, self.stride)
        return Sample(
            image=pose_augment.warp_image(pixels, pose_augment.reduced_matrix(matrix, reduction),
                                          self.input_width, self.input_height),
            heatmap=pose_labels.render_heatmaps(joints, *cells, skeleton=self.skeleton),
            paf=pose_labels.render_pafs(joints, *cells, skeleton=self.skeleton),
            mask=pose_labels.render_mask(*pose_annotations.ignored_regions(self.annotations, image), matrix, *cells),
            joints=joints, augmentation=augmentation, name=name)


def training_samples(dataset, rng, counter=None):
    """All samples of a PoseDataset once, in random order, as a generator of Samples; bad ones are skipped.

    Args:
        rng: a RandomState, for the order and the augmentations.
        counter: the BadSampleCounter of several passes; without it this pass has its own.
    Raises:
        UserError: too many bad samples.
    """
    return _good_samples(lambda index: dataset.training_sample(index, rng), rng.permutation(len(dataset)),
                         counter or BadSampleCounter(len(dataset)))


def validation_samples(dataset):
    """All validation images of a PoseDataset in order, as a generator of Samples; bad ones are skipped.

    Raises:
        UserError: too many bad samples.
    """
    images = len(dataset.validation_images)
    return _good_samples(dataset.validation_sample, range(images), BadSampleCounter(images))


def _good_samples(make_sample, indices, counter):
    for index in indices:
        try:
            sample = make_sample(index)
        except BadSample as error:
            counter.add_bad(error.path, error.reason)
        else:
            counter.add_good(1)
            yield sample


def check_input_size(input_width, input_height, stride, flag=None):
    """Raise UserError when a side of the input is not a multiple of the output stride.

    Args:
        flag: the one flag, if any, that gives both sides as WxH; without it these are --input-width and --input-height.
    """
    both = flag and '%s=%dx%d: ' % (flag, input_width, input_height)
    for name, side in (('--input-width', input_width), ('--input-height', input_height)):
        if side % stride:
            raise UserError('%s%d is not a multiple of the output stride %d; take %d or %d'
                            % (both or name + '=', side, stride, side // stride * stride or stride,
                               (side // stride + 1) * stride))


class BadSampleCounter:
    """Counts bad samples, names each file once in the log, and ends the run when there are too many.

    That is when over BAD_SAMPLE_LIMIT of the samples, from more than one file, were bad, or all of them.

    Args:
        samples: the number of samples in the data set.
    """

    def __init__(self, samples):
        self.min_attempts = min(MIN_ATTEMPTS, samples)
        self.attempts = self.bad = 0
        self.names = set()
        self.last = None

    def add_good(self, samples):
        """Raises UserError when there were too many bad ones."""
        self.attempts += samples
        self._judge()

    def add_bad(self, path, reason):
        """Raises UserError when there were too many bad ones."""
        self.attempts += 1
        self.bad += 1
        self.last = '%s %s' % (path, reason)
        if path not in self.names:
            self.names.add(path)
            logging.warning('skipped bad sample %d: %s', len(self.names), self.last)
        self._judge()

    def _judge(self):
        too_many = len(self.names) > 1 and self.bad > BAD_SAMPLE_LIMIT * self.attempts
        if self.attempts >= self.min_attempts and (too_many or self.bad == self.attempts):
            raise UserError('%d of %d samples were bad (last: %s); repair or remove these files'
                            % (self.bad, self.attempts, self.last))
