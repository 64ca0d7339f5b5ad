"""One run per folder: the lock is told, and lost with its holder; and the weights that a run starts from."""
import os
import shutil
import signal

import pytest

import networks
import tensorflow.compat.v1 as tf
from conftest import PROGRAMS, ROOT, wait_for
from pose_errors import UserError
from training.run_folder import LOCK_FILE, StartWeights, hold_run_folder, lock_folder


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


@pytest.mark.parametrize('gone', ['run', 'run/logs'])
def test_a_failure_is_told_also_when_folders_are_gone(gone, tmp_path):
    with pytest.raises(UserError, match='the data ran out'):
        with hold_run_folder(str(tmp_path / 'run'), str(tmp_path / 'run' / 'logs'), {},
                             StartWeights('cmu', pretrained='none')):
            shutil.rmtree(str(tmp_path / gone))
            raise UserError('the data ran out')


@pytest.mark.slow
def test_exported_weights_lack_only_what_training_adds():
    """mobilenet_light has stages that help in training alone: they start anew."""
    weights = StartWeights('mobilenet_light', str(ROOT / 'etcs' / 'weights' / 'mobilenet_light_photos.npy'))
    with tf.Graph().as_default():
        network = networks.get_network('mobilenet_light', tf.zeros((1, 64, 64, 3)), is_training=True)
        assert weights.init_fn(network) and len(network.inference_variables) < len(network.variables)
