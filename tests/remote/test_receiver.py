"""The trainer's end: real workers in real processes, hostile messages, kills and cut links."""
import collections
import contextlib
import os
import pickle
import random
import signal
import socket
import struct
import time

import msgpack
import psutil
import pytest
import zmq

from check_attacks import shake_hands
from conftest import PATIENCE, wait_for
from pose_errors import UserError
from remote import protocol
from remote.receiver import BatchReceiver
from remote.sender import TrainerConnection
from wire_ends import DATA, SENDER, SETTINGS, assert_same, end_ends, header_of, host_and_port, introduce, \
    made_up_batch, next_batch, reports, save_batches, start_ends, wait_for_batches


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch):
    """Workers that are played here by hand do not answer when they are told the end."""
    monkeypatch.setattr('remote.receiver.LEAVE_SECONDS', 0.5)


def test_batches_arrive_and_the_worker_is_told_the_end(address, start_program, tmp_path):
    batches = [made_up_batch(seed, SETTINGS) for seed in range(3)]
    with BatchReceiver(address, SETTINGS) as receiver:
        worker = start_program(SENDER, address, save_batches(tmp_path / 'b.npz', batches), '', 0, 20)
        for n in range(10):
            received = next_batch(receiver)
            assert_same(batches[n % 3], received)
        lines = '\n'.join(receiver.report())
        assert 'data worker joined: ' in lines and 'samples/s' in lines and '127.0.0.1' in lines
    assert worker.wait(PATIENCE) == 0
    assert 'training has ended' in worker.log.read_text()


def test_a_slow_trainer_has_a_bounded_number_of_batches_on_the_way(address):
    batch = made_up_batch(0, SETTINGS)
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as connection:
        _, credit = introduce(receiver, connection)
        assert len(credit) == protocol.MAX_CREDIT
        for number in credit:
            connection.send_batch(number, batch)
        # The trainer sees the batches, but takes none: no further one is asked for.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            receiver.poll(0.01)
            message = connection.receive(0.05)
            assert message is None or message['type'] == 'ping'
        assert receiver.ready() == len(credit)
        connection.send_batch(1000, batch)  # one that nobody asked for
        connection.send_batch(credit[0], batch)  # one that it has sent
        for number in credit:
            assert_same(batch, next_batch(receiver))
            assert receiver.number == number
        wait_for(lambda: any('not asked for' in line for line in (receiver.get(0.1), receiver.report())[1]),
                 'the uninvited batch was not reported')
        assert receiver.ready() == 0


@pytest.mark.slow
def test_a_slow_worker_does_not_hold_up_a_fast_one(address, start_program, tmp_path):
    slow, fast = made_up_batch(1, SETTINGS), made_up_batch(2, SETTINGS)
    with BatchReceiver(address, SETTINGS) as receiver:
        start_program(SENDER, address, save_batches(tmp_path / 'slow.npz', [slow]), '', 1.0, 20)
        assert_same(slow, next_batch(receiver))
        start_program(SENDER, address, save_batches(tmp_path / 'fast.npz', [fast]), '', 0.0, 20)
        counts = {True: 0, False: 0}
        while counts[True] < 100:
            counts[bool((next_batch(receiver)[0] == fast[0]).all())] += 1
        assert 0 < counts[True] and counts[False] < 50


def test_a_trainer_knows_what_would_help(address):
    with BatchReceiver(address, SETTINGS) as receiver:
        assert receiver.get(0.1) is None
        assert 'no data worker is connected' in receiver.diagnosis()
        assert 'python3 pose_dataworker.py --master=tcp://127.0.0.1' in receiver.diagnosis()
        with TrainerConnection(address) as connection:
            introduce(receiver, connection, 'slow:1')
            assert 'waiting for slow:1 (127.0.0.1); look at the log there' in receiver.diagnosis()


@pytest.mark.parametrize('bad', ['127.0.0.1:5000', 'tcp://127.0.0.1', 'tcp://:5000', 'tcp://127.0.0.1:70000',
                                 'tcp://no-such.host:5000'])
def test_addresses_that_cannot_be_listened_on(bad):
    with pytest.raises(UserError, match='--remote-data'):
        BatchReceiver(bad, SETTINGS)


def test_a_port_in_use_and_an_open_address(address, caplog):
    with BatchReceiver(address, SETTINGS):
        assert 'open to everyone' not in caplog.text
        with pytest.raises(UserError, match=address):
            BatchReceiver(address, SETTINGS)
    with BatchReceiver(address.replace('127.0.0.1', '0.0.0.0'), SETTINGS):
        assert caplog.text.count('open to everyone') == 1


# --- what nobody should send


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, ('touch %s' % self.path,)


def good_messages():
    arrays = made_up_batch(3, SETTINGS)
    return [[protocol.pack('hello', name='evil')], [protocol.pack('ready', samples=100, data=DATA)],
            [protocol.pack('bye')],
            [header_of(arrays), protocol.pack_number(0)] + [array.tobytes() for array in arrays]]


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
            yield [protocol.pack('batch', arrays=huge)] + frames[1:]
        elif kind == 4:
            payload = pickle.dumps(Bomb(bomb))
            yield rng.choice([[payload], [protocol.pack('batch', arrays=payload)] + [payload] * 8,
                              [msgpack.packb({b'nd': True, b'type': b'O', b'kind': b'O', b'data': payload})]])
        elif kind == 5:
            value = rng.choice([None, -1, 2 ** 63, 1.5, [], {}, 'x' * 5000, b'\xff' * 50, [[[[]]]],
                                msgpack.ExtType(5, b'x')])
            yield [msgpack.packb(rng.choice([
                value, {'version': protocol.VERSION, 'type': value}, {'version': value, 'type': 'hello'},
                {'version': protocol.VERSION, 'type': 'hello', 'name': value},
                {'version': protocol.VERSION, 'type': 'batch', 'arrays': value}]))]
        elif kind == 6:
            yield [b'\x91' * rng.randrange(1, 5000)]  # deeply nested
        else:
            yield frames[:rng.randrange(1, len(frames) + 1)] + [b'more'] * rng.randrange(30)


def send_hostile_messages(address, bomb):
    """Ten thousand of them, over 1,000 connections, 50 at a time. Returns what must not be closed."""
    rng, context = random.Random(1), zmq.Context()
    sockets, good = collections.deque(), good_messages()
    for n, frames in enumerate(hostile_messages(rng, 10000, bomb)):
        if n % 10 == 0:  # some of them introduce themselves properly first, and so get further
            sockets.append(context.socket(zmq.DEALER))
            sockets[-1].setsockopt(zmq.RECONNECT_IVL, 1000000)  # a sender that was disconnected stays away
            sockets[-1].connect(address)
            if len(sockets) > 50:
                sockets.popleft().close(0)
        for message in (good[:2] if n % 20 == 0 else []) + [frames]:
            with contextlib.suppress(zmq.Again):  # it has been disconnected
                sockets[-1].send_multipart(message, zmq.NOBLOCK)
    return context, sockets


@pytest.mark.slow
def test_ten_thousand_hostile_messages_do_not_stop_training(address, start_program, tmp_path):
    bomb = tmp_path / 'exploded'
    trainer, worker, _ = start_ends(start_program, address, tmp_path)
    before = reports(trainer)[-1]
    # In a process of its own, which ends as it likes: libzmq may abort one whose connections are cut like this.
    attacker = os.fork()
    if attacker == 0:
        try:
            held = send_hostile_messages(address, bomb)  # noqa: F841
            time.sleep(3)  # until they are on their way
        finally:
            os._exit(0)
    os.waitpid(attacker, 0)

    def dropped():
        return [line for report in reports(trainer) for line in report['report'] if line.startswith('dropped ')]

    # Of each of the 1,000 connections, what was read before it was disconnected: how much depends on who is faster.
    wait_for(lambda: sum(int(line.split()[1]) for line in dropped()) > 500, "bad messages are not counted")
    wait_for_batches(trainer, 100)
    after = reports(trainer)[-1]
    assert trainer.poll() is None and worker.poll() is None
    # Fifty connections at a time may each hold what the guard allows; that much stays in the heap.
    assert after['rss'] < before['rss'] + 64e6, 'memory grew by %.0f MB' % ((after['rss'] - before['rss']) / 1e6)
    assert any('127.0.0.1' in line for line in dropped())
    assert not bomb.exists()
    assert trainer.log.read_text().count('WARNING') < 500  # counted, not one line each
    end_ends(trainer, worker)


def test_a_frame_that_declares_to_be_huge_is_refused_before_memory_is_taken(address):
    with BatchReceiver(address, SETTINGS) as receiver:
        before = psutil.Process().memory_info().vms
        with contextlib.closing(socket.create_connection(host_and_port(address), PATIENCE)) as raw:
            shake_hands(raw)
            raw.sendall(b'\x02' + struct.pack('>Q', 8 << 30) + bytes(100))  # a frame of 8 GB begins
            while True:  # the trainer closes the connection
                receiver.get(0.05)
                try:
                    if not raw.recv(4096):
                        break
                except ConnectionResetError:
                    break
        assert psutil.Process().memory_info().vms < before + (1 << 30)


@pytest.mark.slow
def test_wrong_batches_of_a_real_worker_are_counted_and_replaced(address):
    good = made_up_batch(0, SETTINGS)
    frames = [array.tobytes() for array in good]
    header = header_of(good)
    first, second = good.paf_positions[:2]
    bad = []
    for place, values in ((0, [second, first]), (0, [first, first]), (-1, [1 << 30]), (0, [-1])):
        positions = good.paf_positions.copy()
        positions[place:][:len(values)] = values
        bad.append(frames[:5] + [positions.tobytes()] + frames[6:])
    bad += [frames[:1] + [b'\xff' * len(frames[1])] + frames[2:]]  # a mask above 1
    bad += [frames[:2] + [b'\x02' * len(frames[2])] + frames[3:]]  # labelled parts above 1
    bad += [frames[:5] + [frames[5][:-4]] + frames[6:], [frames[0][:-1]] + frames[1:], frames[:-1], frames + [b'']]
    bad *= 4
    assert len(bad) > protocol.MAX_CREDIT  # each bad one is replaced by a new one
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as connection:
        _, credit = introduce(receiver, connection)
        for wrong in bad:  # each is asked for again
            connection._socket.send_multipart([header, protocol.pack_number(credit.pop(0))] + wrong)
            assert receiver.get(0.05) is None
            message = connection.receive(0)
            while message:
                credit += message.get('batches', [])
                message = connection.receive(0)
        connection.send_batch(credit[0], good)
        assert_same(good, next_batch(receiver))
        dropped = [line for line in receiver.report() if line.startswith('dropped')]
        assert len(dropped) == 1 and dropped[0].startswith('dropped %d bad messages from test:1 (127.0.0.1)' % len(bad))


# --- each batch once


@pytest.mark.slow
def test_no_batch_is_lost_or_doubled_when_workers_are_killed(address, start_program, tmp_path):
    trainer, worker, batches = start_ends(start_program, address, tmp_path, link_timeout=2)
    workers = [worker]
    for joined in (2, 3, 4):
        workers.append(start_program(SENDER, address, batches, '', 0.01, 20))
        wait_for(lambda: trainer.log.read_text().count('data worker joined') >= joined, 'a worker does not join')
        wait_for_batches(trainer, 40)
        workers.pop(0).kill()
    wait_for(lambda: trainer.log.read_text().count('data worker left') == 3, 'a death goes unnoticed')
    wait_for_batches(trainer, 100)
    numbers = [number for report in reports(trainer) for number in report['numbers']]
    assert len(set(numbers)) == len(numbers)
    settled = len(numbers) - 2 * 2 * protocol.MAX_CREDIT  # the last ones are on the way
    assert set(range(settled)) <= set(numbers)


@pytest.mark.parametrize('own, samples, data, reason', [
    (None, 7, DATA, '7 samples, the others have 100'), (None, 100, '1' * 32, '100 samples, the others have others'),
    ((100, DATA), 1, DATA, '1 samples, the trainer has 100')])
def test_a_worker_with_other_data_is_refused(address, own, samples, data, reason):
    with BatchReceiver(address, SETTINGS, data=own) as receiver, TrainerConnection(address) as first:
        if own is None:
            introduce(receiver, first)
        with TrainerConnection(address) as second, pytest.raises(UserError, match=reason):
            while True:
                receiver.get(0)
                message = second.receive(0.05) or {'type': None}
                if message['type'] == 'connected':
                    second.send('hello', name='other:1')
                elif message['type'] == 'welcome':
                    second.send('ready', samples=samples, data=data)
        if own:
            introduce(receiver, first)
        assert receiver.samples == 100
        assert any(reason in line for line in receiver.report())


def test_few_samples_are_told_and_a_run_that_is_resumed_asks_for_the_next_batches(address, caplog):
    caplog.set_level('INFO')
    with BatchReceiver(address, dict(SETTINGS, batchsize=8), first=1000) as receiver, \
            TrainerConnection(address) as connection:
        _, credit = introduce(receiver, connection)
        assert credit == list(range(1000, 1000 + protocol.MAX_CREDIT))
    assert 'test:1 (127.0.0.1) has 100 samples: 12 steps per epoch' in caplog.text
    with BatchReceiver(address, dict(SETTINGS, batchsize=8), every=2) as receiver, \
            TrainerConnection(address) as connection:
        introduce(receiver, connection)
    assert 'has 100 samples: 6 steps per epoch' in caplog.text
    assert '100 samples are few' in caplog.text


@pytest.mark.slow
def test_a_worker_that_stands_still_is_given_up(address, start_program, tmp_path):
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS, link_timeout=2) as receiver:
        worker = start_program(SENDER, address, batches, '', 0.01, 20)
        next_batch(receiver)
        worker.send_signal(signal.SIGSTOP)
        wait_for(lambda: any('left' in line for line in (receiver.get(0.1), receiver.report())[1]), 'it is waited for')
        worker.send_signal(signal.SIGCONT)
        wait_for(lambda: any('joined' in line for line in (receiver.get(0.1), receiver.report())[1]), 'it stays away')
        next_batch(receiver)


def test_a_stranger_cannot_take_a_workers_place(address):
    """Each connection is a worker of its own: nothing that a message says can end another's."""
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as worker:
        _, credit = introduce(receiver, worker, 'worker:1')
        with TrainerConnection(address) as stranger:
            introduce(receiver, stranger, 'worker:1')
            worker.send_batch(credit[0], made_up_batch(0, SETTINGS))
            next_batch(receiver)
            assert receiver.number == credit[0]
