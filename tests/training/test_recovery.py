"""Damaged run folders: what is left of them is found, set aside or told in a line. A real run, damaged by hand."""
import errno
import json
import os
import shutil
import sys

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import PROGRAMS, assert_user_error, program_environment, run_command, run_well, wait_for
from inference import read_skeleton
from pose_errors import UserError
from train_runs import SMALL_NETWORK, folders
from training import checkpoint
from training.checkpoint import recover
from training.config import Schedule
from training.run_folder import check_resume, note_start
from training.run_log import CURVE_COLUMNS, CURVES_FILE, RunLog, csv, read_curves

FLAGS = {'model': 'mobilenet_thin', 'input_width': 64, 'input_height': 48, 'optimizer': 'adam', 'ema': 0.0}
KINDS = {'cut': lambda data: data[:len(data) // 2], 'empty': lambda data: b'',
         'a wrong bit': lambda data: data[:len(data) // 4] + bytes([data[len(data) // 4] ^ 4])
         + data[len(data) // 4 + 1:]}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A folder with the checkpoints of steps 2, 4 and 6, as training writes them."""
    folder = tmp_path_factory.mktemp('checkpoints')
    with tf.Graph().as_default(), tf.Session() as session:
        weight = tf.get_variable('weight', initializer=np.arange(5000, dtype=np.float32), use_resource=False)
        saver = checkpoint.create_saver(5)
        session.run(weight.initializer)
        for step in (2, 4, 6):
            saver.save(session, str(folder / 'model'), step, write_meta_graph=False)
    return folder


@pytest.fixture
def folder(checkpoints, tmp_path):
    shutil.copytree(str(checkpoints), str(tmp_path / 'run'))
    return tmp_path / 'run'


def step_of(folder):
    prefix = checkpoint.latest_checkpoint(str(folder))
    assert prefix == tf.train.latest_checkpoint(str(folder))  # TensorFlow reads the file `checkpoint` the same way
    return int(prefix.rsplit('-', 1)[1])


def test_a_whole_checkpoint_is_left_alone(folder):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert recover(str(folder)) == str(folder / 'model-6')
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


@pytest.mark.parametrize('kind', sorted(KINDS) + ['gone'])
@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_a_damaged_newest_checkpoint_is_kept_and_the_one_before_it_taken(folder, suffix, kind, caplog):
    path = folder / ('model-6' + suffix)
    data = path.read_bytes()
    path.unlink() if kind == 'gone' else path.write_bytes(KINDS[kind](data))
    assert recover(str(folder)) == str(folder / 'model-4')
    assert step_of(folder) == 4 and not list(folder.glob('model-6*'))
    other, = {'.index', '.data-00000-of-00001'} - {suffix}
    assert (folder / ('damaged-model-6' + other)).exists()
    assert kind == 'gone' or (folder / ('damaged-model-6' + suffix)).read_bytes() == KINDS[kind](data)
    line, = [record.getMessage() for record in caplog.records]
    assert 'model-6 is damaged' in line and 'going on from %s' % (folder / 'model-4') in line and '\n' not in line


@pytest.mark.parametrize('content', [None, b'', b'\xff\xfe', b'model_checkpoint_path: "model-8"\n', b'\0' * 100])
def test_the_file_checkpoint_gone_or_damaged(folder, content):
    (folder / 'checkpoint').unlink() if content is None else (folder / 'checkpoint').write_bytes(content)
    assert recover(str(folder)) == str(folder / 'model-6')
    assert step_of(folder) == 6
    assert tf.train.get_checkpoint_state(str(folder)).all_model_checkpoint_paths == [
        str(folder / ('model-%d' % step)) for step in (2, 4, 6)]


def test_none_reads_whole_and_folders_of_new_runs_hold_nothing_to_recover(folder, tmp_path):
    for path in folder.glob('*.data-*'):
        path.write_bytes(b'')
    before = sorted(os.listdir(str(folder)))
    with pytest.raises(UserError, match='no checkpoint in .* reads whole'):
        recover(str(folder))
    assert sorted(os.listdir(str(folder))) == before
    assert recover(str(tmp_path)) is None
    assert recover(str(tmp_path / 'missing')) is None
    (tmp_path / 'model-0.data-00000-of-00001').write_bytes(b'half')  # the first save was killed
    assert recover(str(tmp_path)) is None


def damage_best(best, how):
    if how == 'a file':
        shutil.rmtree(str(best))
        best.write_text('mine')
    elif how == 'empty checkpoint':
        (best / 'checkpoint').write_bytes(b'')
        (best / 'model-2.index').write_bytes(b'')
    else:
        (best / 'best.json').write_bytes(how)


@pytest.fixture
def session_and_saver():
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.get_variable('weight', initializer=np.zeros(3, np.float32), use_resource=False).initializer)
        yield session, checkpoint.create_saver(5)


def test_a_kill_between_the_record_of_the_best_and_its_checkpoint_loses_neither(session_and_saver, tmp_path):
    session, saver = session_and_saver
    record = tmp_path / 'best' / 'best.json'
    for step, loss in ((4, 0.7), (6, 0.5)):
        checkpoint.BestCheckpoint(saver, str(tmp_path)).update(session, step, loss)
        assert checkpoint.BestCheckpoint(saver, str(tmp_path)).value == loss
    assert json.loads(record.read_text()) == {'step': 6, 'loss_ll': 0.5, 'previous': {'step': 4, 'loss_ll': 0.7}}
    record.write_text(json.dumps(dict(step=8, loss_ll=0.1, previous={'step': 6, 'loss_ll': 0.5})))
    assert checkpoint.BestCheckpoint(saver, str(tmp_path)).value == 0.5


@pytest.mark.parametrize('how', ['a file', 'empty checkpoint', b'', b'text', b'[]', b'{"loss_ll": "low"}', b'\xff',
                                 b'{"loss_ll": NaN}'])
def test_a_damaged_best_is_set_aside(session_and_saver, tmp_path, how, caplog):
    session, saver = session_and_saver
    checkpoint.BestCheckpoint(saver, str(tmp_path)).update(session, 2, 0.5)
    damage_best(tmp_path / 'best', how)
    best = checkpoint.BestCheckpoint(saver, str(tmp_path))
    assert best.value == np.inf and 'best is damaged' in caplog.text
    assert (tmp_path / 'damaged-best').exists()
    best.update(session, 4, 0.7)
    assert json.loads((tmp_path / 'best' / 'best.json').read_text()) == {'step': 4, 'loss_ll': 0.7}


GOOD = 'kind,step,epoch,loss\ntrain,1,0.1,3\ntrain,2,0.2,2.5\n'


@pytest.mark.parametrize('content, steps', [
    (GOOD.encode() + b'train,3,0.3,\0\0\0\n', ['1', '2']), (GOOD.encode() + b'\0' * 5000, ['1', '2']),
    (GOOD.encode() + b'train,3,0.3,' + b'9' * 300000 + b'\n', ['1', '2']),
    (GOOD.encode() + b'train,3,0.3,\xfc\n', ['1', '2']), (GOOD.encode() + b'train,3,"0.3\n', ['1', '2']),
    (GOOD.encode() + b'train,\xc2\xb2,0.3,1\ntrain,4,0.4,2,7,8\n', ['1', '2']),
    (b'ki', []), (b'', []), (b'\xff\xfe\0\0', []), ('directory', [])])
def test_damaged_curves_lose_their_bad_lines_only(tmp_path, content, steps):
    path = tmp_path / 'curves.csv'
    path.mkdir() if content == 'directory' else path.write_bytes(content)
    with RunLog(str(tmp_path), 10, Schedule(10, 1000, True, 0)) as log:
        log.evaluation(11, 0.5)
    assert [row['step'] for row in read_curves(str(path))] == steps + ['11']
    assert bool(steps) != (tmp_path / 'damaged-curves.csv').exists()


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    with RunLog(str(tmp_path), 0, Schedule(10, 1000, True, 0)) as log:
        curves, = [file.fd for file in psutil.Process().open_files() if file.path == str(tmp_path / 'curves.csv')]
        os.dup2(os.open('/dev/full', os.O_WRONLY), curves)
        log.evaluation(1, 0.5)
        log.evaluation(2, 0.5)
    line, = [record.getMessage() for record in caplog.records]
    assert 'No space left' in line and str(tmp_path) in line


def train_flags(data, model, *more):
    return [*SMALL_NETWORK, *folders(data, model), '--batchsize=2', '--save-every=2', *more]


@pytest.fixture(scope='module')
def run(sample_coco, tmp_path_factory):
    """A run of 4 steps that validates and evaluates on images of which one is cut."""
    folder = tmp_path_factory.mktemp('run')
    shutil.copytree(str(sample_coco), str(folder / 'data'))
    picture = sorted((folder / 'data' / 'val2017').iterdir())[1]
    picture.write_bytes(picture.read_bytes()[:2000])
    log = run_well(*train_flags(folder / 'data', folder / 'model', '--max-steps=4', '--valid-every=4',
                                '--eval-every=2'), env=program_environment()).stderr
    assert 'Traceback' not in log and 'done: step 4' in log and step_of(folder / 'model') == 4
    assert 'AP evaluation at step 2 left out' in log and picture.name in log
    return folder


@pytest.mark.slow
def test_training_goes_on_from_the_one_before_and_keeps_its_history(run, start, tmp_path):
    """The newest checkpoint and the file `checkpoint` damaged; a second trainer meanwhile; the terminal closes."""
    model = tmp_path / 'model'
    shutil.copytree(str(run / 'model'), str(model))
    (model / 'model-4.index').write_bytes(b'')
    (model / 'checkpoint').unlink()
    flags = train_flags(run / 'data', model, '--max-steps=100000')
    leader, follower = os.openpty()
    process = start(sys.executable, PROGRAMS / 'in_terminal.py', follower, *flags, pass_fds=[follower],
                    env=program_environment())
    os.close(follower)
    wait_for(lambda: ' step=4,' in process.log.read_text(), 'no step 4', 300)
    second = run_command(*flags, env=program_environment())
    assert_user_error(second, 'in use by process %d on ' % process.pid, '--modelpath')
    os.close(leader)
    assert process.wait(timeout=600) == 0, process.log.read_text()
    log = process.log.read_text()
    assert 'resuming from %s' % (model / 'model-2') in log and 'model-4 is damaged' in log
    assert 'stopped by a signal at step' in log and 'Traceback' not in log
    assert step_of(model) >= 4 and (model / 'damaged-model-4.index').exists()
    assert len(json.loads((model / 'run.json').read_text())['starts']) == 2
    # Step 3 has the same batch and, from the checkpoint, the same weights as before; another batch's loss differs.
    before, after = losses(run / 'model'), losses(model)
    assert after[3] == pytest.approx(before[3], rel=1e-4) and abs(before[3] / before[1] - 1) > 1e-2


def losses(model):
    """{step: loss} of the training steps in a run's curves."""
    return {int(row['step']): float(row['loss']) for row in read_curves(str(model / 'logs' / CURVES_FILE))
            if row['kind'] == 'train'}


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(['run.json', 'curves.csv', 'checkpoint', 'model-6.index', 'model-6.data-00000-of-00001',
                             'best.json']),
       places=st.lists(st.tuples(st.integers(0, 10 ** 6), st.integers(0, 9), st.binary(max_size=4)), min_size=1,
                       max_size=4))
def test_mutated_run_files(name, places, checkpoints, tmp_path_factory):
    """Any bytes of any file of a run changed: a whole checkpoint is found, or one line says what is wrong."""
    folder = tmp_path_factory.mktemp('mutated') / 'run'
    shutil.copytree(str(checkpoints), str(folder))
    (folder / 'best.json').write_text('{"step": 4, "loss_ll": 0.5}')
    (folder / 'curves.csv').write_text(','.join(CURVE_COLUMNS) + '\ntrain,2' + ',1' * 11 + '\n')
    note_start(str(folder), FLAGS, COCO_SKELETON, resumes=False)
    data = (folder / name).read_bytes()
    for at, removed, added in places:
        data = data[:at % (len(data) + 1)] + added + data[at % (len(data) + 1) + removed:]
    (folder / name).write_bytes(data)
    for read in (lambda: recover(str(folder)), lambda: check_resume(str(folder), FLAGS),
                 lambda: note_start(str(folder), FLAGS, COCO_SKELETON, resumes=True),
                 lambda: read_skeleton(checkpoint=str(folder)),
                 lambda: RunLog(str(folder), 4, Schedule(10, 1000, True, 0)).__exit__()):
        try:
            read()
        except UserError as error:
            assert '\n' not in str(error)
    with tf.Graph().as_default(), tf.Session():  # best/ is set aside when it is damaged
        weight = tf.get_variable('weight', [5000], use_resource=False)
        (folder / 'best').mkdir()
        os.rename(str(folder / 'best.json'), str(folder / 'best' / 'best.json'))
        checkpoint.BestCheckpoint(tf.train.Saver([weight]), str(folder))
    shutil.rmtree(str(folder))


def test_a_log_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """Each failure of the disk below --logpath, as the system tells it, at the first byte of the log."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        def full(*args, **kwargs):
            raise OSError(number, os.strerror(number))
        monkeypatch.setattr(csv.DictWriter, 'writeheader', full)
        with pytest.raises(UserError, match='--logpath=%s: %s' % (tmp_path, os.strerror(number))):
            RunLog(str(tmp_path), 0, Schedule(10, 1000, True, 0))
