"""The worker's end of the wire: real processes at both ends, versions, deaths and cut links."""
import os
import signal
import subprocess

import pytest
from conftest import PATIENCE, ROOT, wait_for
from wire_ends import (SETTINGS, end_training, made_up_batch, reports, save_batches, start_trainer, start_worker)

from remote import wire
from remote.trainer import BatchReceiver


def code_of_version_2(folder):
    """A copy of the code that speaks version 2 of the wire. Returns an environment that imports it."""
    for path in list(ROOT.glob('*.py')) + list(ROOT.glob('remote/*.py')):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    text = (folder / 'remote' / 'wire.py').read_text()
    assert '\nVERSION = %d\n' % wire.VERSION in text
    (folder / 'remote' / 'wire.py').write_text(text.replace('\nVERSION = %d\n' % wire.VERSION, '\nVERSION = 2\n'))
    return dict(os.environ, PYTHONPATH=str(folder))


def test_a_worker_of_another_version_is_refused(address, start, tmp_path, caplog):
    newer = code_of_version_2(tmp_path / 'newer')
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS) as receiver:
        worker = start_worker(start, address, batches, environment=newer)
        wait_for(lambda: receiver.get(0.2) or worker.poll() is not None, 'the worker does not end')
        assert worker.returncode == 2
        lines = [line for line in worker.log.read_text().splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and 'version 1' in lines[0] and 'version 2' in lines[0] and 'same version' in lines[0]
        assert 'version 2 of the wire, not 1' in caplog.text


@pytest.mark.slow
def test_kill_and_restart_of_each_side(address, start, tmp_path):
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    first, second = (start_worker(start, address, batches, delay=0.01) for _ in range(2))  # workers first
    trainer = start_trainer(start, address)
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 2, 'the workers do not join')
    first.send_signal(signal.SIGKILL)
    wait_for(lambda: 'data worker left' in trainer.log.read_text(), 'the death of a worker goes unnoticed')
    start_worker(start, address, batches, delay=0.01)
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 3, 'a new worker does not join')
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer = start_trainer(start, address)
    wait_for(lambda: trainer.log.read_text().count('data worker joined') == 2, 'the workers do not come back')
    sofar = reports(trainer)[-1]['batches']
    wait_for(lambda: reports(trainer)[-1]['batches'] > sofar + 20, 'training does not go on')
    assert end_training(trainer) == 0
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


@pytest.mark.slow
def test_a_cut_network_is_survived(cut_link, start, tmp_path):
    in_a, in_b, host, switch = cut_link
    address = 'tcp://%s:5555' % host
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    trainer = start_trainer(start, address, link_timeout=2, prefix=in_a)
    worker = start_worker(start, address, batches, delay=0.01, link_timeout=2, prefix=in_b)
    wait_for(lambda: reports(trainer) and reports(trainer)[-1]['batches'] > 10, 'no batches')
    switch('down')
    wait_for(lambda: 'data worker left' in trainer.log.read_text(), 'the trainer does not notice the cut')
    wait_for(lambda: 'lost the trainer' in worker.log.read_text(), 'the worker does not notice the cut')
    sofar = reports(trainer)[-1]['batches']
    switch('up')
    wait_for(lambda: reports(trainer)[-1]['batches'] > sofar + 20, 'training does not go on')
    assert end_training(trainer) == 0 and worker.wait(PATIENCE) == 0
