"""The flags of an update: what they leave open, and how they contradict each other."""
import types

import pytest

from pose_errors import UserError
from training import config


def flags_with(**given):
    names = 'lr warmup_steps optimizer momentum weight_decay augment negatives clip_norm'.split()
    defaults = dict(dict.fromkeys(names), model='cmu', recipe='default', accumulate=1, batchsize=10,
                    precision='float32', backbone_lr=1.0, freeze_batch_norm=False, ema=0.0, teacher=None)
    return types.SimpleNamespace(**dict(defaults, **given))


def test_a_recipe_fills_in_what_the_flags_leave_open():
    flags = flags_with()
    config.complete_flags(flags)
    assert (flags.optimizer, flags.lr, flags.weight_decay) == ('adam', [0.001], 0)
    assert flags.warmup_steps == config.WARMUP_STEPS and not config.recipe_of(flags).factors
    flags = flags_with(recipe='paper', weight_decay=0.01, accumulate=2)
    config.complete_flags(flags)
    assert (flags.optimizer, flags.lr, flags.momentum, flags.warmup_steps) == ('sgd', [4e-5], 0.9, 0)
    recipe = config.recipe_of(flags)
    assert recipe.weight_decay == 0.01 and recipe.factors and recipe.decay_steps == 136106 // 2


def test_the_backbone_is_what_comes_from_the_networks_pretrained_file():
    flags = flags_with(model='mobilenet_thin', backbone_lr=0.1)
    config.complete_flags(flags)
    recipe = config.recipe_of(flags)
    assert (recipe.backbone_rate, recipe.backbone) == (0.1, ('MobilenetV1/',))


@pytest.mark.parametrize('given, mentions', [
    ({'backbone_lr': 0.1}, ['--backbone-lr', 'cmu', '--lr']),
    ({'recipe': 'paper', 'model': 'mobilenet_thin'}, ['--recipe=paper', 'cmu', 'mobilenet_thin']),
    ({'recipe': 'paper', 'optimizer': 'adam'}, ['--recipe', '--optimizer=sgd']),
    ({'momentum': 0.5}, ['--momentum', '--optimizer=sgd']),
    ({'momentum': 0.5, 'optimizer': 'adam'}, ['--momentum', '--optimizer=sgd'])])
def test_flags_that_contradict_each_other(given, mentions):
    with pytest.raises(UserError) as caught:
        config.complete_flags(flags_with(**given))
    for mention in mentions:
        assert mention in str(caught.value)
