"""What several benchmarks work on: rendered data sets, made-up people and batches. Imported first, it also puts the
project's root and its scripts on sys.path, so that a benchmark can be started by its path."""
import os
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'scripts')]
import pose_cli
import pose_labels
from annotations.skeleton import COCO_SKELETON

BATCHES = 4  # different ones that are repeated
HIDING = 0.04  # of a person's height: half the width of what limbs hide
# A standing person, one unit tall, about (0, 0); in the order of annotations.skeleton.COCO_SKELETON.parts.
STANDING = np.array([(0, -.42), (0, -.32), (-.1, -.32), (-.15, -.15), (-.17, .01), (.1, -.32), (.15, -.15), (.17, .01),
                     (-.06, .02), (-.07, .26), (-.07, .48), (.06, .02), (.07, .26), (.07, .48), (-.02, -.44),
                     (.02, -.44), (-.05, -.43), (.05, -.43)])


def flag_parser(description):
    """A parser with the one flag that all benchmarks have, --json."""
    parser = pose_cli.ArgumentParser(description=description)
    parser.add_argument('--json', action='store_true', help='print one JSON object of the figures on the last line')
    return parser


def throughput_parser(description, batchsize):
    """flag_parser for samples per second of made-up batches, of `batchsize` samples by default."""
    parser = flag_parser(description)
    parser.add_argument('--seconds', type=pose_cli.positive_int, default=5, help='per measurement')
    parser.add_argument('--rounds', type=pose_cli.positive_int, default=3, help='the table shows the median of so many')
    parser.add_argument('--batchsize', type=pose_cli.positive_int, default=batchsize)
    parser.add_argument('--input-size', type=pose_cli.size, default=(368, 368), metavar='WxH')
    parser.add_argument('--people', type=pose_cli.positive_int, default=3, help='per sample')
    return parser


def render_sample_data(folder, train, val):
    """Render a data set of so many images (scripts/make_sample_coco.py) into a new folder; returns the folder."""
    subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make_sample_coco.py'), '--output-dir=' + folder,
                    '--train=%d' % train, '--val=%d' % val], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return folder


def random_people(rng, people, width, height, min_height=0.3, max_height=0.7):
    """Standing people of random size, lean and pose, wholly in the picture: float64 (people, 18, 2) in pixels."""
    joints = []
    for _ in range(people):
        pose = STANDING + rng.normal(0, 0.012, STANDING.shape)
        pose[1] = (pose[2] + pose[5]) / 2
        angle, size = rng.uniform(-0.2, 0.2), rng.uniform(min_height, max_height) * min(width, height)
        pose = size * pose @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        room = np.array([width - 1, height - 1]) - np.ptp(pose, axis=0)
        joints.append(pose - pose.min(axis=0) + rng.uniform(0, 1, 2) * room)
    return np.array(joints).reshape((-1,) + STANDING.shape)


def hide_behind(joints):
    """Joints (people, 18, 2), the nearest person's first, with NaN where a limb of somebody nearer hides a part."""
    seen = joints.copy()
    steps = np.linspace(0, 1, 8)[:, None]
    for number, nearer in enumerate(joints):
        limbs = np.concatenate([nearer[a] + steps * (nearer[b] - nearer[a]) for a, b in COCO_SKELETON.limbs])
        distance = np.linalg.norm(joints[number + 1:, :, None] - limbs, axis=3).min(axis=2)
        seen[number + 1:][distance < HIDING * np.ptp(nearer[:, 1])] = np.nan
    return seen


def render_labels(joints, width, height, stride):
    """(heatmap, paf) of joints (people, 18, 2) in pixels of the input: float32 (h, w, 19) and (h, w, 38)."""
    cells = height // stride, width // stride, stride
    return pose_labels.render_heatmaps(joints, *cells), pose_labels.render_pafs(joints, *cells)


def render_maps(joints, width, height, stride):
    """The same as a perfect network would give them: float32 (h, w, 57)."""
    return np.concatenate(render_labels(joints, width, height, stride), axis=2)


def made_up_batch(rng, batchsize, width, height, stride, people):
    """A batch of standing people at random places, as large as training samples show them, on a noise image.

    Returns:
        Dense arrays as for batches.batch.encode_batch: image uint8 and heatmap, paf, mask float32.
    """
    labels = []
    for _ in range(batchsize):
        sizes = height * 0.6 * rng.uniform(0.5, 1.1, (people, 1, 1))
        corners = rng.uniform(0, 0.6, (people, 1, 2)) * [width, height]
        bodies = STANDING + [0, 0.5] + rng.normal(0, 0.02, (people,) + STANDING.shape)
        labels.append(render_labels(corners + bodies * sizes, width, height, stride))
    heatmap, paf = (np.array(maps) for maps in zip(*labels))
    image = rng.randint(0, 256, (batchsize, height, width, 3)).astype(np.uint8)
    return image, heatmap, paf, np.ones(heatmap.shape[:3] + (1,), np.float32)


def made_up_batches(*args):
    """The dense batches that a sender repeats, for (batchsize, width, height, stride, people)."""
    rng = np.random.RandomState(0)
    return [made_up_batch(rng, *args) for _ in range(BATCHES)]


def made_up_weights(name, shape):
    """Weights (height, width, channels, filters) of a layer, near He's: float32, the same for the same name."""
    fan_in = np.prod(shape[:2] if 'depthwise' in name else shape[:3])
    rng = np.random.RandomState(sum(name.encode()))
    return rng.standard_normal(shape).astype(np.float32) * np.float32((2 / fan_in) ** 0.5)
