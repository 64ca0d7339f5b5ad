"""Read an annotation file, FILE FOLDER, and print how many samples it has and the shape of its joints."""
import sys

import pose_cli
from annotations.arrays import read_annotations


def main():
    annotations = read_annotations(*sys.argv[1:])
    print(len(annotations.sample_image), annotations.joints.shape)


pose_cli.run(main)
