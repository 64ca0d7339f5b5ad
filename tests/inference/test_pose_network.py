"""The call that programs use: a file in, people out, as pose_eval.py finds them."""
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from annotations.skeleton import COCO_SKELETON
from conftest import ROOT, reference_data, run_well
from inference import draw_people, load_network
from inference.pose_network import Person, check_options
from pose_errors import UserError

WEIGHTS = ROOT / 'etcs' / 'weights' / 'mobilenet_v2_small.npy'


@pytest.fixture(scope='module')
def photographs():
    return sorted((reference_data('coco_mini') / 'train2017').glob('*.jpg'))[:3]


@pytest.fixture(scope='module')
def network():
    with load_network(WEIGHTS, short_edge=160) as network:
        yield network


@pytest.mark.slow
def test_people_are_those_of_the_command(network, photographs, tmp_path):
    run_well('pose_eval.py', '--weights=%s' % WEIGHTS, '--images=%s' % photographs[0].parent, '--limit=3',
             '--scale=160', '--output-dir=%s' % tmp_path)
    images = [cv2.imread(str(path)) for path in photographs]
    found = network(images)
    assert len(found) == 3 and sum(map(len, found)) > 0
    for people, image, path in zip(found, images, photographs):
        expected = json.loads((tmp_path / (path.stem + '_keypoints.json')).read_text())['people']
        assert len(people) == len(expected)
        for person, other in zip(people, expected):
            points = np.reshape(other['pose_keypoints_2d'], (-1, 3))
            for number, name in enumerate(network.skeleton.parts):
                np.testing.assert_allclose(person.keypoints.get(name, (0, 0, 0)), points[number], atol=0.01)
            x, y, width, height = person.box
            assert all(x - 1e-3 <= left <= x + width + 1e-3 and y - 1e-3 <= top <= y + height + 1e-3
                       for left, top, _ in person.keypoints.values())
        assert [person.score for person in people] == sorted((person.score for person in people), reverse=True)
        one = network(image)
        assert len(one) == len(people)
        drawn = draw_people(image, people, network.skeleton)
        assert drawn.shape == image.shape and (drawn != image).any() == bool(people)


@pytest.mark.slow
def test_thresholds(photographs):
    image = cv2.imread(str(photographs[0]))
    counts = []
    for options in ({'threshold': 0.03}, {}, {'min_score': 0.99}):
        with load_network(WEIGHTS, short_edge=160, **options) as network:
            counts.append(sum(len(person.keypoints) for person in network(image)))
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize('image', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), 'photo.jpg',
                                   np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_told_in_words(network, image):
    with pytest.raises(UserError, match='uint8 array'):
        network([image])
    with pytest.raises(UserError, match='cv2.imread gives for a file that it cannot read'):
        network(None)


def test_a_grey_image_is_one_image(network):
    with pytest.raises(UserError, match=r'not uint8 \(64, 48\)'):
        network(np.zeros((64, 48), np.uint8))
    assert network(np.zeros((2, 64, 48, 3), np.uint8)) == [[], []]


@pytest.mark.parametrize('option, wanted', [
    (dict(short_edge=0), 'short_edge=0 is not a whole number of at least 1'),
    (dict(short_edge=160.5), 'short_edge=160.5 is not a whole'), (dict(threads=0), 'threads=0 is not a whole'),
    (dict(scales=()), r'scales=\(\) is not a list of numbers from 0.1 to 4'),
    (dict(scales=0.5), 'scales=0.5 is not a list'), (dict(scales=[1, 0]), r'scales=\[1, 0\] is not a list'),
    (dict(scales=np.array(1.)), 'scales=.* is not a list'), (dict(batchsize='2'), "batchsize='2' is not a whole"),
    (dict(threshold=-1), 'threshold=-1 is not a number from 0 to 1'),
    (dict(min_score=float('nan')), 'min_score=nan is not a number from 0 to 1')])
def test_options_out_of_their_range(option, wanted):
    with pytest.raises(UserError, match='^load_network: ' + wanted):
        load_network(WEIGHTS, **option)


def test_options_may_be_arrays_and_numbers_of_numpy():
    check_options(dict(scales=np.array([0.5, 1]), short_edge=np.int64(160), threshold=np.float32(0.1), flip=True))


def test_people_of_other_keypoints_are_drawn_with_their_own_skeleton():
    image, people = np.full((60, 60, 3), 90, np.uint8), [Person({'tip': (10, 10, 1.), 'tail': (50, 50, 1.)}, 1., None)]
    skeleton = COCO_SKELETON._replace(parts=('tip', 'tail'), limbs=((0, 1),))
    assert (draw_people(image, people, skeleton=skeleton) != image).any()
    with pytest.raises(UserError, match='no tail, tip; pass skeleton=network.skeleton'):
        draw_people(image, people)


def test_files_that_are_none(tmp_path):
    for name in ('none.pb', 'none.tflite', 'none.npy', 'none'):
        with pytest.raises(UserError, match='none'):
            load_network(tmp_path / name)


@pytest.mark.parametrize('ending', ('tflite', 'onnx', 'pb'))
def test_names_in_capitals_are_of_the_same_kind(tmp_path, ending):
    said = set()
    for name in ('x.' + ending, 'X.' + ending.upper()):
        (tmp_path / name).write_bytes(b'no graph' * 20)
        with pytest.raises(UserError) as error:
            load_network(tmp_path / name)
        said.add(str(error.value).replace(str(tmp_path / name), 'FILE'))
    assert len(said) == 1 and 'FILE' in said.pop()


@pytest.mark.slow
def test_an_editable_installation_works_from_any_folder_and_a_wheel_is_refused(tmp_path):
    """With this interpreter's packages, which is all that it needs."""
    import venv
    venv.create(str(tmp_path / 'env'), with_pip=False, system_site_packages=False)
    python = str(tmp_path / 'env' / 'bin' / 'python')
    site = subprocess.check_output([python, '-c', 'import site; print(site.getsitepackages()[0])'], text=True).strip()
    packages = os.path.dirname(os.path.dirname(np.__file__))
    with open(os.path.join(site, 'packages.pth'), 'w') as file:
        file.write(packages)
    pip = [sys.executable, '-m', 'pip', '--python', python] if sys.version_info >= (3, 8) else None
    if pip is None:
        pytest.skip('the pip of Python 3.7 installs into its own environment only')
    run = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, cwd=str(tmp_path))
    built = subprocess.run(pip + ['wheel', '--no-deps', '--no-build-isolation', str(ROOT)], **run)
    assert built.returncode != 0 and 'makes no wheel' in built.stdout
    installed = subprocess.run(pip + ['install', '--no-deps', '--no-build-isolation', '-e', str(ROOT)], **run)
    assert installed.returncode == 0, installed.stdout
    program = 'from inference import load_network; print(load_network.__module__)'
    result = subprocess.run([python, '-c', program], **run)
    assert result.stdout.split()[-1] == 'inference', result.stdout
