"""The rules that keep the project readable: which file may import which, how long files are, what documents name.

Read from the sources, without importing them.
"""
import ast
import re
import subprocess
import sys

import pytest

from conftest import ROOT

# From top to bottom. Imports run down only: a module imports what stands in a later line, or what is in its own folder.
LEVELS = (
    ('scripts',),  # and benchmarks
    ('train', 'pose_eval', 'pose_dataworker'),
    ('training',),
    ('remote',),
    ('inference',),
    ('graphs',),
    ('networks',),
    ('batches',),
    ('pose_dataset',),
    ('pose_augment', 'pose_labels', 'pose_draw'),
    ('annotations',),
    ('pose_cli',),
    ('pose_files',),
    ('pose_errors',),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
COMMANDS = {'train', 'pose_dataset', 'pose_dataworker', 'pose_eval'}
WITH_FLAGS = COMMANDS | {'training.config', 'networks.__main__'}
TENSORFLOW_TOO = {'train', 'inference.tensorflow_runtime'}  # besides training/, graphs/ and networks/
MAX_LINES, MAX_CORE_FILES, MAX_TOP_FILES = 450, 86, 10


def project_files(*patterns):
    """Paths of the files that git tracks, and of new ones that it does not ignore; those that are there."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard', '--'] + list(patterns),
                            cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True)
    if listed.returncode:
        pytest.skip('this is not a git checkout')
    return [path for path in sorted(set(listed.stdout.splitlines())) if (ROOT / path).exists()]


def sources():
    return [path for path in project_files('*.py') if not path.startswith('tests/')]


def module_name(path):
    """'remote/protocol.py' -> 'remote.wire'; a file in scripts/ or benchmarks/ is imported by its bare name."""
    parts = path[:-len('.py')].split('/')
    if parts[0] in ('scripts', 'benchmarks'):
        parts = parts[1:]
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported_names(path):
    """Full dotted names in all import statements of a file, also those inside functions: {name: line}."""
    package = path.split('/')[:-1]
    names = {}
    for node in ast.walk(ast.parse((ROOT / path).read_text(), path)):
        if isinstance(node, ast.Import):
            names.update((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = '.'.join(package[:len(package) - node.level + 1] if node.level else [])
            base = '.'.join(part for part in (start, node.module) if part)
            names.update((base + '.' + alias.name, node.lineno) for alias in node.names)
    return names


def import_graph():
    """{module: the project's modules that it imports}; importing a module runs its package's __init__ as well."""
    paths = {module_name(path): path for path in sources()}
    graph = {}
    for module, path in paths.items():
        imported = set()
        for name in imported_names(path):
            parts = name.split('.')
            imported.update({'.'.join(parts[:length]) for length in range(1, len(parts) + 1)} & set(paths))
        graph[module] = imported - {module}
    return graph


def reachable(graph, module):
    found, rest = set(), [module]
    while rest:
        for imported in graph[rest.pop()] - found:
            found.add(imported)
            rest.append(imported)
    return found


def top_level(path):
    """What a file belongs to in LEVELS: its folder, or the module itself at the top."""
    return path.split('/')[0].replace('.py', '').replace('benchmarks', 'scripts')


def core_files():
    return [path for path in sources() if not path.startswith(('scripts/', 'benchmarks/'))]


def test_no_file_is_longer_than_one_can_hold_in_the_head():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
    assert sum(length < 300 for length in lengths.values()) > 0.75 * len(lengths)


def test_the_core_has_few_files():
    assert len([path for path in core_files() if '/' not in path]) <= MAX_TOP_FILES
    assert len(core_files()) <= MAX_CORE_FILES


def test_imports_run_down():
    paths = {module_name(path): path for path in sources()}
    upward = []
    for module, imported in import_graph().items():
        place = top_level(paths[module])
        upward += ['%s -> %s' % (module, name) for name in sorted(imported) if top_level(paths[name]) != place
                   and LEVEL_OF[top_level(paths[name])] <= LEVEL_OF[place]]
    assert upward == []


def test_every_file_has_a_level():
    assert {top_level(path) for path in sources()} == set(LEVEL_OF)


def test_no_import_circle():
    graph = import_graph()
    # A package's __init__ may gather its own modules, which name each other relative to it.
    between = {module: {name for name in imported if not module.startswith(name + '.')}
               for module, imported in graph.items()}
    assert [module for module in between if module in reachable(between, module)] == []


def test_only_commands_and_their_flags_import_pose_cli():
    core = {module_name(path) for path in core_files()}
    assert {module for module, imported in import_graph().items() if module in core and 'pose_cli' in imported} \
        <= WITH_FLAGS


def test_what_computes_with_tensorflow():
    """Nothing else imports it, so that flags, data workers and .tflite files do without."""
    core = {module_name(path): path for path in core_files()}
    takers = {module for module, imported in import_graph().items()
              if module in core and 'networks.tensorflow' in imported}
    assert {module for module in takers if not core[module].startswith(('training/', 'graphs/', 'networks/'))} \
        == TENSORFLOW_TOO
    importers = {path for path in core.values()
                 if any(name.startswith('tensorflow.compat') for name in imported_names(path))}
    assert importers == {'networks/tensorflow.py'}


def test_helper_nodes_need_no_tensorflow():
    """Nothing that pose_dataworker.py imports, however far away, names TensorFlow."""
    paths = {module_name(path): path for path in sources()}
    graph = import_graph()
    for module in sorted(reachable(graph, 'pose_dataworker') | {'pose_dataworker'}):
        roots = {name.split('.')[0] for name in imported_names(paths[module])}
        assert not roots & {'tensorflow', 'keras'}, '%s imports TensorFlow, and pose_dataworker.py imports it' % module


def test_train_can_be_read_from_top_to_bottom():
    """No import hides inside a function, and the script is short."""
    tree = ast.parse((ROOT / 'train.py').read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert not [node for function in functions for node in ast.walk(function)
                if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert len((ROOT / 'train.py').read_text().splitlines()) <= 320


def test_importing_data_modules_changes_nothing():
    """A program that uses the labels keeps its own excepthook, import hooks, signals and log."""
    code = ('import logging, signal, sys; before = (sys.excepthook, list(sys.meta_path), '
            'signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers)); import %s; '
            'assert before == (sys.excepthook, sys.meta_path, signal.getsignal(signal.SIGINT), '
            'logging.getLogger().handlers)')
    modules = ', '.join(sorted(module_name(path) for path in core_files()
                               if LEVEL_OF[top_level(path)] >= LEVEL_OF['batches'] or path.startswith('remote/')))
    assert 'pose_labels' in modules and 'batches.loader' in modules
    result = subprocess.run([sys.executable, '-c', code % modules], cwd=str(ROOT), stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr.decode()


def test_one_way_to_import_tensorflow():
    """As tensorflow.compat.v1, which both platforms have; or one of its tools, by its full name."""
    for path in project_files('*.py'):
        for name in imported_names(path):
            parts = name.split('.')
            if parts[0] in ('tensorflow', 'keras'):
                assert name != 'tensorflow' and not {'keras', 'contrib', 'v2'} & set(parts), (path, name)


def test_documents_name_files_that_exist():
    """Paths in backquotes, in links and in commands of the documents and of the scripts' own messages."""
    path = re.compile(r'(?<![\w/.$-])((?:\.ci|\.github|annotations|batches|benchmarks|etcs|graphs|inference|networks|'
                      r'remote|scripts|tests|training)/'
                      r'[\w./-]*\.(?:py|sh|md|txt|png|yml)|(?:train|pose_\w+|CONTRIBUTING|CHANGELOG)\.(?:py|md))')
    missing = set()
    for document in project_files('*.md', '*.sh', '*.py', '*.yml'):
        if document.startswith('tests/'):
            continue
        for name in path.findall((ROOT / document).read_text()):
            if not (ROOT / name).exists():
                missing.add((document, name))
    assert missing == set()


def test_test_files_have_names_of_their_own():
    names = [path.rpartition('/')[2] for path in project_files('tests/*.py', 'tests/**/*.py')]
    assert sorted(names) == sorted(set(names))
