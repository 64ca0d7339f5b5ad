"""python3 -m networks: a table of the networks: parameters, GFLOPs, stride, pretrained source."""
import pose_cli

pose_cli.prepare_process()

import numpy as np

from networks import NAMES, get_network

from .pretrained import models_folder
from .tensorflow import tf


def parameter_count(network):
    """The number of values in all variables, moving averages included."""
    return sum(int(np.prod(v.shape.as_list())) for v in network.variables)


def gflops(output):
    """10^9 floating-point operations of an inference: two a multiply-add, in the convolutions that `output` needs.

    The graph's sizes must be known, its batch 1.
    """
    graph = output.graph
    total = 0
    for node in tf.graph_util.extract_sub_graph(graph.as_graph_def(), [output.op.name]).node:
        if node.op not in ('Conv2D', 'DepthwiseConv2dNative'):
            continue
        op = graph.get_operation_by_name(node.name)
        kernel_height, kernel_width, channels, filters = op.inputs[1].shape.as_list()
        _, height, width, _ = op.outputs[0].shape.as_list()
        total += 2 * kernel_height * kernel_width * channels * filters * height * width
    return total / 1e9


def main():
    parser = pose_cli.ArgumentParser(prog='-m networks', description='Print a table of the networks.')
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), help='WIDTHxHEIGHT of the input')
    width, height = parser.parse_args().input_size
    tf.logging.set_verbosity(tf.logging.ERROR)
    rows = ['%-24s %12s %8s %7s  pretrained, in %s/' % ('model', 'parameters', 'GFLOPs', 'stride', models_folder())]
    for name in NAMES:
        with tf.Graph().as_default():
            network = get_network(name, tf.placeholder(tf.float32, [1, height, width, 3], 'image'), is_training=False)
            rows.append('%-24s %12s %8.1f %7d  %s' % (
                name, format(parameter_count(network), ','), gflops(network.output), network.stride,
                ' or '.join(network.pretrained.paths)))
    print('\n'.join(rows))


if __name__ == '__main__':
    pose_cli.run(main)
