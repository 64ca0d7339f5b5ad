"""What mirror images and several scales cost pose_eval.py, and how long the network waits for Python.

    python3 benchmarks/bench_finder.py [--images=DIR] [--input-size=368x368] [--json]

All settings take turns on the same images, rendered ones unless --images gives photographs: `time` is the whole time an
image, reading and decoding included, in times of the single scale; `waiting` the share of it in which the network had
nothing to do. mobilenet_thin has random weights: it takes as long as a trained one and finds nobody.
"""
import collections
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli
from annotations.images import read_photograph
from annotations.skeleton import COCO_SKELETON
from bench_inputs import flag_parser, render_sample_data
from inference.predictor import InputImage, Predictor, Request, make_transforms, start_decoders

SETTINGS = collections.OrderedDict([
    ('single', dict(scales=(1.0,), flip=False)), ('flip', dict(scales=(1.0,), flip=True)),
    ('scales', dict(scales=(0.5, 1.0, 1.5, 2.0), flip=False)), ('both', dict(scales=(0.5, 1.0, 1.5, 2.0), flip=True))])


def random_network():
    """mobilenet_thin with random weights, as a predict_maps."""
    from networks.tensorflow import tf

    import networks
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, (None, None, None, 3))
        output = networks.get_network('mobilenet_thin', image, False).output
        session = tf.Session()
        session.run(tf.global_variables_initializer())
    return lambda images: session.run(output, {image: images})


def find_all(predict_maps, paths, size, decoders, setting):
    """(seconds an image, share of waiting) of one pass."""
    def request(path):
        def read():
            pixels = read_photograph(path)
            transforms = make_transforms(pixels.shape[1], pixels.shape[0], size, **setting)
            return InputImage(pixels, 1, transforms, None)
        return Request(path, read)
    predictor = Predictor(predict_maps, COCO_SKELETON, 4, decoders)
    begin = time.perf_counter()
    found = sum(1 for _ in predictor.find_people(request(path) for path in paths))
    return (time.perf_counter() - begin) / found, predictor.timings()['waiting']


def measure(folder, size, rounds, names):
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith('.jpg')]
    seconds, waiting = {name: [] for name in names}, {name: [] for name in names}
    with start_decoders() as decoders:
        predict_maps = random_network()
        for turn in range(rounds + 1):
            for name in names:
                result = find_all(predict_maps, paths, size, decoders, SETTINGS[name])
                if turn:  # the first one warms up
                    seconds[name].append(result[0])
                    waiting[name].append(result[1])
    single = min(seconds['single'])
    return {name: {'ms': round(1000 * min(seconds[name]), 1), 'time': round(min(seconds[name]) / single, 2),
                   'waiting': round(min(waiting[name]), 3)} for name in names}


def parse_flags(args=None):
    parser = flag_parser('Time the averaging of maps over scales and mirror images.')
    parser.add_argument('--images', help='folder of .jpg photographs (rendered ones)')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=4)
    parser.add_argument('--settings', nargs='+', choices=list(SETTINGS), default=list(SETTINGS),
                        help='besides the single scale')
    return parser.parse_args(args)


def main():
    flags = parse_flags()
    names = [name for name in SETTINGS if name == 'single' or name in flags.settings]
    with tempfile.TemporaryDirectory() as folder:
        images = flags.images or os.path.join(render_sample_data(folder, 1, 16), 'val2017')
        figures = measure(images, flags.input_size, flags.rounds, names)
    print('setting   ms an image  times single  waiting')
    for name, row in figures.items():
        print('%-8s  %11.1f  %12.2f  %6.1f%%' % (name, row['ms'], row['time'], 100 * row['waiting']))
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    pose_cli.run(main)
