"""The choice of the interpreter, error lines and repair of scripts/setup_env.sh; nothing is downloaded here."""
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, assert_user_error, run_bash

# What the script calls; nothing else is on PATH in these tests, so that the Pythons of this machine stay out.
TOOLS = 'bash cat cksum cut dirname find flock grep ls mkdir mv rm sed tail tee timeout tr'.split()
OWN_VERSION = '%d.%d' % sys.version_info[:2]


@pytest.fixture
def machine(tmp_path):
    """A machine without any Python: setup(**variables) runs the script in a checkout whose path contains a space."""
    checkout = tmp_path / 'a checkout'
    bin_folder = tmp_path / 'bin'
    (checkout / 'scripts').mkdir(parents=True)
    bin_folder.mkdir()
    for name in ('scripts/setup_env.sh', 'requirements.txt', 'requirements-worker.txt', 'requirements-infer.txt',
                 'constraints.txt'):
        shutil.copy(str(ROOT / name), str(checkout / name))
    for path in filter(None, map(shutil.which, TOOLS)):
        (bin_folder / os.path.basename(path)).symlink_to(path)

    class Machine:
        home, bin, root = tmp_path / 'home', bin_folder, checkout

        @staticmethod
        def setup(*flags, **variables):
            environment = dict(PATH=str(bin_folder), HOME=str(tmp_path / 'home'), **variables)
            return run_bash(checkout / 'scripts' / 'setup_env.sh', *flags, cwd=tmp_path, env=environment)
    return Machine


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return path


def fake_python(path, version, system='Linux x86_64', missing=''):
    """An executable that answers the script's question about itself as a Python of that version would."""
    return executable(path, 'echo "%s|%s|%s|%s|%s"\n' % (version, system, missing, path.parent.parent, path))


def broken_shim(path):
    return executable(path, 'echo "pyenv: %s: command not found" >&2\nexit 127\n' % path.name)


def chosen(result):
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout
    return lines[0]


@pytest.mark.parametrize('script', ['scripts/setup_env.sh', 'scripts/run_tests.sh', '.ci/run'])
def test_scripts_parse(script):
    subprocess.run(['bash', '-n', str(ROOT / script)], check=True)


def test_shim_that_does_not_run_is_passed_over_for_pyenv(machine):
    broken_shim(machine.bin / 'python3.7')
    fake_python(machine.bin / 'python3', '3.11')
    wanted = fake_python(machine.home / '.pyenv' / 'versions' / '3.7.16' / 'bin' / 'python', '3.7')
    line = chosen(machine.setup('--dry-run'))
    assert str(wanted) in line and 'TensorFlow 1.15' in line and '.venv ' in line and 'reference platform' in line


def test_conda_environment_is_found_and_python_variable_wins(machine):
    conda = machine.home / 'somewhere' / 'conda'
    wanted = fake_python(conda / 'envs' / 'old' / 'bin' / 'python', '3.6')
    line = chosen(machine.setup('--dry-run', CONDA_EXE=str(conda / 'bin' / 'conda')))
    assert str(wanted) in line and 'TensorFlow 1.15' in line
    wanted = fake_python(machine.home / 'mine', '3.10')
    line = chosen(machine.setup('--dry-run', CONDA_EXE=str(conda / 'bin' / 'conda'), PYTHON=str(wanted)))
    assert str(wanted) in line and 'TensorFlow 2' in line and 'PYTHON=' in line


def test_without_old_python_the_newest_suitable_gets_tensorflow_2(machine):
    shim = broken_shim(machine.bin / 'python3.7')
    for version in ('3.9', '3.10', '3.12', '3.15'):
        fake_python(machine.bin / ('python' + version), version)
    line = chosen(machine.setup('--dry-run'))
    assert str(machine.bin / 'python3.12') in line and '.venv ' in line and 'TensorFlow 2' in line
    assert 'no working Python 3.7 or 3.6' in line and '%s does not run' % shim in line


def test_tf_forces_platform_and_folder(machine):
    fake_python(machine.bin / 'python3.7', '3.7')
    fake_python(machine.bin / 'python3.13', '3.13')
    for tf, version, folder, tensorflow in (('1', '3.7', '.venv ', 'TensorFlow 1.15'),
                                            ('2', '3.13', '.venv-tf2 ', 'TensorFlow 2'),
                                            ('0', '3.13', '.venv-worker ', 'no TensorFlow'),
                                            ('lite', '3.13', '.venv-infer ', 'TensorFlow Lite alone')):
        line = chosen(machine.setup('--dry-run', TF=tf))
        assert 'Python ' + version in line and folder in line and tensorflow in line


@pytest.mark.parametrize('variables, mentions', [
    ({}, ['3.7 or 3.6', '3.10', 'found only 3.9', 'PYTHON=']),
    ({'TF': '1'}, ['no Python 3.7 or 3.6 that works', 'found only 3.9', 'TF=2']),
    ({'TF': '2'}, ['no Python 3.13 or', 'pyenv install 3.13']),
    ({'TF': '0'}, ['no Python', 'found only 3.9']),
    ({'TF': '3'}, ['TF=3', 'TF=1, TF=2']),
    ({'PYTHON': '/no/such/python'}, ['PYTHON=/no/such/python', '/no/such/python does not run']),
])
def test_no_suitable_python_is_one_line_and_leaves_nothing(machine, variables, mentions):
    fake_python(machine.bin / 'python3', '3.9')
    assert_user_error(machine.setup(**variables), *mentions)
    assert not list(machine.root.glob('.venv*'))


def test_python_without_venv_module_and_unknown_flags_are_named_with_the_remedy(machine):
    fake_python(machine.bin / 'python3.11', '3.11', missing='ensurepip')
    assert_user_error(machine.setup(), 'python3.11 (3.11) lacks its module ensurepip',
                      'apt-get install python3.11-venv')
    assert_user_error(machine.setup('--force'), '--force', '--dry-run')


def test_tensorflow_1_is_not_tried_on_other_processors(machine):
    fake_python(machine.bin / 'python3.7', '3.7', system='Linux aarch64')
    assert_user_error(machine.setup(TF='1'), 'Linux x86_64, not Linux aarch64')
    fake_python(machine.bin / 'python3.12', '3.12', system='Linux aarch64')
    assert 'TensorFlow 2' in chosen(machine.setup('--dry-run'))


def test_gpus_that_answer_bring_cuda(machine):
    """Only with TensorFlow 2; GPU=0 and GPU=1 overrule it."""
    fake_python(machine.bin / 'python3.7', '3.7')
    fake_python(machine.bin / 'python3.13', '3.13')
    assert 'CUDA' not in chosen(machine.setup('--dry-run', TF='2'))
    assert "TensorFlow 2 with CUDA's libraries (GPU=1 asks" in chosen(machine.setup('--dry-run', TF='2', GPU='1'))
    smi = executable(machine.bin / 'nvidia-smi', 'echo "GPU 0: NVIDIA H100 (UUID: GPU-1)"\n')
    assert "TensorFlow 2 with CUDA's libraries (nvidia-smi answers)" in chosen(machine.setup('--dry-run', TF='2'))
    for variables in ({'TF': '2', 'GPU': '0'}, {'TF': '1'}, {'TF': '0'}):
        assert 'CUDA' not in chosen(machine.setup('--dry-run', **variables))
    executable(smi, 'echo "NVIDIA-SMI has failed because it could not communicate with the driver."\nexit 9\n')
    assert 'CUDA' not in chosen(machine.setup('--dry-run', TF='2'))
    assert_user_error(machine.setup('--dry-run', GPU='yes'), 'GPU=yes', 'GPU=1', 'GPU=0')
    fake_python(machine.home / 'arm', '3.12', system='Linux aarch64')
    assert_user_error(machine.setup(TF='2', GPU='1', PYTHON=str(machine.home / 'arm')), 'Linux x86_64',
                      'Linux aarch64')


def failing_install(machine, **variables):
    """setup_env.sh with this Python; pip's only index is an empty folder."""
    index = machine.home / 'index'
    index.mkdir(parents=True)
    return machine.setup(PYTHON=sys.executable, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX='1',
                         PIP_FIND_LINKS=str(index), **variables)


@pytest.mark.slow
def test_cuda_is_installed_in_the_pinned_version(machine):
    result = failing_install(machine, TF='2' if sys.version_info >= (3, 10) else '', GPU='1')
    assert result.returncode == 1
    pin, = [line.split(' ;')[0] for line in pins('requirements.txt') if line.startswith('tensorflow==')]
    wanted = ' and %s into' % pin.replace('==', '[and-cuda]==')
    assert (wanted in result.stdout) == (sys.version_info >= (3, 10)), result.stdout


def test_environment_is_seen_as_its_base_python(machine):
    """A virtual environment on PATH (an activated .venv) is never the base of a new one."""
    (machine.bin / 'python3').symlink_to(sys.executable)
    line = chosen(machine.setup('--dry-run', PYTHON=sys.executable))
    assert 'Python ' + OWN_VERSION in line
    assert '(%s/' % sys.base_prefix in line


@pytest.mark.slow
def test_half_made_environment_is_made_anew_and_a_failed_install_is_one_line(machine):
    """A real environment is made over the debris of an interrupted run."""
    environment = machine.root / '.venv-worker'
    debris = environment / 'lib' / 'half-written'
    executable(environment / 'bin' / 'python', 'exit 1\n')
    executable(debris, '')
    (environment / 'setup_env.stamp').write_text('building\n')
    result = failing_install(machine, TF='0')
    assert 'making .venv-worker' in result.stdout, result.stderr
    assert not debris.exists()
    subprocess.run([str(environment / 'bin' / 'python'), '-c', 'import pip'], check=True)

    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'check the network and run the same command again' in errors[0]
    assert 'No matching distribution' in result.stderr
    assert (environment / 'setup_env.stamp').read_text() == 'building\n'


def test_ready_environment_is_used_until_requirements_change(machine):
    """A stamp as a finished run leaves it: the next run downloads nothing, and searches for no Python."""
    variables = dict(TF='0', PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX='1')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(machine.root / '.venv-worker')], check=True)
    names = ('constraints.txt', 'requirements-infer.txt', 'requirements-worker.txt', 'requirements-worker.txt')
    text = b''.join((machine.root / name).read_bytes() for name in names)
    checksum = subprocess.run(['cksum'], input=text, stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    stamp = machine.root / '.venv-worker' / 'setup_env.stamp'
    stamp.write_text('%s\n%s\nwhat was chosen\n' % (checksum.replace(' ', '-'), OWN_VERSION))
    assert chosen(machine.setup(**variables)) == 'setup_env: what was chosen (ready)'
    assert chosen(machine.setup(PYTHON=sys.executable, **variables)) == 'setup_env: what was chosen (ready)'

    with (machine.root / 'constraints.txt').open('a') as constraints:
        constraints.write('# a change\n')
    assert_user_error(machine.setup(**variables), 'no Python')


def pins(name):
    lines = (line.split('#')[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith('-')]


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-worker.txt', 'requirements-infer.txt',
                                  'requirements-runtimes.txt', 'constraints.txt'])
def test_every_requirement_is_pinned(name):
    """Two files are for machines without TensorFlow."""
    assert pins(name)
    for line in pins(name):
        assert '==' in line.split(';')[0], line
        assert name not in ('requirements-worker.txt', 'requirements-infer.txt') or not line.startswith('tensorflow')


def test_this_environment_has_the_pinned_versions():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    try:
        from importlib.metadata import distributions
    except ImportError:
        from importlib_metadata import distributions
    installed = {canonicalize_name(d.metadata['Name']): d.version for d in distributions()}
    wanted = [Requirement(line) for name in ('requirements.txt', 'requirements-worker.txt') for line in pins(name)]
    wanted = {canonicalize_name(r.name): str(r.specifier)[2:] for r in wanted
              if r.marker is None or r.marker.evaluate()}
    assert 'tensorflow-gpu' in wanted or 'tensorflow' in wanted
    assert {name: installed.get(name) for name in wanted} == wanted
