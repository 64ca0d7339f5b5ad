"""The cache of annotations: when it is read, when not, and what processes that are killed leave behind."""
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from annotation_files import keypoints, person, write_split
from conftest import PROGRAMS, descendants, is_running, program_environment, wait_for
from pose_annotations import ignored_regions, people_of, read_annotations


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def start_reader(file, folder):
    """A process that reads annotations and prints their number and the shape of the joints."""
    return subprocess.Popen([sys.executable, str(PROGRAMS / 'read_annotations.py'), file, folder],
                            env=program_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)


def cache_of(file):
    return os.path.join(os.path.dirname(file), '.%s.arrays.npz' % os.path.basename(file))


def same(a, b):
    def comparable(array):
        return np.nan_to_num(array) if array.dtype.kind == 'f' else array
    return a.skeleton == b.skeleton and all(
        np.array_equal(comparable(getattr(a, name)), comparable(getattr(b, name)))
        for name in a._fields if name != 'skeleton')


def read_from_cache(file, folder, caplog):
    """(the annotations, whether they came from a cache): the log says when the file itself is read."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        annotations = read_annotations(file, folder)
    return annotations, 'later starts read a cache' not in caplog.text


def test_second_start_reads_the_cache(tmp_path, caplog):
    file, folder = write_split(tmp_path / 'a', [person(1)])
    first, from_cache = read_from_cache(file, folder, caplog)
    assert not from_cache
    again, from_cache = read_from_cache(file, folder, caplog)
    assert from_cache and same(first, again)
    shutil.copytree(str(tmp_path / 'a'), str(tmp_path / 'b'))  # another file, of the same content
    again, from_cache = read_from_cache(*(name.replace('/a/', '/b/') for name in (file, folder)), caplog)
    assert from_cache and same(first, again)
    os.remove(cache_of(file))
    assert not read_from_cache(file, folder, caplog)[1]


def test_changed_annotations_are_read_again(tmp_path):
    """Also when size and time are those of the file before."""
    file, folder = write_split(tmp_path, [person(1)])
    assert read_annotations(file, folder).bbox[0, 0] == 40
    status = os.stat(file)
    write_split(tmp_path, [person(1, bbox=[41, 50, 60, 80])])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert read_annotations(file, folder).bbox[0, 0] == 41


@pytest.fixture
def filled(tmp_path):
    """(annotation file, image folder, annotations, the arrays in their cache); all of the arrays hold something."""
    outline = [[0, 0, 9, 0, 9, 9]]
    file, folder = write_split(tmp_path / 'data', [
        person(1, segmentation=outline), person(2, num_keypoints=0, segmentation=outline),
        person(3, iscrowd=1, num_keypoints=0, segmentation={'size': [240, 320], 'counts': [100, 200, 76500]}),
        person(4, keypoints=keypoints(visible=9), bbox='?')])
    annotations = read_annotations(file, folder)
    return file, folder, annotations, load(cache_of(file))


def load(cache):
    with np.load(cache) as stored:
        return {name: stored[name] for name in stored.files}


def one(array, value, at=0):
    changed = array.copy()
    changed.ravel()[at] = value
    return changed


POISONED = {
    'sample_image': [lambda a: a + 9, lambda a: a.astype(np.float64), lambda a: a[:0]],
    'sample_person': [lambda a: a - 1, lambda a: a.astype(str)],
    'joints': [lambda a: a[:, :17], lambda a: np.array([{}]), lambda a: a.astype(str), lambda a: a.astype(np.float64),
               lambda a: one(a, np.inf), lambda a: one(a, 1e30), lambda a: one(a, np.nan)],
    'bbox': [lambda a: a[:0], lambda a: one(a, np.nan), lambda a: one(a, 0, 2), lambda a: one(a, -5, 3)],
    'file_name': [lambda a: a[:0], lambda a: np.array([b'']), lambda a: np.array([b'\x1b[31mred.jpg']),
                  lambda a: np.array([b'\xff.jpg']), lambda a: a.astype(str)],
    'image_id': [lambda a: a.astype(np.float32)],
    'image_size': [lambda a: a[:, :1], lambda a: a * 0, lambda a: a * 10 ** 5, lambda a: a * 2],
    'person_start': [lambda a: a[::-1], lambda a: a.astype(np.int32)],
    'points': [np.ravel, lambda a: one(a, np.inf)], 'point_range': [lambda a: a * 2, lambda a: a * 0],
    'spared': [lambda a: one(a, np.nan)],
    'spared_start': [lambda a: a[:-1]], 'spared_range': [lambda a: a - 1], 'polygon_start': [lambda a: a + 1],
    'count_range': [lambda a: a - 1, lambda a: a[:0]], 'run_start': [lambda a: a.astype(str)],
    'counts': [lambda a: one(a, 4 * 10 ** 9), lambda a: a.astype(np.int64)],
    'summary': [lambda a: np.array([b'\x1b]0;title']), lambda a: np.array([1])],
    'skeleton': [lambda a: a[:0], lambda a: np.array([b'{}']), lambda a: np.array([b'[' * 10 ** 5])],
    'version': [lambda a: np.array('another')], 'digest': [lambda a: np.arange(5)],
}


@pytest.mark.parametrize('name', sorted(POISONED))
def test_poisoned_caches_are_replaced(name, filled, caplog):
    """Each array with other types, shapes, offsets and values than annotations have."""
    file, folder, annotations, arrays = filled
    assert set(arrays) == set(POISONED) | {'state'}
    for poison in POISONED[name]:
        np.savez(cache_of(file), **dict(arrays, **{name: poison(arrays[name])}))
        if name == 'digest':  # which counts only when the state is another
            os.utime(file)
        found, from_cache = read_from_cache(file, folder, caplog)
        assert not from_cache and same(annotations, found)
        assert read_from_cache(file, folder, caplog)[1]  # and the good one is back


def test_no_cache_takes_more_memory_than_its_file(filled, caplog):
    """Arrays in a zip file that are compressed, or say that they are larger than they are."""
    file, folder, annotations, arrays = filled
    np.savez_compressed(cache_of(file), **dict(arrays, points=np.zeros((2 ** 24, 2), np.float32)))
    contents = [pathlib.Path(cache_of(file)).read_bytes()]
    assert len(contents[0]) < 2 ** 20
    np.savez(cache_of(file), **arrays)
    good = pathlib.Path(cache_of(file)).read_bytes()
    shape = str(arrays['points'].shape).encode()
    contents += [good.replace(shape + b', }        ', b'(99999999999, 2), }'), good[:len(good) // 2], good[:-1], b'',
                 b'PK\x03\x04 nonsense', good[:200] + b'\xff' * 50 + good[250:]]
    assert contents[1] != good
    np.savez(cache_of(file), foreign=np.arange(3))
    contents.append(pathlib.Path(cache_of(file)).read_bytes())
    tracemalloc.start()
    for content in contents:
        pathlib.Path(cache_of(file)).write_bytes(content)
        found, from_cache = read_from_cache(file, folder, caplog)
        assert not from_cache and same(annotations, found)
    assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    tracemalloc.stop()


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_caches(data, filled, caplog):
    """Bytes of any array changed: what is then read is what build_arrays may make, or the file is read again."""
    file, folder, annotations, arrays = filled
    name = data.draw(st.sampled_from(sorted(set(arrays) - {'state', 'version', 'digest'})))
    content = bytearray(arrays[name].tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = np.frombuffer(bytes(content), arrays[name].dtype).reshape(arrays[name].shape)
    np.savez(cache_of(file), **dict(arrays, **{name: changed}))
    found = read_annotations(file, folder)
    assert all(b'\x1b' not in text for text in found.file_name)
    for image in range(len(found.image_id)):
        joints, boxes = people_of(found, image)
        assert np.isfinite(boxes).all() and not np.isinf(joints).any()
        width, height = found.image_size[image]
        for bitmap in ignored_regions(found, image)[1]:
            assert bitmap.shape == (height, width)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capfd, caplog):
    """Each write of the cache fails; the annotations are read all the same, and zipfile says nothing."""
    file, folder = write_split(tmp_path, [person(1)])
    os.mkdir(cache_of(file))
    monkeypatch.setenv('XDG_CACHE_HOME', '/dev/full')
    assert len(read_annotations(file, folder).sample_image) == 1
    assert 'Traceback' not in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_uses_the_cache_folder(tmp_path, monkeypatch, caplog):
    file, folder = write_split(tmp_path, [person(1)])
    os.mkdir(cache_of(file))  # in the way of the cache file, also for root
    first = read_annotations(file, folder)
    assert len(os.listdir(os.path.join(os.environ['XDG_CACHE_HOME'], 'openpose-training'))) == 1
    again, from_cache = read_from_cache(file, folder, caplog)
    assert from_cache and same(first, again)
    assert len(os.listdir(os.path.dirname(file))) == 2  # and nothing half-written
    monkeypatch.setenv('XDG_CACHE_HOME', os.devnull)  # no folder at all
    assert same(first, read_annotations(file, folder))


def test_several_processes_start_at_once(tmp_path):
    images = [{'id': i, 'file_name': '%d.jpg' % i, 'width': 320, 'height': 240} for i in range(1, 501)]
    file, folder = write_split(tmp_path, [person(i, image_id=i) for i in range(1, 501)], images)
    processes = [start_reader(file, folder) for _ in range(4)]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, '500 (500, 18, 2)\n'), errors
    assert set(os.listdir(os.path.dirname(file))) == {os.path.basename(cache_of(file)), os.path.basename(file)}


@pytest.fixture
def blocked_reader(tmp_path):
    """A process that reads annotations from a named pipe, into which nobody writes."""
    file, folder = write_split(tmp_path, [person(1)])
    os.remove(file)
    os.mkfifo(file)
    reader = start_reader(file, folder)
    yield file, reader, wait_for(lambda: descendants(reader.pid), 'no process reads the file', 20)[0]
    reader.kill()
    reader.communicate()


def test_a_killed_reader_is_reported(blocked_reader):
    _, reader, child = blocked_reader
    os.kill(child, signal.SIGKILL)
    _, errors = reader.communicate(timeout=20)
    assert reader.returncode == 2 and 'was killed' in errors and 'Traceback' not in errors


def test_no_reader_outlives_its_parent(blocked_reader):
    file, reader, child = blocked_reader
    reader.kill()
    reader.wait()
    people = [person(i) for i in range(3000)]  # more than a pipe holds
    image = {'id': 1, 'file_name': 'a.jpg', 'width': 320, 'height': 240}
    with open(file, 'w') as pipe:
        json.dump({'images': [image], 'annotations': people}, pipe)
    wait_for(lambda: not is_running(child), 'it still runs', 20)


def test_interrupted_reading_is_one_line(blocked_reader):
    _, reader, child = blocked_reader
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    os.kill(reader.pid, signal.SIGINT)
    _, errors = reader.communicate(timeout=20)
    assert 'Traceback' not in errors and reader.returncode in (130, 2)
    wait_for(lambda: not is_running(child), 'it still runs', 20)
