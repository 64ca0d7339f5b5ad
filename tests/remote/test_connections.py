"""Who may connect and stay: real connections to real trainers, more of them and worse ones than any worker makes."""
import contextlib
import json
import re
import shutil
import socket
import struct
import time

import psutil
import pytest

from check_attacks import connect, shake_hands
from conftest import PATIENCE, wait_for
from remote import connections as connections_module
from remote.connections import KEYS_SECONDS, RESERVED_FILES, connection_limit, resource
from remote.receiver import BatchReceiver
from remote.sender import ConnectionLost, TrainerConnection
from wire_ends import SENDER, SETTINGS, host_and_port, in_background, introduce, made_up_batch, next_batch, reports, \
    save_batches, start_ends, wait_for_batches

BUSY_RECEIVER = 'tests/programs/busy_receiver.py'


def is_open(connection):
    """Whether the trainer has not ended a connection; reads what it has said."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.fixture
def many(address):
    """many(count, begin, host) opens so many connections from a host, which are closed in the end."""
    with contextlib.ExitStack() as stack:
        def many(count, begin=lambda connection: None, host='127.0.0.1'):
            made = []
            for _ in range(count):
                connection = socket.create_connection(host_and_port(address), PATIENCE, (host, 0))
                made.append(stack.enter_context(contextlib.closing(connection)))
                with contextlib.suppress(OSError):
                    begin(connection)
            return made

        yield many


def test_one_host_cannot_take_all_connections(address, many, monkeypatch):
    monkeypatch.setattr(connections_module, 'MAX_PER_HOST', 20)
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as worker:
        _, credit = introduce(receiver, worker)
        connections = many(60, host='127.0.0.2')
        wait_for(lambda: sum(map(is_open, connections)) <= 20, 'they are not disconnected')
        assert sum(map(is_open, many(10, host='127.0.0.3'))) == 10
        worker.send_batch(credit[0], made_up_batch(0, SETTINGS))
        next_batch(receiver)
        lines = wait_for(lambda: [line for line in receiver.report() if 'more than 20 connections' in line], 'not told')
        assert '127.0.0.2' in lines[0]


def test_all_hosts_together_cannot_either(address, many, monkeypatch):
    monkeypatch.setattr(connections_module, 'MAX_CONNECTIONS', 40)
    with BatchReceiver(address, SETTINGS):
        connections = [connection for n in range(6) for connection in many(20, host='127.0.1.%d' % (n + 1))]
        wait_for(lambda: sum(map(is_open, connections)) <= 40, 'they are not disconnected')


def test_the_limit_follows_that_of_the_process(monkeypatch):
    for files, low, high in ((20000, 1024, 1024), (1024, 256, 1024 - RESERVED_FILES), (256, 64, 64)):
        monkeypatch.setattr(resource, 'getrlimit', lambda which: (files, files))
        assert low <= connection_limit() <= high


@pytest.mark.parametrize('how', ['idle', 'slow', 'speechless'])
def test_who_says_nothing_has_to_go(address, many, monkeypatch, how):
    monkeypatch.setattr(connections_module, 'HANDSHAKE_SECONDS', 1.0)
    monkeypatch.setattr(connections_module, 'HELLO_SECONDS', 1.0 if how == 'speechless' else 1000.0)
    with BatchReceiver(address, SETTINGS):  # nobody calls get()
        connections = many(30, shake_hands if how == 'speechless' else lambda connection: None)

        def gone():
            for connection in connections if how == 'slow' else []:
                with contextlib.suppress(OSError):
                    connection.send(b'\xff')
            return not any(map(is_open, connections))

        wait_for(gone, 'they stay', 30)


@pytest.mark.slow
def test_a_message_without_end_is_ended(address, many, monkeypatch):
    monkeypatch.setattr('remote.receiver.END_SECONDS', 0.5)  # ZeroMQ's context does not end with half a message in it
    with BatchReceiver(address, SETTINGS) as receiver:
        connection, = many(1)
        connection.settimeout(10)  # it may end without a word, its window full
        before = psutil.Process().memory_info().rss
        shake_hands(connection)
        time.sleep(0.5)
        frame = b'\x03' + struct.pack('>Q', 8192) + bytes(8192)  # more to follow
        sent, deadline = 0, time.monotonic() + 30
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(frame)
                sent += len(frame)
        wait_for(lambda: any('more bytes than it may send' in line for line in receiver.report()), 'not told', 30)
        assert psutil.Process().memory_info().rss < before + sent + 16e6


@pytest.mark.slow
def test_a_worker_that_sends_for_long_is_no_attacker(address):
    """What frames cost beside their bytes does not add up."""
    arrays = made_up_batch(0, SETTINGS)
    with BatchReceiver(address, SETTINGS) as receiver, TrainerConnection(address) as worker:
        receiver._guard._max_bytes = 100000
        _, credit = introduce(receiver, worker)
        for _ in range(600):
            worker.send_batch(credit.pop(0), arrays)
            next_batch(receiver)
            message = worker.receive(0)
            while message:
                credit += message.get('batches', [])
                message = worker.receive(0)
        assert not any('more bytes' in line for line in receiver.report())


@pytest.mark.slow
def test_a_worker_that_is_turned_away_says_hello_again(address, start_program, tmp_path):
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS) as receiver:
        process = start_program(SENDER, address, batches, '', 0.01, 20)
        next_batch(receiver)
        for _ in range(2):
            worker = list(receiver._workers.values())[-1]  # the newest
            receiver._guard.disconnect(worker.descriptor, worker.route)
            wait_for(lambda: receiver.get(0.1) and any('joined' in line for line in receiver.report()[-3:]) or
                     [other for other in receiver._workers.values() if other is not worker and other.ready],
                     'it does not come back')
            next_batch(receiver)
        assert process.poll() is None


def test_a_worker_whose_key_is_removed_has_to_go(address, keys, monkeypatch):
    assert KEYS_SECONDS < 50  # within a minute
    monkeypatch.setattr(connections_module, 'KEYS_SECONDS', 1.0)
    with BatchReceiver(address, SETTINGS, str(keys)) as receiver, TrainerConnection(address, str(keys)) as worker:
        introduce(receiver, worker)
        with in_background(lambda: receiver.get(0.1)):
            shutil.move(str(keys / 'accepted_workers' / 'worker.key'), str(keys / 'away.key'))
            start = time.monotonic()
            with pytest.raises(ConnectionLost):
                while time.monotonic() < start + 30:
                    worker.receive(0.1)
            with TrainerConnection(address, str(keys)) as again:
                wait_for(lambda: again.receive(0.1) or 'does not accept this key' in again.trouble, 'it is let in')
                assert 'does not accept this key' in again.trouble
            shutil.move(str(keys / 'away.key'), str(keys / 'accepted_workers' / 'worker.key'))
            with TrainerConnection(address, str(keys)) as again:
                assert wait_for(lambda: again.receive(0.1), 'it is not let in')['type'] == 'connected'
            lines = wait_for(lambda: [line for line in receiver.report() if 'key' in line], 'not told')
        assert any('has been removed' in line or 'not accepted' in line for line in lines)


@contextlib.contextmanager
def busy_trainer(start_program, address, keys=''):
    """A busy_receiver.py, which goes on in the end; then it has to close within 10 s."""
    trainer = start_program(BUSY_RECEIVER, json.dumps(SETTINGS), address, keys)
    wait_for(lambda: 'open' in trainer.log.read_text(), 'it does not open')
    yield
    trainer.communicate(b'\n', 60)
    assert trainer.returncode == 0, trainer.log.read_text()
    assert float(re.search(r'closed in ([\d.]+) s', trainer.log.read_text()).group(1)) < 10


@pytest.mark.slow
def test_a_port_scan_does_not_hang_a_trainer_that_validates(address, keys, start_program):
    with busy_trainer(start_program, address, keys):
        for _ in range(2500):  # more than ZeroMQ's pipe for such events holds
            connection = connect(*host_and_port(address))
            if connection:
                connection.close()


@pytest.mark.slow
def test_a_flood_and_a_reset_do_not_kill_a_trainer_that_validates(address, start_program):
    """Messages that nobody reads, and a reset, end a process by an assertion of ZeroMQ's when it has heartbeats."""
    with busy_trainer(start_program, address):
        connections = [connect(*host_and_port(address)) for _ in range(20)]
        for connection in connections:
            shake_hands(connection)
        time.sleep(0.5)
        for n, connection in enumerate(connections):
            with contextlib.suppress(OSError):
                connection.sendall(b'\x00\x05hello' * (60 << n % 6) + (b'\x04\x08\x04PING\x00\x00x' if n % 2 else b''))
        time.sleep(0.5)
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            connection.close()
        time.sleep(6)  # the next heartbeat came after 5 s


@pytest.mark.slow
def test_descriptors_are_left_for_saves(address, many, start_program, tmp_path):
    limited = ['bash', '-c', 'ulimit -n 1024; exec "$@"', '-']
    trainer, worker, _ = start_ends(start_program, address, tmp_path, trainer_prefix=limited)
    for n in range(11):  # of many hosts, so that only the limit on all of them holds
        many(100, shake_hands, host='127.0.2.%d' % (n + 1))
    wait_for_batches(trainer, 50)
    assert reports(trainer)[-1]['files'] and trainer.poll() is None and worker.poll() is None
