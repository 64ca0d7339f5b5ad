"""What all processes of a run must have alike before its first step: flags, code, data."""
import hashlib
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ('', 'networks', 'remote', 'training')
# What may differ: where things lie on a machine, how many cores it has, and what worker 0 alone does.
LOCAL_FLAGS = ('checkpoint', 'curve_keys', 'datapath', 'imgpath', 'keep', 'logpath', 'modelpath', 'pretrained',
               'remote_data', 'tag', 'train_split', 'valid_split', 'workers')


def common_flags(flags):
    """{'--flag': value} of the flags (a dict) that must be the same."""
    return {'--' + name.replace('_', '-'): value for name, value in flags.items() if name not in LOCAL_FLAGS}


def code_version():
    """A checksum of the sources that make a training step."""
    digest = hashlib.sha1()
    for folder in FOLDERS:
        path = os.path.join(ROOT, folder)
        for name in sorted(os.listdir(path)):
            if name.endswith('.py'):
                with open(os.path.join(path, name), 'rb') as file:
                    digest.update(name.encode() + b'\0' + file.read())
    return digest.hexdigest()[:12]
