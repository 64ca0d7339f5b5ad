"""A run that is stopped and goes on: which samples it trains, whatever its batches and wherever they come from."""
import json
import re
import signal
import sys
import types

import numpy as np
import pytest

from batches import START, Sequence, compressed, expanded, samples_done, shortened
from conftest import PATIENCE, program_environment
from test_pose_dataworker import worker_command
from train_runs import SMALL_NETWORK, TrainRun
from training.config import Schedule, schedule_of
from training.run_folder import note_progress, read_progress

SAMPLES = re.compile(r'(\d+) samples, (\d+) steps per epoch, step (\d+) of (\d+)')


def flags_with(**flags):
    return types.SimpleNamespace(**dict(dict(max_epoch=6, max_steps=None, accumulate=1), **flags))


def test_the_end_of_a_run_is_counted_in_samples():
    assert schedule_of(flags_with(batchsize=2), 24) == Schedule(12, 72, False, 0)
    # After 3 of 6 epochs in batches of 2, 18 steps in batches of 4 are left.
    assert schedule_of(flags_with(batchsize=4), 24, step=36, done=72) == Schedule(6, 54, False, -18)
    assert schedule_of(flags_with(batchsize=2, accumulate=2), 24, step=36, done=72).max_steps == 54
    assert schedule_of(flags_with(batchsize=4, max_steps=40), 24, step=36, done=72) == Schedule(6, 40, True, -18)


def test_progress_is_kept_for_each_checkpoint(tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps({'flags': {'batchsize': 8, 'accumulate': 2}}))
    assert read_progress(str(tmp_path), 0) == (START, 0)
    assert read_progress(str(tmp_path), 10) == (Sequence((), 160), 0)  # a run of before there was such a note
    note_progress(str(tmp_path), 10, Sequence(((3, 5), (8, 9)), 90), 1024.0)
    (tmp_path / 'model-10.index').write_text('')
    note_progress(str(tmp_path), 20, Sequence((), 170), 512.0)
    assert read_progress(str(tmp_path), 10) == (Sequence(((3, 5), (8, 9)), 90), 1024)
    (tmp_path / 'model-10.index').unlink()
    note_progress(str(tmp_path), 30, Sequence((), 250), 0)
    assert set(json.loads((tmp_path / 'run.json').read_text())['progress']) == {'30'}


def test_numbers_that_came_in_any_order_are_told_in_few_words():
    numbers = [1, 10, 4, 16]
    assert compressed(numbers, 1, 3) == {'first': 1, 'top': 19, 'missing': [7, 13]}
    assert expanded(compressed(numbers, 1, 3), 3) == sorted(numbers) and expanded(compressed([], 1, 3), 3) == []


def test_data_workers_are_told_of_so_many_gaps_only(caplog):
    gaps = tuple((10 * k, 10 * k + 4) for k in range(1200))
    assert shortened(Sequence(gaps, 20000)).gaps == gaps[:1000] and '800 samples' in caplog.text
    assert shortened(Sequence(gaps[:5], 20000)) == Sequence(gaps[:5], 20000)


@pytest.fixture
def start_run(tmp_path, close_at_end):
    def start_run(*flags):
        command = [sys.executable, *SMALL_NETWORK, '--modelpath=%s' % (tmp_path / 'model'), *flags]
        return close_at_end(TrainRun(str(tmp_path / 'model'), [command], [program_environment()]))
    return start_run


def progress_of(folder):
    run = json.loads((folder / 'run.json').read_text())
    noted = run['progress'][max(run['progress'], key=int)]
    return Sequence(tuple(map(tuple, noted['gaps'])), noted['next'])


@pytest.mark.slow
def test_another_batch_size_goes_on_with_the_next_samples(start_run, sample_coco, tmp_path):
    logs = []
    for batchsize, epochs in ((2, 2), (4, 4)):
        run = start_run('--datapath=%s' % sample_coco, '--batchsize=%d' % batchsize, '--max-epoch=%d' % epochs)
        assert run.exit_codes() == [0], run.log()
        logs.append(run.log())
    (samples, per_epoch, _, end), (_, fewer, start, last) = (map(int, SAMPLES.search(log).groups()) for log in logs)
    assert (per_epoch, end, start) == (samples // 2, 2 * (samples // 2), end)
    assert fewer == samples // 4 and last == start + int(np.ceil(4 * fewer - end / 2))
    assert progress_of(tmp_path / 'model') == Sequence((), 2 * end + 4 * (last - start))
    epochs = [float(epoch) for epoch in re.findall(r' epoch=([\d.]+) step=', logs[1])]
    assert epochs[0] == pytest.approx((end / 2 + 1) / fewer, abs=0.01) and epochs[-1] >= 4
    rates = [[float(rate) for rate in re.findall(r' lr=([\d.]+)', log)] for log in logs]
    assert rates[1] == sorted(rates[1], reverse=True) and rates[1][-1] < 0.1 * max(rates[1])
    assert 'changed since the last start: --batchsize=4 (was 2), --max-epoch=4 (was 2)' in logs[1]


@pytest.mark.slow
def test_what_data_workers_had_not_delivered_is_trained_later(start_run, sample_coco, tmp_path, address, start):
    """Two data workers, of which one stands still while the other goes on; then a stop, which they wait out.

    The run goes on when one is killed; the other ends with it.
    """
    workers = [start(*worker_command(address, sample_coco)) for _ in range(2)]
    flags = ['--remote-data=%s' % address, '--batchsize=2', '--valid-every=100']
    run = start_run(*flags, '--max-steps=1000000')
    run.wait_until(lambda: run.logged_steps() and run.log().count('data worker joined') == 2)
    joined = run.logged_steps()[-1]  # who has just joined may have been asked for nothing
    run.wait_until(lambda: run.logged_steps()[-1] > joined + 20)
    workers[0].send_signal(signal.SIGSTOP)
    reached = run.logged_steps()[-1]
    run.wait_until(lambda: run.logged_steps()[-1] > reached + 40)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.exit_codes() == [0], run.log()
    workers[0].send_signal(signal.SIGCONT)
    left, steps = progress_of(tmp_path / 'model'), run.logged_steps()[-1]
    assert left.gaps and samples_done(left) == 2 * steps
    assert 'data workers, samples/s: ' in run.log() and 'validation is off' in run.log()
    again = start_run(*flags, '--max-steps=%d' % (steps + 200))
    again.wait_until(lambda: again.logged_steps() and again.log().count('data worker joined') == 2)
    workers[0].kill()
    assert again.exit_codes() == [0], again.log()
    assert 'resuming from' in again.log() and 'done: step %d' % (steps + 200) in again.log()
    assert workers[1].wait(PATIENCE) == 0, workers[1].log.read_text()
    later = progress_of(tmp_path / 'model')
    assert samples_done(later) == 2 * again.logged_steps()[-1]
    assert not set(left.gaps) & set(later.gaps)  # what was left came first
