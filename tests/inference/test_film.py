"""Films that are written: whole, of the right size and length, with sound, and a browser plays them."""
import functools
import http.server
import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse

import cv2
import numpy as np
import pytest

from conftest import ROOT
from inference import film
from inference.film import Output, add_sound, find_ffmpeg, sound_and_start
from pose_errors import UserError

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
COUNT, RATE = 25, 12.5
PAGE = b'''<video id="film" muted autoplay src="film_people.mp4"></video><script>
const film = document.getElementById('film'), tell = what => fetch('/tell?' + encodeURIComponent(JSON.stringify(what)));
film.onerror = () => tell({error: film.error.message, h264: film.canPlayType('video/mp4; codecs="avc1.64001f"')});
film.onended = () => {
    const canvas = document.createElement('canvas');
    canvas.width = film.videoWidth;
    canvas.height = film.videoHeight;
    const context = canvas.getContext('2d');
    context.drawImage(film, 0, 0);
    const pixel = x => [...context.getImageData(x, 20, 1, 1).data].slice(0, 3);
    tell({duration: film.duration, width: film.videoWidth, height: film.videoHeight,
          sound: film.webkitAudioDecodedByteCount, left: pixel(20), right: pixel(film.videoWidth - 20)});
};
</script>'''


def picture(index, width, height):
    """Blue on the left; on the right a grey that tells the number of the frame."""
    pixels = np.full((height, width, 3), 40 + 8 * index, np.uint8)
    pixels[:, :width // 2] = 200, 30, 20
    return pixels


def write_film(prefix, width=160, height=96, times=None, source=None):
    """The path of the film; times: of the frames, in seconds."""
    with Output(str(prefix), RATE, width, height, source and str(source)) as output:
        for index, seconds in enumerate(np.arange(COUNT) / RATE if times is None else times):
            output.write(picture(index, width, height), seconds, {'frame': index})
    return output.video


def read_film(path):
    """(numbers of the frames, shape, frames a second)."""
    capture, numbers, shape = cv2.VideoCapture(str(path)), [], None
    while True:
        readable, pixels = capture.read()
        if not readable:
            return numbers, shape, capture.get(cv2.CAP_PROP_FPS)
        shape = pixels.shape
        numbers.append(int(round((np.median(pixels[:, -40:]) - 38) / 8)))


def make_source(path, *sound):
    """A film of two seconds; sound: ffmpeg's options for its sound, a tone of four seconds."""
    silent = write_film(path.parent / 'silent')
    tone = ['-f', 'lavfi', '-i', 'sine=duration=4', *sound] if sound else []
    subprocess.run([find_ffmpeg(), '-y', '-loglevel', 'error', '-i', silent, *tone, '-c:v', 'copy', str(path)],
                   check=True)
    return path


def sound_codec(path):
    return sound_and_start(find_ffmpeg(), str(path))[0]


def flash_and_beep(path):
    """When a film first gets bright and when it first gets loud, in seconds after its first picture, by its clock."""
    frames = list(iter(cv2.VideoCapture(str(path)).read, (False, None)))
    bright = next(index for index, (_, pixels) in enumerate(frames) if pixels.mean() > 100)
    result = subprocess.run([find_ffmpeg(), '-loglevel', 'error', '-copyts', '-i', str(path), '-map', '0:a', '-af',
                             'aresample=8000:async=1:first_pts=0', '-f', 's16le', '-'], stdout=subprocess.PIPE)
    loud = np.abs(np.frombuffer(result.stdout, np.int16).astype(int)) > 3000
    return bright / RATE, np.nonzero(loud)[0][0] / 8000


@pytest.fixture
def no_ffmpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    monkeypatch.setenv('PATH', '/nowhere')


@pytest.mark.parametrize('width, height', [(160, 96), (161, 97), (160, 97)])
def test_it_is_whole(tmp_path, width, height):
    """Odd sides are padded by a pixel."""
    numbers, shape, fps = read_film(write_film(tmp_path / 'film', width, height))
    assert numbers == list(range(COUNT)) and fps == RATE
    assert shape == (height + height % 2, width + width % 2, 3)
    assert sorted(os.listdir(str(tmp_path))) == ['film_people.jsonl', 'film_people.mp4']
    lines = (tmp_path / 'film_people.jsonl').read_text().splitlines()
    assert [json.loads(line)['frame'] for line in lines] == list(range(COUNT))


def test_pictures_are_shown_when_their_frames_were(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = make_source(tmp_path / 'source.mp4')
    times = np.array([0, 1, 2, 2.4, 3, 6, 7, 7.1, 10.2]) / RATE
    numbers, _, _ = read_film(write_film(tmp_path / 'film', times=times, source=source))
    assert numbers == [0, 1, 2, 4, 4, 4, 5, 6, 6, 6, 8]
    message, = [record.message for record in caplog.records if 'varying' in record.message]
    assert '12.5 a second, 4 pictures are repeated and 2 left out' in message and str(source) in message


@pytest.mark.parametrize('error', (0.49, -0.49))
def test_inexact_times_of_a_constant_rate_neither_repeat_nor_leave_out(tmp_path, error, caplog):
    times = np.arange(COUNT) / RATE + error / RATE * np.random.RandomState(0).rand(COUNT)
    assert read_film(write_film(tmp_path / 'film', times=times.clip(0)))[0] == list(range(COUNT))


def test_a_broken_time_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(film, 'MAX_PAUSE', 2.0)
    numbers, _, _ = read_film(write_film(tmp_path / 'film', times=[0, 1 / RATE, 1e9, 1e9 + 1 / RATE]))
    assert numbers == [0] + [1] * 26 + [2, 3]


@pytest.mark.parametrize('name, options, codec', [
    ('film.mp4', ('-c:a', 'aac'), 'aac'), ('film.mp4', ('-c:a', 'libmp3lame'), 'mp3'),
    ('film.mkv', ('-c:a', 'libopus'), 'aac'), ('film.avi', ('-c:a', 'pcm_s16le'), 'aac')])
def test_sound_goes_along_and_ends_with_the_pictures(tmp_path, name, options, codec):
    source = make_source(tmp_path / name, *options)
    path = write_film(tmp_path / 'film', source=source)
    assert sound_codec(path) == codec
    assert read_film(path)[0] == list(range(COUNT))
    text = subprocess.run([find_ffmpeg(), '-i', path], stderr=subprocess.PIPE).stderr.decode()
    assert 'Duration: 00:00:02.0' in text, 'the sound of the source takes four seconds'
    assert not [name for name in os.listdir(str(tmp_path)) if 'part' in name]


@pytest.fixture(scope='module')
def struck(tmp_path_factory):
    """A film of four seconds; after two and a half there is a flash and a beep. A picture that stands for itself comes
    each second."""
    path = tmp_path_factory.mktemp('struck') / 'struck.mp4'
    moment = 'between(t,2.48,2.7)'
    subprocess.run([find_ffmpeg(), '-y', '-loglevel', 'error', '-f', 'lavfi', '-i',
                    "color=black:s=160x96:r=%g:d=4,drawbox=color=white:t=fill:enable='%s'" % (RATE, moment),
                    '-f', 'lavfi', '-i', "aevalsrc='sin(5000*t)*%s':d=4:s=44100" % moment, '-g', '12', '-bf', '0',
                    '-c:a', 'aac', str(path)], check=True)
    return path


def write_again(source, prefix, count=None):
    """The path of a film with the pictures of another one, and its sound."""
    with Output(str(prefix), RATE, 160, 96, str(source)) as output:
        for index, (_, pixels) in enumerate(iter(cv2.VideoCapture(str(source)).read, (False, None))):
            if count is None or index < count:
                output.write(pixels, index / RATE, {})
    return output.video


@pytest.mark.parametrize('ending, options', [
    ('mp4', ('-ss', '1.3', '-c', 'copy')), ('mkv', ('-ss', '1.3', '-c', 'copy')),
    ('mkv', ('-ss', '1.3', '-c:v', 'copy', '-c:a', 'libopus')), ('mp4', ('-c', 'copy'))],
    ids=['cut', 'cut-mkv', 'cut-encoded', 'whole'])
def test_sound_stays_in_step(struck, tmp_path, ending, options):
    """In a film that was cut sound begins at once, and the pictures with the next one that stands for itself."""
    source = tmp_path / ('source.' + ending)
    subprocess.run([find_ffmpeg(), '-y', '-loglevel', 'error', '-i', str(struck), *options, str(source)], check=True)
    flash, beep = flash_and_beep(write_again(source, tmp_path / 'film'))
    assert flash > 0.3 and abs(flash - beep) < 0.06


def test_sound_may_begin_later_and_end_with_the_pictures(struck, tmp_path):
    for name, codec in (('late.mp4', 'copy'), ('late.mkv', 'libopus')):
        source = tmp_path / name
        subprocess.run([find_ffmpeg(), '-y', '-loglevel', 'error', '-i', str(struck), '-itsoffset', '0.8', '-i',
                        str(struck), '-map', '0:v', '-map', '1:a', '-c:v', 'copy', '-c:a', codec, str(source)],
                       check=True)
        path = write_again(source, tmp_path / 'film', 45)
        assert flash_and_beep(path)[1] == pytest.approx(3.28, abs=0.06)
        text = subprocess.run([find_ffmpeg(), '-i', path], stderr=subprocess.PIPE).stderr.decode()
        assert 'Duration: 00:00:03.6' in text


def test_sound_without_a_picture_to_keep_in_step_with_is_told(struck, tmp_path, caplog):
    add_sound(shutil.which('false'), str(tmp_path / 'film.mp4'), str(struck), 0, 4)
    assert 'no sound is taken from %s' % struck in caplog.text and not os.listdir(str(tmp_path))


def test_a_silent_film_stays_silent(tmp_path):
    source = make_source(tmp_path / 'source.mp4')
    assert sound_codec(write_film(tmp_path / 'film', source=source)) is None


def test_sound_that_cannot_be_read_is_left_out(tmp_path, caplog):
    source = make_source(tmp_path / 'source.mkv', '-c:a', 'libvorbis')
    data = source.read_bytes()
    source.write_bytes(data.replace(b'\x05vorbis', b'\x05visbor').replace(b'\x01vorbis', b'\x01visbor'))
    path = write_film(tmp_path / 'film', source=source)
    assert read_film(path)[0] == list(range(COUNT)) and sound_codec(path) is None
    assert 'the sound of %s is left out: ' % source in caplog.text
    assert not [name for name in os.listdir(str(tmp_path)) if 'part' in name]


def test_without_ffmpeg_opencv_writes_it(tmp_path, no_ffmpeg, caplog):
    numbers, shape, fps = read_film(write_film(tmp_path / 'film', 161, 97, source='source.mp4'))
    assert numbers == list(range(COUNT)) and fps == RATE and shape == (98, 162, 3)
    assert 'without sound; pip install imageio-ffmpeg' in caplog.text


def test_without_any_encoder_one_line_says_what_to_install(tmp_path, no_ffmpeg, monkeypatch):
    monkeypatch.setattr(film, 'OPENCV_CODEC', 'avc1')  # the wheel has no encoder for it
    with pytest.raises(UserError, match='pip install imageio-ffmpeg'):
        write_film(tmp_path / 'film')
    assert os.listdir(str(tmp_path)) == []


def test_an_ffmpeg_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', '/nowhere/ffmpeg')
    with pytest.raises(UserError, match='cannot run /nowhere/ffmpeg: No such file'):
        write_film(tmp_path / 'film')
    assert os.listdir(str(tmp_path)) == []


def test_an_ffmpeg_without_h264(tmp_path, monkeypatch):
    """As some systems have it: it ends at once."""
    program = tmp_path / 'ffmpeg'
    program.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    monkeypatch.setenv('PATH', '%s:%s' % (tmp_path, os.environ['PATH']))
    (tmp_path / 'out').mkdir()
    with pytest.raises(UserError, match="Unknown encoder 'libx264'; .*pip install imageio-ffmpeg"):
        write_film(tmp_path / 'out' / 'film', 640, 480)


def test_ctrl_c_does_not_reach_ffmpeg(tmp_path):
    """The terminal sends it to the whole group of processes."""
    code = ('import os, signal, sys, numpy as np; from inference.film import Output; os.setpgrp(); '
            'signal.signal(signal.SIGINT, lambda *_: None)\n'
            'with Output(sys.argv[1], 12.5, 64, 48) as output:\n'
            '    for index in range(20):\n'
            '        output.write(np.full((48, 64, 3), 40 + 8 * index, np.uint8), index / 12.5, {})\n'
            '        if index == 10: os.killpg(0, signal.SIGINT)\n')
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'film')], cwd=str(ROOT), check=True)
    assert read_film(tmp_path / 'film_people.mp4')[0] == list(range(20))


def watch(folder):
    """What Chromium tells of folder/film_people.mp4 when it has played to its end."""
    (folder / 'page.html').write_bytes(PAGE)
    told = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith('/tell?'):
                return super().do_GET()
            told.put(json.loads(urllib.parse.unquote(self.path.partition('?')[2])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
             '--autoplay-policy=no-user-gesture-required', '--user-data-dir=%s' % (folder / 'profile'),
             'http://127.0.0.1:%d/page.html' % server.server_address[1]],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            return told.get(timeout=60)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: `apt-get install chromium`')
@pytest.mark.parametrize('writer', ('ffmpeg', 'opencv'))
def test_a_browser_plays_it(tmp_path, writer, request):
    source = make_source(tmp_path / 'source.mp4', '-c:a', 'aac')
    if writer == 'opencv':
        request.getfixturevalue('no_ffmpeg')
    write_film(tmp_path / 'film', 161, 97, source=source)
    seen = watch(tmp_path)
    if 'error' in seen and not seen['h264']:
        pytest.skip('this Chromium has no H.264')
    assert abs(seen['duration'] - COUNT / RATE) < 0.06 and (seen['width'], seen['height']) == (162, 98)
    assert np.abs(np.subtract(seen['left'], (20, 30, 200))).max() <= 12
    assert np.abs(np.subtract(seen['right'], 40 + 8 * (COUNT - 1))).max() <= 6
    assert (seen['sound'] > 0) == (writer == 'ffmpeg')
