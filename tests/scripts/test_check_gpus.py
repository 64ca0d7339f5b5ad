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
def test_towers_and_processes_that_share_a_gpu_have_the_same_loss():
    """On CPU devices, which are then as many."""
    result = check_gpus('--models=mobilenet_thin', '--input-size=64x64', '--batchsize=2', '--steps=2', '--json',
                        '--towers-per-gpu=2', CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])['rows']
    assert [(row['processes'], row['towers'], row['reduction']) for row in rows] == [
        (1, 1, 'none'), (1, 2, 'ring'), (2, 2, 'ring')]
    assert all(row['agrees'] for row in rows)


def test_each_process_sees_gpus_of_its_own_or_the_one_that_all_share(monkeypatch):
    import check_gpus as script
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [script.visible(4, k, 2, 1)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['0,1', '2,3']
    assert [script.visible(4, k, 1, 2)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['0', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [script.visible(2, k, 1, 2)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['5', '5']
    assert script.visible(0, 1, 1, 1) == {}


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
    assert_user_error(check_gpus('--towers=2', '--towers-per-gpu=2'), '--towers-per-gpu=2', 'one of them')
    assert_user_error(check_gpus('--models=openpos'), "'openpos' is not a network")
