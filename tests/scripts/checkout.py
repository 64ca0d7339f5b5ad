"""A copy of the checkout whose environment is the one that runs the tests, for the scripts that would make one."""
import os
import shutil
import subprocess
import sys

from conftest import ROOT


def copy_checkout(folder):
    """Copy what git tracks, and what it does not ignore, into a new folder; setup_env.sh does nothing there."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=str(ROOT),
                            stdout=subprocess.PIPE, universal_newlines=True)
    for path in listed.stdout.splitlines():
        if not path.startswith('tests/') and (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(ROOT / path), str(folder / path))
    (folder / 'scripts' / 'setup_env.sh').write_text('exit 0\n')
    for venv in ('.venv', '.venv-tf2'):
        os.symlink(sys.prefix, str(folder / venv))
    return folder
