"""A video written here from rendered people, read, annotated and written again by the real code, and errors."""
import argparse
import json
import os
import signal

import cv2
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from benchmarks.bench_inputs import random_people, render_maps
from conftest import assert_user_error, run_command
from inference.metrics import oracle_maps
from inference.predictor import start_decoders
from inference.video import check_display, find_people_in_video
from pose_cli import StopSignal
from pose_draw import draw_skeletons
from pose_errors import UserError

WIDTH, HEIGHT, COUNT, STEP = 256, 192, 24, 12


def people_of_frame(index):
    """Two people; the first walks to the right, the second is away in three frames: (people, 18, 2)."""
    random = np.random.RandomState(0)
    walker, other = (random_people(random, 1, 96, HEIGHT, 0.7, 0.8) for _ in range(2))
    people = [walker + [3 * index, 0], other + [150, 0]]
    return np.concatenate(people[:1] if 8 <= index < 11 else people)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """Rendered people without colours on grey; how bright the grey is tells the number of the frame."""
    path = tmp_path_factory.mktemp('video') / 'walk.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 12.5, (WIDTH, HEIGHT))
    for index in range(COUNT):
        background = np.full((HEIGHT, WIDTH, 3), 16 + 9 * index, np.uint8)
        grey = cv2.cvtColor(draw_skeletons(background, people_of_frame(index)), cv2.COLOR_BGR2GRAY)
        writer.write(np.repeat(grey[:, :, None], 3, axis=2))
    writer.release()
    return path


def predict_maps(images, joints):
    """The labels of the frame that is seen: its number is read from the pixels that the video brought."""
    return np.stack([render_maps(people_of_frame(int(round((np.median(image[:8]) - 16) / 9))), WIDTH, HEIGHT, 8)
                     for image in images])


def flags(video, folder, **kwargs):
    return argparse.Namespace(**dict(dict(
        video=str(video), output_dir=str(folder), input_size=(WIDTH, HEIGHT), scale=None, scales=(1.0,), flip=False,
        batchsize=4, limit=None, show=False), **kwargs))


@pytest.fixture(autouse=True)
def signals():
    """find_people_in_video handles these two; the next test finds them as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('decoders', (0, 2))
def test_every_frame_comes_out_with_numbered_people(video, tmp_path, decoders, capsys):
    with start_decoders(decoders) as executor:
        find_people_in_video(predict_maps, flags(video, tmp_path), executor, lambda: False)
    assert sorted(os.listdir(str(tmp_path))) == ['walk_people.jsonl', 'walk_people.mp4']
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary['frames'], summary['people'], summary['tracks']) == (COUNT, 2 * COUNT - 3, 2)
    assert summary['frames_per_s'] > 0 and 0 <= summary['waiting'] <= 1

    lines = [json.loads(line) for line in (tmp_path / 'walk_people.jsonl').read_text().splitlines()]
    assert [line['frame'] for line in lines] == list(range(COUNT)) and lines[-1]['time'] == (COUNT - 1) / 12.5
    number_of = {}
    for line in lines:
        joints = people_of_frame(line['frame'])
        assert len(line['people']) == len(joints)
        for person in line['people']:
            points = np.array(person['pose_keypoints_2d']).reshape(18, 3)
            error = np.linalg.norm(points[None, :, :2] - joints, axis=2).mean(axis=1)
            assert error.min() < 2
            number_of.setdefault(int(error.argmin()), set()).add(person['id'])
    assert sorted(map(len, number_of.values())) == [1, 1] and set.union(*number_of.values()) == {1, 2}

    before, after = cv2.VideoCapture(str(video)), cv2.VideoCapture(str(tmp_path / 'walk_people.mp4'))
    assert after.get(cv2.CAP_PROP_FPS) == 12.5 and after.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT
    for index in range(COUNT):
        frame, drawn = before.read()[1], after.read()[1]
        assert drawn.shape == (HEIGHT, WIDTH, 3)
        assert abs(np.median(drawn[:8]) - np.median(frame[:8])) < 4, 'the frames keep their order'
        colourful = [(np.ptp(picture.astype(int), axis=2) > 60).sum() for picture in (frame, drawn)]
        assert colourful[0] == 0 and colourful[1] > 200, 'skeletons are drawn'


def test_a_signal_ends_it_with_whole_files(video, tmp_path):
    seen = []

    def interrupted(images, joints):
        seen.append(len(images))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_maps(images, joints)
    find_people_in_video(interrupted, flags(video, tmp_path, batchsize=1), None, StopSignal())
    lines = (tmp_path / 'walk_people.jsonl').read_text().splitlines()
    assert 2 <= len(lines) < COUNT
    assert cv2.VideoCapture(str(tmp_path / 'walk_people.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == len(lines)


@pytest.mark.slow
def test_the_command(video, tmp_path):
    """A graph that gives the maps of frame 0 for all frames: two people who stand still."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (None, HEIGHT, WIDTH, 3), name='image')
        maps = tf.constant(render_maps(people_of_frame(0), WIDTH, HEIGHT, 8)[None])
        tf.add(maps, 0. * tf.reduce_sum(image, [1, 2, 3], keepdims=True), name='Openpose/concat_stage7')
        (tmp_path / 'g.pb').write_bytes(graph.as_graph_def().SerializeToString())
    result = run_command('pose_eval.py', '--graph=%s' % (tmp_path / 'g.pb'), '--video=%s' % video,
                         '--output-dir=%s' % (tmp_path / 'out'), '--flip', '--limit=10')
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary['frames'] == 10 and summary['flip'] is True
    assert len((tmp_path / 'out' / 'walk_people.jsonl').read_text().splitlines()) == 10


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / 'broken.mp4').write_bytes(b'no video at all' * 100)
    (tmp_path / 'g.pb').write_bytes(b'')
    for source in (tmp_path / 'absent.mp4', tmp_path / 'broken.mp4', '97'):
        result = run_command('pose_eval.py', '--graph=%s' % (tmp_path / 'g.pb'), '--video=%s' % source,
                             '--output-dir=%s' % (tmp_path / 'out'))
        assert_user_error(result, source)
        assert len(result.stderr.splitlines()) == 1, result.stderr


def test_windows_need_a_display(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(UserError, match='--show'):
        check_display()


def test_oracles_of_the_maps_are_the_labels():
    """What stands in for the network here is what --oracle evaluates."""
    joints = people_of_frame(0)
    maps = oracle_maps(8)(np.zeros((1, HEIGHT, WIDTH, 3)), [joints])[0]
    assert np.array_equal(maps, render_maps(joints, WIDTH, HEIGHT, 8))
