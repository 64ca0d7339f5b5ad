"""train.py --add-data: the same samples from its loaders, from a data worker and after a stop; and more keypoints."""
import json
import re
import threading

import pytest

from conftest import PATIENCE, assert_user_error, run_command, wait_for
from runner_files import runners_like
from test_pose_dataworker import WITHOUT_TENSORFLOW, worker_command
from train_runs import train_small


@pytest.fixture(scope='module')
def legs(sample_coco, tmp_path_factory):
    return runners_like(sample_coco, tmp_path_factory.mktemp('legs'))


def losses(log):
    return re.findall(r'step=(\d+), .* loss=([\d.]+)', log)


@pytest.mark.slow
def test_the_samples_are_the_same_however_they_come(sample_coco, legs, address, start, tmp_path):
    added, steady = '--add-data=%s:0.4' % legs, '--lr=0.01,0.01'
    whole = losses(train_small(sample_coco, tmp_path / 'whole', added, steady, '--max-steps=6', '--workers=2'))
    assert len(whole) == 6
    first, rest = (losses(train_small(sample_coco, tmp_path / 'parts', added, steady, '--max-steps=%d' % steps))
                   for steps in (3, 6))
    assert first + rest == whole
    other, workers = start(*worker_command(address, sample_coco), '--add-data=%s:0.3' % legs), []

    def follow():
        """One with the same data comes when the other one has been refused."""
        wait_for(lambda: 'give all the same data and --add-data' in other.log.read_text(), 'it is not refused')
        assert 'sending batches' not in other.log.read_text()
        workers.append(start(*worker_command(address, sample_coco), added))

    follower = threading.Thread(target=follow)
    follower.start()
    log = train_small(sample_coco, tmp_path / 'remote', added, steady, '--max-steps=6', '--remote-data=' + address)
    follower.join()
    assert workers[0].wait(PATIENCE) == 0, workers[0].log.read_text()
    assert losses(log) == whole and other.wait(PATIENCE) == 2
    assert log.count('without labels of') == 1  # its own samples, with which those of data workers are compared


@pytest.mark.slow
def test_a_run_goes_on_with_more_keypoints(sample_coco, legs, tmp_path, capsys):
    train_small(sample_coco, tmp_path / 'coco', '--max-steps=1')
    log = train_small(sample_coco, tmp_path / 'more', '--add-data=%s' % legs, '--add-keypoints', '--pretrained=none',
                      '--checkpoint=%s' % (tmp_path / 'coco'), '--max-steps=2', '--valid-every=2', '--eval-every=2')
    assert 'the maps of 18 of 19 parts are kept, those of head_top start anew' in log
    assert 'evaluation step=2 AP=' in log and 'validation(6) small loss=' in log
    run = json.loads((tmp_path / 'more' / 'run.json').read_text())
    assert json.loads(run['skeleton'])['parts'][-1] == 'head_top'


@pytest.mark.parametrize('flags, mentions', [
    (['--add-data=none:0.2', '--datapath=.'], ['--add-data=none:0.2: it is not a folder']),
    (['--add-data=x:1.5'], ['--add-data', "'x:1.5' is not DIR or DIR:SHARE"]),
    (['--add-data=x', '--remote-data=tcp://0.0.0.0:1'], ['--add-data adds to --datapath']),
    (['--add-keypoints', '--datapath=.'], ['--add-keypoints is for those of --add-data'])])
def test_wrong_flags(flags, mentions, monkeypatch):
    monkeypatch.delenv('COCO_DIR', raising=False)
    assert_user_error(run_command('train.py', '--pretrained=none', *flags), *mentions)


def test_a_worker_without_added_data_adds_no_keypoints(sample_coco):
    assert_user_error(run_command(*WITHOUT_TENSORFLOW, '--master=tcp://127.0.0.1:1', '--datapath=%s' % sample_coco,
                                  '--add-keypoints'), '--add-keypoints is for those of --add-data')


def test_missing_data_is_told_at_once(sample_coco):
    for command in (['train.py', '--pretrained=none'], [*WITHOUT_TENSORFLOW, '--master=tcp://127.0.0.1:1']):
        result = run_command(*command, '--datapath=%s' % sample_coco, '--add-data=/no/such:0.2')
        assert_user_error(result, '--add-data=/no/such:0.2: it is not a folder')
