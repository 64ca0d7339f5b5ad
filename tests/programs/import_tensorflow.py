"""Import a TensorFlow as the commands do, after closing the descriptors given; print its value and write to stderr."""
import importlib
import os
import sys

for descriptor in sys.argv[1:]:
    os.close(int(descriptor))
import pose_cli  # noqa: E402,F401

print(importlib.import_module('tensorflow').value)  # of the test, which has this one attribute
if '2' not in sys.argv[1:]:
    os.write(2, b'ours\n')
