"""Whether arrays that somebody may have written are annotations, before anything indexes with them."""
import numpy as np

from pose_coco import MAX_COORDINATE, MAX_SIDE


def fit_together(a, lines):
    """Whether arrays from a file are what they should be: types, shapes and values are as build_arrays makes them, and
    no index leads out of its array.

    Args:
        a: pose_annotations.Annotations.
        lines: texts for the log.
    Raises:
        anything, when they are not.
    """
    images, people, samples = len(a.image_id), len(a.joints), len(a.sample_image)
    boxes_of_samples = a.bbox[a.sample_person, 2:]
    return (all(_is(array, dtype, shape) for array, dtype, shape in (
                (a.image_id, np.int64, (images,)), (a.image_size, np.int32, (images, 2)),
                (a.joints, np.float32, (people, len(a.skeleton.parts), 2)), (a.bbox, np.float32, (people, 4)),
                (a.points, np.float32, (len(a.points), 2)), (a.spared, np.float32, (len(a.spared), 2)),
                (a.counts, np.uint32, (len(a.counts),)),
                (a.sample_image, np.int64, (samples,)), (a.sample_person, np.int64, (samples,))))
            and _are_names(a.file_name, images) and _are_names(lines, len(lines))
            and a.image_size.min() > 0 and a.image_size.max() <= MAX_SIDE
            and _are_starts(a.person_start, images, people)
            and all(_are_starts(starts, images, len(ranges)) and _are_ranges(ranges, len(owned), least)
                    for starts, ranges, owned, least in ((a.polygon_start, a.point_range, a.points, 3),
                                                         (a.spared_start, a.spared_range, a.spared, 3),
                                                         (a.run_start, a.count_range, a.counts, 1)))
            and _are_coordinates(a.joints[~np.isnan(a.joints).all(axis=2)]) and _are_coordinates(a.bbox)
            and _are_coordinates(a.points) and _are_coordinates(a.spared)
            and _fill_their_images(a) and boxes_of_samples.min() >= 1
            and 0 <= a.sample_image.min() and a.sample_image.max() < images
            and (a.person_start[a.sample_image] <= a.sample_person).all()
            and (a.sample_person < a.person_start[a.sample_image + 1]).all())


def _is(array, dtype, shape):
    return array.dtype == dtype and array.shape == shape


def _are_names(texts, count):
    """Whether an array has so many texts, none of them empty and none with a control character."""
    return (texts.dtype.kind == 'S' and texts.shape == (count,) and (texts != b'').all()
            and b''.join(texts.tolist()).decode().isprintable())


def _are_coordinates(values):
    # A derived box is wider than the keypoints in it, which may lie twice as far apart.
    with np.errstate(invalid='ignore'):
        return bool((np.abs(values) <= 3 * MAX_COORDINATE).all())  # false with a NaN


def _fill_their_images(a):
    """Whether the run lengths of each region add up to the pixels of its image."""
    sums = np.concatenate([[0], np.cumsum(a.counts, dtype=np.int64)])
    pixels = a.image_size.astype(np.int64).prod(axis=1).repeat(np.diff(a.run_start))
    return np.array_equal(sums[a.count_range[:, 1]] - sums[a.count_range[:, 0]], pixels)


def _are_starts(starts, owners, owned):
    """Whether things starts[i] .. starts[i + 1] of `owned` things can be those of owner i of `owners`."""
    return (starts.shape == (owners + 1,) and starts.dtype == np.int64 and starts[0] == 0 and starts[-1] == owned
            and (np.diff(starts) >= 0).all())


def _are_ranges(ranges, owned, least):
    """Whether each row of ranges is the first and the last (exclusive) of some, at least so many, of `owned` things."""
    return (_is(ranges, np.int64, (len(ranges), 2))
            and ((0 <= ranges[:, 0]) & (ranges[:, 0] + least <= ranges[:, 1]) & (ranges[:, 1] <= owned)).all())
