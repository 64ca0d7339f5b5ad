"""Loader processes: order and seeds, shared memory, and processes that are killed."""
import json
import os
import re
import signal
import time

import numpy as np
import psutil
import pytest

from annotations.skeleton import COCO_SKELETON
from batches import SampleOrder, batch_positions
from batches.batch import Batch, BatchBuffer, batch_layout, encode_batch
from batches.loader import BatchLoader, _shared_array
from conftest import PROGRAMS, descendants, is_running, wait_for
from made_up_arrays import made_up_arrays
from pose_dataset import PoseDataset
from pose_errors import UserError
from watched_loaders import NumberedDataset, take, watched_loader


def shared_mappings():
    """The lines in which the kernel lists the memory that this process shares with its children."""
    with open('/proc/self/maps') as maps:
        return {line for line in maps if ' rw-s ' in line}


def rows_of(batches, batchsize=4, samples=50, bad=(), seconds=0.0, workers=2, seed=1, **kwargs):
    """What take() gives of so many batches of a BatchLoader."""
    with BatchLoader(NumberedDataset(samples, bad, seconds), batchsize, workers, seed, **kwargs) as loader:
        return take(loader, batches)


def content(rows):
    """Of rows as from take(): sample number and augmentation, but not the process."""
    return [(row[0],) + tuple(row[2:]) for row in rows]


def test_all_workers_work_and_no_augmentation_comes_twice():
    rows = rows_of(60, seconds=0.001, workers=3)
    draws = [tuple(row[2:]) for row in rows]
    assert len({row[1] for row in rows}) == 3 and len(set(draws)) == len(draws) == 240


@pytest.mark.parametrize('seed', [0, 7, 10 ** 15])
def test_the_same_seed_gives_the_same_batches_for_any_number_of_workers(seed):
    runs = [content(rows_of(20, workers=workers, seed=run_seed))
            for workers, run_seed in ((1, seed), (2, seed), (5, seed), (1, seed + 1))]
    assert runs[0] == runs[1] == runs[2] != runs[3]


def test_a_resumed_sequence_goes_on_at_its_batch():
    whole = content(rows_of(20))
    with BatchLoader(NumberedDataset(50), 4, workers=3, seed=1, first=7) as loader:
        assert content(take(loader, 13)) == whole[7 * 4:]
        assert loader.number == 19


def test_shards_make_up_the_whole_batch():
    whole = content(rows_of(10, batchsize=6, workers=1))
    shards = [content(rows_of(10, batchsize=2, shard=shard, num_shards=3)) for shard in range(3)]
    assert [row for batch in range(10) for shard in shards for row in shard[2 * batch:2 * batch + 2]] == whole


def test_only_what_is_requested_is_made_when_there_is_no_sequence():
    whole = content(rows_of(12))
    with BatchLoader(NumberedDataset(50), 4, workers=2, seed=1, first=None) as loader:
        assert loader.get(timeout=0.2) is None
        loader.request([9, 2, 11])
        made = {}
        for _ in range(3):
            rows = content(take(loader, 1))
            made[loader.number] = rows
        assert loader.get(timeout=0.2) is None
    assert made == {number: whole[4 * number:4 * number + 4] for number in (2, 9, 11)}


@pytest.mark.slow
def test_killed_workers_are_replaced_within_ten_seconds_and_lose_and_double_no_sample(caplog):
    with watched_loader(200, workers=3) as (loader, supervisor):
        rows = take(loader, 5)
        for _ in range(3):
            before = descendants(supervisor)
            for worker in before[:2]:
                os.kill(worker, signal.SIGKILL)
            start, left = time.monotonic(), 15
            while left or not {row[1] for row in rows} - set(before):
                rows += take(loader, 1)
                left = max(left - 1, 0)
                assert time.monotonic() - start < 10
    assert content(rows) == content(rows_of(len(rows) // 4, samples=200))
    assert 'died (signal 9); a new one took its place' in caplog.text


def test_without_a_seed_runs_differ():
    assert content(rows_of(3, seed=None)) != content(rows_of(3, seed=None))


def test_a_batch_stays_until_the_next_one_is_fetched():
    with BatchLoader(NumberedDataset(500), 4, workers=2, seed=1) as loader:
        for _ in range(5):
            batch = loader.get(timeout=20)
            before = [field.copy() for field in batch]
            time.sleep(0.1)  # the workers fill all other slots
            for field, value in zip(batch, before):
                np.testing.assert_array_equal(field, value)


@pytest.mark.slow
def test_timeout_and_ready():
    with BatchLoader(NumberedDataset(50, seconds=0.1), 4, workers=1, seed=1) as loader:
        assert loader.get(timeout=0.01) is None
        assert loader.get(timeout=20) is not None
        time.sleep(1.5)
        loader.get(timeout=20)
        assert loader.ready() == 1


def test_more_workers_than_samples():
    with BatchLoader(NumberedDataset(3), 2, workers=8, seed=1) as loader:
        rows, start = take(loader, 10), time.monotonic()
        while len({row[1] for row in rows}) < 8:
            rows += take(loader, 1)
            assert time.monotonic() - start < 20
    assert {row[0] for row in rows} == {0, 1, 2}


def test_memory_is_bounded_for_many_workers():
    """48 workers with batches of 64 at 368x368: about one batch in memory for each, not several."""
    before = shared_mappings()
    with BatchLoader(NumberedDataset(48), 2, workers=48, seed=1) as loader:
        take(loader, 60)
        slots = len(shared_mappings() - before) / (len(Batch._fields) + 1)  # and how many positions there are
    layout = batch_layout(64, 368, 368, 8, COCO_SKELETON)
    before = psutil.Process().memory_info().shared
    buffer = BatchBuffer(layout, _shared_array)
    sample = made_up_arrays(0, 1, 368, 368, people=5)
    for row in range(64):
        buffer.write(row, *(field[0] for field in sample))
    batch = psutil.Process().memory_info().shared - before  # pages that nobody wrote do not count
    assert 27e6 < batch < 33e6
    assert slots == 51 and slots * batch < 2e9


def test_some_bad_samples_are_counted_and_named_once(caplog):
    """The batches are the same for any number of workers."""
    with BatchLoader(NumberedDataset(50, bad=(3, 17)), 4, workers=2, seed=1) as loader:
        rows = take(loader, 60)
        assert not {3, 17} & {int(row[0]) for row in rows}
        assert len(loader.report()) == 1 and loader.report()[0].endswith('from 2 files')
    assert sorted(record.getMessage().split(': ')[1] for record in caplog.records
                  if 'skipped' in record.getMessage()) == ['image17.jpg is bad', 'image3.jpg is bad']
    assert content(rows) == content(rows_of(60, bad=(3, 17), workers=3)) == content(rows_of(60, bad=(3, 17), workers=1))


def test_few_bad_samples_do_not_stop_large_batches():
    """Bad samples are reported at once, good ones when a batch is full: this must not look like bad ones only."""
    rows_of(2, batchsize=2000, samples=4000, bad=range(0, 4000, 20))


@pytest.mark.parametrize('bad', [range(15), range(50)])
def test_too_many_bad_samples_stop_the_run(bad):
    with pytest.raises(UserError, match='samples were bad .*repair or remove'):
        rows_of(200, bad=bad)


def test_an_error_in_a_worker_reaches_the_trainer():
    class Broken(NumberedDataset):
        def training_sample(self, index, rng):
            raise ZeroDivisionError('in the data set')

    with BatchLoader(Broken(50), 4, workers=2, seed=1) as loader:
        with pytest.raises(RuntimeError, match='ZeroDivisionError: in the data set'):
            loader.get(timeout=20)


# ------------------------------------------------------------------------------------------------- killed processes

@pytest.mark.slow
def test_workers_that_always_die_end_the_run():
    class Deadly(NumberedDataset):
        def training_sample(self, index, rng):
            os.kill(os.getpid(), signal.SIGUSR1)

    with BatchLoader(Deadly(50), 4, workers=1, seed=1) as loader:
        line = r'died 5 times in a row \(signal 10\); it was at image\d+.jpg; .*--workers.* that image'
        with pytest.raises(UserError, match=line):
            loader.get(timeout=30)


@pytest.mark.parametrize('stopped', [False, True])
def test_a_killed_supervisor_ends_the_run_and_its_workers(stopped):
    with watched_loader(200, workers=2) as (loader, supervisor):
        take(loader, 2)
        workers = descendants(supervisor)
        for worker in workers if stopped else ():
            os.kill(worker, signal.SIGSTOP)
        os.kill(supervisor, signal.SIGKILL)
        with pytest.raises(UserError, match='killed; start the command again'):
            take(loader, 10 ** 6)
    wait_for(lambda: not any(map(is_running, workers)), 'workers are left over', 20)


def test_closing_leaves_no_process():
    with watched_loader(200, workers=3) as (loader, supervisor):
        take(loader, 2)
        processes = [supervisor] + descendants(supervisor)
        loader.close()
        loader.close()
    assert not any(map(is_running, processes))


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_trainer_leaves_no_process(how, start_program):
    parent = start_program(PROGRAMS / 'load_batches.py')
    processes = json.loads(wait_for(lambda: re.findall(r'\[.*\]\n', parent.log.read_text()), 'no batches come')[0])
    assert len(processes) == 3 and all(map(is_running, processes))
    parent.send_signal(how)
    parent.wait(timeout=20)
    wait_for(lambda: not any(map(is_running, processes)), 'processes are left over', 10)


def test_shared_memory_needs_no_dev_shm():
    """Containers often have 64 MB of /dev/shm; anonymous memory does not count there."""
    before = shared_mappings()  # semaphores of other tests live in /dev/shm
    with BatchLoader(NumberedDataset(50), 64, workers=2, seed=1) as loader:
        take(loader, 4)
        added = shared_mappings() - before
    assert added and not any('/dev/shm' in line for line in added)


def test_without_a_stand_in(sample_coco):
    """The real data set, through real processes, for two epochs: what arrives is what training_sample makes."""
    dataset = PoseDataset(str(sample_coco), 'train2017', 64, 96, 8)
    order = SampleOrder(len(dataset), 4)
    with BatchLoader(dataset, 3, workers=1, seed=4) as loader:
        for number in range(2 * len(dataset) // 3):
            batch = loader.get(timeout=30)
            samples = [dataset.training_sample(*next(order.draws(position)))[:5]
                       for position in batch_positions(number, 3)]
            for array, values in zip(batch, encode_batch(*(np.stack(values) for values in zip(*samples)))):
                np.testing.assert_array_equal(array, values)


def test_batches_that_memory_cannot_hold_are_one_line():
    with pytest.raises(UserError, match=r'batch\(es\) of 100000000 samples .* take a smaller --batchsize'):
        BatchLoader(NumberedDataset(50), 100000000, workers=1, seed=1)


@pytest.mark.parametrize('stopped', ['supervisor', 'all'])
def test_stopped_processes_do_not_hold_up_the_end(stopped):
    with watched_loader(50, workers=1) as (loader, supervisor):
        workers = descendants(supervisor)
        for process in [supervisor] + (workers if stopped == 'all' else []):
            os.kill(process, signal.SIGSTOP)
    wait_for(lambda: not any(map(is_running, workers)), 'workers are left over', 60)
