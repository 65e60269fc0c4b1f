"""Exact top-k against brute force in float64: rows, scores and counts to the last bit, on every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from raycurate.core.errors import InputError, RaycurateError
from raycurate.search import topk
from raycurate.search.hits import EMPTY, Hits, Limits, best_of, keys_of, rows_of, scores_of
from raycurate.search.prepared import score_pairs
from raycurate.search.topk import TopK
from tests.search.brute import assert_equal, brute_force, clustered, random_limits, unit


def gaussian(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim))


def grid(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, size=(n, 16)).astype(np.float32)


def of_all_lengths(n: int, seed: int) -> np.ndarray:
    lengths = np.exp(5 * np.random.default_rng(seed).normal(size=(n, 1)))
    return (unit(gaussian(n, 33, seed)) * lengths).astype(np.float32)


DATA: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "7 dimensions": lambda: (unit(gaussian(40, 7, 0)), unit(gaussian(3000, 7, 1))),
    "384 dimensions": lambda: (unit(gaussian(40, 384, 2)), unit(gaussian(5000, 384, 3))),
    "clusters": lambda: (clustered(40, 96, 4, centres=3, noise=0.2), clustered(4000, 96, 4, centres=3, noise=0.2)),
    "copies": lambda: (unit(gaussian(20, 48, 5)), np.repeat(unit(gaussian(500, 48, 6)), 8, axis=0)),
    "all equal": lambda: (unit(gaussian(20, 48, 7)), np.repeat(unit(gaussian(1, 48, 8)), 4000, axis=0)),
    "small integers": lambda: (grid(20, 9), grid(4000, 10)),
    "zeros": lambda: (np.zeros((6, 9), np.float32), unit(gaussian(3000, 9, 11))),
    "negative": lambda: (unit(gaussian(6, 9, 12) ** 2), -unit(gaussian(3000, 9, 13) ** 2)),
    "of all lengths": lambda: (unit(gaussian(20, 33, 14)) * np.float32(1e-3), of_all_lengths(4000, 15)),
    "too small for float32 products": lambda: (
        unit(gaussian(12, 33, 16)) * np.float32(1e-25),
        unit(gaussian(3000, 33, 17)) * np.float32(1e-20),
    ),
    "one and one": lambda: (unit(gaussian(1, 5, 18)), unit(gaussian(1, 5, 19))),
}


def found(
    queries: np.ndarray, documents: np.ndarray, k: int, limits: Limits | None, *, rough: bool, parts: int
) -> Hits:
    """Documents added in parts, the last one first."""
    state = TopK(queries, k, limits=limits, rough=rough)
    edges = np.linspace(0, len(documents), parts + 1).astype(int)
    for lo, hi in reversed(list(pairwise(edges))):
        state.add(documents[lo:hi], int(lo))
    return state.hits()


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_it_equals_brute_force(name: str, rough: bool) -> None:
    queries, documents = DATA[name]()
    scores_QM = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    barred = np.arange(0, len(documents), 7)
    for k in (1, 40, 6000):
        limits = random_limits(len(queries), scores_QM, k)
        everywhere = replace(limits, barred=barred)
        for given in (None, limits, everywhere):
            wanted = brute_force(queries, documents, k, given)
            for parts in (1, 3):
                assert_equal(found(queries, documents, k, given, rough=rough, parts=parts), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_limits_hold_for_any_shape(seed: int) -> None:
    random = np.random.default_rng(seed)
    queries, dim, k = int(random.integers(1, 70)), int(random.integers(1, 140)), int(random.integers(1, 60))
    q = unit(gaussian(queries, dim, seed))
    documents = unit(gaussian(int(random.integers(1, 3000)), dim, seed + 100))
    scores_QM = (q.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    limits = random_limits(queries, scores_QM, seed)
    for rough in (False, True):
        hits = found(q, documents, k, limits, rough=rough, parts=int(random.integers(1, 4)))
        assert_equal(hits, brute_force(q, documents, k, limits))
        assert limits.bound_Q is not None
        assert np.all(hits.scores_QK <= limits.bound_Q[:, None])


def test_a_score_that_equals_the_bound_stays_and_the_next_larger_is_dropped() -> None:
    documents = np.array([[1.0], [0.5], [np.nextafter(np.float32(0.5), np.float32(1))], [0.25]], np.float32)
    limits = Limits.of(bound_Q=np.array([0.5], np.float32), excluded=[[]])
    hits = found(np.ones((1, 1), np.float32), documents, 4, limits, rough=False, parts=1)
    assert hits.rows_QK.tolist() == [[1, 3, -1, -1]]
    assert hits.scores_QK.tolist() == [[0.5, 0.25, -np.inf, -np.inf]]
    assert hits.dropped_Q.tolist() == [2]


def test_an_excluded_document_above_the_bound_is_not_counted() -> None:
    documents = np.array([[1.0], [0.9], [0.2]], np.float32)
    limits = replace(Limits.of(bound_Q=np.array([0.5, 0.5], np.float32), excluded=[[0], []]), barred=np.array([1]))
    hits = found(np.ones((2, 1), np.float32), documents, 2, limits, rough=False, parts=1)
    assert hits.dropped_Q.tolist() == [0, 1] and hits.rows_QK.tolist() == [[2, -1], [2, -1]]


@pytest.mark.parametrize("rough", [False, True])
def test_ties_take_bounded_memory(rough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 queries that equal 30,000 equal documents: no step holds more than a few million scores."""
    largest = 0
    taken = TopK._take_all

    def watch(self: TopK, rows: np.ndarray, scores_RS: np.ndarray, first: int) -> None:
        nonlocal largest
        largest = max(largest, scores_RS.size)
        taken(self, rows, scores_RS, first)

    monkeypatch.setattr(TopK, "_take_all", watch)
    one = unit(gaussian(1, 24, 3))
    queries, documents = np.repeat(one, 200, axis=0), np.repeat(one, 30_000, axis=0)
    hits = found(queries, documents, 5, None, rough=rough, parts=2)
    assert hits.rows_QK.tolist() == [[0, 1, 2, 3, 4]] * 200
    assert 0 < largest <= topk._DENSE


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not finite"), (np.inf, "not finite"), (1e30, "too long")])
def test_vectors_that_have_no_score_are_refused(value: float, said: str) -> None:
    good, bad = unit(gaussian(900, 40, 1)), unit(gaussian(900, 40, 1))
    bad[700, 3] = value
    with pytest.raises(InputError, match=rf"documents: vector 700 .* {said}"):
        TopK(good, 3).add(bad)
    with pytest.raises(RaycurateError, match=rf"queries: vector 700 .* {said}"):
        TopK(bad, 3)


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="query 1"):
        Limits.of(bound_Q=np.array([1, np.nan], np.float32), excluded=[[], []]).check(2, 10)
    with pytest.raises(ValueError, match="of 10 documents"):
        Limits.of(excluded=[[10]]).check(1, 10)
    with pytest.raises(ValueError, match="where there are 3"):
        Limits.of(excluded=[[]]).check(3, 10)


def test_keys_order_as_hits_do() -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(size=300), [0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], np.zeros(20)])
    scores = scores.astype(np.float32)
    rows = random.permutation(len(scores))
    order = np.argsort(keys_of(scores, rows))
    np.testing.assert_array_equal(order, np.lexsort((rows, -scores)))
    np.testing.assert_array_equal(scores_of(keys_of(scores, rows)), scores)
    np.testing.assert_array_equal(rows_of(keys_of(scores, rows)), rows)
    best = best_of(keys_of(scores, rows)[None], 400)
    assert (best[0, : len(scores)] == np.sort(keys_of(scores, rows))).all() and (best[0, len(scores) :] == EMPTY).all()


def test_a_pair_has_one_score_whatever_is_scored_beside_it() -> None:
    for dim in (1, 7, 384, 1000):
        queries, documents = (torch.from_numpy(unit(gaussian(n, dim, n))) for n in (6, 500))
        query_P = torch.arange(6).repeat_interleave(500)
        document_P = torch.arange(500).repeat(6)
        together = score_pairs(queries, documents, query_P, document_P)
        for at in (0, 499, 500, 1777, 2999):
            pair = slice(at, at + 1)
            assert torch.equal(score_pairs(queries, documents, query_P[pair], document_P[pair]), together[pair])
        some = torch.arange(3, 3000, 11)
        assert torch.equal(score_pairs(queries, documents, query_P[some], document_P[some]), together[some])
