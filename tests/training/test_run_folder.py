"""One run per folder: the lock is told, and lost with its holder."""
import os
import signal

import pytest

from conftest import PROGRAMS, wait_for
from pose_errors import UserError
from training.run_folder import LOCK_FILE, lock_folder


def test_the_second_one_is_told_who_holds_the_folder_and_a_forked_process_does_not(start_program, tmp_path):
    with lock_folder(str(tmp_path)):
        forked = os.fork()
        if forked == 0:
            signal.pause()
    try:
        holder = start_program(PROGRAMS / 'hold_folder.py', tmp_path)
        wait_for(lambda: 'held' in holder.log.read_text(), 'it does not hold the folder')
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)
    with pytest.raises(UserError, match='in use by process %d on ' % holder.pid):
        with lock_folder(str(tmp_path)):
            pass
    holder.kill()
    holder.wait()
    with lock_folder(str(tmp_path)):
        assert 'process %d on ' % os.getpid() in (tmp_path / LOCK_FILE).read_text()


def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match='cannot open .*%s' % LOCK_FILE):
        with lock_folder(str(tmp_path)):
            pass
