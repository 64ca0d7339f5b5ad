"""What a GPU trains: images/s, memory, TFLOP/s and their share of the card's peak; and whether the loader keeps up.

    python3 benchmarks/bench_gpu.py [--models=cmu] [--batchsizes=16,64] [--tf32=on,off] [--xla=off,on] [--json]

For each network, precision and batch size, each in processes of its own:

- the train op of train.py alone, on a batch that lies in memory: the median step.
- train.py itself, its loader and input queue included, on --datapath or rendered people: images/s after the warm-up,
  and `data_wait`, the share of the time in which it waited for data.
- TFLOP/s: three times the multiply-adds of the forward pass's convolutions (forward, and both gradients), two
  operations each, times images/s of the train op. Nothing else is counted: no batch norm, loss or update.
- the share of the peak: dense tensor cores' with 16 bits in mixed precision, TF32's for float32 where the card has it
  and it is on, else that of float32; from NVIDIA's data sheets, see PEAKS. --peak overrides it.

Before that, the loader: samples per second of one core's time, and with it how many cores each row asks for.
TF32 off is NVIDIA_TF32_OVERRIDE=0, XLA on is TF_XLA_FLAGS=--tf_xla_auto_jit=2, which train.py takes as well;
`xla_clusters` says how many parts of a step XLA compiled. Layers are NHWC, as everywhere in this project; there is no
switch for NCHW, which TensorFlow's optimizer may choose on a GPU. A setting that fails, as one that fills the memory,
has an `error` in its row, and the exit code is then 1. Without a GPU all is the same, on the CPU.
"""
import argparse
import collections
import itertools
import json
import os
import re
import tempfile
import time

import numpy as np
import psutil

from bench_inputs import flag_parser, render_sample_data
import networks
import pose_augment
import pose_cli
import pose_files
from bare_processes import BareProcesses
from batches.loader import BatchLoader
from pose_dataset import PoseDataset, check_input_size
from pose_errors import UserError
from real_training import RealTraining

WARM_UP_BATCHES = 4  # of the loader
LOG_EVERY = 5
PRESETS = 'cmu', 'strong'
# TFLOP/s by data sheet, without sparsity and at boost clock: (float32, TF32 or None, 16 bits with sums of 32 bits).
Peak = collections.namedtuple('Peak', 'float32 tf32 mixed')
SXM_HOPPER, NVL_HOPPER = Peak(67, 495, 989), Peak(60, 418, 835)
PEAKS = {'H200': SXM_HOPPER, 'H200 NVL': NVL_HOPPER, 'H100': SXM_HOPPER, 'H100 NVL': NVL_HOPPER,
         'H100 PCIE': Peak(51, 378, 756), 'A100': Peak(19.5, 156, 312), 'V100 SXM2': Peak(15.7, None, 125),
         'V100 PCIE': Peak(14, None, 112), 'T4': Peak(8.1, None, 65),
         'RTX 3070': Peak(20.3, 20.3, 40.6), 'RTX 3080': Peak(29.8, 29.8, 59.5), 'RTX 3090': Peak(35.6, 35.6, 71),
         'RTX 4080': Peak(48.7, 48.7, 97.5), 'RTX 4090': Peak(82.6, 82.6, 165.2)}
Setting = collections.namedtuple('Setting', 'model precision tf32 xla batchsize')


def peak_of(card, setting):
    """TFLOP/s that a card of this name can do at most, None where PEAKS does not know it.

    card: as CUDA names it, 'NVIDIA A100-SXM4-40GB'.
    """
    words = [word for word in re.split(r'[\s-]+', card.upper())
             if not re.match(r'(NVIDIA|TESLA|GEFORCE|\d+GB|HBM\w*)$', word)]
    peak = PEAKS.get(' '.join(words)) or PEAKS.get(words[0] if words[0] == 'A100' and 'MIG' not in words else None)
    if not peak or setting.precision == 'mixed':
        return peak and peak.mixed
    return peak.tf32 or peak.float32 if setting.tf32 == 'on' else peak.float32


def gflops_of_step(model, input_size):
    """10^9 operations of a training step for each sample, see above."""
    from networks.__main__ import gflops  # imports TensorFlow
    from networks.tensorflow import tf
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, (1, input_size[1], input_size[0], 3))
        return 3 * gflops(networks.get_network(model, image, is_training=False).output)


def environment(setting):
    """The variables that a setting's processes get."""
    variables = {'NVIDIA_TF32_OVERRIDE': '0'} if setting.tf32 == 'off' else {}
    if setting.xla == 'on':
        variables['TF_XLA_FLAGS'] = '--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit'
    return variables


def settings_of(flags):
    """All Settings that the flags name; TF32 is nothing that mixed precision turns off."""
    rows = map(Setting._make, itertools.product(flags.models, flags.precisions, flags.tf32, flags.xla,
                                                flags.batchsizes))
    return [setting for setting in rows if setting.precision == 'float32' or setting.tf32 == flags.tf32[0]]


def train_op(setting, flags):
    """Figures of the train op alone."""
    with BareProcesses(1, '--model=' + setting.model, '--precision=' + setting.precision,
                       '--batchsize=%d' % setting.batchsize, '--input-size=%dx%d' % flags.input_size,
                       environments=[environment(setting)]) as training:
        training.steps(flags.warm_up)
        seconds = float(np.median(training.steps(flags.steps)[0]))
        memory, clusters = (training.ask(question)[0] for question in ('gpu_memory', 'xla_clusters'))
        return {'step_ms': 1000 * seconds, 'images_per_s': setting.batchsize / seconds, 'gpu_memory_bytes': memory,
                'xla_clusters': clusters, 'tensorflow': training.ready['tensorflow'], 'gpus': training.ready['gpus']}


def whole_training(setting, flags, datapath, folder):
    """Figures of train.py."""
    log_every = min(LOG_EVERY, flags.steps)
    with RealTraining(setting.model, flags.input_size, setting.batchsize, folder, '--datapath=' + datapath,
                      '--precision=' + setting.precision, '--augment=' + flags.augment, '--workers=%d' % flags.workers,
                      warm_up=-(-flags.warm_up // log_every), log_every=log_every,
                      environment=environment(setting)) as training:
        rows = training.rows(flags.steps // log_every)
    rates, waits = ([float(row[name]) for row in rows] for name in ('examples_per_sec', 'data_wait'))
    seconds = 1 / np.array(rates)
    return {'train_images_per_s': float(1 / seconds.mean()), 'data_wait': float(np.average(waits, weights=seconds))}


def measure(setting, flags, datapath, folder):
    """The row of a setting; what failed of it is in its `error`."""
    row = dict(setting._asdict())
    try:
        if 'memory' in flags.feeds:
            row.update(train_op(setting, flags))
        if 'train' in flags.feeds:
            row.update(whole_training(setting, flags, datapath, folder))
    except UserError as error:
        row['error'] = str(error)
    return row


def add_utilization(row, gflops, peak):
    """Add TFLOP/s and their share of a peak, which may be None."""
    tflops = gflops * row['images_per_s'] / 1000
    row.update(tflops=tflops, peak_tflops=peak, utilization=tflops / peak if peak else None)


def core_rate(dataset, batchsize, batches):
    """Samples that the loader makes in a second of processor time."""
    def used():
        return sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children(recursive=True))

    with BatchLoader(dataset, batchsize, 1, seed=0) as loader:
        for _ in range(WARM_UP_BATCHES):
            loader.get()
        before = used()
        for _ in range(batches):
            loader.get()
        time.sleep(0.02)  # processor time is counted in steps of 10 ms
        return batches * batchsize / max(used() - before, 0.01)


def core_rates(flags, datapath):
    """{augmentation: {'stride 8': core_rate}} of the strides of the models."""
    strides = sorted({networks.stride(model) for model in flags.models})
    return {preset: {'stride %d' % stride: core_rate(
        PoseDataset(datapath, 'train2017', *flags.input_size, stride, ranges=pose_augment.PRESETS[preset]),
        flags.loader_batchsize, flags.loader_batches) for stride in strides}
        for preset in sorted({*PRESETS, flags.augment})}


def one_of(*names):
    """argparse type: some of these names, with commas between them."""
    def parse(text):
        given = text.split(',')
        if not set(given) <= set(names):
            raise argparse.ArgumentTypeError('%r is not some of %s, with commas between them' % (text, ','.join(names)))
        return given
    return parse


def parse_flags(args=None):
    parser = flag_parser('Measure training on a GPU.')
    add = parser.add_argument
    add('--models', default='mobilenet_thin,mobilenet_light,cmu', help='names, separated by commas',
        type=lambda text: [networks.model_name(name) for name in text.split(',')])
    add('--precisions', type=one_of('float32', 'mixed'), help='float32, mixed, or both (default: those to be had)')
    add('--batchsizes', type=lambda text: [pose_cli.positive_int(size) for size in text.split(',')], default=[16, 64])
    add('--tf32', type=one_of('on', 'off'), default=['on'], help='on, off, or both')
    add('--xla', type=one_of('on', 'off'), default=['off'], help='the same')
    add('--feeds', type=one_of('memory', 'train'), default=['memory', 'train'],
        help='memory: the train op on a batch in memory; train: train.py (default: both)')
    add('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    add('--warm-up', type=pose_cli.positive_int, default=20, help='steps that are not counted')
    add('--steps', type=pose_cli.positive_int, default=40, help='steps that are')
    add('--datapath', help='COCO root (default: rendered people)')
    add('--augment', choices=sorted(pose_augment.PRESETS), default='cmu', help="train.py's")
    add('--workers', type=pose_cli.positive_process_count, default=pose_files.usable_cores(), help="train.py's")
    add('--peak', type=pose_cli.real_number(1e-6, 1e6), metavar='TFLOPS', help='of this card, for all rows')
    add('--loader-only', action='store_true', help='measure the loader alone')
    add('--loader-batchsize', type=pose_cli.positive_int, default=16)
    add('--loader-batches', type=pose_cli.positive_int, default=40, help='that the loader is measured on')
    flags = parser.parse_args(args)
    for model in flags.models:
        check_input_size(*flags.input_size, stride=networks.stride(model), flag='--input-size')
    if not flags.loader_only and flags.precisions != ['float32']:
        from training.devices import check_precision  # imports TensorFlow
        try:
            check_precision()
        except UserError as error:
            if flags.precisions:
                raise
            print(error)
            flags.precisions = ['float32']
    flags.precisions = flags.precisions or ['float32', 'mixed']
    return flags


def format_row(row):
    """A line of the table."""
    def cell(key, width, form, factor=1.0):
        value = row.get(key)
        return ('-' if value is None else form % (factor * value)).rjust(width)

    return '%-18s %-8s %4s %4s %5d' % tuple(row[key] for key in Setting._fields) + ''.join((
        cell('step_ms', 9, '%.1f'), cell('images_per_s', 9, '%.1f'), cell('gpu_memory_bytes', 7, '%.1f', 2 ** -30),
        cell('tflops', 8, '%.2f'), cell('utilization', 7, '%.1f%%', 100), cell('train_images_per_s', 10, '%.1f'),
        cell('data_wait', 6, '%.0f%%', 100), cell('cores', 7, '%.1f'))) + '  ' + row.get('error', '')


def main():
    flags = parse_flags()
    gflops, rows, card = {model: gflops_of_step(model, flags.input_size) for model in flags.models}, [], None
    with tempfile.TemporaryDirectory() as folder:
        datapath = flags.datapath or render_sample_data(os.path.join(folder, 'data'), train=64, val=1)
        rates = core_rates(flags, datapath)
        for preset, by_stride in rates.items():
            print('loader, --augment=%s: %s samples/s of a core' % (
                preset, ', '.join('%s %.0f' % item for item in by_stride.items())))
        print('' if flags.loader_only else '%-18s %-8s %4s %4s %5s%9s%9s%7s%8s%7s%10s%6s%7s' % (
            'model', '', 'TF32', 'XLA', 'batch', 'step ms', 'images/s', 'GiB', 'TFLOP/s', 'peak', 'train.py', 'wait',
            'cores'), flush=True)
        for number, setting in enumerate([] if flags.loader_only else settings_of(flags)):
            row = measure(setting, flags, datapath, os.path.join(folder, 'run%d' % number))
            if row.get('gpus') and card is None:
                from training.devices import gpu_cards  # imports TensorFlow
                card = gpu_cards()[0].name
            if 'images_per_s' in row:
                add_utilization(row, gflops[setting.model], flags.peak or (peak_of(card, setting) if card else None))
                row['cores'] = row['images_per_s'] / rates[flags.augment]['stride %d' % networks.stride(setting.model)]
            rows.append(row)
            print(format_row(row), flush=True)
    if flags.json:
        print(json.dumps({'card': card, 'input_size': flags.input_size, 'augment': flags.augment,
                          'workers': flags.workers, 'gflops_per_image': gflops, 'samples_per_core_s': rates,
                          'rows': rows}))
    return 1 if any('error' in row for row in rows) else 0


if __name__ == '__main__':
    pose_cli.run(main)
