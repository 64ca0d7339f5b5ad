"""Attack a trainer's port for data workers in the ways that any host on the network could; see that training goes on.

    python3 benchmarks/check_attacks.py [--seconds=5] [--attacks=NAME,NAME]

Each attack meets a trainer of its own with one honest data worker, which sends made-up batches. The table shows
batches/s before the attack and the share of them during and after it, the trainer's CPU time for a batch during the
attack, in times of that before, its memory before and at most, how many of its saves failed, and how long it took to
close. Trainer, worker and attacker share this machine's cores, but the attacker has the lowest priority, as if it were
elsewhere; with much else to do on the machine, only the CPU times compare.
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
from annotations.skeleton import COCO_SKELETON
from batches.batch import encode_batch
from pose_errors import UserError
from remote import protocol
from remote.receiver import BatchReceiver

SETTINGS = {'input_width': 96, 'input_height': 96, 'stride': 8, 'batchsize': 4, 'seed': 0,
            'skeleton': COCO_SKELETON.to_json()}
GREETING = b'\xff' + bytes(8) + b'\x7f\x03\x00NULL' + bytes(16) + b'\0' + bytes(31)  # of ZeroMQ's protocol, ZMTP 3
READY = b'\x05READY\x0bSocket-Type' + struct.pack('>I', 6) + b'DEALER'
PAUSE, RENEWED = 0.2, 20
BUSY_SECONDS, PATIENCE = 10, 60


class TrainerGone(Exception):
    """The trainer does not answer any more; the text says how that looks."""


def attack(function, host, port, begun):
    os.nice(19)
    function(host, port, begun)


def connect(host, port):
    """A TCP connection, or None when the trainer does not take it."""
    try:
        return socket.create_connection((host, port), timeout=5)
    except OSError:
        return None


def shake_hands(connection):
    """The handshake of ZeroMQ without keys."""
    connection.sendall(GREETING + b'\x04' + bytes([len(READY)]) + READY)


def connections(host, port, begun, count, begin=lambda connection: None, go_on=lambda connection: None):
    """Hold so many connections for ever; make new ones for those that the trainer ends, RENEWED at a time."""
    held = []
    while True:
        for _ in range(min(count - len(held), RENEWED if held else count)):
            connection = connect(host, port)
            if connection is None:
                break
            held.append(connection)
            with contextlib.suppress(OSError):
                begin(connection)
        begun.set()
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


def idle(host, port, begun):
    connections(host, port, begun, 2000)


def slow_handshakes(host, port, begun):
    connections(host, port, begun, 500, go_on=lambda connection: connection.send(b'\xff'))


def speechless(host, port, begun):
    connections(host, port, begun, 500, begin=shake_hands)


def one_after_the_other(host, port, begun, go_on):
    """For ever a connection that shakes hands and goes on until go_on(connection) is done or the trainer ends it."""
    begun.set()
    while True:
        connection = connect(host, port)
        with contextlib.suppress(AttributeError, OSError):
            shake_hands(connection)
            time.sleep(PAUSE)
            go_on(connection)


def endless_message(host, port, begun):
    """A message whose last frame never comes."""
    frame = b'\x03' + struct.pack('>Q', 65536) + bytes(65536)

    def send(connection):
        while True:
            connection.sendall(frame)

    one_after_the_other(host, port, begun, send)


def flood_and_reset(host, port, begun):
    """More messages than a trainer that is busy reads, then a reset of the connection."""
    def send(connection):
        connection.sendall(b'\x00\x05hello' * 100)
        time.sleep(PAUSE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        connection.close()

    one_after_the_other(host, port, begun, send)


def port_scan(host, port, begun):
    begun.set()
    while True:
        connection = connect(host, port)
        if connection:
            connection.close()


def messages(host, port, begun, make):
    """20 connections that send make(n) as fast as the trainer takes it, and reconnect when it ends them."""
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(20)]
    for zmq_socket in sockets:
        zmq_socket.setsockopt(zmq.SNDHWM, 20)
        zmq_socket.connect('tcp://%s:%d' % (host, port))
    begun.set()
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


def big_headers(host, port, begun):
    header = b'\xdc' + struct.pack('>H', 16380) + b'\x80' * 16380
    messages(host, port, begun, lambda n: [header])


def hellos(host, port, begun):
    """A stranger that says what a worker says, with other data."""
    version = protocol.VERSION
    said = [msgpack.packb(dict(fields, version=version, type=kind)) for kind, fields in (
        ('hello', {'name': 'worker:1'}), ('ready', {'samples': 1, 'data': '1' * 32}), ('bye', {}))]
    messages(host, port, begun, lambda n: [said[n // 20 % 3]])


def garbage(host, port, begun):
    rng = random.Random(0)
    noise = [[bytes(rng.getrandbits(8) for _ in range(rng.randrange(400))) for _ in range(rng.randrange(1, 9))]
             for _ in range(100)]
    messages(host, port, begun, lambda n: noise[n % len(noise)])


# name: (what the attacker does, with keys, whether the trainer is busy meanwhile, how many files it may open)
ATTACKS = {
    'nothing': (None, False, False, None),
    'idle': (idle, False, False, None),
    'idle_1024_files': (idle, False, False, 1024),
    'slow_handshakes': (slow_handshakes, False, False, None),
    'speechless': (speechless, False, False, None),
    'port_scan': (port_scan, False, False, None),
    'flood_and_reset': (flood_and_reset, False, True, None),
    'endless_message': (endless_message, False, False, None),
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
    receiver = BatchReceiver(address, SETTINGS, keys)
    while True:
        if pipe.poll():
            wish = pipe.recv()
            if wish == 'close':
                break
            busy = wish == 'busy'
            most = max(most, memory())
            pipe.send((time.monotonic(), time.process_time(), batches, memory(), most, failed_saves))
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
    """MB of this process in memory; 0 when it has no descriptor left to ask."""
    try:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return 0


def ask(pipe, wish):
    """Raises TrainerGone."""
    try:
        pipe.send(wish)
        if pipe.poll(PATIENCE):
            return pipe.recv()
    except (OSError, EOFError):
        raise TrainerGone('dies')
    raise TrainerGone('hangs')


def rate(pipe, seconds):
    """(batches/s, seconds of the trainer's CPU time for a batch)."""
    start = ask(pipe, 'go on')
    time.sleep(seconds)
    end = ask(pipe, 'go on')
    duration, cpu, batches = (after - before for before, after in zip(start[:3], end))
    return batches / duration, cpu / max(batches, 1)


def measure(name, seconds, batches, keys):
    """The figures of one attack as a line of the table."""
    attacker, with_keys, busy, files = ATTACKS[name]
    keys = keys if with_keys else None
    port = bench_remote.free_port()
    address = 'tcp://127.0.0.1:%d' % port
    pipe, other_end = multiprocessing.Pipe()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bench_remote.child(run_trainer, address, keys, files, other_end))
        other_end.close()
        stack.enter_context(bench_remote.sending(batches, address, keys))
        deadline = time.monotonic() + PATIENCE
        while ask(pipe, 'go on')[2] < 20:
            if time.monotonic() > deadline:
                raise UserError('no batch reaches the trainer')
            time.sleep(0.1)
        (before, cpu_before), memory_before = rate(pipe, seconds), ask(pipe, 'go on')[3]
        line = '%9.0f %7.0f' % (before, memory_before)
        try:
            ask(pipe, 'busy' if busy else 'go on')
            with contextlib.ExitStack() as attacks:
                if attacker:
                    begun = multiprocessing.Event()
                    attacks.enter_context(bench_remote.child(attack, attacker, '127.0.0.1', port, begun))
                    begun.wait(PATIENCE)
                time.sleep(1)
                if busy:
                    line += ' %7s %7s' % ('busy', '')
                    time.sleep(BUSY_SECONDS)
                else:
                    during, cpu = rate(pipe, seconds)
                    line += ' %7.2f %7.2f' % (during / before, cpu / cpu_before)
            time.sleep(1)
            line += ' %7.2f' % (rate(pipe, seconds)[0] / before)
            *_, most, failed_saves = ask(pipe, 'go on')
            return line + ' %7.0f %6d %7.1f' % (most, failed_saves, ask(pipe, 'close'))
        except TrainerGone as gone:
            return line + ' the trainer %s' % gone


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=pose_cli.positive_int, default=5, help='per measurement')
    parser.add_argument('--attacks', default=','.join(ATTACKS), help='which ones')
    flags = parser.parse_args(args)
    flags.attacks = flags.attacks.split(',')
    unknown = sorted(set(flags.attacks) - set(ATTACKS))
    if unknown:
        raise UserError('--attacks: there is no %s; take of %s' % (unknown[0], ','.join(ATTACKS)))
    return flags


def main():
    flags = parse_flags()
    shape = [SETTINGS[name] for name in ('batchsize', 'input_width', 'input_height', 'stride')]
    batches = [encode_batch(*batch) for batch in made_up_batches(*shape, 2)]
    print('%-26s %9s %7s %7s %7s %7s %7s %6s %7s' % ('attack', 'batches/s', 'MB', 'during', 'CPU', 'after', 'most MB',
                                                     'failed', 'close s'))
    with tempfile.TemporaryDirectory() as keys:
        subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_curve_keys.py'), '--output-dir=' + keys],
                       stdout=subprocess.DEVNULL, check=True)
        for name in flags.attacks:
            print('%-26s %s' % (name, measure(name, flags.seconds, batches, keys)), flush=True)


if __name__ == '__main__':
    pose_cli.run(main)
