"""Dense arrays of batches, as loader processes make them, of people at random places."""
import numpy as np

import pose_labels


def made_up_arrays(seed, batchsize=3, width=64, height=96, stride=8, people=2):
    """Dense image, heatmap, paf, mask and labelled parts of people at random places."""
    rng = np.random.RandomState(seed)
    cells = (batchsize, height // stride, width // stride)
    heatmap, paf = np.empty(cells + (19,), np.float32), np.empty(cells + (38,), np.float32)
    for row in range(batchsize):
        joints = rng.uniform(0, 1, (people, 18, 2)) * [width, height]
        heatmap[row] = pose_labels.render_heatmaps(joints, *cells[1:], stride)
        paf[row] = pose_labels.render_pafs(joints, *cells[1:], stride)
    mask = (rng.randint(0, stride * stride + 1, cells + (1,)) / (stride * stride)).astype(np.float32)
    labelled = rng.uniform(size=(batchsize, 18)) < rng.choice([0.8, 1.0], (batchsize, 1))
    return rng.randint(0, 256, (batchsize, height, width, 3)).astype(np.uint8), heatmap, paf, mask, labelled
