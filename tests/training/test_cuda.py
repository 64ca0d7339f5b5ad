"""Which libraries of CUDA are missing, on a machine where some are; and that this is told only where there is a GPU."""
import shutil
import subprocess

import pytest

from pose_errors import UserError
from training import devices

DRIVER = r"""
#include <stddef.h>
#include <stdio.h>
static int ready;
int cuInit(unsigned flags) { ready = flags == 0; return BROKEN; }
int cuDeviceGetCount(int *count) { *count = 2; return ready ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "NVIDIA H%d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 31; return 0; }
"""


def driver(folder, broken=0):
    """A libcuda with CUDA's signatures and two GPUs, compiled."""
    if not shutil.which('cc'):
        pytest.skip('no C compiler')
    library = str(folder / 'libcuda.so')
    subprocess.run(['cc', '-shared', '-fPIC', '-DBROKEN=%d' % broken, '-o', library, '-x', 'c', '-'],
                   input=DRIVER.encode(), check=True)
    return library


def test_the_driver_tells_the_name_and_memory_of_gpus(tmp_path):
    assert devices.gpu_cards(driver(tmp_path)) == [('NVIDIA H40', 40 << 31), ('NVIDIA H41', 41 << 31)]


def test_a_driver_that_fails_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match='cuInit of .* CUDA error 999; does nvidia-smi work'):
        devices.gpu_cards(driver(tmp_path, broken=999))
    with pytest.raises(UserError, match='/nowhere/libcuda.so.*install it'):
        devices.gpu_cards('/nowhere/libcuda.so')


def test_missing_libraries_are_named_and_those_of_wheels_count(tmp_path, monkeypatch):
    assert devices.missing_libraries(('libc.so.6', 'libcudart.so.99.9')) == ['libcudart.so.99.9']
    library = tmp_path / 'nvidia' / 'cudnn' / 'lib' / 'libcudnn.so.99'
    library.parent.mkdir(parents=True)
    library.write_text('')
    monkeypatch.setattr(devices.sysconfig, 'get_paths', lambda: {'purelib': str(tmp_path)})
    assert devices.missing_libraries(('libcudnn.so.99', 'libcublas.so.99')) == ['libcublas.so.99']


def test_the_warning_names_them_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setitem(devices.LIBRARIES, 2, ('libcuda.so.1', 'libcudnn.so.99'))
    assert devices.why_no_gpu('2.21.0', present=False) == ''
    text = devices.why_no_gpu('2.21.0', present=True)
    assert text.startswith(' though there is one: ') and 'libcudnn.so.99' in text
    monkeypatch.setattr(devices, 'missing_libraries', lambda names: ['libcudnn.so.9'])
    assert 'GPU=1 TF=2 bash scripts/setup_env.sh' in devices.why_no_gpu('2.21.0', present=True)
    assert 'CUDA 10.0 and cuDNN 7' in devices.why_no_gpu('1.15.5', present=True)


def test_the_report_says_what_is_needed_and_whether_it_loads(monkeypatch):
    monkeypatch.setitem(devices.LIBRARIES, 1, ('libc.so.6',))
    assert devices.cuda_report(1) == 'TensorFlow 1.15 needs CUDA 10.0 and cuDNN 7: all their libraries load'
    monkeypatch.setitem(devices.LIBRARIES, 1, ('libc.so.6', 'libcublas.so.99'))
    assert 'cannot load libcublas.so.99, so the GPUs stay unused; install CUDA 10.0' in devices.cuda_report(1)
