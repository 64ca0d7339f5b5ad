"""What a run writes for people: run.json, curves.csv that go on after a kill, means over an interval."""
import json

import pytest

import tensorflow.compat.v1 as tf
import tool_files
from annotations.skeleton import COCO_SKELETON, RUN_FILE, skeleton_of_category
from pose_errors import UserError
from training.config import Schedule
from training.run_folder import check_resume, note_start, read_run
from training.run_log import CURVES_FILE, LOSSES, Interval, LogLines, RunLog, read_curves

FLAGS = {'model': 'mobilenet_thin', 'input_width': 64, 'input_height': 48, 'lr': [0.001], 'tag': '',
         'optimizer': 'adam', 'ema': 0.0, 'teacher': None, 'pretrained': None}
METRICS = dict({name: 2.0 for name in LOSSES}, lr=0.001, examples_per_sec=10.0, queue=3, data_wait=0.25,
               loss_ll_background=1.0)


def test_each_start_is_noted_with_its_flags(tmp_path):
    """For people to read; a new run in the folder of one without a checkpoint starts anew."""
    for _ in range(2):
        note_start(str(tmp_path), FLAGS, COCO_SKELETON, resumes=False)
    note_start(str(tmp_path), dict(FLAGS, tag='again'), COCO_SKELETON, resumes=True)
    run = read_run(str(tmp_path))
    assert run['flags'] == dict(FLAGS, tag='again')
    assert [start['flags']['tag'] for start in run['starts']] == ['', 'again']
    assert all(start['versions']['tensorflow'] == tf.__version__ and start['command'] for start in run['starts'])
    assert (tmp_path / RUN_FILE).read_text() == json.dumps(run, indent=1, sort_keys=True)


def test_another_number_of_samples_is_told(tmp_path, caplog):
    """As when the first data worker to come has another data set than the one at the last start had."""
    for samples, told in ((None, False), (1000, False), (1000, False), (1, True), (1, False)):
        caplog.clear()
        note_start(str(tmp_path), FLAGS, COCO_SKELETON, resumes=True, samples=samples)
        assert ('has 1 samples, and had 1000' in caplog.text) == told == bool(caplog.records)


def test_changed_flags_of_training_are_told(tmp_path, caplog):
    caplog.set_level('INFO')
    flags = dict(FLAGS, aug_scale=(0.5, 1.1))
    note_start(str(tmp_path), flags, COCO_SKELETON, resumes=False)
    note_start(str(tmp_path), flags, COCO_SKELETON, resumes=True)
    assert 'changed' not in caplog.text
    changed = dict(flags, lr=[0.1], teacher='t.npy')
    note_start(str(tmp_path), dict(changed), COCO_SKELETON, resumes=True)
    assert 'changed since the last start: --lr=[0.1] (was [0.001]), --teacher=t.npy (was None)' in caplog.text
    assert 'has no effect' not in caplog.text
    note_start(str(tmp_path), dict(changed, pretrained='w.npy'), COCO_SKELETON, resumes=True)
    assert '--pretrained=w.npy has no effect: this run goes on from its own checkpoint' in caplog.text


@pytest.mark.parametrize('rate, text', [(0.01, 'lr=0.010000,'), (4e-5, 'lr=0.0000400,'), (3.2e-8, 'lr=0.0000000320,'),
                                        (0, 'lr=0.000000,')])
def test_a_small_learning_rate_is_no_zero_in_the_log(rate, text, caplog):
    caplog.set_level('INFO')
    LogLines(Schedule(10, 1000, True, 0)).training(5, dict(METRICS, lr=rate))
    assert text in caplog.text


def test_a_run_goes_on_with_its_model_and_input_size(tmp_path):
    note_start(str(tmp_path), FLAGS, COCO_SKELETON, resumes=False)
    check_resume(str(tmp_path), dict(FLAGS, lr=[0.1], tag='other'))
    for name, value, mentions in (('model', 'cmu', '--model=mobilenet_thin'), ('input_width', 96, '--input-width=64'),
                                  ('input_height', 64, '--input-height=48'), ('optimizer', 'sgd', '--optimizer=adam'),
                                  ('ema', 0.9, '--ema=0')):
        with pytest.raises(UserError, match=mentions) as error:
            check_resume(str(tmp_path), dict(FLAGS, **{name: value}))
        assert str(value) in str(error.value) and str(tmp_path) in str(error.value)


def test_a_run_goes_on_with_its_keypoints(tmp_path):
    dancer = skeleton_of_category(tool_files.category(name='dancer'), 'f')
    note_start(str(tmp_path), FLAGS, dancer, resumes=False)
    note_start(str(tmp_path), FLAGS, dancer._replace(name='singer', sigmas=(0.1,) * 5), resumes=True)
    before = (tmp_path / RUN_FILE).read_text()
    with pytest.raises(UserError) as error:
        note_start(str(tmp_path), FLAGS, COCO_SKELETON, resumes=True)
    assert str(error.value) == (
        '%s holds a run on the keypoints %s, and the data has %s; choose another --modelpath, and give the checkpoint '
        'with --checkpoint' % (tmp_path, ', '.join(dancer.keypoints), ', '.join(COCO_SKELETON.keypoints)))
    assert (tmp_path / RUN_FILE).read_text() == before


@pytest.mark.parametrize('content', [None, '', '[]', '{"flags": ', '{"flags": []}', '{"starts": {}}', '{}',
                                     '{"flags": {"model": "mobilenet_thin"}}', '\xff'])
def test_a_run_that_does_not_tell_what_it_was_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / RUN_FILE).write_bytes(content.encode('latin1'))
    with pytest.raises(UserError, match=RUN_FILE):
        check_resume(str(tmp_path), FLAGS)


def test_curves_of_steps_after_the_checkpoint_are_dropped(tmp_path):
    """As is the line that was cut short when the run was killed."""
    with RunLog(str(tmp_path), 0, Schedule(10, 1000, True, 0)) as log:
        for step in (1, 2, 3):
            log.training(step, METRICS)
    with open(str(tmp_path / CURVES_FILE), 'a') as file:
        file.write('train,4,0.4,1')
    assert [row['step'] for row in read_curves(str(tmp_path / CURVES_FILE))] == ['1', '2', '3']
    with RunLog(str(tmp_path), 2, Schedule(10, 1000, True, 0)) as log:
        log.training(3, dict(METRICS, lr=0.5))
    rows = read_curves(str(tmp_path / CURVES_FILE))
    assert [(row['step'], row['lr']) for row in rows] == [('1', '0.001'), ('2', '0.001'), ('3', '0.5')]
    assert [row['epoch'] for row in rows] == ['0.1000', '0.2000', '0.3000']


def test_a_new_run_keeps_the_curves_of_another(tmp_path, caplog):
    caplog.set_level('INFO')
    for step in (7, 8, 9):
        with RunLog(str(tmp_path), 0, Schedule(10, 1000, True, 0)) as log:
            assert log.checked == {'validation': [], 'evaluation': []}
            log.validation(step, 3, 'tag', METRICS)
    names = 'curves.csv', 'earlier-curves.csv', 'earlier-2-curves.csv'
    assert [row['step'] for name in names for row in read_curves(str(tmp_path / name))] == ['9', '7', '8']
    assert 'curves.csv is of an earlier run: kept as %s' % (tmp_path / names[1]) in caplog.text
    with RunLog(str(tmp_path), 10, Schedule(10, 1000, True, 0)) as log:
        assert log.checked == {'validation': [9], 'evaluation': []}


def test_an_interval_has_the_means_since_the_last_line():
    waited = [100.0]
    interval = Interval(waited=lambda: waited[0])
    for value in (1.0, 2.0, 6.0):
        interval.add({'loss': value})
    waited[0] += 1e-9
    means = interval.means(batchsize=4)
    assert means['loss'] == pytest.approx(3) and means['examples_per_sec'] > 0 and 0 <= means['data_wait'] < 1
    interval.restart()
    interval.add({'loss': 8.0})
    assert interval.means(batchsize=4)['loss'] == 8


def test_a_loss_that_stays_far_above_the_backgrounds_is_told_once(tmp_path, caplog):
    def warnings(*steps_and_losses):
        caplog.clear()
        for step, loss in steps_and_losses:
            log.training(step, dict(METRICS, loss_ll=loss))
        return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']

    with RunLog(str(tmp_path), 0, Schedule(100, 1000, True, 0)) as log:
        assert not warnings((20, 50), (100, 5), (200, 2.9), (220, 50), (400, 3.1))
        line, = warnings((420, 40), (440, 40), (900, 40))
        assert '200 steps' in line and '40 times' in line and '--lr' in line and '--warmup-steps' in line
        assert len(warnings((1000, 1), (1020, 9), (1220, 9))) == 1
