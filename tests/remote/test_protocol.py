"""The wire's messages, batches and settings: what is right survives, everything else is refused, and cheaply."""
import time

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from annotations.skeleton import COCO_SKELETON
from batches.batch import batch_layout, encode_batch
from pose_errors import UserError
from remote import protocol
from remote.protocol import BadMessage, OtherVersion, augmentation_ranges, check_settings, pack, unpack_from_trainer, \
    unpack_from_worker
from wire_ends import DATA, GOOD_SETTINGS, RANGES, SETTINGS, assert_same, header_of, made_up_batch

FROM_WORKER = [pack('hello', name='node1:4242'), pack('ready', samples=262465, data=DATA), pack('pong'), pack('bye')]
FROM_TRAINER = [pack('welcome', settings={'batchsize': 64, 'augmentation': {'scale': [0.5, 1.1]}}), pack('ping'),
                pack('credit', batches=[0, 5, protocol.MAX_NUMBER - 1]), pack('end'), pack('refused', reason='why')]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2 ** 63, 2 ** 64 - 1) | st.floats() | st.text(max_size=50)
    | st.binary(max_size=50), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5)


def test_messages_arrive():
    for data, unpack in [(data, unpack_from_worker) for data in FROM_WORKER] + [
            (data, unpack_from_trainer) for data in FROM_TRAINER]:
        assert unpack(data) == msgpack.unpackb(data, raw=False)
    for data, unpack in [(FROM_WORKER[0], unpack_from_trainer), (FROM_TRAINER[1], unpack_from_worker)]:
        with pytest.raises(BadMessage, match='not expected here'):
            unpack(data)


WRONG_OF_WORKERS = [
    ('hello', {}), ('hello', {'name': ''}), ('hello', {'name': 'x' * 101}), ('hello', {'name': 'a\nb'}),
    ('hello', {'name': b'x'}), ('hello', {'name': 'x', 'more': 1}), ('ready', {'samples': 5}),
    ('ready', {'samples': 0, 'data': DATA}), ('ready', {'samples': True, 'data': DATA}),
    ('ready', {'samples': 1 << 31, 'data': DATA}), ('ready', {'samples': 5, 'data': DATA[1:]}), ('bye', {'x': 1})]
WRONG_OF_TRAINERS = [
    ('welcome', {}), ('welcome', {'settings': []}), ('welcome', {'settings': None}), ('credit', {}), ('news', {}),
    ('refused', {'reason': 5}), ('end', {'x': 1})] + [('credit', {'batches': batches}) for batches in (
        None, 'x', [], [-1], [1 << 62], [protocol.MAX_NUMBER], ['1'], [True], list(range(17)), {'a': 1}, 3)]
NO_HEADERS = [b'', b'\x80', b'\x91' * 500, b'\x81\xa1a' * 150, b'\xc1', pack('bye') + b'x',
              msgpack.packb({'version': [], 'type': 'bye'}), msgpack.packb({'type': 'bye'}),
              msgpack.packb({'version': protocol.VERSION, 'type': 'bye', 'x' * 600: 1})]


@pytest.mark.parametrize('unpack, wrong', [(unpack_from_worker, WRONG_OF_WORKERS),
                                           (unpack_from_trainer, WRONG_OF_TRAINERS)])
def test_wrong_messages_are_refused_and_other_versions_told_apart(unpack, wrong):
    for data in [pack(kind, **fields) for kind, fields in wrong] + NO_HEADERS:
        with pytest.raises(BadMessage):
            unpack(data)
            pytest.fail('%r was taken' % data)
    with pytest.raises(OtherVersion, match='version %d of the wire' % (protocol.VERSION + 1)):
        unpack(msgpack.packb({'version': protocol.VERSION + 1, 'type': 'hello', 'new': 1}))


def test_the_costliest_message_costs_little_more_than_an_honest_one():
    """Lists, maps in maps, many small fields: a header of 16 kB once took a thousand times as long."""
    costly = [b'\xdc\x01\xf0' + b'\x80' * 496, b'\xdc\x3f\xf0' + b'\x80' * 16368, b'\x81\xa1a' * 170, b'\x91' * 512,
              b'\xde\x00\xa5' + b'\xa1a\x01' * 165, b'\x84' + b'\xa1a\xdc\x00\x70' + b'\x80' * 112, b'\x81' * 512]

    def seconds(data):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            try:
                unpack_from_worker(data)
            except BadMessage:
                pass
            times.append(time.perf_counter() - start)
        return min(times)

    honest = seconds(FROM_WORKER[1])
    assert max(seconds(data) / honest for data in costly) < 5


@pytest.mark.slow
@seed(1)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_headers_are_right_or_refused(data):
    packed = data.draw(st.sampled_from(FROM_WORKER + FROM_TRAINER))
    header = bytearray(packed)
    changes = st.tuples(st.integers(0, len(header) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(changes, max_size=4)):
        header[place] = value
    header = bytes(header[:data.draw(st.integers(0, len(header)))]) + data.draw(st.binary(max_size=4))
    changed = dict(msgpack.unpackb(packed, raw=False))
    changed[data.draw(st.sampled_from(sorted(changed)) | st.text(max_size=8))] = data.draw(VALUES)
    for message in (header, msgpack.packb(changed)):
        for unpack, kinds in ((unpack_from_worker, protocol.FROM_WORKER), (unpack_from_trainer, protocol.FROM_TRAINER)):
            try:
                result = unpack(message)
            except BadMessage:
                continue
            fields = kinds[result['type']]
            assert result['version'] == protocol.VERSION and set(result) == {'version', 'type'} | set(fields)
            assert all(type(result[name]) is kind and is_right(result[name])
                       for name, (kind, is_right) in fields.items())


@pytest.mark.parametrize('width, height, stride, people',
                         [(64, 48, 8, 2), (368, 368, 8, 3), (64, 96, 4, 40), (368, 368, 4, 0)])
def test_batches_survive_the_wire(width, height, stride, people):
    settings = dict(SETTINGS, input_width=width, input_height=height, stride=stride)
    layout = batch_layout(2, width, height, stride, COCO_SKELETON)
    batch = made_up_batch(0, settings, people)
    frames = [array.tobytes() for array in batch]
    assert max(len(frame) for frame in frames) <= protocol.max_sizes(layout)[0]
    protocol.check_frames(header_of(batch), frames, layout)
    assert_same(batch, protocol.read_batch(frames, layout))


@pytest.mark.parametrize('stride', [4, 8])
def test_the_largest_frame_is_that_of_full_maps(stride):
    layout = batch_layout(1, 256, 256, stride, COCO_SKELETON)
    cells = (1, 256 // stride, 256 // stride)
    heatmap, paf, mask = (np.full(cells + (channels,), 0.5, np.float32) for channels in (19, 38, 1))
    batch = encode_batch(np.zeros((1, 256, 256, 3), np.uint8), heatmap, paf, mask)
    assert protocol.max_sizes(layout)[0] == max(array.nbytes for array in batch) + protocol.CURVE_OVERHEAD


def test_a_sample_of_three_people_takes_at_most_450_000_bytes():
    batch = made_up_batch(1, dict(SETTINGS, batchsize=8, input_width=368, input_height=368), people=3)
    assert sum(array.nbytes for array in batch) + len(header_of(batch)) <= 8 * 450000


@pytest.mark.parametrize('change, mention', [
    ({'batchsize': 10 ** 9}, 'batchsize'), ({'input_width': '64'}, 'input_width'), ({'stride': 7}, 'stride'),
    ({'seed': None}, 'seed'), ({'seed': 1 << 63}, 'seed'), ({'stride': 0}, 'stride'),
    ({'skeleton': '{}'}, 'skeleton'), ({'skeleton': None}, 'skeleton'), ({'skeleton': '[' * 10000}, 'skeleton'),
    ({'skeleton': COCO_SKELETON.to_json().replace('0.026', '1' + '0' * 400)}, 'skeleton'),
    ({'category': 5}, 'skeleton'), ({'new': 1}, 'new'),
    ({'batchsize': 65536, 'input_width': 8192, 'input_height': 8192, 'stride': 8192}, '65536 images of 8192x8192'),
    ({'batchsize': 65536, 'input_width': 368, 'input_height': 368}, '65536 images of 368x368'),
    ({'augmentation': {'scale': [1, 2]}}, 'augmentation'), ({'augmentation': [1]}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[2, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=['1', '2'])}, 'augmentation'),
    ({'augmentation': dict(RANGES, scale=[1e-300, 1])}, 'augmentation'),
    ({'augmentation': dict(RANGES, offset=[0, 1e300])}, 'augmentation'),
    ({'augmentation': dict(RANGES, flip_probability=2)}, 'augmentation'),
    ({'augmentation': dict(RANGES, angle=[0, float('nan')])}, 'augmentation'),
    ({'augmentation': dict(RANGES, jpeg=1.5)}, 'augmentation'),
    ({'augmentation': dict(RANGES, patches=10 ** 9)}, 'augmentation'),
    ({'augmentation': dict(RANGES, log_scale=1)}, 'augmentation'),
    ({'code': []}, 'same version'), ({'code': '0' * 12}, 'same version'), ({'sequence': None}, 'sequence'),
    ({'sequence': [[[4, 2]], 9]}, 'sequence'), ({'sequence': [[[2, 4.5]], 9]}, 'sequence'),
    ({'sequence': [[[2, 4]] * 2000, 9]}, 'sequence'), ({'sequence': [[], 1 << 70]}, 'sequence')])
def test_a_worker_refuses_settings_that_it_cannot_keep(change, mention):
    check_settings(GOOD_SETTINGS)
    assert augmentation_ranges(GOOD_SETTINGS)._asdict() == RANGES
    with pytest.raises(UserError) as error:
        check_settings(dict(GOOD_SETTINGS, **change))
    assert mention in str(error.value)


def test_any_value_in_any_setting_is_kept_or_refused_and_none_may_lack():
    rng = np.random.RandomState(0)
    values = [None, True, -1, 0, 1 << 62, 1.5, float('inf'), '', 'x' * 1000, b'\xff', [], [[]], {}, {'scale': []}]
    for name in GOOD_SETTINGS:
        with pytest.raises(UserError, match=name):
            check_settings({key: value for key, value in GOOD_SETTINGS.items() if key != name})
        for value in values:
            try:
                check_settings(dict(GOOD_SETTINGS, **{name: value}))
            except UserError as error:
                assert len(str(error)) < 600
    for _ in range(200):
        changes = {name: values[rng.randint(len(values))] for name in rng.choice(sorted(GOOD_SETTINGS), 3)}
        with pytest.raises(UserError):
            check_settings(dict(GOOD_SETTINGS, **dict(changes, new=0)))
