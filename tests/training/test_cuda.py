"""Which libraries of CUDA are missing, on a machine where some are; and that this is told only where there is a GPU."""
from training import devices


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
