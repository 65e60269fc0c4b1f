"""Approximate search for very large corpora: faiss's inverted lists, with the recall of what it found.

Centroids are trained once, on a sample; each piece of the documents is then sorted into their lists, and a query is
compared with the documents of the `probes` lists whose centroids it is nearest to. Limits hold, as more documents are
fetched than asked for, twice as many again for a query of which the limits took too many; scores are the exact ones.
A query may still find fewer than k documents, or not the best. How many of the best it finds is measured against
the exact search, on a sample of the queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.core.errors import require
from raycurate.search.distributed import search
from raycurate.search.hits import Hits, Limits
from raycurate.search.prepared import Documents, score_pairs
from raycurate.search.shards import Piece, VectorShards
from raycurate.search.topk import TopK
from raycurate.search.worker import Block, Engine, Place

if TYPE_CHECKING:
    import ray

_TRAINED = 64  # sampled documents for each centroid
_FETCHED = 1 << 21  # documents fetched at a time, for all queries
_EXTRA = "ann"


@dataclass(frozen=True)
class IvfOptions:
    """lists: inverted lists; None: 4 sqrt(documents). probes: lists that are searched for a query.

    sample: queries of which the recall is measured. seed: of the samples and the training.
    """

    lists: int | None = None
    probes: int = 32
    sample: int = 256
    seed: int = 42


@dataclass(frozen=True)
class Approximate:
    """recall: share of the exact k best (within the limits) that was found, of `sampled` queries. blocks: as `search`
    gives them; their dropped_Q counts only documents that were seen."""

    recall: float
    sampled: int
    blocks: Iterator[tuple[int, Hits]]


def search_approximately(
    queries_QD: np.ndarray,
    documents: VectorShards,
    k: int,
    *,
    limits: Limits | None = None,
    ivf: IvfOptions | None = None,
    **options: Any,
) -> Approximate:
    """About the k best documents of each query; `options` are those of `search`.

    Raises:
        MissingDependencyError: faiss is not installed.
        and what `search` raises.
    """
    import ray

    from raycurate.ray_runtime.cluster import remote_task, require_ray

    require_ray("search")
    require("faiss", _EXTRA, purpose="approximate search")
    ivf = ivf or IvfOptions()
    lists = ivf.lists or max(1, min(len(documents) // 39, round(4 * math.sqrt(len(documents)))))
    train = remote_task(_train, name="SearchTrain", num_cpus=1)
    engine = Ivf(train.remote(documents, lists, ivf.seed), ivf.probes)
    random = np.random.default_rng(ivf.seed)
    picked = np.sort(random.choice(len(queries_QD), min(ivf.sample, len(queries_QD)), replace=False))
    few_QD, few = np.ascontiguousarray(queries_QD[picked]), _some(limits, picked)
    exact = _rows(search(few_QD, documents, k, limits=few, **options))
    found = _rows(search(few_QD, documents, k, limits=few, engine=engine, **options))
    wanted = sum(int((rows >= 0).sum()) for rows in exact)
    both = sum(len(np.intersect1d(a[a >= 0], b)) for a, b in zip(exact, found, strict=True))
    given = ray.put(np.asarray(queries_QD, np.float32))
    blocks = search(given, documents, k, limits=limits, engine=engine, **options)
    return Approximate(both / wanted if wanted else 1.0, len(picked), blocks)


class Ivf(Engine):
    """The engine of `search` that compares with some lists only. trained: of an empty index, as faiss writes it."""

    queries_at_once = 131_072  # each time a piece is sorted into lists costs as much as some thousand queries

    def __init__(self, trained: ray.ObjectRef, probes: int) -> None:
        self.trained, self.probes = trained, probes

    def prepare(self, documents_MD: np.ndarray, piece: Piece, place: Place, *, where: str) -> Any:
        import ray
        import torch

        faiss = require("faiss", _EXTRA, purpose="approximate search")
        documents = Documents.of(documents_MD, piece.first, place.device, rough=False, where=where)
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.deserialize_index(np.array(ray.get(self.trained)))
        index.nprobe = self.probes
        index.add(np.ascontiguousarray(documents_MD))
        return _Lists(documents, index)

    def block(self, queries_QD: np.ndarray, k: int, limits: Limits | None, place: Place, *, where: str) -> Block:
        return _IvfTopK(queries_QD, k, limits=limits, device=place.device, rough=False, where=where)


@dataclass(frozen=True)
class _Lists:
    """A piece of the documents, and the same sorted into lists. index: of faiss."""

    exact: Documents
    index: Any


class _IvfTopK(TopK):
    """TopK over what the lists give."""

    def add(self, documents: Any, first_row: int = 0) -> None:
        assert isinstance(documents, _Lists)  # Ivf.prepare made it
        count, left_Q, fetch = len(documents.exact), np.arange(len(self.queries)), 2 * self.k
        while len(left_Q):
            fetch = min(count, fetch)
            parts = np.array_split(left_Q, -(-len(left_Q) * fetch // _FETCHED))
            short = [self._fetch(part_Q, documents, fetch) for part_Q in parts]
            left_Q, fetch = np.concatenate(short), 2 * fetch

    def _fetch(self, queries_R: np.ndarray, documents: _Lists, fetch: int) -> np.ndarray:
        """Take in what the lists hold for some queries; returns those that need more of it, of which none is taken."""
        import torch

        exact = documents.exact
        _, found_RF = documents.index.search(self.queries.exact_ND[torch.from_numpy(queries_R)].cpu().numpy(), fetch)
        index_P, slot_P = np.nonzero(found_RF >= 0)
        query_P, column_P = queries_R[index_P], found_RF[index_P, slot_P]
        excluded = self._excluded_from(queries_R, exact.first, len(exact))
        kept_P = ~np.isin(index_P * len(exact) + column_P, excluded[0] * len(exact) + excluded[1])
        kept_P &= ~np.isin(column_P, self._barred_from(exact.first, len(exact)))
        index_P, query_P, column_P = index_P[kept_P], query_P[kept_P], column_P[kept_P]
        pairs = (torch.from_numpy(part).to(self.device) for part in (query_P, column_P))
        scores_P = score_pairs(self.queries.exact_ND, exact.vectors.exact_ND, *pairs).cpu().numpy()
        valid_P = np.ones(len(query_P), dtype=bool) if self.bound_Q is None else scores_P <= self.bound_Q[query_P]
        enough_R = np.bincount(index_P[valid_P], minlength=len(queries_R)) >= self.k
        done_R = enough_R | (found_RF[:, -1] < 0) | (fetch == len(exact))
        taken_P = done_R[index_P]
        self._take(query_P[taken_P], column_P[taken_P] + exact.first, scores_P[taken_P])
        return queries_R[~done_R]


def _train(documents: VectorShards, lists: int, seed: int) -> np.ndarray:
    """An empty index with trained centroids, as bytes."""
    faiss = require("faiss", _EXTRA, purpose="approximate search")
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(seed)
    picked = np.sort(random.choice(len(documents), min(len(documents), _TRAINED * lists), replace=False))
    parts = []
    for piece in documents.pieces(0, len(documents)):
        lo, hi = np.searchsorted(picked, (piece.first, piece.first + len(piece)))
        if hi > lo:
            parts.append(documents.read(piece)[picked[lo:hi] - piece.first])
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(documents.dimension), documents.dimension, lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = seed
    index.cp.min_points_per_centroid = 1  # it warns of fewer than 39
    index.train(np.concatenate(parts))
    written: np.ndarray = faiss.serialize_index(index)
    return written


def _rows(blocks: Iterator[tuple[int, Hits]]) -> list[np.ndarray]:
    return [rows_K for _, hits in blocks for rows_K in hits.rows_QK]


def _some(limits: Limits | None, picked: np.ndarray) -> Limits | None:
    if limits is None:
        return None
    offsets, rows = limits.excluded_offsets, limits.excluded_rows
    excluded = [rows[offsets[q] : offsets[q + 1]] for q in picked]
    bound_Q = None if limits.bound_Q is None else limits.bound_Q[picked]
    return replace(Limits.of(bound_Q=bound_Q, excluded=excluded), barred=limits.barred)
