"""The trainer's end of the wire: real sockets, real processes at its other end, and what nobody should send."""
import contextlib
import logging
import os
import pickle
import random
import shutil
import socket
import struct
import sys
import threading
import time

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from conftest import PATIENCE, wait_for
from wire_ends import (RANGES, SETTINGS, assert_same, end_training, header_of, made_up_batch, make_keys, next_batch,
                       reports, save_batches, start_trainer, start_worker)

from pose_cli import UserError
from remote import wire
from remote.trainer import MAX_CREDIT, Activity, BatchReceiver
from remote.worker import TrainerConnection


def test_batches_arrive_and_the_worker_is_told_the_end(address, start, tmp_path):
    batches = [made_up_batch(seed, SETTINGS) for seed in range(3)]
    with BatchReceiver(address, SETTINGS) as receiver:
        worker = start_worker(start, address, save_batches(tmp_path / 'b.npz', batches))
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
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as connection:
        _, credit = introduce(receiver, connection)
        assert credit == MAX_CREDIT
        for _ in range(credit):
            connection.send_batch(wire.encode_batch(batch))
        assert connection.sent(PATIENCE)
        assert_no_credit(connection, seconds=1)  # while the trainer takes none
        assert_same(batch, next_batch(receiver))
        assert receiver.ready() == credit - 1  # it has seen them all
        assert_no_credit(connection, seconds=1)  # credit comes back in few messages
        connection.send_batch(wire.encode_batch(batch))  # one that nobody asked for
        for _ in range(credit - 1):
            assert_same(batch, next_batch(receiver))
        wait_for(lambda: any('not asked for' in line for line in (receiver.get(0.1), receiver.report())[1]),
                 'the uninvited batch was not reported')
        assert receiver.ready() == 0


def assert_no_credit(connection, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        message = connection.receive(0.05)
        assert message is None or message['type'] == 'ping'


def test_a_slow_worker_does_not_hold_up_a_fast_one(address, start, tmp_path):
    slow, fast = made_up_batch(1, SETTINGS), made_up_batch(2, SETTINGS)
    with BatchReceiver(address, SETTINGS) as receiver:
        start_worker(start, address, save_batches(tmp_path / 'slow.npz', [slow]), delay=1)
        assert_same(slow, next_batch(receiver))
        start_worker(start, address, save_batches(tmp_path / 'fast.npz', [fast]))
        counts = {True: 0, False: 0}
        while counts[True] < 100:
            counts[bool((next_batch(receiver)[0] == fast[0]).all())] += 1
        assert 0 < counts[True] and counts[False] < 50


def test_settings_and_seeds_come_from_the_trainer(address):
    with BatchReceiver(address, dict(SETTINGS, augmentation=RANGES)) as receiver:
        welcomes = []
        for name in ('a:1', 'b:2'):
            with TrainerConnection(address) as connection:
                welcomes.append(introduce(receiver, connection, name)[0])
        for welcome in welcomes:
            wire.check_settings(welcome['settings'])
            for name in ('batchsize', 'input_width', 'input_height', 'stride'):
                assert welcome['settings'][name] == SETTINGS[name]
            assert wire.augmentation_ranges(welcome['settings'])._asdict() == RANGES
        assert len({welcome['settings']['seed'] for welcome in welcomes}) == 2
        with TrainerConnection(address) as connection:  # one that comes back keeps its number and seed
            deadline = time.monotonic() + PATIENCE
            message = None
            while (message or {}).get('type') != 'welcome' and time.monotonic() < deadline:
                receiver.get(0)
                message = connection.receive(0.05)
                if message and message['type'] == 'connected':
                    connection.send('hello', name='b:2', session=welcomes[1]['session'], number=welcomes[1]['number'])
            assert message == welcomes[1]


# --- what it says


def test_the_hint_says_what_would_help(address, caplog):
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as connection:
        assert receiver.get(0.5) is None
        assert 'no data worker is connected' in receiver.hint()
        command = 'python3 pose_dataworker.py --master=' + address
        assert receiver.hint().endswith(command)
        wait_for(lambda: connection.receive(0.05), 'no connection')
        connection.send('hello', name='test:1', session=b'', number=-1)
        wait_for(lambda: receiver.get(0.1) or 'test:1 (127.0.0.1), still preparing' in receiver.hint(), 'no greeting')
        connection.send('ready', samples=100)
        wait_for(lambda: receiver.get(0.1) or 'waiting for test:1 (127.0.0.1); look' in receiver.hint(), 'no worker')
        assert receiver.hint().endswith(command)
    assert 'no batch' not in caplog.text  # that is for the feed to say


def test_the_hint_names_this_machine(address):
    with BatchReceiver(address.replace('127.0.0.1', '0.0.0.0'), SETTINGS) as receiver:
        assert receiver.hint().endswith('--master=tcp://%s:%s' % (socket.gethostname(), address.split(':')[-1]))


def test_a_report_does_not_wait_for_a_batch(address):
    with BatchReceiver(address, SETTINGS) as receiver:
        getter = threading.Thread(target=receiver.get, args=(2,))
        getter.start()
        time.sleep(0.2)
        assert receiver.report() == [] and receiver.ready() == 0 and 'no data worker' in receiver.hint()
        assert getter.is_alive()
        getter.join()


def test_reports_from_another_thread_lose_nothing(caplog):
    caplog.set_level(logging.CRITICAL)
    activity, done, lines = Activity(), threading.Event(), []

    def report():
        while not done.is_set():
            lines.extend(activity.report())

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reporter = threading.Thread(target=report)
        reporter.start()
        for n in range(200000):
            activity.misbehaved('sender %d' % (n % 3), 'fault')
        done.set()
        reporter.join()
    finally:
        sys.setswitchinterval(switch)
    assert sum(int(line.split()[1]) for line in lines + activity.report()) == 200000


@pytest.mark.parametrize('bad', ['127.0.0.1:5000', 'tcp://127.0.0.1', 'tcp://:5000', 'tcp://127.0.0.1:70000',
                                 'tcp://no-such.host:5000'])
def test_addresses_that_cannot_be_listened_on(bad):
    with pytest.raises(UserError) as error:
        BatchReceiver(bad, SETTINGS)
    assert '--remote-data' in str(error.value)


def test_a_port_in_use_and_an_open_door(address, caplog):
    with BatchReceiver(address, SETTINGS):
        assert 'open to everyone' not in caplog.text
        with pytest.raises(UserError) as error:
            BatchReceiver(address, SETTINGS)
        assert address in str(error.value)
    with BatchReceiver(address.replace('127.0.0.1', '0.0.0.0'), SETTINGS):
        assert caplog.text.count('open to everyone') == 1


# --- what nobody should send


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, ('touch %s' % self.path,)


def good_messages():
    arrays = wire.encode_batch(made_up_batch(3, SETTINGS))
    return [[wire.pack('hello', name='evil', session=b'', number=-1)], [wire.pack('ready', samples=100)],
            [wire.pack('bye')], [header_of(arrays)] + [array.tobytes() for _, array in arrays]]


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
            yield [wire.pack('batch', arrays=huge)] + frames[1:]
        elif kind == 4:
            payload = pickle.dumps(Bomb(bomb))
            yield rng.choice([[payload], [wire.pack('batch', arrays=payload)] + [payload] * 8,
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


@pytest.mark.slow
def test_ten_thousand_hostile_messages_do_not_stop_training(address, start, tmp_path):
    bomb = tmp_path / 'exploded'
    trainer = start_trainer(start, address)
    worker = start_worker(start, address, save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)]), delay=0.01)
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
    assert end_training(trainer) == 0 and worker.wait(PATIENCE) == 0


def test_a_frame_that_declares_to_be_huge_is_refused_before_memory_is_taken(address):
    with BatchReceiver(address, SETTINGS) as receiver:
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


@contextlib.contextmanager
def raw_worker(receiver, address):
    """A worker that may send and keeps to no rules: yields send(frames)."""
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(address)
        dealer.send(wire.pack('hello', name='test:1', session=b'', number=-1))
        dealer.send(wire.pack('ready', samples=100))
        wait_for(lambda: receiver.get(0.05) or any('joined' in line for line in receiver.report()), 'it may not send')
        yield dealer.send_multipart
    finally:
        context.destroy(linger=0)


def test_wrong_batches_of_a_real_worker_are_counted_and_replaced(address):
    good = made_up_batch(0, SETTINGS)
    arrays = wire.encode_batch(good)
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
    assert len(bad) > MAX_CREDIT  # each bad one is replaced by a new one
    with BatchReceiver(address, SETTINGS) as receiver, raw_worker(receiver, address) as send:
        for wrong in bad:
            send([header] + wrong)
            assert receiver.get(0.05) is None
        send([header] + frames)
        assert_same(good, next_batch(receiver))
        dropped = [line for line in receiver.report() if line.startswith('dropped')]
        assert len(dropped) == 1 and dropped[0].startswith('dropped %d bad messages from test:1 (127.0.0.1)' % len(bad))


# --- keys


@pytest.mark.slow
def test_only_workers_with_an_accepted_key_get_in(address, start, tmp_path, caplog):
    keys, others = tmp_path / 'keys', tmp_path / 'others'
    assert make_keys(keys).returncode == 0 and make_keys(others).returncode == 0
    strangers = tmp_path / 'strangers'
    shutil.copytree(str(others), str(strangers))  # it knows neither the trainer, nor the trainer it
    (others / 'trainer.key').write_bytes((keys / 'trainer.key').read_bytes())  # it knows the trainer
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS, str(keys)) as receiver:
        refused = start_worker(start, address, batches, others)
        missing = start_worker(start, address, batches)
        stranger = start_worker(start, address, batches, strangers)
        refusals = 'key is not accepted', "not with this trainer's keys"
        wait_for(lambda: receiver.get(0.2) or all(line in caplog.text for line in refusals),
                 'the trainer does not tell whom it refuses')
        assert receiver.get(0.5) is None and not receiver.ready()
        accepted = start_worker(start, address, batches, keys)
        for _ in range(5):
            next_batch(receiver)
        joined = [line for line in receiver.report() if 'joined' in line]
        assert len(joined) == 1 and ':%d ' % accepted.pid in joined[0]
    assert accepted.wait(PATIENCE) == 0
    for worker, reason in ((refused, 'does not accept this key'), (missing, '--curve-keys on both sides'),
                           (stranger, '--curve-keys on both sides')):
        assert worker.poll() is None  # it goes on trying: the trainer may come to accept it
        assert reason in worker.log.read_text() and 'connected; sending' not in worker.log.read_text()
