"""Files: only regular ones are read, written ones are whole; and what this process may use of the machine."""
import os
import subprocess
import sys

import pytest

from pose_errors import UserError
from pose_files import check_tensorflow_path, free_folder, read_file, usable_cores, usable_memory, write_file


def test_files_of_at_most_so_many_bytes(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert read_file(str(tmp_path / 'a'), 3) == read_file(os.fsencode(str(tmp_path / 'a')), 9) == b'abc'
    with pytest.raises(OSError, match='longer than the 2 bytes that are read'):
        read_file(str(tmp_path / 'a'), 2)
    os.truncate(str(tmp_path / 'a'), 10 ** 12)  # without taking any place on the disk
    with pytest.raises(OSError, match='MB'):
        read_file(str(tmp_path / 'a'), 10 ** 9)


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    """A pipe to which nobody writes, and a device without an end, would be waited for and read for ever."""
    os.mkfifo(str(tmp_path / 'pipe'))
    os.symlink('/dev/zero', str(tmp_path / 'zero'))
    for name, reason in (('pipe', 'not a regular file'), ('zero', 'not a regular file'), ('.', 'a folder'),
                         ('none', 'No such file'), ('a\0b', 'zero byte')):
        with pytest.raises(OSError, match=reason):
            read_file(os.path.join(str(tmp_path), name), 100)
    assert len(os.listdir('/proc/self/fd')) < 50


def test_a_killed_write_leaves_nothing_for_ever(tmp_path):
    """Not even its temporary file: the next write of that name removes it, but not that of a process at work."""
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    (tmp_path / ('.a.json.%d.tmp' % child.pid)).write_text('half')
    before = os.umask(0o027)
    write_file(str(tmp_path / 'a.json'), b'{}')
    os.umask(before)
    assert (tmp_path / 'a.json').stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(str(tmp_path))) == sorted(['.a.json.%d.tmp' % child.pid, 'a.json'])
    child.kill()
    child.wait()
    write_file(str(tmp_path / 'a.json'), b'[]')
    assert os.listdir(str(tmp_path)) == ['a.json'] and (tmp_path / 'a.json').read_text() == '[]'


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('old')
    monkeypatch.setattr(os, 'replace', lambda *paths: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(UserError, match='cannot write .*a: No space left on device; free some space'):
        write_file(str(tmp_path / 'a'), b'new')
    assert os.listdir(str(tmp_path)) == ['a'] and (tmp_path / 'a').read_text() == 'old'


@pytest.mark.parametrize('name', ['models/th*', 'run[1]', 'what?', 'a\\b'])
def test_names_that_tensorflow_takes_for_patterns_are_refused(name):
    with pytest.raises(UserError, match='TensorFlow takes for a pattern'):
        check_tensorflow_path(name, '--modelpath')


def machine(folder, cgroup, **files):
    """A root folder with /proc/self/cgroup of these lines and files of /sys/fs/cgroup, '/' written as '__'."""
    (folder / 'proc' / 'self').mkdir(parents=True)
    (folder / 'proc' / 'self' / 'cgroup').write_text(cgroup)
    for name, text in files.items():
        path = folder / 'sys' / 'fs' / 'cgroup' / name.replace('__', '/').replace('_dot_', '.')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n')
    return str(folder)


@pytest.mark.parametrize('cgroup, files, cores, memory', [
    ('0::/\n', {'cpu_dot_max': '100000 100000', 'memory_dot_max': '1000000'}, 1, 10 ** 6),
    ('0::/a/b\n', {'a__cpu_dot_max': '50000 100000', 'a__b__cpu_dot_max': 'max 100000', 'a__memory_dot_max': '7',
                   'a__b__memory_dot_max': 'max'}, 1, 7),
    ('4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n', {
        'memory__docker__1__memory_dot_limit_in_bytes': '5000',
        'memory__memory_dot_limit_in_bytes': '9223372036854771712',
        'cpu__docker__1__cpu_dot_cfs_quota_us': '100000', 'cpu__docker__1__cpu_dot_cfs_period_us': '100000'}, 1, 5000)])
def test_a_container_s_limits_count(cgroup, files, cores, memory, tmp_path):
    root = machine(tmp_path, cgroup, **files)
    assert (usable_cores(root), usable_memory(root)) == (cores, memory)


def test_without_control_groups_the_machine_and_the_affinity_count(tmp_path):
    cores = os.sched_getaffinity(0)
    assert usable_cores(str(tmp_path)) == len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert usable_memory(str(tmp_path)) == os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def test_a_folder_is_free_when_it_is_not_there(tmp_path):
    """An empty one may be that of a command that writes at its end."""
    path = str(tmp_path / 'eval')
    assert free_folder(path) == path
    os.mkdir(path)
    assert free_folder(path) == path + '-2'


def test_the_longest_names_are_written_and_a_large_folder_is_not_listed_each_time(tmp_path, monkeypatch):
    name = 'x' * 250 + '.json'
    write_file(str(tmp_path / name), b'{}')
    assert os.listdir(str(tmp_path)) == [name]
    listed = []
    monkeypatch.setattr('os.listdir', lambda path: listed.append(path) or [])
    write_file(str(tmp_path / name), b'[]', tidy=False)
    assert not listed
