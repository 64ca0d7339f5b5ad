"""What processes decide together, from the figures of a step; and a source that lets nobody wait at the end."""
import types

import numpy as np

from pose_batches import batch_layout, empty_batch
from training.cluster import Cluster
from training.team import Alone, BatchesToTheEnd, Together


class Peers:
    """Two processes; `told` is whether one was told to stop."""
    cluster, told = Cluster(('node1:2222', 'node2:2222'), 1), False

    def __call__(self):
        return self.told


def together():
    peers = Peers()
    return peers, Together(peers, types.SimpleNamespace(stop='stop', waited='waited'))


def test_a_process_alone_ends_at_once():
    team = Alone(lambda: True)
    assert team.ended() and team.waits_in_vain() and team.tells(3.0) == {} and team.note() == ''


def test_a_signal_ends_after_the_step_that_tells_all():
    peers, team = together()
    assert team.tells(1.5) == {'stop': 0.0, 'waited': 1.5}
    peers.told = True
    assert not team.ended() and not team.waits_in_vain()
    assert team.tells(2.0) == {'stop': 1.0, 'waited': 0.5}
    figures = team.hears({'loss': 3.0, 'stop': 0.25, 'seconds': np.zeros((2, 2))})
    assert figures == {'loss': 3.0} and team.ended()


def test_the_slowest_is_named_with_its_share_of_waiting():
    _, team = together()
    for _ in range(2):  # node1 waits 0 and computes 2 s a step, node2 waits 1 and computes 3
        team.hears({'stop': 0.0, 'seconds': np.array([[0.0, 2.0], [1.0, 3.0]])})
    assert team.note() == ', slowest=node2:2222 data_wait=25%, the others wait 50% for it'
    team.hears({'stop': 0.0, 'seconds': np.array([[6.0, 2.0], [1.0, 3.0]])})
    assert team.note().startswith(', slowest=node1:2222 data_wait=75%')


def test_a_source_without_data_ends_with_its_last_batch():
    layout = batch_layout(2, 64, 64, 8)
    batch, batches, stop = empty_batch(layout), [], []
    source = types.SimpleNamespace(get=lambda timeout: batches.pop() if batches else None, ready=lambda: len(batches),
                                   report=list, hint=str)
    to_the_end = BatchesToTheEnd(source, layout, lambda: bool(stop))
    assert to_the_end.get(0.1) is None
    stop.append(True)
    assert not to_the_end.get(0.1).mask.any()  # nothing counts
    batches.append(batch)
    assert to_the_end.get(0.1) is batch and to_the_end.get(0.1) is batch
