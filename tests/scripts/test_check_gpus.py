"""scripts/check_gpus.sh on CPU devices, which is all that it can find here."""
import json

import pytest

from conftest import assert_user_error, run_bash


def check_gpus(*flags, **variables):
    return run_bash('scripts/check_gpus.sh', *flags, **variables)


@pytest.mark.slow
def test_towers_and_processes_have_the_same_loss():
    """With batch norm, whose statistics are each tower's own: all get the same samples."""
    result = check_gpus('--models=mobilenet_thin', '--input-size=64x64', '--batchsize=2', '--steps=3', '--json',
                        CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0, result.stdout + result.stderr
    *table, last = result.stdout.splitlines()
    rows = json.loads(last)['rows']
    assert [(row['processes'], row['towers'], row['reduction']) for row in rows] == [
        (1, 1, 'none'), (1, 2, 'ring'), (2, 2, 'ring')]
    assert all(row['agrees'] and row['images_per_s'] > 0 for row in rows)
    assert rows[0]['scaling'] == 1 and 'CPU devices' in table[0]


@pytest.mark.slow
def test_an_all_reduce_that_reduces_nothing_is_found(monkeypatch):
    """Two towers with the same samples would never show it."""
    import bare_training
    monkeypatch.setattr(bare_training, 'all_reduce', lambda tensors, group, key: tensors)
    monkeypatch.setattr('training.towers.all_reduce', lambda tensors, group, key: tensors)
    training = bare_training.BareTraining('mobilenet_thin', (64, 64), batchsize=4, towers=2)
    found = training.verify()
    assert not found['sum_is_right'] and not found['replicas_agree']


def test_more_towers_than_gpus_are_refused():
    assert_user_error(check_gpus('--towers=3', CUDA_VISIBLE_DEVICES='0,1'), '--towers=3', 'only 2 GPUs')
    assert_user_error(check_gpus('--models=openpos'), "'openpos' is not a network")
