"""Who takes part in a run: one process, or those that TF_CONFIG or Slurm names; and what they must have alike.

Needs no TensorFlow.
"""
import collections
import json
import re

from pose_errors import UserError

# What may differ between processes: where things lie on a machine, how many cores it has, and what worker 0 alone does.
LOCAL_FLAGS = ('add_data', 'checkpoint', 'config', 'curve_keys', 'datapath', 'imgpath', 'keep', 'logpath', 'modelpath',
               'pretrained', 'remote_data', 'tag', 'teacher', 'train_split', 'valid_split', 'workers')
SLURM_FIRST_PORT, SLURM_PORTS, SLURM_JOBS = 20000, 16, 768


class Cluster(collections.namedtuple('Cluster', 'workers index')):
    """The processes of a run.

    workers: (host:port, ...) of each process's TensorFlow server.  index: of this process among them.
    """

    size = property(lambda self: len(self.workers))
    is_first = property(lambda self: self.index == 0)  # worker 0 alone writes into the run's folders, and validates

    @property
    def local_rank(self):
        """(place of this process among those that the cluster names on its host, how many these are)."""
        if self.size == 1:
            return 0, 1
        host = split_address(self.workers[self.index])[0]
        here = [k for k, worker in enumerate(self.workers) if split_address(worker)[0] == host]
        return here.index(self.index), len(here)

    @property
    def addresses(self):
        """(host, port) of each process's second port, on which it says that it lives: the next one that none uses."""
        taken, found = set(self.workers), []
        for worker in self.workers:
            host, port = split_address(worker)
            while '%s:%d' % (host, port) in taken:
                port += 1
            taken.add('%s:%d' % (host, port))
            found.append((host, port))
        return found


ALONE = Cluster(('localhost:0',), 0)


def split_address(address):
    """'node1:2222' -> ('node1', 2222), '[::1]:2222' -> ('[::1]', 2222). Raises UserError."""
    match = re.match(r'(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})$', address) if isinstance(address, str) else None
    if not match or not 0 < int(match.group(2)) < 65535:
        raise UserError('TF_CONFIG names the worker %r; write HOST:PORT with a port of 1 to 65534' % (address,))
    return match.group(1), int(match.group(2))


def read_cluster(environment):
    """The Cluster of these environment variables: TF_CONFIG, else those of a Slurm step; ALONE without them. Raises
    UserError when they do not name a cluster of workers."""
    if environment.get('TF_CONFIG'):
        return _from_tf_config(environment['TF_CONFIG'])
    if environment.get('SLURM_STEP_NUM_TASKS', '1') != '1' and 'SLURM_PROCID' in environment:
        return _from_slurm(environment)
    return ALONE


def _from_tf_config(text):
    """As Kubeflow sets it. A `chief` or `master`, where there is one, counts as the first worker."""
    example = '{"cluster": {"worker": ["node1:2222", "node2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        jobs, task = config.get('cluster', {}), config.get('task', {})
        kind, number = task.get('type', 'worker'), int(task.get('index', 0))
        workers, index = [], None
        for job in ('chief', 'master', 'worker'):
            if kind == job and 0 <= number < len(jobs.get(job, ())):
                index = len(workers) + number
            workers += jobs.get(job, ())
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError('TF_CONFIG does not describe a cluster: write %s' % example)
    if not workers:
        return ALONE
    if index is None:
        raise UserError('TF_CONFIG: the task %r %r is none of its %d workers; train.py runs on workers only, as in %s'
                        % (kind, number, len(workers), example))
    for worker in workers:
        split_address(worker)
    if len(set(workers)) < len(workers):
        raise UserError('TF_CONFIG names a worker twice; give each process a host and port of its own')
    return Cluster(tuple(workers), index) if len(workers) > 1 else ALONE


def _from_slurm(environment):
    """From the variables that srun sets: its nodes, tasks on each, and this task's number.

    tf.distribute.cluster_resolver.SlurmClusterResolver reads the same; but TensorFlow 2's sorts n10 before n2, which
    gives processes each other's addresses, and 1.15's wants scontrol, which containers lack. Ports follow from the
    job's number, so that two jobs on a node do not meet.
    """
    try:
        nodes = expand_nodes(environment['SLURM_STEP_NODELIST'])
        counts = expand_counts(environment['SLURM_STEP_TASKS_PER_NODE'])
        first = SLURM_FIRST_PORT + SLURM_PORTS * (int(environment['SLURM_JOB_ID']) % SLURM_JOBS)
        workers = ['%s:%d' % (node, first + k) for node, count in zip(nodes, counts) for k in range(count)]
        index = int(environment['SLURM_PROCID'])
        consistent = len(nodes) == len(counts) and len(workers) == int(environment['SLURM_STEP_NUM_TASKS']) > index
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError("Slurm's variables do not describe a step (%s): start train.py with srun, or set TF_CONFIG"
                        % error)
    if not consistent:
        raise UserError("Slurm's variables contradict each other: %d nodes, tasks per node %s, %s tasks; start "
                        'train.py with srun, or set TF_CONFIG'
                        % (len(nodes), environment['SLURM_STEP_TASKS_PER_NODE'], environment['SLURM_STEP_NUM_TASKS']))
    return Cluster(tuple(workers), index)


def expand_nodes(text):
    """Slurm's list of nodes: 'n[1-2,07],m5' -> ['n1', 'n2', 'n07', 'm5']. Raises AttributeError for others."""
    nodes = []
    for part in re.findall(r'(?:[^,\[]|\[[^\]]*\])+', text):
        prefix, numbers, suffix = re.match(r'([^\[\]]*)(?:\[([\d,-]+)\])?([^\[\]]*)$', part).groups()
        for span in (numbers or '').split(','):
            first, _, last = span.partition('-')
            nodes += [prefix + str(k).zfill(len(first)) + suffix for k in range(int(first), int(last or first) + 1)] \
                if span else [prefix]
    return nodes


def expand_counts(text):
    """Slurm's tasks on each node: '2(x3),1' -> [2, 2, 2, 1]. Raises AttributeError for what is no such list."""
    parts = [re.match(r'(\d+)(?:\(x(\d+)\))?$', part).groups() for part in text.split(',')]
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def common_flags(flags):
    """{'--flag': value} of the flags (a dict) that must be the same."""
    return {'--' + name.replace('_', '-'): value for name, value in flags.items() if name not in LOCAL_FLAGS}
