"""The sequence of samples: each once an epoch, the same for everybody, numbers that no two positions share."""
import numpy as np
import pytest

from batches import START, SampleOrder, Sequence, batch_positions, remaining, samples_done


@pytest.mark.parametrize('samples', [1, 3, 7, 100])
def test_each_epoch_shows_each_sample_once_in_its_own_order(samples):
    order = SampleOrder(samples, 5)
    epochs = [[order.index(epoch * samples + k) for k in range(samples)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    if samples > 6:
        assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(samples))


def test_seeds_and_positions_draw_their_own_numbers():
    numbers = [next(SampleOrder(10, seed).draws(position))[1].uniform()
               for seed in (0, 1, 1 << 32, 10 ** 15) for position in (0, 1, 9, 10, 1 << 32, 1 << 40)]
    assert len(set(numbers)) == len(numbers)


def test_replacements_follow_from_the_position_too():
    def rows():
        draws = SampleOrder(10, 3).draws(4)
        return [(index, rng.uniform()) for _, (index, rng) in zip(range(5), draws)]
    assert rows() == rows() and len({draw for _, draw in rows()}) == 5


def test_batches_and_their_shards_cover_the_sequence():
    assert list(batch_positions(3, 4)) == [12, 13, 14, 15]
    whole = [position for number in range(5) for position in batch_positions(number, 6)]
    sharded = [position for number in range(5) for shard in range(3)
               for position in batch_positions(number, 2, shard, 3)]
    assert whole == sharded == list(range(30))


def test_positions_can_be_asked_for_in_any_order_and_do_not_depend_on_numpys_version():
    forth = [SampleOrder(10, 3).index(position) for position in range(45)]
    order = SampleOrder(10, 3)
    assert [order.index(position) for position in reversed(range(45))] == forth[::-1]
    order = SampleOrder(6, 7)
    assert [order.index(k) for k in range(6)] == np.random.RandomState([0, 7, 0, 0, 0]).permutation(6).tolist()


def test_what_is_left_is_trained_once_whatever_the_batches():
    """Batches in any order, then a stop, then batches of another size: at the end each position has come once."""
    rng, sequence, trained = np.random.RandomState(0), START, []
    for batchsize in (4, 7, 2, 16, 3):
        numbers = [number for number in rng.permutation(12)[:8].tolist()]
        trained += [position for number in numbers for position in batch_positions(number, batchsize, 0, 1, sequence)]
        sequence = remaining(sequence, batchsize, numbers)
        assert samples_done(sequence) == len(trained) == len(set(trained))
        assert all(start < stop < sequence.next for start, stop in sequence.gaps)
        left = [position for start, stop in sequence.gaps for position in range(start, stop)]
        assert sorted(trained + left) == list(range(sequence.next))


def test_batches_in_order_leave_no_gaps():
    assert remaining(START, 64, range(1000)) == Sequence((), 64000)
    assert batch_positions(0, 8, 0, 1, Sequence((), 64000)) == list(range(64000, 64008))
    assert remaining(Sequence((), 64000), 8, []) == Sequence((), 64000)
    assert remaining(START, 2, [0, 2, 5]) == Sequence(((2, 4), (6, 10)), 12)
