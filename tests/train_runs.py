"""train.py in one or several processes on this machine; their logs go to files."""
import json
import os
import re
import signal
import subprocess
import sys
import time

from conftest import PROGRAMS, ROOT, free_ports, program_environment, run_command

SMALL = ['--pretrained=none', '--input-width=64', '--input-height=64', '--workers=1', '--log-every=1']
SMALL_NETWORK = [str(PROGRAMS / 'train_small.py'), '--model=small', '--valid-every=0'] + SMALL


def folders(data, model):
    return ['--datapath=%s' % data, '--modelpath=%s' % model]


def train_small(data, model, *flags, code=0):
    """Train the small network in a process of its own; returns its log."""
    result = run_command(*SMALL_NETWORK, *folders(data, model), '--batchsize=2', '--seed=4', '--lr=0.01', *flags,
                         env=program_environment())
    assert result.returncode == code, result.stderr
    return result.stderr


class TrainRun:
    """Trainers, each in a process group of its own, as under a terminal.

    Args:
        model: their --modelpath.
        commands: list of [argument, ...].
        environments: their environments; by default that of this process.
    """
    poll_seconds = 0.01

    def __init__(self, model, commands, environments=None):
        self.model = model
        self.log_paths = ['%s.%d.log' % (model, k) for k in range(len(commands))]
        self.processes = []
        for command, environment, log_path in zip(commands, environments or [None] * len(commands), self.log_paths):
            with open(log_path, 'w') as log:
                self.processes.append(subprocess.Popen(command, cwd=str(ROOT), stderr=log, env=environment,
                                                       start_new_session=True))

    def log(self, k=0):
        with open(self.log_paths[k]) as file:
            return file.read()

    def logged_steps(self, k=0):
        return [int(step) for step in re.findall(r' step=(\d+),', self.log(k))]

    def wait_until(self, happened, seconds=400):
        """Poll until happened() is true, or one of the processes ends."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert all(process.poll() is None for process in self.processes), self.all_logs()
            assert time.monotonic() < deadline, self.all_logs()
            time.sleep(self.poll_seconds)

    def all_logs(self):
        return '\n'.join(self.log(k)[-3000:] for k in range(len(self.processes)))

    def exit_codes(self, seconds=400):
        """The exit codes of all, once they have ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(self.all_logs())
        return [process.returncode for process in self.processes]

    def errors(self, k=0):
        return [line for line in self.log(k).splitlines() if line.startswith('error: ')]

    def close(self):
        """End them, however the test ended: a process that is left over would disturb what comes next."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # also those that a test has suspended
                process.wait()


class ClusterRun(TrainRun):
    """`processes` trainers of the small network that share each batch, started together.

    Args:
        data: COCO folder.  model: --modelpath.  flags: further ones.
        different: {number of a process: further flags of that one}.
    """

    def __init__(self, data, model, processes, *flags, different=None):
        self.workers = ['127.0.0.1:%d' % port for port in free_ports(processes)]
        configs = [{'cluster': {'worker': self.workers}, 'task': {'type': 'worker', 'index': k}}
                   for k in range(processes)]
        commands = [[sys.executable, *SMALL_NETWORK, *folders(data, model), *flags, *(different or {}).get(k, [])]
                    for k in range(processes)]
        super().__init__(model, commands, [program_environment(TF_CONFIG=json.dumps(config)) for config in configs])
