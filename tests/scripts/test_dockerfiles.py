"""docker/: what the images are made by, as far as it runs without Docker: the RUN lines in a copy of the checkout."""
import os
import re
import shutil
import subprocess

import pytest

from conftest import ROOT

IMAGES = 'trainer', 'worker'


def instructions(name):
    """[(instruction, its text)] of a Dockerfile."""
    lines = (ROOT / 'docker' / (name + '.Dockerfile')).read_text().replace('\\\n', ' ').splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith('#')]


@pytest.fixture
def image_folder(tmp_path):
    """What COPY . . copies: the files of the last commit and of the working tree, without git's own."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=str(ROOT),
                            stdout=subprocess.PIPE, universal_newlines=True)
    if listed.returncode:
        pytest.skip('this is not a git checkout')
    for path in filter(lambda path: (ROOT / path).exists(), listed.stdout.splitlines()):
        (tmp_path / 'openpose' / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / path), str(tmp_path / 'openpose' / path))
    return tmp_path / 'openpose'


def run_line(name, folder, **variables):
    """Run a Dockerfile's RUN line in a folder, but for the removal of a cache, which here is the user's own."""
    command, = [text for instruction, text in instructions(name) if instruction == 'RUN']
    command, _, removal = command.partition(' && ')
    assert removal == 'rm -rf /root/.cache'
    for variable, value in variables.items():
        command, count = re.subn(r'\b%s=\S+' % variable, '%s=%s' % (variable, value), command)
        assert count == 1
    environment = {key: value for key, value in os.environ.items() if key not in ('PYTHON', 'VIRTUAL_ENV')}
    return subprocess.run(['bash', '-c', command], cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, env=environment)


@pytest.mark.parametrize('name', IMAGES)
def test_the_recipes_use_images_that_can_be_built(name):
    """machines.md names them and what they run; an image's program is one of this project's."""
    page = (ROOT / 'etcs' / 'machines.md').read_text()
    assert 'docker build -f docker/%s.Dockerfile' % name in page and '/openpose-%s' % name in page
    found = dict(instructions(name))
    folder = re.match(r'PATH=/openpose/(\.venv-\w+)/bin:\$PATH$', found['ENV']).group(1)
    tf = {'.venv-tf2': '2', '.venv-worker': '0'}[folder]
    assert 'TF=%s ' % tf in found['RUN'] and found['WORKDIR'] == '/openpose' and found['COPY'] == '. .'
    scripts = re.findall(r'"([\w.]+\.py)"', found['ENTRYPOINT'] + found['CMD'])
    assert scripts and all((ROOT / script).exists() for script in scripts)


@pytest.mark.slow
def test_the_worker_s_image(image_folder):
    """Its environment is made, and its entry point runs in it, without TensorFlow and without git."""
    result = run_line('worker', image_folder)
    assert result.returncode == 0, result.stdout
    python = image_folder / '.venv-worker' / 'bin' / 'python3'
    result = subprocess.run([str(python), 'pose_dataworker.py', '--help'], cwd=str(image_folder),
                            stdout=subprocess.PIPE, universal_newlines=True)
    assert result.returncode == 0 and '--master' in result.stdout
    assert subprocess.run([str(python), '-c', 'import tensorflow'], stderr=subprocess.DEVNULL).returncode != 0
