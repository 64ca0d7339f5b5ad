"""The train op of train.py in a session of its own, on batches that lie in TensorFlow's memory.

As a program it is one process of a cluster (TF_CONFIG) or the only one, and does steps when asked, so that others can
take turns with it (see bare_processes.py). All towers get the same samples, so that the losses are the same for any
number of towers; `verify` gives each its own. bench_towers.py, bench_train_step.py and scripts/check_gpus.py start it.
"""
import argparse
import hashlib
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
from networks.tensorflow import tf

import networks
import pose_cli
from bare_processes import answer
from batches.batch import Batch, encode_batch
from annotations.skeleton import COCO_SKELETON
from bench_inputs import made_up_batch, made_up_weights
from training.cluster import ALONE, read_cluster
from training.config import Recipe, Schedule
from training.devices import enable_mixed, start_server, tower_devices
from training.optimizer import LARGEST_SCALE, published_name
from training.towers import all_reduce, build_training, step_group

PROBE_SIZE, PROBE_KEY = 1000, 1 << 20  # of the all-reduce of known numbers; the key is that of no other one


class BareTraining:
    """A training graph and its session.

    Args:
        model: one of networks.NAMES.  input_size: (width, height).
        batchsize: of all towers of this process together.
        towers: on GPUs, where TensorFlow sees any, else on CPU devices.
        precision, towers_per_gpu: as train.py's flags.  communication: its --all-reduce.
    Attributes:
        wire_bytes: what a tower sends to others a step, between processes.
    """

    def __init__(self, model, input_size, batchsize, towers, cluster=ALONE, threads=0, precision='float32',
                 towers_per_gpu=1, communication=None):
        with tf.Graph().as_default():
            gpus = len(tf.config.experimental.list_physical_devices('GPU'))
            devices, config, communication = tower_devices(towers // towers_per_gpu, gpus, cluster, towers_per_gpu,
                                                           communication)
            scaled = precision == 'mixed' and enable_mixed(config, gpus)
            config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = threads
            part = made_up_batch(np.random.RandomState(0), batchsize // towers, *input_size, networks.stride(model),
                                 people=3)
            dense = [np.concatenate([field] * towers) for field in part]
            with tf.device(devices[0].rpartition('/')[0] + '/cpu:0'):
                batch = Batch(*(tf.get_variable(name, initializer=value, trainable=False, use_resource=False)
                                for name, value in encode_batch(*dense)._asdict().items()))
            training = build_training(model, batch, devices, [1e-4], Schedule(1000, 10000, True, 0),
                                      COCO_SKELETON, Recipe(loss_scale=LARGEST_SCALE if scaled else 0.0), cluster,
                                      communication)
            self.wire_bytes = training.wire_bytes
            self._fetches = [training.step, training.metrics['loss']]
            self._feed = {training.stop: 0} if cluster.size > 1 else {}
            self._session = tf.Session(start_server(cluster, config), config=config)
            self._session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            _set_weights(self._session, training.network.variables)
            self._session.run(training.copy)
            self._image, self._members, self._seed = batch.image, towers * cluster.size, cluster.index
            self._variables = {variable.op.name: variable for variable in tf.global_variables()}
            self._probes = []
            for k, device in enumerate(devices if self._members > 1 else []):
                with tf.device(device):
                    own = tf.fill([PROBE_SIZE], float(cluster.index * towers + k + 1))
                    self._probes += all_reduce([own], step_group(devices, cluster.size, communication),
                                               PROBE_KEY)

    def verify(self):
        """Whether gradients are reduced, where each tower of each process has samples of its own.

        Returns:
            {'sum_is_right': of numbers that are known, 'replicas_agree': to the last bit, after two steps, 'digest': of
            the first replica's variables, to be compared with those of other processes}.
        """
        noise = np.random.RandomState(self._seed).randint(0, 256, self._image.shape.as_list()).astype(np.uint8)
        self._session.run(self._image.initializer, {self._image.initializer.inputs[1]: noise})
        self.steps(2)
        expected = (self._members + 1) / 2
        sums = self._session.run(self._probes)
        values = self._session.run(self._variables)
        copies = {name: re.sub(r'^replica_\d+/', '', name) for name in values if name.startswith('replica_')}
        digest = hashlib.sha1(b''.join(value.tobytes() for name, value in sorted(values.items())
                                       if name not in copies and name not in Batch._fields))
        return {'sum_is_right': all((value == expected).all() for value in sums),
                'replicas_agree': all(values[name].tobytes() == values[first].tobytes()
                                      for name, first in copies.items()),
                'digest': digest.hexdigest()}

    def gpu_memory(self):
        """Bytes of the first GPU that TensorFlow used at the fullest moment; None without one, or on TensorFlow 1."""
        experimental = tf.config.experimental
        gpus = experimental.list_physical_devices('GPU')
        if not gpus or not hasattr(experimental, 'get_memory_info'):
            return None
        try:
            experimental.set_memory_growth(gpus[0], True)  # the question starts TensorFlow's eager mode
            return experimental.get_memory_info('GPU:0')['peak']
        except (RuntimeError, ValueError, tf.errors.OpError):
            return None

    def xla_clusters(self):
        """How many parts of a step XLA compiled."""
        metadata = tf.RunMetadata()
        self._session.run(self._fetches, self._feed, tf.RunOptions(output_partition_graphs=True), metadata)
        return sum(node.op == '_XlaRun' for graph in metadata.partition_graphs for node in graph.node)

    def steps(self, count):
        """Do so many steps. Returns (seconds that each took, the last one's loss)."""
        seconds, loss = [], None
        for _ in range(count):
            start = time.perf_counter()
            _, loss = self._session.run(self._fetches, self._feed)
            seconds.append(time.perf_counter() - start)
        return seconds, float(loss)


def _set_weights(session, variables):
    """The same values in every graph; in one that splits them over processes, each sets all of them."""
    values = {variable: made_up_weights(published_name(variable.op.name), variable.shape.as_list())
              for variable in variables if len(variable.shape) == 4}
    session.run([variable.initializer for variable in values],
                {variable.initializer.inputs[1]: value for variable, value in values.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='mobilenet_thin')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368))
    parser.add_argument('--batchsize', type=int, default=4)
    parser.add_argument('--towers', type=int, default=1)
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--precision', default='float32')
    parser.add_argument('--towers-per-gpu', type=int, default=1)
    parser.add_argument('--all-reduce')
    flags = parser.parse_args()
    training = BareTraining(flags.model, flags.input_size, flags.batchsize, flags.towers, read_cluster(os.environ),
                            flags.threads, flags.precision, flags.towers_per_gpu, flags.all_reduce)
    answer(training, wire_bytes=training.wire_bytes, tensorflow=tf.__version__,
           gpus=len(tf.config.experimental.list_physical_devices('GPU')))


if __name__ == '__main__':
    main()
