"""What a trainer asks of a worker: checked before anything is made by it."""
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from batches.loader import SAMPLE_SOURCES
from pose_errors import UserError
from pose_files import sources_digest
from remote.protocol import augmentation_ranges, check_settings
from wire_ends import RANGES, SETTINGS

GOOD = dict(SETTINGS, augmentation=RANGES, code=sources_digest(*SAMPLE_SOURCES), skeleton=COCO_SKELETON.to_json(), category='',
            negatives=0.0)


@pytest.mark.parametrize('change, mention', [
    ({'batchsize': 10 ** 9}, 'batchsize'), ({'input_width': '64'}, 'input_width'), ({'stride': 7}, 'stride'),
    ({'seed': None}, 'seed'), ({'seed': 1 << 63}, 'seed'), ({'stride': 0}, 'stride'),
    ({'skeleton': '{}'}, 'skeleton'), ({'skeleton': None}, 'skeleton'), ({'skeleton': '[' * 10000}, 'skeleton'),
    ({'skeleton': COCO_SKELETON.to_json().replace('0.026', '1' + '0' * 400)}, 'skeleton'),
    ({'category': 5}, 'skeleton'), ({'new': 1}, 'new'),
    ({'batchsize': 65536, 'input_width': 8192, 'input_height': 8192, 'stride': 8192}, '65536 images of 8192x8192'),
    ({'batchsize': 65536, 'input_width': 368, 'input_height': 368}, '65536 images of 368x368'),
    ({'augmentation': {'scale': [1, 2]}}, 'augmentation'), ({'augmentation': [1]}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[2, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=['1', '2'])}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[1e-300, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, offset=[0, 1e300])}, 'augmentation'),
    ({'augmentation': dict(RANGES, flip_probability=2)}, 'augmentation'),
    ({'augmentation': dict(RANGES, angle=[0, float('nan')])}, 'augmentation'),
    ({'code': []}, 'same version'), ({'code': '0' * 12}, 'same version')])
def test_a_worker_refuses_settings_that_it_cannot_keep(change, mention):
    check_settings(GOOD)
    assert augmentation_ranges(GOOD)._asdict() == RANGES
    with pytest.raises(UserError) as error:
        check_settings(dict(GOOD, **change))
    assert mention in str(error.value)


def test_settings_that_lack_something():
    for name in GOOD:
        with pytest.raises(UserError, match=name):
            check_settings({key: value for key, value in GOOD.items() if key != name})


def test_any_value_in_any_setting_is_kept_or_refused():
    rng = np.random.RandomState(0)
    values = [None, True, -1, 0, 1 << 62, 1.5, float('inf'), '', 'x' * 1000, b'\xff', [], [[]], {}, {'scale': []}]
    for name in GOOD:
        for value in values:
            try:
                check_settings(dict(GOOD, **{name: value}))
            except UserError as error:
                assert len(str(error)) < 600
    for _ in range(200):
        changes = {name: values[rng.randint(len(values))] for name in rng.choice(sorted(GOOD), 3)}
        with pytest.raises(UserError):
            check_settings(dict(GOOD, **dict(changes, new=0)))
