"""Every command answers --help and calls that cannot work at once: without importing anything that takes seconds."""
import json
import os
import re
import subprocess
import sys

import pytest

from bench_start import WRONG_CALLS
from conftest import PROGRAMS, ROOT, program_environment, run_command, run_well

COMMANDS = {path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / 'scripts') for path in folder.glob('*.py')
            if "if __name__ == '__main__':" in path.read_text()}


def test_help_and_wrong_calls_which_are_one_line_and_leave_nothing_behind():
    assert set(WRONG_CALLS) == COMMANDS
    assert all(len(calls) == 5 for calls in WRONG_CALLS.values())
    calls = [(command, call) for command, wrong in WRONG_CALLS.items() for call in ['--help'] + wrong]
    environment = program_environment()
    environment.pop('COCO_DIR', None)
    result = subprocess.run([sys.executable, str(PROGRAMS / 'wrong_calls.py')], cwd=str(ROOT), env=environment,
                            input=json.dumps([[command, call.split()] for command, call in calls]),
                            stdout=subprocess.PIPE, universal_newlines=True)
    for (command, call), (code, out, err) in zip(calls, json.loads(result.stdout)):
        if call == '--help':
            assert (code, err) == (0, '') and out.startswith('usage: '), (command, err)
        else:
            assert code == 2 and out == '' and err.count('\n') == 1 and err.startswith('error: '), (command, call, err)
    assert not (ROOT / 'out').exists() and not (ROOT / 'x.npy').exists()


@pytest.mark.parametrize('command', sorted(COMMANDS))
def test_a_missing_package_is_one_line(command):
    """-S leaves out all that is installed; what a command does without, it does."""
    result = run_command('-S', command, '--help')
    if result.returncode == 2:
        assert re.fullmatch(r'error: \S+ has no \w+; run bash scripts/setup_env.sh once, .*\n', result.stderr)
        assert result.stdout == ''
    else:
        assert (result.returncode, result.stderr) == (0, '') and result.stdout.startswith('usage: ')


@pytest.mark.parametrize('raised, code, line', [
    ('KeyboardInterrupt', 130, 'interrupted'),
    ("ImportError('libGL.so.1: cannot open shared object file', name='cv2')", 2,
     r'error: \S+ cannot import cv2 \(libGL.so.1: .*\); run bash scripts/setup_env.sh once, .*'),
    ("ModuleNotFoundError('No module', name='pycocotools._mask')", 2, r'error: \S+ cannot import pycocotools .*')])
def test_imports_that_fail_or_are_interrupted_are_one_line(raised, code, line):
    result = run_command('-c', 'import pose_cli; pose_cli.prepare_process(); raise %s' % raised)
    assert result.returncode == code and re.fullmatch(line + '\n', result.stderr), result.stderr


def test_other_modules_that_are_missing_are_not_taken_for_packages():
    result = run_command('-c', 'import pose_cli, nothing_of_this_name')
    assert result.returncode == 1 and 'ModuleNotFoundError' in result.stderr


@pytest.mark.slow
def test_tensorflow_starts_without_keras():
    """A third of the start; programs that want it can still import it."""
    run_well('-c', 'import sys; from networks.tensorflow import tf; assert "keras" not in sys.modules')


@pytest.mark.slow
def test_stderr_of_an_error_behind_tensorflow_is_one_line(tmp_path):
    """A checkpoint that only TensorFlow can tell to be damaged."""
    (tmp_path / 'model-1.index').write_bytes(b'not an index')
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    result = run_command('pose_eval.py', '--checkpoint=%s' % (tmp_path / 'model-1'), '--model=mobilenet_thin',
                         '--images=etcs', '--output-dir=%s' % (tmp_path / 'out'), env=environment)
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
    assert not (tmp_path / 'out').exists()
