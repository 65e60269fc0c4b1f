"""What a search may return and what it returned; one hit is one 64-bit number.

The upper half of a hit's key falls as the score rises, the lower half is the document's number: keys in ascending
order are hits in the order wanted (best first, ties by the lower number), no two are equal, and merging lists of hits
is sorting integers, which numpy does with the processor's widest registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycurate.core.errors import InputError

EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
MOST_DOCUMENTS = 0xFFFF_FFFF  # a document's number has 32 bits, all ones of which mean none
_SIGN, _REST = np.uint32(0x8000_0000), np.uint32(0x7FFF_FFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Limits:
    """Per query: what may not be returned.

    bound_Q: float32, a document that scores above it is dropped and counted; None or +inf: no bound.
    excluded_offsets: int64 [Q + 1]; query q excludes excluded_rows[excluded_offsets[q] : excluded_offsets[q + 1]].
    excluded_rows: int64, numbers of documents that are neither returned nor counted, in any order.
    barred: int64, documents that are so for every query; None: there are none.
    """

    bound_Q: np.ndarray | None
    excluded_offsets: np.ndarray
    excluded_rows: np.ndarray
    barred: np.ndarray | None = None

    @classmethod
    def of(cls, *, bound_Q: np.ndarray | None = None, excluded: Sequence[Sequence[int] | np.ndarray]) -> Limits:
        """From one list of excluded documents a query."""
        offsets = np.cumsum([0, *(len(rows) for rows in excluded)], dtype=np.int64)
        rows = np.concatenate([np.empty(0, np.int64), *(np.asarray(rows, np.int64) for rows in excluded)])
        return cls(None if bound_Q is None else np.asarray(bound_Q, np.float32), offsets, rows)

    def __len__(self) -> int:
        return len(self.excluded_offsets) - 1

    def __getitem__(self, queries: slice) -> Limits:
        """Those of some queries that follow each other."""
        first, stop, _ = queries.indices(len(self))
        offsets = self.excluded_offsets[first : stop + 1]
        rows = self.excluded_rows[offsets[0] : offsets[-1]]
        bound_Q = None if self.bound_Q is None else self.bound_Q[first:stop]
        return Limits(bound_Q, offsets - offsets[0], rows, self.barred)

    def check(self, queries: int, documents: int) -> None:
        """See that they are of so many queries and name documents that there are.

        Raises:
            InputError: a bound that is no number.
            ValueError: lengths that do not agree, or documents that there are not.
        """
        offsets, rows, bound_Q = self.excluded_offsets, self.excluded_rows, self.bound_Q
        if len(self) != queries or (bound_Q is not None and bound_Q.shape != (queries,)):
            raise ValueError(f"limits of {len(self)} queries where there are {queries}")
        if offsets[0] != 0 or offsets[-1] != len(rows) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets that do not divide {len(rows)} excluded rows")
        rows = rows if self.barred is None else np.concatenate([rows, self.barred])
        if len(rows) and (rows.min() < 0 or rows.max() >= documents):
            raise ValueError(f"excluded rows from {rows.min()} to {rows.max()}, of {documents} documents")
        if bound_Q is not None and np.isnan(bound_Q).any():
            raise InputError("its bound is not a number", where=f"query {int(np.isnan(bound_Q).argmax())}")


@dataclass(frozen=True)
class Hits:
    """Best first, ties by the lower document number.

    rows_QK: int64, -1 where a query has fewer than k hits. scores_QK: float32, -inf there.
    dropped_Q: int64, documents above the query's bound, the excluded ones not counted.
    """

    rows_QK: np.ndarray
    scores_QK: np.ndarray
    dropped_Q: np.ndarray

    @classmethod
    def of(cls, keys_QK: np.ndarray, dropped_Q: np.ndarray) -> Hits:
        rows_QK, scores_QK = rows_of(keys_QK), scores_of(keys_QK)
        empty_QK = keys_QK == EMPTY
        rows_QK[empty_QK], scores_QK[empty_QK] = -1, -np.inf
        return cls(rows_QK, scores_QK, dropped_Q)


def keys_of(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """uint64 keys of hits: float32 scores that are numbers, and the documents' numbers (of any integer type)."""
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0 because -0.0 equals 0.0 and its bits do not
    falling = bits ^ np.where(bits & _SIGN, np.uint32(0), _REST)
    return (falling.astype(np.uint64) << _HALF) | rows.astype(np.uint64)


def scores_of(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of keys; NaN for EMPTY."""
    falling = (keys >> _HALF).astype(np.uint32)
    return (falling ^ np.where(falling & _SIGN, np.uint32(0), _REST)).view(np.float32)


def rows_of(keys: np.ndarray) -> np.ndarray:
    """The int64 document numbers of keys."""
    return (keys & np.uint64(MOST_DOCUMENTS)).astype(np.int64)


def best_of(keys_QW: np.ndarray, k: int) -> np.ndarray:
    """The k first keys of each row, sorted; rows with fewer are filled with EMPTY."""
    width = keys_QW.shape[1]
    if width > 2 * k:
        keys_QW = np.partition(keys_QW, k - 1, axis=1)[:, :k]
    best_QK = np.sort(keys_QW, axis=1)[:, :k]
    if width < k:
        best_QK = np.pad(best_QK, ((0, 0), (0, k - width)), constant_values=EMPTY)
    return best_QK


def take_pairs(keys_QK: np.ndarray, query_P: np.ndarray, keys_P: np.ndarray) -> None:
    """Let keys of pairs, sorted by query, compete for their queries' rows of `keys_QK`, in place."""
    if not len(query_P):
        return
    k = keys_QK.shape[1]
    rows, start_R, count_R = np.unique(query_P, return_index=True, return_counts=True)
    keys_RW = np.full((len(rows), k + int(count_R.max())), EMPTY, np.uint64)
    keys_RW[:, :k] = keys_QK[rows]
    index_P = np.repeat(np.arange(len(rows)), count_R)
    keys_RW[index_P, k + np.arange(len(keys_P)) - start_R[index_P]] = keys_P
    keys_QK[rows] = best_of(keys_RW, k)
