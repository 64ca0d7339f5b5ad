"""TensorFlow's transform_graph tool without bazel: the same flags, run through TransformGraph of TF 1.x.

Where TF 2.x is installed, which has no TransformGraph, $TRANSFORM_GRAPH may name a transform_graph binary.
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pose_cli

if __name__ == '__main__':
    pose_cli.prepare_process()

from pose_errors import UserError


def parse_flags():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--in_graph', required=True, help='a frozen graph')
    parser.add_argument('--out_graph', required=True, help='where the result goes')
    parser.add_argument('--inputs', default='image', help='names, with commas between them')
    parser.add_argument('--outputs', default='Openpose/concat_stage7', help='names, with commas between them')
    parser.add_argument('--transforms', required=True,
                        help="as in 'fold_constants(ignore_errors=true) quantize_weights'")
    return parser.parse_args()


def main():
    args = parse_flags()
    if not os.path.isfile(args.in_graph):
        raise UserError('there is no graph --in_graph=%s; give the path of a frozen graph' % args.in_graph)
    from graphs import freeze  # TensorFlow comes with it

    # One transform is a name and, maybe, its parameters in brackets.
    transforms = re.findall(r'\w+(?:\([^)]*\))?', args.transforms)
    names = [[name.split(':')[0].strip() for name in text.split(',')] for text in (args.inputs, args.outputs)]
    graph = freeze.run_transforms(freeze.load_graph(args.in_graph), *names, transforms)
    freeze.save_graph(graph, args.out_graph)


if __name__ == '__main__':
    pose_cli.run(main)
