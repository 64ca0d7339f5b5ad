"""The real train.py in several processes: stopped, killed, started differently, diverging; and what goes on from it."""
import json
import re
import shutil
import signal

import numpy as np
import pytest

from conftest import PATIENCE, descendants, free_ports, is_running, wait_for
from saved_weights import load_all, saved_step
from test_pose_dataworker import worker_command
from train_runs import ClusterRun
from training.coordinator import LOST_EXIT_CODE

pytestmark = pytest.mark.slow
SAVE_EVERY = 3
FOREVER = ['--max-steps=1000000', '--batchsize=12', '--save-every=%d' % SAVE_EVERY]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('cluster_runs')


@pytest.fixture(scope='module')
def start_run(sample_coco, close_at_end):
    def start_run(model, processes, *flags, **kwargs):
        return close_at_end(ClusterRun(sample_coco, model, processes, *flags, **kwargs))
    return start_run


@pytest.fixture(scope='module')
def killed(start_run, folder):
    """Three processes of one tower; one of them was killed."""
    run = start_run(folder / 'model', 3, *FOREVER)
    run.wait_until(lambda: all(run.logged_steps(k) and run.logged_steps(k)[-1] > 7 for k in range(3)))
    run.children = [pid for process in run.processes for pid in descendants(process.pid)]
    run.processes[1].kill()
    run.codes = run.exit_codes(60)
    run.reached = run.logged_steps(0)[-1]
    return run


def test_a_killed_process_ends_the_others_with_a_line_and_a_code_of_its_own(killed):
    assert killed.codes == [LOST_EXIT_CODE, -signal.SIGKILL, LOST_EXIT_CODE]
    for k in (0, 2):
        line, = killed.errors(k)
        assert killed.workers[1] in line and 'start the same commands again' in line
        assert 'Traceback' not in killed.log(k)
    assert killed.children
    wait_for(lambda: not any(map(is_running, killed.children)), 'processes are left running', 30)


@pytest.fixture(scope='module')
def stopped(start_run, folder, killed):
    """The run goes on with two processes of two towers, until the second one gets SIGTERM."""
    before = saved_step(folder / 'model')
    run = start_run(folder / 'model', 2, '--gpus=2', *FOREVER)
    run.wait_until(lambda: all('slowest=' in run.log(k) for k in range(2)))
    run.processes[1].send_signal(signal.SIGTERM)
    run.before, run.codes = before, run.exit_codes()
    return run


def test_it_resumes_at_most_one_interval_back_and_a_signal_to_one_ends_all_at_the_same_step(killed, stopped, folder):
    """With other processes; checkpoints have one replica."""
    assert killed.reached - stopped.before <= SAVE_EVERY
    assert stopped.logged_steps(0)[0] == stopped.logged_steps(1)[0] == stopped.before + 1
    assert 'resuming from' in stopped.log(0) and 'resuming from' not in stopped.log(1)
    assert stopped.codes == [0, 0], stopped.all_logs()
    steps = [int(re.search(r'stopped by a signal at step (\d+)', stopped.log(k)).group(1)) for k in range(2)]
    assert steps[0] == steps[1] == saved_step(folder / 'model') == stopped.logged_steps(0)[-1]
    weights = load_all(str(folder / 'model' / ('model-%d' % steps[0])))
    assert not [name for name in weights if 'replica' in name]
    assert all(np.isfinite(value).all() for value in weights.values())
    assert sorted(path.name for path in folder.glob('model/*.json')) == ['run.json']


def test_all_log_the_same_losses_and_the_slowest(stopped):
    lines = [[line for line in stopped.log(k).splitlines() if 'examples/sec' in line] for k in range(2)]
    losses = [[re.search(r'step=(\d+),.* loss=([\d.e+]+),', line).groups() for line in of_one] for of_one in lines]
    assert losses[0] == losses[1]
    for of_one in lines:  # a process knows the other's load after a second
        slowest = [re.search(r' slowest=(127\S+) data_wait=\d+%, the others wait \d+% for it$', line)
                   for line in of_one]
        assert slowest[-1] and {match.group(1) for match in slowest if match} <= set(stopped.workers)
    told = 'on all addresses of this machine (it knows no other way), and runs whatever graph reaches it'
    assert all(told in stopped.log(k) for k in range(2))


def test_different_flags_are_refused_before_the_first_step(start_run, folder):
    """Each process says which one differs, and in what: not in where things are."""
    run = start_run(folder / 'differs', 3, *FOREVER, different={2: ['--lr=0.01', '--workers=2']})
    assert run.exit_codes() == [2, 2, 2]
    for k in range(3):
        line, = run.errors(k)
        assert '%s has --lr=[0.001], %s has --lr=[0.01]; ' % (run.workers[0], run.workers[2]) in line
    assert not list((folder / 'differs').glob('model-*'))


def test_other_data_is_refused(start_run, sample_coco, folder):
    """As many samples, in another order."""
    shutil.copytree(str(sample_coco), str(folder / 'other'))
    path = folder / 'other' / 'annotations' / 'person_keypoints_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'].reverse()
    path.write_text(json.dumps(content))
    run = start_run(folder / 'reversed', 2, *FOREVER, different={1: ['--datapath=%s' % (folder / 'other')]})
    assert run.exit_codes() == [2, 2]
    assert all('the workers differ' in run.errors(k)[0] and ' has digest=' in run.errors(k)[0] for k in range(2))


def test_divergence_ends_all_with_code_3(start_run, folder):
    run = start_run(folder / 'diverges', 2, '--lr=1e30', '--warmup-steps=0', *FOREVER)
    assert run.exit_codes() == [3, 3], run.all_logs()
    assert all('became NaN or infinite' in run.errors(k)[0] for k in range(2))


def test_each_process_listens_for_its_own_data_workers(start_run, start, sample_coco, folder):
    """Two trainers until --patience ends the run, each with one real data worker, which needs no TensorFlow. Two
    processes have 8 samples in each step."""
    addresses = ['tcp://127.0.0.1:%d' % port for port in free_ports(2)]
    run = start_run(folder / 'remote', 2, '--batchsize=4', '--max-steps=100', '--save-every=100', '--lr=1e-30',
                    '--valid-every=3', '--eval-every=3', '--patience=1', '--aug-scale=0.6,1.1',
                    different={k: ['--remote-data=%s' % address] for k, address in enumerate(addresses)})
    workers = [start(*worker_command(address, sample_coco)) for address in addresses]
    assert run.exit_codes() == [0, 0], run.all_logs()
    assert [worker.wait(PATIENCE) for worker in workers] == [0, 0]
    for k, worker in enumerate(workers):
        assert run.logged_steps(k) == [1, 2, 3, 4, 5, 6, 7] and 'done: step 7' in run.log(k)
        assert '--patience ends the run' in run.log(k)
        steps, = re.findall(r'\d+ steps per epoch, step', run.log(k))
        assert ' samples: %s' % steps.split(', ')[0] in run.log(k)  # in the line on the first worker
        joined = re.findall(r'data worker joined: \S+:(\d+)', run.log(k))
        assert joined == [str(worker.pid)]
        assert 'training has ended' in worker.log.read_text()
    losses = [re.findall(r'examples/sec.* loss=([\d.e+]+),', run.log(k)) for k in range(2)]
    assert losses[0] == losses[1]
    assert saved_step(folder / 'remote') == 7
