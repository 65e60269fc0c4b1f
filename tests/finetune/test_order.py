"""Every question once an epoch, the same global batches for every layout, and a resumed run that changes nothing."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from raycurate.core.errors import ConfigError
from raycurate.training.batches.order import BatchSplit, OrderOptions, QuestionOrder, shuffled, split_batch


def ordering(seed: int, global_batch: int, **options: Any) -> OrderOptions:
    """As in a training, but for `options`."""
    return OrderOptions(seed, global_batch, **{"window": 50, "drop_last": True, "shuffle": True} | options)


def random_order(seed: int, **options) -> QuestionOrder:
    draw = random.Random(seed)
    count = draw.randint(30, 400)
    lengths = np.array([draw.randint(1, 60) for _ in range(count)])
    chosen = {"seed": seed, "global_batch": draw.choice([4, 6, 12, 24]), "window": draw.choice([0, 1, 3, 50])} | options
    groups = np.array([draw.choice([3, 5, 9]) for _ in range(count)]) if seed % 2 else None
    return QuestionOrder(lengths, ordering(**chosen), groups=groups)


@pytest.mark.parametrize("seed", range(12))
def test_an_epoch_has_every_question_once_over_all_ranks(seed):
    order = random_order(seed, drop_last=False)
    for ranks, local, epoch in itertools.product((1, 2, 3, 4), (1, 2, 5), (0, 3)):
        split = split_batch(order.options.global_batch, ranks=ranks, local_batch=local, uneven=True)
        seen: list[int] = []
        for batch in order.epoch(epoch):
            shares = [split.share(batch, rank) for rank in range(ranks)]
            assert len({len(s) for s in shares}) == 1  # as many micro-steps on every rank
            for share in itertools.chain(*shares):
                assert 1 <= len(share.rows) <= local
                seen += share.rows[share.real if share.real is not None else slice(None)].tolist()
        assert sorted(seen) == list(range(len(order.lengths)))


@pytest.mark.parametrize("seed", range(6))
def test_dropping_the_incomplete_batch_leaves_out_others_each_epoch(seed):
    order = random_order(seed, drop_last=True)
    size = order.options.global_batch
    left_out = []
    for epoch in range(4):
        batches = order.epoch(epoch)
        assert {len(b) for b in batches} == {size}
        rows = np.concatenate(batches)
        assert len(batches) == len(order) and len(np.unique(rows)) == len(rows) == len(order.lengths) - order.dropped
        left_out.append(frozenset(range(len(order.lengths))) - frozenset(rows.tolist()))
    assert not order.dropped or len(set(left_out)) > 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_layouts_share_the_same_global_batches_and_micro_steps(seed, drop_last):
    order = random_order(seed, global_batch=12, drop_last=drop_last)
    alone = split_batch(12, ranks=1)
    for ranks, local in ((1, 4), (2, 2), (2, 6), (3, 2), (4, 1), (4, 3)):
        split = split_batch(12, ranks=ranks, local_batch=local)
        for batch in order.epoch(1):
            rows = [
                row
                for rank in range(ranks)
                for share in split.share(batch, rank)
                for row in share.rows[share.real if share.real is not None else slice(None)].tolist()
            ]
            assert sorted(rows) == sorted(alone.share(batch, 0)[0].rows.tolist())
    four, two_by_two = split_batch(12, ranks=1, local_batch=4), split_batch(12, ranks=2, local_batch=2)
    batch = next(b for b in order.epoch(0) if len(b) == 12)
    for micro, whole in enumerate(four.share(batch, 0)):
        parts = [two_by_two.share(batch, rank)[micro].rows for rank in (0, 1)]
        assert sorted(np.concatenate(parts)) == sorted(whole.rows)


@pytest.mark.parametrize("seed", range(4))
def test_resuming_at_every_step_goes_on_as_if_nothing_had_happened(seed):
    order = random_order(seed)
    end = 2 * len(order) + 3
    whole = [(epoch, step, rows.tolist()) for epoch, step, rows in order.steps(0, end)]
    assert [(e, s) for e, s, _ in whole[: len(order) + 1]] == [*((0, s) for s in range(len(order))), (1, 0)]
    for start in range(end + 1):
        again = random_order(seed)  # a new process has nothing but the options
        assert [(e, s, rows.tolist()) for e, s, rows in again.steps(start, end)] == whole[start:]


def test_epochs_and_seeds_differ_and_are_reproducible():
    def first(seed: int, epoch: int) -> list[int]:
        return QuestionOrder(np.ones(40), ordering(seed, 8)).epoch(epoch)[0].tolist()

    assert first(1, 0) == first(1, 0)
    assert len({tuple(first(s, e)) for s in (1, 2) for e in (0, 1)}) == 4
    # pinned: the order of a run that is resumed by a later version must be the same
    assert shuffled(8, 125, 0, 0).tolist() == [5, 7, 1, 6, 2, 4, 3, 0]


def test_a_shuffle_is_uniform():
    """Each of 5 questions is in each of 5 places in a fifth of 2,000 epochs (standard deviation 18)."""
    counts = np.zeros((5, 5), int)
    for epoch in range(2000):
        counts[np.arange(5), shuffled(5, 7, epoch, 0)] += 1
    assert np.abs(counts - 400).max() < 5 * 18


def test_like_lengths_share_a_batch_but_only_within_a_window():
    lengths = np.random.default_rng(0).integers(1, 500, 3200)
    padded = {}
    for window in (0, 1, 10, 100):
        batches = QuestionOrder(lengths, ordering(3, 32, window=window)).epoch(0)
        padded[window] = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
    assert padded[0] == padded[1] > 1.8  # sorting within one batch changes nothing about its longest
    assert padded[10] < 1.15 and padded[100] < 1.02
    plain = QuestionOrder(lengths, ordering(3, 32, window=0)).epoch(0)
    windowed = QuestionOrder(lengths, ordering(3, 32, window=10)).epoch(0)
    for first in range(0, 100, 10):  # the same 320 questions, sorted otherwise
        here = np.concatenate(windowed[first : first + 10])
        assert set(here) == set(np.concatenate(plain[first : first + 10]))
    assert all((np.diff(lengths[b]) >= 0).all() for b in windowed)
    means = [lengths[b].mean() for b in windowed[:10]]
    assert means != sorted(means)  # batches of a window are shuffled: training does not go from short to long


def test_the_longest_are_not_the_ones_dropped():
    lengths = np.arange(1000)
    left_out = set(range(1000)) - set(np.concatenate(QuestionOrder(lengths, ordering(0, 96)).epoch(0)).tolist())
    assert len(left_out) == 40 and np.mean(list(left_out)) < 700


def test_batches_of_one_corpus():
    groups = np.array([0] * 50 + [1] * 30 + [2] * 20)
    order = QuestionOrder(np.ones(100), ordering(1, 8), groups=groups)
    kinds = [set(groups[b].tolist()) for b in order.epoch(0)]
    assert all(len(k) == 1 for k in kinds) and len(kinds) == 6 + 3 + 2 == len(order)
    assert kinds != sorted(kinds, key=min)  # mixed over the epoch
    with pytest.raises(
        ConfigError, match=r"corpus number 2 of the training data has 20 questions, less than one batch"
    ):
        QuestionOrder(np.ones(100), ordering(1, 24), groups=groups)
    assert len(QuestionOrder(np.ones(100), ordering(1, 24, drop_last=False), groups=groups)) == 3 + 2 + 1


def test_validation_has_every_question_in_the_same_order_always():
    order = QuestionOrder(np.array([5, 1, 4, 2, 3, 9, 8]), OrderOptions.for_validation(3))
    assert [b.tolist() for b in order.epoch(0)] == [[1, 3, 4], [2, 0, 5], [6]]
    assert [b.tolist() for b in order.epoch(7)] == [[1, 3, 4], [2, 0, 5], [6]]


def test_ranks_get_alike_work_and_fillers_where_there_is_none():
    split = split_batch(8, ranks=4, local_batch=1)
    full = [[s.rows.tolist() for s in split.share(np.arange(8), rank)] for rank in range(4)]
    assert full == [[[0], [4]], [[1], [5]], [[2], [6]], [[3], [7]]]
    last = [split.share(np.arange(10, 16), rank)[1] for rank in range(4)]
    assert [s.rows.tolist() for s in last] == [[14], [15], [14], [15]]
    assert [s.real.tolist() for s in last] == [[True], [True], [False], [False]]


def test_sizes_that_do_not_divide_are_refused_with_those_that_do():
    assert split_batch(128, ranks=8, local_batch=1).accumulation == 16
    assert split_batch(128, ranks=4) == BatchSplit(128, 4, 32)
    with pytest.raises(ConfigError) as caught:
        split_batch(128, ranks=4, local_batch=24)
    message = str(caught.value)
    assert (
        "global_batch_size=128 is no multiple of local_batch_size=24 x 4 ranks (96 questions a micro-step)" in message
    )
    assert "96 or 192" in message and "1, 2, 4, 8, 16, 32" in message
    with pytest.raises(ConfigError, match=r"Set global_batch_size to 126 or 129.*ranks: 1, 2, 4, 8"):
        split_batch(128, ranks=3)
    with pytest.raises(ConfigError, match="Set global_batch_size to 4"):
        split_batch(2, ranks=4)
    assert split_batch(128, ranks=3, uneven=True).accumulation == 1
    with pytest.raises(ConfigError, match="ranks=0"):
        split_batch(8, ranks=0)
    with pytest.raises(ConfigError, match=r"there are 5 questions, less than one batch of 8"):
        QuestionOrder(np.ones(5), ordering(1, 8))
    with pytest.raises(ConfigError, match="no questions"):
        QuestionOrder(np.ones(0), ordering(1, 8))
