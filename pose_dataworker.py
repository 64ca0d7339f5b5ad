"""Prepare training batches on a helper node and send them to the trainer.

    worker-node1$ python3 pose_dataworker.py --master=tcp://HOST:PORT --datapath=DIR

Input size, stride, batch size and seed come from the trainer when it connects. The worker waits until a trainer is
there, outlives it, and ends when the trainer says that training is over. It needs no TensorFlow, see
requirements-worker.txt.
"""
import logging
import os
import socket
import time

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

from annotations.splits import find_split, part_name
from batches.loader import BatchLoader
from batches.mixture import check_more_data, open_samples
from pose_errors import UserError
from pose_files import usable_cores
from remote.protocol import LINK_TIMEOUT, MAX_CREDIT, augmentation_ranges, check_address, check_settings, \
    sequence_of, skeleton_of_settings
from remote.sender import ConnectionLost, TrainerConnection

WAIT_LINE_SECONDS = 30.0
REPORT_SECONDS = 60.0
TURN_SECONDS = 0.2
PAUSE_SECONDS = 1.0  # between connections


def serve_trainers(master, open_loader, curve_keys=None, link_timeout=LINK_TIMEOUT):
    """Send batches to whichever trainer listens at master (tcp://HOST:PORT), until one says that training is over.

    open_loader: function from the trainer's settings to (a batches.loader.BatchLoader, the digest of its data set).
    Raises UserError: bad keys, a trainer of another version, or the loader's.
    """
    name = '%s:%d' % (ascii(socket.gethostname()).strip("'")[:80], os.getpid())
    loader, data, welcome = None, None, None
    try:
        while True:
            with TrainerConnection(master, curve_keys, link_timeout) as connection:
                try:
                    answer = greet(connection, master, name)
                    if answer is not None and answer != welcome:
                        if loader:
                            loader.close()
                        loader, welcome = None, None
                        check_settings(answer['settings'])
                        loader, data = open_loader(answer['settings'])
                        welcome = answer
                    if answer is None or send_batches(connection, loader, data):
                        connection.send('bye')
                        connection.close(linger=1)
                        logging.info('training has ended')
                        return
                except ConnectionLost:
                    logging.warning('lost the trainer at %s; waiting for it to come back', master)
                    time.sleep(PAUSE_SECONDS)
    finally:
        if loader:
            loader.close()


def greet(connection, master, name):
    """Wait for the trainer and introduce this worker. Returns the welcome (settings), or None when training is over."""
    logging.info('connecting to the trainer at %s', master)
    next_line, trouble = time.monotonic() + WAIT_LINE_SECONDS, connection.trouble
    while True:
        message = connection.receive(1)
        if message is None:
            if time.monotonic() > next_line or connection.trouble != trouble:
                next_line, trouble = time.monotonic() + WAIT_LINE_SECONDS, connection.trouble
                logging.info('waiting for the trainer at %s (%s)', master, trouble)
        elif message['type'] == 'connected':
            connection.send('hello', name=name)
        elif message['type'] == 'welcome':
            return message
        elif message['type'] == 'end':
            return None


def send_batches(connection, loader, data):
    """Send the batches that the trainer asks for; True when training is over. data: the digest of the data set.

    Raises ConnectionLost, and UserError for a trainer that asks for more than it may.
    """
    loader.forget()  # what an earlier connection asked for
    connection.send('ready', samples=loader.samples, data=data)
    wanted, samples, last_report, is_accepted = set(), 0, time.monotonic(), False
    batch = None  # the next one; it is fetched while the one before is on its way
    while True:
        message = connection.receive(0 if wanted else 1)
        if message is not None:
            if message['type'] == 'end':
                return True
            if message['type'] == 'credit':
                if len(wanted) + len(message['batches']) > MAX_CREDIT:
                    raise UserError('the trainer asks for more than %d batches at once; is it the trainer of this '
                                    'project?' % MAX_CREDIT)
                if not is_accepted:
                    logging.info('connected; sending batches')
                    is_accepted = True
                loader.request(message['batches'])
                wanted.update(message['batches'])
        elif wanted and batch is None:
            batch = loader.get(TURN_SECONDS)
            if loader.number not in wanted:
                batch = None
        elif wanted and connection.sent(TURN_SECONDS):
            connection.send_batch(loader.number, batch)
            wanted.remove(loader.number)
            samples += len(batch.image)
            batch = None
        seconds = time.monotonic() - last_report
        if seconds > REPORT_SECONDS:
            for line in ['sent %.1f samples/s' % (samples / seconds)] + loader.report():
                logging.info(line)
            samples, last_report = 0, time.monotonic()


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Prepare training batches for a trainer on another machine.')
    parser.add_argument('--master', required=True, metavar='tcp://HOST:PORT',
                        help="the trainer's address: HOST and the port of its --remote-data")
    pose_cli.add_data_flags(parser)
    parser.add_argument('--train-split', default='train2017', help='split of --datapath, or a path to its annotations')
    pose_cli.add_valid_share(parser, "the trainer's: that share of the images is left out")
    pose_cli.add_more_data(parser)
    parser.add_argument('--workers', type=pose_cli.positive_process_count, default=usable_cores(),
                        help='loader processes; the default is one per core')
    parser.add_argument('--curve-keys', metavar='DIR', help='folder of keys made by scripts/make_curve_keys.py')
    args = parser.parse_args()
    args.train_split = part_name(args.train_split, 'train', args.valid_share)
    return args


def main():
    args = parse_flags()
    pose_cli.require_linux('a data worker')
    pose_cli.log_to_stderr()
    check_address(args.master, '--master')
    if not args.datapath:
        raise UserError('where is COCO? give --datapath=DIR or set $COCO_DIR')
    find_split(args.datapath, args.train_split, args.imgpath)
    check_more_data(args.add_data, args.add_keypoints)

    def open_loader(settings):
        logging.info('the trainer asks for batches of %d at %dx%d, stride %d; starting %d loader processes',
                     settings['batchsize'], settings['input_width'], settings['input_height'], settings['stride'],
                     args.workers)
        dataset = open_samples(args.datapath, args.train_split, (settings['input_width'], settings['input_height']),
                               settings['stride'], args.imgpath, augmentation_ranges(settings),
                               settings['category'] or None, settings['negatives'], args.add_data, args.add_keypoints)
        theirs = skeleton_of_settings(settings)
        if not dataset.skeleton.finds_the_same(theirs):
            own, asked = (', '.join(skeleton.keypoints) for skeleton in (dataset.skeleton, theirs))
            raise UserError('%s has the keypoints %s, the trainer asks for %s; give both the same --datapath, '
                            '--add-data and --add-keypoints' % (args.datapath, own, asked))
        loader = BatchLoader(dataset, settings['batchsize'], args.workers, settings['seed'], first=None,
                             sequence=sequence_of(settings))
        return loader, dataset.digest

    serve_trainers(args.master, open_loader, args.curve_keys)


if __name__ == '__main__':
    pose_cli.run(main)
