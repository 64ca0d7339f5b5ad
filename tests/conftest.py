"""What the files of the whole suite share. Tests run the real commands in real processes on real JPEG files.

@pytest.mark.slow marks what takes more than about 3 seconds on a quiet machine: nearly all that starts a process which
imports TensorFlow, and whatever hangs on a fixture that does. `-m "not slow"` leaves them out; nothing else depends on
the mark.
"""
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / 'tests' / 'programs'
PATIENCE = 240  # seconds, for machines that have much else to do

# A shell without job control starts what it puts in the background with SIGINT ignored, and children inherit that: none
# of the commands could be interrupted. A handler, unlike SIG_IGN, is back to the default in each new program; and as it
# does nothing, the suite stays as deaf to the terminal's Ctrl-C as the shell wanted it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda number, frame: None)


def run_command(*args, timeout=600, **kwargs):
    """Run `python ARGS...` from the project root; returns a CompletedProcess with text stdout and stderr."""
    kwargs.setdefault('cwd', str(ROOT))
    return subprocess.run([sys.executable] + [str(a) for a in args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=timeout, **kwargs)


def run_well(*args, **kwargs):
    """run_command for a command that has to end well."""
    result = run_command(*args, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def run_bash(script, *args, cwd=ROOT, env=None, **variables):
    """Run `bash SCRIPT ARGS...` with this interpreter and further environment variables; as run_command otherwise."""
    return subprocess.run(['bash', str(script)] + [str(arg) for arg in args], cwd=str(cwd),
                          env=env or dict(dict(os.environ, PYTHON=sys.executable), **variables),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=900)


def summary_of(result):
    """The JSON on the last line that a command printed."""
    return json.loads(result.stdout.splitlines()[-1])


def program_environment(**variables):
    """The environment of a program in tests/programs: it imports the project's modules and those of the tests."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ('', 'tests', 'scripts', 'benchmarks'))
    return dict(os.environ, PYTHONPATH=path, **variables)


def run_program(name, *args, **kwargs):
    """Run tests/programs/NAME like a command (run_command), with program_environment() unless `env` is given."""
    kwargs.setdefault('env', program_environment())
    return run_command(PROGRAMS / name, *args, **kwargs)


def wait_for(condition, what, seconds=PATIENCE):
    """The first true value of condition(); the test fails with `what` when there is none for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_running(pid):
    """Whether there is such a process that has not ended: one that nobody has waited for yet (a zombie) has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid):
    """The ids of the processes that a process has started, and they in turn; none when it is gone."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def assert_user_error(result, *mentions):
    """The contract for bad input: exit code 2, one `error:` line that mentions everything given, no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr + result.stdout, result.stderr
    for mention in mentions:
        assert str(mention) in lines[0], lines[0]


@pytest.fixture(scope='session', autouse=True)
def cache_home(tmp_path_factory):
    """Caches of annotations are not to pile up in the user's own folder."""
    os.environ['XDG_CACHE_HOME'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session')
def sample_coco(tmp_path_factory):
    """A COCO folder of rendered people: 16 training and 6 validation images."""
    folder = tmp_path_factory.mktemp('sample_coco')
    run_well('scripts/make_sample_coco.py', '--output-dir=%s' % folder, '--train=16', '--val=6')
    return folder


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of annotations for this test alone."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture
def keys(tmp_path):
    """A folder with the keys of a trainer and a worker."""
    run_well('scripts/make_curve_keys.py', '--output-dir=%s' % (tmp_path / 'keys'))
    return tmp_path / 'keys'


@pytest.fixture
def cut_link():
    """Two network namespaces with a link: (a prefix for commands in each, their addresses, switch('up' or 'down'))."""
    names = ['pose_%s%d' % (side, os.getpid()) for side in 'ab']
    addresses = ['10.99.0.1', '10.99.0.2']

    def ip(*args):
        subprocess.run(('ip',) + args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    try:
        for name in names:
            ip('netns', 'add', name)
        ip('link', 'add', 'link0', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'link0', 'netns', names[1])
        for name, address in zip(names, addresses):
            ip('-n', name, 'addr', 'add', address + '/24', 'dev', 'link0')
            ip('-n', name, 'link', 'set', 'link0', 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('netns', 'exec', names[0], 'true')
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('this machine does not let tests make network namespaces')
    try:
        yield [['ip', 'netns', 'exec', name] for name in names], addresses, lambda state: ip(
            '-n', names[1], 'link', 'set', 'link0', state)
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], stderr=subprocess.DEVNULL)


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


def free_ports(count):
    """Ports of 127.0.0.1 that were free a moment ago, as were the ones after them; outgoing connections take others."""
    ports = []
    while len(ports) < count:
        port = random.randrange(20000, 32000, 2)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for probed in (port, port + 1):
                probe = stack.enter_context(contextlib.closing(socket.socket()))
                probe.bind(('127.0.0.1', probed))
            ports += [port] if port not in ports else []
    return ports


@pytest.fixture
def address():
    """tcp://127.0.0.1:PORT with a port that was free a moment ago."""
    return 'tcp://127.0.0.1:%d' % free_ports(1)[0]


@pytest.fixture(scope='module')
def close_at_end():
    """close_at_end(thing) gives the thing back; its close() is called when the file's tests have ended."""
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


@pytest.fixture
def signals():
    """For tests that have signals handled: the next test finds the handlers as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path):
    """start(*command) runs it in a process that ends with the test; its output goes to process.log."""
    processes = []

    def start(*command, **kwargs):
        log = tmp_path / ('log_%d' % len(processes))
        with open(str(log), 'w') as output:
            process = subprocess.Popen([str(part) for part in command], cwd=str(ROOT), stdin=subprocess.PIPE,
                                       stdout=output, stderr=subprocess.STDOUT, **kwargs)
        process.log = log
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def start_program(start):
    """start_program(name, *args, prefix=(), root=ROOT) starts a program of tests/programs on the code in `root`."""
    def start_program(name, *args, prefix=(), root=ROOT):
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), str(root / 'tests')]))
        return start(*prefix, sys.executable, root / name, *args, env=environment)
    return start_program
