"""When training ends, and who holds it up: decided by one process alone, or by all of a cluster at the same step."""
import numpy as np

from pose_batches import empty_batch


class Alone:
    """One process. stop: a StopSignal."""

    def __init__(self, stop):
        self.ended = self.waits_in_vain = stop

    def tells(self, waited):
        """What to feed to a step."""
        return {}

    def hears(self, figures):
        """The figures of a step, without what the processes told each other."""
        return figures

    def note(self):
        """What to add to the line of an interval."""
        return ''


class Together:
    """Processes that all do the same steps: what one is told, it tells the others in its next step's all-reduce.

    Args:
        peers: a liveness.Peers.  training: a towers.Training.
    """

    def __init__(self, peers, training):
        self._peers, self._training = peers, training
        self._stopped, self._waited = False, 0.0
        self._seconds = np.zeros((peers.cluster.size, 2))

    def ended(self):
        """Whether the last step said that one of the processes was told to stop."""
        return self._stopped

    def waits_in_vain(self):
        """Never: the others are in a step, which this process has to do too (see BatchesToTheEnd)."""
        return False

    def tells(self, waited):
        """What to feed to a step. waited: seconds for data in all."""
        waited, self._waited = waited - self._waited, waited
        return {self._training.stop: float(self._peers()), self._training.waited: waited}

    def hears(self, figures):
        """The figures of a step, without what the processes told each other."""
        figures = dict(figures)
        self._stopped = figures.pop('stop') > 0
        self._seconds += figures.pop('seconds')
        return figures

    def note(self):
        """Which process was the slowest in the interval, and its share of waiting for data; starts a new interval."""
        seconds, self._seconds = self._seconds, np.zeros_like(self._seconds)
        slowest = int(seconds.sum(axis=1).argmax())
        total = max(seconds[slowest].sum(), 1e-9)
        idle = 1 - np.delete(seconds.sum(axis=1), slowest).mean() / total
        return ', slowest=%s data_wait=%.0f%%, the others wait %.0f%% for it' % (
            self._peers.cluster.workers[slowest], 100 * seconds[slowest, 0] / total, 100 * idle)


class BatchesToTheEnd:
    """A batch source that always has one more batch when training is about to stop.

    A process without data would keep the others waiting in the step in which all have to agree to stop: it takes its
    last batch once more, or one whose mask leaves everything out.

    Args:
        source: the batch source.  layout: of its batches.  stop: a function, whether training is to stop.
    """

    def __init__(self, source, layout, stop):
        self._source, self._stop = source, stop
        self._batch = empty_batch(layout)
        self.ready, self.report, self.hint = source.ready, source.report, source.hint

    def get(self, timeout=None):
        """The next batch, or None when none came within timeout seconds."""
        batch = self._source.get(timeout)
        if batch is not None:
            self._batch = batch
        elif self._stop():
            return self._batch
        return batch
