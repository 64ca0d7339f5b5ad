"""Samples from real JPEG files: geometry end to end, odd and broken images, and how bad samples are counted."""
import colorsys
import io
import json
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest


from annotations.skeleton import COCO_SKELETON
from image_folders import HEIGHT, WIDTH, grey_image, jpeg, keypoints, many_images, write_coco
from pose_augment import reduced_matrix, warp_image
from pose_dataset import BadSample, BadSampleCounter, PoseDataset, check_input_size, read_image, training_samples, validation_samples
from pose_errors import UserError

# ---------------------------------------------------------------------------------------------------------- geometry

# The COCO index of each of the 18 parts, as the COCO-18 order has them; the neck is the middle of the shoulders.
COCO_INDEX = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
COLOURS = np.array([[255 * c for c in colorsys.hsv_to_rgb(k / 18, 1, 1 if k % 2 else 0.75)] for k in range(18)])


@pytest.fixture(scope='module')
def dots(tmp_path_factory):
    """One person whose 18 joints are dots of 18 colours, far from each other."""
    rng = np.random.RandomState(3)
    places = np.array([(x, y) for y in range(110, 380, 52) for x in range(200, 440, 62)])
    points = dict(zip([k for k in range(17) if k not in (5, 6)], rng.permutation(places[4:])[:15].tolist()))
    points[5], points[6] = places[0].tolist(), (places[2] + (0, 8)).tolist()  # the neck is between them
    image = grey_image()
    for part, index in enumerate(COCO_INDEX):
        x, y = points[index] if index is not None else (np.array(points[5]) + points[6]) / 2
        cv2.circle(image, (int(x * 16), int(y * 16)), 11 * 16, COLOURS[part].tolist(), -1, cv2.LINE_AA, 4)
    values = [value for k in range(17) for value in (*points[k], 2)]
    return write_coco(tmp_path_factory.mktemp('dots'), {'dots.jpg': image}, [('dots.jpg', values, [180, 90, 270, 300])])


def find_dot(image, part):
    """The centre of the dot in a part's colour, or None; only the strongest blob is looked at."""
    blob = cv2.inRange(image, COLOURS[part] - 35, COLOURS[part] + 35)
    count, _, stats, centres = cv2.connectedComponentsWithStats(blob)
    if count < 2:
        return None
    largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return centres[largest] if stats[largest, cv2.CC_STAT_AREA] >= 5 else None


@pytest.mark.parametrize('width, height, stride', [(368, 368, 8), (240, 176, 4)])
def test_every_dot_is_where_its_joint_says(dots, width, height, stride):
    dataset = PoseDataset(str(dots), 'train2017', width, height, stride)
    rng = np.random.RandomState(0)
    found, flips = 0, 0
    for _ in range(40):
        sample = dataset.training_sample(0, rng)
        radius = 11 * 0.6 * height / 300 * sample.augmentation.scale
        flips += sample.augmentation.flip
        for part, joint in enumerate(sample.joints[0]):
            if (joint < radius + 1).any() or (joint > (width - radius - 2, height - radius - 2)).any():
                continue
            # What is the right elbow in a mirrored picture was painted as the left one.
            painted = list(COCO_SKELETON.flip_order)[part] if sample.augmentation.flip else part
            centre = find_dot(sample.image, painted)
            assert centre is not None, (part, joint, sample.augmentation)
            assert np.linalg.norm(centre - joint) <= 1.5, (part, joint, centre, sample.augmentation)
            x, y = np.round((joint - (stride / 2 - 0.5)) / stride).astype(int)
            if 0 <= x < width // stride and 0 <= y < height // stride:
                assert sample.heatmap[..., part].max() == sample.heatmap[y, x, part] > 0.6
            found += 1
    assert found > 350 and 10 < flips < 30


def test_pafs_point_from_joint_to_joint_also_when_flipped(dots):
    dataset = PoseDataset(str(dots), 'train2017', 368, 368, 8)
    rng = np.random.RandomState(1)
    checked = 0
    for _ in range(20):
        sample = dataset.training_sample(0, rng)
        for limb, (first, second) in enumerate(COCO_SKELETON.limbs):
            start, end = sample.joints[0, first], sample.joints[0, second]
            x, y = np.round((start + end) / 2 / 8).astype(int)
            if 0 <= x < 46 and 0 <= y < 46:
                direction = (end - start) / np.linalg.norm(end - start)
                np.testing.assert_allclose(sample.paf[y, x, 2 * limb:2 * limb + 2], direction, atol=1e-5)
                checked += 1
    assert checked > 200


def test_validation_fits_the_whole_image(dots):
    shutil.copytree(str(dots / 'train2017'), str(dots / 'val2017'))
    shutil.copy(str(dots / 'annotations/person_keypoints_train2017.json'),
                str(dots / 'annotations/person_keypoints_val2017.json'))
    dataset = PoseDataset(str(dots), 'val2017', 368, 368, 8)
    sample = dataset.validation_sample(0)
    again = dataset.validation_sample(0)
    assert all(np.array_equal(a, b) for a, b in zip(sample[:4], again[:4])) and sample.augmentation is None
    assert (sample.image[:40] == 128).all() and (sample.image[60:300, :10] < 100).all()  # centred, grey above
    for part, joint in enumerate(sample.joints[0]):
        assert np.linalg.norm(find_dot(sample.image, part) - joint) <= 1.5


def test_the_mask_moves_with_the_image(tmp_path):
    """A bright region that is also a segmentation: mask and picture agree to a cell, whatever the augmentation."""
    image = grey_image(20)
    polygon = [320, 60, 560, 140, 500, 420, 300, 300]
    cv2.fillPoly(image, [np.array(polygon).reshape(-1, 2)], (255, 255, 255))
    write_coco(tmp_path, {'a.jpg': image}, [('a.jpg', keypoints(), [230, 80, 150, 300])])
    file = tmp_path / 'annotations' / 'person_keypoints_train2017.json'
    contents = json.loads(file.read_text())
    contents['annotations'].append({'id': 9, 'image_id': 1, 'iscrowd': 0, 'num_keypoints': 0, 'category_id': 1,
                                    'segmentation': [polygon]})
    # Without an outline the whole box of the labelled person would be labelled.
    contents['annotations'][0]['segmentation'] = [[230, 80, 240, 80, 240, 90]]
    file.write_text(json.dumps(contents))
    dataset = PoseDataset(str(tmp_path), 'train2017', 256, 256, 8)
    rng = np.random.RandomState(0)
    for _ in range(25):
        sample = dataset.training_sample(0, rng)
        white, not_dark = (cv2.inRange(sample.image[:, :, 0], least, 255) // 255 for least in (192, 64))
        cell = np.ones((17, 17), np.uint8)  # a cell to each side
        surely_in, surely_out = cv2.erode(white, cell), 1 - cv2.dilate(not_dark, cell)
        mask = sample.mask[:, :, 0].repeat(8, axis=0).repeat(8, axis=1)
        assert (mask[surely_in == 1] == 0).all() and (mask[surely_out == 1] == 1).all()
    assert 0.1 < sample.mask.mean() < 1


def test_downscaling_a_checkerboard_gives_grey(tmp_path):
    rows, columns = np.indices((HEIGHT, WIDTH))
    board = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    png = cv2.imencode('.png', board)[1].tobytes()
    for name, content in (('a.jpg', jpeg(board, 100)), ('b.jpg', png)):
        path = str(tmp_path / name)
        with open(path, 'wb') as file:
            file.write(content)
        for scale in (0.3, 0.2, 0.5, 0.1):
            matrix = np.array([[scale, 0, 0], [0, scale, 0]])
            pixels, reduction = read_image(path, (WIDTH, HEIGHT), scale)
            warped = warp_image(pixels, reduced_matrix(matrix, reduction), int(WIDTH * scale), int(HEIGHT * scale))
            assert np.abs(warped[2:-2, 2:-2].astype(float) - 127.5).max() < 12.75


# ------------------------------------------------------------------------------------------- odd and broken images

def exif_rotated(data):
    """The JPEG with an EXIF header that asks viewers to turn it by 90 degrees."""
    entry = b'\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00'  # orientation: 6
    tiff = b'MM\x00*\x00\x00\x00\x08' + b'\x00\x01' + entry + b'\x00\x00\x00\x00'
    body = b'Exif\x00\x00' + tiff
    return data[:2] + b'\xff\xe1' + (len(body) + 2).to_bytes(2, 'big') + body + data[2:]


def cmyk(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[:, :, ::-1]).convert('CMYK').save(buffer, 'JPEG', quality=95)
    return buffer.getvalue()


def landmark_image():
    """Blue above, red below, a white square at the left."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:240], image[240:], image[200:280, :80] = (200, 40, 40), (40, 40, 200), 255
    return image


ODD_FILES = {
    'png': lambda image: cv2.imencode('.png', image)[1].tobytes(),
    'png_with_alpha': lambda image: cv2.imencode('.png', np.dstack([image, image[:, :, 0]]))[1].tobytes(),
    'png_16_bit': lambda image: cv2.imencode('.png', image.astype(np.uint16) * 257)[1].tobytes(),
    'exif_rotated': lambda image: exif_rotated(jpeg(image)), 'cmyk': cmyk,
    'garbage_at_the_end': lambda image: jpeg(image) + b'\x00' * 1000,
}


@pytest.mark.parametrize('kind', sorted(ODD_FILES))
def test_odd_images_are_read_as_stored(kind, tmp_path):
    image = landmark_image()
    if kind == 'exif_rotated':  # the file does ask to be rotated
        turned = cv2.imdecode(np.frombuffer(exif_rotated(jpeg(image)), np.uint8), cv2.IMREAD_COLOR)
        assert turned.shape[:2] == (WIDTH, HEIGHT)
    (tmp_path / 'a.jpg').write_bytes(ODD_FILES[kind](image))
    for scale, reduction in ((1.0, 1), (0.3, 4)):
        pixels, used = read_image(str(tmp_path / 'a.jpg'), (WIDTH, HEIGHT), scale)
        assert used == reduction and pixels.dtype == np.uint8
        assert pixels.shape == (HEIGHT // reduction, WIDTH // reduction, 3)
        for x, y, colour in ((400, 60, (200, 40, 40)), (400, 420, (40, 40, 200)), (30, 240, (255, 255, 255))):
            assert np.abs(pixels[y // reduction, x // reduction].astype(int) - colour).max() < 12


def test_greyscale_becomes_three_channels(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(jpeg(landmark_image()[:, :, 0]))
    pixels, _ = read_image(str(tmp_path / 'a.jpg'), (WIDTH, HEIGHT), 1)
    assert pixels.shape == (HEIGHT, WIDTH, 3) and (pixels[:, :, 0] == pixels[:, :, 2]).all()


def test_odd_sizes_survive_reduced_decoding(tmp_path):
    for width, height in ((639, 425), (17, 481), (9, 9)):
        for name, content in (('a.jpg', jpeg(np.zeros((height, width, 3), np.uint8))),
                              ('b.jpg', cv2.imencode('.png', np.zeros((height, width, 3), np.uint8))[1].tobytes())):
            (tmp_path / name).write_bytes(content)
            for scale in (1, 0.6, 0.3, 0.1):
                pixels, reduction = read_image(str(tmp_path / name), (width, height), scale)
                assert abs(pixels.shape[1] * reduction - width) < reduction


BAD_FILES = {
    'missing': (None, 'No such file'), 'empty': (b'', 'is empty'),
    'truncated': (jpeg(landmark_image())[:-600], 'truncated'),
    'half': (jpeg(landmark_image())[:3000], 'truncated'), 'text': (b'<html>404</html>', 'not an image'),
    'jpeg_start_only': (b'\xff\xd8', 'truncated'), 'broken_header': (b'\xff\xd8\xff\xd9', 'not an image'),
    'zeros': (bytes(5000), 'not an image'), 'other_size': (jpeg(landmark_image()[:400]), 'not of the size 640x480'),
    'turned': (jpeg(landmark_image().transpose(1, 0, 2)), 'not of the size')}


@pytest.mark.parametrize('kind', sorted(BAD_FILES))
@pytest.mark.parametrize('scale', [1.0, 0.2])
def test_bad_images_are_bad_samples(kind, scale, tmp_path):
    content, reason = BAD_FILES[kind]
    if content is not None:
        (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(BadSample, match=reason) as error:
        read_image(str(tmp_path / 'a.jpg'), (WIDTH, HEIGHT), scale)
    assert error.value.path == str(tmp_path / 'a.jpg')


def test_a_folder_in_place_of_an_image(tmp_path):
    with pytest.raises(BadSample):
        read_image(str(tmp_path), (WIDTH, HEIGHT), 1)


# ------------------------------------------------------------------------------------------------- passes over samples

def test_bad_samples_are_skipped_in_both_kinds_of_passes(tmp_path, caplog):
    dataset = PoseDataset(str(many_images(tmp_path, 18, 2)), 'train2017', 64, 64, 8)
    counter, rng = BadSampleCounter(len(dataset)), np.random.RandomState(0)
    names = [[sample.name for sample in training_samples(dataset, rng, counter)] for _ in range(2)]
    assert names[0] != names[1] and all(sorted(epoch) == ['%03d.jpg' % i for i in range(18)] for epoch in names)
    assert (counter.bad, counter.attempts) == (4, 40)
    assert sum('skipped' in record.getMessage() for record in caplog.records) == 2  # one counter names each file once
    samples = list(validation_samples(dataset))
    assert [sample.name for sample in samples] == ['%03d.jpg' % i for i in range(18)]
    assert all(sample.augmentation is None for sample in samples)


def test_the_same_seed_gives_the_same_samples(sample_coco):
    dataset = PoseDataset(str(sample_coco), 'train2017', 96, 64, 8)
    one, same, other = (list(training_samples(dataset, np.random.RandomState(seed))) for seed in (1, 1, 2))
    assert len(one) == len(dataset) > 10
    assert all(a.name == b.name and a.augmentation == b.augmentation for a, b in zip(one, same))
    assert [sample.augmentation for sample in one] != [sample.augmentation for sample in other]


def test_too_many_bad_validation_images_end_the_pass(tmp_path):
    dataset = PoseDataset(str(many_images(tmp_path, 14, 6)), 'train2017', 64, 64, 8)
    with pytest.raises(UserError, match=r'\d+ of 20 samples were bad .*truncated JPEG.*repair'):
        list(validation_samples(dataset))


def test_counter():
    counter = BadSampleCounter(1000)
    for i in range(20):
        counter.add_good(4)
        counter.add_bad('a%d' % i, 'is bad')
    with pytest.raises(UserError, match=r'21 of 101 samples were bad \(last: b is bad\)'):
        counter.add_bad('b', 'is bad')
    counter = BadSampleCounter(1000)
    for _ in range(99):
        counter.add_bad('a', 'is bad')
    with pytest.raises(UserError, match='100 of 100'):
        counter.add_bad('a', 'is bad')


def test_input_size_must_fit_the_stride():
    check_input_size(368, 432, 8)
    with pytest.raises(UserError, match='--input-height=100 is not a multiple of the output stride 8; take 96 or 104'):
        check_input_size(368, 100, 8)
    with pytest.raises(UserError, match='^--input-size=368x100: 100 is not a multiple of .* stride 8; take 96 or 104$'):
        check_input_size(368, 100, 8, '--input-size')


def test_negatives_are_their_share_of_the_samples_from_images_without_people(tmp_path):
    """12 people; the images without are of other greys, one is not in the folder."""
    images = {'%02d.jpg' % k: grey_image(60) for k in range(12)}
    people = [(name, keypoints(), [230, 80, 150, 300]) for name in images]
    images.update(('empty%d.jpg' % k, grey_image(200 + 10 * k)) for k in range(4))
    folder = write_coco(tmp_path, images, people)
    (folder / 'train2017' / 'empty3.jpg').unlink()
    assert len(PoseDataset(str(folder), 'train2017', 64, 64, 8)) == 12
    dataset = PoseDataset(str(folder), 'train2017', 64, 64, 8, negatives=0.25)
    assert len(dataset) == 16 and len(dataset.validation_images) == 12
    rng = np.random.RandomState(0)
    samples = [dataset.training_sample(index, rng) for index in list(range(16)) + 8 * [12, 13, 14, 15]]
    assert not any('empty' in sample.name for sample in samples[:12])
    negatives = samples[12:]
    assert {sample.name for sample in negatives} == {'empty0.jpg', 'empty1.jpg', 'empty2.jpg'}
    for sample in negatives:
        assert not sample.paf.any() and not sample.heatmap[..., :18].any() and (sample.heatmap[..., 18] == 1).all()
        assert (sample.mask == 1).all()
        assert (np.abs(sample.image.astype(int) - 200 - 10 * int(sample.name[5])) < 3).any()  # a part of that image


def test_negatives_without_such_images_are_refused(dots):
    with pytest.raises(UserError, match='--negatives=0.5, but .*person_keypoints_train2017.json lists no image'):
        PoseDataset(str(dots), 'train2017', 64, 64, 8, negatives=0.5)
