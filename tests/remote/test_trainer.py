"""The wire: real sockets, real processes at its other end, and messages that nobody should send."""
import contextlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time

import msgpack
import numpy as np
import psutil
import pytest
import zmq

from conftest import PATIENCE, ROOT, assert_user_error, run_command, wait_for

import pose_labels
from remote import trainer
from pose_cli import UserError
from pose_loader import batch_layout

RANGES = {'scale': [0.7, 0.8], 'angle': [0, 5], 'offset': [-1, 1], 'flip_probability': 0}
SETTINGS = {'batchsize': 2, 'input_width': 64, 'input_height': 48, 'stride': 8, 'seed': 5}

# A data worker that sends the batches of a file, again and again: python -c SENDER MASTER FILE [KEYS [DELAY]].
# tensorpack, which pose_dataworker imports, would spend seconds on loading TensorFlow.
SENDER = '''
import itertools, sys, time
sys.modules['tensorflow'] = None
import numpy, pose_cli, pose_dataworker

class Source:
    samples = 100
    def __init__(self, batches, delay):
        self.batches, self.delay = itertools.cycle(batches), delay
    def get(self, timeout=None):
        time.sleep(self.delay)
        return next(self.batches)
    def report(self):
        return []
    def close(self):
        pass

master, path, keys, delay, link_timeout = sys.argv[1:]
with numpy.load(path) as file:
    batches = [[file['%s%d' % (name, n)] for name in ('image', 'heatmap', 'paf', 'mask')]
               for n in range(len(file.files) // 4)]
pose_cli.log_to_stderr()
pose_cli.run(lambda: pose_dataworker.serve_trainers(master, lambda settings: Source(batches, float(delay)),
                                                    keys or None, float(link_timeout)))
'''

# A trainer that takes batches until it is told to stop, and says after each second how it goes.
TRAINER = '''
import json, sys, threading, time
import psutil, pose_cli, pose_remote
settings, address, keys = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] or None
pose_cli.log_to_stderr()
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
def train():
    with trainer.BatchReceiver(address, settings, keys) as receiver:
        batches, last = 0, 0
        while not stop.is_set():
            batches += receiver.get(0.2) is not None
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                print(json.dumps({'batches': batches, 'rss': psutil.Process().memory_info().rss,
                                  'report': receiver.report()}), flush=True)
pose_cli.run(train)
'''


def made_up_batch(seed, settings, people=2):
    """Labels of people at random places, as they are drawn for training."""
    rng = np.random.RandomState(seed)
    layout = batch_layout(*(settings[name] for name in ('batchsize', 'input_width', 'input_height', 'stride')))
    batch = [np.empty(shape, dtype) for _, dtype, shape in layout]
    batch[0][:] = rng.randint(0, 256, batch[0].shape)
    size = np.array([settings['input_width'], settings['input_height']])
    for row in range(settings['batchsize']):
        joints = rng.uniform(0, 1, (people, 1, 2)) * size + rng.uniform(-0.3, 0.3, (people, 18, 2)) * size
        joints[rng.uniform(size=(people, 18)) < 0.2] = np.nan
        batch[1][row] = pose_labels.render_heatmaps(joints, *batch[1].shape[1:3], settings['stride'])
        batch[2][row] = pose_labels.render_pafs(joints, *batch[1].shape[1:3], settings['stride'])
    batch[3][:] = rng.randint(0, 65, batch[3].shape) / 64
    return batch


def header_of(arrays):
    return trainer.batch_header([(name, array.dtype.str, array.shape) for name, array in arrays])


def assert_same(batch, received):
    for sent, got, tolerance in zip(batch, received, (0, 2e-5, 2e-5, 0.002)):
        assert got.dtype == sent.dtype and got.shape == sent.shape
        np.testing.assert_allclose(got, sent, rtol=0, atol=tolerance)


@pytest.fixture
def start_script(start):
    """start_script(script, *args) runs a script as `start` runs a command."""
    return lambda script, *args, prefix=(): start(*prefix, sys.executable, '-c', script, *args)


def save_batches(path, batches):
    names = ('image', 'heatmap', 'paf', 'mask')
    np.savez(str(path), **{'%s%d' % (name, n): array for n, batch in enumerate(batches)
                           for name, array in zip(names, batch)})
    return path


def next_batch(receiver):
    return wait_for(lambda: receiver.get(0.5), 'no batch comes')


def reports(process):
    """What a TRAINER printed."""
    return [json.loads(line) for line in process.log.read_text().splitlines() if re.match(r'{.*}$', line)]


# --- arrays


@pytest.mark.parametrize('width, height, stride, people',
                         [(64, 48, 8, 2), (368, 368, 8, 3), (64, 96, 4, 40), (368, 368, 4, 0)])
def test_arrays_survive_the_wire(width, height, stride, people):
    settings = dict(SETTINGS, input_width=width, input_height=height, stride=stride)
    layout = batch_layout(2, width, height, stride)
    decoder = trainer.BatchDecoder(layout)
    for seed in range(3):  # the arrays of the batch before are used again
        batch = made_up_batch(seed, settings, people)
        arrays = trainer.encode_batch(batch)
        header = header_of(arrays)
        frames = [array.tobytes() for _, array in arrays]
        assert max(len(frame) for frame in frames) <= trainer.max_frame_size(layout)
        trainer.check_frames(header, frames, layout)
        assert_same(batch, decoder.decode(frames))
        if seed == 1:  # a bad one between good ones leaves nothing behind
            backwards = np.frombuffer(frames[4], np.uint32)[::-1].tobytes()
            if people:
                with pytest.raises(trainer.BadMessage):
                    decoder.decode(frames[:4] + [backwards] + frames[5:])


@pytest.mark.parametrize('stride', [4, 8])
def test_the_largest_frame_is_that_of_full_maps(stride):
    layout = batch_layout(1, 256, 256, stride)
    batch = [np.ones(shape, dtype) / 2 for _, dtype, shape in layout]
    batch[0] = batch[0].astype(np.uint8)
    largest = max(array.nbytes for _, array in trainer.encode_batch(batch))
    assert trainer.max_frame_size(layout) == largest + trainer.CURVE_OVERHEAD


def test_ones_and_zeros_are_exact():
    layout = batch_layout(1, 64, 64, 8)
    heatmap, paf = np.zeros((1, 8, 8, 19), np.float32), np.zeros((1, 8, 8, 38), np.float32)
    heatmap[0, 3, 4, 5], paf[0, 1, 2, 6], paf[0, 1, 2, 8] = 1, -1, 1
    batch = np.zeros((1, 64, 64, 3), np.uint8), heatmap, paf, np.eye(8, dtype=np.float32)[None, :, :, None]
    frames = [array.tobytes() for _, array in trainer.encode_batch(batch)]
    for sent, got in zip(batch, trainer.BatchDecoder(layout).decode(frames)):
        np.testing.assert_array_equal(got, sent)


def test_a_sample_of_three_people_takes_at_most_450_000_bytes():
    batch = made_up_batch(1, dict(SETTINGS, batchsize=8, input_width=368, input_height=368), people=3)
    arrays = trainer.encode_batch(batch)
    assert sum(array.nbytes for _, array in arrays) + len(header_of(arrays)) <= 8 * 450000


@pytest.mark.parametrize('value', [1.1, -2, np.nan, np.inf])
def test_maps_out_of_range_are_not_sent(value):
    batch = made_up_batch(0, SETTINGS)
    batch[2][0, 1, 1, 7] = value
    with pytest.raises(ValueError):
        trainer.encode_batch(batch)


# --- flow


def test_batches_arrive_and_the_worker_is_told_the_end(address, start_script, tmp_path):
    batches = [made_up_batch(seed, SETTINGS) for seed in range(3)]
    with trainer.BatchReceiver(address, SETTINGS) as receiver:
        worker = start_script(SENDER, address, save_batches(tmp_path / 'b.npz', batches), '', 0, 20)
        for n in range(10):
            received = next_batch(receiver)
            assert_same(batches[n % 3], received)
        lines = '\n'.join(receiver.report())
        assert 'data worker joined: ' in lines and 'samples/s' in lines and '127.0.0.1' in lines
    assert worker.wait(PATIENCE) == 0
    assert 'training has ended' in worker.log.read_text()


def introduce(receiver, connection, name='test:1'):
    """Become a worker that may send. Returns the welcome and how many batches the trainer asks for."""
    welcome = credit = None
    deadline = time.monotonic() + PATIENCE
    while credit is None and time.monotonic() < deadline:
        receiver.get(0)
        message = connection.receive(0.05) or {'type': None}
        if message['type'] == 'connected':
            connection.send('hello', name=name, session=b'', number=-1)
        elif message['type'] == 'welcome':
            welcome = message
            connection.send('ready', samples=100)
        elif message['type'] == 'credit':
            credit = message['count']
    return welcome, credit


def test_a_slow_trainer_has_a_bounded_number_of_batches_on_the_way(address):
    batch = made_up_batch(0, SETTINGS)
    with trainer.BatchReceiver(address, SETTINGS) as receiver, trainer.TrainerConnection(address) as connection:
        _, credit = introduce(receiver, connection)
        assert credit == trainer.MAX_CREDIT
        for _ in range(credit):
            connection.send_batch(trainer.encode_batch(batch))
        # The trainer sees the batches, but takes none: no further one is asked for.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with receiver._lock:
                receiver._receive(0)
            message = connection.receive(0.05)
            assert message is None or message['type'] == 'ping'
        assert receiver.ready() == credit
        connection.send_batch(trainer.encode_batch(batch))  # one that nobody asked for
        for _ in range(credit):
            assert_same(batch, next_batch(receiver))
        wait_for(lambda: any('not asked for' in line for line in (receiver.get(0.1), receiver.report())[1]),
                 'the uninvited batch was not reported')
        assert receiver.ready() == 0


def test_a_slow_worker_does_not_hold_up_a_fast_one(address, start_script, tmp_path):
    slow, fast = made_up_batch(1, SETTINGS), made_up_batch(2, SETTINGS)
    with trainer.BatchReceiver(address, SETTINGS) as receiver:
        start_script(SENDER, address, save_batches(tmp_path / 'slow.npz', [slow]), '', 1.0, 20)
        assert_same(slow, next_batch(receiver))
        start_script(SENDER, address, save_batches(tmp_path / 'fast.npz', [fast]), '', 0.0, 20)
        counts = {True: 0, False: 0}
        while counts[True] < 100:
            counts[bool((next_batch(receiver)[0] == fast[0]).all())] += 1
        assert 0 < counts[True] and counts[False] < 50


def test_settings_and_seeds_come_from_the_trainer(address):
    with trainer.BatchReceiver(address, dict(SETTINGS, augmentation=RANGES)) as receiver:
        welcomes = []
        for name in ('a:1', 'b:2'):
            with trainer.TrainerConnection(address) as connection:
                welcomes.append(introduce(receiver, connection, name)[0])
        for welcome in welcomes:
            trainer.check_settings(welcome['settings'])
            for name in ('batchsize', 'input_width', 'input_height', 'stride'):
                assert welcome['settings'][name] == SETTINGS[name]
            assert trainer.augmentation_ranges(welcome['settings'])._asdict() == RANGES
        assert len({welcome['settings']['seed'] for welcome in welcomes}) == 2
        with trainer.TrainerConnection(address) as connection:  # one that comes back keeps its number and seed
            deadline = time.monotonic() + PATIENCE
            message = None
            while (message or {}).get('type') != 'welcome' and time.monotonic() < deadline:
                receiver.get(0)
                message = connection.receive(0.05)
                if message and message['type'] == 'connected':
                    connection.send('hello', name='b:2', session=welcomes[1]['session'], number=welcomes[1]['number'])
            assert message == welcomes[1]


@pytest.mark.parametrize('change, mention', [
    ({'batchsize': 10 ** 9}, 'batchsize'), ({'input_width': '64'}, 'input_width'), ({'stride': 7}, 'stride'),
    ({'seed': None}, 'seed'), ({'augmentation': {'scale': [1, 2]}}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[2, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, angle=[0, float('nan')])}, 'augmentation'),
    ({'definitions': {'pose_augment.PERSON_HEIGHT': '0.5'}}, 'pose_augment.PERSON_HEIGHT')])
def test_a_worker_refuses_settings_that_it_cannot_keep(change, mention):
    good = dict(SETTINGS, augmentation=RANGES, definitions=trainer.definitions())
    trainer.check_settings(good)
    with pytest.raises(UserError) as error:
        trainer.check_settings(dict(good, **change))
    assert mention in str(error.value)


def test_a_starving_trainer_says_what_would_help(address, caplog):
    with trainer.BatchReceiver(address, SETTINGS, starved_seconds=0.2) as receiver:
        assert receiver.get(0.5) is None
    assert 'no data worker is connected' in caplog.text
    assert 'python3 pose_dataworker.py --master=tcp://127.0.0.1' in caplog.text


@pytest.mark.parametrize('bad', ['127.0.0.1:5000', 'tcp://127.0.0.1', 'tcp://:5000', 'tcp://127.0.0.1:70000',
                                 'tcp://no-such.host:5000'])
def test_addresses_that_cannot_be_listened_on(bad):
    with pytest.raises(UserError) as error:
        trainer.BatchReceiver(bad, SETTINGS)
    assert '--remote-data' in str(error.value)


def test_a_port_in_use_and_an_open_door(address, caplog):
    with trainer.BatchReceiver(address, SETTINGS):
        assert 'open to everyone' not in caplog.text
        with pytest.raises(UserError) as error:
            trainer.BatchReceiver(address, SETTINGS)
        assert address in str(error.value)
    with trainer.BatchReceiver(address.replace('127.0.0.1', '0.0.0.0'), SETTINGS):
        assert caplog.text.count('open to everyone') == 1


# --- versions


def other_version(tmp_path):
    """A copy of the code that speaks version 2 of the wire."""
    for path in ROOT.glob('*.py'):
        text = path.read_text()
        if path.name == 'remote/trainer.py':
            assert '\nVERSION = %d\n' % trainer.VERSION in text
            text = text.replace('\nVERSION = %d\n' % trainer.VERSION, '\nVERSION = 2\n')
        (tmp_path / path.name).write_text(text)
    return 'import sys; sys.path[:] = [%r] + sys.path[1:]\n' % str(tmp_path)


def test_a_worker_of_another_version_is_refused(address, start_script, tmp_path, caplog):
    newer = other_version(tmp_path)
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with trainer.BatchReceiver(address, SETTINGS) as receiver:
        worker = start_script(newer + SENDER, address, batches, '', 0, 20)
        wait_for(lambda: receiver.get(0.2) or worker.poll() is not None, 'the worker does not end')
        assert worker.returncode == 2
        lines = [line for line in worker.log.read_text().splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and 'version 1' in lines[0] and 'version 2' in lines[0] and 'same version' in lines[0]
        assert 'version 2 of the wire, not 1' in caplog.text


# --- what nobody should send


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, ('touch %s' % self.path,)


def good_messages():
    arrays = trainer.encode_batch(made_up_batch(3, SETTINGS))
    return [[trainer.pack('hello', name='evil', session=b'', number=-1)], [trainer.pack('ready', samples=100)],
            [trainer.pack('bye')], [header_of(arrays)] + [array.tobytes() for _, array in arrays]]


def hostile_messages(rng, count, bomb):
    """count messages: random bytes, real ones cut short and with bits turned, huge shapes, pickles, wrong types."""
    good = good_messages()
    for n in range(count):
        frames = [bytearray(frame) for frame in rng.choice(good)]
        kind = n % 8
        if kind == 0:
            yield [bytes(rng.getrandbits(8) for _ in range(rng.randrange(200))) for _ in range(rng.randrange(1, 12))]
        elif kind == 1:
            victim = rng.randrange(len(frames))
            frames[victim] = frames[victim][:rng.randrange(len(frames[victim]) + 1)]
            yield frames
        elif kind == 2:
            for _ in range(rng.randrange(1, 5)):
                victim = rng.choice([frame for frame in frames if frame])
                victim[rng.randrange(len(victim))] ^= 1 << rng.randrange(8)
            yield frames
        elif kind == 3:
            huge = [['image', 'uint8', [2 ** rng.randrange(20, 62), 48, 64, 3]]] * rng.randrange(1, 9)
            yield [trainer.pack('batch', arrays=huge)] + frames[1:]
        elif kind == 4:
            payload = pickle.dumps(Bomb(bomb))
            yield rng.choice([[payload], [trainer.pack('batch', arrays=payload)] + [payload] * 8,
                              [msgpack.packb({b'nd': True, b'type': b'O', b'kind': b'O', b'data': payload})]])
        elif kind == 5:
            value = rng.choice([None, -1, 2 ** 63, 1.5, [], {}, 'x' * 5000, b'\xff' * 50, [[[[]]]],
                                msgpack.ExtType(5, b'x')])
            yield [msgpack.packb(rng.choice([
                value, {'version': 1, 'type': value}, {'version': value, 'type': 'hello'},
                {'version': 1, 'type': 'hello', 'name': value, 'session': value, 'number': value},
                {'version': 1, 'type': 'batch', 'arrays': value}]))]
        elif kind == 6:
            yield [b'\x91' * rng.randrange(1, 5000)]  # deeply nested
        else:
            yield frames[:rng.randrange(1, len(frames) + 1)] + [b'more'] * rng.randrange(30)


def test_ten_thousand_hostile_messages_do_not_stop_training(address, start_script, tmp_path):
    bomb = tmp_path / 'exploded'
    trainer = start_script(TRAINER, json.dumps(SETTINGS), address, '')
    worker = start_script(SENDER, address, save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)]), '', 0.01, 20)
    wait_for(lambda: reports(trainer) and reports(trainer)[-1]['batches'] > 10, 'the trainer gets no batches')
    before = reports(trainer)[-1]
    rng, context = random.Random(1), zmq.Context()
    sockets = []
    for n, frames in enumerate(hostile_messages(rng, 10000, bomb)):
        if n % 500 == 0:  # some of them introduce themselves properly first, and so get further
            sockets.append(context.socket(zmq.DEALER))
            sockets[-1].connect(address)
            sockets[-1].send_multipart(good_messages()[0])
            sockets[-1].send_multipart(good_messages()[1])
        sockets[-1].send_multipart(frames)

    def dropped():
        return [line for report in reports(trainer) for line in report['report'] if line.startswith('dropped ')]

    wait_for(lambda: sum(int(line.split()[1]) for line in dropped()) > 7000, 'bad messages are not counted')
    sofar = reports(trainer)[-1]['batches']
    wait_for(lambda: reports(trainer)[-1]['batches'] > sofar + 100, 'training stopped')
    after = reports(trainer)[-1]
    context.destroy(linger=0)
    assert trainer.poll() is None and worker.poll() is None
    assert after['rss'] < before['rss'] + 16e6, 'memory grew by %.0f MB' % ((after['rss'] - before['rss']) / 1e6)
    assert '127.0.0.1' in dropped()[0]
    assert not bomb.exists()
    assert trainer.log.read_text().count('WARNING') < 500  # counted, not one line each
    trainer.stdin.write(b'\n')
    trainer.stdin.flush()
    assert trainer.wait(PATIENCE) == 0 and worker.wait(PATIENCE) == 0


def test_a_frame_that_declares_to_be_huge_is_refused_before_memory_is_taken(address):
    with trainer.BatchReceiver(address, SETTINGS) as receiver:
        host, port = address[len('tcp://'):].split(':')
        before = psutil.Process().memory_info().vms
        with contextlib.closing(socket.create_connection((host, int(port)))) as raw:
            raw.settimeout(PATIENCE)
            raw.sendall(b'\xff' + bytes(8) + b'\x7f\x03\x00NULL' + bytes(16) + b'\0' + bytes(31))
            ready = b'\x05READY\x0bSocket-Type' + struct.pack('>I', 6) + b'DEALER'
            raw.sendall(b'\x04' + bytes([len(ready)]) + ready)
            raw.sendall(b'\x02' + struct.pack('>Q', 8 << 30) + bytes(100))  # a frame of 8 GB begins
            while True:  # the trainer closes the connection
                receiver.get(0.05)
                try:
                    if not raw.recv(4096):
                        break
                except ConnectionResetError:
                    break
        assert psutil.Process().memory_info().vms < before + (1 << 30)


def test_wrong_batches_of_a_real_worker_are_counted_and_replaced(address):
    good = made_up_batch(0, SETTINGS)
    arrays = trainer.encode_batch(good)
    frames = [array.tobytes() for _, array in arrays]
    header = header_of(arrays)
    positions = np.frombuffer(frames[4], np.uint32)
    swapped = positions.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    twice = positions.copy()
    twice[1] = twice[0]
    far = positions.copy()
    far[-1] = 1 << 31
    bad = [frames[:4] + [wrong.tobytes()] + frames[5:] for wrong in (swapped, twice, far)]
    bad += [frames[:4] + [frames[4][:-4]] + frames[5:], [frames[0][:-1]] + frames[1:], frames[:-1], frames + [b'']]
    bad *= 4
    assert len(bad) > trainer.MAX_CREDIT  # each bad one is replaced by a new one
    with trainer.BatchReceiver(address, SETTINGS) as receiver, trainer.TrainerConnection(address) as connection:
        introduce(receiver, connection)
        for wrong in bad:
            connection._socket.send_multipart([header] + wrong)
            assert receiver.get(0.05) is None
        connection.send_batch(trainer.encode_batch(good))
        assert_same(good, next_batch(receiver))
        dropped = [line for line in receiver.report() if line.startswith('dropped')]
        assert len(dropped) == 1 and dropped[0].startswith('dropped %d bad messages from test:1 (127.0.0.1)' % len(bad))


# --- keys


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / 'keys'
    result = run_command('scripts/make_curve_keys.py', '--output-dir=%s' % folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_key_files_are_for_their_owner_only(keys):
    result = run_command('scripts/make_curve_keys.py', '--output-dir=%s' % keys, '--worker=node2')
    assert result.returncode == 0, result.stderr
    files = [path for path in keys.rglob('*') if path.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert (keys / 'accepted_workers' / 'node2.key').exists()
    assert_user_error(run_command('scripts/make_curve_keys.py', '--output-dir=%s' % keys), 'trainer.key_secret')
    assert_user_error(run_command('scripts/make_curve_keys.py', '--output-dir=%s' % keys, '--worker=../x'), '../x')


def test_only_workers_with_an_accepted_key_get_in(address, start_script, tmp_path, keys, caplog):
    others = tmp_path / 'others'
    assert run_command('scripts/make_curve_keys.py', '--output-dir=%s' % others).returncode == 0
    strangers = tmp_path / 'strangers'
    shutil.copytree(str(others), str(strangers))  # it knows neither the trainer, nor the trainer it
    (others / 'trainer.key').write_bytes((keys / 'trainer.key').read_bytes())  # it knows the trainer
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with trainer.BatchReceiver(address, SETTINGS, str(keys)) as receiver:
        refused = start_script(SENDER, address, batches, others, 0, 20)
        missing = start_script(SENDER, address, batches, '', 0, 20)
        stranger = start_script(SENDER, address, batches, strangers, 0, 20)
        refusals = 'key is not accepted', "not with this trainer's keys"
        wait_for(lambda: receiver.get(0.2) or all(line in caplog.text for line in refusals),
                 'the trainer does not tell whom it refuses')
        assert receiver.get(0.5) is None and not receiver.ready()
        accepted = start_script(SENDER, address, batches, keys, 0, 20)
        for _ in range(5):
            next_batch(receiver)
        joined = [line for line in receiver.report() if 'joined' in line]
        assert len(joined) == 1 and ':%d ' % accepted.pid in joined[0]
    assert accepted.wait(PATIENCE) == 0
    for worker, reason in ((refused, 'does not accept this key'), (missing, '--curve-keys on both sides'),
                           (stranger, '--curve-keys on both sides')):
        assert worker.poll() is None  # it goes on trying: the trainer may come to accept it
        assert reason in worker.log.read_text() and 'connected; sending' not in worker.log.read_text()


def test_keys_that_are_not_there(tmp_path, address):
    with pytest.raises(UserError) as error:
        trainer.BatchReceiver(address, SETTINGS, str(tmp_path))
    assert 'trainer.key_secret' in str(error.value) and 'make_curve_keys.py' in str(error.value)
    with pytest.raises(UserError):
        trainer.TrainerConnection(address, str(tmp_path))


# --- failures


def test_kill_and_restart_of_each_side(address, start_script, tmp_path):
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    first, second = (start_script(SENDER, address, batches, '', 0.01, 20) for _ in range(2))  # workers first
    trainer = start_script(TRAINER, json.dumps(SETTINGS), address, '')
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 2, 'the workers do not join')
    first.send_signal(signal.SIGKILL)
    wait_for(lambda: 'data worker left' in trainer.log.read_text(), 'the death of a worker goes unnoticed')
    start_script(SENDER, address, batches, '', 0.01, 20)
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 3, 'a new worker does not join')
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer = start_script(TRAINER, json.dumps(SETTINGS), address, '')
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 2, 'the workers do not come back')
    sofar = reports(trainer)[-1]['batches']
    wait_for(lambda: reports(trainer)[-1]['batches'] > sofar + 20, 'training does not go on')
    trainer.stdin.write(b'\n')
    trainer.stdin.flush()
    assert trainer.wait(PATIENCE) == 0
    assert second.wait(PATIENCE) == 0


@pytest.fixture
def cut_link():
    """Two network namespaces with a link between: (prefix of commands in a, in b, a's address, switch('up'/'down'))."""
    a, b = 'pose_a%d' % os.getpid(), 'pose_b%d' % os.getpid()

    def ip(*args):
        subprocess.run(('ip',) + args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    try:
        ip('netns', 'add', a)
        ip('netns', 'add', b)
        ip('link', 'add', 'link0', 'netns', a, 'type', 'veth', 'peer', 'name', 'link0', 'netns', b)
        for name, address in ((a, '10.99.0.1/24'), (b, '10.99.0.2/24')):
            ip('-n', name, 'addr', 'add', address, 'dev', 'link0')
            ip('-n', name, 'link', 'set', 'link0', 'up')
        ip('netns', 'exec', a, 'true')
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('this machine does not let tests make network namespaces')
    try:
        yield ['ip', 'netns', 'exec', a], ['ip', 'netns', 'exec', b], '10.99.0.1', lambda state: ip(
            '-n', b, 'link', 'set', 'link0', state)
    finally:
        for name in (a, b):
            subprocess.run(['ip', 'netns', 'del', name], stderr=subprocess.DEVNULL)


def test_a_cut_network_is_survived(cut_link, start_script, tmp_path):
    in_a, in_b, host, switch = cut_link
    address = 'tcp://%s:5555' % host
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    short = TRAINER.replace('settings, keys)', 'settings, keys, link_timeout=2)')
    trainer = start_script(short, json.dumps(SETTINGS), address, '', prefix=in_a)
    worker = start_script(SENDER, address, batches, '', 0.01, 2, prefix=in_b)
    wait_for(lambda: reports(trainer) and reports(trainer)[-1]['batches'] > 10, 'no batches')
    switch('down')
    wait_for(lambda: 'data worker left' in trainer.log.read_text(), 'the trainer does not notice the cut')
    wait_for(lambda: 'lost the trainer' in worker.log.read_text(), 'the worker does not notice the cut')
    sofar = reports(trainer)[-1]['batches']
    switch('up')
    wait_for(lambda: reports(trainer)[-1]['batches'] > sofar + 20, 'training does not go on')
    trainer.stdin.write(b'\n')
    trainer.stdin.flush()
    assert trainer.wait(PATIENCE) == 0 and worker.wait(PATIENCE) == 0
