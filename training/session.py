"""The graph of a run and the session that it runs in: everything of train.py that needs TensorFlow."""
import collections
import contextlib
import logging

import tensorflow.compat.v1 as tf

import networks
import pose_cli
from pose_batches import batch_layout
from pose_cli import UserError

from . import precision, recipes
from .checkpoint import CheckpointHook, create_saver
from .feed import FeedHook
from .team import Alone, BatchesToTheEnd, Together
from .towers import build_training, tower_devices
from .validation import Validator
from .weights import initial_weights

# session: a monitored session.  training: a towers.Training.  feed, checkpoints: its hooks.  saver: a tf.train.Saver.
# validator: a validation.Validator, or None.  team: a team.Alone or team.Together.
Run = collections.namedtuple('Run', 'session training feed checkpoints saver validator team')


@contextlib.contextmanager
def open_run(flags, source, validation, steps_per_epoch, max_steps, peers):
    """Build the graph, connect the processes and open the session, for a block. Yields a Run.

    Args:
        source: a batch source of this process's share.  validation: a PoseDataset, or None.
        peers: a liveness.Peers.
    """
    cluster = peers.cluster
    gpus = len(tf.config.experimental.list_physical_devices('GPU'))
    devices, config = tower_devices(flags.gpus, gpus, cluster)
    loss_scaling = flags.precision == 'mixed' and precision.enable_mixed(config, gpus)
    layout = batch_layout(flags.batchsize * flags.accumulate // cluster.size, flags.input_width, flags.input_height,
                          networks.stride(flags.model), source.skeleton)
    with tf.Graph().as_default(), tf.device(tf.DeviceSpec.from_string(devices[0]).replace(
            device_type=None, device_index=None).to_string()):
        tf.set_random_seed(flags.seed)
        feed = FeedHook(BatchesToTheEnd(source, layout, peers) if cluster.size > 1 else source, layout)
        training = build_training(flags.model, feed.batch, devices, flags.lr, steps_per_epoch, max_steps,
                                  source.skeleton, recipes.recipe_of(flags, loss_scaling), cluster)
        validator = validation and Validator(flags.model, devices[0], validation,
                                             max(1, flags.batchsize // cluster.size // flags.gpus))
        saver = create_saver(flags.keep, training.variables)
        scaffold = start_from(training, saver, initial_weights(flags, training.network) if cluster.is_first else None)
        checkpoints = CheckpointHook(saver, flags.modelpath, flags.save_every, training, writes=cluster.is_first)
        peers.check()
        target = start_server(cluster, config)
        peers.exchange('ready', {}, binding=True)
        try:
            with open_session(flags.modelpath if cluster.is_first else None, scaffold, [feed, checkpoints], config,
                              target) as session:
                yield Run(session, training, feed, checkpoints, saver, validator,
                          Together(peers, training) if cluster.size > 1 else Alone(peers))
        except tf.errors.OpError as error:
            if not pose_cli.disk_trouble(error):
                peers.explain()  # TensorFlow, too, may have noticed that another process is gone, but not which
            raise


def start_from(training, saver, init_fn):
    """The tf.train.Scaffold of a start: a checkpoint or initial values, of which all replicas then get a copy."""
    return tf.train.Scaffold(
        saver=saver, init_fn=init_fn, init_op=tf.variables_initializer(training.variables),
        ready_for_local_init_op=tf.report_uninitialized_variables(training.variables),
        local_init_op=tf.group(tf.train.Scaffold.default_local_init_op(), training.copy))


def start_server(cluster, config):
    """TensorFlow's server of this process, which the others' towers reach. Returns the target for a session."""
    if cluster.size == 1:
        return ''
    own = cluster.workers[cluster.index]
    try:
        server = tf.train.Server(tf.train.ClusterSpec({'worker': list(cluster.workers)}), job_name='worker',
                                 task_index=cluster.index, config=config)
    except tf.errors.OpError as error:
        raise UserError('TensorFlow cannot listen on the port of %s: %s; end what uses it, or choose another port'
                        % (own, str(error).strip().splitlines()[0]))
    logging.warning('TensorFlow listens on the port of %s, on all addresses of this machine (it knows no other way), '
                    'and runs whatever graph reaches it: let only the machines of the cluster reach that port', own)
    return server.target


def open_session(modelpath, scaffold, hooks, config, target=''):
    """A session that resumes from the last checkpoint in modelpath or initializes; only the hooks write anything.

    It does not try again after an error, as tf.train.MonitoredTrainingSession does: that would leave the others.
    """
    return tf.train.SingularMonitoredSession(hooks, scaffold, target, config, checkpoint_dir=modelpath)
