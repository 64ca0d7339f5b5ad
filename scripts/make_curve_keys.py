"""Make the keys for --curve-keys of train.py and pose_dataworker.py: encryption and authentication of both sides.

    python3 scripts/make_curve_keys.py --output-dir=keys                   # keys of the trainer and of a worker
    python3 scripts/make_curve_keys.py --output-dir=keys --worker=node2    # one more worker, with a key of its own

    keys/trainer.key_secret, trainer.key      the trainer's pair
    keys/worker.key_secret, worker.key        the worker's pair
    keys/accepted_workers/worker.key          the trainer lets in whoever has the secret to one of these
    keys/node2/                               worker.key_secret, worker.key and trainer.key: all that this worker needs

The trainer needs trainer.key_secret and accepted_workers/; a worker needs worker.key_secret and trainer.key. On one
machine, or a file system that both see, both can be given the same folder; to another machine, copy keys/NAME only:
trainer.key_secret stays with the trainer. Removing a file from accepted_workers/ ends that worker's connection within
a minute, and locks it out.
"""
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli

pose_cli.prepare_process()

import zmq.auth

from pose_errors import UserError
from remote import keys


def parse_flags():
    parser = pose_cli.ArgumentParser(description='Make keys for --curve-keys.')
    parser.add_argument('--output-dir', required=True, help='folder of the keys')
    parser.add_argument('--worker', metavar='NAME', help='add a worker with a key of its own, in OUTPUT_DIR/NAME')
    args = parser.parse_args()
    reserved = (keys.TRAINER, keys.WORKER, keys.ACCEPTED)
    if args.worker is not None and (args.worker in reserved
                                    or not re.match(r'[A-Za-z0-9][A-Za-z0-9_.-]*\Z', args.worker)):
        raise UserError('--worker=%s: take another name, of letters, digits and _.-' % args.worker)
    return args


def make_keys(folder, worker):
    """The first keys, or with the name of a worker its own. Returns the line that tells what was made."""
    if worker is None:
        make_pair(folder, keys.TRAINER)
        make_pair(folder, keys.WORKER)
        accept(folder, folder, keys.WORKER)
        return 'keys of the trainer and of a worker: %s' % folder
    trainers = os.path.join(folder, keys.TRAINER + keys.PUBLIC)
    if not os.path.exists(trainers):
        raise UserError('%s holds no trainer.key; make the first keys without --worker' % folder)
    own = os.path.join(folder, worker)
    make_pair(own, keys.WORKER)
    shutil.copy(trainers, own)
    accept(folder, own, worker)
    return 'key of worker %s: copy %s to its machine' % (worker, own)


def make_pair(folder, name):
    """Write NAME.key and NAME.key_secret into a folder for its owner alone. Raises UserError if they exist."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.path.exists(os.path.join(folder, name + keys.SECRET)):
        raise UserError('%s is there already; remove it, or add a worker with --worker=NAME'
                        % os.path.join(folder, name + keys.SECRET))
    zmq.auth.create_certificates(folder, name)


def accept(folder, worker_folder, name):
    """Accept the worker whose pair lies in worker_folder, under a name."""
    accepted = os.path.join(folder, keys.ACCEPTED)
    os.makedirs(accepted, mode=0o700, exist_ok=True)
    shutil.copy(os.path.join(worker_folder, keys.WORKER + keys.PUBLIC), os.path.join(accepted, name + keys.PUBLIC))


def main():
    args = parse_flags()
    os.umask(0o077)
    try:
        print(make_keys(args.output_dir, args.worker))
    except OSError as error:
        raise UserError('cannot write keys to %s: %s' % (args.output_dir, error.strerror))


if __name__ == '__main__':
    pose_cli.run(main)
