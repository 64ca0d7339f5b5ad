"""What a training sample costs, step by step and in relation to decoding its JPEG.

    python3 benchmarks/bench_data.py [--datapath=DIR] [--json]

First in this process, on one core and without OpenCV's threads: each step over the same samples with the same
augmentations. Of several rounds the fastest counts, in CPU time, so that other work on the machine disturbs little.
Then loader processes at full speed. Without --datapath a small data set is rendered. The last line of --json holds
the figures of the table: decode_ms is the whole image, as anybody would decode it; read_ms is what the pipeline does
instead (reading the file, decoding at 1/2, 1/4 or 1/8 where the scale allows it).
"""
import json
import os
import statistics
import tempfile
import time

import cv2
import numpy as np

from bench_inputs import flag_parser, render_sample_data
import pose_augment
import pose_cli
import pose_labels
from annotations.arrays import ignored_regions, people_of
from batches.loader import BatchLoader
from pose_dataset import PoseDataset, check_input_size, read_image

STEPS = ('decode', 'read', 'warp', 'maps', 'mask', 'sample', 'look')
CROWDS = (5, 20)
WARM_UP = 4


def steps_of(dataset, index, seed):
    """The steps of one sample as functions without arguments; together they are what dataset.training_sample does.
    look: what --augment=strong does beside."""
    a = dataset.annotations
    image, person = a.sample_image[index], a.bbox[a.sample_person[index]].astype(np.float64)
    path, size = os.path.join(dataset.image_folder, a.file_name[image].decode()), a.image_size[image]
    rng = np.random.RandomState(seed)
    matrix = pose_augment.augmentation_matrix(pose_augment.draw_augmentation(rng), person,
                                              dataset.input_width, dataset.input_height)
    data = np.fromfile(path, np.uint8)
    pixels, reduction = read_image(path, size, pose_augment.matrix_scale(matrix))
    smaller = pose_augment.reduced_matrix(matrix, reduction)
    crop, strong = np.zeros((dataset.input_height, dataset.input_width, 3), np.uint8), pose_augment.PRESETS['strong']
    cells = (dataset.input_height // dataset.stride, dataset.input_width // dataset.stride, dataset.stride)

    def maps():
        joints = pose_augment.transform_joints(people_of(a, image)[0].astype(np.float64), matrix, a.skeleton)
        return pose_labels.render_heatmaps(joints, *cells), pose_labels.render_pafs(joints, *cells)

    return {
        'decode': lambda: cv2.imdecode(data, cv2.IMREAD_COLOR),
        'read': lambda: read_image(path, size, pose_augment.matrix_scale(matrix)),
        'warp': lambda: pose_augment.warp_image(pixels, smaller, dataset.input_width, dataset.input_height),
        'maps': maps,
        'mask': lambda: pose_labels.render_mask(*ignored_regions(a, image), matrix, *cells),
        'sample': lambda: rng.seed(seed) or dataset.training_sample(index, rng),
        'look': lambda: rng.seed(seed) or pose_augment.change_look(crop, pose_augment.draw_look(rng, strong))}


def cpu_ms(function):
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def measure_steps(dataset, samples, rounds):
    """Mean milliseconds of each step over so many samples."""
    each = [steps_of(dataset, number % len(dataset), number) for number in range(samples)]
    fastest = {step: [np.inf] * samples for step in STEPS}
    for _ in range(rounds):
        for number, functions in enumerate(each):
            for step in STEPS:  # in turns: a busy moment hits all of them, and each finds others' data in the caches
                fastest[step][number] = min(fastest[step][number], cpu_ms(functions[step]))
    return {step: float(np.mean(fastest[step])) for step in STEPS}


def crowd_joints(dataset, people, rng):
    """So many of the data set's people, as large as training shows them, at random places of the input."""
    crowd = []
    while len(crowd) < people:
        person = dataset.annotations.sample_person[rng.randint(len(dataset))]
        augmentation = pose_augment.draw_augmentation(rng)._replace(
            offset_x=rng.uniform(-.4, .4) * dataset.input_width, offset_y=rng.uniform(-.4, .4) * dataset.input_height)
        matrix = pose_augment.augmentation_matrix(augmentation, dataset.annotations.bbox[person].astype(np.float64),
                                                  dataset.input_width, dataset.input_height)
        crowd.append(pose_augment.transform_joints(dataset.annotations.joints[person:person + 1].astype(np.float64),
                                                   matrix, dataset.skeleton))
    return np.concatenate(crowd)


def measure_maps(dataset, people, rounds):
    rng = np.random.RandomState(0)
    cells = (dataset.input_height // dataset.stride, dataset.input_width // dataset.stride, dataset.stride)

    def render(joints):
        return pose_labels.render_heatmaps(joints, *cells), pose_labels.render_pafs(joints, *cells)

    crowds = [crowd_joints(dataset, people, rng) for _ in range(10)]
    return float(np.mean([min(cpu_ms(lambda: render(joints)) for _ in range(2 * rounds)) for joints in crowds]))


def samples_per_second(dataset, batchsize, workers, seconds):
    with BatchLoader(dataset, batchsize, workers, seed=0) as loader:
        for _ in range(WARM_UP * workers):
            loader.get()
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            loader.get()
            batches += 1
        return batches * batchsize / (time.perf_counter() - start)


def measure_loaders(dataset, batchsize, most, rounds, seconds):
    """Samples/s of 1 to `most` loader processes: one row for each of up to three rounds."""
    return [[samples_per_second(dataset, batchsize, workers, seconds) for workers in range(1, most + 1)]
            for _ in range(min(3, rounds))]


def measure(flags, dataset):
    """{name: value} of all figures. The steps are measured on one core, the loader processes on all."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    figures = {step + '_ms': ms for step, ms in measure_steps(dataset, flags.samples, flags.rounds).items()}
    figures.update(('maps_%d_people_ms' % people, measure_maps(dataset, people, flags.rounds)) for people in CROWDS)
    os.sched_setaffinity(0, cores)
    rates = measure_loaders(dataset, flags.batchsize, max(2, flags.processes), flags.rounds, flags.seconds)
    figures['sample_to_decode'] = figures['sample_ms'] / figures['decode_ms']
    figures['speedup_2_processes'] = statistics.median(row[1] / row[0] for row in rates)
    figures.update(('samples_per_s_%d_processes' % workers, statistics.median(column))
                   for workers, column in enumerate(zip(*rates), 1))
    return figures


def print_table(figures):
    print('%-44s %8s %16s' % ('', 'ms', 'of decoding'))
    for name, key in (('decode the whole image', 'decode_ms'),
                      ('read: the file, decoded as small as possible', 'read_ms'),
                      ('warp', 'warp_ms'), ('heatmaps and PAFs', 'maps_ms'), ('mask', 'mask_ms'),
                      ('whole sample', 'sample_ms'), ('the look of --augment=strong, beside it', 'look_ms'),
                      ('heatmaps and PAFs of 5 people', 'maps_5_people_ms'),
                      ('heatmaps and PAFs of 20 people', 'maps_20_people_ms')):
        print('%-44s %8.2f %16.2f' % (name, figures[key], figures[key] / figures['decode_ms']))
    print('%-44s %8s %16s' % ('', 'samples/s', 'of one'))
    rates = [value for key, value in figures.items() if key.startswith('samples_per_s_')]
    for workers, value in enumerate(rates, 1):
        print('%-44s %8.0f %16.2f' % ('%d loader processes' % workers, value, value / rates[0]))


def parse_flags(args=None):
    parser = flag_parser(__doc__.splitlines()[0])
    parser.add_argument('--datapath', help='COCO folder; rendered data without it')
    parser.add_argument('--imgpath', help='where the image folders are, if elsewhere')
    parser.add_argument('--split', default='train2017')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--stride', type=pose_cli.positive_int, default=8)
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=16)
    parser.add_argument('--samples', type=pose_cli.positive_int, default=28, help='that each step is measured on')
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=40, help='the fastest counts')
    parser.add_argument('--seconds', type=pose_cli.positive_int, default=4, help='per measurement of loader processes')
    parser.add_argument('--processes', type=pose_cli.positive_int, default=max(2, os.cpu_count()),
                        help='largest number of loader processes')
    flags = parser.parse_args(args)
    check_input_size(*flags.input_size, stride=flags.stride, flag='--input-size')
    return flags


def main():
    flags = parse_flags()
    pose_cli.log_to_stderr()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        datapath = flags.datapath or render_sample_data(folder, train=32, val=1)
        dataset = PoseDataset(datapath, flags.split, *flags.input_size, stride=flags.stride, imgpath=flags.imgpath)
        people = np.diff(dataset.annotations.person_start)[dataset.annotations.sample_image].mean()
        figures = measure(flags, dataset)
    print('%dx%d, stride %d, %d samples with %.1f people on average, one core'
          % (flags.input_size + (flags.stride, flags.samples, people)))
    print_table(figures)
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
