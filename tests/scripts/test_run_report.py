"""scripts/report.py: the page of a run says what its files say."""
import json

import numpy as np
import pytest

import report
from conftest import assert_user_error, run_command, run_well
from pages import Page
from pose_errors import UserError
from train_runs import train_small
from training.curves import read_curves
from training.run_log import CURVE_COLUMNS

LOSSES = 'Loss of the last stage', 'Its heatmaps', 'Its PAFs'
HOSTILE = '<script>alert("&")</script>'


def write_run(folder, kinds):
    """A run whose losses are 1000 / step; `kinds` of rows every 100 of 400 steps besides those of training."""
    (folder / 'logs').mkdir(parents=True)
    run = {'flags': {'model': 'mobilenet_thin', 'batchsize': 4, 'accumulate': 2, 'max_steps': 500, 'tag': HOSTILE,
                     'limit': None},
           'starts': [{'command': 'train.py --tag=%s' % HOSTILE, 'versions': {'numpy': '1'}}, {'command': 'again'}, 7]}
    (folder / 'run.json').write_text(json.dumps(run))
    lines = [','.join(CURVE_COLUMNS)]
    for step in range(1, 401):
        for kind in ['train'] + (kinds if step % 100 == 0 else []):
            row = dict.fromkeys(CURVE_COLUMNS, '')
            row.update(kind=kind, step=step, epoch=step / 50)
            if kind == 'evaluation':
                row['AP'] = step / 1000
            else:
                row.update(dict.fromkeys(('loss', 'loss_ll', 'loss_ll_heat', 'loss_ll_paf'), 1000 / step),
                           loss_ll_background=7)
            if kind == 'train':
                row.update(lr=0.001, examples_per_sec=16, data_wait=0.25)
            lines.append(','.join(str(row[name]) for name in CURVE_COLUMNS))
    (folder / 'logs' / 'curves.csv').write_text('\n'.join(lines) + '\n')
    return str(folder)


@pytest.mark.parametrize('kinds', [[], ['validation'], ['validation', 'evaluation']])
def test_figures_are_those_of_the_files(tmp_path, kinds):
    folder = write_run(tmp_path / '<b>run', kinds)
    page = Page(report.report(folder, *report.read(folder)))
    tiles = page.below['Training of mobilenet_thin: <b>run']
    assert dict(zip(tiles[1::2], tiles[::2])) == dict(
        [('step of 500', '400'), ('epoch', '8.00')]
        + [('best validation loss, step 400', '2.5')] * ('validation' in kinds)
        + [('best AP, step 400', '0.400')] * ('evaluation' in kinds) + [('training', '0:03:20')])
    last = '%.4g' % np.mean([1000 / step for step in range(381, 401)])
    none = '\u2013'
    assert page.tables['Losses'][1:4] == [
        [title, '1000', last] + (['2.5', '2.5'] if kinds else [none, none]) for title in LOSSES]
    assert page.tables['Pace'] == [['examples', '3200'], ['time in training steps', '0:03:20'],
                                   ['examples per second', '16'], ['waiting for data', '25%'], ['starts', '3']]
    assert page.tables['Settings'] == [
        ['start 1', 'train.py --tag=' + HOSTILE], ['start 2', 'again'], ['--accumulate', '2'], ['--batchsize', '4'],
        ['--max-steps', '500'], ['--model', 'mobilenet_thin'], ['--tag', HOSTILE]]
    assert [image['alt'] for image in page.images] == list(LOSSES) + ['AP on the validation images'] * (
        'evaluation' in kinds) + ['Learning rate', 'Examples per second']


@pytest.mark.slow
def test_a_real_run(sample_coco, tmp_path):
    train_small(sample_coco, tmp_path / 'run', '--max-steps=6', '--valid-every=3')
    result = run_well('scripts/report.py', tmp_path / 'run')
    assert result.stdout == '%s\n' % (tmp_path / 'run' / 'report.html') and result.stderr == ''
    page = Page((tmp_path / 'run' / 'report.html').read_bytes())
    losses = [float(row['loss_ll']) for row in read_curves(str(tmp_path / 'run' / 'logs' / 'curves.csv'))
              if row['kind'] == 'validation']
    tiles = page.below['Training of small: run']
    assert tiles[:2] == ['6', 'step of 6'] and '%.4g' % min(losses) in tiles
    assert 'true and predicted maps of validation images' in [image['alt'] for image in page.images]
    assert ['--batchsize', '2'] in page.tables['Settings']


def test_wrong_folders(tmp_path):
    result = run_command('scripts/report.py', tmp_path)
    assert_user_error(result, 'run.json', tmp_path)
    assert len(result.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []
    (tmp_path / 'run.json').write_text('{"flags": {}}')
    with pytest.raises(UserError, match='no curves.csv'):
        report.read(str(tmp_path))
    write_run(tmp_path / 'run', [])
    path = tmp_path / 'run' / 'logs' / 'curves.csv'
    path.write_text(path.read_text().splitlines()[0] + '\n')
    with pytest.raises(UserError, match='no training loss yet'):
        report.read(str(tmp_path / 'run'))
