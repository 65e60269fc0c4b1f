"""Queries and documents made ready for the passes, and single pairs scored.

A pair's score is its inner product, computed in float64 from the float32 vectors and rounded to float32. Always by
the one function here, which sums the elements of each pair in the same order whatever else is scored beside it: so
the number does not depend on the block, the shard or the worker (on one kind of device).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raycurate.core.errors import InputError

_CACHED = 1 << 17  # elements worked on at a time: what a core's cache holds
_LONGEST = 1e18  # length of a vector up to which no product leaves float32


@dataclass
class Buffers:
    """Work memory that is used again: fresh memory costs more than the arithmetic done in it."""

    held: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised, valid until the name and type are asked for again."""
        size = math.prod(shape)
        flat = self.held.get((name, dtype))
        if flat is None or len(flat) < size:
            flat = self.held[name, dtype] = torch.empty(size, dtype=dtype, device=device)
        return flat[:size].view(shape)


@dataclass(frozen=True)
class Vectors:
    """Vectors on the device, and what they lose in bfloat16.

    exact_ND: float32. rough_ND: bfloat16, None where nothing is computed in it. size_N: lengths, a little too large
    rather than too small. lost_N: ||x - rough x||, too large likewise; void without rough ones.
    """

    exact_ND: Tensor
    rough_ND: Tensor | None
    size_N: Tensor
    lost_N: Tensor

    @classmethod
    def of(
        cls, vectors_ND: np.ndarray, device: torch.device, *, rough: bool, where: str, buffers: Buffers | None = None
    ) -> Vectors:
        """Of float32 [N, D]; the rough ones in `buffers` where given, so that they last until the next are made there.

        Raises:
            InputError: a vector that is not finite, or longer than 1e18; the message counts from `where`.
        """
        # Arrow's memory is read-only, which torch warns of even where nothing is written.
        exact_ND = torch.from_numpy(np.require(vectors_ND, np.float32, ["C", "W"])).to(device)
        rough_ND = None
        if rough:
            rough_ND = (buffers or Buffers()).get("rough vectors", tuple(exact_ND.shape), torch.bfloat16, device)
        size_N = torch.empty(len(exact_ND), device=device)
        lost_N = torch.zeros_like(size_N)
        step = max(1, _CACHED // max(1, exact_ND.shape[1]))
        work_BD = torch.empty_like(exact_ND[:step])
        for at in range(0, len(exact_ND), step):
            part = slice(at, at + step)
            exact_BD = exact_ND[part]
            torch.linalg.vector_norm(exact_BD, dim=1, out=size_N[part])
            if rough_ND is not None:
                rough_ND[part] = exact_BD
                lost_BD = work_BD[: len(exact_BD)].copy_(rough_ND[part]).sub_(exact_BD)
                torch.linalg.vector_norm(lost_BD, dim=1, out=lost_N[part])
        bad_N = ~(size_N <= _LONGEST)
        if bad_N.any():
            row = int(bad_N.nonzero()[0, 0])
            kind = "too long for float32 scores" if torch.isfinite(exact_ND[row]).all() else "not finite"
            raise InputError(f"vector {row:,} (counted from 0) is {kind}", where=where)
        vanished = exact_ND.shape[1] ** 0.5 * 2.0**-62  # at most so long is what has squares too small for float32
        return cls(exact_ND, rough_ND, size_N.mul_(1.0001).add_(vanished), lost_N.mul_(1.0001).add_(vanished))

    def __len__(self) -> int:
        return len(self.exact_ND)


@dataclass(frozen=True)
class Documents:
    """Documents first, first + 1, ... made ready for many blocks of queries.

    widest, off: largest size_N and lost_N.
    """

    first: int
    vectors: Vectors
    widest: float
    off: float

    @classmethod
    def of(
        cls,
        vectors_MD: np.ndarray,
        first: int,
        device: torch.device,
        *,
        rough: bool,
        where: str = "documents",
        buffers: Buffers | None = None,
    ) -> Documents:
        """As `Vectors.of`, which says what `buffers` are for and what it raises."""
        vectors = Vectors.of(vectors_MD, device, rough=rough, where=where, buffers=buffers)
        if not len(vectors):
            return cls(first, vectors, 0.0, 0.0)
        return cls(first, vectors, float(vectors.size_N.max()), float(vectors.lost_N.max()))

    def __len__(self) -> int:
        return len(self.vectors)


def score_pairs(queries_QD: Tensor, documents_MD: Tensor, query_P: Tensor, document_P: Tensor) -> Tensor:
    """float32 [P], the scores of pairs sorted by query: the only place where a score that is given out is computed."""
    scores_P = torch.empty(len(query_P), dtype=torch.float32, device=query_P.device)
    dim = max(1, queries_QD.shape[1])
    if queries_QD.is_cuda:  # a few large steps
        for part in torch.arange(len(query_P), device=query_P.device).split((1 << 25) // dim):
            left_PD, right_PD = queries_QD[query_P[part]].double(), documents_MD[document_P[part]].double()
            scores_P[part] = left_PD.mul_(right_PD).sum(1).float()
        return scores_P
    step = max(1, _CACHED // dim)
    gathered_PD = queries_QD.new_empty((step, queries_QD.shape[1]))
    products_PD = gathered_PD.double()
    at = 0
    for query, count in zip(
        *(part.tolist() for part in torch.unique_consecutive(query_P, return_counts=True)), strict=True
    ):
        query_D = queries_QD[query].double()
        for lo in range(at, at + count, step):
            hi = min(lo + step, at + count)
            part_PD = products_PD[: hi - lo]
            part_PD.copy_(torch.index_select(documents_MD, 0, document_P[lo:hi], out=gathered_PD[: hi - lo]))
            scores_P[lo:hi] = part_PD.mul_(query_D).sum(1)
        at += count
    return scores_P
