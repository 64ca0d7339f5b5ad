"""The cache of annotations: when it is read, when not, and what processes that are killed leave behind."""
import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from annotation_files import person, write_split
from annotations.arrays import read_annotations
from conftest import PROGRAMS, descendants, is_running, program_environment, wait_for

pytestmark = pytest.mark.usefixtures('own_cache')


def start_reader(file, folder):
    """A process that reads annotations and prints their number and the shape of the joints."""
    return subprocess.Popen([sys.executable, str(PROGRAMS / 'read_annotations.py'), file, folder],
                            env=program_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)


def cache_of(file):
    """Its cache, the only one whose name begins so in the test's own cache folder."""
    folder = pathlib.Path(os.environ['XDG_CACHE_HOME']) / 'openpose-training'
    cache, = [path for path in folder.iterdir() if path.name.startswith(os.path.basename(file))]
    return str(cache)


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
    """Not beside the annotation file: data may come from anybody, and what lies beside it too."""
    file, folder = write_split(tmp_path / 'a', [person(1)])
    first, from_cache = read_from_cache(file, folder, caplog)
    assert not from_cache
    again, from_cache = read_from_cache(file, folder, caplog)
    assert from_cache and same(first, again)
    assert os.listdir(os.path.dirname(file)) == [os.path.basename(file)]
    assert os.stat(os.path.dirname(cache_of(file))).st_mode & 0o77 == 0
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


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:len(data) // 2], lambda data: b'PK\x03\x04 no',
                                    lambda data: data[:200] + b'\xff' * 50 + data[250:]])
def test_a_damaged_cache_is_replaced(damage, tmp_path, caplog):
    file, folder = write_split(tmp_path / 'data', [person(1)])
    first = read_annotations(file, folder)
    cache = pathlib.Path(cache_of(file))
    cache.write_bytes(damage(cache.read_bytes()))
    again, from_cache = read_from_cache(file, folder, caplog)
    assert not from_cache and same(first, again)
    assert read_from_cache(file, folder, caplog)[1]


@pytest.mark.parametrize('place', ['/dev/full', os.devnull])
def test_without_room_for_a_cache_annotations_are_read_all_the_same(place, tmp_path, monkeypatch, capfd, caplog):
    file, folder = write_split(tmp_path, [person(1)])
    monkeypatch.setenv('XDG_CACHE_HOME', place)
    assert len(read_annotations(file, folder).sample_image) == 1
    assert 'Traceback' not in capfd.readouterr().err and caplog.text.count('no cache') <= 1


def test_several_processes_start_at_once(tmp_path):
    images = [{'id': i, 'file_name': '%d.jpg' % i, 'width': 320, 'height': 240} for i in range(1, 501)]
    file, folder = write_split(tmp_path, [person(i, image_id=i) for i in range(1, 501)], images)
    processes = [start_reader(file, folder) for _ in range(4)]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, '500 (500, 18, 2)\n'), errors
    assert os.listdir(os.path.dirname(cache_of(file))) == [os.path.basename(cache_of(file))]


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


@pytest.mark.parametrize('interrupted', [['child'], ['child', 'reader'], ['reader', 'child']])
def test_interrupted_reading_is_one_line(interrupted, blocked_reader):
    """Whichever process Ctrl-C reaches first; the reader may get it when it exits already."""
    _, reader, child = blocked_reader
    time.sleep(0.3)  # the child handles signals from its first lines on
    for process in interrupted:
        with contextlib.suppress(ProcessLookupError):  # the one ends with the other
            os.kill(child if process == 'child' else reader.pid, signal.SIGINT)
    _, errors = reader.communicate(timeout=20)
    assert (reader.returncode, errors.splitlines()[-1:]) in ((130, ['interrupted']), (-signal.SIGINT, ['interrupted']),
                                                             (-signal.SIGINT, []))
    assert 'Traceback' not in errors
    wait_for(lambda: not is_running(child), 'it still runs', 20)
