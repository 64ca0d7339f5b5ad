"""Made-up ends of the wire, and batches to send over it."""
import json
import re
import sys

import numpy as np

from conftest import PATIENCE, PROGRAMS, program_environment, run_command, wait_for

import pose_labels
from pose_samples import batch_layout
from remote import wire

SETTINGS = {'batchsize': 2, 'input_width': 64, 'input_height': 48, 'stride': 8, 'seed': 5}
RANGES = {'scale': [0.7, 0.8], 'angle': [0, 5], 'offset': [-1, 1], 'flip_probability': 0}
FIELDS = 'image', 'heatmap', 'paf', 'mask'


def made_up_batch(seed, settings, people=2):
    """Labels of people at random places, as they are drawn for training."""
    rng = np.random.RandomState(seed)
    layout = batch_layout(*(settings[name] for name in ('batchsize', 'input_width', 'input_height', 'stride')))
    batch = [np.empty(shape, dtype) for _, dtype, shape in layout]
    batch[0][:] = rng.randint(0, 256, batch[0].shape)
    size = np.array([settings['input_width'], settings['input_height']])
    for row in range(settings['batchsize']):
        joints = rng.uniform(0, 1, (people, 1, 2)) * size
        joints = joints + rng.uniform(-0.3, 0.3, (people, pose_labels.PARTS, 2)) * size
        joints[rng.uniform(size=(people, pose_labels.PARTS)) < 0.2] = np.nan
        batch[1][row] = pose_labels.render_heatmaps(joints, *batch[1].shape[1:3], settings['stride'])
        batch[2][row] = pose_labels.render_pafs(joints, *batch[1].shape[1:3], settings['stride'])
    batch[3][:] = rng.randint(0, 65, batch[3].shape) / 64
    return batch


def header_of(arrays):
    """The packed header of what wire.encode_batch returned."""
    return wire.batch_header([(name, array.dtype.str, array.shape) for name, array in arrays])


def assert_same(batch, received):
    """What came over the wire is what was sent, as exactly as it travels."""
    for sent, got, tolerance in zip(batch, received, (0, 2e-5, 2e-5, 0.002)):
        assert got.dtype == sent.dtype and got.shape == sent.shape
        np.testing.assert_allclose(got, sent, rtol=0, atol=tolerance)


def save_batches(path, batches):
    """Write the file that start_worker takes."""
    np.savez(str(path), **{'%s%d' % (name, n): array for n, batch in enumerate(batches)
                           for name, array in zip(FIELDS, batch)})
    return path


def start_worker(start, address, path, keys='', delay=0, link_timeout=20, prefix=(), environment=None):
    """Start a data worker that sends the batches of a file; `start` is the fixture."""
    return start(*prefix, sys.executable, PROGRAMS / 'send_batches.py', address, path, keys, delay, link_timeout,
                 env=environment or program_environment())


def start_trainer(start, address, link_timeout=20, prefix=()):
    """Start a trainer that takes batches of SETTINGS; `start` is the fixture."""
    return start(*prefix, sys.executable, PROGRAMS / 'take_batches.py', address, json.dumps(SETTINGS), link_timeout,
                 env=program_environment())


def reports(trainer):
    """What a started trainer has printed so far."""
    return [json.loads(line) for line in trainer.log.read_text().splitlines() if re.match(r'{.*}$', line)]


def end_training(trainer):
    """Tell a started trainer to end, and wait for it. Returns its exit code."""
    trainer.stdin.write(b'\n')
    trainer.stdin.flush()
    return trainer.wait(PATIENCE)


def make_keys(folder, *flags):
    """Run scripts/make_curve_keys.py; returns the CompletedProcess."""
    return run_command('scripts/make_curve_keys.py', '--output-dir=%s' % folder, *flags)


def next_batch(receiver):
    return wait_for(lambda: receiver.get(0.5), 'no batch comes')
