"""Processes of bare_training.py, or of another program, that take turns: each does steps only when it is asked.

Such a program says that it is ready with a line of JSON, then reads how many steps to do from its input, a line each
time, and answers with a line of JSON {"seconds": [each step's], "loss": the last one's}: see `answer`. Asked for one
of QUESTIONS, it answers as BareTraining's method of that name does.
"""
import json
import os
import select
import socket
import subprocess
import sys
import tempfile

import numpy as np
import psutil

from pose_errors import UserError

POLL_SECONDS = 1
QUESTIONS = 'verify', 'gpu_memory', 'xla_clusters'
FOLDER = os.path.dirname(os.path.abspath(__file__))


def answer(training, **ready):
    """Such a program's end: `ready` first, then training.steps(count) for each line of the input."""
    print(json.dumps(dict(ready, ready=True)), flush=True)
    for line in sys.stdin:
        if line.strip() in QUESTIONS:
            print(json.dumps(getattr(training, line.strip())()), flush=True)
            continue
        seconds, loss = training.steps(int(line))
        print(json.dumps({'seconds': seconds, 'loss': loss}), flush=True)


def take_turns(candidate, reference, rounds, steps):
    """Let two that have a method `steps` work in turns; who goes first alternates.

    Returns:
        Their median seconds a step in each round, float64 (rounds, 2), after two steps of each to warm up.
    """
    sides = candidate, reference
    for side in sides:
        side.steps(2)
    medians = np.empty((rounds, 2))
    for number in range(rounds):
        for k in (0, 1) if number % 2 == 0 else (1, 0):
            medians[number, k] = np.median(sides[k].steps(steps)[0])
    return medians


def compare(times):
    """How the candidate of take_turns did, in times of the reference: the median over the rounds, and the ends."""
    ratios = times[:, 0] / times[:, 1]
    return {'ratio': float(np.median(ratios)), 'lowest_ratio': ratios.min(), 'highest_ratio': ratios.max()}


class BareProcesses:
    """One training in several processes on this machine.

    Args:
        processes: how many.  flags: of the program, for each of them; its batchsize is that of a process.
        environments: variables for each process, as dicts, such as CUDA_VISIBLE_DEVICES.
        prefixes: what to put before each command, as lists.
        program: a file beside this one.  python: the interpreter, where it is another one.
    Attributes:
        ready: what the first process told when it was.
    """

    def __init__(self, processes, *flags, environments=None, prefixes=None, program='bare_training.py',
                 python=sys.executable):
        workers = ['127.0.0.1:%d' % port for port in _free_ports(processes)]
        self._errors = tempfile.TemporaryFile('w+')
        self._processes = []
        for k in range(processes):
            config = {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': k}}
            variables = dict(os.environ, TF_CONFIG=json.dumps(config), **(environments[k] if environments else {}))
            prefix = prefixes[k] if prefixes else []
            self._processes.append(subprocess.Popen(
                prefix + [python, os.path.join(FOLDER, program)] + list(flags), env=variables,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, universal_newlines=True))
        self.ready, *_ = [self._answer(process) for process in self._processes]

    def steps(self, count):
        """Do so many steps in all processes. Returns (seconds that each took in the first process, its last loss)."""
        first, *_ = self.ask(count)
        return first['seconds'], first['loss']

    def verify(self):
        """Whether towers and processes with samples of their own have the same weights after steps; in a few words."""
        answers = self.ask('verify')
        if not all(answer['sum_is_right'] for answer in answers):
            return 'the all-reduce does not add up'
        if not all(answer['replicas_agree'] for answer in answers) or len({each['digest'] for each in answers}) > 1:
            return 'the replicas differ'
        return None

    def ask(self, question):
        """What each process answers to one of QUESTIONS, or to a number of steps."""
        try:
            for process in self._processes:
                process.stdin.write('%s\n' % question)
                process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return [self._answer(process) for process in self._processes]

    def cpu_seconds(self):
        """Of processor time that all the processes took since they started."""
        times = [psutil.Process(process.pid).cpu_times() for process in self._processes]
        return sum(time.user + time.system for time in times)

    def memory(self):
        """Resident bytes of all the processes."""
        return sum(psutil.Process(process.pid).memory_info().rss for process in self._processes)

    def _answer(self, process):
        arrived = False
        while not arrived and all(other.poll() is None for other in self._processes):  # it may wait for the others
            arrived = select.select([process.stdout], [], [], POLL_SECONDS)[0]
        line = process.stdout.readline() if arrived else None
        return json.loads(line) if line else self._fail()

    def _fail(self):
        self.close()
        self._errors.seek(0)
        raise UserError('a training process ended: ' + ' '.join(self._errors.read().splitlines()[-1:]), 1)

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
