"""train.py with the small networks of the tests (--model=small, --model=wide), so that a start takes seconds."""
import importlib.abc
import importlib.util
import os
import sys

import networks
import pose_cli
from training.config import read_command


class SmallNetwork(importlib.abc.MetaPathFinder):
    """Finds its module where networks look for classes, once it is built: flags are checked without TensorFlow."""

    def find_spec(self, name, path, target=None):
        return importlib.util.find_spec('small_network') if name == 'networks.network_small' else None


for name, place in (('small', 'Small'), ('wide', 'Wide')):
    networks.NETWORKS[name] = networks.Entry('network_small.' + place, 8, networks.mobilenet_v1('0.75'))
sys.meta_path.insert(0, SmallNetwork())
with pose_cli.errors_in_one_line():
    command = read_command(os.environ)

import train

pose_cli.run(train.main, *command)
