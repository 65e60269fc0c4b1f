"""The definition of a search, in float64 numpy, and data to search in."""

from __future__ import annotations

import numpy as np

from raycurate.search.hits import Hits, Limits


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(queries_QD: np.ndarray, documents_MD: np.ndarray, k: int, limits: Limits | None = None) -> Hits:
    scores_QM = (queries_QD.astype(np.float64) @ documents_MD.astype(np.float64).T).astype(np.float32)
    queries, documents = scores_QM.shape
    rows_QK = np.full((queries, k), -1, np.int64)
    scores_QK = np.full((queries, k), -np.inf, np.float32)
    dropped_Q = np.zeros(queries, np.int64)
    for q in range(queries):
        allowed = np.ones(documents, dtype=bool)
        if limits is not None:
            offsets = limits.excluded_offsets
            allowed[limits.excluded_rows[offsets[q] : offsets[q + 1]]] = False
            if limits.barred is not None:
                allowed[limits.barred] = False
            if limits.bound_Q is not None:
                over = allowed & (scores_QM[q] > limits.bound_Q[q])
                dropped_Q[q] = over.sum()
                allowed &= ~over
        rows = np.flatnonzero(allowed)
        best = rows[np.lexsort((rows, -scores_QM[q, rows]))][:k]
        rows_QK[q, : len(best)], scores_QK[q, : len(best)] = best, scores_QM[q, best]
    return Hits(rows_QK, scores_QK, dropped_Q)


def assert_equal(found: Hits, wanted: Hits) -> None:
    """Rows, scores and counts to the last bit."""
    np.testing.assert_array_equal(found.dropped_Q, wanted.dropped_Q)
    np.testing.assert_array_equal(found.scores_QK, wanted.scores_QK)
    np.testing.assert_array_equal(found.rows_QK, wanted.rows_QK)
    assert found.rows_QK.dtype == np.int64 and found.scores_QK.dtype == np.float32


def clustered(n: int, dim: int, seed: int, *, centres: int, noise: float) -> np.ndarray:
    """Noisy copies of a few rows that are themselves alike."""
    random = np.random.default_rng(seed)
    middle = unit(unit(random.normal(size=(centres, dim))) + unit(random.normal(size=(1, dim))))
    return unit(middle[random.integers(0, centres, n)] + noise * random.normal(size=(n, dim)) / np.sqrt(dim))


def random_limits(queries: int, scores_QM: np.ndarray, seed: int) -> Limits:
    """Bounds of every kind, some of them exactly a document's score, and none to many excluded documents."""
    random = np.random.default_rng(seed)
    documents = scores_QM.shape[1]
    bound_Q = np.full(queries, np.inf, np.float32)
    for q in range(queries):
        kind = q % 6
        ranked = np.sort(scores_QM[q])[::-1]
        if kind == 1:
            bound_Q[q] = ranked[min(documents - 1, int(random.integers(0, 8)))]
        elif kind == 2:
            bound_Q[q] = np.nextafter(ranked[min(documents - 1, 3)], np.float32(-np.inf))
        elif kind == 3:
            bound_Q[q] = ranked[documents // 2]
        elif kind == 4:
            bound_Q[q] = random.choice([-np.inf, 0.0, -0.1, 0.95])
    excluded = []
    for q in range(queries):
        count = int(random.choice([0, 1, 5, documents // 3, documents], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
        best = np.argsort(-scores_QM[q])[: max(1, count // 2)]
        count = min(count, documents)
        rows = np.concatenate([best[:count], random.choice(documents, count, replace=False)])[:count]
        excluded.append(np.unique(rows))
    return Limits.of(bound_Q=bound_Q, excluded=excluded)
