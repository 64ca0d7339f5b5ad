"""A run as TensorBoard shows it: two "runs", train and validation, whose curves of the same name share a chart.

TensorBoard sorts charts by name. The first page has the AP, then the losses, the last stage's first as a share of what
predicting only background costs; then that cost, learning rate and speed. Pictures, flags and graph have pages of their
own.
"""
import os
import socket
import time

import tensorflow.compat.v1 as tf

TRAIN, VALIDATION = 'train', 'validation'
GROUPS = {'AP': 'AP', 'lr': 'schedule', 'examples_per_sec': 'speed', 'queue': 'speed', 'data_wait': 'speed',
          'loss_ll_background': 'reference'}
SHARE = 'loss/0_share_of_background'


class Board:
    """The event files of one start of a run. Each call writes at once, and raises OSError or tf.errors.OpError.

    Not a tf.summary.FileWriter: that writes in a thread, where a full disk ends in a traceback.

    Args:
        folder: for the folders train/ and validation/.
        first_step: TensorBoard drops what an earlier start, since killed, left of later steps.
    """

    def __init__(self, folder, first_step):
        self._writers = {run: _open_events(os.path.join(folder, run)) for run in (TRAIN, VALIDATION)}
        for run in self._writers:
            self._write(run, file_version='brain.Event:2')
            self._write(run, step=first_step, session_log=tf.SessionLog(status=tf.SessionLog.START))

    def figures(self, run, step, figures):
        """figures: {name as in curves.csv: number}."""
        values = {tag(name): value for name, value in figures.items()}
        if figures.get('loss_ll_background'):
            values[SHARE] = figures['loss_ll'] / figures['loss_ll_background']
        self._summary(run, step, *(tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()))

    def picture(self, run, step, name, png, height, width):
        """png: the bytes of a .png file."""
        image = tf.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._summary(run, step, tf.Summary.Value(tag='pictures/' + name, image=image))

    def start(self, step, flags, output):
        """What runs: the flags, a dictionary, as a table under run/flags, and the graph of the network's output."""
        rows = ['| flag | value |', '|---|---|']
        rows += ['| --%s | %s |' % (name.replace('_', '-'), '' if value is None else str(value).replace('|', '\\|'))
                 for name, value in sorted(flags.items())]
        text = tf.make_tensor_proto('\n'.join(rows).encode())
        metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
        self._summary(TRAIN, step, tf.Summary.Value(tag='run/flags', tensor=text, metadata=metadata))
        network = tf.graph_util.extract_sub_graph(output.graph.as_graph_def(), [output.op.name])
        self._write(TRAIN, graph_def=network.SerializeToString())

    def close(self):
        for writer in self._writers.values():
            writer.close()

    def _summary(self, run, step, *values):
        self._write(run, step=step, summary=tf.Summary(value=values))

    def _write(self, run, **fields):
        self._writers[run].write(tf.Event(wall_time=time.time(), **fields).SerializeToString())
        self._writers[run].flush()


def tag(name):
    """The tag of a figure of curves.csv: its group and its name."""
    return '%s/%s' % (GROUPS.get(name, 'loss'), name)


def _open_events(folder):
    os.makedirs(folder, exist_ok=True)
    return tf.io.TFRecordWriter(os.path.join(folder, 'events.out.tfevents.%d.%s.%d' % (
        time.time(), socket.gethostname(), os.getpid())))
