"""Each command of README.md and of its pages in etcs/ is one that the tests run, with its flags, or README names it."""
import re

import pytest

from bench_start import WRONG_CALLS
from conftest import ROOT

README = (ROOT / 'README.md').read_text()
# Of experiments.md the commands take hours.
PAGES = {path.name: path.read_text() for path in [ROOT / 'README.md', *sorted((ROOT / 'etcs').glob('*.md'))]
         if path.name != 'experiments.md'}
ALL_TEXT = ''.join(PAGES.values())
UNTESTED = README[README.index('## Which of these commands are tested'):]
# Their tests run them where there is nothing to download, or through the environment that they make.
ELSEWHERE = {'scripts/download_pretrained.sh': 'test_download_pretrained.py',
             'scripts/run_tests.sh': 'test_setup_env.py'}
EXCEPTIONS = ('ssh ', 'srun ')  # named in the list


def commands():
    """The lines of the code blocks that run something of this project: [(script, flags)]."""
    found = []
    for block in re.findall(r'(?:^    .*\n)+', ALL_TEXT, re.M):
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            match = re.search(r'(?:python3?|bash) ((?:scripts/)?\w+\.(?:py|sh))(.*)', line)
            if match and not line.strip().startswith(EXCEPTIONS):
                found.append((match.group(1), set(re.findall(r'(?<!\S)(--[a-z_-]+)', match.group(2)))))
    return found


def test_readme_has_the_commands():
    assert len(commands()) > 20
    assert {'scripts/quickstart.sh', 'scripts/demo.sh', 'train.py', 'pose_eval.py'} <= {name for name, _ in commands()}


@pytest.mark.parametrize('script, flags', commands())
def test_a_test_runs_it(script, flags):
    """A test names the script, and its flags are named in tests or in other scripts that tests run."""
    name = script.rpartition('/')[2]
    texts = {path.name: path.read_text() for path in (ROOT / 'tests').rglob('*.py') if path.name != 'test_readme.py'}
    if script in ELSEWHERE:
        assert name in texts[ELSEWHERE[script]]
        return
    using = ''.join(text for text in texts.values() if name.rpartition('.')[0] in text)
    assert name in using, 'no test runs %s' % script
    assert {flag for flag in flags if flag not in using} == set()


@pytest.mark.parametrize('script, flags', commands())
def test_its_flags_exist(script, flags):
    source = script if script in WRONG_CALLS else script.replace('.sh', '.py')
    if source in WRONG_CALLS:
        shared = ''.join(path.read_text() for path in [ROOT / 'pose_cli.py'] + list((ROOT / 'training').glob('*.py')))
        known = (ROOT / source).read_text() + shared
        assert {flag for flag in flags if "'%s'" % flag not in known} == set()


def test_what_is_not_run_is_listed():
    for word in ('ssh', 'srun', 'Kubernetes', 'download_pretrained.sh', 'caffemodel', 'COCO', 'GPUs',
                 'Where graphs run'):
        assert word in UNTESTED, word
    for command in EXCEPTIONS:
        assert '    ' + command in ALL_TEXT, 'the list names what is gone: ' + command


def test_it_takes_five_minutes():
    """At 300 words a minute; code and the lines of tables are looked at, not read."""
    assert len(re.findall(r'\w[^ |]*', re.sub(r'(?m)^(    |\|).*$', '', README))) < 1300


@pytest.mark.parametrize('name', sorted(PAGES) + ['experiments.md'])
def test_its_links_lead_somewhere(name):
    path = ROOT / name if name == 'README.md' else ROOT / 'etcs' / name
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r'(?m)^#+ (.*)$', page.read_text())
            assert anchor in [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles], anchor
