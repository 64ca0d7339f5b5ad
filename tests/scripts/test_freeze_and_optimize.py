"""The command that freezes, folds and quantizes, run as its users run it; and its steps by hand."""
import collections
import json
import sys

import numpy as np
import pytest

import export_graphs
import freeze_and_optimize
import pose_dataset
import tensorflow.compat.v1 as tf
import tool_files
from annotations.skeleton import COCO_SKELETON
from conftest import PROGRAMS, ROOT, assert_user_error, run_bash, run_command, run_well
from graphs import freeze, graphdef, optimize
from networks.pretrained import find_checkpoint
from pose_errors import UserError
from small_graphs import HAS_TRANSFORMS, RNG, SIZE, conv, frozen_graph, fused_norm, ops, outputs, save_checkpoint


@pytest.fixture(scope='module')
def thin(tmp_path_factory):
    """The folder of a checkpoint of mobilenet_thin."""
    folder = tmp_path_factory.mktemp('thin')
    save_checkpoint('mobilenet_thin', folder / 'model', training_steps=3)
    (folder / 'run.json').write_text(json.dumps({'flags': {'model': 'mobilenet_thin'}}))
    return folder


def run_script(*args):
    """Run the shell script as a user does, with this interpreter."""
    return run_bash(ROOT / 'scripts' / 'freeze_and_optimize.sh', *args, cwd='/')


@pytest.fixture(scope='module')
def run_folder(thin, sample_coco, tmp_path_factory):
    """What one run of the command leaves, with --quantize where that exists."""
    folder = tmp_path_factory.mktemp('graphs')
    flags = ['--checkpoint=%s' % thin, '--output-dir=%s' % folder, '--runs=3',
             '--input-size=%dx%d' % (SIZE, SIZE), '--datapath=%s' % sample_coco]
    result = run_script(*flags + ['--quantize'] * HAS_TRANSFORMS)
    assert result.returncode == 0, result.stderr
    (folder / 'stdout').write_text(result.stdout)
    return folder


@pytest.mark.slow
def test_graphs_run_in_a_process_without_the_project(run_folder, sample_coco, tmp_path):
    names = ['graph_frozen', 'graph_opt'] + ['graph_q'] * HAS_TRANSFORMS
    dataset = pose_dataset.PoseDataset(str(sample_coco), 'val2017', SIZE, SIZE, 8)
    samples = list(pose_dataset.validation_samples(dataset))
    np.save(str(tmp_path / 'images.npy'), np.array([sample.image for sample in samples]))
    run_well(PROGRAMS / 'run_graphs.py', tmp_path / 'images.npy', tmp_path / 'outputs.npy',
             *[run_folder / (name + '.pb') for name in names], cwd=str(tmp_path))
    results = np.load(str(tmp_path / 'outputs.npy'))
    report = json.loads((run_folder / 'report.json').read_text())
    assert list(report) == names
    largest = np.abs(results[0]).max()
    for name, result in zip(names, results):
        row = report[name]
        difference = np.abs(result - results[0])
        assert difference.max() <= {'graph_frozen': 0, 'graph_opt': 1e-4, 'graph_q': 0.2}[name] * largest
        np.testing.assert_allclose(row['max_abs_diff'], difference.max(), rtol=0.1, atol=1e-6 * largest)
        np.testing.assert_allclose(row['mean_abs_diff'], difference.mean(), rtol=0.1, atol=1e-6 * largest)
        np.testing.assert_allclose(row['max_rel_diff'], difference.max() / largest, rtol=0.1, atol=1e-6)
        losses = [np.sum((sample.mask * (maps[:, :, :19] - sample.heatmap)) ** 2 + 0.0) / 2
                  + np.sum((sample.mask * (maps[:, :, 19:] - sample.paf)) ** 2) / 2
                  for maps, sample in zip(result, samples)]
        np.testing.assert_allclose(row['validation_loss'], np.mean(losses), rtol=1e-4)


@pytest.mark.slow
def test_report_and_table(run_folder):
    """And how small the quantized graph is."""
    report = json.loads((run_folder / 'report.json').read_text())
    printed = (run_folder / 'stdout').read_text()
    for name, row in report.items():
        assert row['bytes'] == (run_folder / (name + '.pb')).stat().st_size
        graph = freeze.load_graph(str(run_folder / (name + '.pb')))
        assert row['ops'] == dict(collections.Counter(node.op for node in graph.node))
        assert row['nodes'] == sum(row['ops'].values())
        assert row['latency_ms'] > 0
        assert row['latency_ratio'] == pytest.approx(row['latency_ms'] / report['graph_frozen']['latency_ms'])
        assert '\n' + name in printed
    assert report['graph_frozen']['batch_norms'] == 72
    assert report['graph_opt']['batch_norms'] == 0
    placeholder = [node for node in freeze.load_graph(str(run_folder / 'graph_opt.pb')).node
                   if node.op == 'Placeholder']
    assert [[dim.size for dim in node.attr['shape'].shape.dim] for node in placeholder] == [[1, SIZE, SIZE, 3]]
    assert not [path.name for path in run_folder.iterdir() if path.name.startswith('.')]
    if not HAS_TRANSFORMS:
        return
    assert report['graph_q']['bytes'] < 0.4 * report['graph_frozen']['bytes']
    assert report['graph_q']['ops']['QuantizedConv2D'] == report['graph_opt']['ops']['Conv2D']
    weights = freeze.run_transforms(freeze.load_graph(str(run_folder / 'graph_opt.pb')), ['image'],
                                    [graphdef.OUTPUT], ['add_default_attributes', 'quantize_weights'])
    assert weights.ByteSize() < 0.3 * report['graph_frozen']['bytes']


@pytest.mark.slow
@pytest.mark.skipif(HAS_TRANSFORMS, reason='TensorFlow 1.x can quantize')
def test_quantize_says_that_it_needs_tensorflow_1(thin, refused):
    message = refused('--model=mobilenet_thin', '--checkpoint=%s' % thin, '--quantize')
    assert all(part in message for part in ('--quantize=nodes', 'TensorFlow 1.x', 'TF=1', '--quantize=int8'))


BY_HAND = ('strip_unused_nodes(type=float, shape="1,%d,%d,3") remove_nodes(op=Identity, op=CheckNumerics) '
           'fold_constants(ignore_errors=true) fold_old_batch_norms fold_batch_norms' % (SIZE, SIZE))


@pytest.mark.slow
def test_steps_by_hand(run_folder, thin, tmp_path):
    frozen = tmp_path / 'frozen.pb'
    run_well('-m', 'tensorflow.python.tools.freeze_graph', '--input_graph=%s' % (run_folder / 'graph.pb'),
             '--input_checkpoint=%s' % find_checkpoint(str(thin)), '--output_graph=%s' % frozen,
             '--output_node_names=Openpose/concat_stage7')
    images = RNG.uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)
    expected = outputs(freeze.load_graph(str(run_folder / 'graph_frozen.pb')), images)
    np.testing.assert_array_equal(outputs(freeze.load_graph(str(frozen)), images), expected)
    result = run_command('scripts/transform_graph.py', '--in_graph=%s' % frozen,
                         '--out_graph=%s' % (tmp_path / 'opt.pb'), '--inputs=image:0',
                         '--outputs=Openpose/concat_stage7:0', '--transforms', BY_HAND)
    if not HAS_TRANSFORMS:
        assert_user_error(result, 'TRANSFORM_GRAPH')
        return
    assert result.returncode == 0, result.stderr
    by_hand = freeze.load_graph(str(tmp_path / 'opt.pb'))
    assert optimize.find_unfolded(by_hand) == []
    assert ops(by_hand)['Conv2D'] == ops(by_hand)['BiasAdd'] == 72
    np.testing.assert_allclose(outputs(by_hand, images), expected, atol=1e-4 * np.abs(expected).max())


def norm_in_training_mode(image):
    x = tf.nn.relu(fused_norm(conv(image, 8, strides=[1, 2, 2, 1]), name='folds'))
    return tf.nn.relu(fused_norm(conv(x, 57, strides=[1, 2, 2, 1]), is_training=True, name='stays'))


@pytest.mark.slow
def test_graph_made_elsewhere_with_a_norm_in_training_mode(sample_coco, tmp_path):
    """Nothing made of it would be right: it is refused, or gets the statistics of photographs."""
    freeze.save_graph(frozen_graph(norm_in_training_mode, (None, None, None, 3)), str(tmp_path / 'foreign.pb'))
    flags = ['--graph=%s' % (tmp_path / 'foreign.pb'), '--output-dir=%s' % (tmp_path / 'out'), '--runs=1', '--tflite',
             '--input-size=32x32']
    result = run_script(*flags)
    assert result.returncode == 4, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'stays' in errors[0] and 'is_training' in errors[0] and 'folds' not in errors[0]
    assert not (tmp_path / 'out').exists()

    result = run_script(*flags + ['--batch-norm-from=%s' % (sample_coco / 'val2017'), '--quantize=int8',
                                  '--images=%s' % (sample_coco / 'val2017')])
    assert result.returncode == 0 and 'so few images' in result.stderr, result.stderr
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert (report['graph_frozen']['batch_norms'], report['graph_opt']['batch_norms']) == (2, 0)
    assert sorted(report) == ['graph_float', 'graph_float16', 'graph_frozen', 'graph_int8', 'graph_opt']


def test_files_that_compute_something_else_get_no_name():
    rows = {name: {'max_rel_diff': difference} for name, difference in
            (('graph_frozen', 0), ('graph_opt', 2e-3), ('graph_float', np.nan), ('graph_int8', 0.6), ('graph_q', 0.1),
             ('graph_float16', 0.04))}
    for share, wrong in ((0.02, []), (0.2, ['graph_float16'])):
        shares = {'graph_int8': 0.3, 'graph_q': np.nan, 'graph_float16': share}
        assert list(export_graphs.out_of_bounds(rows, shares)) == ['graph_opt', 'graph_float', 'graph_q'] + wrong
    with pytest.raises(UserError, match='graph_opt was not written') as error:
        export_graphs.check_files(None, {'graph_opt': 'its output differs'})
    assert error.value.exit_code == 4


@pytest.mark.slow
def test_own_data_to_the_end_of_the_chain(thin, sample_coco, refused, tmp_path):
    """Any annotation file and split, and one that labels five of the network's keypoints."""
    source = sample_coco / 'annotations' / 'person_keypoints_val2017.json'
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'images').symlink_to(sample_coco / 'val2017')
    (tmp_path / 'data' / 'mine.json').write_text(source.read_text())
    flags = ['--checkpoint=%s' % thin, '--input-size=%dx%d' % (SIZE, SIZE), '--datapath=%s' % (tmp_path / 'data'),
             '--split=mine.json']
    result = run_script(*flags + ['--output-dir=%s' % (tmp_path / 'graphs'), '--runs=1', '--quantize=int8',
                                  '--calibration-split=mine.json', '--max-samples=2'])
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / 'graphs' / 'report.json').read_text())
    assert report['graph_opt']['validation_loss'] > 0 and report['graph_opt']['AP'] >= 0

    assert '--calibration-split' in refused(*flags + ['--quantize=int8'])
    content = json.loads(source.read_text())
    tool_files.from_coco(content)
    (tmp_path / 'data' / 'mine.json').write_text(json.dumps(content))
    assert '--category=bird' in refused(*flags + ['--category=bird'])
    (tmp_path / 'run').mkdir()
    for path in thin.iterdir():
        (tmp_path / 'run' / path.name).write_bytes(path.read_bytes())
    run = {'flags': {'model': 'mobilenet_thin'}, 'skeleton': COCO_SKELETON.to_json()}
    (tmp_path / 'run' / 'run.json').write_text(json.dumps(run))
    result = run_script('--checkpoint=%s' % (tmp_path / 'run'), '--output-dir=%s' % (tmp_path / 'more'), '--runs=1',
                        '--max-samples=2', *flags[1:])
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'more' / 'skeleton.json').read_text())['keypoints'] == list(COCO_SKELETON.keypoints)
    of_five = json.loads((tmp_path / 'more' / 'report.json').read_text())['graph_opt']
    assert 0 < of_five['validation_loss'] < report['graph_opt']['validation_loss'] and of_five['AP'] >= 0


# Bad input. Most of it in this process: importing TensorFlow takes seconds.

@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Call main with flags; returns the one-line error, after checking that no file was written."""
    def call(*flags):
        out = tmp_path / 'out'
        monkeypatch.setattr(sys, 'argv', ['freeze_and_optimize.py', '--output-dir=%s' % out] + list(flags))
        with pytest.raises(UserError) as error:
            freeze_and_optimize.main()
        assert error.value.exit_code == 2
        assert not out.exists() or not list(out.iterdir())
        return str(error.value)
    return call


def test_flags_that_would_do_nothing_or_that_do_not_fit(refused, tmp_path):
    assert '--category goes with --datapath' in refused('--checkpoint=x', '--category=dog')
    message = refused('--model=mobilenet_thin', '--checkpoint=x', '--input-size=100x100')
    assert '--input-size=100x100: 100 is not a multiple' in message


@pytest.mark.slow
def test_checkpoints_of_another_model_and_damaged_ones(thin, refused, tmp_path):
    message = refused('--model=mobilenet', '--checkpoint=%s' % thin)
    assert 'Openpose/MConv_Stage1_L1_1_depthwise/depthwise_weights' in message or 'MobilenetV1' in message
    assert 'shape' in message
    assert 'conv1_1/weights is missing' in refused('--model=cmu', '--checkpoint=%s' % thin)
    for path in thin.glob('model*'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in [*tmp_path.glob('*.index'), *tmp_path.glob('*.data-*')]:
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        assert 'damaged' in refused('--model=mobilenet_thin', '--checkpoint=%s' % (tmp_path / path.stem))
        path.write_bytes(whole)


@pytest.mark.slow
def test_sizes_that_do_not_fit_and_folders_that_cannot_be_written(thin, refused, run_folder, tmp_path):
    (tmp_path / 'file').write_text('')
    folder = str(tmp_path / 'file' / 'x')
    assert folder in refused('--graph=%s' % (run_folder / 'graph_opt.pb'), '--output-dir=' + folder)
    message = refused('--model=mobilenet_thin', '--checkpoint=%s' % thin, '--input-size=100x64')
    assert '100' in message and '96 or 104' in message
    message = refused('--graph=%s' % (run_folder / 'graph_opt.pb'), '--input-size=72x72')
    assert '72' in message and str(SIZE) in message
