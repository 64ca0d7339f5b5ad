"""--teacher: where a trained network's maps stand in place of labels, and where labels stay as they are."""
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from conftest import ROOT, assert_user_error, run_command
from graphs import freeze
from networks.other_keypoints import common_channels
from pose_errors import UserError
from small_graphs import conv, frozen_graph, fused_norm
from train_runs import train_small
from training.teacher import Teacher, completed_labels, read_teacher

WEIGHTS = ROOT / 'etcs' / 'weights' / 'mobilenet_v2_small.npy'
CELLS = (4, 5)
LEGS = COCO_SKELETON._replace(
    keypoints=('left_knee', 'left_ankle'), sigmas=(0.1, 0.1), parts=('left_knee', 'left_ankle'), sources=((0,), (1,)),
    limbs=((0, 1),), flip_order=(0, 1))


def teacher_of(maps, skeleton):
    """A Teacher that sees these maps (h, w, channels) of its own skeleton in every image."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (None, None, None, 3), 'image')
        seen = tf.tile(tf.constant(maps[None], tf.float32), [tf.shape(image)[0], 1, 1, 1])
        tf.identity(seen, name='Openpose/concat_stage7')
        return Teacher(graph.as_graph_def(), common_channels(COCO_SKELETON, skeleton))


def small_graph(path, shape=(None, None, None, 3)):
    """A frozen graph whose maps are darker and brighter places; returns its path as text."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, shape, 'image')
        grey = tf.nn.avg_pool(tf.pad(image / 255, [[0, 0], [0, 0], [0, 0], [0, 54]]), 8, 8, 'SAME')
        tf.identity(grey, name='Openpose/concat_stage7')
        path.write_bytes(freeze.with_skeleton(graph.as_graph_def(), COCO_SKELETON).SerializeToString())
    return str(path)


def linear_maps(stride):
    """Maps (h, w, 57) of a 40x32 image whose values rise with the place in the image that a cell stands for."""
    x, y = np.meshgrid(np.arange(0, 40, stride), np.arange(0, 32, stride))
    heat, paf = ((x + y + offset) / 100.0 for offset in (stride - 1, 0))  # the middle of a cell, and its corner
    return np.concatenate([np.tile(heat[..., None], 19), np.tile(paf[..., None], 38)], 2).astype(np.float32)


def complete(teacher, heatmap, paf, mask):
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.zeros((len(heatmap), 32, 40, 3), tf.uint8)
        return session.run(completed_labels(teacher, image, *map(tf.constant, (heatmap, paf, mask))))


@pytest.fixture
def labels():
    """Of two images: one person's nose and a limb of length 1 in the first, nobody in the second; half is masked."""
    heatmap, paf = np.zeros((2,) + CELLS + (19,), np.float32), np.zeros((2,) + CELLS + (38,), np.float32)
    heatmap[0, 1, 1, 0], paf[0, 2, 2, 4:6] = 0.9, (0.6, 0.8)
    heatmap[..., 18] = 1 - heatmap[..., :18].max(axis=3)
    mask = np.ones((2,) + CELLS + (57,), np.float32)
    mask[:, :2] = 0
    return heatmap, paf, mask


def test_maps_stand_where_labels_are_empty_in_images_that_show_people(labels):
    rng = np.random.RandomState(0)
    maps = rng.uniform(-0.5, 1.2, CELLS + (57,)).astype(np.float32)
    heat, paf, mask = complete(teacher_of(maps, COCO_SKELETON), *labels)
    seen = np.where(maps[..., :18] > 0.03, maps[..., :18].clip(0, 1), 0)
    np.testing.assert_allclose(heat[0, ..., :18], np.maximum(labels[0][0, ..., :18], seen), rtol=1e-6)
    np.testing.assert_allclose(heat[0, ..., 18], 1 - heat[0, ..., :18].max(axis=2), atol=1e-6)
    expected = maps[..., 19:].copy()
    expected[2, 2, 4:6] = 0.6, 0.8
    np.testing.assert_allclose(paf[0], expected, rtol=1e-6)
    assert (mask[0] == 1).all()
    for new, old in zip((heat, paf, mask), labels):
        np.testing.assert_allclose(new[1], old[1], atol=1e-7)


@pytest.mark.parametrize('teachers, stride', [(8, 4), (4, 8)])
def test_maps_of_another_stride_stand_at_the_same_place(teachers, stride):
    expected = linear_maps(stride)
    height, width = expected.shape[:2]
    heatmap, paf = np.zeros((1, height, width, 19), np.float32), np.zeros((1, height, width, 38), np.float32)
    heatmap[0, 0, 0, 0] = 0.9
    heat, paf, _ = complete(teacher_of(linear_maps(teachers), COCO_SKELETON), heatmap, paf,
                            np.ones((1, height, width, 57), np.float32))
    inner = np.s_[2:-2, 2:-2] if stride == 4 else np.s_[1:-1, 1:-1]
    found = np.concatenate([heat[0, ..., :18], paf[0]], 2)[inner]
    np.testing.assert_allclose(found, np.delete(expected, 18, 2)[inner], atol=1e-5)


def test_what_the_teacher_does_not_know_stays_as_it_is(labels):
    maps = np.full(CELLS + (3 + 2,), 0.5, np.float32)
    heat, paf, mask = complete(teacher_of(maps, LEGS), *labels)
    parts = COCO_SKELETON.parts
    knee, ankle = parts.index('LKnee'), parts.index('LAnkle')
    limb = 19 + 2 * COCO_SKELETON.limbs.index((knee, ankle))
    known = np.isin(np.arange(57), [knee, ankle, limb, limb + 1])
    both = np.concatenate([heat, paf], 3)[0], np.concatenate(labels[:2], 3)[0]
    np.testing.assert_array_equal(both[0][..., known], 0.5)
    np.testing.assert_array_equal(both[0][..., ~known & (np.arange(57) != 18)],
                                  both[1][..., ~known & (np.arange(57) != 18)])
    np.testing.assert_array_equal(mask[0, 0, 0], known)


@pytest.mark.slow
def test_files_that_teach(sample_coco, tmp_path):
    assert read_teacher(str(WEIGHTS), COCO_SKELETON).channels.heat.tolist() == list(range(19))
    dogs = COCO_SKELETON._replace(parts=tuple('dog_' + name for name in COCO_SKELETON.parts))
    with pytest.raises(UserError, match='none of these is learned here'):
        read_teacher(str(WEIGHTS), dogs)
    with pytest.raises(UserError, match='4096 copies of its 2 MB.*more than a TensorFlow graph holds'):
        read_teacher(str(WEIGHTS), COCO_SKELETON, copies=4096)
    with pytest.raises(UserError, match='takes images of one size'):
        read_teacher(small_graph(tmp_path / 'fixed.pb', (1, 32, 40, 3)), COCO_SKELETON)
    in_training = frozen_graph(lambda image: fused_norm(conv(image, 57), is_training=True))
    (tmp_path / 'in_training.pb').write_bytes(in_training.SerializeToString())
    with pytest.raises(UserError, match='--batch-norm-from=PHOTOS'):
        read_teacher(str(tmp_path / 'in_training.pb'), COCO_SKELETON)
    assert_user_error(run_command('train.py', '--pretrained=none', '--datapath=%s' % sample_coco,
                                  '--teacher=/no/such.npy'), '--teacher=/no/such.npy is no file of weights')


@pytest.mark.slow
def test_a_run_with_a_teacher(sample_coco, tmp_path):
    """In two towers, each with two slices: the loss is another one, of labels that are the same from run to run."""
    teacher = ['--teacher=%s' % small_graph(tmp_path / 'teacher.pb')]
    logs = [train_small(sample_coco, tmp_path / name, '--max-steps=2', '--towers-per-gpu=2', '--accumulate=2', *flags)
            for name, flags in (('a', teacher), ('b', teacher), ('c', []))]
    losses = [[line.split(' loss=')[1].split(',')[0] for line in log.splitlines() if ' step=' in line] for log in logs]
    assert losses[0] == losses[1] != losses[2] and len(losses[0]) == 2
