"""Where samples come from: this machine's loader processes, data workers on others, and the validation images."""
import logging

import networks
import pose_annotations
from pose_cli import UserError
from pose_loader import BatchLoader
from pose_samples import PoseDataset
from remote.trainer import BatchReceiver

from .feed import wait_for_samples


def open_dataset(flags, split, negatives=0.0):
    """The PoseDataset of a split, for the network of the flags. negatives: as there."""
    return PoseDataset(flags.datapath, split, flags.input_width, flags.input_height, networks.stride(flags.model),
                       flags.imgpath, category=flags.category, negatives=negatives)


def open_source(flags, skeleton, first, cluster, stop):
    """The batch source: loader processes on this machine, or data workers on others.

    Args:
        skeleton: that data workers are told to make maps of.
        first: the number of the first batch.
        cluster: each of its processes gets its share of every batch.
        stop: ends the wait for data workers.
    """
    batchsize = flags.batchsize * flags.accumulate // cluster.size
    if not flags.remote_data:
        dataset = open_dataset(flags, flags.train_split, flags.negatives)
        return BatchLoader(dataset, batchsize, flags.workers, flags.seed, first=first, share=cluster.index,
                           shares=cluster.size)
    settings = {'batchsize': batchsize, 'input_width': flags.input_width, 'input_height': flags.input_height,
                'stride': networks.stride(flags.model), 'seed': flags.seed, 'category': flags.category or '',
                'skeleton': skeleton.to_json(), 'negatives': flags.negatives}
    # Data workers know no shares: to them, the shares of all batches are a row of smaller batches.
    source = BatchReceiver(flags.remote_data, settings, flags.curve_keys, first=first * cluster.size + cluster.index,
                           every=cluster.size, data=training_data(flags))
    try:
        wait_for_samples(source, stop)
    except BaseException:
        source.close(ended=False)
        raise
    return source


def training_data(flags):
    """(number of samples, digest) of the training images in --datapath, which data workers must have too; or None."""
    if not flags.datapath:
        return None
    try:
        dataset = open_dataset(flags, flags.train_split, flags.negatives)
    except UserError as error:
        logging.info("the data workers' samples cannot be compared with the trainer's own: %s", error)
        return None
    return len(dataset), pose_annotations.digest(dataset.annotations)


def open_validation(flags):
    """The PoseDataset of the validation images, or None without them."""
    if flags.datapath and flags.valid_every:
        return open_dataset(flags, flags.valid_split)
    logging.info('validation is off: it needs --datapath=DIR, and --valid-every above 0')
    return None


def check_keypoints(skeleton, validation):
    """Raise UserError when training and validation images have different keypoints labelled."""
    if validation and validation.skeleton != skeleton:
        raise UserError('the training images have the keypoints %s, the validation images %s; give both the same'
                        % (', '.join(skeleton.keypoints), ', '.join(validation.skeleton.keypoints)))
