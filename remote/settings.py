"""What the trainer tells its data workers to make: the settings of a run, and whether they can be kept."""
import math

import pose_augment
import pose_batches
import pose_labels
import pose_order
import pose_skeleton
from pose_batches import MAX_ITEMS, batch_layout, product
from pose_cli import UserError
from pose_samples import check_input_size

MAX_SIDE, MAX_BATCHSIZE = 8192, 65536
MAX_SEED = 1 << 63
MAX_IMAGE_BYTES = 1 << 32  # of a batch
LIMITS = {'batchsize': MAX_BATCHSIZE, 'input_width': MAX_SIDE, 'input_height': MAX_SIDE, 'stride': MAX_SIDE}
NAMES = frozenset(LIMITS) | {'seed', 'augmentation', 'skeleton', 'category', 'definitions', 'negatives'}
# Bounds of augmentation's numbers: scales, degrees, pixels, a probability.
RANGE_LIMITS = {'scale': (1e-3, 1e3), 'angle': (-360, 360), 'offset': (-MAX_SIDE, MAX_SIDE)}


def definitions():
    """What must be the same in the code of trainer and worker: the constants of geometry, label maps and order."""
    return {'%s.%s' % (module.__name__, name): repr(value)
            for module in (pose_augment, pose_batches, pose_labels, pose_order)
            for name, value in sorted(vars(module).items())
            if name.isupper() and type(value) in (int, float, tuple)}


def check_settings(settings, sender='the trainer'):
    """Check settings, before memory is allocated by them.

    Args:
        settings: a dict that came from a trainer: nothing is known about what is in it.
        sender: who sent them, for the messages.
    Raises:
        UserError: out of range, or made by code that draws other samples.
    """
    if set(settings) != NAMES:
        raise UserError('%s sent other settings than this version of the code knows (%s); use the same version of the '
                        'code on both' % (sender, ', '.join(sorted('%.30s' % name for name in NAMES ^ set(settings)))))
    for name, limit in LIMITS.items():
        value = settings[name]
        if type(value) is not int or not 1 <= value <= limit:
            raise UserError('%s asks for %s=%.20r; it must be from 1 to %d' % (sender, name, value, limit))
    check_input_size(settings['input_width'], settings['input_height'], settings['stride'])
    skeleton = skeleton_of(settings)
    (_, _, image), *maps = batch_layout(*(settings[name] for name in
                                          ('batchsize', 'input_width', 'input_height', 'stride')), skeleton)
    if product(image) > MAX_IMAGE_BYTES or max(product(shape) for _, _, shape in maps) >= MAX_ITEMS:
        raise UserError('%s asks for batches of %d images of %dx%d, more than %d bytes or map values; take a smaller '
                        '--batchsize' % (sender, settings['batchsize'], settings['input_width'],
                                         settings['input_height'], MAX_IMAGE_BYTES))
    if type(settings['seed']) is not int or not 0 <= settings['seed'] < MAX_SEED:
        raise UserError('%s asks for seed=%.20r; it must be from 0 to %d' % (sender, settings['seed'], MAX_SEED - 1))
    if type(settings['negatives']) is not float or not 0 <= settings['negatives'] < 1:
        raise UserError('%s asks for negatives=%.20r; it must be from 0 to below 1' % (sender, settings['negatives']))
    augmentation_ranges(settings)
    theirs, ours = settings['definitions'], definitions()
    if theirs != ours:
        differing = [name for name, value in ours.items() if not isinstance(theirs, dict) or theirs.get(name) != value]
        raise UserError('trainer and worker make different samples (%s); use the same version of the code on both'
                        % ', '.join(differing or ['the trainer has more settings']))


def skeleton_of(settings):
    """The pose_skeleton.Skeleton among the settings that came from a trainer. Raises UserError."""
    if type(settings['skeleton']) is not str or type(settings['category']) is not str:
        raise UserError('the trainer sent no skeleton; is it the trainer of this project?')
    return pose_skeleton.from_json(settings['skeleton'], 'what the trainer sent')


def augmentation_ranges(settings):
    """The pose_augment.Ranges among the settings that came from a trainer. Raises UserError."""
    augmentation = settings['augmentation']
    if type(augmentation) is dict and set(augmentation) == set(pose_augment.Ranges._fields) \
            and all(_is_range(augmentation[name], *limits) for name, limits in RANGE_LIMITS.items()) \
            and _is_number(augmentation['flip_probability'], 0, 1):
        return pose_augment.Ranges(**augmentation)
    raise UserError('the trainer sent augmentation=%.100r; is it the trainer of this project?' % (augmentation,))


def _is_range(value, least, most):
    return (type(value) in (list, tuple) and len(value) == 2 and all(_is_number(end, least, most) for end in value)
            and value[0] <= value[1])


def _is_number(value, least, most):
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most
