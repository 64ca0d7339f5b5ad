"""Start-up time and memory with an annotation file of COCO's true size.

    python3 benchmarks/bench_coco_scale.py [--scale=1.0] [--json]

Writes, the first time, an annotation file as large as person_keypoints_train2017.json: 118,287 images, 262,465 people
with polygons and some crowds with run lengths, about 240 MB. The same seed gives the same file. It then measures, each
in a fresh process: json.load; the start to the first batch without and with a cache; how much private memory a loader
process gains over a full pass of the index; the peak memory of a start. The image files are links to one picture.
"""
import glob
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import cv2
import numpy as np
import psutil

from bench_inputs import flag_parser
import pose_cli
from annotations.arrays import ignored_regions, people_of
from batches.loader import BatchLoader
from pose_dataset import PoseDataset
from pose_errors import UserError

IMAGES, PEOPLE = 118287, 262465
SIZE = (640, 480)
WITHOUT_KEYPOINTS = 0.43  # of the people, as in COCO
CROWDS = 0.02
SHAPES = 1000  # different people, repeated at other places
SECONDS_BETWEEN_LOOKS = 0.1


def person_shape(rng, number):
    """The fields of a COCO annotation as text, with places for its ids."""
    width, height = rng.uniform(20, 300), rng.uniform(40, 460)
    x, y = rng.uniform(0, SIZE[0] - width), rng.uniform(0, SIZE[1] - height)
    box = [round(float(v), 2) for v in (x, y, width, height)]
    is_crowd = number < CROWDS * SHAPES
    labelled = not is_crowd and rng.uniform() > WITHOUT_KEYPOINTS
    visible = (rng.uniform(size=17) < 0.65) & labelled
    keypoints = [value for seen in visible
                 for value in ((int(x + rng.uniform(0, width)), int(y + rng.uniform(0, height)), 2) if seen
                               else (0, 0, 0))]
    if is_crowd:
        runs = rng.multinomial(SIZE[0] * SIZE[1], rng.dirichlet(np.ones(200)))
        segmentation = {'counts': runs.tolist(), 'size': [SIZE[1], SIZE[0]]}
    else:
        angles = np.linspace(0, 2 * np.pi, rng.randint(10, 46))
        outline = np.stack([x + width / 2 * (1 + np.cos(angles)), y + height / 2 * (1 + np.sin(angles))], axis=1)
        segmentation = [outline.round(2).ravel().tolist()]
    fields = {'segmentation': segmentation, 'num_keypoints': int(visible.sum()),
              'area': round(float(width * height * 0.6), 4),
              'iscrowd': int(is_crowd), 'keypoints': keypoints, 'bbox': box, 'category_id': 1}
    return json.dumps(fields)[:-1]


def write_coco(folder, images, people, seed=0):
    """Write the data set, unless it is there; the annotation file comes last."""
    file = os.path.join(folder, 'annotations', 'person_keypoints_train2017.json')
    if os.path.exists(file):
        return file
    photos = os.path.join(folder, 'train2017')
    os.makedirs(photos, exist_ok=True)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    rng = np.random.RandomState(seed)
    picture = cv2.GaussianBlur(rng.randint(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8), (0, 0), 3)
    original = os.path.join(folder, 'picture.jpg')
    cv2.imwrite(original, picture)
    ids = np.cumsum(rng.randint(1, 6, images)).tolist()
    for number in ids:
        name = os.path.join(photos, '%012d.jpg' % number)
        if not os.path.lexists(name):
            os.symlink(original, name)
    shapes = [person_shape(rng, number) for number in range(SHAPES)]
    chosen, owners = rng.randint(0, SHAPES, people).tolist(), rng.randint(0, images, people).tolist()
    with open(file + '.tmp', 'w') as out:
        out.write('{"info": {"description": "made for a benchmark"}, "licenses": [], "images": [')
        out.write(', '.join(
            '{"license": 3, "file_name": "%012d.jpg", "coco_url": "http://images.cocodataset.org/train2017/%012d.jpg", '
            '"height": %d, "width": %d, "date_captured": "2013-11-14 11:18:45", '
            '"flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg", "id": %d}'
            % (number, number, SIZE[1], SIZE[0], number) for number in ids))
        out.write('], "annotations": [')
        for number, (shape, owner) in enumerate(zip(chosen, owners)):
            out.write(', ' if number else '')
            out.write('%s, "image_id": %d, "id": %d}' % (shapes[shape], ids[owner], 1000 + number))
        out.write('], "categories": [{"supercategory": "person", "id": 1, "name": "person", "keypoints": [], '
                  '"skeleton": []}]}')
    os.replace(file + '.tmp', file)
    return file


def peak_of_family(command):
    """Run a command; the largest sum of the resident memory of it and its children, in MB, and its output lines.

    Memory that they share is counted for each of them (there is little); private memory would take long to look up.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, universal_newlines=True)
    family, peak = psutil.Process(process.pid), 0

    def watch():
        nonlocal peak
        while process.poll() is None:
            total = 0
            try:
                for member in [family] + family.children(recursive=True):
                    total += member.memory_info().rss
            except psutil.Error:
                pass  # one has just ended
            peak = max(peak, total)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    lines = process.communicate()[0].splitlines()
    watcher.join()
    if process.returncode:
        raise UserError('%s failed; see the messages above' % ' '.join(command[:3]))
    return peak / 1e6, lines


def json_load_seconds(file):
    with open(file) as text:
        cpu_start, start = time.process_time(), time.perf_counter()
        content = json.load(text)
        seconds = time.process_time() - cpu_start, time.perf_counter() - start
        del content  # not before: taking it apart again does not count
        return seconds


def first_batch_seconds(folder):
    """From nothing to the first batch: (CPU seconds with children that ended, seconds)."""
    start = time.perf_counter()
    dataset = PoseDataset(folder, 'train2017', 368, 368, 8)
    with BatchLoader(dataset, 8, workers=1, seed=0) as loader:
        loader.get()
        seconds = time.perf_counter() - start
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system, seconds


class IndexOnly:
    """A PoseDataset that looks at the annotations of each sample and does all but read and warp its image."""

    def __init__(self, dataset):
        self.dataset, self.skeleton = dataset, dataset.skeleton
        self.input_width, self.input_height, self.stride = 16, 16, 8

    def __len__(self):
        return len(self.dataset)

    def training_sample(self, index, rng):
        a = self.dataset.annotations
        image = a.sample_image[index]
        joints, boxes = people_of(a, image)
        polygons, bitmaps, _ = ignored_regions(a, image)
        os.path.join(self.dataset.image_folder, a.file_name[image].decode())
        seen = joints[0, 0, 0] + boxes.sum() + sum(polygon.sum() for polygon in polygons) + sum(map(np.sum, bitmaps))
        mask = np.full((2, 2, 1), float(seen == seen))
        return np.zeros((16, 16, 3)), np.zeros((2, 2, 19)), np.zeros((2, 2, 38)), mask


def loader_growth(folder):
    """MB by which the private memory of a loader process grows over a full pass of the index."""
    dataset = PoseDataset(folder, 'train2017', 368, 368, 8)
    batchsize = 64
    with BatchLoader(IndexOnly(dataset), batchsize, workers=1, seed=0) as loader:
        loader.get()
        supervisor, = psutil.Process().children()
        worker, = supervisor.children()
        before = worker.memory_full_info().uss
        for _ in range(len(dataset) // batchsize + 2):
            loader.get()
        return (worker.memory_full_info().uss - before) / 1e6


def in_fresh_process(what, argument):
    """(peak MB, result) of one of the measurements, in a process of its own."""
    peak, lines = peak_of_family([sys.executable, os.path.abspath(__file__), '--only=' + what, '--folder=' + argument])
    return peak, json.loads(lines[-1])


def measure(folder, file):
    """{name: value} of all figures; `folder` and its annotation `file` have no cache yet."""
    json_peak, (json_cpu, json_seconds) = in_fresh_process('json', file)
    first_peak, (first_cpu, first_seconds) = in_fresh_process('start', folder)
    second_peak, (second_cpu, second_seconds) = in_fresh_process('start', folder)
    _, growth = in_fresh_process('growth', folder)
    return {
        'json_load_s': json_seconds, 'first_start_s': first_seconds, 'second_start_s': second_seconds,
        'first_start_to_json_load': first_seconds / json_seconds,
        'second_start_to_json_load': second_seconds / json_seconds,
        'json_load_cpu_s': json_cpu, 'first_start_cpu_s': first_cpu, 'second_start_cpu_s': second_cpu,
        'json_load_peak_mb': json_peak, 'first_start_peak_mb': first_peak, 'second_start_peak_mb': second_peak,
        'loader_growth_mb': growth}


def parse_flags(args=None):
    parser = flag_parser(__doc__.splitlines()[0])
    parser.add_argument('--folder', help='keeps the made-up data set for the next time; a temporary folder without it')
    parser.add_argument('--scale', type=float, default=1.0, help='of the number of images and people')
    parser.add_argument('--only', choices=('json', 'start', 'growth'), help='one measurement, in this process')
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    if flags.only:
        one = {'json': json_load_seconds, 'start': first_batch_seconds, 'growth': loader_growth}[flags.only]
        print(json.dumps(one(flags.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or temporary
        start = time.perf_counter()
        file = write_coco(folder, int(IMAGES * flags.scale), int(PEOPLE * flags.scale))
        print('%s: %.0f MB (%.0f s)' % (file, os.path.getsize(file) / 1e6, time.perf_counter() - start))
        for cache in glob.glob(os.path.join(os.path.dirname(file), '.*.npz')):
            os.unlink(cache)
        figures = measure(folder, file)

    print('%-28s %10s %12s %16s %10s' % ('', 'seconds', 'of json.load', 'CPU s, imports', 'peak MB'))
    for name, key in (('json.load', 'json_load'), ('first start to a batch', 'first_start'),
                      ('second start to a batch', 'second_start')):
        print('%-28s %10.2f %12.2f %16.2f %10.0f'
              % (name, figures[key + '_s'], figures[key + '_s'] / figures['json_load_s'], figures[key + '_cpu_s'],
                 figures[key + '_peak_mb']))
    print('private memory that a loader process gains over a full pass of the index: %.1f MB'
          % figures['loader_growth_mb'])
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
