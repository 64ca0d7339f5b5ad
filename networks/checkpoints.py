"""Which checkpoints are in a folder: from the names of its files, without TensorFlow."""
import os
import re

STATE_FILE = 'checkpoint'
MAX_STATE_BYTES = 1 << 20


def named_checkpoints(folder):
    """The prefixes that the file `checkpoint` of a folder names, the latest last; [] when it is missing or damaged.

    tf.train.get_checkpoint_state raises ValueError and UnicodeDecodeError for damaged ones.
    """
    try:
        with open(os.path.join(folder, STATE_FILE), 'rb') as file:
            text = file.read(MAX_STATE_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return []
    names = dict.fromkeys(re.findall(r'^all_model_checkpoint_paths: "([^"\0]+)"', text, re.MULTILINE))
    latest = re.search(r'^model_checkpoint_path: "([^"\0]+)"', text, re.MULTILINE)
    if latest is None:
        return []
    names.pop(latest.group(1), None)
    return [os.path.join(folder, name) for name in list(names) + [latest.group(1)]]


def newest_checkpoint(folder):
    """The prefix of the checkpoint that a folder's file `checkpoint` names, or else of the newest there; or None."""
    named = named_checkpoints(folder)
    if named and os.path.isfile(named[-1] + '.index'):
        return named[-1]
    # The file is missing, or names files that are elsewhere now.
    prefixes = [os.path.join(folder, name)[:-len('.index')] for name in os.listdir(folder) if name.endswith('.index')]
    return max(prefixes, key=lambda prefix: os.path.getmtime(prefix + '.index')) if prefixes else None


def prefix(path):
    """The prefix of a checkpoint, also when one of its files was given."""
    return re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
