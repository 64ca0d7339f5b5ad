"""TensorFlow's import is silent, unless it fails or TF_CPP_MIN_LOG_LEVEL=0 asks for all that it says."""
import os

import pytest

from conftest import ROOT, program_environment, run_program

SAYS = 'import os; os.write(2, b"native notice\\n"); value = 1\n'


def at_default_level(environment):
    return {name: value for name, value in environment.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}


def import_it(tmp_path, text, *closed, **variables):
    """Import a package of this text in place of TensorFlow; returns the CompletedProcess."""
    (tmp_path / 'tensorflow').mkdir()
    (tmp_path / 'tensorflow' / '__init__.py').write_text(text)
    environment = dict(at_default_level(os.environ), PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    return run_program('import_tensorflow.py', *closed, env=dict(environment, **variables))


def test_what_native_code_writes_is_kept_back_and_stderr_returns(tmp_path):
    result = import_it(tmp_path, SAYS)
    assert (result.stdout, result.stderr) == ('1\n', 'ours\n')


def test_level_0_shows_it(tmp_path):
    result = import_it(tmp_path, SAYS, TF_CPP_MIN_LOG_LEVEL='0')
    assert (result.stdout, result.stderr) == ('1\n', 'native notice\nours\n')


def test_a_failed_import_shows_it(tmp_path):
    result = import_it(tmp_path, SAYS + 'raise ImportError("no library")\n')
    assert result.stderr.startswith('native notice\nTraceback') and 'no library' in result.stderr


def test_without_stderr(tmp_path):
    assert import_it(tmp_path, 'value = 1\n', 2).stdout == '1\n'


@pytest.mark.slow
def test_the_real_one_with_its_first_session():
    result = run_program('first_session.py', env=at_default_level(program_environment()))
    assert result.returncode == 0 and result.stderr == ''
