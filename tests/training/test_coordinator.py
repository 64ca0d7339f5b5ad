"""Processes that hear of each other: real ones, killed, stopped, cut off; without TensorFlow, which comes later."""
import signal
import sys

import psutil
import pytest

from conftest import PROGRAMS, free_ports, program_environment, wait_for
from training.cluster import Cluster
from training.coordinator import LOST_EXIT_CODE

pytestmark = pytest.mark.slow


@pytest.fixture
def start_peer(start):
    def start_peer(index, workers, prefix=()):
        return start(*prefix, sys.executable, '-u', PROGRAMS / 'peer.py', index, ','.join(workers),
                     env=program_environment())
    return start_peer


@pytest.fixture
def workers():
    return ['127.0.0.1:%d' % port for port in free_ports(3)]


def says(process, text):
    return text in process.log.read_text()


def errors(process):
    return [line for line in process.log.read_text().splitlines() if line.startswith('error: ')]


@pytest.fixture
def start_peers(start_peer, workers):
    """start_peers(count) starts so many, which have met when it returns."""
    def start_peers(count, workers=workers, prefixes=((), (), ())):
        peers = [start_peer(k, workers[:count], prefixes[k]) for k in range(count)]
        wait_for(lambda: all(says(peer, 'agreed with') for peer in peers), 'they do not agree')
        return peers
    return start_peers


def assert_lost(peer, worker, seconds=60):
    assert peer.wait(timeout=seconds) == LOST_EXIT_CODE, peer.log.read_text()
    line, = errors(peer)
    assert 'lost worker %s' % worker in line and 'start the same commands again' in line
    assert not says(peer, 'Traceback')


def test_a_stopped_process_counts_as_lost(start_peers, workers):
    """Its connections stand: only signs of life are missing."""
    peers = start_peers(2)
    peers[0].send_signal(signal.SIGSTOP)
    assert_lost(peers[1], workers[0])


def test_busy_python_does_not_count_as_lost(start_peers):
    """All hear all, and end well."""
    peers = start_peers(3)
    assert all(says(peer, 'worker %d' % k) for peer in peers for k in range(3))
    peers[0].stdin.write(b'hold\n')
    peers[0].stdin.flush()
    wait_for(lambda: says(peers[0], 'held'), 'no answer')
    assert peers[1].poll() is None and peers[2].poll() is None
    for peer in peers:
        peer.stdin.close()
    assert [peer.wait(timeout=60) for peer in peers] == [0, 0, 0]


def test_addresses_of_ipv6(start_peers):
    peers = start_peers(2, ['[::1]:%d' % port for port in free_ports(2)])
    for peer in peers:
        peer.stdin.close()
    assert [peer.wait(timeout=60) for peer in peers] == [0, 0]


def test_a_process_that_fails_says_why(start_peers, workers):
    peers = start_peers(2)
    peers[0].communicate(b'fail\n', 60)
    assert peers[0].returncode == 2
    assert_lost(peers[1], workers[0])
    assert 'the data ran out' in errors(peers[1])[0]


def test_a_process_that_was_started_anew_is_not_taken_for_the_old_one(start_peers, start_peer, workers):
    peers = start_peers(2)
    peers[0].kill()
    peers[0].wait()
    start_peer(0, workers[:2])
    assert_lost(peers[1], workers[0])
    assert 'started anew' in errors(peers[1])[0] or 'ended' in errors(peers[1])[0]


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


def test_a_cut_link_ends_both_sides(start_peers, cut_link):
    prefixes, addresses, switch = cut_link
    workers = ['%s:2222' % address for address in addresses]
    peers = start_peers(2, workers, prefixes)
    switch('down')
    assert_lost(peers[0], workers[1])
    assert_lost(peers[1], workers[0])
