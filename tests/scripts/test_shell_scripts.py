"""The shell scripts, run from a folder with spaces and quotes in its name, with CDPATH exported and without HOME.

quickstart.sh and demo.sh run so in test_quickstart.py, with real commands.
"""
import os
import shutil
import sys

import pytest

from conftest import ROOT, assert_user_error, run_bash

PYTHON = '#!/bin/sh\nprintf "%%s|" "$PWD" "$@" >> %r\necho >> %r\n'


@pytest.fixture
def checkout(tmp_path):
    """A copy of scripts/ whose Pythons and setup_env.sh write down how they are called, in checkout.calls."""
    root = tmp_path / 'it\'s "my" checkout'
    shutil.copytree(str(ROOT / 'scripts'), str(root / 'scripts'))
    for name in ('requirements.txt', 'requirements-worker.txt', 'requirements-infer.txt', 'constraints.txt'):
        shutil.copy(str(ROOT / name), str(root / name))
    calls = tmp_path / 'calls'
    for venv in ('.venv', '.venv-tf2', '.venv-worker'):
        python = root / venv / 'bin' / 'python'
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON % (str(calls), str(calls)))
        python.chmod(0o755)
    for folder in ('scripts', 'elsewhere'):  # what CDPATH would lead to
        (tmp_path / 'wrong' / folder / 'scripts').mkdir(parents=True)

    def run(script, *args, **variables):
        environment = dict(PATH=os.environ['PATH'], CDPATH=str(tmp_path / 'wrong'), **variables)
        result = run_bash('scripts/' + script, *args, cwd=root, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout, [line.split('|')[:-1] for line in calls.read_text().splitlines()] * calls.exists()
    run.root, run.calls = root, calls
    calls.touch()
    return run


@pytest.mark.parametrize('script', ['demo.sh', 'quickstart.sh', 'run_tests.sh', 'setup_env.sh',
                                    'download_pretrained.sh'])
def test_help_says_how_to_call_it_and_does_nothing(script, checkout):
    out, calls = checkout(script, '--help')
    assert 'bash scripts/' + script in out and '#' not in out and calls == []


@pytest.mark.parametrize('name', ['freeze_and_optimize.sh', 'check_gpus.sh'])
def test_scripts_that_pass_on_what_they_are_given(name, checkout):
    _, calls = checkout(name, '--help', 'two words', PYTHON=str(checkout.root / '.venv' / 'bin' / 'python'))
    assert calls[-1][1:] == [str(checkout.root / 'scripts' / name.replace('.sh', '.py')), '--help', 'two words']


@pytest.mark.parametrize('variables, wanted', [
    ({}, '.venv'), ({'TF': '1'}, '.venv'), ({'TF': '2'}, '.venv-tf2'),
    ({'VIRTUAL_ENV': '.venv-worker'}, '.venv-worker'), ({'VIRTUAL_ENV': 'removed'}, '.venv'),
    ({'TF': '2', 'PYTHON': '.venv/bin/python'}, '.venv')])
def test_interpreter(checkout, variables, wanted):
    """Which environment's Python `find_python` of interpreter.sh prints."""
    (checkout.root / 'scripts' / 'which.sh').write_text('. scripts/interpreter.sh\nfind_python "$PWD"\n')
    variables = {name: value if name == 'TF' else str(checkout.root / value) for name, value in variables.items()}
    out, _ = checkout('which.sh', **variables)
    assert out == '%s\n' % (checkout.root / wanted / 'bin' / 'python')


@pytest.mark.parametrize('script', ['freeze_and_optimize.sh', 'check_gpus.sh'])
def test_a_python_without_what_it_needs_is_named_with_the_remedy(tmp_path, script):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nexit 1\n')
    python.chmod(0o755)
    result = run_bash('scripts/' + script, '--help', PYTHON=str(python))
    assert_user_error(result, '%s has no TensorFlow and OpenCV' % python, 'scripts/setup_env.sh')


def test_run_tests(checkout):
    (checkout.root / 'scripts' / 'setup_env.sh').write_text('#!/usr/bin/env bash\n')
    (checkout.root / '.ci').mkdir()
    shutil.copy(str(ROOT / '.ci' / 'run'), str(checkout.root / '.ci' / 'run'))
    _, calls = checkout('run_tests.sh', '-k', 'one or two')
    assert calls == [[str(checkout.root), '-m', 'flake8'], [str(checkout.root), '-m', 'pytest', '-k', 'one or two']]


def test_setup_env_and_download_pretrained(checkout):
    out, _ = checkout('setup_env.sh', '--dry-run', TF='0', PYTHON=sys.executable)
    assert 'Python %d.%d' % sys.version_info[:2] in out
    target = checkout.root / 'my models' / 'numpy'
    target.mkdir(parents=True)
    (target / 'openpose_coco.npy').touch()
    out, _ = checkout('download_pretrained.sh', 'openpose_coco', '--dir=my models')
    assert 'my models/numpy/openpose_coco.npy is there already' in out


def test_each_script_has_a_test_here():
    here = open(__file__).read()
    assert [path.name for path in ROOT.glob('scripts/*.sh') if path.name not in here] == []
