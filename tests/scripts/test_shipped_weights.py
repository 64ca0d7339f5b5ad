"""The weights in etcs/weights: what is in the files, and that they find people they have not seen."""
import numpy as np
import pytest

from conftest import ROOT, reference_data, run_well, summary_of
from networks import pretrained

RENDERED = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_rendered.npy'
ATHLETES = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_lspet.npy'
PHOTOGRAPHS = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_photos.npy'


def evaluate(weights, datapath, *flags):
    return summary_of(run_well('pose_eval.py', '--weights=%s' % weights, '--datapath=%s' % datapath, *flags))


@pytest.mark.parametrize('path', [RENDERED, ATHLETES, PHOTOGRAPHS])
def test_files_are_small_and_in_half_precision(path):
    assert path.stat().st_size <= 4.5e6
    assert {value.dtype for value in pretrained.read_weights(str(path)).values()} == {np.dtype(np.float16)}


@pytest.mark.slow
def test_rendered_people_are_found(tmp_path):
    """On unseen pictures, those that the quickstart validates on."""
    run_well('scripts/make_sample_coco.py', '--output-dir=%s' % (tmp_path / 'data'), '--train=0', '--val=32',
             '--seed=2020')
    summary = evaluate(RENDERED, tmp_path / 'data', '--scale=256', '--output-dir=%s' % (tmp_path / 'out'))
    assert summary['images'] == 32 and summary['AP'] >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize('weights, annotations, pck', [(ATHLETES, 'annotations', 0.35),
                                                       (PHOTOGRAPHS, 'annotations_coco17', 0.28)])
def test_people_on_photographs_are_found(weights, annotations, pck, tmp_path):
    """On photographs held back from the training of both."""
    data = reference_data('lspet')
    split = data / annotations / 'person_keypoints_val2017.json'
    summary = evaluate(weights, data, '--split=%s' % split, '--imgpath=%s' % data, '--scale=224', '--limit=60',
                       '--flip', '--output-dir=%s' % (tmp_path / 'out'))
    assert summary['images'] == 60 and summary['PCK'] >= pck
