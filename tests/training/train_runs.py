"""train.py in several processes on this machine, with the small network; their logs go to files."""
import json
import os
import re
import signal
import subprocess
import sys
import time

from conftest import PROGRAMS, ROOT, free_ports, program_environment

SMALL = ['--model=small', '--pretrained=none', '--input-width=64', '--input-height=64', '--workers=1', '--log-every=1',
         '--valid-every=0']


class ClusterRun:
    """`processes` trainers that share each batch, started together.

    Args:
        data: COCO folder.  model: --modelpath.  flags: further ones.
        different: {number of a process: further flags of that one}.
        hosts: of the processes (default: this machine); prefixes: what to put before each command, as lists.
    """

    def __init__(self, data, model, processes, *flags, different=None, hosts=None, prefixes=None):
        self.model = model
        ports = free_ports(processes)
        hosts = hosts or ['127.0.0.1'] * processes
        self.workers = ['%s:%d' % pair for pair in zip(hosts, ports)]
        self.log_paths = ['%s.%d.log' % (model, k) for k in range(processes)]
        self.processes = []
        for k in range(processes):
            config = {'cluster': {'worker': self.workers}, 'task': {'type': 'worker', 'index': k}}
            with open(self.log_paths[k], 'w') as log:
                self.processes.append(subprocess.Popen(
                    (prefixes[k] if prefixes else []) + [sys.executable, str(PROGRAMS / 'train_small.py')] + SMALL
                    + ['--datapath=%s' % data, '--modelpath=%s' % model] + list(flags) + (different or {}).get(k, []),
                    cwd=str(ROOT), stderr=log, env=program_environment(TF_CONFIG=json.dumps(config)),
                    start_new_session=True))

    def log(self, k):
        with open(self.log_paths[k]) as file:
            return file.read()

    def logged_steps(self, k):
        return [int(step) for step in re.findall(r' step=(\d+),', self.log(k))]

    def wait_until(self, happened, seconds=400):
        """Poll until happened() is true, or one of the processes ends."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert all(process.poll() is None for process in self.processes), self.all_logs()
            assert time.monotonic() < deadline, self.all_logs()
            time.sleep(0.01)

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

    def errors(self, k):
        return [line for line in self.log(k).splitlines() if line.startswith('error: ')]

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
