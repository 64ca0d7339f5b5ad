"""README's commands, run one after the other with the flags that they have there, on small data and for one step.

Only names of folders, sizes and the networks that take minutes are others.
"""
import importlib
import re
import shlex
import sys

import cv2
import pytest

from conftest import PATIENCE, PROGRAMS, ROOT, program_environment, run_well
from test_pose_dataworker import WITHOUT_TENSORFLOW

README = (ROOT / 'README.md').read_text()
LARGE = re.compile(r'--model=(cmu|vgg)')
TRAIN = ['--pretrained=none', '--batchsize=8', '--input-width=64', '--input-height=64', '--workers=1', '--max-steps=1',
         '--valid-every=1']
# What is run elsewhere: installs, downloads, real photographs, and weights that are not at hand.
ELSEWHERE = re.compile(r'quickstart\.sh|demo\.sh|run_tests\.sh|download_pretrained\.sh|check_gpus\.sh|tensorboard|'
                       r'caffemodel|report\.py')


def lines():
    """The commands of README's code blocks, each once; where one has all flags of another, in the place of both."""
    found = []
    for block in re.findall(r'(?:^    .*\n)+', README, re.M):
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            match = re.match(r'    (?:\w+\$ +)?(?:python3|bash) (.*)', line)
            if match and not ELSEWHERE.search(line):
                found.append(shlex.split(match.group(1)))
    largest = [max((other for other in found if set(line) <= set(other)), key=len) for line in found]
    return [line for k, line in enumerate(largest) if line not in largest[:k]]


@pytest.mark.slow
def test_readme_from_the_first_command_to_the_last(sample_coco, address, start, tmp_path, monkeypatch, capsys):
    film = cv2.VideoWriter(str(tmp_path / 'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (96, 64))
    for path in sorted((sample_coco / 'val2017').glob('*.jpg'))[:3]:
        film.write(cv2.resize(cv2.imread(str(path)), (96, 64)))
    film.release()
    names = {'coco': str(sample_coco), 'PHOTOS': str(sample_coco / 'val2017'), 'FILE': str(tmp_path / 'film.avi'),
             'tcp://trainer:1027': address, 'tcp://0.0.0.0:1027': address, '368x368': '64x64', '368': '64'}

    def replaced(word):
        flag, _, value = word.partition('=')
        if value.split('/')[0] in ('models', 'frozen', 'OUT', 'samples'):
            value = str(tmp_path / value)
        return '%s=%s' % (flag, names.get(value, value)) if value else flag

    ran, remote = [], ['--modelpath=%s' % (tmp_path / 'remote')]
    for script, *words in lines():
        is_large = any(map(LARGE.match, words))
        words = [replaced(LARGE.sub('--model=small', word)) for word in words]
        ran.append(script)
        if script == 'train.py':
            few = TRAIN if any('--modelpath' in word for word in words) else TRAIN + remote
            run_well(PROGRAMS / 'train_small.py' if is_large else script, *words, *few, env=program_environment(),
                     timeout=3 * PATIENCE)
        elif script == 'pose_dataworker.py':
            worker = start(sys.executable, WITHOUT_TENSORFLOW[0], 'tensorflow', script, *words, '--workers=1')
        else:
            module = importlib.import_module(script.split('/')[-1].rpartition('.')[0])
            few = {'pose_eval': '--decoders=0', 'freeze_and_optimize': '--runs=1', 'pose_dataset': '--count=1'}
            monkeypatch.setattr(sys, 'argv', [script] + words + [few[module.__name__]])
            module.main()
    assert worker.wait(PATIENCE) == 0, worker.log.read_text()
    assert ran.count('train.py') >= 4 and ran.count('pose_eval.py') >= 4 and {'pose_dataset.py'} <= set(ran)
    for path in ('frozen/graph_opt.pb', 'frozen/graph_int8.tflite', 'OUT/film_people.mp4', 'samples/contact_sheet.png',
                 'remote/model-1.index', 'models/thin/run.json'):
        assert (tmp_path / path).stat().st_size > 0, path


@pytest.mark.slow
def test_readme_s_program(sample_coco, tmp_path, monkeypatch):
    program, = re.findall(r'## From a program\n\n((?:    .*\n)+)', README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / 'etcs').symlink_to(ROOT / 'etcs')
    photo = cv2.imread(str(sorted((sample_coco / 'val2017').glob('*.jpg'))[0]))
    cv2.imwrite(str(tmp_path / 'photo.jpg'), photo)
    exec(re.sub('(?m)^    ', '', program), {})
    assert cv2.imread(str(tmp_path / 'people.png')).shape == photo.shape
