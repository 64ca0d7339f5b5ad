"""Writes that fail for want of space, of quota and of a sound disk: one line each, never a traceback, on any file.

test_no_lost_work.py has the whole command on a disk that is really full.
"""
import errno
import json
import os
import shutil
import subprocess

import pytest

from conftest import PROGRAMS, program_environment, run_program

REASONS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)]
# Where the write fails -> what its line names beside the reason.
CHECKPOINT = ['model-2.data', 'model-2.index', '/checkpoint', 'best/']
LOG = ['curves.csv', 'tfevents']
OTHERS = ['best.json', 'run.json', 'sample_00.png', 'graph_opt.pb', 'saved_model', 'weights.npy']
GO_ON = ['any', '.npz']  # the log while training, and the cache of the annotations

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def failing_disk(tmp_path_factory):
    """The environment variable that makes writes fail; which and how, see failing_disk.c."""
    compiler = shutil.which('cc') or shutil.which('gcc')
    if not compiler:
        pytest.skip('no C compiler')
    library = tmp_path_factory.mktemp('library') / 'failing_disk.so'
    subprocess.run([compiler, '-shared', '-fPIC', '-o', str(library), str(PROGRAMS / 'failing_disk.c'), '-ldl'],
                   check=True)
    return {'LD_PRELOAD': str(library)}


def test_every_fault_of_every_file_is_one_line(failing_disk, sample_coco, tmp_path):
    shutil.copytree(str(sample_coco), str(tmp_path / 'data'))
    for cache in (tmp_path / 'data' / 'annotations').glob('.*.npz'):
        cache.unlink()
    (tmp_path / 'run').mkdir()
    result = run_program('disk_faults.py', tmp_path / 'run', tmp_path / 'data',
                         env=program_environment(**failing_disk))
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert [row[:2] for row in outcomes if row[2].startswith('traceback')] == []
    assert len(outcomes) == len(REASONS) * len(CHECKPOINT + LOG + OTHERS + GO_ON)
    for place, reason, outcome in outcomes:
        if place in GO_ON:
            assert outcome == 'went on'
        elif place in CHECKPOINT:
            told = 'disk of %s is full' if reason == os.strerror(errno.ENOSPC) else 'cannot write in %s: ' + reason
            assert told % (tmp_path / 'run') in outcome and 'nothing was saved yet' in outcome
        else:
            name = '--logpath=%s' % (tmp_path / 'run') if place in LOG else place
            assert outcome.startswith('cannot write') and name in outcome and reason in outcome
    for reason in REASONS:
        assert result.stderr.count('%s; the run goes on' % reason) == 1
        assert 'no cache of the annotations' in result.stderr
    assert 'Traceback' not in result.stderr
