"""One network in the runtimes that can run it: latency as a ratio in one run, the maps' difference, and AP.

    python3 -m venv .venv-runtimes && .venv-runtimes/bin/pip install -r requirements-runtimes.txt
    .venv-runtimes/bin/python benchmarks/bench_runtimes.py [--models=mobilenet_thin,mobilenet,cmu] [--threads=2]
    .venv-runtimes/bin/python benchmarks/bench_runtimes.py --models=mobilenet_thin --checkpoint=DIR --datapath=COCO

Networks have random weights unless --checkpoint gives others. All runtimes get the same frozen graph, or what
graphs/optimize.py makes of it, and as many threads; they take turns image by image. A runtime that is not installed, or
does not take the graph, is named on stderr and left out.
"""
import collections
import json
import logging
import os
import tempfile

import cv2
import numpy as np
from bench_inputs import flag_parser
from networks.tensorflow import tf

import export_graphs
import measure_graphs
import networks
import pose_cli
import pose_dataset
import pose_files
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from graphs import freeze, graphdef, optimize, tflite
from inference import open_network
from inference.metrics import evaluate
from inference.predictor import SIZE_MULTIPLE
from inference.tensorflow_runtime import limit_threads
from networks.pretrained import find_checkpoint
from pose_errors import UserError

Graphs = collections.namedtuple('Graphs', 'frozen_pb opt_pb frozen images folder')
CALIBRATION_IMAGES = 32


# Each makes predict_maps(images) from Graphs and a number of threads, and gives the file that it runs.

def tensorflow_frozen(graphs, threads):
    return open_network(graphs.frozen_pb, threads=threads)[0], graphs.frozen_pb


def tensorflow_opt(graphs, threads):
    return open_network(graphs.opt_pb, threads=threads)[0], graphs.opt_pb


def tflite_float(graphs, threads):
    return _tflite(graphs, tflite.convert(graphs.frozen, [1] + list(graphs.images.shape[1:])), 'float', threads)


def tflite_int8(graphs, threads):
    return _tflite(graphs, tflite.quantize(graphs.frozen, graphs.images), 'int8', threads)


def _tflite(graphs, data, name, threads):
    path = os.path.join(graphs.folder, name + '.tflite')
    pose_files.write_file(path, data)
    return open_network(path, threads=threads)[0], path


def openvino_float32(graphs, threads):
    return _openvino(graphs, threads, 'f32')


def openvino_bfloat16(graphs, threads):
    return _openvino(graphs, threads, 'bf16')


def openvino_int8(graphs, threads):
    import nncf

    def quantize(model):
        return nncf.quantize(model, nncf.Dataset([image[None].astype(np.float32) for image in graphs.images]),
                             subset_size=len(graphs.images))
    return _openvino(graphs, threads, 'f32', quantize)


def _openvino(graphs, threads, precision, change=None):
    import openvino
    core = openvino.Core()
    model = core.read_model(graphs.opt_pb)
    model.reshape([1] + list(graphs.images.shape[1:]))
    path = graphs.opt_pb
    if change:
        model = change(model)
        path = os.path.join(graphs.folder, 'changed.xml')
        openvino.save_model(model, path, compress_to_fp16=False)
        path = os.path.join(graphs.folder, 'changed.bin')
    compiled = core.compile_model(model, 'CPU', {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY',
                                                 'INFERENCE_PRECISION_HINT': precision})

    def predict_maps(images):
        return np.concatenate([compiled(image[None].astype(np.float32))[0] for image in images])
    return predict_maps, path


def onnx_runtime(graphs, threads):
    import onnxruntime
    import tf2onnx
    path = os.path.join(graphs.folder, 'graph.onnx')
    tf2onnx.convert.from_graph_def(freeze.load_graph(graphs.frozen_pb), input_names=[graphdef.INPUT + ':0'],
                                   output_names=[graphdef.OUTPUT + ':0'], opset=15, output_path=path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

    def predict_maps(images):
        return np.concatenate([session.run(None, {graphdef.INPUT + ':0': image[None].astype(np.float32)})[0]
                               for image in images])
    return predict_maps, path


def opencv_dnn(graphs, threads):
    net = cv2.dnn.readNetFromTensorflow(graphs.frozen_pb)

    def predict_maps(images):
        maps = []
        for image in images:
            net.setInput(cv2.dnn.blobFromImage(image))
            maps.append(net.forward().transpose(0, 2, 3, 1))
        return np.concatenate(maps)
    return predict_maps, graphs.frozen_pb


RUNTIMES = [tensorflow_frozen, tensorflow_opt, tflite_float, tflite_int8, openvino_float32, openvino_bfloat16,
            openvino_int8, onnx_runtime, opencv_dnn]


def parse_flags():
    parser = flag_parser(__doc__.splitlines()[0])
    parser.add_argument('--models', default='mobilenet_thin,mobilenet,cmu', help='comma-separated')
    parser.add_argument('--checkpoint', help='prefix of a checkpoint or its folder, for one model; else random weights')
    parser.add_argument('--datapath', help='COCO root: calibrates on its training images, adds AP on val2017')
    parser.add_argument('--max-images', type=pose_cli.positive_int, default=100, help='for AP')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--threads', type=pose_cli.positive_int, default=os.cpu_count())
    parser.add_argument('--runs', type=pose_cli.positive_int, default=10, help='timed runs of each runtime')
    args = parser.parse_args()
    args.models = args.models.split(',')
    for name in args.models:
        if name not in networks.NAMES:
            raise UserError('--models: there is no network %s; choose from %s' % (name, ', '.join(networks.NAMES)))
    if args.checkpoint and len(args.models) > 1:
        raise UserError('--checkpoint is of one network: name it with --models')
    return args


def main():
    args = parse_flags()
    limit_threads(args.threads)
    images = read_images(args)
    results = collections.OrderedDict((name, measure(name, images, args)) for name in args.models)
    if args.json:
        print(json.dumps(results))


def read_images(args):
    """uint8 (N, H, W, 3): training images of --datapath, else smooth noise."""
    width, height = args.input_size
    if args.datapath:
        dataset = pose_dataset.PoseDataset(args.datapath, 'train2017', width, height, SIZE_MULTIPLE)
        return export_graphs.images_of(dataset, CALIBRATION_IMAGES)
    noise = np.random.RandomState(0).randint(0, 256, (4, height // 8, width // 8, 3)).astype(np.uint8)
    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in noise])


def measure(model, images, args):
    """Run a network in all runtimes: prints its table, returns {runtime: figures}."""
    with tempfile.TemporaryDirectory() as folder:
        graphs = make_graphs(model, images, args.checkpoint, folder)
        cv2.setNumThreads(args.threads)
        predictors, sizes = collections.OrderedDict(), {}
        for runtime in RUNTIMES:
            try:
                predict_maps, path = runtime(graphs, args.threads)
                predict_maps(images[:1])
            except (ImportError, RuntimeError, ValueError, TypeError, cv2.error, UserError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                logging.warning('%s does not run %s: %s', runtime.__name__, model, reason)
                continue
            predictors[runtime.__name__] = predict_maps
            sizes[runtime.__name__] = os.path.getsize(path)
        rows, _ = measure_graphs.measure(predictors, images[:4], args.runs)
    for name, row in rows.items():
        row['bytes'] = sizes[name]
        if args.datapath:
            split = find_split(args.datapath, 'val2017', None)
            row['AP'] = evaluate(predictors[name], *split, input_size=args.input_size, limit=args.max_images,
                                 progress=False)[0]['AP']
    print('%s at %dx%d, %d thread(s)' % ((model,) + args.input_size + (args.threads,)))
    print('%-18s %8s %11s %7s %14s %6s' % ('', 'MB', 'latency ms', 'ratio', 'max rel. diff', 'AP'))
    for name, row in rows.items():
        figures = row['bytes'] / 1e6, row['latency_ms'], row['latency_ratio'], row['max_rel_diff']
        ap = '%.3f' % row['AP'] if 'AP' in row else '-'
        print('%-18s %8.2f %11.1f %7.2f %14.2g %6s' % ((name,) + figures + (ap,)), flush=True)
    return rows


def make_graphs(model, images, checkpoint, folder):
    """The network's frozen and its optimized graph, as files and Graphs."""
    height, width = images.shape[1:3]
    graph = freeze.network_graph(model, COCO_SKELETON, (width, height))
    frozen = freeze.freeze(graph, find_checkpoint(checkpoint) if checkpoint else random_weights(model, folder))
    files = []
    for name, graph in (('frozen', frozen), ('opt', optimize.optimize(frozen, [1, height, width, 3]))):
        files.append(os.path.join(folder, name + '.pb'))
        freeze.save_graph(graph, files[-1])
    return Graphs(files[0], files[1], frozen, images, folder)


def random_weights(model, folder):
    """The prefix of a checkpoint with the network's initial values."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        networks.get_network(model, tf.placeholder(tf.float32, (1, 64, 64, 3)), is_training=False)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, os.path.join(folder, 'model'), write_meta_graph=False)


if __name__ == '__main__':
    pose_cli.run(main)
