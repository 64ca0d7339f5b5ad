"""What is known of weights beside their values: the network they are of, and the keypoints it finds. No TensorFlow."""
import json
import os

import pose_skeleton
from pose_cli import UserError
from pose_skeleton import RUN_FILE

from . import NAMES
from .npy import is_npy, read_npy, take_about


def skeleton_of(path, about=None):
    """The Skeleton that weights were trained for, as their file or the run that they are in says; else None.

    about: what the file says about itself (npy.take_about), where it has been read already.
    Raises UserError when the file is a .npy and cannot be read.
    """
    text = (_about(path) if about is None else about).get('skeleton')
    if text:
        return pose_skeleton.from_json(text, path)
    for run_file, run in _runs_around(path):
        try:
            return pose_skeleton.from_json(run['skeleton'], run_file)
        except (UserError, KeyError, TypeError):
            continue
    return None


def model_of(path):
    """The name of the network whose weights these are, in the same way. Raises as skeleton_of does."""
    names = [_about(path).get('model')]
    names += [run['flags'].get('model') for _, run in _runs_around(path) if isinstance(run.get('flags'), dict)]
    return next((name for name in names if name in NAMES), None)


def _about(path):
    """What a .npy file of scripts/export_weights.py says about itself: {'model': ..., 'skeleton': JSON}, or less."""
    if not os.path.isfile(path) or not path.lower().endswith('.npy'):
        return {}
    with open(path, 'rb') as file:
        return take_about(read_npy(file, path), path) if is_npy(file) else {}


def _runs_around(path):
    """[(path, content)] of the run.json in a checkpoint's folder and in the one above, as those are there."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    runs = []
    for run_file in (os.path.join(folder, RUN_FILE), os.path.join(os.path.dirname(os.path.abspath(folder)), RUN_FILE)):
        try:
            with open(run_file, encoding='utf-8') as file:
                run = json.load(file)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(run, dict):
            runs.append((run_file, run))
    return runs
