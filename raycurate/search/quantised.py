"""Quantised documents: a byte or a bit a dimension in place of a float32, and the best of them scored again.

int8: each dimension's range (smallest to largest value of a sample of the documents) is cut into 255 steps; binary:
one bit, set where the value is above 0. Both as sentence-transformers' `quantize_embeddings` writes them, but that
int8 is rounded to the nearest step there is, not to the next lower one. The k best of a quantised index are not those
of the true vectors, so the first `rescore` * k of it are scored again with the float32 vectors and the k best of those
are given out: binary first and then scores of more bits is Yamada et al. 2021 (BPR, arXiv:2106.00882). Queries stay
float32 by default, which costs no memory and finds more than two quantised sides do (asymmetric distances:
Gordo et al. 2014, IEEE TPAMI 36(1)).

The first pass is the exact search over what the codes stand for. Its `rescore` * k best are meant over all documents:
each share gives out its own with both scores, and the merge cuts them to the first pass's best before the second
score counts. So the result does not depend on shards, workers or blocks.

The documents are read as float32 and quantised on the way. So this says what an index of codes finds, to the last
document and score, and what it would hold; it is itself neither smaller nor faster than the exact search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raycurate.models.devices import bfloat16_is_faster
from raycurate.search.hits import EMPTY, Limits, best_of, keys_of, rows_of
from raycurate.search.prepared import Documents, Vectors, score_pairs
from raycurate.search.shards import Piece, VectorShards
from raycurate.search.topk import TopK
from raycurate.search.worker import Block, Engine, Place

_STEPS = 255
_ELEMENTS = 1 << 18  # of float32 worked on at a time: what a core's cache holds
_READ = 65_536  # documents looked through at a time for the sample


@dataclass(frozen=True, eq=False)
class Quantised(Engine):
    """The engine of `search` over quantised documents.

    kind: int8 or binary. rescore: the first pass gives `rescore` * k documents, which are scored again with their
    float32 vectors; 0: the first pass's scores are given out, those of an index that has the codes alone.
    queries: float, or quantised as the documents are (binary: the score is dimensions - 2 * Hamming distance).
    ranges_2D: float32, smallest and largest value of each dimension; int8 needs it, see `calibrated`.

    Raises:
        ValueError: another kind, a negative rescore, or int8 without ranges.
    """

    kind: Literal["int8", "binary"]
    rescore: int = 4
    queries: Literal["float", "quantised"] = "float"
    ranges_2D: np.ndarray | None = None

    queries_at_once = 16_384

    def __post_init__(self) -> None:
        if self.kind not in ("int8", "binary") or self.queries not in ("float", "quantised") or self.rescore < 0:
            raise ValueError(f"kind={self.kind}, rescore={self.rescore}, queries={self.queries}")
        if self.kind == "int8" and self.ranges_2D is None:
            raise ValueError("int8 needs the ranges of the dimensions: Quantised.calibrated('int8', documents)")

    @classmethod
    def calibrated(
        cls,
        kind: Literal["int8", "binary"],
        documents: VectorShards,
        *,
        rescore: int = 4,
        queries: Literal["float", "quantised"] = "float",
        sample: int = 100_000,
        seed: int = 42,
    ) -> Quantised:
        """With the ranges of a sample of the documents, which binary does not need; reads in this process.

        What lies outside of them is taken for the end of the range.

        Raises:
            InputError: a sampled vector that is not finite, no documents, or a file that cannot be read.
        """
        ranges_2D = ranges_of(documents, sample, seed) if kind == "int8" else None
        return cls(kind, rescore, queries, ranges_2D)

    def bytes_per_document(self, dimension: int) -> int:
        """What the index holds in memory; with `rescore`, 4 * dimension more are on disk, read for candidates only."""
        return dimension if self.kind == "int8" else -(-dimension // 8)

    def encode(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Codes of float32 vectors: int8 [N, D], or uint8 [N, ceil(D / 8)], eight dimensions a byte."""
        if self.kind == "binary":
            return np.packbits(vectors_ND > 0, axis=1)
        low_D, step_D = self._steps()
        place_ND = np.rint((vectors_ND - low_D) / step_D)
        return (np.clip(place_ND, 0, _STEPS) - 128).astype(np.int8)

    def decode(self, codes_NC: np.ndarray, dimension: int) -> np.ndarray:
        """The float32 vectors [N, dimension] that codes stand for; of bits, 1 and -1."""
        if self.kind == "binary":
            bits_ND = np.unpackbits(codes_NC, axis=1, count=dimension)
            return bits_ND.astype(np.float32) * 2 - 1
        low_D, step_D = self._steps()
        return (codes_NC.astype(np.float32) + np.float32(128)) * step_D + low_D

    def prepare(self, documents_MD: Any, piece: Piece, place: Place, *, where: str) -> Any:
        exact = Vectors.of(documents_MD, place.device, rough=False, where=where)  # refuses what is not finite
        rough = bfloat16_is_faster(place.device)
        coded = Documents.of(
            self._through(documents_MD), piece.first, place.device, rough=rough, where=where, buffers=place.buffers
        )
        return _Prepared(coded, exact)

    def block(self, queries_QD: Any, k: int, limits: Limits | None, place: Place, *, where: str) -> Block:
        if limits is not None and limits.bound_Q is not None and bool((limits.bound_Q < np.inf).any()):
            raise ValueError("bounds are for true scores, which the first pass of a quantised search does not know")
        exact = Vectors.of(queries_QD, place.device, rough=False, where=where)
        first_QD = queries_QD if self.queries == "float" else self._through(queries_QD)
        wanted = self.rescore * k or k
        first = TopK(first_QD, wanted, limits=limits, device=place.device, buffers=place.buffers, where=where)
        return _Rescored(first, exact) if self.rescore else _FirstOnly(first)

    def merge(self, parts: list[np.ndarray], k: int) -> np.ndarray:
        if not self.rescore:
            return best_of(np.concatenate(parts, axis=1), k)
        first_QW, exact_QW = np.concatenate(parts, axis=2)
        order_QW = np.argsort(first_QW, axis=1, kind="stable")[:, : self.rescore * k]
        return best_of(np.take_along_axis(exact_QW, order_QW, 1), k)

    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and step of each dimension, float32 [D]; a dimension that is always the same has step 1."""
        assert self.ranges_2D is not None  # __post_init__ saw to it
        low_D, high_D = np.asarray(self.ranges_2D, np.float32)
        step_D = (high_D - low_D) / np.float32(_STEPS)
        return low_D, np.where(step_D > 0, step_D, np.float32(1))

    def _through(self, vectors_ND: np.ndarray) -> np.ndarray:
        """What is left of float32 vectors once they are quantised."""
        coded_ND = np.empty(vectors_ND.shape, np.float32)
        step = max(1, _ELEMENTS // max(1, vectors_ND.shape[1]))
        for at in range(0, len(vectors_ND), step):
            part_ND = vectors_ND[at : at + step]
            coded_ND[at : at + step] = self.decode(self.encode(part_ND), vectors_ND.shape[1])
        return coded_ND


@dataclass(frozen=True)
class _Prepared:
    """A piece of the documents: what the codes stand for, and the true vectors."""

    coded: Documents
    exact: Vectors


class _FirstOnly:
    """The quantised vectors' own k best."""

    def __init__(self, first: TopK) -> None:
        self.first = first

    @property
    def keys_QK(self) -> np.ndarray:
        return self.first.keys_QK

    @property
    def dropped_Q(self) -> np.ndarray:
        return self.first.dropped_Q

    def add(self, documents: _Prepared) -> None:
        self.first.add(documents.coded)


class _Rescored(_FirstOnly):
    """The first pass's best so far, and beside each its true score.

    exact_QW: keys of the documents of `first.keys_QK`, slot by slot, with true scores.
    """

    def __init__(self, first: TopK, queries: Vectors) -> None:
        super().__init__(first)
        self.queries = queries
        self.exact_QW = np.full_like(first.keys_QK, EMPTY)

    @property
    def keys_QK(self) -> np.ndarray:
        """uint64 [2, Q, rescore * k]: of the first pass, and with true scores."""
        return np.stack([self.first.keys_QK, self.exact_QW])

    def add(self, documents: _Prepared) -> None:
        """The documents are at hand now and not later, so what the first pass takes of them is scored at once."""
        self.first.add(documents.coded)
        row_QW = rows_of(self.first.keys_QK) - documents.coded.first
        new_QW = (row_QW >= 0) & (row_QW < len(documents.coded))
        # What was there before and still is, is the front of the old list: the end of it was pushed out.
        before_QW = np.maximum(np.cumsum(~new_QW, axis=1) - 1, 0)
        self.exact_QW = np.take_along_axis(self.exact_QW, before_QW, 1)
        query_P, slot_P = np.nonzero(new_QW)
        row_P = row_QW[query_P, slot_P]
        device = self.queries.exact_ND.device
        pairs = torch.from_numpy(query_P).to(device), torch.from_numpy(row_P).to(device)
        scores_P = score_pairs(self.queries.exact_ND, documents.exact.exact_ND, *pairs).cpu().numpy()
        self.exact_QW[query_P, slot_P] = keys_of(scores_P, row_P + documents.coded.first)


def ranges_of(documents: VectorShards, sample: int, seed: int) -> np.ndarray:
    """Smallest and largest value of each dimension in a sample of the documents, float32 [2, D].

    Raises:
        InputError: a sampled vector that is not finite, no documents, or a file that cannot be read.
    """
    from raycurate.core.errors import InputError

    if not len(documents):
        raise InputError("there are no documents to take the ranges of the dimensions from", where="int8")
    random = np.random.default_rng(seed)
    picked = np.sort(random.choice(len(documents), min(len(documents), sample), replace=False))
    low_D, high_D = np.full(documents.dimension, np.inf), np.full(documents.dimension, -np.inf)
    for piece in documents.pieces(0, len(documents), most=_READ):
        lo, hi = np.searchsorted(picked, (piece.first, piece.first + len(piece)))
        if hi == lo:
            continue
        rows_SD = documents.read(piece)[picked[lo:hi] - piece.first]
        good_S = np.isfinite(rows_SD).all(1)
        if not good_S.all():
            row = int(picked[lo + int(np.argmin(good_S))]) - piece.first + piece.lo
            raise InputError(f"vector {row:,} (counted from 0) is not finite", where=documents.paths[piece.shard])
        np.minimum(low_D, rows_SD.min(0), out=low_D)
        np.maximum(high_D, rows_SD.max(0), out=high_D)
    return np.stack([low_D, high_D]).astype(np.float32)
