"""What TensorBoard's own server shows of a run."""
import json
import re
import sys
import time
import urllib.parse
import urllib.request

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tensorflow.compat.v1 as tf
from conftest import wait_for
from training.config import Schedule
from training.run_log import LOSSES, RunLog

STEPS = (10, 20, 30)


def write_run(folder):
    """A run of three log lines, each with a validation that is twice as bad, and one AP."""
    with tf.Graph().as_default():
        output = tf.identity(tf.placeholder(tf.float32, [None, 4], 'image') * 2.0, 'output')
    with RunLog(str(folder), 0, Schedule(10, 1000, True, 0)) as log:
        log.start(0, {'model': 'mobilenet_thin', 'max_steps': 30, 'tag': 'a|b'}, output)
        for step in STEPS:
            metrics = dict({name: 100.0 / step for name in LOSSES}, loss_ll_background=20.0)
            log.training(step, dict(metrics, lr=0.001, examples_per_sec=10.0, queue=3, data_wait=0.25))
            log.validation(step, 4, 'thin', {name: 2 * value for name, value in metrics.items()})
            log.picture(step, 'validation', np.full((40, 60, 3), step, np.uint8))
        log.evaluation(30, 0.5)


def ask(server, route, **query):
    with urllib.request.urlopen('%sdata/%s?%s' % (server, route, urllib.parse.urlencode(query)), timeout=60) as answer:
        return answer.read()


@pytest.mark.slow
def test_charts_pictures_flags_and_graph(start, tmp_path):
    """Training and validation share their charts."""
    write_run(tmp_path / 'run')
    process = start(sys.executable, '-m', 'tensorboard.main', '--logdir=%s' % (tmp_path / 'run'), '--port=0',
                    '--host=127.0.0.1')
    server = wait_for(lambda: re.search(r'http://127.0.0.1:\d+/', process.log.read_text()), 'no server').group()

    def tags():
        found = json.loads(ask(server, 'plugin/scalars/tags').decode())
        return found if len(found) == 2 and 'AP/AP' in found['validation'] else None

    found = wait_for(tags, 'the server reads no scalars')
    assert set(found) == {'train', 'validation'}
    losses = {'loss/' + name for name in LOSSES} | {'reference/loss_ll_background', 'loss/0_share_of_background'}
    assert set(found['train']) == losses | {'schedule/lr', 'speed/examples_per_sec', 'speed/queue', 'speed/data_wait'}
    assert set(found['validation']) == losses | {'AP/AP'}
    for run, factor in (('train', 1), ('validation', 2)):
        rows = json.loads(ask(server, 'plugin/scalars/scalars', run=run, tag='loss/loss_ll').decode())
        assert [row[1] for row in rows] == list(STEPS)
        np.testing.assert_allclose([row[2] for row in rows], [factor * 100.0 / step for step in STEPS], rtol=1e-6)

    query = {'run': 'validation', 'tag': 'pictures/validation', 'sample': 0}
    entries = wait_for(lambda: json.loads(ask(server, 'plugin/images/images', **query).decode()), 'no pictures')
    assert [entry['step'] for entry in entries] == list(STEPS)
    for entry in entries:
        picture = ask(server, 'plugin/images/individualImage', **dict(urllib.parse.parse_qsl(entry['query'])))
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape == (40, 60, 3) and (pixels == entry['step']).all()

    query = {'run': 'train', 'tag': 'run/flags'}
    text = wait_for(lambda: json.loads(ask(server, 'plugin/text/text', **query).decode()), 'no text')
    assert '<td>--max-steps</td>' in text[0]['text'].replace('\n', '') and 'mobilenet_thin' in text[0]['text']
    assert b'name: "output"' in ask(server, 'plugin/graphs/graph', run='train')


@pytest.mark.slow
def test_after_a_kill_the_points_up_to_the_checkpoint_stay(tmp_path):
    """As TensorBoard's Python reader, which knows starts of sessions, has them."""
    metrics = dict({name: 1.0 for name in LOSSES}, loss_ll_background=1.0, lr=0.1, examples_per_sec=1.0, queue=0,
                   data_wait=0.0)
    for first, steps in ((0, (10, 20, 27)), (20, (30,))):
        with RunLog(str(tmp_path), first, Schedule(10, 1000, True, 0)) as log:
            for step in steps:
                log.training(step, metrics)
        time.sleep(1.1)  # the names of event files have seconds
    reader = EventAccumulator(str(tmp_path / 'train'))
    reader.Reload()
    assert [event.step for event in reader.Scalars('loss/loss_ll')] == list(STEPS)
