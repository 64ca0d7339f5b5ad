"""The benchmarks at toy sizes: they run, and the last line of --json holds the figures that the README names."""
import numpy as np
import pytest

import bench_gpu
import networks
import reference_thin
import tensorflow.compat.v1 as tf
from bare_processes import BareProcesses
from bench_inputs import made_up_batch, made_up_weights
from conftest import ROOT, assert_user_error, run_command, run_well, summary_of
from networks.network_base import build_losses
from pose_errors import UserError
from training.devices import has_bfloat16

NAMES = sorted(path.name for path in (ROOT / 'benchmarks').glob('*_*.py')
               if path.name.startswith(('bench_', 'check_')) and path.name != 'bench_inputs.py')


def figures(name, *flags):
    return summary_of(run_well('benchmarks/' + name, '--json', *flags))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_help(name):
    text = run_well('benchmarks/' + name, '--help').stdout
    assert text.startswith('usage: benchmarks/%s' % name) and ('--json' in text) == name.startswith('bench_')


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
def test_film():
    rows = figures('bench_film.py', '--sizes', '160x96', '--frames=5')['160x96']
    assert rows.pop('ffmpeg_to_opencv') > 0 and set(rows) == {'ffmpeg', 'opencv', 'mp4v'}
    assert all(row['frames_per_s'] > 0 and row['bytes_per_frame'] > 0 and row['psnr'] > 25 for row in rows.values())


@pytest.mark.slow
def test_tracking():
    scenes = figures('bench_tracking.py', '--films=1', '--rates', '3')
    jitter = scenes.pop('jitter')
    assert set(jitter) == {'walking', 'standing'} and set(jitter['walking']) == {'truth', 'found', 'smooth'}
    assert set(scenes) == {'walker', 'jogger', 'turning', 'standing', 'crossing', 'overtaking', 'group', 'crowd'}
    assert sum(rows['3']['switches'] for rows in scenes.values()) \
        < sum(rows['3']['switches_before'] for rows in scenes.values()) / 4
    assert all(0 < rows['3'][key] <= 1 for rows in scenes.values() for key in ('right', 'right_before'))


@pytest.mark.slow
def test_tracking_through_a_network():
    scenes = figures('bench_tracking.py', '--films=1', '--rates', '3', '--scenes', 'jogger',
                     '--weights=etcs/weights/mobilenet_v2_small.npy')
    assert set(scenes) == {'jogger', 'jitter'}
    assert scenes['jogger']['3']['switches'] == 0 < scenes['jogger']['3']['switches_before']


@pytest.mark.slow
def test_coco_scale(tmp_path):
    for _ in range(2):  # with the files of the first time
        values = figures('bench_coco_scale.py', '--scale=0.001', '--folder=%s' % tmp_path)
        assert values['first_start_to_json_load'] > 0 and values['second_start_s'] > 0
        assert set(values) >= {'json_load_peak_mb', 'first_start_peak_mb', 'second_start_peak_mb', 'loader_growth_mb'}


@pytest.mark.slow
def test_intake():
    values = figures('bench_intake.py', '--input-size=64x64', '--batchsize=2', '--seconds=1', '--rounds=1')
    assert set(values) == {'%s_stride_%d_samples_per_%s' % (name, stride, unit) for name in ('intake', 'dense')
                           for stride in (8, 4) for unit in ('s', 'cpu_s')}
    assert min(values.values()) > 0


@pytest.mark.slow
def test_start():
    values = figures('bench_start.py', '--commands', 'pose_dataset.py')
    assert set(values) == {'pose_dataset.py'} and values['pose_dataset.py']['wrong_s'] > 0


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


def test_a_process_that_ends_ends_the_others():
    """The first one would wait for it for ever."""
    with pytest.raises(UserError, match='a training process ended'):
        BareProcesses(2, prefixes=[['sh', '-c', 'exec sleep 1000'], ['false']])


@pytest.mark.slow
def test_gpu():
    """On the CPU, which has neither a peak nor TF32: what is said of them is arithmetic."""
    values = figures('bench_gpu.py', '--models=mobilenet_thin', '--precisions=float32', '--batchsizes=2', '--steps=2',
                     '--warm-up=1', '--input-size=64x64', '--loader-batches=2', '--peak=2')
    row, = values['rows']
    assert (row['model'], row['precision'], row['batchsize'], row['tf32'], row['xla']) == (
        'mobilenet_thin', 'float32', 2, 'on', 'off')
    assert row['images_per_s'] == pytest.approx(2000 / row['step_ms']) and row['train_images_per_s'] > 0
    assert 0 <= row['data_wait'] < 1 and row['gpu_memory_bytes'] is None and row['xla_clusters'] == 0
    assert row['tflops'] == pytest.approx(
        values['gflops_per_image']['mobilenet_thin'] * row['images_per_s'] / 1000)
    assert row['utilization'] == pytest.approx(row['tflops'] / 2) and values['card'] is None
    rates = values['samples_per_core_s']
    assert set(rates) == {'cmu', 'strong'} and row['cores'] == pytest.approx(
        row['images_per_s'] / rates['cmu']['stride 8'])


@pytest.mark.slow
@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='on CPUs it compiles for minutes there')
def test_xla_compiles_parts_of_a_step():
    row, = figures('bench_gpu.py', '--models=mobilenet_thin', '--precisions=float32', '--batchsizes=1', '--steps=1',
                   '--warm-up=1', '--input-size=64x64', '--loader-batches=1', '--feeds=memory', '--xla=on')['rows']
    assert row['xla_clusters'] > 0 and 'train_images_per_s' not in row


def test_gpu_settings():
    flags = bench_gpu.parse_flags(['--models=cmu', '--batchsizes=4', '--tf32=on,off', '--xla=off,on', '--loader-only'])
    settings = bench_gpu.settings_of(flags)
    assert [setting[1:4] for setting in settings] == [
        ('float32', 'on', 'off'), ('float32', 'on', 'on'), ('float32', 'off', 'off'), ('float32', 'off', 'on'),
        ('mixed', 'on', 'off'), ('mixed', 'on', 'on')]
    assert bench_gpu.environment(settings[0]) == {}
    assert bench_gpu.environment(settings[3])['NVIDIA_TF32_OVERRIDE'] == '0'
    assert '--tf_xla_auto_jit=2' in bench_gpu.environment(settings[3])['TF_XLA_FLAGS']
    assert bench_gpu.gflops_of_step('cmu', (368, 368)) == pytest.approx(816, rel=0.001)
    assert bench_gpu.parse_flags([]).precisions == ['float32', 'mixed'][:1 + has_bfloat16()]


@pytest.mark.parametrize('card, precision, tf32, peak', [
    ('NVIDIA H100 80GB HBM3', 'mixed', 'on', 989), ('NVIDIA H100 PCIe', 'mixed', 'on', 756),
    ('NVIDIA H200', 'float32', 'on', 495), ('NVIDIA H200', 'float32', 'off', 67),
    ('NVIDIA A100-SXM4-40GB', 'float32', 'on', 156), ('NVIDIA A100 80GB PCIe', 'mixed', 'on', 312),
    ('Tesla V100-SXM2-16GB', 'float32', 'on', 15.7), ('Tesla T4', 'mixed', 'on', 65),
    ('NVIDIA GeForce RTX 4090', 'mixed', 'on', 165.2), ('NVIDIA GeForce RTX 4090 Laptop GPU', 'mixed', 'on', None),
    ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', 'mixed', 'on', None), ('NVIDIA T400', 'mixed', 'on', None)])
def test_peaks_are_those_of_the_card_that_cuda_names(card, precision, tf32, peak):
    setting = bench_gpu.Setting('cmu', precision, tf32, 'off', 16)
    assert bench_gpu.peak_of(card, setting) == peak


def test_a_setting_that_fails_has_its_error_in_its_row(tmp_path):
    flags = bench_gpu.parse_flags(['--feeds=train', '--loader-only'])
    row = bench_gpu.measure(bench_gpu.Setting('cmu', 'float32', 'on', 'off', 2), flags, '/nowhere', str(tmp_path / 'a'))
    assert 'train.py ended: error: ' in row['error'] and '/nowhere' in row['error']
    assert row['model'] == 'cmu' and row['error'] in bench_gpu.format_row(row)


@pytest.mark.slow
def test_train_step():
    values = figures('bench_train_step.py', '--input-size=64x64', '--batchsize=1', '--rounds=1', '--steps=1')
    assert values['ratio'] == pytest.approx(values['step_ms'] / values['reference_ms']) and values['cpu_ratio'] > 0
    assert values['tensorflow'] == values['reference_tensorflow'] == tf.__version__
    assert values['model'] == 'mobilenet_thin' and values['precision'] == 'float32'


@pytest.mark.slow
def test_precision():
    arguments = '--models=mobilenet_thin', '--input-size=64x64', '--batchsize=1', '--rounds=1', '--steps=1'
    if not has_bfloat16():
        assert_user_error(run_command('benchmarks/bench_precision.py', *arguments), '--precision=mixed')
        return
    values = figures('bench_precision.py', *arguments)['mobilenet_thin']
    assert values['ratio'] == pytest.approx(values['mixed_ms'] / values['float32_ms'])
    assert 0 < values['loss_difference'] < 0.02  # bfloat16 has 8 bits of precision


def step_of(build, values_of):
    """What a graph computes with weights that follow from the variables' names, and what a step makes of them.

    build: () -> (stages, loss, what to run for a step, {name: placeholder}).
    """
    with tf.Graph().as_default(), tf.Session() as session:
        stages, loss, step, placeholders = build()
        feed = {placeholder: values_of[name] for name, placeholder in placeholders.items()}
        trained = tf.trainable_variables()
        session.run(tf.global_variables_initializer())
        values = {variable: made_up_weights(variable.op.name, variable.shape.as_list()) if len(variable.shape) == 4
                  else np.linspace(-0.1, 0.2, variable.shape.as_list()[0], dtype=np.float32) for variable in trained}
        session.run([variable.initializer for variable in trained],
                    {variable.initializer.inputs[1]: value for variable, value in values.items()})
        outputs, _ = session.run([[loss] + [maps for stage in stages for maps in stage], step], feed)
        after = {variable.op.name: value for variable, value in
                 session.run({variable: variable.read_value() for variable in tf.global_variables()}).items()}
    return {variable.op.name: value for variable, value in values.items()}, outputs, after


@pytest.mark.slow
def test_the_reference_trainer_has_our_layers_and_losses():
    """In training: a yardstick of other layers, or one that does less, would measure nothing."""
    image, heatmap, paf, mask = made_up_batch(np.random.RandomState(0), 2, 64, 64, 8, people=1)
    sample = {'image': image, 'heatmap': heatmap, 'paf': paf}

    def ours():
        pixels = tf.placeholder(tf.uint8, image.shape)
        network = networks.get_network('mobilenet_thin', pixels, is_training=True)
        loss = build_losses(network.stages, heatmap, paf, mask, len(image))['loss']
        return network.stages, loss, tf.get_collection(tf.GraphKeys.UPDATE_OPS), {'image': pixels}

    def reference():
        built = reference_thin.build(2, 64, 64)
        return built.stages, built.loss, built.step, {name: getattr(built, name) for name in sample}

    (weights, outputs, after), (their_weights, their_outputs, their_after) = [
        step_of(build, sample) for build in (ours, reference)]
    assert {name: value.shape for name, value in their_weights.items()} == \
        {name: value.shape for name, value in weights.items()}
    assert len(outputs) == len(their_outputs) == 1 + 2 * 6
    for output, theirs in zip(outputs, their_outputs):
        assert np.abs(output - theirs).max() <= 1e-3 * np.abs(output).max()
    for name, value in after.items():
        if name.endswith(('/moving_mean', '/moving_variance')):
            np.testing.assert_allclose(their_after[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert [name for name, value in their_weights.items() if np.array_equal(value, their_after[name])] == []


@pytest.mark.slow
def test_memory():
    values = figures('bench_memory.py', '--steps=40')
    assert values['steps'] == 40 and values['last_mib'] > 0


@pytest.mark.parametrize('name, flag, mention', [
    ('bench_train_step.py', '--reference-python=/nowhere/python', '/nowhere/python'),
    ('bench_data.py', '--input-size=60x64', '8'), ('bench_gpu.py', '--input-size=60x64', '8')])
def test_wrong_flags(name, flag, mention):
    assert_user_error(run_command('benchmarks/' + name, flag), flag, mention)
