"""Processes of bare_training.py that take turns with each other: each does steps only when it is asked."""
import json
import os
import socket
import subprocess
import sys
import tempfile

import psutil


from pose_cli import UserError

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'bare_training.py')


class BareProcesses:
    """One training in several processes on this machine.

    Args:
        processes: how many.  flags: of bare_training.py, for each of them; its batchsize is that of a process.
        environments: variables for each process, as dicts, such as CUDA_VISIBLE_DEVICES.
        prefixes: what to put before each command, as lists.
    Attributes:
        wire_bytes, gpus: as the first process tells them.
    """

    def __init__(self, processes, *flags, environments=None, prefixes=None):
        workers = ['127.0.0.1:%d' % port for port in _free_ports(processes)]
        self._errors = tempfile.TemporaryFile('w+')
        self._processes = []
        for k in range(processes):
            config = {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': k}}
            variables = dict(os.environ, TF_CONFIG=json.dumps(config), **(environments[k] if environments else {}))
            self._processes.append(subprocess.Popen(
                (prefixes[k] if prefixes else []) + [sys.executable, PROGRAM] + list(flags), env=variables,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, universal_newlines=True))
        first, *_ = [self._answer(process) for process in self._processes]
        self.wire_bytes, self.gpus = first['wire_bytes'], first['gpus']

    def steps(self, count):
        """Do so many steps in all processes. Returns (seconds that each took in the first process, its last loss)."""
        for process in self._processes:
            process.stdin.write('%d\n' % count)
            process.stdin.flush()
        first, *_ = [self._answer(process) for process in self._processes]
        return first['seconds'], first['loss']

    def memory(self):
        """Resident bytes of all the processes."""
        return sum(psutil.Process(process.pid).memory_info().rss for process in self._processes)

    def _answer(self, process):
        line = process.stdout.readline()
        if not line:
            self.close()
            self._errors.seek(0)
            raise UserError('a training process ended: ' + ' '.join(self._errors.read().splitlines()[-1:]), 1)
        return json.loads(line)

    def close(self):
        for process in self._processes:
            process.kill()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(('127.0.0.1', 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
