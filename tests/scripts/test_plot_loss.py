"""scripts/plot_loss.py on curves as train.py writes them."""
import cv2
import numpy as np
import pytest

import plot_loss
from conftest import assert_user_error, run_command, run_well
from pose_errors import UserError
from training.run_log import CURVE_COLUMNS


def write_curves(folder, heat, paf):
    """A curves.csv whose losses fall from `heat` and `paf`."""
    folder.mkdir(parents=True)
    lines = [','.join(CURVE_COLUMNS)]
    for step in range(1, 401):
        for kind in ('train', 'validation') if step % 100 == 0 else ('train',):
            row = dict.fromkeys(CURVE_COLUMNS, '')
            row.update(kind=kind, step=step, loss_ll_heat=heat / step, loss_ll_paf=paf / step,
                       loss_ll_background=heat + paf)
            lines.append(','.join(str(row[name]) for name in CURVE_COLUMNS))
    (folder / 'curves.csv').write_text('\n'.join(lines) + '\n')
    return folder


def colours(path):
    """How many pixels of a picture have the first and the second colour of a run, light or full."""
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2HSV)
    hue, saturation = pixels[..., 0].astype(int), pixels[..., 1]
    return [int(((abs(hue - centre) < 6) & (saturation > 60)).sum()) for centre in (102, 14)]


def test_both_pictures_show_both_runs_and_hold_their_figures(tmp_path):
    """As losses, or as shares of the loss of predicting only background."""
    write_curves(tmp_path / 'thin' / 'logs', 100, 200)
    write_curves(tmp_path / 'fast' / 'logs', 50, 100)
    out = tmp_path / 'out'
    run_well('scripts/plot_loss.py', tmp_path / 'thin' / 'logs', tmp_path / 'fast', '--output-dir=%s' % out)
    assert sorted(path.name for path in out.iterdir()) == ['loss_ll_heat.png', 'loss_ll_paf.png']
    for path in out.iterdir():
        assert min(colours(path)) > 500, (path, colours(path))
    thin, fast = (plot_loss.read_run(str(tmp_path / name), shares=True) for name in ('thin', 'fast'))
    np.testing.assert_allclose(thin['validation']['loss_ll_paf'], [200 / 300 / step for step in (100, 200, 300, 400)])
    np.testing.assert_allclose(thin['train']['loss_ll_heat'], fast['train']['loss_ll_heat'])  # twice of everything
    figure = plot_loss.draw([plot_loss.read_run(str(tmp_path / name)) for name in ('thin', 'fast')], ['thin', 'fast'],
                            'loss_ll_heat', 'title')
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert set(lines) == {'thin, training', 'thin, validation', 'fast, training', 'fast, validation'}
    np.testing.assert_allclose(lines['thin, validation'], [[s, 100 / s] for s in (100, 200, 300, 400)])
    assert len(lines['fast, training']) == 100
    np.testing.assert_allclose(lines['fast, training'][0], [2.5, 50 * np.mean([1, 1 / 2, 1 / 3, 1 / 4])])


def test_runs_are_named_by_their_folder():
    assert plot_loss.run_names(['models/thin/logs', 'models/fast']) == ['thin', 'fast']
    assert plot_loss.run_names(['a/run', 'b/run']) == ['a/run', 'b/run']


def test_no_curves(tmp_path):
    result = run_command('scripts/plot_loss.py', tmp_path, '--output-dir=%s' % (tmp_path / 'out'))
    assert_user_error(result, tmp_path, 'curves.csv')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, mention', [
    ('a,b\n1,2\n', 'is not a curves.csv'), (','.join(CURVE_COLUMNS) + '\n', 'no training loss yet'),
    (','.join(CURVE_COLUMNS) + '\n' + 'train,1,1,1,x,y,y,y,y,y,1,1,\n', 'is not a curves.csv')])
def test_broken_curves(tmp_path, content, mention):
    (tmp_path / 'curves.csv').write_text(content)
    with pytest.raises(UserError, match=mention):
        plot_loss.read_run(str(tmp_path))
