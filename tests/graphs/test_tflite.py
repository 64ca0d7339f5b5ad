"""TensorFlow Lite files: converted here, run by an interpreter that is not TensorFlow's, and broken in many ways."""
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import run_program
from graphs import freeze, graphdef, optimize, tflite
from inference import open_network, read_skeleton, tflite_runtime
from inference.tensorflow_runtime import graph_network
from pose_errors import UserError

SIZE = 64
pytestmark = pytest.mark.slow  # for the conversions; test_wrong_calls.py has small ones


@pytest.fixture(scope='module')
def images():
    return np.random.RandomState(0).randint(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope='module')
def frozen(tmp_path_factory):
    """mobilenet_thin, untrained, with outputs of the size that a trained one has."""
    def build():
        image = tf.placeholder(tf.float32, (None, SIZE, SIZE, 3), name=graphdef.INPUT)
        networks.get_network('mobilenet_thin', image, is_training=False)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        build()
        session.run(tf.global_variables_initializer())
        last = [v for v in tf.global_variables() if '_5_pointwise/' in v.op.name and v.op.name.endswith('weights')]
        session.run([tf.assign(v, 4 * v) for v in last])  # they start near 0
        prefix = tf.train.Saver().save(session, str(tmp_path_factory.mktemp('checkpoint') / 'model'))
    return freeze.freeze(freeze.inference_graph(build), prefix)


@pytest.fixture(scope='module')
def expected(frozen, images):
    return graph_network(frozen, 'frozen')[0](images)


@pytest.fixture(scope='module')
def files(frozen, images, tmp_path_factory):
    """{'float': path, 'float16': path, 'int8': path}"""
    folder = tmp_path_factory.mktemp('tflite')
    shape = [1, SIZE, SIZE, 3]
    contents = {'float': tflite.convert(frozen, shape), 'float16': tflite.convert(frozen, shape, half=True),
                'int8': tflite.quantize(frozen, images)}
    for name, data in contents.items():
        (folder / (name + '.tflite')).write_bytes(data)
    return {name: folder / (name + '.tflite') for name in contents}


@pytest.mark.parametrize('kind, tolerance', [('float', 1e-4), ('float16', 0.01), ('int8', 0.15)])
def test_maps_of_a_process_without_tensorflow(files, images, expected, tmp_path, kind, tolerance):
    np.save(str(tmp_path / 'images.npy'), images)
    result = run_program('predict_without_tensorflow.py', files[kind], tmp_path / 'images.npy', tmp_path / 'maps.npy')
    assert result.returncode == 0, result.stderr
    maps = np.load(str(tmp_path / 'maps.npy'))
    assert maps.shape == expected.shape and maps.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    assert np.abs(maps - expected).max() <= tolerance * np.abs(expected).max()
    assert kind == 'float' or np.abs(maps - expected).max() > 0


def test_half_precision_takes_half_the_space(files):
    assert files['float16'].stat().st_size <= 0.56 * files['float'].stat().st_size


def test_eight_bits_take_a_third_of_the_space_and_pixels_as_they_are(files, frozen):
    assert files['int8'].stat().st_size <= 0.34 * frozen.ByteSize()
    details = tflite_runtime.open_interpreter(str(files['int8'])).get_input_details()[0]
    assert details['dtype'] == np.uint8 and details['quantization'] == (1.0, 0)
    ops = tflite_runtime.count_ops(str(files['int8']))
    assert ops['CONV_2D'] == 72 and ops['DEPTHWISE_CONV_2D'] == 71 and ops['DEQUANTIZE'] == 1


def test_calibration_on_grey_images_still_takes_pixels_as_they_are(tmp_path):
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (1, SIZE, SIZE, 3), name=graphdef.INPUT)
        weights = tf.constant(np.random.RandomState(0).uniform(-1, 1, (3, 3, 3, 8)).astype(np.float32))
        tf.nn.conv2d(image / 127.5 - 1, weights, [1, 1, 1, 1], 'SAME', name=graphdef.OUTPUT)
    grey = np.full((1, SIZE, SIZE, 3), 100, np.uint8)
    (tmp_path / 'grey.tflite').write_bytes(tflite.quantize(graph.as_graph_def(), grey))
    assert open_network(str(tmp_path / 'grey.tflite'))[1] == (SIZE, SIZE)


def test_what_the_mirrored_image_makes_is_not_cut_off(tmp_path):
    """Calibrated on a picture that only darkens to the right, a detector of brightening works in 8 bits."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (1, SIZE, SIZE, 3), name=graphdef.INPUT)
        halves = tf.constant(np.tile(np.float32([-1, 1]).repeat(4)[None, :, None, None] / 96, (8, 1, 3, 1)))
        tf.nn.relu(tf.nn.conv2d(image, halves, [1, 1, 1, 1], 'VALID'), name=graphdef.OUTPUT)
    darkening = np.tile(np.linspace(252, 0, SIZE).astype(np.uint8)[None, None, :, None], (1, SIZE, 1, 3))
    (tmp_path / 'edges.tflite').write_bytes(tflite.quantize(graph.as_graph_def(), darkening))
    predict_maps = tflite_runtime.load_tflite(str(tmp_path / 'edges.tflite'))[0]
    np.testing.assert_allclose(predict_maps(darkening[:, :, ::-1])[0, 8:-8, 8:-8], 16, atol=1)


@pytest.mark.parametrize('kind', ['float', 'int8'])
def test_a_file_that_was_copied_alone_knows_its_keypoints(files, images, tmp_path, kind):
    skeleton = COCO_SKELETON._replace(name='dancer')
    path = tmp_path / 'alone.tflite'
    path.write_bytes(tflite_runtime.with_skeleton(files[kind].read_bytes(), skeleton))
    assert read_skeleton(str(path)) == skeleton and read_skeleton(str(files[kind])) is None
    maps = [open_network(str(file))[0](images[:1]) for file in (path, files[kind])]
    assert np.array_equal(*maps)


def test_another_size_is_refused(files):
    predict_maps, size = open_network(str(files['float']))
    assert size == (SIZE, SIZE)
    with pytest.raises(UserError, match='64x64, not 72x64'):
        predict_maps(np.zeros((1, 64, 72, 3), np.uint8))


@pytest.mark.parametrize('kind', ['float', 'int8'])
def test_a_file_cut_anywhere_is_refused(files, tmp_path, kind):
    data = files[kind].read_bytes()
    cut = tmp_path / 'cut.tflite'
    lengths = [len(data) * i // 20 for i in range(20)] + [len(data) - i for i in (1, 2, 8, 100)]
    if tflite_runtime.runtime_name() == 'tflite-runtime':  # it looks at no offsets: what lacks more than its end
        lengths = lengths[:16]
    for length in lengths:
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match='cut.tflite'):
            open_network(str(cut))


def test_saved_model_gives_the_maps_through_its_signature(frozen, images, expected, tmp_path):
    folder = tmp_path / 'saved_model' / '1'
    freeze.save_saved_model(optimize.optimize(frozen), str(folder))
    freeze.save_saved_model(optimize.optimize(frozen), str(folder))  # again: the new one takes its place
    assert [path.name for path in folder.parent.iterdir()] == ['1']
    with tf.Graph().as_default(), tf.Session() as session:
        model = tf.saved_model.load(session, [tf.saved_model.tag_constants.SERVING], str(folder))
        signature = model.signature_def[freeze.SIGNATURE]
        maps = session.run(signature.outputs[freeze.MAPS].name,
                           {signature.inputs[freeze.IMAGE].name: images.astype(np.float32)})
    np.testing.assert_allclose(maps, expected, atol=1e-4 * np.abs(expected).max())


def test_threads_of_the_first_session_hold_for_tensorflow(frozen, tmp_path):
    """The pool of threads is made once in a process; --threads comes before whatever else opens a session."""
    freeze.save_graph(frozen, str(tmp_path / 'graph.pb'))
    result = run_program('one_thread.py', tmp_path / 'graph.pb')
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 1.3  # processor seconds in a second
