"""Errors that a user can mend: one line that names what is wrong, and the remedy.

Code anywhere raises UserError; `pose_cli.run` prints it and ends the command with its exit code.
"""
import errno
import os


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
