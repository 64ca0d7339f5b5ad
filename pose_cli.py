"""What every command here does the same way: flags, log lines, and one-line errors.

Bad input ends a command with one line on stderr that names what is wrong and the remedy, and exit code 2.
Code anywhere raises UserError for that; `run` turns it into the line.
"""
import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import time

import pose_quiet

pose_quiet.quieten_tensorflow()  # some commands import it later

# What the packages in requirements.txt that commands cannot do without are called in an import.
PACKAGES = ('cv2', 'matplotlib', 'msgpack', 'msgpack_numpy', 'numpy', 'psutil', 'pycocotools', 'tensorflow',
            'tensorpack', 'tqdm', 'zmq')


class UserError(Exception):
    """Something the user can mend: a missing file, a broken annotation, a wrong flag.

    The message is one line: what is wrong, then the remedy. `exit_code` is the exit code of the command.
    """

    def __init__(self, message, exit_code=2):
        super().__init__(printable(' '.join(str(message).split())))
        self.exit_code = exit_code


def printable(text):
    """text with control characters escaped: what came out of a file must not move the cursor or colour the screen."""
    return ''.join(c if c.isprintable() or '\ud800' <= c <= '\udfff' else c.encode('unicode_escape').decode()
                   for c in text)


def is_utf8(path):
    """Whether a path, as Python got it from the system, is text; TensorFlow takes no others."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def disk_trouble(error):
    """'No space left on device' and the like when this is why an exception was raised, TensorFlow's too; else None."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE):
        if getattr(error, 'errno', None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return None


def reason_of(error):
    """Why an exception was raised, in a line; TensorFlow's messages have many, and the first may say nothing."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and line != 'Graph execution error:']
    return disk_trouble(error) or (telling[0] if telling else type(error).__name__)


class Stopped(Exception):
    """Ends the run, or what goes on between two steps, because of a signal."""


class StopSignal:
    """Turns SIGTERM, Ctrl-C and the end of the terminal (SIGHUP, unless nohup has it ignored) into a request to stop
    after the current step; one more, later, kills as usual."""

    def __init__(self):
        self._received = None
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._receive)

    def __call__(self):
        """Whether to stop."""
        return self._received is not None

    def check(self):
        """Raise Stopped if a signal came."""
        if self():
            raise Stopped('stopped by a signal before the first step')

    def _receive(self, number, _):
        if number == signal.SIGHUP:
            _silence(self._terminals)
        if self._received is None:
            self._received = time.monotonic()
        elif time.monotonic() - self._received > 1:  # `timeout` and others signal both the process and its group
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _is_terminal(fd):
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _silence(fds):
    """Send these to /dev/null: writing to a terminal that is gone is an error, which would end the run unsaved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(nowhere, fd)
    os.close(nowhere)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default, but not that there is none."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and defaults shown in --help."""

    def __init__(self, **kwargs):
        kwargs.setdefault('formatter_class', _HelpFormatter)
        kwargs.setdefault('prog', os.path.relpath(sys.argv[0]))  # with its folder, as the user has to type it
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        raise UserError('%s (see python3 %s --help)' % (message, self.prog))


def _report_uncaught(kind, error, traceback):
    """As sys.excepthook: one line where a package is missing, which `run` cannot give for a command's own imports."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in PACKAGES:
        return sys.__excepthook__(kind, error, traceback)
    print('error: %s has no %s; run bash scripts/setup_env.sh once, then the command with .venv/bin/python'
          % (printable(sys.executable or 'this Python'), error.name), file=sys.stderr)
    raise SystemExit(2)


sys.excepthook = _report_uncaught


def run(main):
    """Call main() and exit the process: 0 or what main returns, a UserError's code, 130 after Ctrl-C."""
    if hasattr(sys.stdout, 'reconfigure'):  # not on Python 3.6
        sys.stdout.reconfigure(errors='backslashreplace')  # a path that is not UTF-8 can be printed, too
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print('error: %s' % error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if not disk_trouble(error):
            raise
        place = printable(str(error.filename)) if error.filename else 'a file'
        print('error: cannot read or write %s: %s; mend that, or choose another place' % (place, disk_trouble(error)),
              file=sys.stderr)
        sys.exit(2)


def log_to_stderr(level=logging.INFO):
    """Send log records to stderr as `2017-09-27 15:58:50,307 INFO message`."""
    logging.basicConfig(level=level, format='%(asctime)s %(levelname)s %(message)s')
    for handler in logging.getLogger().handlers:
        handler.addFilter(_escape_message)


def _escape_message(record):
    """A logging filter that never drops a record, but escapes what its arguments brought from files."""
    record.msg, record.args = '\n'.join(map(printable, record.getMessage().split('\n'))), None
    return True


def make_folder(path):
    """Create an output folder, also its parents; raises UserError when nothing can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError('cannot create the folder %s: %s; choose another' % (path, error.strerror))
    if not writable:
        raise UserError('cannot write in the folder %s; choose another' % path)


def check_folder(path):
    """Raise UserError when make_folder could not make this folder, or write in it; nothing is created."""
    parent = os.path.abspath(path)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError('cannot create the folder %s: %s is no folder; choose another' % (path, parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError('cannot write in the folder %s; choose another' % path)


@contextlib.contextmanager
def output_folder(path):
    """A folder for what a command writes; gone again if that fails before anything is in it. Raises UserError."""
    made, parent = [], os.path.abspath(path)
    while not os.path.lexists(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    make_folder(path)
    try:
        yield path
    except BaseException:
        for folder in made:
            try:
                os.rmdir(folder)
            except OSError:
                break
        raise


def free_folder(path):
    """path, or path-2, path-3, ...: the first that is empty or not there, so that nothing earlier is overwritten."""
    candidate, number = path, 1
    while os.path.lexists(candidate) and not (os.path.isdir(candidate) and not os.listdir(candidate)):
        number += 1
        candidate = '%s-%d' % (path, number)
    return candidate


def write_file(path, data):
    """Write bytes to a temporary file beside path, then rename it: path is never half-written. Raises UserError."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)),
                                         prefix='.' + os.path.basename(path), delete=False) as file:
            temporary = file.name
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.remove(temporary)
        remedy = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'mend that'
        raise UserError('cannot write %s: %s; %s, or choose another place' % (path, error.strerror, remedy))


def write_json(path, value, indent=None, sort_keys=True):
    """Write a JSON file; a run that is killed meanwhile leaves the old one or the new one. Raises UserError."""
    write_file(path, json.dumps(value, indent=indent, sort_keys=sort_keys).encode())


def add_data_flags(parser, group=None):
    """Add --datapath, which defaults to $COCO_DIR, and --imgpath.

    Args:
        group: of the parser, which gets --datapath where that excludes other flags.
    """
    (group or parser).add_argument('--datapath', default=os.environ.get('COCO_DIR'),
                                   help='COCO root or its annotations folder ($COCO_DIR)')
    parser.add_argument('--imgpath', help='where the image folders are, if elsewhere')


def positive_int(text):
    """argparse type: an integer of at least 1."""
    return _int_at_least(text, 1)


def non_negative_int(text):
    """argparse type: an integer of at least 0."""
    return _int_at_least(text, 0)


def _int_at_least(text, least):
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < least:
        raise argparse.ArgumentTypeError('%r is not a whole number of at least %d' % (text, least))
    return value


def size(text):
    """argparse type: '432x368' -> (432, 368), width first."""
    parts = text.lower().split('x')
    if len(parts) != 2:
        raise argparse.ArgumentTypeError('%r is not a size like 432x368 (width x height)' % text)
    return positive_int(parts[0]), positive_int(parts[1])
