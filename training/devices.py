"""The devices of a run: one for each tower, with 16 bits where they are faster; and why a GPU is not used.

Mixed precision: TensorFlow rewrites the graph to 16 bits where that is safe; weights and checkpoints stay float32. On
GPUs that is float16, whose small gradients would vanish without optimizer.LossScale. On CPUs it is bfloat16, which has
float32's range and needs no scaling.
"""
import collections
import ctypes
import glob
import logging
import os
import sysconfig

from networks.tensorflow import tf
from pose_errors import UserError

from .cluster import ALONE

CPU_FEATURES = {'avx512_bf16', 'amx_bf16'}
# What the wheels of each platform load; any one that is missing leaves the GPUs unused.
LIBRARIES = {
    1: ('libcudart.so.10.0', 'libcublas.so.10.0', 'libcufft.so.10.0', 'libcurand.so.10.0', 'libcusolver.so.10.0',
        'libcusparse.so.10.0', 'libcudnn.so.7'),
    2: ('libcudart.so.12', 'libcublas.so.12', 'libcublasLt.so.12', 'libcufft.so.11', 'libcusolver.so.11',
        'libcusparse.so.12', 'libcudnn.so.9'),
}
NCCL = 'libnccl.so.2',  # which TensorFlow 1.15 has built in
NEEDS = {1: 'TensorFlow 1.15 needs CUDA 10.0 and cuDNN 7', 2: 'TensorFlow 2 needs CUDA 12 and cuDNN 9'}
REMEDIES = {1: 'install CUDA 10.0 and cuDNN 7, with their folders in LD_LIBRARY_PATH',
            2: 'run GPU=1 TF=2 bash scripts/setup_env.sh, or install CUDA 12 and cuDNN 9'}

# Of a GPU that towers share; the rest is for what CUDA and its libraries take beside TensorFlow.
USED_MEMORY = 15 / 16
Card = collections.namedtuple('Card', 'name memory')  # of a GPU; bytes


def tower_devices(wanted, gpus, cluster=ALONE, towers_per_gpu=1, communication=None):
    """One device name per tower, the session's configuration, which takes no memory on other GPUs, and how gradients
    are reduced: 'nccl' or 'ring'.

    Towers that share a GPU are TensorFlow's virtual devices, each with its share of the memory. NCCL knows no such
    devices, and refuses two processes on one GPU.

    Args:
        wanted: GPUs of this process.  towers_per_gpu: on each of them.
        gpus: how many TensorFlow sees. Processes of one host that see the GPUs of all of them take their own, in order.
        communication: what GPUs reduce with; None: NCCL where each tower has a GPU of its own.
    """
    towers = wanted * towers_per_gpu
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    process = ''
    if cluster.size > 1:
        process = '/job:worker/task:%d' % cluster.index
        config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        config.device_filters.append(process)  # else /cpu:0 is that of the first process
    if gpus:
        if wanted > gpus:
            raise UserError('--gpus=%d, but TensorFlow sees only %d; lower --gpus or check nvidia-smi' % (wanted, gpus))
        rank, processes = cluster.local_rank
        start = rank * wanted if gpus >= processes * wanted else 0
        own = range(start, start + wanted)
        config.gpu_options.visible_device_list = ','.join(map(str, own))
        if towers_per_gpu > 1:
            cards = gpu_cards()
            for k in own:
                share = int(cards[k].memory * USED_MEMORY / towers_per_gpu) >> 20
                config.gpu_options.experimental.virtual_devices.add(memory_limit_mb=[share] * towers_per_gpu)
        communication = communication or ('nccl' if towers_per_gpu == 1 else 'ring')
        if communication == 'nccl' and towers * cluster.size > 1 and not tf.__version__.startswith('1.') \
                and missing_libraries(NCCL):
            logging.warning('%s cannot be loaded, with which GPUs reduce gradients; %s, or give --all-reduce=ring',
                            NCCL[0], REMEDIES[2])
        return ['%s/gpu:%d' % (process, k) for k in range(towers)], config, communication
    if communication == 'nccl':
        raise UserError('--all-reduce=nccl is for GPUs, and TensorFlow sees none; leave it out')
    logging.warning('TensorFlow sees no GPU%s: %s', why_no_gpu(tf.__version__),
                    'training on the CPU' if towers == 1 else
                    'the %d towers run on CPU devices of this machine' % towers)
    config.device_count['CPU'] = towers
    return ['%s/cpu:%d' % (process, k) for k in range(towers)], config, 'ring'


def gpu_cards(library='libcuda.so.1'):
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in CUDA's order, as [Card].

    Asks NVIDIA's driver, which keeps nothing on a GPU for that: sessions still decide what TensorFlow takes.

    Raises:
        UserError: no driver, or it does not answer.
    """
    def ask(function, *args):
        code = getattr(driver, function)(*args)
        if code:
            raise UserError('%s of %s failed with CUDA error %d; does nvidia-smi work?' % (function, library, code))

    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise UserError('the driver of the GPUs cannot be asked: %s; install it' % error)
    count, device, memory, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    ask('cuInit', 0)
    ask('cuDeviceGetCount', ctypes.byref(count))
    cards = []
    for ordinal in range(count.value):
        ask('cuDeviceGet', ctypes.byref(device), ordinal)
        ask('cuDeviceGetName', name, len(name), device)
        ask('cuDeviceTotalMem_v2', ctypes.byref(memory), device)
        cards.append(Card(name.value.decode(errors='replace'), memory.value))
    return cards


def check_precision(cpu_info='/proc/cpuinfo'):
    """Raise UserError where mixed precision is not to be had, without having TensorFlow start a GPU."""
    if not gpu_present() and not has_bfloat16(cpu_info):
        raise _refusal()


def _refusal():
    return UserError('--precision=mixed needs a GPU, or TensorFlow 2 on a CPU with AVX512-BF16 or AMX; here is '
                     'TensorFlow %s and no such %s: take float32'
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


def gpu_present(device_files=('/dev/nvidia[0-9]*', '/dev/dxg')):
    """Whether this machine has an NVIDIA GPU with its driver; in Windows' subsystem for Linux it is /dev/dxg."""
    return any(glob.glob(pattern) for pattern in device_files)


def missing_libraries(names):
    """Those of the libraries that neither the system nor the wheels beside TensorFlow have."""
    wheels = os.path.join(sysconfig.get_paths()['purelib'], 'nvidia', '*', 'lib')
    return [name for name in names if not (glob.glob(os.path.join(wheels, name)) or _loads(name))]


def _loads(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def why_no_gpu(tensorflow_version, present=None):
    """' though there is one: ...' where a GPU is there and unused, else ''. `present` overrides gpu_present()."""
    if not (gpu_present() if present is None else present):
        return ''
    major = int(tensorflow_version.split('.')[0])
    missing = missing_libraries(('libcuda.so.1',) + LIBRARIES[major])
    if not missing:
        return ' though there is one, and all its libraries load: TF_CPP_MIN_LOG_LEVEL=0 shows why'
    return ' though there is one: %s cannot be loaded; %s' % (
        ' and '.join(missing), 'install the driver' if 'libcuda.so.1' in missing else REMEDIES[major])


def cuda_report(major):
    """In one line, what TensorFlow `major` needs and whether it loads."""
    missing = missing_libraries(LIBRARIES[major])
    return '%s: %s' % (NEEDS[major], 'cannot load %s, so the GPUs stay unused; %s' % (
        ', '.join(missing), REMEDIES[major]) if missing else 'all their libraries load')


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
