"""What processes decide together, from the metrics of a step; and a source that lets nobody wait at the end."""
import types

import pytest

from annotations.skeleton import COCO_SKELETON
from batches.batch import batch_layout, empty_batch
from conftest import free_ports
from training.cluster import ALONE, Cluster
from training.coordinator import MultiProcess, SingleProcess, open_coordinator
from training.input_queue import LastBatchRepeater

TRAINING = types.SimpleNamespace(stop='stop')


def test_a_process_alone_ends_at_once():
    coordinator = open_coordinator(ALONE, lambda: True)
    assert type(coordinator) is SingleProcess
    assert coordinator() and coordinator.should_stop() and coordinator.should_stop_waiting()
    assert coordinator.feed_dict(TRAINING) == {} and coordinator.straggler_note(1.0, 2.0) == ''
    assert SingleProcess(ALONE, lambda: False).all_gather('topic', {'a': 1}) == [{'a': 1}]


@pytest.fixture
def second(monkeypatch):
    """The second of two processes, which never meets the first; its flag `told` is a stop signal."""
    for name in ('FAREWELL_SECONDS', 'BEAT_SECONDS'):
        monkeypatch.setattr('training.coordinator.' + name, 0.1)
    told = []
    cluster = Cluster(tuple('127.0.0.1:%d' % port for port in free_ports(2)), 1)
    with MultiProcess(cluster, lambda: bool(told)) as process:
        process.told = told
        yield process


def test_a_signal_ends_after_the_step_that_tells_all(second):
    assert second.feed_dict(TRAINING) == {'stop': 0.0}
    second.told.append(True)
    assert not second.should_stop() and not second.should_stop_waiting()
    assert second.feed_dict(TRAINING) == {'stop': 1.0}
    assert second.pop_control({'loss': 3.0, 'stop': 0.25}) == {'loss': 3.0} and second.should_stop()


def test_the_slowest_is_named_with_its_share_of_waiting(second):
    assert second.straggler_note(waited=2.0, busy=6.0) == ''  # the first one has not said yet how long it took
    second._others[0].state = {'seconds': [0.0, 4.0]}
    assert second.straggler_note(waited=2.0, busy=6.0) == (
        ', slowest=%s data_wait=25%%, the others wait 50%% for it' % second.cluster.workers[1])
    second._others[0].state = {'seconds': [15.0, 5.0]}
    assert second.straggler_note(waited=2.0, busy=6.0).startswith(
        ', slowest=%s data_wait=75%%' % second.cluster.workers[0])


def test_a_source_without_data_ends_with_its_last_batch():
    layout = batch_layout(2, 64, 64, 8, COCO_SKELETON)
    batch, batches, stop = empty_batch(layout), [], []
    source = types.SimpleNamespace(get=lambda timeout: batches.pop() if batches else None, ready=lambda: len(batches),
                                   report=list, diagnosis=str, layout=layout, number=7)
    repeater = LastBatchRepeater(source, lambda: bool(stop))
    assert repeater.get(0.1) is None
    stop.append(True)
    assert not repeater.get(0.1).mask.any()  # nothing counts
    batches.append(batch)
    assert repeater.get(0.1) is batch and repeater.number == 7
    assert repeater.get(0.1) is batch and repeater.number is None
