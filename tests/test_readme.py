"""Each command of README.md and of its pages in etcs/ is there, and takes the arguments that it has there."""
import importlib
import re
import shlex
import sys

import pytest

from conftest import ROOT
from pose_errors import UserError

README = (ROOT / 'README.md').read_text()
# Of experiments.md the commands take hours.
PAGES = {path.name: path.read_text() for path in [ROOT / 'README.md', *sorted((ROOT / 'etcs').glob('*.md'))]
         if path.name != 'experiments.md'}
ALL_TEXT = ''.join(PAGES.values())
# Shell lines of other machines, which README says are not run.
EXCEPTIONS = ('ssh ', 'srun ')


def commands():
    """The lines of the code blocks that run a Python command of this project: [(script, its arguments)]."""
    found = []
    for block in re.findall(r'(?:^    .*\n)+', ALL_TEXT, re.M):
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            match = re.search(r'(?:python3?|bash) ((?:scripts/)?\w+\.(?:py|sh))'
                              r"""((?: +(?:"[^"]*"|'[^']*'|[^\s&|>"'])+)*)""", line)
            if match and not line.strip().startswith(EXCEPTIONS):
                found.append((match.group(1), match.group(2)))
    return found


def test_readme_has_the_commands():
    assert len(commands()) > 20
    assert {'scripts/quickstart.sh', 'scripts/demo.sh', 'train.py', 'pose_eval.py'} <= {name for name, _ in commands()}


@pytest.mark.parametrize('script, arguments', commands())
def test_the_command_takes_these_arguments(script, arguments, monkeypatch):
    """Its own parser reads them; that a file is not there, as in the examples, is another matter."""
    assert (ROOT / script).exists()
    module = {'train.py': 'training.config'}.get(script, script.split('/')[-1].rpartition('.')[0])
    if script.endswith('.sh') and not (ROOT / script.replace('.sh', '.py')).exists():
        return
    monkeypatch.setattr(sys, 'argv', [script] + shlex.split(arguments, comments=True))
    try:
        importlib.import_module(module).parse_flags()
    except UserError as error:
        assert not re.search('argument|unrecognized|usage', str(error)), error


@pytest.mark.parametrize('name', sorted(PAGES) + ['experiments.md'])
def test_its_links_lead_somewhere(name):
    path = ROOT / name if name == 'README.md' else ROOT / 'etcs' / name
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r'(?m)^#+ (.*)$', page.read_text())
            assert anchor in [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles], anchor
