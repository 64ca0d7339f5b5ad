"""The images that graphs are compared on and calibrated with, fitted into the network's input."""
import glob
import itertools
import logging
import os

import numpy as np

import pose_augment
import pose_samples
from pose_average import SIZE_MULTIPLE
from pose_cli import UserError
from pose_image import BadSample, read_photograph

MAX_COMPARED_IMAGES = 16


def read_images(args, width, height, stride):
    """Images to compare on, uint8 (N, height, width, 3) BGR, and validation samples or None without --datapath."""
    samples = None
    if args.datapath:
        samples = read_validation_samples(args, width, height, stride)
    if args.images:
        return read_folder(args.images, width, height, MAX_COMPARED_IMAGES), samples
    if samples:
        return np.stack([sample[0] for sample in samples[:MAX_COMPARED_IMAGES]]), samples
    import matplotlib
    photograph = os.path.join(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    return fitted_images([photograph], width, height), None


def read_calibration_images(args, width, height):
    """Images for quantization to measure activations on: of --images, else training images; as read_images's."""
    if args.images:
        return read_folder(args.images, width, height, args.calibration_images)
    dataset = pose_samples.PoseDataset(args.datapath, 'train2017', width, height, SIZE_MULTIPLE, args.imgpath)
    count = len(dataset.validation_images)
    images = []
    for index in np.linspace(0, count - 1, min(count, args.calibration_images)).astype(int):
        try:
            images.append(dataset.validation_sample(index).image)
        except BadSample as error:
            logging.warning('not calibrated on %s', error)
    if not images:
        raise UserError('--quantize=int8: no training image of --datapath=%s can be read; give --images=FOLDER'
                        % args.datapath)
    return np.stack(images)


def read_folder(folder, width, height, limit):
    """The first images of a folder, evenly chosen, fitted into the input: uint8 (N, height, width, 3) BGR."""
    paths = image_paths(folder)
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), limit)).astype(int)
    return fitted_images([paths[index] for index in chosen], width, height)


def image_paths(folder):
    """The images of a folder, sorted. Raises UserError when there are none."""
    paths = sorted(path for path in glob.glob(os.path.join(glob.escape(folder), '*'))
                   if path.lower().endswith(('.jpg', '.jpeg', '.png')))
    if not paths:
        raise UserError('no .jpg or .png in --images=%s; give a folder of images' % folder)
    return paths


def fitted_images(paths, width, height):
    images = []
    for path in paths:
        try:
            image = read_photograph(path)
        except BadSample as error:
            raise UserError('%s; remove it' % error)
        matrix = pose_augment.fit_matrix(image.shape[1], image.shape[0], width, height)
        images.append(pose_augment.warp_image(image, matrix, width, height))
    return np.stack(images)


def read_validation_samples(args, width, height, stride):
    """The first validation samples of --datapath: lists of image, heatmap, paf and mask."""
    dataset = pose_samples.PoseDataset(args.datapath, 'val2017', width, height, stride, args.imgpath)
    found = pose_samples.validation_samples(dataset)
    samples = [list(sample[:4]) for sample in itertools.islice(found, args.max_samples)]
    if not samples:
        raise UserError('no validation image with people in --datapath=%s' % args.datapath)
    return samples
