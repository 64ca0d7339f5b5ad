"""Each command of README.md is one that the tests run, with its flags; or README says that it is not."""
import re

import pytest

from bench_start import WRONG_CALLS
from conftest import ROOT

README = (ROOT / 'README.md').read_text()
UNTESTED = README[README.index('## Which of these commands are tested'):]
# Their tests run them where there is nothing to download, or through the environment that they make.
ELSEWHERE = {'scripts/download_pretrained.sh': 'test_download_pretrained.py',
             'scripts/run_tests.sh': 'test_setup_env.py'}
EXCEPTIONS = ('ssh ', 'srun ')  # named in the list


def commands():
    """The lines of README's code blocks that run something of this project: [(script, flags)]."""
    found = []
    for block in re.findall(r'(?:^    .*\n)+', README, re.M):
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
        assert '    ' + command in README or '        ' + command in README, 'the list names what is gone: ' + command
