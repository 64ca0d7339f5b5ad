"""The benchmarks at toy sizes: they run, and the last line of --json holds the figures that the README names.

Of check_kill_resume.py only --help and what it calls an error: tests/training kills and resumes train.py itself.
"""
import json

import pytest

import check_kill_resume
from conftest import ROOT, assert_user_error, run_command

NAMES = sorted(path.name for path in (ROOT / 'benchmarks').glob('*_*.py')
               if path.name.startswith(('bench_', 'check_')) and path.name != 'bench_inputs.py')


def figures(name, *flags):
    result = run_command('benchmarks/' + name, '--json', *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_help(name):
    result = run_command('benchmarks/' + name, '--help')
    assert result.returncode == 0 and result.stdout.startswith('usage: benchmarks/%s' % name), result.stderr
    assert ('--json' in result.stdout) == name.startswith('bench_')


@pytest.mark.parametrize('logged, resumed, good', [
    (273, 274, True), (273, 273, True), (273, 271, True), (273, 270, False), (273, 275, False), (273, 0, False),
    (0, 0, True), (1, 0, True)])
def test_a_kill_between_save_and_log_is_no_false_alarm(logged, resumed, good):
    assert check_kill_resume.resumed_well(logged, resumed, save_every=2) == good


@pytest.mark.slow
def test_data():
    values = figures('bench_data.py', '--input-size=64x64', '--samples=2', '--rounds=1', '--seconds=1')
    assert set(values) >= {'decode_ms', 'read_ms', 'warp_ms', 'maps_ms', 'mask_ms', 'sample_ms', 'maps_5_people_ms',
                           'maps_20_people_ms', 'sample_to_decode', 'speedup_2_processes', 'samples_per_s_1_processes',
                           'samples_per_s_2_processes'}
    assert values['sample_to_decode'] == pytest.approx(values['sample_ms'] / values['decode_ms'])


def test_decode():
    values = figures('bench_decode.py', '--repeats=1', '--crowds=1')
    assert values['people_1_size_368']['found'] == 1 and values['people_5_size_736']['found'] == 5
    crowds = [values.pop('crowd_%d_%s' % (size, maps)) for size in (368, 736) for maps in ('labels', 'noisy')]
    assert all(set(row) == {'AP', 'AP50', 'found', 'decode_ms'} and row['AP'] > 0.2 for row in crowds)
    assert all(set(row) == {'found', 'decode_ms', 'enlarged_ms', 'enlarged_to_decode'} for row in values.values())


@pytest.mark.slow
def test_finder():
    values = figures('bench_finder.py', '--input-size=64x64', '--rounds=1', '--settings', 'flip')
    assert set(values) == {'single', 'flip'} and set(values['flip']) == {'ms', 'time', 'waiting'}
    assert values['single']['time'] == 1


@pytest.mark.slow
def test_coco_scale(tmp_path):
    for _ in range(2):  # with the files of the first time
        values = figures('bench_coco_scale.py', '--scale=0.001', '--folder=%s' % tmp_path)
        assert values['first_start_to_json_load'] > 0 and values['second_start_s'] > 0
        assert set(values) >= {'json_load_peak_mb', 'first_start_peak_mb', 'second_start_peak_mb', 'loader_growth_mb'}


@pytest.mark.slow
def test_networks():
    values = figures('bench_networks.py', '--models=mobilenet_thin', '--input-size=64x64', '--batchsize=1', '--steps=1')
    row, = values['models']
    assert row['model'] == 'mobilenet_thin' and values['input_size'] == [64, 64]
    assert min(row[key] for key in row if key != 'model') > 0


@pytest.mark.slow
def test_runtimes(sample_coco):
    """Those that come with requirements.txt; of the others, what is installed."""
    rows = figures('bench_runtimes.py', '--models=mobilenet_thin', '--input-size=64x64', '--runs=1', '--max-images=2',
                   '--datapath=%s' % sample_coco)['mobilenet_thin']
    assert set(rows) >= {'tensorflow_frozen', 'tensorflow_opt', 'tflite_float', 'tflite_int8', 'opencv_dnn'}
    for name, row in rows.items():
        assert row['latency_ms'] > 0 and -1 <= row['AP'] <= 1
        assert row['max_rel_diff'] < (0.05 if name.endswith(('int8', '16')) else 1e-4), name
    assert rows['tflite_int8']['bytes'] <= 0.34 * rows['tensorflow_frozen']['bytes']


@pytest.mark.slow
def test_remote():
    values = figures('bench_remote.py', '--seconds=1', '--rounds=1', '--input-size=64x64', '--batchsize=2')
    assert values['samples_per_s'] > 0 and values['tensorpack_samples_per_s'] > 0
    assert values['ratio'] == pytest.approx(values['samples_per_s'] / values['tensorpack_samples_per_s'])
    assert 64 * 64 * 3 < values['bytes_per_sample'] < 64 * 64 * 3 * 1.5


@pytest.mark.slow
def test_towers(sample_coco):
    values = figures('bench_towers.py', '--input-size=64x64', '--batchsize=2', '--rounds=1', '--steps=1', '--warm-up=1',
                     '--datapath=%s' % sample_coco)
    assert values['size'] == 64 and set(values) >= {'tower_overhead', 'trainer_overhead', 'remote_trainer_overhead'}
    assert min(values[key] for key in values if key.endswith('examples_per_s')) > 0


@pytest.mark.slow
def test_memory():
    values = figures('bench_memory.py', '--steps=40')
    assert values['steps'] == 40 and values['last_mib'] > 0


def test_input_that_does_not_fit_the_stride():
    assert_user_error(run_command('benchmarks/bench_data.py', '--input-size=60x64'), '--input-size=60x64', '8')
