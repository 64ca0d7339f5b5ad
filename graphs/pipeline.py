"""From a checkpoint to the files for inference and their report: what scripts/freeze_and_optimize.py does."""
import collections
import json
import logging
import os

import tensorflow.compat.v1 as tf

import pose_annotations
import pose_cli
import pose_skeleton
from networks.pretrained import find_checkpoint
from pose_cli import UserError
from pose_metrics import evaluate
from pose_samples import check_input_size

from . import freeze, graphdef, optimize, report, saved_model, tflite, tflite_runtime
from .images import read_calibration_images, read_images
from .predict import SKELETON_FILE, limit_threads, load_network, read_skeleton

DEFAULT_SIZE = (368, 368)
OPTIMIZED_TOLERANCE = 1e-4  # of the frozen graph's largest output
SLOW = 10  # times the frozen graph's latency: too slow to run on all validation images

# The weights become 8 bit and are expanded when they are used; `nodes` also computes in 8 bit.
QUANTIZE_WEIGHTS = ['add_default_attributes', 'quantize_weights', 'strip_unused_nodes', 'sort_by_execution_order']
QUANTIZE_NODES = ['add_default_attributes', 'quantize_weights', 'quantize_nodes', 'strip_unused_nodes',
                  'sort_by_execution_order']
QUANTIZE = {'weights': QUANTIZE_WEIGHTS, 'nodes': QUANTIZE_NODES}


def make_graphs(args):
    """Write, measure and compare what the flags of scripts/freeze_and_optimize.py ask for, and print the report.

    Raises:
        UserError: a file is not what it should be; with exit code 4 when something could not be folded.
    """
    limit_threads(args.threads)
    logging.info('freezing %s', args.graph or args.checkpoint)
    graphs = collections.OrderedDict()
    if args.graph:
        graphs['graph_frozen'] = freeze.load_frozen(args.graph)
        skeleton = read_skeleton(args.graph) or pose_skeleton.COCO
    else:
        checkpoint = find_checkpoint(args.checkpoint)
        size = None if args.input_size == 'dynamic' else args.input_size or DEFAULT_SIZE
        skeleton = read_skeleton(checkpoint=args.checkpoint) or pose_skeleton.COCO
        inference_graph = freeze.network_graph(args.model, size, skeleton)
        graphs['graph_frozen'] = freeze.freeze(inference_graph, checkpoint)
    width, height = measured_size(graphs['graph_frozen'], args.input_size)
    images, samples = read_images(args, width, height, stride_at(graphs['graph_frozen'], width, height))
    calibration = read_calibration_images(args, width, height) if args.quantize == 'int8' else None

    input_shape = None if args.input_size == 'dynamic' else [1, height, width, 3]
    logging.info('optimizing')
    graphs['graph_opt'] = optimize.optimize(graphs['graph_frozen'], input_shape)
    if args.quantize in QUANTIZE:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                  QUANTIZE[args.quantize])
    marked = collections.OrderedDict((name, freeze.with_skeleton(graph, skeleton)) for name, graph in graphs.items())
    pose_cli.make_folder(args.output_dir)
    pose_cli.write_file(os.path.join(args.output_dir, SKELETON_FILE), skeleton.to_json().encode())
    files = write_graphs(marked, args.output_dir)
    if args.checkpoint:
        freeze.save_graph(inference_graph, os.path.join(args.output_dir, 'graph.pb'), text=True)
    files.update(write_tflite(graphs['graph_frozen'], args, [1, height, width, 3], calibration))
    if args.saved_model:
        # Any number of images at once, whatever graph_opt.pb takes.
        saved_model.save(optimize.optimize(graphs['graph_frozen']), os.path.join(args.output_dir, 'saved_model', '1'))

    logging.info('measuring latency: %d runs of each of %d graphs', args.runs, len(files))
    predictors = {name: load_network(path, threads=args.threads)[0] for name, path in files.items()}
    rows = report.measure(predictors, images, args.runs)
    for name, row in rows.items():
        row.update(bytes=os.path.getsize(files[name]), **describe(marked.get(name), files[name]))
    add_accuracy(rows, predictors, samples, args, width, height)
    pose_cli.write_file(os.path.join(args.output_dir, 'report.json'), json.dumps(rows, indent=2).encode('ascii'))
    print(report.format_table(rows, '%s at %dx%d, %d image(s), %s thread(s), TensorFlow %s'
                              % (args.graph or checkpoint, width, height, len(images), args.threads or os.cpu_count(),
                                 tf.__version__)))
    check_optimized(graphs['graph_opt'], rows['graph_opt']['max_rel_diff'])


def check_optimized(graph, difference):
    """Raises UserError, with exit code 4, when something was left that should have been folded, or outputs differ."""
    leftovers = optimize.find_leftovers(graph)
    if leftovers:
        raise UserError('graph_opt.pb is not fully optimized: %s' % optimize.list_leftovers(leftovers), exit_code=4)
    if not difference <= OPTIMIZED_TOLERANCE:
        raise UserError('the output of graph_opt.pb differs from that of graph_frozen.pb by %.2g of its largest value, '
                        'more than %g; use graph_frozen.pb' % (difference, OPTIMIZED_TOLERANCE), exit_code=4)


def measured_size(graph, asked):
    """The (width, height) to measure at: the size asked for, or the graph's own, or the default."""
    if asked not in (None, 'dynamic'):
        return asked
    shape = graphdef.input_shape(graph)
    height, width = shape.as_list()[1:3] if shape.rank else (None, None)
    return width or DEFAULT_SIZE[0], height or DEFAULT_SIZE[1]


def stride_at(graph, width, height):
    """Input pixels per output cell. Raises UserError when the size is not a multiple of it."""
    _, columns = optimize.output_shape(graph, [1, height, width, 3])
    stride = int(round(width / columns))
    check_input_size(width, height, stride)
    return stride


def write_graphs(graphs, folder):
    """Save frozen graphs; {name: path}."""
    files = collections.OrderedDict((name, os.path.join(folder, name + '.pb')) for name in graphs)
    for name, path in files.items():
        freeze.save_graph(graphs[name], path)
    return files


def write_tflite(graph, args, input_shape, calibration):
    """Save the .tflite files that the flags ask for; {name: path}."""
    files = collections.OrderedDict()
    if args.tflite:
        files['graph_float'] = tflite.convert(graph, input_shape)
    if args.quantize == 'int8':
        logging.info('converting to 8 bits, calibrated on %d images', len(calibration))
        files['graph_int8'] = tflite.quantize(graph, calibration)
    for name, data in files.items():
        files[name] = os.path.join(args.output_dir, name + '.tflite')
        pose_cli.write_file(files[name], data)
    return files


def describe(graph, path):
    """What a graph consists of, and what runs it; graph is the GraphDef of a .pb file."""
    if graph is None:
        ops = tflite_runtime.count_ops(path)
        return {'nodes': sum(ops.values()), 'ops': ops, 'runtime': tflite_runtime.runtime_name()}
    return {'nodes': len(graph.node),
            'ops': dict(collections.Counter(node.op for node in graph.node).most_common()),
            'batch_norms': len(optimize.find_batch_norms(optimize.simplify(graph))),
            'runtime': 'TensorFlow'}


def add_accuracy(rows, predictors, samples, args, width, height):
    """Add validation_loss and AP to the rows of a report, with --datapath."""
    if not samples:
        return
    annotation_file, image_folder = pose_annotations.find_split(args.datapath, 'val2017', args.imgpath)
    for name, row in rows.items():
        if row['latency_ratio'] > SLOW and row['runtime'] != 'TensorFlow':
            logging.warning('%s takes %.0f times as long as graph_frozen with %s: its validation loss and AP are left '
                            'out. Measure them on Python 3.10 or newer: pose_eval.py --graph=%s.tflite',
                            name, row['latency_ratio'], row['runtime'], name)
            continue
        logging.info('validation loss and AP of %s on %d images', name, len(samples))
        row['validation_loss'] = report.validation_loss(predictors[name], samples)
        summary, _, _ = evaluate(predictors[name], annotation_file, image_folder, input_size=(width, height),
                                 limit=args.max_samples, progress=False)
        row['AP'] = summary['AP']
