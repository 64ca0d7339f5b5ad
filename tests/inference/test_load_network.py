"""Networks as functions of images, from checkpoints and from frozen graphs."""
import numpy as np
import pytest

import networks
import tensorflow.compat.v1 as tf
from inference import load_network
from pose_errors import UserError


@pytest.mark.slow
def test_a_checkpoint_runs_as_its_network_would(tmp_path):
    """The same output as the network restored by tf.train.Saver; another model's checkpoint is named as such."""
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, (1, 64, 96, 3), name='image')
        network = networks.get_network('mobilenet_fast', image, False)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / 'model'), global_step=7)
        pixels = np.random.RandomState(0).randint(0, 256, (1, 64, 96, 3), np.uint8)
        expected = session.run(network.output, {image: pixels})
    predict_maps, fixed_size = load_network(checkpoint=str(tmp_path), model='mobilenet_fast')
    assert fixed_size is None
    maps = predict_maps(pixels)
    assert maps.shape == (1, 16, 24, 57) and np.abs(maps - expected).max() < 1e-4
    assert predict_maps(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 8, 8, 57)

    with pytest.raises(UserError, match='conv1_1'):
        load_network(checkpoint=str(tmp_path / 'model-7'), model='cmu')
    with pytest.raises(UserError, match='no_such'):
        load_network(checkpoint=str(tmp_path / 'no_such'), model='cmu')


def test_files_that_are_no_graph_are_refused(tmp_path):
    garbage = tmp_path / 'garbage.pb'
    garbage.write_bytes(b'\x00\x01garbage' * 100)
    other = tmp_path / 'other.pb'
    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.float32, (None, 3), name='x')
        other.write_bytes(graph.as_graph_def().SerializeToString())
    for path, mention in ((garbage, 'garbage.pb'), (other, 'image'), (tmp_path / 'absent.pb', 'absent.pb')):
        with pytest.raises(UserError, match=mention):
            load_network(graph_file=str(path))
