"""Key files, and who gets in with them."""
import stat

import pytest
from conftest import assert_user_error
from wire_ends import SETTINGS, make_keys
from zmq.utils import z85

from pose_cli import UserError
from remote import keys
from remote.trainer import BatchReceiver
from remote.worker import TrainerConnection

ADDRESS = b'10.0.0.7'


@pytest.fixture
def folder(tmp_path):
    result = make_keys(tmp_path / 'keys')
    assert result.returncode == 0, result.stderr
    return tmp_path / 'keys'


def zap_request(public_key):
    return [b'1.0', b'id', b'', ADDRESS, b'', b'CURVE', z85.decode(public_key)]


def test_key_files_are_for_their_owner_only(folder):
    result = make_keys(folder, '--worker=node2')
    assert result.returncode == 0, result.stderr
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert (folder / 'accepted_workers' / 'node2.key').exists()
    assert_user_error(make_keys(folder), 'trainer.key_secret')
    assert_user_error(make_keys(folder, '--worker=../x'), '../x')
    assert_user_error(make_keys(folder / 'empty', '--worker=node3'), 'trainer.key')


def test_keys_that_are_not_there(tmp_path, address):
    with pytest.raises(UserError) as error:
        BatchReceiver(address, SETTINGS, str(tmp_path))
    assert 'trainer.key_secret' in str(error.value) and 'make_curve_keys.py' in str(error.value)
    with pytest.raises(UserError):
        TrainerConnection(address, str(tmp_path))


def test_a_trainer_that_accepts_nobody(folder, address):
    (folder / 'accepted_workers' / 'worker.key').unlink()
    with pytest.raises(UserError) as error:
        BatchReceiver(address, SETTINGS, str(folder))
    assert 'accepts no worker' in str(error.value)


def test_files_count_from_the_next_connection_on(folder, caplog):
    public, _ = keys.read_secret_key(str(folder), keys.WORKER)
    (folder / 'accepted_workers' / 'broken.key').write_text('nothing')
    frames, refused = keys.answer_zap(zap_request(public), str(folder))
    assert frames == [b'1.0', b'id', b'200', b'OK', b'worker', b''] and refused is None
    assert 'broken.key is not a key file' in caplog.text

    (folder / 'accepted_workers' / 'worker.key').unlink()
    frames, refused = keys.answer_zap(zap_request(public), str(folder))
    assert frames[2] == b'400' and refused == ADDRESS.decode()


@pytest.mark.parametrize('mechanism', [b'NULL', b'PLAIN'])
def test_nobody_gets_in_without_a_key(folder, mechanism):
    public, _ = keys.read_secret_key(str(folder), keys.WORKER)
    request = zap_request(public)
    request[5] = mechanism
    assert keys.answer_zap(request, str(folder))[1] == ADDRESS.decode()
    assert keys.answer_zap(zap_request(public)[:6], str(folder))[1] == ADDRESS.decode()


def test_others_can_read_a_secret(folder, caplog):
    (folder / 'worker.key_secret').chmod(0o644)
    keys.read_secret_key(str(folder), keys.WORKER)
    assert 'chmod 600' in caplog.text
