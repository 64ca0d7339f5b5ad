"""Writing films that browsers play.

The program ffmpeg writes H.264 and takes over the sound of the film that was read; it comes with the package
imageio-ffmpeg, or is the system's. Where there is none, OpenCV writes VP9, which is many times slower, without sound.
"""
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile

import cv2

from pose_errors import UserError, printable

MAX_PAUSE = 60.0  # seconds that a picture stands still at most: a broken time stamp must not fill the disk
ENCODER = ('-c:v', 'libx264', '-preset', 'veryfast', '-crf', '21', '-pix_fmt', 'yuv420p')
OPENCV_CODEC = 'vp09'
REMEDY = 'pip install imageio-ffmpeg'
AUDIO_STREAM = re.compile(r'Stream #0:.*: Audio: (\w+)')
PICTURE_TIME = re.compile(r'pts_time: *(-?[\d.]+)')
TIME_BASE = re.compile(r'^#tb (\d+): (\d+)/(\d+)', re.MULTILINE)  # of framecrc: stream, seconds
PACKET = re.compile(r'^(\d+), *-?\d+, *(-?\d+),', re.MULTILINE)  # stream, when it is shown
SLACK = 1.0  # seconds
COPIED_SOUND = 'aac', 'mp3'  # what browsers play in .mp4; other sound becomes AAC


def find_ffmpeg():
    """Path of the program; None where there is none."""
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    return shutil.which('ffmpeg')


class FFmpegWriter:
    """Pictures, uint8 (height, width, 3) BGR, through a pipe into an .mp4 file. Both sides must be even."""

    def __init__(self, program, path, fps, width, height):
        self._path, self._errors = path, tempfile.TemporaryFile()
        command = [program, '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'bgr24', '-s',
                   '%dx%d' % (width, height), '-r', repr(float(fps)), '-i', '-', *ENCODER, '-movflags', '+faststart',
                   'file:' + path]
        try:  # in a session of its own: Ctrl-C is for us, who then end the film
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                             stderr=self._errors, start_new_session=True)
        except OSError as error:
            raise UserError('cannot run %s: %s; `%s`' % (program, error.strerror, REMEDY))

    def write(self, picture):
        try:
            self._process.stdin.write(picture)
        except BrokenPipeError:
            self.release()

    def release(self):
        """Raises UserError when the film is not whole."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait():
            self._errors.seek(0)
            raise UserError('ffmpeg cannot write %s: %s; free some space, choose another --output-dir, or `%s` for one '
                            'that writes H.264' % (self._path, _last_line(self._errors.read()), REMEDY))


def opencv_path(path, flag):
    """A path as OpenCV takes it, which crashes on a name that is not UTF-8. Raises UserError for such a one."""
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError('%s=%s: this name is not UTF-8, which OpenCV needs; rename it' % (flag, printable(path)))
    return path


class OpenCVWriter:
    """The same in VP9."""

    def __init__(self, path, fps, width, height):
        logging.warning('there is no ffmpeg here: OpenCV writes the film, slowly and without sound; %s', REMEDY)
        self._writer = cv2.VideoWriter(opencv_path(path, '--output-dir'), cv2.CAP_FFMPEG,
                                       cv2.VideoWriter_fourcc(*OPENCV_CODEC), fps, (width, height))
        if not self._writer.isOpened():
            raise UserError('there is no ffmpeg, and OpenCV cannot write %s (%s): %s' % (path, OPENCV_CODEC, REMEDY))
        self.write, self.release = self._writer.write, self._writer.release


def _ask(program, film, *options):
    """Run ffmpeg on a file, whose own clock is kept."""
    return subprocess.run([program, '-hide_banner', '-protocol_whitelist', 'file', '-copyts', '-i', 'file:' + film,
                           *options, '-'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True)


def sound_and_start(program, film):
    """(Codec of a file's first stream of sound, or None, when its first picture is shown, what ffmpeg said last).

    The time is in seconds of the file's own clock, which need not begin there, nor at 0; None where there is no such
    picture.
    """
    log = _ask(program, film, '-map', '0:v:0', '-frames:v', '1', '-vf', 'showinfo', '-f', 'null').stderr
    text = log.decode(errors='replace')
    stream, shown = AUDIO_STREAM.search(text), PICTURE_TIME.search(text)
    return stream and stream.group(1), float(shown.group(1)) if shown else None, _last_line(log)


def is_cut_short(program, film, count, seconds, end):
    """Whether a film holds less than it says, or pictures that could not be read: a second or more of it.

    What it says is not all shown: in some formats it counts pictures that lead to the first one that is shown, in
    others it is a guess from the length of the sound. So the whole file is read, without decoding.

    Args:
        count, seconds: how many pictures the film says that it has, and how long it says that they take.
        end: of the pictures that could be read, in seconds after the first.
    """
    shown = sound_and_start(program, film)[1]
    text = _ask(program, film, '-map', '0:v:0', '-map', '0:a?', '-c', 'copy', '-f', 'framecrc').stdout.decode()
    units = {stream: int(over) / int(under) for stream, over, under in TIME_BASE.findall(text)}
    packets = [(stream, int(time) * units[stream]) for stream, time in PACKET.findall(text)]
    pictures = [time for stream, time in packets if stream == '0']
    if shown is None or not pictures:
        return True
    times = [time for _, time in packets]
    return end + SLACK < max(pictures) - shown or (
        len(pictures) < count and max(times) - min(times) + SLACK < seconds)


def add_sound(program, film, source, begin, seconds):
    """Give a silent film of so many seconds the sound of another one, if that has any.

    begin: when the source's first picture is shown in the film. The source's sound may begin before or after it: the
    streams of films that were cut or put together do not begin at once.
    """
    codec, shown, said = sound_and_start(program, source)
    if shown is None:
        return logging.warning('no sound is taken from %s: ffmpeg finds no picture there to keep it in step with (%s)',
                               source, said)
    if codec is None:
        return
    way = ['copy'] if codec in COPIED_SOUND else ['aac', '-af', 'atrim=start=0']
    whole = film + '.sound.mp4'
    result = subprocess.run(
        [program, '-y', '-loglevel', 'error', '-copyts', '-i', 'file:' + film, '-itsoffset',
         '%.6f' % (begin - shown), '-protocol_whitelist', 'file', '-i', 'file:' + source, '-map', '0:v',
         '-map', '1:a:0', '-c:v', 'copy', '-c:a', *way, '-t', repr(seconds), '-movflags', '+faststart',
         'file:' + whole],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    if result.returncode == 0:
        return os.replace(whole, film)
    with contextlib.suppress(OSError):
        os.remove(whole)
    logging.warning('the sound of %s is left out: %s', source, _last_line(result.stderr))


def _last_line(log):
    return (log.decode(errors='replace').strip().splitlines() or ['it says nothing'])[-1]


class Output:
    """A context: the annotated video and the JSON lines at prefix + ... They get their names when it ends, whole.

    The video has a constant rate. Pictures are repeated, or left out, so that each is shown when its frame was: it
    takes as long as the frames' times say. Odd sides are padded by a pixel.

    After an error both stay under the names of unfinished files; nothing stays when no frame was written.

    source: file whose sound it gets; None: none, and the frames' times may vary, as a camera's do.

    Raises UserError when they cannot be written.
    """

    def __init__(self, prefix, fps, width, height, source=None):
        self.video, self.lines = prefix + '_people.mp4', prefix + '_people.jsonl'
        self._parts = {prefix + '_people.part.mp4': self.video, prefix + '_people.part.jsonl': self.lines}
        self._fps, self._source, self._padding = fps, source, (height % 2, width % 2)
        self._shown, self._last, self._written, self._repeated, self._left_out = 0, None, 0, 0, 0
        self._begin = None  # seconds, of the first frame
        self._video_part, lines_part = self._parts
        try:
            self._file = open(lines_part, 'w')
        except OSError as error:
            raise UserError('cannot write %s: %s; choose another --output-dir' % (lines_part, error.strerror))
        self._ffmpeg = find_ffmpeg()
        size = width + width % 2, height + height % 2
        try:
            self._writer = FFmpegWriter(self._ffmpeg, self._video_part, fps, *size) if self._ffmpeg else \
                OpenCVWriter(self._video_part, fps, *size)
        except UserError:
            self._file.close()
            self._remove()
            raise

    def __enter__(self):
        return self

    def write(self, picture, seconds, record):
        """Write a drawn frame, shown at that time, and its JSON."""
        self._begin = seconds if self._begin is None else self._begin
        due = int(seconds * self._fps + 0.5)
        if due >= self._shown:
            bottom, right = self._padding
            picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            pause = min(due - self._shown, int(MAX_PAUSE * self._fps))
            for _ in range(pause):
                self._writer.write(picture if self._last is None else self._last)
            self._writer.write(picture)
            self._shown, self._last, self._repeated = due + 1, picture, self._repeated + pause
        else:
            self._left_out += 1
        try:
            self._file.write(json.dumps(record) + '\n')
        except OSError as error:
            raise UserError('cannot write %s: %s; free some space' % (self.lines, error.strerror))
        self._written += 1

    def __exit__(self, kind, *_):
        try:
            self._writer.release()
        except UserError:
            if kind is None:
                self._keep_parts()
                raise
        try:
            self._file.close()
        except OSError as error:
            raise UserError('cannot write %s: %s; free some space' % (self.lines, error.strerror))
        if kind is not None:
            return self._keep_parts()
        if self._source:
            self._finish()
        for part, name in self._parts.items():
            os.replace(part, name)

    def _finish(self):
        """Say what became of the times, and add the sound."""
        if self._repeated or self._left_out:
            logging.info('the frames of %s come at varying times: the film has %.4g a second, %d pictures are repeated '
                         'and %d left out, and it takes as long', self._source, self._fps, self._repeated,
                         self._left_out)
        if self._ffmpeg and self._written:
            add_sound(self._ffmpeg, self._video_part, self._source, self._begin, self._shown / self._fps)

    def _keep_parts(self):
        if self._written:
            logging.warning('the first %d frames are in %s', self._written, ' and '.join(self._parts))
        else:
            self._remove()

    def _remove(self):
        for part in self._parts:
            with contextlib.suppress(OSError):
                os.remove(part)
