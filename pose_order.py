"""Which sample comes when: one endless row of positions, the same for everybody who has the seed.

Position k shows sample permutation(epoch)[k % samples] of its epoch k // samples, augmented with random numbers from
[seed, k]. Batch b holds the positions b * batchsize ... (b + 1) * batchsize - 1. So a batch is known by its number: any
process on any machine can make it, and make it again, and a run that is resumed goes on where it was.
"""
import collections

import numpy as np

KEPT_EPOCHS = 2  # a batch may begin in one epoch and end in the next
PERMUTATION, AUGMENTATION, REPLACEMENT = 0, 1, 2  # what random numbers are for


class SampleOrder:
    """The row of samples.

    Args:
        samples: of the data set, at least 1.
        seed: a whole number, at least 0.
    """

    def __init__(self, samples, seed):
        self._samples, self._seed = samples, seed
        self._permutations = collections.OrderedDict()

    def index(self, position):
        """The number of the sample at a position."""
        epoch, k = divmod(position, self._samples)
        if epoch not in self._permutations:
            self._permutations[epoch] = self._rng(PERMUTATION, epoch).permutation(self._samples)
            if len(self._permutations) > KEPT_EPOCHS:
                self._permutations.popitem(last=False)
        return int(self._permutations[epoch][k])

    def draws(self, position):
        """Endless (sample number, RandomState for its augmentation): what belongs at the position, then what takes its
        place, one after the other, when that sample cannot be used."""
        yield self.index(position), self._rng(AUGMENTATION, position)
        replacements = self._rng(REPLACEMENT, position)
        while True:
            yield replacements.randint(self._samples), replacements

    def _rng(self, purpose, number):
        words = [self._seed, number]
        return np.random.RandomState([purpose] + [word >> shift & 0xffffffff for word in words for shift in (0, 32)])


def batch_positions(number, batchsize, share=0, shares=1):
    """The positions of batch `number`, or those of one share of it.

    Args:
        batchsize: samples of a share.
        share, shares: batches of shares * batchsize samples, of which this is part number `share`, counted from 0.
    """
    first = (number * shares + share) * batchsize
    return range(first, first + batchsize)
