"""What the processes of a run compare: flags that change training, and the sources."""
import pose_files
from training.cluster import LOCAL_FLAGS, common_flags


def test_flags_that_tell_where_things_are_may_differ():
    flags = {'batchsize': 8, 'input_width': 368, 'datapath': '/data', 'workers': 4, 'remote_data': None}
    assert common_flags(flags) == {'--batchsize': 8, '--input-width': 368}


def test_local_flags_exist():
    import sys

    from training import config
    argv, sys.argv = sys.argv, ['train.py']
    try:
        assert set(LOCAL_FLAGS) < set(vars(config.parse_flags()))
    finally:
        sys.argv = argv


def test_the_code_has_a_checksum(tmp_path, monkeypatch):
    assert pose_files.sources_digest('*.py') == pose_files.sources_digest('*.py') != pose_files.sources_digest('*/*.py')
    monkeypatch.setattr(pose_files, '__file__', str(tmp_path / 'pose_files.py'))
    (tmp_path / 'training').mkdir()
    (tmp_path / 'train.py').write_text('step = 1\n')
    before = pose_files.sources_digest('*.py', 'training/*.py')
    (tmp_path / 'training' / 'notes.txt').write_text('nothing that runs')
    (tmp_path / 'train.py').write_bytes(b'step = 1\r\n')
    assert pose_files.sources_digest('*.py', 'training/*.py') == before
    (tmp_path / 'train.py').write_text('step = 2\n')
    assert pose_files.sources_digest('*.py', 'training/*.py') != before
