"""Who takes part: TF_CONFIG as Kubeflow sets it, Slurm's variables, and what is wrong in them; what all compare."""
import json

import pytest

import pose_files
from pose_errors import UserError
from training import config
from training.cluster import ALONE, LOCAL_FLAGS, Cluster, common_flags, expand_nodes, read_cluster


def tf_config(cluster, kind='worker', index=0):
    return {'TF_CONFIG': json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': index}})}


def test_without_variables_a_process_is_alone():
    assert read_cluster({}) == ALONE and ALONE.size == 1 and ALONE.is_first
    assert read_cluster(tf_config({'worker': ['node1:2222']})) == ALONE
    assert read_cluster({'SLURM_PROCID': '0', 'SLURM_NTASKS': '8'}) == ALONE  # a batch script, before srun


def test_tf_config_and_a_chief_who_is_the_first_worker():
    cluster = read_cluster(tf_config({'worker': ['node1:2222', 'node2:2222']}, index=1))
    assert cluster == Cluster(('node1:2222', 'node2:2222'), 1) and not cluster.is_first
    jobs = {'chief': ['node1:2222'], 'worker': ['node2:2222', 'node3:2222']}
    workers = 'node1:2222', 'node2:2222', 'node3:2222'
    assert read_cluster(tf_config(jobs, 'chief')) == Cluster(workers, 0)
    assert read_cluster(tf_config(jobs, 'worker', 1)) == Cluster(workers, 2)
    # Second ports meet no other.
    assert Cluster(('here:2222', 'here:2223', 'there:2222', '[::1]:80'), 0).addresses == [
        ('here', 2224), ('here', 2225), ('there', 2223), ('[::1]', 81)]


@pytest.mark.parametrize('variables, mention', [
    ({'TF_CONFIG': '{"cluster": '}, 'does not describe a cluster'),
    ({'TF_CONFIG': '[]'}, 'does not describe a cluster'),
    (tf_config({'worker': ['node1:2222', 'node2:2222']}, index=2), 'none of its 2 workers'),
    (tf_config({'worker': ['node1:2222', 'node2:2222'], 'ps': ['node3:2222']}, 'ps'), "'ps'"),
    (tf_config({'worker': ['node1', 'node2']}), "'node1'; write HOST:PORT"),
    (tf_config({'worker': ['node1:2222', 7]}), 'HOST:PORT'),
    (tf_config({'worker': ['node1:99999', 'node2:2222']}), 'HOST:PORT'),
    (tf_config({'worker': ['node1:2222', 'node1:2222']}), 'twice'),
])
def test_what_is_wrong_is_named(variables, mention):
    with pytest.raises(UserError) as caught:
        read_cluster(variables)
    assert mention in str(caught.value) and caught.value.exit_code == 2


def slurm(**changes):
    variables = {'JOB_ID': '1000', 'PROCID': '3', 'STEP_NUM_TASKS': '5', 'STEP_NODELIST': 'n[9-11]',
                 'STEP_TASKS_PER_NODE': '2(x2),1'}
    return {'SLURM_' + name: value for name, value in dict(variables, **changes).items() if value is not None}


def test_slurm_gives_tasks_to_nodes_in_the_order_of_their_numbers():
    cluster = read_cluster(slurm())
    assert [worker.split(':')[0] for worker in cluster.workers] == ['n9', 'n9', 'n10', 'n10', 'n11']
    assert cluster.index == 3 and len(set(cluster.workers)) == 5
    assert set(cluster.workers).isdisjoint(read_cluster(slurm(JOB_ID='1001')).workers)


@pytest.mark.parametrize('changes', [{'STEP_NODELIST': None}, {'STEP_NODELIST': 'n[1'}, {'STEP_NUM_TASKS': '6'},
                                     {'STEP_TASKS_PER_NODE': '2'}, {'STEP_TASKS_PER_NODE': 'two'}, {'PROCID': '5'}])
def test_slurm_variables_that_do_not_fit(changes):
    with pytest.raises(UserError, match='srun, or set TF_CONFIG'):
        read_cluster(slurm(**changes))


@pytest.mark.parametrize('text, nodes', [
    ('n1', ['n1']), ('n1,m2', ['n1', 'm2']), ('n[1-2,07],m5', ['n1', 'n2', 'n07', 'm5']),
    ('n[08-11]', ['n08', 'n09', 'n10', 'n11']), ('r[1-2].site', ['r1.site', 'r2.site'])])
def test_lists_of_nodes(text, nodes):
    assert expand_nodes(text) == nodes


def test_flags_that_tell_where_things_are_may_differ(monkeypatch):
    flags = {'batchsize': 8, 'input_width': 368, 'datapath': '/data', 'workers': 4, 'remote_data': None}
    assert common_flags(flags) == {'--batchsize': 8, '--input-width': 368}
    monkeypatch.setattr('sys.argv', ['train.py'])
    assert set(LOCAL_FLAGS) < set(vars(config.parse_flags()))


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
