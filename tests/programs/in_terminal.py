"""in_terminal.py FD COMMAND...: run a Python command as terminal windows do, in a session of its own there."""
import fcntl
import os
import sys
import termios

terminal = int(sys.argv[1])
os.setsid()
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
os.dup2(terminal, 1)
os.close(terminal)
os.execv(sys.executable, [sys.executable] + sys.argv[2:])
