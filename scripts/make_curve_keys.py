"""Make the keys for --curve-keys of train.py and pose_dataworker.py: encryption and authentication of both sides.

    python3 scripts/make_curve_keys.py --output-dir=keys                   # keys of the trainer and of a worker
    python3 scripts/make_curve_keys.py --output-dir=keys --worker=node2    # one more worker, with a key of its own

    keys/trainer.key_secret, trainer.key      the trainer's pair
    keys/worker.key_secret, worker.key        the worker's pair
    keys/accepted_workers/worker.key          the trainer lets in whoever has the secret to one of these
    keys/node2/                               worker.key_secret, worker.key and trainer.key: all that this worker needs

The trainer needs trainer.key_secret and accepted_workers/; a worker needs worker.key_secret and trainer.key. On one
machine, or a file system that both see, both can be given the same folder; to another machine, copy keys/NAME only:
trainer.key_secret stays with the trainer. Removing a file from accepted_workers/ locks that worker out at its next
connection.
"""
import os
import re
import shutil
import sys

import zmq.auth

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli


def make_pair(folder, name):
    """Write NAME.key and NAME.key_secret into a folder that only the owner can enter."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.path.exists(os.path.join(folder, name + '.key_secret')):
        raise pose_cli.UserError('%s/%s.key_secret is there already; remove it, or add a worker with --worker=NAME'
                                 % (folder, name))
    zmq.auth.create_certificates(folder, name)


def accept(folder, worker_key, name):
    accepted = os.path.join(folder, 'accepted_workers')
    os.makedirs(accepted, mode=0o700, exist_ok=True)
    shutil.copy(worker_key, os.path.join(accepted, name + '.key'))


def main():
    parser = pose_cli.ArgumentParser(description='Make keys for --curve-keys.')
    parser.add_argument('--output-dir', required=True, help='folder of the keys')
    parser.add_argument('--worker', metavar='NAME', help='add a worker with a key of its own, in OUTPUT_DIR/NAME')
    args = parser.parse_args()
    os.umask(0o077)
    folder = args.output_dir
    try:
        if args.worker is None:
            make_pair(folder, 'trainer')
            make_pair(folder, 'worker')
            accept(folder, os.path.join(folder, 'worker.key'), 'worker')
            print('keys of the trainer and of a worker: %s' % folder)
            return
        if not re.match(r'[A-Za-z0-9][A-Za-z0-9_.-]*$', args.worker) or args.worker in ('worker', 'accepted_workers'):
            raise pose_cli.UserError('--worker=%s: take another name, of letters, digits and _.-' % args.worker)
        if not os.path.exists(os.path.join(folder, 'trainer.key')):
            raise pose_cli.UserError('%s holds no trainer.key; make the first keys without --worker' % folder)
        own = os.path.join(folder, args.worker)
        make_pair(own, 'worker')
        shutil.copy(os.path.join(folder, 'trainer.key'), own)
        accept(folder, os.path.join(own, 'worker.key'), args.worker)
        print('key of worker %s: copy %s to its machine' % (args.worker, own))
    except OSError as error:
        raise pose_cli.UserError('cannot write keys to %s: %s' % (folder, error.strerror))


if __name__ == '__main__':
    pose_cli.run(main)
