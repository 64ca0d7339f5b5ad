"""scripts/check_gpus.sh on CPU devices, which is all that it can find here."""
import functools
import json
import os
import sys

import pytest

import check_gpus
import small_network
from bare_processes import BareProcesses
from conftest import PROGRAMS, assert_user_error, program_environment, run_bash


@pytest.mark.slow
@pytest.mark.parametrize('flags', ([], ['--towers-per-gpu=2']), ids=('a GPU each', 'one GPU for all'))
def test_towers_and_processes_have_the_same_loss(flags, monkeypatch, capsys):
    """With batch norm, whose statistics are each tower's own: all get the same samples. CPU devices are as many as are
    asked for."""
    program = str(PROGRAMS / 'bare_small.py')
    monkeypatch.setattr(check_gpus, 'BareProcesses', functools.partial(BareProcesses, program=program))
    monkeypatch.setattr(os, 'environ', program_environment(CUDA_VISIBLE_DEVICES=''))
    monkeypatch.setattr(sys, 'argv', ['check_gpus.py', '--models=small', '--input-size=64x64', '--batchsize=2',
                                      '--steps=3', '--json'] + flags)
    assert check_gpus.main() == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)['rows']
    assert [(row['processes'], row['towers'], row['reduction']) for row in rows] == [
        (1, 1, 'none'), (1, 2, 'ring'), (2, 2, 'ring')]
    assert all(row['agrees'] and row['images_per_s'] > 0 for row in rows)
    assert rows[0]['scaling'] == 1 and 'CPU devices' in table[0]


def test_each_process_sees_gpus_of_its_own_or_the_one_that_all_share(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [check_gpus.visible(4, k, 2, 1)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['0,1', '2,3']
    assert [check_gpus.visible(4, k, 1, 2)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['0', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [check_gpus.visible(2, k, 1, 2)['CUDA_VISIBLE_DEVICES'] for k in range(2)] == ['5', '5']
    assert check_gpus.visible(0, 1, 1, 1) == {}


@pytest.mark.slow
def test_an_all_reduce_that_reduces_nothing_is_found(monkeypatch):
    """Two towers with the same samples would never show it."""
    import bare_training
    monkeypatch.setattr(bare_training, 'all_reduce', lambda tensors, group, key: tensors)
    monkeypatch.setattr('training.towers.all_reduce', lambda tensors, group, key: tensors)
    training = bare_training.BareTraining(small_network.NAME, (64, 64), batchsize=4, towers=2)
    found = training.verify()
    assert not found['sum_is_right'] and not found['replicas_agree']


def test_more_towers_than_gpus_are_refused():
    script = 'scripts/check_gpus.sh'
    assert_user_error(run_bash(script, '--towers=3', CUDA_VISIBLE_DEVICES='0,1'), '--towers=3', 'only 2 GPUs')
    assert_user_error(run_bash(script, '--towers=2', '--towers-per-gpu=2'), '--towers-per-gpu=2', 'one of them')
    assert_user_error(run_bash(script, '--models=openpos'), "'openpos' is not a network")
