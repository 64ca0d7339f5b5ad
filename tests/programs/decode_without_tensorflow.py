"""Decode and draw one person where neither TensorFlow nor tensorpack can be imported; print how many were found."""
import sys

sys.modules['tensorflow'] = sys.modules['tensorpack'] = None
import numpy as np  # noqa: E402

import pose_draw  # noqa: E402
import pose_eval  # noqa: E402
from annotations.skeleton import COCO_SKELETON  # noqa: E402
from bench_inputs import random_people, render_maps  # noqa: E402

joints = random_people(np.random.RandomState(0), 1, 128, 128)
keypoints, _ = pose_eval.decode_people(render_maps(joints, 128, 128, 8), 8)
print(len(keypoints), pose_draw.draw_skeletons(np.zeros((128, 128, 3), np.uint8), keypoints, COCO_SKELETON).any())
