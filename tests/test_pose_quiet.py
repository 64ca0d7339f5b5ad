"""TensorFlow's import is silent, unless it fails or TF_CPP_MIN_LOG_LEVEL=0 asks for all that it says."""
import os
import subprocess
import sys

import pytest

from conftest import ROOT, run_command

SAYS = 'import os; os.write(2, b"native notice\\n"); value = 1\n'


def import_it(tmp_path, text, code='import pose_cli, tensorflow; print(tensorflow.value)', **variables):
    """Run code where a package of this text stands in for TensorFlow; returns the CompletedProcess."""
    (tmp_path / 'tensorflow').mkdir()
    (tmp_path / 'tensorflow' / '__init__.py').write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    environment.update(variables, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    return subprocess.run([sys.executable, '-c', code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)


def test_what_native_code_writes_is_kept_back(tmp_path):
    result = import_it(tmp_path, SAYS)
    assert (result.stdout, result.stderr) == ('1\n', '')


def test_level_0_shows_it(tmp_path):
    result = import_it(tmp_path, SAYS, TF_CPP_MIN_LOG_LEVEL='0')
    assert (result.stdout, result.stderr) == ('1\n', 'native notice\n')


def test_a_failed_import_shows_it(tmp_path):
    result = import_it(tmp_path, SAYS + 'raise ImportError("no library")\n')
    assert result.stderr.startswith('native notice\nTraceback') and 'no library' in result.stderr


def test_stderr_is_back_afterwards(tmp_path):
    code = 'import pose_cli, tensorflow, os; os.write(2, b"ours\\n")'
    assert import_it(tmp_path, SAYS, code).stderr == 'ours\n'


def test_without_stderr(tmp_path):
    code = 'import os; os.close(2)\nimport pose_cli, tensorflow; print(tensorflow.value)'
    assert import_it(tmp_path, 'value = 1\n', code).stdout == '1\n'


@pytest.mark.slow
def test_the_real_one_with_its_first_session():
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    code = 'import pose_cli; import tensorflow.compat.v1 as tf; tf.Session(graph=tf.Graph()).close()'
    result = run_command('-c', code, env=environment)
    assert result.returncode == 0 and result.stderr == ''
