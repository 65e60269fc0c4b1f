"""Which candidates become hard negatives: the margin's bound, the fusion of rankings, the window of ranks.

Pure functions over one query, or arrays over many; the search that finds the candidates is search/'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

MarginType = Literal["perc", "abs", "none"]
DEFAULT_MARGIN = {"perc": 0.95, "abs": 0.05, "none": 0.0}
_FUSION = 60  # the constant of reciprocal rank fusion [Cormack et al. 2009]


def bounds(least_Q: np.ndarray, kind: MarginType, margin: float) -> np.ndarray:
    """The score above which a candidate is taken for a false negative; float32 [Q], inf where there is no bound.

    `perc` is m - (1 - margin) * |m|, which is m * margin for m > 0 and lies below m for m < 0 too; `abs` is m - margin.

    Args:
        least_Q: the smallest score of each query's positives.
    """
    m_Q = least_Q.astype(np.float64)
    if kind == "perc":
        return (m_Q - (1 - margin) * np.abs(m_Q)).astype(np.float32)
    if kind == "abs":
        return (m_Q - margin).astype(np.float32)
    return np.full(len(m_Q), np.inf, np.float32)


def least(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The smallest score of each query's positives, float32 [Q]; every query has one at least."""
    return np.minimum.reduceat(scores, offsets[:-1]) if len(offsets) > 1 else np.empty(0, np.float32)


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Candidates of several rankings by the sum of 1 / (60 + rank), best first, ties by the lower number.

    Reciprocal rank fusion [Cormack et al. 2009]; a ranking that lacks a candidate gives it nothing.
    """
    gained: dict[int, float] = {}
    for ranking in rankings:
        for rank, candidate in enumerate(ranking, 1):
            gained[candidate] = gained.get(candidate, 0.0) + 1 / (_FUSION + rank)
    return sorted(gained, key=lambda candidate: (-gained[candidate], candidate))


def in_window(
    candidates: Sequence[int], count: int, *, range_min: int, range_max: int | None, draw: np.random.Generator | None
) -> list[int]:
    """`count` of the candidates of ranks range_min .. range_max, in order of rank.

    Args:
        candidates: best first.
        draw: where they are drawn from; None takes the best of the window.
    """
    window = list(candidates[range_min:range_max])
    if draw is None or len(window) <= count:
        return window[:count]
    return [window[i] for i in sorted(draw.choice(len(window), count, replace=False).tolist())]


def generator(seed: int, question_id: str) -> np.random.Generator:
    """A generator of one question's own, so that what is drawn does not depend on order or workers."""
    digest = hashlib.sha256(f"{seed}:{question_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
