"""Only regular files are read, and no more of them than is wanted."""
import os

import pytest

from pose_files import read_file


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
