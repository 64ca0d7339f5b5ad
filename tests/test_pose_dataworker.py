"""pose_dataworker.py as users run it: real COCO folders, real trainers, and a machine without TensorFlow."""
import subprocess
import sys
import zlib

import pytest

from annotations.skeleton import COCO_SKELETON
from batches.batch import decode_batch
from conftest import PATIENCE, PROGRAMS, ROOT, assert_user_error, descendants, is_running, run_command, wait_for
from remote.receiver import BatchReceiver

SETTINGS = {'batchsize': 2, 'input_width': 96, 'input_height': 64, 'stride': 8, 'seed': 5,
            'skeleton': COCO_SKELETON.to_json()}
WITHOUT_TENSORFLOW = (PROGRAMS / 'without_packages.py', 'tensorflow', 'pose_dataworker.py')


def worker_command(address, folder):
    return [sys.executable, *WITHOUT_TENSORFLOW, '--master=' + address, '--datapath=%s' % folder, '--workers=1']


def receive(receiver, count):
    """Image, heatmap, PAF and mask of the next `count` batches."""
    return [decode_batch(wait_for(lambda: receiver.get(0.5), 'no batch comes'), COCO_SKELETON) for _ in range(count)]


def test_workers_make_the_samples_that_the_trainer_asked_for(address, start, sample_coco):
    with BatchReceiver(address, SETTINGS) as receiver:
        workers = [start(*worker_command(address, sample_coco)) for _ in range(2)]
        batches = receive(receiver, 4)
        joined = []

        def both_joined():
            receiver.get(0.1)
            joined.extend(line for line in receiver.report() if 'data worker joined: ' in line)
            return len(joined) == 2

        wait_for(both_joined, 'one worker does not join')
        batches += receive(receiver, 20)
        loaders = [pid for worker in workers for pid in descendants(worker.pid)]
        assert len(loaders) == 4  # for each worker a supervisor and a loader process
    for image, heatmap, paf, mask in batches:
        assert image.shape == (2, 64, 96, 3) and heatmap.shape == (2, 8, 12, 19) and paf.shape == (2, 8, 12, 38)
        assert image.std() > 5 and mask.min() >= 0 and mask.max() == 1
    assert max(heatmap[..., :18].max() for _, heatmap, _, _ in batches) > 0.8
    # Each worker, each process and each pass over the data draws its own augmentation: no image comes twice.
    checksums = [zlib.crc32(image.tobytes()) for batch in batches for image in batch[0]]
    assert len(set(checksums)) == len(checksums)
    for worker in workers:
        assert worker.wait(PATIENCE) == 0, worker.log.read_text()
    wait_for(lambda: not any(map(is_running, loaders)), 'loader processes are left over')


def test_a_new_trainer_with_other_settings_gets_what_it_asks_for(address, start, sample_coco):
    worker = start(*worker_command(address, sample_coco))
    receiver = BatchReceiver(address, SETTINGS)
    first = receive(receiver, 2)
    receiver.close(ended=False)  # as when it dies
    with BatchReceiver(address, dict(SETTINGS, input_width=64, stride=4, seed=6)) as receiver:
        second = receive(receiver, 2)
    assert first[0][0].shape == (2, 64, 96, 3) and second[0][0].shape == (2, 64, 64, 3)
    assert second[0][1].shape == (2, 16, 16, 19)
    assert worker.wait(PATIENCE) == 0


def test_a_worker_needs_no_tensorflow(address, start, sample_coco):
    python = ROOT / '.venv-worker' / 'bin' / 'python'
    if not python.exists():
        pytest.skip('no environment made from requirements-worker.txt in .venv-worker')
    assert subprocess.run([str(python), '-c', 'import tensorflow'], stderr=subprocess.DEVNULL).returncode != 0
    with BatchReceiver(address, SETTINGS) as receiver:
        worker = start(python, 'pose_dataworker.py', '--master=' + address, '--datapath=%s' % sample_coco)
        receive(receiver, 3)
    assert worker.wait(PATIENCE) == 0, worker.log.read_text()


@pytest.mark.parametrize('flags, mentions', [
    ([], ['--master']),
    (['--master=tcp://h:1', '--datapath=/no/such/folder'], ['/no/such/folder']),
    (['--master=http://h:1', '--datapath=.'], ['--master=http://h:1', 'tcp://HOST:PORT']),
    (['--master=tcp://h:1', '--datapath=.'], ['person_keypoints_train2017.json']),
    (['--master=tcp://h:1'], ['--datapath', '$COCO_DIR'])])
def test_wrong_flags(flags, mentions, monkeypatch):
    monkeypatch.delenv('COCO_DIR', raising=False)
    assert_user_error(run_command(*WITHOUT_TENSORFLOW, *flags), *mentions)


def test_coco_dir_and_missing_keys(sample_coco, tmp_path, monkeypatch):
    monkeypatch.setenv('COCO_DIR', str(sample_coco))
    result = run_command(*WITHOUT_TENSORFLOW, '--master=tcp://127.0.0.1:1', '--curve-keys=%s' % tmp_path)
    assert_user_error(result, 'worker.key_secret', 'make_curve_keys.py')
