"""Mixed precision: TensorFlow rewrites the graph to 16 bits where that is safe; weights and checkpoints stay float32.

On GPUs that is float16, whose small gradients would vanish: the loss is scaled up before they are computed, and they
are scaled down after. On CPUs it is bfloat16, which has float32's range and needs no scaling.
"""
import glob

import tensorflow.compat.v1 as tf

from pose_cli import UserError

CPU_FEATURES = {'avx512_bf16', 'amx_bf16'}
GPU_DEVICES = '/dev/nvidia[0-9]*'
LARGEST_SCALE, SMALLEST_SCALE, GROWTH_STEPS = 2.0 ** 15, 1.0, 2000


def check_precision(cpu_info='/proc/cpuinfo'):
    """Raise UserError where mixed precision is not to be had, without having TensorFlow start a GPU."""
    if not glob.glob(GPU_DEVICES) and not has_bfloat16(cpu_info):
        raise _refusal()


def _refusal():
    return UserError('--precision=mixed needs a GPU, or TensorFlow 2 on a CPU with AVX512-BF16 or AMX; here is '
                     'TensorFlow %s and no such %s: leave the flag out'
                     % (tf.__version__, 'GPU' if tf.__version__.startswith('1.') else 'GPU or CPU'))


def has_bfloat16(cpu_info='/proc/cpuinfo'):
    """Whether this TensorFlow computes in bfloat16 on this CPU. cpu_info: where the kernel lists the CPU's features."""
    if tf.__version__.startswith('1.'):
        return False
    try:
        with open(cpu_info) as file:
            return any(CPU_FEATURES & set(line.split()) for line in file if line.startswith('flags'))
    except OSError:
        return False


def enable_mixed(config, gpus, cpu_info='/proc/cpuinfo'):
    """Have sessions with this configuration rewrite their graphs.

    Args:
        config: a tf.ConfigProto.
        gpus: how many GPUs TensorFlow sees; 0: training runs on the CPU.
    Returns:
        whether the loss is to be scaled.
    Raises:
        UserError: neither a GPU nor a CPU that can.
    """
    options = config.graph_options.rewrite_options
    if gpus:
        # What tf.train.experimental.enable_mixed_precision_graph_rewrite sets, but for this configuration alone.
        options.auto_mixed_precision = options.ON
        return True
    if not has_bfloat16(cpu_info):
        raise _refusal()
    options.auto_mixed_precision_onednn_bfloat16 = options.ON
    return False


class LossScale:
    """The factor on the loss: halved when a gradient overflows, doubled after GROWTH_STEPS steps in which none did.

    TensorFlow's own DynamicLossScale keeps its state in checkpoints, so that a run could not be resumed in another
    precision. Here it is local to the session, and a resumed run finds its scale again within a few steps.
    """

    def __init__(self):
        def variable(name, value):
            return tf.get_variable('loss_scale/' + name, initializer=value, trainable=False, use_resource=True,
                                   collections=[tf.GraphKeys.LOCAL_VARIABLES])
        self._scale, self._good = variable('scale', LARGEST_SCALE), variable('good_steps', 0)
        self.value = self._scale.read_value()  # in this step

    def overflowed(self, norm):
        """Whether the step must be skipped, for the norm of all gradients. At the smallest scale it need not."""
        return tf.logical_and(tf.logical_not(tf.is_finite(norm)), self.value > SMALLEST_SCALE)

    def update(self, overflowed):
        """The operation that sets the scale of the next step."""
        good = tf.where(overflowed, 0, self._good.read_value() + 1)
        grown = tf.where(good >= GROWTH_STEPS, tf.minimum(2 * self.value, LARGEST_SCALE), self.value)
        scale = tf.where(overflowed, tf.maximum(self.value / 2, SMALLEST_SCALE), grown)
        return tf.group(self._scale.assign(scale), self._good.assign(tf.where(good >= GROWTH_STEPS, 0, good)))
