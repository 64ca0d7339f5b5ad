"""What others read of a run, without TensorFlow: its metrics, curves.csv, which training/run_log.py writes, and
run.json, which training/run_folder.py writes."""
import csv
import json
import os
import re

from annotations.skeleton import RUN_FILE
from pose_errors import UserError

CURVES_FILE = 'curves.csv'
MAX_CURVE_LINE = 10000


def read_curves(path):
    """The rows of a curves.csv as dictionaries of strings; lines that a killed run or a bad disk cut are left out.

    Raises:
        UserError: the file cannot be read, or its first line does not name the columns kind and step.
    """
    try:
        with open(path, newline='', encoding='ascii', errors='replace') as file:
            head = file.readline(MAX_CURVE_LINE).split(',')
            lines = (line for line in file if len(line) < MAX_CURVE_LINE and '\0' not in line)
            rows = [row for row in csv.DictReader(lines, [name.strip() for name in head], quoting=csv.QUOTE_NONE)
                    if None not in row and None not in row.values()
                    and re.match(r'[0-9]{1,15}$', row.get('step', ''))]
    except (OSError, csv.Error) as error:
        raise UserError('cannot read %s: %s; move it elsewhere' % (path, getattr(error, 'strerror', None) or error))
    if not {'kind', 'step'} <= {name.strip() for name in head}:
        raise UserError('%s is not a curves.csv: its first line names no columns; move it elsewhere' % path)
    return rows


def read_run(modelpath):
    """The content of run.json, {} when there is none. Raises UserError when it is damaged."""
    path = os.path.join(modelpath, RUN_FILE)
    try:
        with open(path) as file:
            run = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not isinstance(run.get('flags', {}), dict) \
            or not isinstance(run.get('starts', []), list):
        raise UserError('%s is damaged; choose another --modelpath, and give the checkpoint with --checkpoint' % path)
    return run
