"""A video written here from rendered people, read, annotated and written again by the real code, and errors."""
import functools
import http.server
import itertools
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
import types

import cv2
import numpy as np
import pytest

import tensorflow.compat.v1 as tf
from annotations.skeleton import COCO_SKELETON
from benchmarks.bench_inputs import random_people, render_maps
from conftest import assert_user_error, run_command, run_well, summary_of
from inference.film import find_ffmpeg
from inference.predictor import start_decoders
from inference.tracking import Smoother
from inference.video import Frames, check_display, find_people_in_video, output_name
from pose_cli import StopSignal
from pose_draw import draw_skeletons
from pose_errors import UserError

WIDTH, HEIGHT, COUNT = 256, 192, 24
pytestmark = pytest.mark.usefixtures('signals')


def people_of_frame(index):
    """Two people; the first walks to the right, the second is away in three frames: (people, 18, 2)."""
    random = np.random.RandomState(0)
    walker, other = (random_people(random, 1, 96, HEIGHT, 0.7, 0.8) for _ in range(2))
    people = [walker + [3 * index, 0], other + [150, 0]]
    return np.concatenate(people[:1] if 8 <= index < 11 else people)


def write_video(path, frames, fps=12.5):
    """frames: uint8 (H, W, 3) arrays."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_film(path):
    """The pictures of a film."""
    capture = cv2.VideoCapture(str(path))
    return [pixels for readable, pixels in iter(capture.read, (False, None))]


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """Rendered people without colours on grey; how bright the grey is tells the number of the frame."""
    frames = []
    for index in range(COUNT):
        background = np.full((HEIGHT, WIDTH, 3), 16 + 9 * index, np.uint8)
        grey = cv2.cvtColor(draw_skeletons(background, people_of_frame(index), COCO_SKELETON), cv2.COLOR_BGR2GRAY)
        frames.append(np.repeat(grey[:, :, None], 3, axis=2))
    return write_video(tmp_path_factory.mktemp('video') / 'walk.mp4', frames)


def number_of(image):
    """The number of the frame, from the pixels that the video brought."""
    return int(round((np.median(image[:8]) - 16) / 9))


def predict_maps(images):
    """The labels of the frame that is seen."""
    return np.stack([render_maps(people_of_frame(number_of(image)), WIDTH, HEIGHT, 8) for image in images])


def find(source, folder, predict_maps=predict_maps, stop=lambda: False, **kwargs):
    """(summary, the lines of JSON) of find_people_in_video."""
    kwargs = dict(dict(input_size=(WIDTH, HEIGHT), batchsize=4), **kwargs)
    path, lines, summary = find_people_in_video(predict_maps, COCO_SKELETON, str(source), str(folder), stop, **kwargs)
    assert os.path.isfile(path)
    with open(lines) as file:
        return summary, [json.loads(line) for line in file]


@pytest.mark.parametrize('decoders', (0, 2))
def test_every_frame_comes_out_with_numbered_people(video, tmp_path, decoders):
    with start_decoders(decoders) as executor:
        summary, lines = find(video, tmp_path, decoders=executor)
    assert sorted(os.listdir(str(tmp_path))) == ['walk_people.jsonl', 'walk_people.mp4']
    assert (summary['frames'], summary['people'], summary['tracks']) == (COUNT, 2 * COUNT - 3, 2)
    assert summary['frames_per_s'] > 0 and 0 <= summary['waiting'] <= 1

    assert [line['frame'] for line in lines] == list(range(COUNT)) and lines[-1]['time'] == (COUNT - 1) / 12.5
    ids = {}
    for line in lines:
        joints = people_of_frame(line['frame'])
        assert len(line['people']) == len(joints)
        for person in line['people']:
            points = np.array(person['pose_keypoints_2d']).reshape(18, 3)
            error = np.linalg.norm(points[None, :, :2] - joints, axis=2).mean(axis=1)
            assert error.min() < 2
            ids.setdefault(int(error.argmin()), set()).add(person['id'])
    assert sorted(map(len, ids.values())) == [1, 1] and set.union(*ids.values()) == {1, 2}

    before, after = cv2.VideoCapture(str(video)), cv2.VideoCapture(str(tmp_path / 'walk_people.mp4'))
    assert after.get(cv2.CAP_PROP_FPS) == 12.5 and after.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT
    for index in range(COUNT):
        frame, drawn = before.read()[1], after.read()[1]
        assert drawn.shape == (HEIGHT, WIDTH, 3)
        assert abs(np.median(drawn[:8]) - np.median(frame[:8])) < 4, 'the frames keep their order'
        colourful = [(np.ptp(picture.astype(int), axis=2) > 60).sum() for picture in (frame, drawn)]
        assert colourful[0] == 0 and colourful[1] > 200, 'skeletons are drawn'


@pytest.mark.parametrize('empty', [{0}, {11}, {COUNT - 1}, set(range(COUNT))], ids=['first', 'middle', 'last', 'all'])
def test_frames_without_people(video, tmp_path, empty):
    def nobody_there(images):
        maps = predict_maps(images)
        maps[[number_of(image) in empty for image in images]] = 0
        return maps
    summary, lines = find(video, tmp_path, nobody_there)
    assert {line['frame'] for line in lines if not line['people']} == empty and len(lines) == COUNT
    assert summary['people'] == sum(len(people_of_frame(index)) for index in range(COUNT) if index not in empty)


def test_a_signal_ends_it_with_whole_files(video, tmp_path):
    seen = []

    def interrupted(images):
        seen.append(len(images))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_maps(images)
    _, lines = find(video, tmp_path, interrupted, StopSignal(), batchsize=1)
    assert 2 <= len(lines) < COUNT
    assert cv2.VideoCapture(str(tmp_path / 'walk_people.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == len(lines)


@pytest.mark.parametrize('good', [0, 16])
def test_after_an_error_nothing_has_its_final_name(video, tmp_path, good, caplog):
    def failing(images):
        if number_of(images[0]) >= good:
            raise UserError('the network fails')
        return predict_maps(images)
    with pytest.raises(UserError, match='the network fails'):
        find(video, tmp_path, failing)
    parts = ['walk_people.part.jsonl', 'walk_people.part.mp4'] if good else []
    assert sorted(os.listdir(str(tmp_path))) == parts
    assert all(name in caplog.text for name in parts)


def test_a_film_that_is_stored_sideways_is_read_upright(video, tmp_path):
    """As phones do: the turn is in the header, in the matrix of the track."""
    frames = [cv2.rotate(frame.pixels, cv2.ROTATE_90_COUNTERCLOCKWISE) for frame in Frames(str(video))]
    data = write_video(tmp_path / 'sideways.mp4', frames).read_bytes()
    place = data.index(b'tkhd') + 44
    quarter = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / 'sideways.mp4').write_bytes(data[:place] + quarter + data[place + 36:])
    summary, _ = find(tmp_path / 'sideways.mp4', tmp_path)
    assert summary['people'] == 2 * COUNT - 3
    drawn = cv2.VideoCapture(str(tmp_path / 'sideways_people.mp4')).read()[1]
    assert drawn.shape == (HEIGHT, WIDTH, 3)


def test_frames_of_a_varying_rate_have_their_own_times(video, tmp_path, caplog):
    """As phones do in the dark: the second half of the frames takes five times as long. The film that is written has
    the rate of the first half, and takes as long."""
    caplog.set_level(logging.INFO)
    data = video.read_bytes().replace(b'edts', b'free')  # which would cut off what comes later
    table = data.index(b'stts')
    ticks = struct.unpack_from('>I', data, table + 16)[0]
    entries = struct.pack('>5I', 2, COUNT // 2, ticks, COUNT // 2, 5 * ticks)
    data = bytearray(data[:table + 8] + entries + data[table + 20:])
    for name in (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stts'):
        place = data.index(name) - 4
        struct.pack_into('>I', data, place, struct.unpack_from('>I', data, place)[0] + 8)
    (tmp_path / 'varying.mp4').write_bytes(data)
    _, lines = find(tmp_path / 'varying.mp4', tmp_path)
    expected = np.cumsum([0] + [0.08] * (COUNT // 2) + [0.4] * (COUNT // 2 - 1))
    assert np.abs([line['time'] for line in lines] - expected).max() < 0.01
    film = cv2.VideoCapture(str(tmp_path / 'varying_people.mp4'))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5, abs=0.01)
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == round(expected[-1] * 12.5) + 1
    assert '44 pictures are repeated and 0 left out' in caplog.text


@pytest.fixture(scope='module')
def slow_films(video):
    """A folder of films of eight seconds, five frames a second, that say more than they show: one of varying rate, one
    with more sound, one that was cut between two pictures that stand for themselves. whole.mp4 has nothing to hide."""
    whole, varying, sounding, cut = (str(video.parent / name) for name in (
        'whole.mp4', 'varying.mkv', 'sounding.mkv', 'cut.mp4'))
    for options in (
            ('-i', str(video), '-vf', 'setpts=4*PTS,fps=5', '-movflags', '+faststart', whole),
            ('-i', str(video), '-vf', "setpts=4*PTS,fps=25,select='lt(n,15)+not(mod(n,20))'", varying),
            ('-i', whole, '-f', 'lavfi', '-i', 'sine=duration=20', '-c:v', 'copy', sounding),
            ('-ss', '4', '-i', whole, '-c', 'copy', cut)):
        subprocess.run([find_ffmpeg(), '-y', '-loglevel', 'error', *options], check=True)
    return video.parent


@pytest.mark.parametrize('name', ('whole.mp4', 'varying.mkv', 'sounding.mkv', 'cut.mp4'))
def test_nothing_is_said_of_films_that_are_whole(slow_films, tmp_path, name, caplog):
    find(slow_films / name, tmp_path)
    assert 'could be read' not in caplog.text


@pytest.mark.parametrize('name', ('whole.mp4', 'varying.mkv'))
@pytest.mark.parametrize('rest', (b'', b'\0'), ids=['missing', 'zeros'])
def test_films_that_end_too_early_are_told(slow_films, tmp_path, name, rest, caplog):
    data = (slow_films / name).read_bytes()
    kept = int(0.6 * len(data))
    (tmp_path / name).write_bytes(data[:kept] + rest * (len(data) - kept))
    find(tmp_path / name, tmp_path)
    assert 'could be read; it may have been cut short' in caplog.text


def test_smooth_keypoints_are_written_and_drawn(video, tmp_path):
    """With numbers and scores as they are without."""
    (tmp_path / 'smooth').mkdir()
    (_, lines), (_, smooth) = find(video, tmp_path), find(video, tmp_path / 'smooth', smooth=True)
    smoother, moved = Smoother(), 0
    for line, other in zip(lines, smooth):
        numbers, others = ([person['id'] for person in now['people']] for now in (line, other))
        points, expected = (np.array([person['pose_keypoints_2d'] for person in now['people']]).reshape(-1, 18, 3)
                            for now in (line, other))
        assert numbers == others
        np.testing.assert_allclose(smoother.update(points, numbers, line['time']), expected, atol=0.02)
        moved = max(moved, np.abs(points - expected).max())
    assert 0.3 < moved < 10
    films = [read_film(folder / 'walk_people.mp4') for folder in (tmp_path, tmp_path / 'smooth')]
    first, last = (np.abs(films[0][index].astype(int) - films[1][index]).max() for index in (0, COUNT // 2))
    assert first < 40 and last > 80


def camera(source):
    """Stands in for cv2.VideoCapture: 25 frames a second, whoever looks."""
    begin, numbers = time.monotonic(), itertools.count(1)

    def read():
        time.sleep(max(0.0, begin + next(numbers) / 25 - time.monotonic()))
        return True, np.full((HEIGHT, WIDTH, 3), 16, np.uint8)

    return types.SimpleNamespace(read=read, get=lambda what: 25.0 if what == cv2.CAP_PROP_FPS else 0.0,
                                 set=lambda *_: False, release=lambda: None)


def test_the_recording_of_a_camera_takes_as_long_as_it_took(tmp_path, monkeypatch):
    """Most of its frames come while the network is busy with an earlier one."""
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', camera)

    def slow(images):
        time.sleep(0.15)
        return predict_maps(images)
    _, lines = find('0', tmp_path, slow, limit=6)
    assert len(lines) == 6 and lines[-1]['frame'] > 8
    film = capture(str(tmp_path / 'camera0_people.mp4'))
    plays = (film.get(cv2.CAP_PROP_FRAME_COUNT) - 1) / film.get(cv2.CAP_PROP_FPS)
    assert abs(plays - lines[-1]['time']) <= 0.04


def test_a_film_behind_an_url(video, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(video.parent))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = 'http://127.0.0.1:%d/walk.mp4?from=0' % server.server_address[1]
        _, lines = find(url, tmp_path)
        server.shutdown()
    assert len(lines) == COUNT and (tmp_path / 'walk_people.mp4').exists()


def test_names_of_outputs():
    for source, name in (('0', 'camera0'), ('20250131', '20250131'), ('/dev/video2', 'video2'),
                         ('films/a b.c.mp4', 'a b.c'), ('rtsp://user:word@10.0.0.1:554/cam?x=/y', 'cam'),
                         ('http://10.0.0.1', 'stream')):
        assert output_name(source) == name


@pytest.mark.slow
def test_the_command(video, tmp_path):
    """A graph that gives the maps of frame 0 for all frames: two people who stand still."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, (None, HEIGHT, WIDTH, 3), name='image')
        maps = tf.constant(render_maps(people_of_frame(0), WIDTH, HEIGHT, 8)[None])
        tf.add(maps, 0. * tf.reduce_sum(image, [1, 2, 3], keepdims=True), name='Openpose/concat_stage7')
        (tmp_path / 'g.pb').write_bytes(graph.as_graph_def().SerializeToString())
    summary = summary_of(run_well('pose_eval.py', '--graph=%s' % (tmp_path / 'g.pb'), '--video=%s' % video,
                                  '--output-dir=%s' % (tmp_path / 'out'), '--flip', '--smooth', '--limit=10'))
    assert summary['frames'] == 10 and summary['flip'] is True
    assert len((tmp_path / 'out' / 'walk_people.jsonl').read_text().splitlines()) == 10


def test_files_that_are_no_videos(tmp_path):
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video at all' * 100)
    for source in (tmp_path / 'absent.mp4', broken, '97', '9999', '99999999999999', '/dev/video97',
                   'http://127.0.0.1:9/cam.mjpg'):
        result = run_command('pose_eval.py', '--graph=%s' % broken, '--video=%s' % source,
                             '--output-dir=%s' % (tmp_path / 'out'))
        assert_user_error(result, source)
        assert len(result.stderr.splitlines()) == 1, result.stderr


def test_windows_need_a_display(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(UserError, match='--show'):
        check_display()


def test_films_of_odd_names(video, tmp_path, monkeypatch):
    """A time is no protocol; OpenCV would crash on a name that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(str(video), '2024-05-01T12:30:05.mp4')
    frames = Frames('2024-05-01T12:30:05.mp4')
    assert number_of(next(iter(frames)).pixels) == 0
    frames.close()
    name = os.fsdecode(b'caf\xe9.mp4')
    shutil.copy(str(video), name)
    with pytest.raises(UserError, match='this name is not UTF-8'):
        Frames(name)
