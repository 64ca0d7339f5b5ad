"""Fixtures of the whole suite. Tests run the real commands in real processes on real JPEG files."""
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PATIENCE = 240  # seconds, for machines that have much else to do


def run_command(*args, timeout=300, **kwargs):
    """Run `python ARGS...` from the project root; returns a CompletedProcess with text stdout and stderr."""
    kwargs.setdefault('cwd', str(ROOT))
    return subprocess.run([sys.executable] + [str(a) for a in args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=timeout, **kwargs)


def wait_for(condition, what):
    """The first true value of condition(); the test fails with `what` when there is none for long."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def assert_user_error(result, *mentions):
    """The contract for bad input: exit code 2, one `error:` line that mentions everything given, no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr + result.stdout, result.stderr
    for mention in mentions:
        assert str(mention) in lines[0], lines[0]


@pytest.fixture(scope='session')
def sample_coco(tmp_path_factory):
    """A COCO folder of rendered people: 16 training and 6 validation images."""
    folder = tmp_path_factory.mktemp('sample_coco')
    result = run_command('scripts/make_sample_coco.py', '--output-dir=%s' % folder, '--train=16', '--val=6')
    assert result.returncode == 0, result.stderr
    return folder


def reference_data(name):
    """A file or folder of the reference data that lies beside the checkout; the test is skipped without it."""
    path = Path(os.environ.get('OPENPOSE_REFERENCE', str(ROOT.parent / 'shared'))) / name
    if not path.exists():
        pytest.skip('reference data %s is not on this machine' % name)
    return path


@pytest.fixture(scope='session')
def oracles():
    return reference_data('oracles')


@pytest.fixture(scope='session')
def coco_photos():
    return reference_data('coco_sample')


@pytest.fixture
def address():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        return 'tcp://127.0.0.1:%d' % probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """start(*command) runs it in a process that ends with the test; its output goes to process.log."""
    processes = []

    def start(*command):
        log = tmp_path / ('log_%d' % len(processes))
        with open(str(log), 'w') as output:
            process = subprocess.Popen([str(part) for part in command], cwd=str(ROOT), stdin=subprocess.PIPE,
                                       stdout=output, stderr=subprocess.STDOUT)
        process.log = log
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
