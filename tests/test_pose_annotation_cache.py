"""The cache of annotations: when it is read, when not, and what processes that are killed leave behind."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from annotation_files import person, write_split
from conftest import PROGRAMS, descendants, is_running, program_environment, wait_for
from pose_annotations import read_annotations
from pose_cli import UserError


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


@contextlib.contextmanager
def unreadable(file):
    """The annotation file holds nonsense meanwhile, but looks the same from outside: it must come from the cache."""
    with open(file) as good:
        text = good.read()
    status = os.stat(file)

    def write(content):
        with open(file, 'w') as same_file:
            same_file.write(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    write('?' * status.st_size)
    yield
    write(text)


def test_second_start_reads_the_cache(tmp_path):
    file, folder = write_split(tmp_path, [person(1)])
    first = read_annotations(file, folder)
    with unreadable(file):
        assert same(first, read_annotations(file, folder))
    os.remove(cache_of(file))
    with unreadable(file), pytest.raises(UserError, match='not valid JSON'):  # so it was from the cache
        read_annotations(file, folder)


def test_changed_annotations_are_read_again(tmp_path):
    file, folder = write_split(tmp_path, [person(1)])
    read_annotations(file, folder)
    write_split(tmp_path, [person(1), person(2, bbox=[200, 50, 60, 80])])
    assert len(read_annotations(file, folder).sample_image) == 2


def test_unusable_caches_are_replaced(tmp_path):
    file, folder = write_split(tmp_path, [person(1), person(2, num_keypoints=0, segmentation=[[0, 0, 9, 0, 9, 9]])])
    first = read_annotations(file, folder)
    cache = cache_of(file)
    with open(cache, 'rb') as stored:
        good = stored.read()
    with np.load(cache) as stored:
        arrays = dict(stored)
    contents = [b'', good[:len(good) // 2], good[:-1], b'PK\x03\x04 nonsense', good[:200] + b'\xff' * 50 + good[250:]]
    for name, value in (('sample_image', arrays['sample_image'] + 9), ('sample_person', arrays['sample_person'] - 1),
                        ('joints', arrays['joints'][:, :17]), ('bbox', arrays['bbox'][:0]),
                        ('file_name', arrays['file_name'][:0]),
                        ('person_start', arrays['person_start'][::-1]), ('point_range', arrays['point_range'] * 2),
                        ('count_range', arrays['point_range']),
                        ('points', arrays['points'].ravel()), ('image_size', arrays['image_size'][:, :1]),
                        ('joints', np.array([{}])), ('key', np.array('another'))):
        np.savez(cache, **dict(arrays, **{name: value}))
        with open(cache, 'rb') as stored:
            contents.append(stored.read())
    np.savez(cache, foreign=np.arange(3))
    with open(cache, 'rb') as stored:
        contents.append(stored.read())
    np.save(cache + '.npy', np.arange(3))
    with open(cache + '.npy', 'rb') as stored:
        contents.append(stored.read())
    for content in contents:
        with open(cache, 'wb') as stored:
            stored.write(content)
        assert same(first, read_annotations(file, folder))
        with unreadable(file):  # and the good one is back
            assert same(first, read_annotations(file, folder))


def test_a_folder_that_cannot_be_written_uses_the_cache_folder(tmp_path, monkeypatch, caplog):
    file, folder = write_split(tmp_path, [person(1)])
    os.mkdir(cache_of(file))  # in the way of the cache file, also for root
    first = read_annotations(file, folder)
    assert len(os.listdir(os.path.join(os.environ['XDG_CACHE_HOME'], 'openpose-training'))) == 1
    with unreadable(file):
        assert same(first, read_annotations(file, folder))
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
