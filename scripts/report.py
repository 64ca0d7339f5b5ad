"""A training run as a web page that is one file: where it is, its curves, its settings.

    python3 scripts/report.py RUN [--output=RUN/report.html]

RUN is the run's --modelpath, with run.json and logs/curves.csv. It may still be running.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli

pose_cli.prepare_process()

import numpy as np

import pose_draw
import pose_files
from annotations.images import BadSample, read_photograph
from annotations.skeleton import RUN_FILE
from inference.page import NONE, chart, grid, page, paragraph, picture, section, table, tiles
from plot_loss import BACKGROUND, averaged, find_curves, read_columns, run_names
from pose_errors import UserError
from training.curves import read_run

LOSSES = (('loss_ll', 'Loss of the last stage'), ('loss_ll_heat', 'Its heatmaps'), ('loss_ll_paf', 'Its PAFs'))
SCHEDULE = (('lr', 'Learning rate'), ('examples_per_sec', 'Examples per second'))
COLUMNS = ('step', 'epoch', BACKGROUND, 'AP', 'data_wait') + tuple(row[0] for row in LOSSES + SCHEDULE)
KINDS = ('train', 'validation', 'evaluation')
FEW_ROWS = 20  # of curves, which then get markers
PICTURE_WIDTH = 1400  # pixels, at most, of the validation's picture


def read(folder):
    """(run.json, {kind: {column: float64 (N,)}}, path of the validation's picture) of a run. Raises UserError."""
    run = read_run(folder)
    if not run:
        raise UserError('no %s in %s; give the --modelpath of a training run' % (RUN_FILE, folder))
    try:
        path = find_curves(folder)
    except UserError:
        path = find_curves(str(run.get('flags', {}).get('logpath')))
    return run, read_columns(path, COLUMNS, KINDS), os.path.join(os.path.dirname(path), 'validation.png')


def report(folder, run, curves, validation_picture):
    """The page, as bytes."""
    flags, train = run.get('flags', {}), curves['train']
    charts = [_loss_chart(curves, *loss) for loss in LOSSES]
    if len(curves['evaluation']['step']):
        charts.append(_ap_chart(curves['evaluation']))
    return page(
        'Training of %s: %s' % (flags.get('model', 'a network'), run_names([folder])[0]),
        tiles(_state(flags, curves)),
        section('Losses', paragraph('Per image. Last: the mean of the last twentieth of the training.', 'note'),
                _losses(curves), grid(charts)),
        section('Pace', table(None, _pace(flags, run, train)),
                grid([chart(title, [_training_line(train, column)], 'step', title) for column, title in SCHEDULE])),
        _validation(validation_picture),
        section('Settings', table(None, _settings(run), 'words')))


def _state(flags, curves):
    """The most important figures: [(name, text)]."""
    train, validation, ap = (curves[kind] for kind in KINDS)
    steps, most = int(train['step'][-1]), flags.get('max_steps')
    figures = [('step' + (' of %s' % most if most else ''), '%d' % steps),
               ('epoch' + ('' if most else ' of %s' % flags.get('max_epoch', NONE)), '%.2f' % train['epoch'][-1])]
    if len(validation['step']):
        best = validation['loss_ll'].argmin()
        figures.append(('best validation loss, step %d' % validation['step'][best], short(validation['loss_ll'][best])))
    if len(ap['step']):
        best = ap['AP'].argmax()
        figures.append(('best AP, step %d' % ap['step'][best], '%.3f' % ap['AP'][best]))
    return figures + [('training', duration(_seconds(flags, train)))]


def _losses(curves):
    train, validation = curves['train'], curves['validation']
    last = max(1, len(train['step']) // 20)
    rows = []
    for loss, title in LOSSES + ((BACKGROUND, 'Of predicting only background'),):
        best = validation[loss].min() if len(validation[loss]) else None
        rows.append([title, short(train[loss][0]), short(train[loss][-last:].mean()),
                     short(validation[loss][-1] if len(validation[loss]) else None), short(best)])
    return table(['', 'training: first', 'last', 'validation: last', 'lowest'], rows)


def _training_line(train, column):
    """For page.chart; a line of a single point shows nothing without a marker."""
    style = {'marker': '.'} if len(train['step']) < FEW_ROWS else {}
    return ('training', averaged(train['step']), averaged(train[column])), style


def _loss_chart(curves, loss, title):
    train, validation = curves['train'], curves['validation']
    lines = [_training_line(train, loss)]
    if len(validation['step']):
        lines.append((('validation', validation['step'], validation[loss]), {'marker': 'o', 'markersize': 4}))
    if loss == 'loss_ll':
        lines.append((('only background', averaged(train['step']), averaged(train[BACKGROUND])),
                      {'linestyle': ':', 'color': '#777777'}))
    return chart(title, lines, 'step', 'loss per image', logarithmic=True)


def _ap_chart(ap):
    return chart('AP on the validation images', [(('AP', ap['step'], ap['AP']), {'marker': 'o', 'markersize': 4})],
                 'step', 'AP')


def _pace(flags, run, train):
    seconds, starts = _seconds(flags, train), run.get('starts', [])
    examples = train['step'][-1] * _batch(flags)
    return [('examples', '%d' % examples), ('time in training steps', duration(seconds)),
            ('examples per second', short(examples / seconds)),
            ('waiting for data', '%.0f%%' % (100 * train['data_wait'].mean())), ('starts', '%d' % len(starts))]


def _batch(flags):
    """Examples of a step."""
    return int(np.prod([flags[name] for name in ('batchsize', 'accumulate') if isinstance(flags.get(name), int)]))


def _seconds(flags, train):
    """Of the training steps, by their speeds: curves.csv has no clock."""
    examples = np.diff(train['step'], prepend=0) * _batch(flags)
    return float(np.sum(examples / np.maximum(train['examples_per_sec'], 1e-9)))


def _validation(path):
    """The picture of the last validation, where there is one."""
    try:
        pixels = read_photograph(path)
    except BadSample:
        return ''
    pixels = pose_draw.shrunk(pixels, PICTURE_WIDTH / pixels.shape[1])
    return section('Last validation', picture(pixels, 'true and predicted maps of validation images'))


def _settings(run):
    """Commands, versions and flags: [(name, text)]."""
    starts = [start for start in run.get('starts', []) if isinstance(start, dict)]
    rows = [('start %d' % number, start.get('command', NONE)) for number, start in enumerate(starts, 1)]
    versions = starts[-1].get('versions') if starts else None
    rows += sorted(versions.items()) if isinstance(versions, dict) else []
    return rows + [('--' + name.replace('_', '-'), value) for name, value in sorted(run.get('flags', {}).items())
                   if value is not None]


def short(value):
    """A loss or speed in four digits."""
    return NONE if value is None or not np.isfinite(value) else '%.4g' % value


def duration(seconds):
    """'1:02:03', hours first."""
    return '%d:%02d:%02d' % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description='Make a web page of a training run.')
    parser.add_argument('run', metavar='RUN', help='--modelpath of the run')
    parser.add_argument('--output', metavar='FILE', help='of the page (report.html in RUN)')
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    path = flags.output or os.path.join(flags.run, 'report.html')
    pose_files.write_file(path, report(flags.run, *read(flags.run)))
    print(path)


if __name__ == '__main__':
    pose_cli.run(main)
