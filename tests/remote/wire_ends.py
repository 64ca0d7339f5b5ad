"""What the tests of the wire share: batches, the programs at its other end, and becoming a worker by hand."""
import contextlib
import json
import re
import threading
import time

import numpy as np

from annotations.skeleton import COCO_SKELETON
from batches.batch import encode_batch
from batches import START
from batches.loader import SAMPLE_SOURCES
from conftest import PATIENCE, wait_for
from made_up_arrays import made_up_arrays
from pose_files import sources_digest
from remote import protocol

RANGES = {'scale': [0.7, 0.8], 'angle': [0, 5], 'offset': [-1, 1], 'flip_probability': 0, 'log_scale': True,
          'colour': 0.5, 'grey': 0.1, 'blur': 0.2, 'noise': 1, 'jpeg': 0.3, 'patches': 2,
          'whole_image': False, 'stretch': 0.1}
DATA = '0' * 32  # the digest of the data set that workers here say they have
SETTINGS = {'batchsize': 2, 'input_width': 64, 'input_height': 48, 'stride': 8, 'seed': 5,
            'skeleton': COCO_SKELETON.to_json()}
GOOD_SETTINGS = dict(SETTINGS, augmentation=RANGES, code=sources_digest(*SAMPLE_SOURCES), sequence=START, category='',
                     negatives=0.0)
SENDER, RECEIVER = 'tests/programs/sender.py', 'tests/programs/receiver.py'


def made_up_batch(seed, settings, people=2):
    """A Batch with labels of people at random places."""
    return encode_batch(*made_up_arrays(seed, *(settings[name] for name in (
        'batchsize', 'input_width', 'input_height', 'stride')), people))


def host_and_port(address):
    host, port = address[len('tcp://'):].split(':')
    return host, int(port)


def header_of(batch):
    return protocol.batch_header([(name, array.dtype.str, array.shape) for name, array in batch._asdict().items()])


def assert_same(batch, received):
    for sent, got in zip(batch, received):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def save_batches(path, batches):
    np.savez(str(path), **{'%s%d' % (name, n): array for n, batch in enumerate(batches)
                           for name, array in batch._asdict().items()})
    return path


def next_batch(receiver):
    return wait_for(lambda: receiver.get(0.5), 'no batch comes')


def reports(process):
    """What tests/programs/receiver.py printed."""
    return [json.loads(line) for line in process.log.read_text().splitlines() if re.match(r'{.*}$', line)]


def wait_for_batches(trainer, count):
    """Until a receiver.py has taken so many more."""
    sofar = reports(trainer)[-1]['batches'] if reports(trainer) else 0
    wait_for(lambda: reports(trainer) and reports(trainer)[-1]['batches'] > sofar + count, 'training stopped')


def start_ends(start_program, address, folder, link_timeout=20, trainer_prefix=(), worker_prefix=()):
    """(a receiver.py, a sender.py, the file with its batch), once batches arrive."""
    batches = save_batches(folder / 'b.npz', [made_up_batch(0, SETTINGS)])
    trainer = start_program(RECEIVER, json.dumps(SETTINGS), address, '', link_timeout, prefix=trainer_prefix)
    worker = start_program(SENDER, address, batches, '', 0.01, link_timeout, prefix=worker_prefix)
    wait_for_batches(trainer, 10)
    return trainer, worker, batches


def end_ends(trainer, worker):
    """A line for receiver.py: both have to end well."""
    trainer.communicate(b'\n', PATIENCE)
    assert trainer.returncode == 0 and worker.wait(PATIENCE) == 0


@contextlib.contextmanager
def in_background(action):
    """Does action() over and over in a thread, as a run's feed calls its receiver."""
    done = threading.Event()

    def repeat():
        while not done.is_set():
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(PATIENCE)


def introduce(receiver, connection, name='test:1'):
    """Become a worker that may send. Returns the welcome and the numbers of the batches that the trainer asks for."""
    welcome = credit = None
    deadline = time.monotonic() + PATIENCE
    while credit is None and time.monotonic() < deadline:
        receiver.get(0)
        message = connection.receive(0.05) or {'type': None}
        if message['type'] == 'connected':
            connection.send('hello', name=name)
        elif message['type'] == 'welcome':
            welcome = message
            connection.send('ready', samples=100, data=DATA)
        elif message['type'] == 'credit':
            credit = message['batches']
    return welcome, credit
