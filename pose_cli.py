"""What every command does the same way: flags, signals, log lines, and errors in one line.

Only commands and their flags import this. Importing it changes nothing in the process.
"""
import argparse
import contextlib
import difflib
import logging
import math
import os
import signal
import sys
import time

from pose_errors import Stopped, UserError, disk_trouble, printable
from pose_files import path_and_share

MAX_INT, MAX_PROCESSES, MAX_SEED = 10 ** 9, 1024, 2 ** 63 - 1  # of flags
VERSION = '1.0.0'  # pyproject.toml reads it here
# What the packages in requirements.txt that commands cannot do without are called in an import.
PACKAGES = ('cv2', 'matplotlib', 'msgpack', 'numpy', 'psutil', 'pycocotools', 'tensorflow', 'tqdm', 'yaml', 'zmq')


class StopSignal:
    """Turns SIGTERM, Ctrl-C and the end of the terminal (SIGHUP, unless nohup has it ignored) into a request to stop
    after the current step; one more, later, kills as usual."""

    def __init__(self):
        self._end = math.inf
        self._received, self._terminals = None, [fd for fd in (0, 1, 2) if os.isatty(fd)]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def __call__(self):
        """Whether to stop."""
        return self._received is not None or time.monotonic() >= self._end

    @property
    def reason(self):
        """What asked for the stop, in words."""
        return '--max-hours' if self._received is None and time.monotonic() >= self._end else 'a signal'

    def after(self, seconds):
        """Ask for a stop so many seconds from now."""
        self._end = time.monotonic() + seconds

    def check(self):
        """Raise Stopped if it is asked for."""
        if self():
            raise Stopped('stopped by %s before the first step' % self.reason)

    def _receive(self, number, _):
        if number == signal.SIGHUP:  # writing to a terminal that is gone is an error, which would end the run unsaved
            nowhere = os.open(os.devnull, os.O_RDWR)
            for fd in self._terminals:
                os.dup2(nowhere, fd)
            os.close(nowhere)
        if self._received is None:
            self._received = time.monotonic()
        elif time.monotonic() - self._received > 1:  # `timeout` and others signal both the process and its group
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default once, and not that there is none."""

    def _get_help_string(self, action):
        said = action.default in (None, '') or '(default' in action.help
        return action.help if said else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and defaults shown in --help."""

    def __init__(self, **kwargs):
        kwargs.setdefault('formatter_class', _HelpFormatter)
        kwargs.setdefault('prog', os.path.relpath(sys.argv[0]))  # with its folder, as the user has to type it
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument('--version', action='version', version='OpenPose training %s' % VERSION)

    def error(self, message):
        raise UserError('%s (see python3 %s --help)' % (message, self.prog))

    def parse_args(self, args=None, namespace=None):
        """The flags, with `~` for the home folder in paths also where the shell leaves it (--flag=~/folder)."""
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error('unrecognized arguments: %s%s' % (' '.join(unknown), self._suggestion(unknown[0])))
        for name, value in vars(flags).items():
            if isinstance(value, str):
                setattr(flags, name, os.path.expanduser(value))
            elif isinstance(value, list):
                setattr(flags, name, [os.path.expanduser(each) if isinstance(each, str) else each for each in value])
        return flags

    def check_company(self, flags, needs):
        """Refuse flags on the command line that do nothing without others.

        flags: what parse_args gave.  needs: {flag: (flags of which one has to be there, ...)}.
        """
        for flag, others in needs.items():
            if is_given(flag) and not any(getattr(flags, other[2:]) for other in others):
                self.error('%s goes with %s' % (flag, ' and '.join(others)))

    def _suggestion(self, argument):
        """'; did you mean --max-epoch?' for --epochs=3."""
        def letters(text):
            return text.split('=')[0].replace('-', '').replace('_', '').rstrip('s')
        known = {letters(option): option for option in self._option_string_actions if option.startswith('--')}
        wanted = letters(argument)
        near = difflib.get_close_matches(wanted, known, 1, 0.7)
        near += [name for name in known if len(wanted) > 3 and (wanted in name or name in wanted and len(name) > 3)]
        return '; did you mean %s?' % known[near[0]] if near else ''


def prepare_process():
    """What a command does before its other imports.

    A missing package ends it in one line, with exit code 2. Standard streams that are closed (`2>&-`) lead to nowhere:
    else the next file that is opened would take their place, and what libraries write to stderr would end up in it.
    """
    def report(kind, error, traceback):
        if isinstance(error, KeyboardInterrupt):
            print('interrupted', file=sys.stderr)
            raise SystemExit(130)
        package = (getattr(error, 'name', None) or '').split('.')[0]
        if not isinstance(error, ImportError) or package not in PACKAGES:
            return sys.__excepthook__(kind, error, traceback)
        lacks = 'has no %s' % package if error.name == package and isinstance(error, ModuleNotFoundError) else \
            'cannot import %s (%s)' % (package, printable(str(error)))
        print('error: %s %s; run bash scripts/setup_env.sh once, then the command with .venv/bin/python'
              % (printable(sys.executable or 'this Python'), lacks), file=sys.stderr)
        raise SystemExit(2)
    sys.excepthook = report
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'r' if name == 'stdin' else 'w'))


def require_linux(what):
    """Raise UserError on other systems, which lack what the processes here rely on (fork, SOCK_SEQPACKET, /proc)."""
    if not sys.platform.startswith('linux'):
        raise UserError('%s needs Linux, this is %s; on Windows use WSL, on a Mac pose_eval.py alone runs'
                        % (what, sys.platform))


def run(main, *args):
    """Call main(*args) and exit the process: 0 or what main returns, or as errors_in_one_line says."""
    if hasattr(sys.stdout, 'reconfigure'):  # not on Python 3.6
        sys.stdout.reconfigure(errors='backslashreplace')  # a path that is not UTF-8 can be printed, too
    with errors_in_one_line():
        sys.exit(main(*args) or 0)


@contextlib.contextmanager
def errors_in_one_line():
    """Exit the process with one line: after a UserError with its code, after Ctrl-C with 130, for a bad disk with 2."""
    try:
        yield
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
    def escape(record):  # what its arguments brought from files; no record is dropped
        record.msg, record.args = '\n'.join(map(printable, record.getMessage().split('\n'))), None
        return True
    logging.basicConfig(level=level, format='%(asctime)s %(levelname)s %(message)s')
    for handler in logging.getLogger().handlers:
        handler.addFilter(escape)


def is_given(flag):
    """Whether a flag is on the command line, where its value alone does not say so."""
    return any(argument.split('=')[0] == flag for argument in sys.argv[1:])


def add_data_flags(parser, group=None):
    """Add --datapath, to a group of the parser where it excludes other flags, and --imgpath."""
    (group or parser).add_argument('--datapath', default=os.environ.get('COCO_DIR'),
                                   help='COCO root or its annotations folder, or a data.yaml of YOLO-pose or its '
                                        'folder ($COCO_DIR)')
    parser.add_argument('--imgpath', help='where the image folders are, if elsewhere')


def add_valid_share(parser, text):
    parser.add_argument('--valid-share', type=real_number(0.001, 0.999), metavar='SHARE', help=text)


def add_more_data(parser):
    """Add --add-data and --add-keypoints."""
    parser.add_argument('--add-data', type=with_share, action='append', default=[], metavar='DIR[:SHARE]',
                        help='more training data, as DIR or an annotation file: so much of all samples (0.3), or all '
                             'of its own; its keypoints meet those of --datapath by name, and what it does not label '
                             'is left out of the loss for its samples')
    parser.add_argument('--add-keypoints', action='store_true',
                        help='learn the keypoints, too, that only --add-data has')


def with_share(text):
    """argparse type: 'DIR' or 'DIR:0.3', as it is."""
    try:
        path_and_share(text)
    except ValueError:
        raise argparse.ArgumentTypeError('%r is not DIR or DIR:SHARE, with a share above 0 and below 1, as lspet:0.3'
                                         % text)
    return text


def whole_number(minimum, maximum):
    """An argparse type: an integer from minimum to maximum."""
    def parse(text):
        try:
            value = int(text) if len(text) < 30 else None
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError('%.40r is not a whole number from %d to %d' % (text, minimum, maximum))
        return value
    return parse


positive_int, non_negative_int = whole_number(1, MAX_INT), whole_number(0, MAX_INT)
positive_process_count, process_count = whole_number(1, MAX_PROCESSES), whole_number(0, MAX_PROCESSES)
seed = whole_number(0, MAX_SEED)


def real_number(minimum, maximum):
    """An argparse type: a number from minimum to maximum."""
    def parse(text):
        value = number(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError('%.40r is not a number from %g to %g' % (text, minimum, maximum))
        return value
    return parse


def interval(minimum, maximum):
    """An argparse type: '0.5,1.1' -> (0.5, 1.1), both from minimum to maximum, the lower one first."""
    def parse(text):
        values = tuple(map(number, text.split(',')))
        if len(values) != 2 or not minimum <= values[0] <= values[1] <= maximum:
            raise argparse.ArgumentTypeError('%.40r is not two numbers from %g to %g, like 0.5,1.1, the lower one first'
                                             % (text, minimum, maximum))
        return values
    return parse


def number(text):
    """A float; NaN, which is in no range, for text that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def size(text):
    """argparse type: '432x368' -> (432, 368), width first."""
    parts = text.lower().split('x')
    if len(parts) != 2:
        raise argparse.ArgumentTypeError('%r is not a size like 432x368 (width x height)' % text)
    return positive_int(parts[0]), positive_int(parts[1])
