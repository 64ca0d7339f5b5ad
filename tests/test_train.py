"""train.py as a user runs it: one run on rendered data and what it leaves behind, and every way to call it wrongly."""
import json
import re
import shutil
import sys
import time
import types

import cv2
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from conftest import assert_user_error, run_command, run_well
from pose_dataset import PoseDataset
from pose_errors import UserError
from train_runs import SMALL, folders
from training import config
from training.cluster import ALONE
from training.run_folder import StartWeights, check_start
from training.run_log import LOSSES, read_curves, tag

STEPS, BATCHSIZE, VALIDATION_IMAGES = 12, 8, 6
LOG_LINE = re.compile(r'epoch=([\d.]+) step=(\d+), ([\d.]+) examples/sec lr=([\d.]+), '
                      r'loss=([\d.e+]+), loss_ll=([\d.e+]+), loss_ll_paf=([\d.e+]+), loss_ll_heat=([\d.e+]+), '
                      r'q=(\d+), data_wait=(\d+)%')


@pytest.fixture(scope='module')
def run(sample_coco, tmp_path_factory):
    """A run of 12 steps with two towers, on data in which one JPEG is cut short."""
    folder = tmp_path_factory.mktemp('train')
    shutil.copytree(str(sample_coco), str(folder / 'data'))
    broken = sorted((folder / 'data' / 'train2017').glob('*.jpg'))[3]
    broken.write_bytes(broken.read_bytes()[:2000])
    log = run_well('train.py', *folders(folder / 'data', folder / 'model'), '--gpus=2', '--batchsize=%d' % BATCHSIZE,
                   '--max-steps=%d' % STEPS, '--save-every=3', '--valid-every=5', '--eval-every=10', '--keep=2',
                   '--tag=first', '--warmup-steps=4', *SMALL).stderr
    return types.SimpleNamespace(log=log, model=folder / 'model', data=folder / 'data', broken=broken.name)


def curves(run, kind):
    return [row for row in read_curves(str(run.model / 'logs' / 'curves.csv')) if row['kind'] == kind]


def events(run):
    """{'train' or 'validation', then tag: [(step, value or encoded image)]} of a run's TensorBoard event files."""
    found = {}
    for path in sorted((run.model / 'logs').glob('*/events*')):
        for event in tf.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = value.image.encoded_image_string if value.HasField('image') else value.simple_value
                found.setdefault(path.parent.name + '/' + value.tag, []).append((event.step, content))
    return found


@pytest.mark.slow
def test_every_step_is_logged_once_in_the_documented_form(run):
    """As are warnings; the log ends with where things are."""
    lines = [LOG_LINE.search(line) for line in run.log.splitlines() if 'examples/sec' in line]
    assert all(lines), run.log
    assert [int(line.group(2)) for line in lines] == list(range(1, STEPS + 1))
    samples = int(re.search(r'(\d+) samples, (\d+) steps per epoch', run.log).group(1))
    for line in lines:
        epoch, step, _, rate, loss, loss_ll, paf, heat = map(float, line.groups()[:8])
        assert epoch == pytest.approx(step / (samples // BATCHSIZE), abs=0.006)
        cosine = (1 + np.cos(np.pi * (step - 1) / STEPS)) / 2
        assert rate == pytest.approx(0.001 * cosine * min(1, step / 4), abs=1e-6)
        assert loss_ll == pytest.approx(paf + heat, rel=1e-4) and loss > loss_ll
    assert run.log.count('TensorFlow sees no GPU: the 2 towers run on CPU devices') == 1
    assert len(re.findall(r'WARNING skipped bad sample 1: \S*%s is a truncated JPEG' % run.broken, run.log)) == 1
    assert 'bad samples skipped, from 1 files' in run.log
    assert 'done: step 12, checkpoints in %s' % run.model in run.log


@pytest.mark.slow
def test_validation_counts_every_image_and_its_loss_is_that_of_the_saved_weights(run):
    """The last validation, of batches of 4 and 2, against one image at a time with weights read from the checkpoint."""
    lines = re.findall(r'validation\((\d+)\) first loss=([\d.e+]+), loss_ll=([\d.e+]+), loss_ll_paf=([\d.e+]+), '
                       r'loss_ll_heat=([\d.e+]+)', run.log)
    assert [int(line[0]) for line in lines] == [VALIDATION_IMAGES] * 3
    assert [int(row['step']) for row in curves(run, 'validation')] == [5, 10, 12]
    background = float(re.search(r'predicting only background: validation\(6\) loss_ll=([\d.]+)', run.log).group(1))
    assert float(curves(run, 'validation')[0]['loss_ll_background']) == pytest.approx(background, rel=1e-4)
    dataset = PoseDataset(str(run.data), 'val2017', 64, 64, 8)
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, (1, 64, 64, 3))
        network = networks.get_network('mobilenet_thin', image, is_training=False)
        tf.train.Saver().restore(session, tf.train.latest_checkpoint(str(run.model)))
        totals = dict.fromkeys(LOSSES, 0.0)
        for index in range(VALIDATION_IMAGES):
            sample = dataset.validation_sample(index)
            stages = session.run(network.stages, {image: sample.image[None]})
            squares = [[0.5 * float(((sample.mask * (maps[0] - truth)) ** 2).sum())
                        for maps, truth in zip(stage, (sample.paf, sample.heatmap))] for stage in stages]
            totals['loss'] += np.sum(squares)
            totals['loss_ll_paf'] += squares[-1][0]
            totals['loss_ll_heat'] += squares[-1][1]
            totals['loss_ll'] += sum(squares[-1])
    reported = curves(run, 'validation')[-1]
    for name in LOSSES:
        assert float(reported[name]) == pytest.approx(totals[name] / VALIDATION_IMAGES, rel=1e-4), name


@pytest.mark.slow
def test_keeps_as_many_checkpoints_as_asked_and_the_best_apart(run):
    assert sorted(path.name for path in run.model.glob('*.index')) == ['model-12.index', 'model-9.index']
    assert re.findall(r'saved the checkpoint of step (\d+)', run.log) == ['0', '3', '6', '9', '12']
    found = {int(step): float(ap)
             for ap, step in re.findall(r'best validation so far: AP=(\S+) at step (\d+),', run.log)}
    record = json.loads((run.model / 'best' / 'best.json').read_text())
    assert record['step'] == max(found) and record['AP'] == pytest.approx(found[record['step']], rel=1e-5)
    assert set(found) <= {10, 12}, 'AP is measured every 10 steps and at the end'
    assert tf.train.latest_checkpoint(str(run.model / 'best')).endswith('model-%d' % record['step'])
    assert len(list((run.model / 'best').glob('*.index'))) == 1


@pytest.mark.slow
def test_curves_agree_with_the_log_and_tensorboard_with_the_curves(run):
    rows = curves(run, 'train')
    lines = LOG_LINE.findall(run.log)
    assert [int(row['step']) for row in rows] == [int(line[1]) for line in lines]
    for row, line in zip(rows, lines):
        for name, text in zip(('epoch', 'step', 'examples_per_sec', 'lr') + LOSSES + ('queue',), line):
            assert float(row[name]) == pytest.approx(float(text), rel=1e-3, abs=0.006), name
        assert 100 * float(row['data_wait']) == pytest.approx(float(line[9]), abs=0.6)
    assert [row['step'] for row in curves(run, 'evaluation')] == ['10', '12']
    tags = events(run)
    for name in LOSSES + ('lr', 'examples_per_sec', 'queue', 'data_wait'):
        steps, values = zip(*tags['train/' + tag(name)])
        assert list(steps) == [int(row['step']) for row in rows]
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-4)
    for name in LOSSES:
        assert [step for step, _ in tags['validation/' + tag(name)]] == [5, 10, 12]
    assert [step for step, _ in tags['validation/AP/AP']] == [10, 12]
    assert [step for step, _ in tags['train/run/flags']] == [0]


@pytest.mark.slow
def test_tensorboard_has_pictures_of_truth_and_prediction(run):
    pictures = events(run)['validation/pictures/validation']
    assert [step for step, _ in pictures] == [5, 10, 12]
    sheets = [cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) for _, encoded in pictures]
    # Four validation photographs, each with true and predicted heatmap, true and predicted PAF.
    assert sheets[0].shape[0] > 4 * 64 and sheets[0].shape[1] > 4 * 64
    assert sheets[0].std() > 10 and (sheets[0] != sheets[1]).any()  # the predictions change as the network learns
    width = sheets[0].shape[1]
    changed = (sheets[0] != sheets[2]).any(axis=(0, 2))
    assert not changed[:int(width * 0.24)].any() and changed[int(width * 0.26):int(width * 0.49)].any()
    np.testing.assert_array_equal(cv2.imread(str(run.model / 'logs' / 'validation.png')), sheets[-1])


@pytest.mark.slow
def test_run_json_tells_how_the_run_was_made(run):
    record = json.loads((run.model / 'run.json').read_text())
    start, = record['starts']
    assert 'train.py' in start['command'] and '--valid-every=5' in start['command']
    assert start['flags']['input_width'] == 64 and start['flags']['tag'] == 'first' and start['flags']['seed'] == 0
    assert set(vars(parse(['--datapath=x']))) == set(start['flags'])
    assert start['versions']['tensorflow'] == tf.__version__ and start['versions']['numpy'] == np.__version__
    assert start['versions']['opencv'] == cv2.__version__ and 'cuda' in start['versions']
    assert re.match(r'[0-9a-f]{40}|unknown', start['versions']['git'])


def parse(args):
    argv, sys.argv = sys.argv, ['train.py'] + [str(arg) for arg in args]
    try:
        return config.parse_flags()
    finally:
        sys.argv = argv


def accept(*args):
    flags = parse(args)
    config.check_flags(flags, ALONE)
    check_start(flags.modelpath, vars(flags), StartWeights(flags.model, flags.checkpoint, flags.pretrained))


def refusal(*args):
    """The message with which train.py refuses these flags, before it reads data."""
    with pytest.raises(UserError) as caught:
        accept(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture()
def good(sample_coco, tmp_path):
    """Flags that are accepted, to be spoiled."""
    return folders(sample_coco, tmp_path / 'new') + SMALL


@pytest.mark.parametrize('flag, mentions', [
    ('--batchsize=0', ['--batchsize', '0']),
    ('--batchsize=9.5', ['--batchsize', '9.5']),
    ('--batchsize=100000000', ['100000000 samples of 64x64', 'a smaller --batchsize']),
    ('--accumulate=100000000', ['6400000000 samples']),
    ('--gpus=3', ['--batchsize=64', '--gpus=3']),
    ('--gpus=0', ['--gpus']),
    ('--towers-per-gpu=3', ['--batchsize=64', '--gpus=1', '--towers-per-gpu=3']),
    ('--lr=fast', ['--lr', 'fast', '0.001']),
    ('--lr=0.1,', ['--lr']),
    ('--lr=-1', ['--lr', '-1']),
    ('--lr=nan', ['--lr', 'nan']),
    ('--weight-decay=1', ['--weight-decay', '1']),
    ('--optimizer=lars', ['--optimizer', 'lars']),
    ('--recipe=paper', ['--recipe=paper', 'cmu and vgg']),
    ('--accumulate=0', ['--accumulate']),
    ('--input-width=100', ['--input-width=100', 'stride 8', '96', '104']),
    ('--input-height=4', ['--input-height=4']),
    ('--model=resnet', ['resnet', 'mobilenet_thin']),
    ('--modul=cmu', ['--modul']),
    ('--datapath=/nowhere', ['/nowhere']),
    ('--imgpath=/nowhere', ['/nowhere']),
    ('--datapath=', ['--datapath', '--remote-data']),
    ('--checkpoint=/nowhere/model-1', ['/nowhere/model-1']),
    ('--pretrained=/nowhere.npy', ['/nowhere.npy', '--pretrained=none']),
    ('--modelpath=/dev/null/models', ['/dev/null/models']),
    ('--modelpath=models/\udcff', ['--modelpath', 'not UTF-8']),
    ('--seed=-1', ['--seed']),
    ('--save-every=0', ['--save-every']),
    ('--max-steps=-5', ['--max-steps']),
])
def test_bad_flags(good, flag, mentions):
    accept(*good)
    message = refusal(*good, flag)
    for mention in mentions:
        assert mention in message


def test_nccl_is_refused_where_towers_share_a_gpu(good):
    accept(*good, '--all-reduce=nccl')
    accept(*good, '--all-reduce=ring', '--towers-per-gpu=2')
    assert '--towers-per-gpu=2' in refusal(*good, '--all-reduce=nccl', '--towers-per-gpu=2')


def test_missing_pretrained_weights_are_no_reason_to_start_from_scratch(sample_coco, tmp_path, monkeypatch):
    monkeypatch.setenv('OPENPOSE_MODEL', str(tmp_path))
    message = refusal('--model=cmu', *folders(sample_coco, tmp_path / 'new'))
    assert 'openpose_coco.npy' in message and '--pretrained=none' in message
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_weights_to_start_from_are_named_once(good, run):
    message = refusal(*good, '--checkpoint=%s' % run.model, '--pretrained=vgg.npy')
    assert '--checkpoint' in message and '--pretrained' in message


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    result = run_command('train.py', '--model=mobilenet_fast', '--checkpoint=%s' % run.model,
                         *folders(run.data, tmp_path / 'new'), *SMALL)
    assert_user_error(result, 'a file of mobilenet_fast with --checkpoint=PATH')
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_told_before_any_data_is_read(good, tmp_path):
    (tmp_path / 'weights.npy').write_bytes(b'')
    assert 'weights.npy is not a .npy file' in refusal(*good, '--pretrained=%s' % (tmp_path / 'weights.npy'))


def test_a_set_without_validation_is_told_the_way(sample_coco, tmp_path):
    shutil.copytree(str(sample_coco), str(tmp_path / 'data'))
    (tmp_path / 'data' / 'annotations' / 'person_keypoints_val2017.json').unlink()
    flags = folders(tmp_path / 'data', tmp_path / 'new') + SMALL
    assert 'val2017' in refusal(*flags) and '--valid-every=0' in refusal(*flags)
    accept(*flags, '--valid-every=0')
    assert str(tmp_path) in refusal(*folders(tmp_path, tmp_path / 'new'), *SMALL)  # without annotations


@pytest.mark.slow
def test_a_moved_run_is_found_and_refused_without_its_run_json_or_its_checkpoints(run, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(str(run.model), str(moved))
    assert tf.train.latest_checkpoint(str(moved)) == str(moved / 'model-12')
    flags = folders(run.data, moved) + SMALL
    (moved / 'run.json').rename(moved / 'away')
    assert 'run.json' in refusal(*flags)
    (moved / 'away').rename(moved / 'run.json')
    for path in moved.glob('model-*.index'):
        path.unlink()
    assert_user_error(run_command('train.py', *flags), moved, 'model-12', 'reads whole')


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(sample_coco, tmp_path):
    """The real command, once for a flag and once for data that turns out to be broken."""
    shutil.copytree(str(sample_coco / 'annotations'), str(tmp_path / 'annotations'))
    shutil.copytree(str(sample_coco / 'train2017'), str(tmp_path / 'train2017'))
    (tmp_path / 'val2017').mkdir()
    annotation = tmp_path / 'annotations' / 'person_keypoints_train2017.json'
    annotation.write_text(annotation.read_text()[:5000])
    start = time.monotonic()
    result = run_command('train.py', *folders(tmp_path, tmp_path / 'm'), '--valid-every=0', *SMALL)
    assert_user_error(result, annotation.name)
    assert 'TensorFlow sees' not in result.stderr  # no session was on its way
    assert_user_error(run_command('train.py', '--datapath=%s' % tmp_path, '--batchsize=0'), '--batchsize')
    assert time.monotonic() - start < 120
