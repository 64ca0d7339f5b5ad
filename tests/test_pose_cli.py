"""What the commands share: signals, files that are never half-written, flags' types, one-line errors."""
import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

import pose_cli
import pose_files
from conftest import run_program
from pose_errors import Stopped, UserError


def test_two_signals_at_once_are_one():
    """`timeout` and others signal a process and then its group; only a later signal kills."""
    result = run_program('two_signals.py')
    assert result.stdout == 'alive\n' and result.returncode == -signal.SIGTERM


def test_a_signal_that_came_ends_what_asks_for_it(signals):
    stop = pose_cli.StopSignal()
    stop.check()
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    with pytest.raises(Stopped, match='stopped by a signal before the first step'):
        stop.check()
    stop = pose_cli.StopSignal()
    stop.after(0)
    with pytest.raises(Stopped, match='stopped by --max-hours before the first step'):
        stop.check()


def test_a_json_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / 'a.json'
    pose_files.write_json(str(path), {'b': 1, 'a': [2]})
    assert path.read_text() == '{"a": [2], "b": 1}'
    with pytest.raises(TypeError):
        pose_files.write_json(str(path), {'a': object()})
    pose_files.write_json(str(path), {'a': 3}, indent=1)
    assert json.loads(path.read_text()) == {'a': 3} and '\n "a"' in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.json']


def test_what_cannot_be_written_is_named_and_a_folder_is_checked_without_making_it(tmp_path):
    with pytest.raises(UserError, match='nowhere/file'):
        pose_files.write_file(str(tmp_path / 'nowhere' / 'file'), b'x')
    pose_files.check_folder(str(tmp_path))
    pose_files.check_folder(str(tmp_path / 'a' / 'b'))
    (tmp_path / 'taken').write_text('')
    with pytest.raises(UserError, match='taken/folder'):
        pose_files.make_folder(str(tmp_path / 'taken' / 'folder'))
    with pytest.raises(UserError, match='taken is no folder'):
        pose_files.check_folder(str(tmp_path / 'taken' / 'folder'))
    assert [entry.name for entry in tmp_path.iterdir()] == ['taken']


def test_sizes():
    assert [pose_cli.size(text) for text in ('432x368', '8X16')] == [(432, 368), (8, 16)]
    for text in ('368', '368x', '0x8', '1x2x3'):
        with pytest.raises(argparse.ArgumentTypeError):
            pose_cli.size(text)


def test_data_flags_default_to_the_environment(monkeypatch):
    for folder in (None, '/data/coco'):
        monkeypatch.delenv('COCO_DIR', raising=False) if folder is None else monkeypatch.setenv('COCO_DIR', folder)
        parser = pose_cli.ArgumentParser()
        pose_cli.add_data_flags(parser)
        assert vars(parser.parse_args([])) == {'datapath': folder, 'imgpath': None}


@pytest.mark.parametrize('outcome, code, line', [
    (None, 0, ''), (3, 3, ''), (UserError('no', 4), 4, 'error: no\n'), (KeyboardInterrupt(), 130, 'interrupted\n')])
def test_how_a_command_ends(outcome, code, line, capsys):
    def main():
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as caught:
        pose_cli.run(main)
    assert caught.value.code == code and capsys.readouterr().err == line
    assert str(UserError('a\n  b\tc')) == 'a b c'


def parser():
    made = pose_cli.ArgumentParser(prog='x.py')
    made.add_argument('--max-epoch', type=pose_cli.positive_int, default=3, help='passes (default 3)')
    made.add_argument('--batchsize', type=pose_cli.positive_int, default=64, help='samples')
    made.add_argument('--modelpath', default='models', help='folder')
    return made


@pytest.mark.parametrize('argument, meant', [('--epochs=3', '--max-epoch'), ('--batch-size=3', '--batchsize'),
                                             ('--batch_size=3', '--batchsize'), ('--model-path=x', '--modelpath')])
def test_near_misses_of_flags_get_a_hint(argument, meant):
    with pytest.raises(UserError, match='%s; did you mean %s' % (argument, meant)):
        parser().parse_args([argument])
    with pytest.raises(UserError, match='--batch'):  # flags are not abbreviated
        parser().parse_args(['--batch=3'])
    with pytest.raises(UserError) as caught:
        parser().parse_args(['--nothing-like-it'])
    assert 'did you mean' not in str(caught.value)


@pytest.mark.parametrize('kind, good, bad', [
    (pose_cli.positive_int, '1000000000', '99999999999999999999'), (pose_cli.non_negative_int, '0', '-1'),
    (pose_cli.positive_process_count, '64', '100000'), (pose_cli.process_count, '0', '1025'),
    (pose_cli.seed, str(10 ** 15), str(2 ** 63)), (pose_cli.positive_int, '1', '9' * 5000)]
    + [(pose_cli.positive_int, '1', bad) for bad in ('0', '1.5', '')])
def test_numbers_have_bounds(kind, good, bad):
    assert kind(good) == int(good)
    with pytest.raises(argparse.ArgumentTypeError, match='is not a whole number from'):
        kind(bad)


def test_defaults_are_shown_once_and_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert parser().parse_args(['--modelpath=~/models']).modelpath == '/home/me/models'
    text = parser().format_help()
    assert text.count('default') == 3 and '(default 3)' in text and '(default: 64)' in text


@pytest.mark.parametrize('closed', [[0], [1], [2], [0, 1, 2]])
def test_closed_streams_lead_nowhere(closed, tmp_path):
    """Else the first file that is opened would be what libraries write their errors into."""
    program = ('import os, sys\nfor number in %r:\n    os.close(number)\nsys.path.insert(0, %r)\nimport pose_cli\n'
               'pose_cli.prepare_process()\nfile = open(%r, "w")\nassert file.fileno() > 2\n'
               'print("out"); print("error", file=sys.stderr); os.write(2, b"native")\n'
               % (closed, os.path.dirname(pose_cli.__file__), str(tmp_path / 'file')))
    result = subprocess.run([sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'file').read_text() == ''


def test_other_systems_are_told_what_runs_there(monkeypatch):
    pose_cli.require_linux('training')
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with pytest.raises(UserError, match='training needs Linux, this is darwin; on Windows use WSL'):
        pose_cli.require_linux('training')
