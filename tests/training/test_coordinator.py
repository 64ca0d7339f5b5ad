"""Processes that hear of each other: real ones, killed, stopped, cut off; without TensorFlow, which comes later."""
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from conftest import PROGRAMS, free_ports, program_environment, wait_for
from training.cluster import Cluster
from training.coordinator import LOST_EXIT_CODE

pytestmark = pytest.mark.slow


@pytest.fixture
def start_peer(start):
    def start_peer(index, workers, facts='{}', prefix=()):
        return start(*prefix, sys.executable, '-u', PROGRAMS / 'peer.py', index, ','.join(workers), facts,
                     env=program_environment())
    return start_peer


@pytest.fixture
def workers():
    return ['127.0.0.1:%d' % port for port in free_ports(3)]


def says(process, text):
    return text in process.log.read_text()


def errors(process):
    return [line for line in process.log.read_text().splitlines() if line.startswith('error: ')]


def wait_until_agreed(peers):
    wait_for(lambda: all(says(peer, 'agreed with') for peer in peers), 'they do not agree')


def assert_lost(peer, worker, seconds=60):
    assert peer.wait(timeout=seconds) == LOST_EXIT_CODE, peer.log.read_text()
    line, = errors(peer)
    assert 'lost worker %s' % worker in line and 'start the same commands again' in line
    assert not says(peer, 'Traceback')


def test_all_hear_all_and_end_well(start_peer, workers):
    peers = [start_peer(k, workers) for k in range(3)]
    wait_until_agreed(peers)
    for peer in peers:
        assert all(says(peer, 'worker %d' % k) for k in range(3))
        peer.stdin.close()
    assert [peer.wait(timeout=60) for peer in peers] == [0, 0, 0]


def test_a_killed_process_ends_the_others(start_peer, workers):
    peers = [start_peer(k, workers) for k in range(3)]
    wait_until_agreed(peers)
    peers[1].kill()
    start = time.monotonic()
    assert_lost(peers[0], workers[1])
    assert_lost(peers[2], workers[1])
    assert time.monotonic() - start < 60


def test_a_stopped_process_counts_as_lost(start_peer, workers):
    """Its connections stand: only signs of life are missing."""
    peers = [start_peer(k, workers[:2]) for k in range(2)]
    wait_until_agreed(peers)
    peers[0].send_signal(signal.SIGSTOP)
    assert_lost(peers[1], workers[0])


def test_busy_python_does_not_count_as_lost(start_peer, workers):
    peers = [start_peer(k, workers[:2]) for k in range(2)]
    wait_until_agreed(peers)
    peers[0].stdin.write(b'hold\n')
    peers[0].stdin.flush()
    wait_for(lambda: says(peers[0], 'held'), 'no answer')
    assert peers[1].poll() is None
    for peer in peers:
        peer.stdin.close()
    assert [peer.wait(timeout=60) for peer in peers] == [0, 0]


def test_a_process_that_fails_says_why(start_peer, workers):
    peers = [start_peer(k, workers[:2]) for k in range(2)]
    wait_until_agreed(peers)
    peers[0].stdin.write(b'fail\n')
    peers[0].stdin.flush()
    assert peers[0].wait(timeout=60) == 2
    assert_lost(peers[1], workers[0])
    assert 'the data ran out' in errors(peers[1])[0]


def test_a_process_that_was_started_anew_is_not_taken_for_the_old_one(start_peer, workers):
    peers = [start_peer(k, workers[:2]) for k in range(2)]
    wait_until_agreed(peers)
    peers[0].kill()
    peers[0].wait()
    start_peer(0, workers[:2])
    assert_lost(peers[1], workers[0])
    assert 'started anew' in errors(peers[1])[0] or 'ended' in errors(peers[1])[0]


def test_different_facts_end_all_with_one_line_each(start_peer, workers):
    peers = [start_peer(k, workers, '{"--lr": %g, "samples": 7}' % (0.1 if k == 2 else 0.2)) for k in range(3)]
    assert [peer.wait(timeout=60) for peer in peers] == [2, 2, 2]
    for peer in peers:
        line, = errors(peer)
        assert '%s has --lr=0.2, %s has --lr=0.1' % (workers[0], workers[2]) in line and 'samples' not in line


def test_missing_processes_are_named_again_and_again_and_a_signal_ends_the_wait(start_peer, workers):
    peers = [start_peer(k, workers) for k in range(2)]
    for peer in peers:
        wait_for(lambda: peer.log.read_text().count('not heard of yet: %s (' % workers[2]) > 1, 'no line names it')
    peers[1].send_signal(signal.SIGTERM)
    assert [peer.wait(timeout=60) for peer in peers] == [0, 0]
    assert all(says(peer, 'stopped by a signal') for peer in peers)


def test_an_address_of_another_machine_is_refused(start_peer):
    peer = start_peer(0, ['192.0.2.1:2222', '127.0.0.1:2222'])
    assert peer.wait(timeout=60) == 2
    line, = errors(peer)
    assert 'cannot listen on 192.0.2.1:2223' in line


def test_it_listens_on_the_given_host_alone(start_peer, workers):
    peer = start_peer(0, workers)
    port = Cluster(tuple(workers), 0).addresses[0][1]
    wait_for(lambda: says(peer, 'listening'), 'it does not listen')
    listening = [c.laddr for c in psutil.net_connections('tcp') if c.pid == peer.pid and c.status == 'LISTEN']
    assert [tuple(address) for address in listening] == [('127.0.0.1', port)]


@pytest.fixture
def namespaces():
    """Two network namespaces joined by a bridge of two links; (names, addresses)."""
    names = ['pose%s%d' % (uuid.uuid4().hex[:6], k) for k in range(2)]
    links = [name.replace('pose', 'v') for name in names]
    addresses = ['10.213.7.%d' % (k + 1) for k in range(2)]
    commands = ['ip netns add %s' % name for name in names] + [
        'ip link add %s netns %s type veth peer name %s netns %s' % (links[0], names[0], links[1], names[1])]
    for name, link, address in zip(names, links, addresses):
        commands += ['ip -n %s address add %s/24 dev %s' % (name, address, link),
                     'ip -n %s link set %s up' % (name, link), 'ip -n %s link set lo up' % name]
    try:
        for command in commands:
            try:
                result = subprocess.run(command.split(), stderr=subprocess.PIPE, universal_newlines=True)
            except OSError as error:
                pytest.skip('network namespaces need iproute2: %s' % error)
            if result.returncode:
                pytest.skip('network namespaces need root: %s' % result.stderr.strip())
        yield names, links, addresses
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], stderr=subprocess.PIPE)


def test_a_cut_link_ends_both_sides(start_peer, namespaces):
    names, links, addresses = namespaces
    workers = ['%s:2222' % address for address in addresses]
    peers = [start_peer(k, workers, prefix=['ip', 'netns', 'exec', names[k]]) for k in range(2)]
    wait_until_agreed(peers)
    subprocess.run(['ip', '-n', names[0], 'link', 'set', links[0], 'down'], check=True)
    assert_lost(peers[0], workers[1])
    assert_lost(peers[1], workers[0])
