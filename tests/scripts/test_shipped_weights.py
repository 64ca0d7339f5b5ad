"""The weights in etcs/weights: what is in the files, and that they find people they have not seen."""
import numpy as np
import pytest

from conftest import ROOT, reference_data, run_well, summary_of
from networks import pretrained

RENDERED = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_rendered.npy'
ATHLETES = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_lspet.npy'
SMALL = ROOT / 'etcs' / 'weights' / 'mobilenet_v2_small.npy'
PHOTOGRAPHS = ROOT / 'etcs' / 'weights' / 'mobilenet_thin_photos.npy'
LIGHT = ROOT / 'etcs' / 'weights' / 'mobilenet_light_photos.npy'


def evaluate(weights, datapath, *flags):
    return summary_of(run_well('pose_eval.py', '--weights=%s' % weights, '--datapath=%s' % datapath, *flags))


@pytest.mark.parametrize('path', [RENDERED, ATHLETES, PHOTOGRAPHS, LIGHT, SMALL])
def test_files_are_small_and_in_half_precision(path):
    assert path.stat().st_size <= 4.5e6
    values = list(pretrained.read_weights(str(path)).values())
    of_half = sum(value.size for value in values if value.dtype == np.float16)
    assert of_half > 0.99 * sum(value.size for value in values)  # some variances are too large for it


@pytest.mark.slow
def test_rendered_people_are_found(tmp_path):
    """On unseen pictures, those that the quickstart validates on."""
    run_well('scripts/make_sample_coco.py', '--output-dir=%s' % (tmp_path / 'data'), '--train=0', '--val=32',
             '--seed=2020')
    summary = evaluate(RENDERED, tmp_path / 'data', '--scale=256', '--output-dir=%s' % (tmp_path / 'out'))
    assert summary['images'] == 32 and summary['AP'] >= 0.5


@pytest.mark.slow
def test_the_demos_weights_find_people_in_coco_photographs(tmp_path):
    """In any batch: the published graph's batch norm mixed the images of one."""
    data = reference_data('coco_mini')
    summaries = [evaluate(SMALL, data, '--split=train2017', '--input-size=256x256', '--limit=24',
                          '--batchsize=%d' % size, '--output-dir=%s' % (tmp_path / str(size))) for size in (1, 8)]
    assert summaries[0]['AP'] > 0.1 and summaries[0]['AP'] == pytest.approx(summaries[1]['AP'], abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize('weights, annotations, pck', [(ATHLETES, 'annotations', 0.35),
                                                       (PHOTOGRAPHS, 'annotations_coco17', 0.28),
                                                       (LIGHT, 'annotations_coco17', 0.25)])
def test_people_on_photographs_are_found(weights, annotations, pck, tmp_path):
    """On photographs held back from the training of both."""
    data = reference_data('lspet')
    split = data / annotations / 'person_keypoints_val2017.json'
    summary = evaluate(weights, data, '--split=%s' % split, '--imgpath=%s' % data, '--scale=224', '--limit=60',
                       '--flip', '--output-dir=%s' % (tmp_path / 'out'))
    assert summary['images'] == 60 and summary['PCK'] >= pck
