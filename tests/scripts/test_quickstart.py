"""scripts/quickstart.sh and scripts/demo.sh, in a copy of the checkout whose environment is there, on few steps.

The copy has spaces and quotes in its name, CDPATH is exported, and there is no HOME.
"""
import json
import os
import re
import shutil
import sys

import pytest

from conftest import ROOT, assert_user_error, run_bash
from test_layout import project_files


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what git tracks, whose environment is the one that runs the tests: setup_env.sh does nothing there."""
    folder = tmp_path_factory.mktemp('checkouts') / 'it\'s "my" checkout'
    for path in project_files():
        if not path.startswith('tests/'):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(ROOT / path), str(folder / path))
    (folder / 'scripts' / 'setup_env.sh').write_text('exit 0\n')
    for venv in ('.venv', '.venv-tf2'):
        os.symlink(sys.prefix, str(folder / venv))
    return folder


def run_script(checkout, name, *args, **variables):
    environment = {name: value for name, value in os.environ.items() if name != 'HOME'}
    wrong = checkout.parent / 'wrong'  # what CDPATH would lead to
    (wrong / 'scripts' / 'scripts').mkdir(parents=True, exist_ok=True)
    return run_bash('scripts/' + name, *args, cwd=checkout,
                    env=dict(environment, MPLBACKEND='Agg', CDPATH=str(wrong), **variables))


@pytest.fixture(scope='module')
def quickstart(checkout):
    """What the script says, with few and small images and one step."""
    script = checkout / 'scripts' / 'quickstart.sh'
    text = script.read_text()
    for large, small in (('--train=160 --val=32', '--train=8 --val=2'), ('--input-width=256 --input-height=256',
                         '--input-width=64 --input-height=64'), ('256x256', '64x64'), ('--runs=10', '--runs=1')):
        assert large in text
        text = text.replace(large, small)
    script.write_text(text)
    return run_script(checkout, 'quickstart.sh', 'my runs/quickstart', STEPS='1')


@pytest.mark.slow
def test_quickstart(checkout, quickstart):
    """Everything that it says is there."""
    result = quickstart
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'Restore pretrained weights... etcs/weights/mobilenet_thin_rendered.npy' in result.stderr
    lines = result.stdout.splitlines()
    graphs = [line for line in lines if line.startswith('my runs/quickstart/graph/') and ' MB, ' in line]
    assert [line.split(':')[0] for line in graphs][0] == 'my runs/quickstart/graph/graph_opt.pb'
    assert ('my runs/quickstart/graph/graph_int8.tflite' in result.stdout) == (sys.version_info >= (3, 10))
    assert lines[-len(graphs) - 2].startswith('AP ') and 'before this training' in lines[-len(graphs) - 2]
    assert lines[-1] == 'labelled people beside the people found: my runs/quickstart/people/people_val2017.png'
    for path in ('samples/contact_sheet.png', 'model/logs/validation.png', 'loss_ll_paf.png',
                 'people/people_val2017.png', 'graph/graph_opt.pb'):
        assert (checkout / 'my runs' / 'quickstart' / path).stat().st_size > 0, path


@pytest.mark.slow
def test_the_notebook(checkout, quickstart, sample_coco, tmp_path, monkeypatch):
    """Each cell of etcs/hosted_gpu.ipynb runs, with small settings in place of those of its first one; the quickstart
    has been run by then."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    notebook = nbformat.read(str(ROOT / 'etcs' / 'hosted_gpu.ipynb'), as_version=4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == 'code')
    names = re.findall(r'(?m)^([A-Z_, ]+) = ', settings.source)
    settings.source += '\n' + '\n'.join('%s = %r' % pair for pair in (
        ('CHECKOUT', str(checkout)), ('PYTHON', sys.executable), ('COCO', str(sample_coco)), ('RUNS', str(tmp_path)),
        ('QUICKSTART_STEPS', 1), ('BATCHSIZE', 2), ('STEPS', 1), ('SIZE', 64),
        ('TRAIN_FLAGS', '--workers=1 --valid-every=1')))
    assert set(', '.join(names).split(', ')) >= {'CHECKOUT', 'PYTHON', 'QUICKSTART_STEPS', 'STEPS', 'TRAIN_FLAGS'}
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    (tmp_path / 'quickstart').symlink_to(checkout / 'my runs' / 'quickstart')
    nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}).execute()
    for path in ('quickstart/people/people_val2017.png', 'model/model-1.index', 'frozen/graph_opt.pb', 'people.png'):
        assert (tmp_path / path).stat().st_size > 0, path
    shown = [output for cell in notebook.cells for output in cell.get('outputs', ())
             if output.output_type == 'display_data']
    assert len(shown) == 2 and all('image/png' in output.data for output in shown)


@pytest.mark.slow
def test_demo_on_one_photograph(checkout, sample_coco):
    photograph = sorted((sample_coco / 'val2017').iterdir())[0]
    shutil.copy(str(photograph), str(checkout / 'a photo.jpg'))
    result = run_script(checkout, 'demo.sh', 'a photo.jpg', 'found people', SCALE='64')
    assert result.returncode == 0, result.stderr
    assert (checkout / 'found people' / 'a photo_rendered.jpg').stat().st_size > 0
    assert 'people' in json.loads((checkout / 'found people' / 'a photo_keypoints.json').read_text())
    assert result.stdout.splitlines()[-1].endswith('found people/*_rendered.*')


@pytest.mark.parametrize('script, args, mention', [
    ('demo.sh', [], 'PHOTO_OR_FOLDER'), ('demo.sh', ['nowhere.jpg'], 'nowhere.jpg'),
    ('quickstart.sh', ['--fast'], '--from-scratch')])
def test_wrong_calls(script, args, mention):
    result = run_script(ROOT, script, *args)
    assert_user_error(result, mention)
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ''
