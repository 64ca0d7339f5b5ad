"""Why TensorFlow uses no GPU that is there: which of the libraries that it loads at its start are missing."""
import ctypes
import glob
import os
import sysconfig

# What the wheels of each platform load; any one that is missing leaves the GPUs unused.
LIBRARIES = {
    1: ('libcudart.so.10.0', 'libcublas.so.10.0', 'libcufft.so.10.0', 'libcurand.so.10.0', 'libcusolver.so.10.0',
        'libcusparse.so.10.0', 'libcudnn.so.7'),
    2: ('libcudart.so.12', 'libcublas.so.12', 'libcublasLt.so.12', 'libcufft.so.11', 'libcusolver.so.11',
        'libcusparse.so.12', 'libcudnn.so.9'),
}
NEEDS = {1: 'TensorFlow 1.15 needs CUDA 10.0 and cuDNN 7', 2: 'TensorFlow 2 needs CUDA 12 and cuDNN 9'}
REMEDIES = {1: 'install CUDA 10.0 and cuDNN 7, with their folders in LD_LIBRARY_PATH',
            2: 'run GPU=1 TF=2 bash scripts/setup_env.sh, or install CUDA 12 and cuDNN 9'}


def gpu_present(device_files='/dev/nvidia[0-9]*'):
    """Whether this machine has an NVIDIA GPU with its driver."""
    return bool(glob.glob(device_files))


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


def report(major):
    """In one line, what TensorFlow `major` needs and whether it loads."""
    missing = missing_libraries(LIBRARIES[major])
    return '%s: %s' % (NEEDS[major], 'cannot load %s, so the GPUs stay unused; %s' % (
        ', '.join(missing), REMEDIES[major]) if missing else 'all their libraries load')
