"""Attack a trainer's port for data workers in the ways that any host on the network could; see that training goes on.

    python3 benchmarks/check_attacks.py [--seconds=5] [--attacks=NAME,NAME]

Each attack meets a trainer of its own with one honest data worker, which sends made-up batches. The table shows batches/s
before the attack and the share of them during and after it, the trainer's memory before and at most, how many of its
saves failed, and how long it took to close. Trainer, worker and attacker share this machine's cores: an attacker that
keeps one busy takes its share of the rate by that alone.
"""
import contextlib
import logging
import multiprocessing
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

from bench_inputs import ROOT, made_up_batches
import bench_remote
import pose_cli
from remote import trainer

SETTINGS = {'input_width': 96, 'input_height': 96, 'stride': 8, 'batchsize': 4, 'seed': 0}
GREETING = b'\xff' + bytes(8) + b'\x7f\x03\x00NULL' + bytes(16) + b'\0' + bytes(31)  # of ZeroMQ's protocol, ZMTP 3
READY = b'\x05READY\x0bSocket-Type' + struct.pack('>I', 6) + b'DEALER'
PAUSE = 0.2
PATIENCE = 60


def connect(host, port):
    """A TCP connection, or None when the trainer does not take it."""
    try:
        return socket.create_connection((host, port), timeout=5)
    except OSError:
        return None


def shake_hands(connection):
    """The handshake of ZeroMQ without keys."""
    connection.sendall(GREETING + b'\x04' + bytes([len(READY)]) + READY)


def connections(host, port, count, begin=lambda connection: None, go_on=lambda connection: None):
    """Hold so many connections for ever; make new ones for those that the trainer ends."""
    held = []
    while True:
        while len(held) < count:
            connection = connect(host, port)
            if connection is None:
                break
            held.append(connection)
            with contextlib.suppress(OSError):
                begin(connection)
        time.sleep(PAUSE)
        for connection in list(held):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                try:
                    go_on(connection)
                    while connection.recv(65536):
                        pass
                except BlockingIOError:
                    raise
                except OSError:
                    pass
                connection.close()
                held.remove(connection)


def idle(host, port):
    connections(host, port, 2000)


def slow_handshakes(host, port):
    connections(host, port, 500, go_on=lambda connection: connection.send(b'\xff'))


def speechless(host, port):
    connections(host, port, 500, begin=shake_hands)


def port_scan(host, port):
    while True:
        connection = connect(host, port)
        if connection:
            connection.close()


def messages(host, port, make):
    """20 connections that send the messages of make(n) as fast as the trainer takes them, and reconnect when it ends them."""
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(20)]
    for zmq_socket in sockets:
        zmq_socket.setsockopt(zmq.SNDHWM, 20)
        zmq_socket.connect('tcp://%s:%d' % (host, port))
    n = 0
    while True:
        sent = 0
        for zmq_socket in sockets:
            n += 1
            with contextlib.suppress(zmq.Again):
                zmq_socket.send_multipart(make(n), zmq.NOBLOCK)
                sent += 1
        if not sent:
            time.sleep(0.001)


def big_headers(host, port):
    header = b'\xdc' + struct.pack('>H', 16380) + b'\x80' * 16380
    messages(host, port, lambda n: [header])


def hellos(host, port):
    """A stranger that says what a worker says, with other data."""
    version = getattr(trainer, 'headers', trainer.wire).VERSION
    said = [msgpack.packb(dict(fields, version=version, type=kind)) for kind, fields in (
        ('hello', {'name': 'worker:1'}), ('ready', {'samples': 1, 'data': '1' * 32}), ('bye', {}))]
    messages(host, port, lambda n: [said[n // 20 % 3]])


def garbage(host, port):
    rng = random.Random(0)
    noise = [[bytes(rng.getrandbits(8) for _ in range(rng.randrange(400))) for _ in range(rng.randrange(1, 9))]
             for _ in range(100)]
    messages(host, port, lambda n: noise[n % len(noise)])


# name: (what the attacker does, with keys, whether the trainer is busy with something else meanwhile, files it may open)
ATTACKS = {
    'nothing': (None, False, False, None),
    'idle': (idle, False, False, None),
    'idle_1024_files': (idle, False, False, 1024),
    'slow_handshakes': (slow_handshakes, False, False, None),
    'speechless': (speechless, False, False, None),
    'port_scan': (port_scan, False, False, None),
    'port_scan_keys_validating': (port_scan, True, True, None),
    'big_headers': (big_headers, False, False, None),
    'hellos': (hellos, False, False, None),
    'garbage': (garbage, False, False, None)}


def run_trainer(address, keys, files, pipe):
    """Take batches, and save something now and then, until told otherwise through the pipe."""
    logging.getLogger().setLevel(logging.ERROR)
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    batches = failed_saves = most = 0
    busy, next_save = False, time.monotonic()
    receiver = trainer.BatchReceiver(address, SETTINGS, keys)
    while True:
        if pipe.poll():
            wish = pipe.recv()
            if wish == 'close':
                break
            busy = wish == 'busy'
            pipe.send((time.monotonic(), batches, memory(), max(most, memory()), failed_saves))
        if busy:
            time.sleep(0.05)
        elif receiver.get(0.05) is not None:
            batches += 1
        if time.monotonic() > next_save:
            next_save, most = time.monotonic() + 0.05, max(most, memory())
            try:
                tempfile.TemporaryFile().close()
            except OSError:
                failed_saves += 1
    start = time.monotonic()
    receiver.close()
    pipe.send(time.monotonic() - start)


def memory():
    """MB of this process in memory; those of another process would need its permission."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def ask(pipe, wish):
    pipe.send(wish)
    if not pipe.poll(PATIENCE):
        return None
    return pipe.recv()


def rate(pipe, seconds, busy=False):
    start = ask(pipe, 'busy' if busy else 'go on')
    time.sleep(seconds)
    end = ask(pipe, 'busy' if busy else 'go on')
    return (end[1] - start[1]) / (end[0] - start[0])


def measure(name, seconds, batches, keys):
    """{figure: value} of one attack; close_seconds is None when the trainer hangs."""
    attacker, with_keys, busy, files = ATTACKS[name]
    keys = keys if with_keys else None
    port = bench_remote.free_port()
    address = 'tcp://127.0.0.1:%d' % port
    pipe, other_end = multiprocessing.Pipe()
    with bench_remote.child(run_trainer, address, keys, files, other_end), \
            bench_remote.sending(batches, address, keys):
        deadline = time.monotonic() + PATIENCE
        while ask(pipe, 'go on')[1] < 20:
            if time.monotonic() > deadline:
                raise pose_cli.UserError('no batch reaches the trainer')
            time.sleep(0.1)
        before, memory_before = rate(pipe, seconds), ask(pipe, 'go on')[2]
        ask(pipe, 'busy' if busy else 'go on')
        with contextlib.ExitStack() as stack:
            if attacker:
                stack.enter_context(bench_remote.child(attacker, '127.0.0.1', port))
            time.sleep(2)
            during = rate(pipe, seconds, busy)
        time.sleep(1)
        after = rate(pipe, seconds)
        _, _, _, most, failed_saves = ask(pipe, 'go on')
        return {'batches_per_s': before, 'during': during / before, 'after': after / before, 'mb': memory_before,
                'most_mb': most, 'failed_saves': failed_saves, 'close_seconds': ask(pipe, 'close')}


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=pose_cli.positive_int, default=5, help='per measurement, three for each attack')
    parser.add_argument('--attacks', default=','.join(ATTACKS), help='which ones')
    flags = parser.parse_args(args)
    flags.attacks = flags.attacks.split(',')
    unknown = sorted(set(flags.attacks) - set(ATTACKS))
    if unknown:
        raise pose_cli.UserError('--attacks: there is no %s; take of %s' % (unknown[0], ','.join(ATTACKS)))
    return flags


def main():
    flags = parse_flags()
    batches = made_up_batches(*(SETTINGS[name] for name in ('batchsize', 'input_width', 'input_height', 'stride')), 2)
    print('%-26s %9s %7s %7s %7s %7s %6s %7s' % ('attack', 'batches/s', 'during', 'after', 'MB', 'most MB', 'failed',
                                                 'close s'))
    with tempfile.TemporaryDirectory() as keys:
        subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_curve_keys.py'), '--output-dir=' + keys],
                       stdout=subprocess.DEVNULL, check=True)
        for name in flags.attacks:
            figures = measure(name, flags.seconds, batches, keys)
            hangs = figures['close_seconds'] is None
            print('%-26s %9.0f %7.2f %7.2f %7.0f %7.0f %6d %7s' % (
                (name,) + tuple(figures.values())[:6] + ('hangs' if hangs else '%.1f' % figures['close_seconds'],)),
                flush=True)


if __name__ == '__main__':
    pose_cli.run(main)
