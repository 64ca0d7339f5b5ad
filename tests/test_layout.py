"""The rules that keep the project readable: which file may import which, how long files are, what documents name.

Read from the sources, without importing them.
"""
import ast
import re
import subprocess

import pytest

from conftest import ROOT

COMMANDS = {'train', 'pose_dataset', 'pose_dataworker', 'pose_eval'}
WINGS = ('training', 'remote', 'graphs', 'networks')
MAX_LINES = 450
# Names that modules had once; anything that still says them is out of date.
MOVED = 'feed checkpoint runlog graph separable remote'.split()


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
    """'remote/wire.py' -> 'remote.wire'; a file in scripts/ or benchmarks/ is imported by its bare name."""
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


def test_no_file_is_longer_than_one_can_hold_in_the_head():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert len(lengths) > 30
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
    assert sum(length < 300 for length in lengths.values()) > 0.8 * len(lengths)


def test_no_import_circle():
    graph = import_graph()
    # A package's __init__ may gather its own modules, which name each other relative to it.
    between = {module: {name for name in imported if not module.startswith(name + '.')}
               for module, imported in graph.items()}
    assert [module for module in between if module in reachable(between, module)] == []


@pytest.mark.parametrize('wing', WINGS)
def test_wings_import_no_command_and_no_script(wing):
    graph = import_graph()
    outside = COMMANDS | {module_name(path) for path in sources() if path.startswith(('scripts/', 'benchmarks/'))}
    modules = [module for module in graph if module.split('.')[0] == wing]
    assert modules
    assert {module: sorted(graph[module] & outside) for module in modules if graph[module] & outside} == {}


def test_the_way_of_a_sample_imports_no_command_and_no_training():
    graph = import_graph()
    above = COMMANDS | {name for name in graph if name.split('.')[0] in ('training', 'remote', 'graphs')}
    flat = [module for module in graph if module.startswith('pose_') and module not in COMMANDS]
    assert len(flat) >= 8
    assert {module: sorted(graph[module] & above) for module in flat if graph[module] & above} == {}


def test_helper_nodes_need_no_tensorflow():
    """Nothing that pose_dataworker.py imports, however far away, names TensorFlow."""
    paths = {module_name(path): path for path in sources()}
    graph = import_graph()
    for module in sorted(reachable(graph, 'pose_dataworker') | {'pose_dataworker'}):
        roots = {name.split('.')[0] for name in imported_names(paths[module])}
        assert not roots & {'tensorflow', 'keras'}, '%s imports TensorFlow, and pose_dataworker.py imports it' % module


def test_one_way_to_import_tensorflow():
    """As tensorflow.compat.v1, which both platforms have; or one of its tools, by its full name."""
    for path in project_files('*.py'):
        for name in imported_names(path):
            parts = name.split('.')
            if parts[0] in ('tensorflow', 'keras'):
                assert name != 'tensorflow' and not {'keras', 'contrib', 'v2'} & set(parts), (path, name)


def test_nothing_names_a_module_that_has_moved():
    old = re.compile(r'\bpose_(%s)\b|\bscripts/bench_' % '|'.join(MOVED))
    found = ['%s:%d: %s' % (path, number, line.strip())
             for path in project_files('*.py', '*.md', '*.sh', '*.txt', '*.cfg', '*.ini', '*.yml', '.ci/run')
             if path != 'CHANGELOG.md'
             for number, line in enumerate((ROOT / path).read_text().splitlines(), 1) if old.search(line)]
    assert found == []


def test_documents_name_files_that_exist():
    """Paths in backquotes, in links and in commands of the documents and of the scripts' own messages."""
    path = re.compile(r'(?<![\w/.$-])((?:\.ci|\.github|benchmarks|etcs|graphs|networks|remote|scripts|tests|training)/'
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
