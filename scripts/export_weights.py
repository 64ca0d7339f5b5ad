"""Weights of a training run as one small file: .npy, half precision, without what only training needs.

    python3 scripts/export_weights.py --checkpoint=DIR --output=FILE.npy

The file knows its network and its keypoints. `train.py --pretrained=FILE.npy` goes on from it; pose_eval.py takes it as
--weights, scripts/freeze_and_optimize.sh as --checkpoint.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import pose_cli

pose_cli.prepare_process()

import networks
from annotations.skeleton import COCO_SKELETON
from networks.formats.npy import write_npy
from networks.pretrained import checked_values, find_checkpoint, model_of, read_weights, skeleton_of
from pose_errors import UserError


def parse_flags():
    parser = pose_cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True, help='prefix of a checkpoint, or its folder (the newest in it)')
    parser.add_argument('--output', required=True, metavar='FILE.npy', help='the file to write')
    parser.add_argument('--model', type=networks.model_name, help="the network (that of the checkpoint's run.json)")
    flags = parser.parse_args()
    if not flags.output.endswith('.npy'):
        parser.error('--output=%s: a name that ends in .npy is needed' % flags.output)
    flags.checkpoint = find_checkpoint(flags.checkpoint)
    flags.model = flags.model or model_of(flags.checkpoint)
    if not flags.model:
        parser.error('no run.json beside %s names the network: give it with --model' % flags.checkpoint)
    return flags


def network_weights(model, skeleton, checkpoint):
    """{variable name: float32 array} of a network. Raises UserError when the checkpoint lacks one or is another's."""
    from networks.tensorflow import tf
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, [None, None, None, 3])
        names = [v.op.name for v in networks.get_network(model, image, False, skeleton).variables]
    weights = read_weights(checkpoint)
    missing = sorted(set(names) - set(weights))
    if missing:
        raise UserError('%s lacks %d variables of %s (%s, ...); give the --model that it was trained with'
                        % (checkpoint, len(missing), model, missing[0]))
    return {name: checked_values(weights[name], name, checkpoint) for name in names}


def main():
    flags = parse_flags()
    skeleton = skeleton_of(flags.checkpoint) or COCO_SKELETON
    weights = network_weights(flags.model, skeleton, flags.checkpoint)
    write_npy(flags.output, weights, {'model': flags.model, 'skeleton': skeleton.to_json()})
    print('%s: %s, %d arrays, %.2f MB' % (flags.output, flags.model, len(weights),
                                          os.path.getsize(flags.output) / 1e6))


if __name__ == '__main__':
    pose_cli.run(main)
