"""Which sample comes when. batch.py has the form of a batch, loader.py the processes that make batches.

All samples are one endless sequence of positions, the same for everybody who has the seed: position k shows sample
permutation(epoch)[k % samples] of its epoch k // samples, augmented with random numbers from [seed, k]. A run trains
what is left of it (a Sequence): batch b holds the items b * batchsize ... (b + 1) * batchsize - 1. So a batch is known
by its number: any process on any machine can make it, and make it again. A run that is resumed, with whatever batch
size, trains each position that was not trained before, once.
"""
import collections
import functools
import logging

import numpy as np

MAX_GAPS = 1000  # of a sequence that data workers take
KEPT_EPOCHS = 2  # a batch may begin in one epoch and end in the next
PERMUTATION, AUGMENTATION, REPLACEMENT = 0, 1, 2  # what random numbers are for

# The positions that are left: gaps ((start, stop), ...), rising, of those that were skipped, then all from `next` on.
Sequence = collections.namedtuple('Sequence', 'gaps next')
START = Sequence((), 0)


class SampleOrder:
    """The sequence of samples. samples: of the data set, at least 1.  seed: a whole number, at least 0."""

    def __init__(self, samples, seed):
        self._samples, self._seed = samples, seed
        self._permutation = functools.lru_cache(KEPT_EPOCHS)(
            lambda epoch: self._rng(PERMUTATION, epoch).permutation(samples))

    def index(self, position):
        """The number of the sample at a position."""
        epoch, k = divmod(position, self._samples)
        return int(self._permutation(epoch)[k])

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


def batch_positions(number, batchsize, shard=0, num_shards=1, sequence=START):
    """The positions of shard number `shard`, from 0, of batch `number`, as a list. Batches hold num_shards * batchsize
    samples; batch 0 begins the sequence."""
    first = (number * num_shards + shard) * batchsize
    return [position for start, stop in _ranges(sequence, first, first + batchsize) for position in range(start, stop)]


def _ranges(sequence, first, last):
    """Items first .. last - 1 of a sequence as ranges [(start, stop)] of positions."""
    ranges, items = [], 0
    for start, stop in sequence.gaps:
        low, high = max(first - items, 0), min(last - items, stop - start)
        if low < high:
            ranges.append((start + low, start + high))
        items += stop - start
    if last > items:
        ranges.append((sequence.next + max(first - items, 0), sequence.next + last - items))
    return ranges


def remaining(sequence, batchsize, numbers):
    """The Sequence that is left of another one when the batches of these numbers, in any order, have been trained."""
    numbers = np.unique(np.array(list(numbers), np.int64))
    top = int(numbers[-1]) + 1 if len(numbers) else 0
    in_gaps = sum(stop - start for start, stop in sequence.gaps)
    ranges = [each for number in np.setdiff1d(np.arange(top), numbers).tolist()
              for each in _ranges(sequence, number * batchsize, (number + 1) * batchsize)]
    ranges += _ranges(sequence, top * batchsize, in_gaps)
    gaps = []
    for start, stop in ranges:
        if gaps and gaps[-1][1] == start:
            start = gaps.pop()[0]
        gaps.append((start, stop))
    return Sequence(tuple(gaps), sequence.next + max(top * batchsize - in_gaps, 0))


def samples_done(sequence):
    """How many samples have been trained before a sequence."""
    return sequence.next - sum(stop - start for start, stop in sequence.gaps)


def shortened(sequence):
    """The same Sequence with at most MAX_GAPS gaps, as data workers take it: the first ones, with a line in the log."""
    lost = sequence.gaps[MAX_GAPS:]
    if lost:
        logging.warning('%d samples that data workers had not delivered are left out',
                        sum(stop - start for start, stop in lost))
    return sequence._replace(gaps=sequence.gaps[:MAX_GAPS])


def compressed(numbers, first, every):
    """Numbers first, first + every, ... in any order, some missing, as a small dict for JSON; see expanded."""
    top = max(numbers, default=first - every) + every
    return {'first': first, 'top': top, 'missing': sorted(set(range(first, top, every)) - set(numbers))}


def expanded(numbers, every):
    """The inverse of compressed."""
    return sorted(set(range(numbers['first'], numbers['top'], every)) - set(numbers['missing']))
