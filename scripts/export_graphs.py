"""From a checkpoint to the files for inference and their report: what scripts/freeze_and_optimize.py does.

Each file is written into a folder beside its place, run from there, compared with the frozen graph, and moved when it
computes the same within its bound.
"""
import collections
import itertools
import json
import logging
import os
import tempfile

import numpy as np

import pose_files
from annotations.arrays import read_annotations
from annotations.images import BadSample, read_photograph
from annotations.skeleton import COCO_SKELETON
from annotations.splits import find_split
from graphs import freeze, graphdef, onnx_graph, optimize, tflite
from graphs.fold_batch_norm import estimate_batch_norm
from inference import SKELETON_FILE, onnx_runtime, open_network, read_skeleton, tflite_runtime
from inference.photographs import find_photographs
from inference.predictor import SIZE_MULTIPLE, make_transforms, transform_image
from inference.tensorflow_runtime import graph_network, limit_threads
from measure_graphs import add_accuracy, compare, describe, format_table, measure
from networks.pretrained import find_checkpoint
from networks.tensorflow import tf
from pose_dataset import PoseDataset, check_input_size, validation_samples
from pose_errors import UserError

DEFAULT_SIZE = (368, 368)
MAX_COMPARED_IMAGES, MAX_BATCH_NORM_IMAGES, FEW_CALIBRATION_IMAGES = 16, 128, 8

# How far a file's output may be from that of graph_frozen. In float: the largest difference as a share of the largest
# value; rounding makes 1e-6 in the networks here, 1e-4 where activations are a hundred times as large as maps. In fewer
# bits: the root mean square of the differences as a share of that of the maps, their channels' means taken off (the
# background's is 1 nearly everywhere). Trained networks reach 0.2 to 0.4; above 1 more is noise than map. The flat maps
# of an untrained network count as if they had measure_graphs.MIN_SPREAD.
FLOAT_BOUND = 1e-3
FEWER_BITS = {'graph_float16': 0.1, 'graph_int8': 1.0, 'graph_q': 1.0}

# The weights become 8 bit and are expanded when they are used; `nodes` also computes in 8 bit.
QUANTIZE_WEIGHTS = ['add_default_attributes', 'quantize_weights', 'strip_unused_nodes', 'sort_by_execution_order']
QUANTIZE_NODES = ['add_default_attributes', 'quantize_weights', 'quantize_nodes', 'strip_unused_nodes',
                  'sort_by_execution_order']
QUANTIZE = {'weights': QUANTIZE_WEIGHTS, 'nodes': QUANTIZE_NODES}

# Where images and labels come from. datapath, imgpath, category: as for pose_dataset.PoseDataset; split: to measure on,
# at most max_samples images; calibration_split: for 8 bits, at most calibration_images; images: of a folder, to compare
# and calibrate on in place of these.
Sources = collections.namedtuple('Sources', 'datapath imgpath category split calibration_split images max_samples '
                                            'calibration_images')


def export(output_dir, sources, graph_file=None, checkpoint=None, model=None, input_size=None, quantize=None,
           float_tflite=False, saved_model=False, threads=None, runs=20, batch_norm_from=None, onnx=False):
    """Write, measure and compare the files for inference, and print the report.

    Args:
        output_dir: where they go.  sources: Sources.
        graph_file: a frozen graph; or checkpoint: prefix, folder or weights, and model: one of networks.NAMES.
        input_size: (width, height), 'dynamic', or None for the graph's own.
        quantize: None, 'int8', or a key of QUANTIZE.  float_tflite, saved_model, onnx: whether to make these, too.
        threads: of the processor, None for all.  runs: timed ones of each graph.
        batch_norm_from: photographs from which the statistics of batch norm in training mode are taken.
    Raises:
        UserError: something is not what it should be; with exit code 4 for batch norm in training mode, before anything
            is written, for what could not be folded, and for files that do not compute what they should.
    """
    limit_threads(threads)
    logging.info('freezing %s', graph_file or checkpoint)
    skeleton = read_skeleton(graph_file, checkpoint) or labelled_skeleton(sources) or COCO_SKELETON
    inference_graph = None
    if graph_file:
        frozen = load_sound_graph(graph_file, batch_norm_from, input_size)
    else:
        size = None if input_size == 'dynamic' else input_size or DEFAULT_SIZE
        inference_graph = freeze.network_graph(model, skeleton, size)
        frozen = freeze.freeze(inference_graph, find_checkpoint(checkpoint))
    width, height = measured_size(frozen, input_size)
    stride = stride_at(frozen, width, height)
    samples = read_validation_samples(sources, width, height, stride, skeleton) if sources.datapath else None
    images = read_images(sources, samples, width, height)
    calibration = read_calibration_images(sources, width, height) if quantize == 'int8' else None

    logging.info('optimizing')
    input_shape = [1, height, width, 3]
    graphs = collections.OrderedDict(graph_frozen=frozen)
    graphs['graph_opt'] = optimize.optimize(frozen, None if input_size == 'dynamic' else input_shape)
    if quantize in QUANTIZE:
        graphs['graph_q'] = freeze.run_transforms(graphs['graph_opt'], [graphdef.INPUT], [graphdef.OUTPUT],
                                                  QUANTIZE[quantize])
    graphs = collections.OrderedDict((name, freeze.with_skeleton(graph, skeleton)) for name, graph in graphs.items())
    others = write_tflite(frozen, skeleton, input_shape if float_tflite else None, calibration)
    if onnx:
        others['graph_onnx'] = 'graph.onnx', onnx_runtime.with_skeleton(onnx_graph.convert(frozen), skeleton)
    rows, wrong, predictors = write_files(graphs, others, images, runs, threads, output_dir)
    pose_files.write_file(os.path.join(output_dir, SKELETON_FILE), skeleton.to_json().encode())
    if inference_graph:
        freeze.save_graph(inference_graph, os.path.join(output_dir, 'graph.pb'), text=True)
    if saved_model and 'graph_opt' not in wrong:
        write_saved_model(frozen, images, predictors['graph_frozen'], os.path.join(output_dir, 'saved_model', '1'))
    if samples:
        add_accuracy(rows, predictors, samples, sources, (width, height), skeleton)
    pose_files.write_file(os.path.join(output_dir, 'report.json'), json.dumps(rows, indent=2).encode('ascii'))
    print(format_table(rows, '%s at %dx%d, %d image(s), %s thread(s), TensorFlow %s' % (
        graph_file or find_checkpoint(checkpoint), width, height, len(images), threads or pose_files.usable_cores(),
        tf.__version__)))
    check_files(graphs['graph_opt'], wrong)


def write_files(graphs, others, images, runs, threads, output_dir):
    """Write graphs, and others {name: (file name, bytes)}; each gets its name when it is within its bound.

    Returns:
        (rows as from `measure`, with what the files are; why files were not given their names, as from `out_of_bounds`;
        {name: predict_maps}).
    """
    pose_files.make_folder(output_dir)
    with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=output_dir) as folder:
        files = write_graphs(graphs, folder)
        for name, (file_name, data) in others.items():
            files[name] = os.path.join(folder, file_name)
            pose_files.write_file(files[name], data)
        logging.info('measuring latency: %d runs of each of %d graphs', runs, len(files))
        predictors = {name: open_network(path, threads=threads)[0] for name, path in files.items()}
        rows, shares = measure(predictors, images, runs)
        for name, row in rows.items():
            row.update(bytes=os.path.getsize(files[name]), **describe(graphs.get(name), files[name]))
        wrong = out_of_bounds(rows, shares)
        for name in files:
            if name not in wrong:
                os.replace(files[name], os.path.join(output_dir, os.path.basename(files[name])))
    return rows, wrong, predictors


def load_sound_graph(path, batch_norm_from, input_size):
    """A frozen graph made elsewhere, whose batch norm gets statistics of photographs where these are given.

    Raises UserError for batch norm in training mode: no file made of it could be right.
    """
    graph = graphdef.drop_default_attributes(freeze.load_frozen(path))
    if batch_norm_from:
        graph = with_estimated_batch_norm(graph, path, batch_norm_from, measured_size(graph, input_size))
    nodes = graphdef.training_batch_norms(optimize.simplify(graph))
    if nodes:
        raise UserError('%s: %d batch norms are in training mode (%s, ...; is_training is true), so that what it finds '
                        'depends on the other images of the batch; export it for inference, with is_training=False, or '
                        'give --batch-norm-from=PHOTOS' % (path, len(nodes), nodes[0].name), exit_code=4)
    return graph


def with_estimated_batch_norm(graph, path, photographs, size):
    """The graph with statistics of photographs in its batch norm; they keep their shape where it takes any size."""
    if not graphdef.training_batch_norms(graph):
        raise UserError('--batch-norm-from: no batch norm of %s is in training mode; leave it out' % path)
    is_free = None in (graphdef.input_shape(graph).as_list() or [None])[1:3]
    images = read_folder(photographs, MAX_BATCH_NORM_IMAGES, **{'short_edge' if is_free else 'input_size':
                                                                min(size) if is_free else size})
    logging.info('estimating batch norm on %d photographs', len(images))
    return estimate_batch_norm(graph, images)


def labelled_skeleton(sources):
    """The Skeleton of the data that a network is measured on, None without any."""
    if not sources.datapath:
        return None
    annotation_file, image_folder = find_split(sources.datapath, sources.split, sources.imgpath)
    return read_annotations(annotation_file, image_folder, sources.category).skeleton


def out_of_bounds(rows, shares):
    """{name: why a file is not given its name} for rows and shares as from `measure`."""
    wrong = collections.OrderedDict()
    for name, row in rows.items():
        if name in FEWER_BITS and not shares[name] <= FEWER_BITS[name]:
            wrong[name] = ('its difference from graph_frozen is %.2g of what the maps show (root mean squares), more '
                           'than %g: its bits do not suffice; calibrate 8 bits on images like those that it will see, '
                           'or use the float files' % (shares[name], FEWER_BITS[name]))
        elif name not in FEWER_BITS and not row['max_rel_diff'] <= FLOAT_BOUND:
            wrong[name] = ('its output differs from that of graph_frozen by %.2g of its largest value, more than %g; '
                           'use graph_frozen.pb' % (row['max_rel_diff'], FLOAT_BOUND))
    return wrong


def check_files(optimized, wrong):
    """Raises UserError, with exit code 4, when something was left that should have been folded, or a file was wrong.

    optimized: the GraphDef of graph_opt.  wrong: as from `out_of_bounds`.
    """
    if wrong:
        raise UserError('; '.join('%s was not written: %s' % item for item in wrong.items()), exit_code=4)
    unfolded = optimize.find_unfolded(optimized)
    if unfolded:
        raise UserError('graph_opt.pb is not fully optimized: %s' % optimize.list_unfolded(unfolded), exit_code=4)


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
    check_input_size(width, height, stride, '--input-size')
    return stride


def write_graphs(graphs, folder):
    """Save frozen graphs; {name: path}."""
    files = collections.OrderedDict((name, os.path.join(folder, name + '.pb')) for name in graphs)
    for name, path in files.items():
        freeze.save_graph(graphs[name], path)
    return files


def write_tflite(graph, skeleton, shape, calibration):
    """{name: (file name, bytes)} of .tflite files: in float and with weights in float16 where a shape is given, in 8
    bits where images are."""
    contents = collections.OrderedDict()
    if shape:
        contents['graph_float'] = tflite.convert(graph, shape)
        contents['graph_float16'] = tflite.convert(graph, shape, half=True)
    if calibration is not None:
        logging.info('converting to 8 bits, calibrated on %d images', len(calibration))
        if len(calibration) < FEW_CALIBRATION_IMAGES:
            logging.warning('so few images may not show what a network can find, and 8 bits cut off what is beyond it; '
                            'give some 32 photographs of people')
        contents['graph_int8'] = tflite.quantize(graph, calibration)
    return collections.OrderedDict((name, (name + '.tflite', tflite_runtime.with_skeleton(data, skeleton)))
                                   for name, data in contents.items())


def write_saved_model(frozen, images, predict_maps, folder):
    """Save the optimized graph, for any number of images at once. Raises UserError when it computes something else."""
    graph = optimize.optimize(frozen)
    rows, shares = compare({'frozen': predict_maps, 'saved_model': graph_network(graph, 'saved_model')[0]}, images)
    check_files(graph, out_of_bounds({'saved_model': rows['saved_model']}, shares))
    freeze.save_saved_model(graph, folder)


def read_images(sources, samples, width, height):
    """Images to compare on, uint8 (N, height, width, 3) BGR: of a folder, else of samples, else one of matplotlib's."""
    if sources.images:
        return np.stack(read_folder(sources.images, MAX_COMPARED_IMAGES, (width, height)))
    if samples:
        return np.stack([sample[0] for sample in samples[:MAX_COMPARED_IMAGES]])
    import matplotlib
    photograph = os.path.join(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    return np.stack([fitted_image(photograph, (width, height))])


def read_calibration_images(sources, width, height):
    """Images for quantization to measure activations on: of a folder, else training images; as read_images's."""
    if sources.images:
        return np.stack(read_folder(sources.images, sources.calibration_images, (width, height)))
    dataset = PoseDataset(sources.datapath, sources.calibration_split, width, height, SIZE_MULTIPLE, sources.imgpath,
                          category=sources.category)
    return images_of(dataset, sources.calibration_images)


def images_of(dataset, limit):
    """Images of a PoseDataset, evenly chosen: uint8 (N, height, width, 3) BGR."""
    count = len(dataset.validation_images)
    images = []
    for index in np.linspace(0, count - 1, min(count, limit)).astype(int):
        try:
            images.append(dataset.validation_sample(index).image)
        except BadSample as error:
            logging.warning('not calibrated on %s', error)
    if not images:
        raise UserError('no image of %s can be read to calibrate on; give --images=FOLDER' % dataset.image_folder)
    return np.stack(images)


def read_folder(folder, limit, input_size=None, short_edge=None):
    """Images of a folder, evenly chosen, as the network sees them: a list of uint8 (height, width, 3) BGR."""
    paths = find_photographs(folder).paths
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), limit)).astype(int)
    return [fitted_image(paths[index], input_size, short_edge) for index in chosen]


def fitted_image(path, input_size=None, short_edge=None):
    try:
        pixels = read_photograph(path)
    except BadSample as error:
        raise UserError('%s; remove it' % error)
    return transform_image(pixels, make_transforms(pixels.shape[1], pixels.shape[0], input_size, short_edge)[0])


def read_validation_samples(sources, width, height, stride, skeleton):
    """The first validation samples of the data, for a network of that Skeleton: lists of image, heatmap, paf and mask,
    which is 0 in the channels of keypoints that the data does not label."""
    dataset = PoseDataset(sources.datapath, sources.split, width, height, stride, sources.imgpath,
                          category=sources.category, skeleton=skeleton)
    samples = [[sample.image, sample.heatmap, sample.paf, sample.mask * skeleton.labelled_channels(sample.labelled)]
               for sample in itertools.islice(validation_samples(dataset), sources.max_samples)]
    if not samples:
        raise UserError('no image with people in %s of --datapath=%s; give another with --split'
                        % (sources.split, sources.datapath))
    return samples
