"""Writes what the commands write, on a disk that fails (failing_disk.c), in one process: TensorFlow starts once.

Arguments: a folder, a COCO folder. Prints [[place, error, what came of it], ...] as JSON; the log goes to stderr.
"""
import errno
import json
import os
import sys
import types

import numpy as np

import pose_cli
import tensorflow.compat.v1 as tf
import train
from annotations.arrays import read_annotations
from annotations.images import find_split, write_picture
from annotations.skeleton import COCO_SKELETON
from graphs import freeze, graphdef
from networks.formats.npy import write_npy
from pose_errors import UserError
from training import checkpoint
from training.config import Schedule
from training.run_folder import note_start
from training.run_log import RunLog

FOLDER, COCO = sys.argv[1:]
BLACK = np.zeros((8, 8, 3), np.uint8)


def path(*names):
    return os.path.join(FOLDER, *names)


def start_log():
    return RunLog(FOLDER, 0, Schedule(10, 1000, True, 0))


def log_figures(log):
    with log:
        log.evaluation(1, 0.5)
        log.evaluation(2, 0.5)
        log.picture(2, 'validation', BLACK)


def graph():
    with tf.Graph().as_default() as made:
        tf.identity(tf.placeholder(tf.float32, (None, 8, 8, 3), graphdef.INPUT), graphdef.OUTPUT)
        return made.as_graph_def()


def outcome(write):
    """How a write ends, as train.py ends with it."""
    try:
        write()
        return 'went on'
    except UserError as error:
        return str(error)
    except Exception as error:
        try:
            train.check_disk(types.SimpleNamespace(modelpath=FOLDER), error)
        except UserError as told:
            return str(told)
        return 'traceback: %s: %s' % (type(error).__name__, error)


pose_cli.log_to_stderr()
results = []
with tf.Graph().as_default(), tf.Session() as session:
    weight = tf.get_variable('weight', initializer=np.arange(50000, dtype=np.float32), use_resource=False)
    session.run(weight.initializer)
    saver = checkpoint.create_saver(5)

    def save():
        saver.save(session, path('model'), 2, write_meta_graph=False)

    def keep_best():
        checkpoint.BestCheckpoint(saver, FOLDER).update(session, 2, 0.5)

    annotations = find_split(COCO, 'train2017')
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        log = start_log()
        faults = [('model-2.data', save), ('model-2.index', save), ('/checkpoint', save), ('best/', keep_best),
                  ('best.json', keep_best),
                  ('run.json', lambda: note_start(FOLDER, {}, COCO_SKELETON, resumes=False)),
                  ('curves.csv', start_log), ('tfevents', start_log), ('any', lambda: log_figures(log)),
                  ('.npz', lambda: read_annotations(*annotations)),
                  ('sample_00.png', lambda: write_picture(path('sample_00.png'), BLACK)),
                  ('graph_opt.pb', lambda: freeze.save_graph(graph(), path('graph_opt.pb'))),
                  ('saved_model', lambda: freeze.save_saved_model(graph(), path('saved_model', '1'))),
                  ('weights.npy', lambda: write_npy(path('weights.npy'), {'x': np.zeros(3)}, {}))]
        os.environ['FAILING_ERRNO'] = str(number)
        for place, write in faults:
            os.environ['FAILING_PATH'] = place if place != 'any' else FOLDER + os.sep
            results.append([place, os.strerror(number), outcome(write)])
            os.environ['FAILING_PATH'] = ''
print(json.dumps(results))
