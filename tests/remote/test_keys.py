"""Keys: their files, and who gets in."""
import shutil
import stat

import pytest

from conftest import PATIENCE, assert_user_error, run_command, run_well, wait_for
from pose_errors import UserError
from remote.receiver import BatchReceiver
from remote.sender import TrainerConnection
from wire_ends import SENDER, SETTINGS, made_up_batch, next_batch, save_batches


def test_key_files_are_for_their_owner_only(keys):
    make = 'scripts/make_curve_keys.py', '--output-dir=%s' % keys
    run_well(*make, '--worker=node2')
    files = [path for path in keys.rglob('*') if path.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert (keys / 'accepted_workers' / 'node2.key').exists()
    for flags, mention in (((), 'trainer.key_secret'), (('--worker=../x',), '../x'), (('--worker=x\n',), '--worker')):
        assert_user_error(run_command(*make, *flags), mention)


def test_only_workers_with_an_accepted_key_get_in(address, start_program, tmp_path, keys, caplog):
    others, strangers = tmp_path / 'others', tmp_path / 'strangers'
    run_well('scripts/make_curve_keys.py', '--output-dir=%s' % others)
    shutil.copytree(str(others), str(strangers))  # it knows neither the trainer, nor the trainer it
    (others / 'trainer.key').write_bytes((keys / 'trainer.key').read_bytes())  # it knows the trainer
    batches = save_batches(tmp_path / 'b.npz', [made_up_batch(0, SETTINGS)])
    with BatchReceiver(address, SETTINGS, str(keys)) as receiver:
        refused = start_program(SENDER, address, batches, others, 0, 20)
        missing = start_program(SENDER, address, batches, '', 0, 20)
        stranger = start_program(SENDER, address, batches, strangers, 0, 20)
        refusals = 'key is not accepted', "not with this trainer's keys"
        wait_for(lambda: receiver.get(0.2) or all(line in caplog.text for line in refusals),
                 'the trainer does not tell whom it refuses')
        assert receiver.get(0.5) is None and not receiver.ready()
        accepted = start_program(SENDER, address, batches, keys, 0, 20)
        for _ in range(5):
            next_batch(receiver)
        joined = [line for line in receiver.report() if 'joined' in line]
        assert len(joined) == 1 and ':%d ' % accepted.pid in joined[0]
    assert accepted.wait(PATIENCE) == 0
    for worker, reason in ((refused, 'does not accept this key'), (missing, '--curve-keys on both sides'),
                           (stranger, '--curve-keys on both sides')):
        assert worker.poll() is None  # it goes on trying: the trainer may come to accept it
        assert reason in worker.log.read_text() and 'connected; sending' not in worker.log.read_text()


def test_missing_and_damaged_secret_keys_are_one_line(keys, address, tmp_path):
    whole = (keys / 'trainer.key_secret').read_bytes()
    for folder, cut in ((tmp_path, None), (keys, 0), (keys, 40), (keys, 200), (keys, -3)):
        (keys / 'trainer.key_secret').write_bytes(whole[:cut])
        with pytest.raises(UserError, match='trainer.key_secret.*make_curve_keys.py'):
            BatchReceiver(address, SETTINGS, str(folder))
    with pytest.raises(UserError):
        TrainerConnection(address, str(tmp_path))
