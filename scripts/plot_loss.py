"""Draw the loss curves of one or more training runs.

    python3 scripts/plot_loss.py LOGDIR... [--output-dir=logs/curves]

A LOGDIR is a folder with the curves.csv that train.py writes, or the run's --modelpath. Draws loss_ll_heat.png and
loss_ll_paf.png: the loss of the last stage per image, training and validation, all runs in one picture. With --shares
it is divided by the loss_ll of predicting only background on the same images, so that networks of different strides
and inputs compare, and the files are called loss_ll_heat_share.png and loss_ll_paf_share.png.
"""
import io
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli

pose_cli.prepare_process()

import numpy as np

import pose_files
from pose_errors import UserError
from training.curves import CURVES_FILE, read_curves

CURVES = (('loss_ll_heat', 'Heatmap loss, last stage'), ('loss_ll_paf', 'PAF loss, last stage'))
BACKGROUND = 'loss_ll_background'
SMOOTHED_POINTS = 100  # training loss: at most so many points are drawn, each the mean of its neighbours


def find_curves(folder):
    """The curves.csv of a run, given its log folder or its --modelpath. Raises UserError when there is none."""
    for path in (os.path.join(folder, CURVES_FILE), os.path.join(folder, 'logs', CURVES_FILE)):
        if os.path.isfile(path):
            return path
    raise UserError('no %s in %s; give the --logpath or --modelpath of a training run' % (CURVES_FILE, folder))


def read_run(folder, shares=False):
    """{'train' or 'validation': {'step' or a loss: float64 (N,)}} of one run. Raises UserError when it is broken.

    shares: the losses as shares of the loss_ll of predicting only background.
    """
    names = ('step',) + tuple(name for name, _ in CURVES) + ((BACKGROUND,) if shares else ())
    run = read_columns(find_curves(folder), names, ('train', 'validation'))
    for rows in run.values() if shares else ():
        rows.update({name: rows[name] / rows[BACKGROUND] for name, _ in CURVES})
    return run


def read_columns(path, names, kinds):
    """{kind of row: {column: float64 (N,), NaN where there is nothing}} of a curves.csv. Raises UserError when it is
    broken, or has no training rows."""
    try:
        rows = read_curves(path)
        columns = {kind: {name: np.array([float(row[name] or 'nan') for row in rows if row['kind'] == kind])
                          for name in names} for kind in kinds}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError('%s is not a curves.csv of train.py (%s); start the training again or leave it out'
                        % (path, error))
    if not len(columns['train']['step']):
        raise UserError('%s holds no training loss yet; wait for the first log line' % path)
    return columns


def run_names(folders):
    """A short name for each run: the last folder of its path that is not `logs`; the path where these coincide."""
    def last(folder):
        parts = os.path.normpath(os.path.abspath(folder)).split(os.sep)
        return parts[-2] if parts[-1] == 'logs' and len(parts) > 1 else parts[-1]
    names = [last(folder) for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def averaged(values, points=SMOOTHED_POINTS):
    """Means of consecutive groups of values, so that at most `points` remain."""
    size = -(-len(values) // points)
    return np.array([group.mean() for group in np.split(values, range(size, len(values), size))])


def draw(runs, names, loss, title, unit='per image'):
    """One figure: training as thin lines, validation as thick ones with dots, a colour per run; logarithmic loss."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib import ticker
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    for number, (run, name) in enumerate(zip(runs, names)):
        colour = 'C%d' % (number % 10)
        train, validation = run['train'], run['validation']
        axes.plot(averaged(train['step']), averaged(train[loss]), color=colour, linewidth=1, alpha=0.6,
                  marker='.', markersize=3, label=name + ', training')
        if len(validation['step']):
            axes.plot(validation['step'], validation[loss], color=colour, linewidth=2, marker='o', markersize=4,
                      label=name + ', validation')
    axes.set(title=title, xlabel='step', ylabel='%s, %s' % (loss, unit), yscale='log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(True, which='both', alpha=0.25)
    # Beside the curves: six runs have twelve lines.
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), fontsize='small')
    figure.tight_layout()
    return figure


def parse_flags(args=None):
    parser = pose_cli.ArgumentParser(description='Draw the loss curves of training runs.')
    parser.add_argument('logdirs', nargs='+', metavar='LOGDIR', help='--logpath or --modelpath of a run')
    parser.add_argument('--shares', action='store_true', help='losses as shares of that of predicting only background')
    parser.add_argument('--output-dir', default=os.path.join('logs', 'curves'), help='where the pictures go')
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    runs = [read_run(folder, flags.shares) for folder in flags.logdirs]
    pose_files.make_folder(flags.output_dir)
    unit, suffix = ('of predicting only background', '_share') if flags.shares else ('per image', '')
    for loss, title in CURVES:
        path = os.path.join(flags.output_dir, loss + suffix + '.png')
        picture = io.BytesIO()
        draw(runs, run_names(flags.logdirs), loss, title, unit).savefig(picture, format='png', bbox_inches='tight')
        pose_files.write_file(path, picture.getvalue())
        print(path)


if __name__ == '__main__':
    pose_cli.run(main)
