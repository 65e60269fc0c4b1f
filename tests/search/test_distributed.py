"""The search on Ray: the same hits for any number of shards and workers, and when a worker is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raycurate.core.errors import CapacityError, ConfigError, InputError
from raycurate.ray_runtime.cluster import ActorGroupOptions
from raycurate.search import Hits, Limits, VectorShards, distributed, pair_scores, search
from raycurate.search.approximate import IvfOptions, search_approximately
from tests.search.brute import assert_equal, brute_force, clustered, random_limits
from tests.search.engines import KilledOnce

pytestmark = pytest.mark.usefixtures("local_ray")
QUERIES, DOCUMENTS, DIM, K = 300, 20_000, 48, 40


class Case:
    """The same vectors in one shard and in five."""

    def __init__(self, folder: Path) -> None:
        self.queries = clustered(QUERIES, DIM, 1, centres=20, noise=0.5)
        self.documents = clustered(DOCUMENTS, DIM, 1, centres=20, noise=0.5)
        self.scores_QM = (self.queries.astype(np.float64) @ self.documents.astype(np.float64).T).astype(np.float32)
        self.limits = random_limits(QUERIES, self.scores_QM, 3)
        self.wanted = brute_force(self.queries, self.documents, K, self.limits)
        self.one = VectorShards.write(str(folder / "one"), [self.documents], shard_rows=DOCUMENTS)
        self.five = VectorShards.write(str(folder / "five"), [self.documents], shard_rows=4_100)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("vectors"))


def joined(blocks: Iterator[tuple[int, Hits]], size: int) -> Hits:
    parts = list(blocks)
    assert [first for first, _ in parts] == list(range(0, QUERIES, size))
    assert all(len(hits.dropped_Q) == min(size, QUERIES - first) for first, hits in parts)
    names = ("rows_QK", "scores_QK", "dropped_Q")
    return Hits(*(np.concatenate([getattr(hits, name) for _, hits in parts]) for name in names))


def test_two_workers_and_five_shards_equal_one_and_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal(joined(search(case.queries, case.one, K, limits=case.limits, workers=1), 1024), case.wanted)
    monkeypatch.setattr(distributed, "_BLOCK", 64)
    monkeypatch.setattr(distributed, "_LEAST_ROWS", 1000)
    five = search(case.queries, case.five, K, limits=case.limits, workers=2, query_block=50)
    assert_equal(joined(five, 50), case.wanted)


def test_few_documents_are_searched_by_dealing_the_queries(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(distributed, "_BLOCK", 64)
    assert len(distributed._shares(case.one, 2, QUERIES, 64)) == 1
    found = search(ray.put(case.queries), case.one, K, limits=case.limits, workers=2, query_block=64, device="cpu")
    assert_equal(joined(found, 64), case.wanted)


def test_a_killed_worker_changes_nothing(case: Case, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    found = search(case.queries, case.five, K, limits=case.limits, workers=1, engine=KilledOnce(marker))
    assert_equal(joined(found, 1024), case.wanted)
    assert marker.exists()


def test_an_iterator_that_is_closed_gives_its_places_back(case: Case) -> None:
    blocks = search(case.queries, case.five, 5, query_block=10, workers=3)
    assert next(blocks)[0] == 0
    blocks.close()
    assert_equal(joined(search(case.queries, case.one, K, limits=case.limits, workers=1), 1024), case.wanted)


def test_two_searches_at_once_do_not_wait_for_each_other(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BLOCK", 64)
    first, second = (
        search(case.queries, shards, K, limits=case.limits, query_block=64, workers=4)
        for shards in (case.one, case.five)
    )
    for (at, one), (_, two) in zip(first, second, strict=True):
        assert_equal(one, two)
        assert len(one.rows_QK) == min(64, QUERIES - at)


def test_pairs_have_the_scores_that_the_search_gives(case: Case) -> None:
    wanted = brute_force(case.queries, case.documents, K)
    offsets = np.arange(QUERIES + 1) * K
    for vectors in (case.one, case.five):
        scores = pair_scores(case.queries, vectors, offsets, wanted.rows_QK.ravel())
        np.testing.assert_array_equal(scores.reshape(QUERIES, K), wanted.scores_QK)
    with pytest.raises(ValueError, match="documents"):
        pair_scores(case.queries[:1], case.one, np.array([0, 1]), np.array([DOCUMENTS]))


def test_what_cannot_be_searched_is_said(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="queries have 7 dimensions, documents 48"):
        search(np.zeros((3, 7), np.float32), case.one, 5)
    with pytest.raises(CapacityError, match="Search"):
        search(case.queries, case.one, 5, options=ActorGroupOptions(num_cpus=500))
    with pytest.raises(ConfigError, match="device=tpu"):
        search(case.queries, case.one, 5, device="tpu")
    with pytest.raises(ValueError, match="limits of 2 queries"):
        search(case.queries, case.one, 5, limits=Limits.of(excluded=[[], []]))
    assert list(search(case.queries[:0], case.one, 5)) == []
    bad = case.documents[:3000].copy()
    bad[2500, 7] = np.nan
    shards = VectorShards.write(str(tmp_path), [bad], shard_rows=1000)
    with pytest.raises(InputError, match=r"vectors-00002\.npy: vector 500 "):
        list(search(case.queries, shards, 5, workers=1))
    queries = case.queries.copy()
    queries[7, 0] = np.inf
    with pytest.raises(InputError, match="queries, from query 0: vector 7 "):
        list(search(queries, case.one, 5, workers=1))


def test_the_approximate_search_keeps_to_the_limits_and_knows_its_recall(case: Case) -> None:
    pytest.importorskip("faiss")
    found = search_approximately(
        case.queries, case.five, K, limits=case.limits, ivf=IvfOptions(lists=60, probes=4), workers=1
    )
    hits = joined(found.blocks, 1024)
    has_QK = hits.rows_QK >= 0
    own = np.take_along_axis(case.scores_QM, np.where(has_QK, hits.rows_QK, 0), 1)
    np.testing.assert_array_equal(hits.scores_QK[has_QK], own[has_QK])
    assert case.limits.bound_Q is not None
    assert np.all(hits.scores_QK <= case.limits.bound_Q[:, None])
    assert np.all(hits.dropped_Q <= case.wanted.dropped_Q)
    offsets, excluded = case.limits.excluded_offsets, case.limits.excluded_rows
    for q, rows in enumerate(hits.rows_QK):
        assert not np.isin(rows, excluded[offsets[q] : offsets[q + 1]]).any()
    wanted = case.wanted.rows_QK
    both = sum(np.isin(a[a >= 0], b).sum() for a, b in zip(wanted, hits.rows_QK, strict=True))
    assert abs(found.recall - both / (wanted >= 0).sum()) < 0.1  # of a sample, and of all
    assert 0.3 < found.recall < 1


def test_all_lists_give_the_exact_hits(case: Case) -> None:
    pytest.importorskip("faiss")
    ivf = IvfOptions(lists=10, probes=10, sample=20)
    found = search_approximately(case.queries, case.five, K, limits=case.limits, ivf=ivf, workers=1)
    assert (found.recall, found.sampled) == (1.0, 20)
    hits = joined(found.blocks, 1024)
    np.testing.assert_array_equal(hits.rows_QK, case.wanted.rows_QK)
    np.testing.assert_array_equal(hits.scores_QK, case.wanted.scores_QK)
