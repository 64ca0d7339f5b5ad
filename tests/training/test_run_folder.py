"""One run per folder: the lock is told, and lost with its holder."""
import os
import signal

import pytest

from conftest import PROGRAMS, wait_for
from pose_errors import UserError
from training.run_folder import LOCK_FILE, lock_folder


@pytest.fixture
def other_holder(start_program, tmp_path):
    """A function that starts another process, which holds tmp_path."""
    def other_holder():
        holder = start_program(PROGRAMS / 'hold_folder.py', tmp_path)
        wait_for(lambda: 'held' in holder.log.read_text(), 'it does not hold the folder')
        return holder
    return other_holder


def test_the_second_one_is_told_who_holds_the_folder(other_holder, tmp_path):
    holder = other_holder()
    with pytest.raises(UserError, match='in use by process %d on ' % holder.pid):
        with lock_folder(str(tmp_path)):
            pass
    holder.kill()
    holder.wait()
    with lock_folder(str(tmp_path)):
        assert 'process %d on ' % os.getpid() in (tmp_path / LOCK_FILE).read_text()


def test_a_forked_process_does_not_hold_it(other_holder, tmp_path):
    with lock_folder(str(tmp_path)):
        pid = os.fork()
        if pid == 0:
            signal.pause()
    try:
        other_holder()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match='cannot open .*%s' % LOCK_FILE):
        with lock_folder(str(tmp_path)):
            pass
