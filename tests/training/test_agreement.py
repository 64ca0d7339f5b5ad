"""What the processes of a run compare: flags that change training, and the sources."""
from training.agreement import LOCAL_FLAGS, code_version, common_flags


def test_flags_that_tell_where_things_are_may_differ():
    flags = {'batchsize': 8, 'input_width': 368, 'datapath': '/data', 'workers': 4, 'remote_data': None}
    assert common_flags(flags) == {'--batchsize': 8, '--input-width': 368}


def test_local_flags_exist():
    import sys
    import train
    argv, sys.argv = sys.argv, ['train.py']
    try:
        assert set(LOCAL_FLAGS) < set(vars(train.parse_flags()))
    finally:
        sys.argv = argv


def test_the_code_has_a_version(tmp_path, monkeypatch):
    assert code_version() == code_version()
    for folder in ('', 'networks', 'remote', 'training'):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / 'train.py').write_text('step = 1\n')
    monkeypatch.setattr('training.agreement.ROOT', str(tmp_path))
    before = code_version()
    (tmp_path / 'training' / 'notes.txt').write_text('nothing that runs')
    assert code_version() == before
    (tmp_path / 'train.py').write_text('step = 2\n')
    assert code_version() != before
