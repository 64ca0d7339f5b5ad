"""The worker's end of the wire: real processes at both ends, versions, deaths and cut links."""
import contextlib
import shutil
import types

import msgpack
import pytest
import zmq

import pose_dataworker
from conftest import PROGRAMS, ROOT, assert_user_error, run_command, wait_for
from pose_errors import UserError
from remote import protocol
from remote.receiver import BatchReceiver
from wire_ends import DATA, GOOD_SETTINGS, SENDER, SETTINGS, end_ends, in_background, made_up_batch, save_batches, \
    start_ends, wait_for_batches


def test_a_worker_of_another_version_is_refused(address, start_program, tmp_path, caplog):
    newer = tmp_path / 'newer'
    for folder in ('annotations', 'batches', 'remote', 'tests/programs'):
        shutil.copytree(str(ROOT / folder), str(newer / folder))
    for path in ROOT.glob('*.py'):
        shutil.copy(str(path), str(newer))
    text = (newer / 'remote' / 'protocol.py').read_text()
    mine = '\nVERSION = %d\n' % protocol.VERSION
    assert mine in text
    (newer / 'remote' / 'protocol.py').write_text(text.replace(mine, '\nVERSION = 99\n'))
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS) as receiver:
        worker = start_program(SENDER, address, batches, '', 0, 20, root=newer)
        wait_for(lambda: receiver.get(0.2) or worker.poll() is not None, 'the worker does not end')
        assert worker.returncode == 2
        lines = [line for line in worker.log.read_text().splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and 'same version' in lines[0]
        assert 'version %d' % protocol.VERSION in lines[0] and 'version 99' in lines[0]
        assert 'version 99 of the wire, not %d' % protocol.VERSION in caplog.text


@contextlib.contextmanager
def fake_trainer(address, answers):
    """A trainer that answers each message of a worker's with the next of these, None for no answer.

    Yields:
        The messages that it has received, a list that grows.
    """
    received = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as fake:
        fake.setsockopt(zmq.LINGER, 0)
        fake.bind(address)

        def answer():
            if fake.poll(50):
                route, *frames = fake.recv_multipart()
                received.append(frames)
                if len(received) <= len(answers) and answers[len(received) - 1]:
                    fake.send_multipart([route] + answers[len(received) - 1])

        with in_background(answer):
            yield received


def no_batches(settings):
    """A loader without any."""
    nothing = lambda *args, **kwargs: None  # noqa: E731
    return types.SimpleNamespace(samples=100, number=None, forget=nothing, request=nothing, get=nothing,
                                 close=nothing), DATA


WELCOME = [protocol.pack('welcome', settings=GOOD_SETTINGS)]


@pytest.mark.parametrize('answers', [
    [[b'noise']], [[protocol.pack('welcome', settings={})]],
    [[protocol.pack('welcome', settings=dict(SETTINGS, batchsize=1 << 40))]], [WELCOME + [b'more']],
    [[msgpack.packb({'version': protocol.VERSION + 1, 'type': 'welcome', 'settings': {}})]],
    [WELCOME, [protocol.pack('credit', batches=list(range(17)))]]])
def test_a_hostile_or_newer_trainer_ends_a_worker_with_one_line(address, answers):
    with fake_trainer(address, answers), pytest.raises(UserError):
        pose_dataworker.serve_trainers(address, no_batches)


def test_a_batch_that_no_memory_holds_is_one_line_of_the_command(address, sample_coco):
    answer = protocol.pack('welcome', settings=dict(GOOD_SETTINGS, batchsize=100000000))
    with fake_trainer(address, [[answer]]):
        result = run_command(PROGRAMS / 'without_packages.py', 'tensorflow', 'pose_dataworker.py',
                             '--master=' + address, '--datapath=%s' % sample_coco, '--workers=1')
    assert_user_error(result, 'batchsize=100000000', 'from 1 to 65536')


def test_a_trainer_that_asks_for_more_than_it_may(address):
    with BatchReceiver(address, SETTINGS) as receiver:
        def ask():
            receiver.get(0.05)
            for worker in list(receiver._workers.values()):
                receiver._send(worker.route, 'credit', batches=[0, 1])

        with in_background(ask), pytest.raises(UserError, match='more than %d batches' % protocol.MAX_CREDIT):
            pose_dataworker.serve_trainers(address, no_batches)


@pytest.mark.slow
def test_a_worker_that_has_been_forgotten_says_hello_again(address):
    with fake_trainer(address, [WELCOME, None, [b'the end of this test']]) as received, pytest.raises(UserError):
        pose_dataworker.serve_trainers(address, no_batches, link_timeout=1)
    assert [msgpack.unpackb(frames[0], raw=False)['type'] for frames in received] == ['hello', 'ready', 'hello']


@pytest.mark.slow
def test_a_cut_network_is_survived(cut_link, start_program, tmp_path):
    prefixes, (host, _), switch = cut_link
    trainer, worker, _ = start_ends(start_program, 'tcp://%s:5555' % host, tmp_path, 2, *prefixes)
    switch('down')
    wait_for(lambda: 'data worker left' in trainer.log.read_text(), 'the trainer does not notice the cut')
    wait_for(lambda: 'lost the trainer' in worker.log.read_text(), 'the worker does not notice the cut')
    switch('up')
    wait_for_batches(trainer, 20)
    end_ends(trainer, worker)
