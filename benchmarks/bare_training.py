"""The train op of train.py in a session of its own, on batches that lie in TensorFlow's memory.

As a program it is one process of a cluster (TF_CONFIG) or the only one, and does steps when asked, so that others can
take turns with it (see bare_processes.py). All towers get the same samples, so that the losses are the same for any
number of towers. bench_towers.py, bench_train_step.py and scripts/check_gpus.py start it.
"""
import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
from networks.tensorflow import tf

import networks
import pose_cli
from bare_processes import answer
from batches.batch import Batch, encode_batch
from bench_inputs import made_up_batch, made_up_weights
from training.cluster import ALONE, read_cluster
from training.config import Recipe
from training.devices import enable_mixed, start_server, tower_devices
from training.optimizer import published_name
from training.towers import build_training


class BareTraining:
    """A training graph and its session.

    Args:
        model: one of networks.NAMES.  input_size: (width, height).
        batchsize: of all towers of this process together.
        towers: on GPUs, where TensorFlow sees any, else on CPU devices.
        precision: as train.py's --precision.
    Attributes:
        wire_bytes: what a tower sends to others a step, between processes.
    """

    def __init__(self, model, input_size, batchsize, towers, cluster=ALONE, threads=0, precision='float32'):
        with tf.Graph().as_default():
            gpus = len(tf.config.experimental.list_physical_devices('GPU'))
            devices, config = tower_devices(towers, gpus, cluster)
            loss_scaling = precision == 'mixed' and enable_mixed(config, gpus)
            config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = threads
            part = made_up_batch(np.random.RandomState(0), batchsize // towers, *input_size, networks.stride(model),
                                 people=3)
            dense = [np.concatenate([field] * towers) for field in part]
            with tf.device(devices[0].rpartition('/')[0] + '/cpu:0'):
                batch = Batch(*(tf.get_variable(name, initializer=value, trainable=False, use_resource=False)
                                for name, value in encode_batch(*dense)._asdict().items()))
            training = build_training(model, batch, devices, [1e-4], steps_per_epoch=1000, max_steps=10000,
                                      recipe=Recipe(loss_scaling=loss_scaling), cluster=cluster)
            self.wire_bytes = training.wire_bytes
            self._fetches = [training.step, training.metrics['loss']]
            self._feed = {training.stop: 0} if cluster.size > 1 else {}
            self._session = tf.Session(start_server(cluster, config), config=config)
            self._session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            _set_weights(self._session, training.network.variables)
            self._session.run(training.copy)

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
    flags = parser.parse_args()
    training = BareTraining(flags.model, flags.input_size, flags.batchsize, flags.towers, read_cluster(os.environ),
                            flags.threads, flags.precision)
    answer(training, wire_bytes=training.wire_bytes, tensorflow=tf.__version__,
           gpus=len(tf.config.experimental.list_physical_devices('GPU')))


if __name__ == '__main__':
    main()
