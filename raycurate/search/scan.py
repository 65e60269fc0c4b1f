"""One pass over documents in one precision: which pairs may be hits, given how wrong its scores can be.

A block of queries is multiplied with a span of documents after the other. The scores are read once, for the maximum
of each group of documents; the k-th largest of the maxima (less the error) is a score that k documents are known to
reach, so only groups above it (less the error) are looked into. The bits of positive bfloat16 numbers order as int16
do, which is compared several times faster: a bfloat16 scan works on bits, a float32 scan on values.

|x.c - r(x).r(c)| <= ||x - r(x)|| ||c|| + ||r(x)|| ||c - r(c)||, and a sum of D products in float32, in any order, is
off by at most D * 2^-24 * ||x|| ||c|| to first order. Rounding keeps order: if a true score is at least t, the stored
one is at least the rounded t - error. So bounds are rounded once, and compared with what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from raycurate.search.prepared import Buffers, Documents

TILE = 1024  # documents of one product on a CPU: oneDNN is slower with more, and fewer mean more calls
_GROUP = 64  # documents under one maximum, fewer where k is large
_SPAN = 4096  # documents between two looks at the bound, at least
_NEVER = 0x7FFF  # above the bits of every score


@dataclass(frozen=True)
class Asked:
    """Some queries and what is known of them.

    exact_RD, size_R, lost_R: as in `Vectors`; rough_RD for a bfloat16 scan. least_R: float64, a score that the query's
    k-th hit is known to reach. bound_R: float64, +inf where there is none. excluded: (query [E], column [E]) of pairs
    that do not count, sorted by column. barred: columns that do not count for any query, sorted.
    """

    exact_RD: Tensor
    rough_RD: Tensor | None
    size_R: Tensor
    lost_R: Tensor
    least_R: Tensor
    bound_R: Tensor | None
    excluded: tuple[Tensor, Tensor]
    barred: Tensor


@dataclass(frozen=True)
class Open:
    """What a scan leaves to be scored.

    query_P, column_P: pairs, sorted by query. crowded_R: queries with too many of them, which have none here.
    dropped_R: int64, documents surely above the bound; void for the crowded ones.
    """

    query_P: Tensor
    column_P: Tensor
    crowded_R: Tensor
    dropped_R: Tensor


def scan(asked: Asked, documents: Documents, k: int, buffers: Buffers) -> Open:
    """Scan all documents, in bfloat16 if `asked.rough_RD` is given, else in float32."""
    return _Scan(asked, documents, k, buffers).run()


def most_open(documents: int, k: int) -> int:
    """Open pairs of a query above which another precision is cheaper than scoring them."""
    return max(4 * k, min(documents // 64, 4096))


class _Scan:
    """State of one scan. comparable: what scores are compared as, bits or values."""

    def __init__(self, asked: Asked, documents: Documents, k: int, buffers: Buffers) -> None:
        self.asked, self.documents, self.k, self.buffers = asked, documents, k, buffers
        self.rough = asked.rough_RD is not None
        self.dtype = torch.bfloat16 if self.rough else torch.float32
        self.comparable = torch.int16 if self.rough else torch.float32
        self.least = -1 if self.rough else -torch.inf  # of what does not count
        self.never = _NEVER if self.rough else torch.inf
        device = asked.exact_RD.device
        self.group = _GROUP
        while self.group > 1 and (2 * k * self.group > 4 * _SPAN or 4 * k * self.group > len(documents)):
            self.group //= 2
        self.tile = TILE if device.type == "cpu" else 8 * TILE
        self.span = -(-max(_SPAN, 2 * k * self.group) // self.tile) * self.tile
        self.span = min(self.span, -(-len(documents) // self.tile) * self.tile)
        self.later = min(self.span, max(_SPAN, self.tile))
        self.limit = most_open(len(documents), k)
        self.error_R = self._error()
        self.least_R = asked.least_R.clone()
        queries = len(asked.exact_RD)
        self.crowded_R = torch.zeros(queries, dtype=torch.bool, device=device)
        self.count_R = torch.zeros(queries, dtype=torch.int64, device=device)
        self.dropped_R = torch.zeros_like(self.count_R)
        self.maxima_RG = torch.empty((queries, 0), dtype=self.comparable, device=device)  # the k largest so far
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        if asked.bound_R is not None:
            above_R, self.crowded_R = self._rounded(asked.bound_R + self.error_R)
            self.above_R = above_R.masked_fill_(self.crowded_R, self.never)
            self.valid_R, _ = self._rounded(asked.bound_R - self.error_R)

    def run(self) -> Open:
        documents = len(self.documents)
        starts_E = self.asked.excluded[1].cpu().numpy()
        edges = [0, *range(min(self.span, documents), documents, self.later), documents]
        for lo, hi in pairwise(edges):
            scores_TRS, groups_TRG = self._maxima(lo, hi, tuple(np.searchsorted(starts_E, (lo, hi)).tolist()))
            if self.asked.bound_R is not None:
                self._drop(scores_TRS, groups_TRG)
            self._raise(groups_TRG)
            self._collect(lo, scores_TRS, groups_TRG)
        threshold_R, crowded_R = self._threshold()
        crowded_R |= self.crowded_R
        query_P, column_P, score_P = (torch.cat(parts) for parts in zip(*self.pairs, strict=True))
        open_P = score_P >= threshold_R[query_P]
        self.count_R.zero_().index_add_(0, query_P, open_P.long())
        crowded_R |= self.count_R > self.limit
        open_P &= ~crowded_R[query_P]
        query_P, column_P = query_P[open_P], column_P[open_P]
        order = _order(query_P)
        return Open(query_P[order], column_P[order], crowded_R, self.dropped_R)

    def _error(self) -> Tensor:
        """float64 [R], how far off a score is at most before it is stored; see the module's docstring.

        The factor 2 and the 8 cover the second order and the rounding of bounds; the last term, products too small
        for a float32, which the hardware takes for 0.
        """
        asked, documents = self.asked, self.documents
        dim = asked.exact_RD.shape[1]
        size_R, lost_R = asked.size_R.double(), asked.lost_R.double()
        tiny_R = dim * 2.0**-120 * (1 + size_R + documents.widest)
        if not self.rough:
            return 2 * (dim + 8) * 2.0**-24 * size_R * documents.widest + tiny_R
        size_R = size_R + lost_R
        lost_R = lost_R * documents.widest + size_R * documents.off
        return 1.001 * lost_R + 2 * (dim + 8) * 2.0**-24 * size_R * (documents.widest + documents.off) + tiny_R

    def _rounded(self, score_R: Tensor) -> tuple[Tensor, Tensor]:
        """float64 scores as what stored ones are compared with, and where that cannot be done.

        Of bits only those of positive numbers are in order.
        """
        if not self.rough:
            value_R = score_R.float().clamp(min=torch.finfo(torch.float32).min)
            return value_R, torch.zeros_like(score_R, dtype=torch.bool)
        bits_R = score_R.clamp(max=1e38).float().bfloat16()
        unsure_R = ~(bits_R > 0)
        return bits_R.view(torch.int16).masked_fill(unsure_R, 0), unsure_R

    def _maxima(self, lo: int, hi: int, excluded: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Comparable scores [tiles, queries, tile] of documents lo .. hi, and the maxima of their groups."""
        asked, vectors = self.asked, self.documents.vectors
        left_RD = asked.rough_RD if asked.rough_RD is not None else asked.exact_RD
        right_MD = vectors.rough_ND if self.rough else vectors.exact_ND
        assert right_MD is not None  # whoever has rough queries made rough documents
        device, tiles = left_RD.device, -(-(hi - lo) // self.tile)
        shape = (tiles, len(left_RD), self.tile)
        stored_TRS = self.buffers.get("scores", shape, self.dtype, device)
        scores_TRS = stored_TRS.view(self.comparable)
        groups_TRG = torch.empty((*shape[:2], self.tile // self.group), dtype=self.comparable, device=device)
        first, stop = excluded
        query_E, column_E = asked.excluded[0][first:stop], asked.excluded[1][first:stop] - lo
        for t in range(tiles):
            at = lo + t * self.tile
            width = min(self.tile, hi - at)
            torch.mm(left_RD, right_MD[at : at + width].T, out=stored_TRS[t, :, :width])
            if width < self.tile:
                scores_TRS[t, :, width:] = self.least
            if len(query_E):
                here_E = column_E // self.tile == t
                scores_TRS[t, query_E[here_E], column_E[here_E] % self.tile] = self.least
            lo_B, hi_B = torch.searchsorted(asked.barred, torch.tensor([at, at + width], device=device)).tolist()
            if hi_B > lo_B:
                scores_TRS[t, :, asked.barred[lo_B:hi_B] - at] = self.least
            torch.amax(scores_TRS[t].view(shape[1], -1, self.group), 2, out=groups_TRG[t])
        return scores_TRS, groups_TRG

    def _drop(self, scores_TRS: Tensor, groups_TRG: Tensor) -> None:
        """Count the documents that are surely above the bound, and take them out."""
        flat_XG = scores_TRS.view(-1, self.group)
        for at in where(groups_TRG > self.above_R[:, None]).split((1 << 20) // self.group):
            query = at // groups_TRG.shape[2] % groups_TRG.shape[1]
            scores_HG = flat_XG[at]
            over_HG = scores_HG > self.above_R[query][:, None]
            self.dropped_R.index_add_(0, query, over_HG.sum(1))
            scores_HG.masked_fill_(over_HG, self.least)
            flat_XG[at] = scores_HG
            groups_TRG.view(-1)[at] = scores_HG.amax(1)

    def _raise(self, groups_TRG: Tensor) -> None:
        """Raise the score that k documents are known to reach."""
        # Of a group whose best may be above the bound nothing is known.
        if self.asked.bound_R is not None:
            groups_TRG = groups_TRG.masked_fill(groups_TRG >= self.valid_R[:, None], self.least)
        maxima_RG = torch.cat([self.maxima_RG, groups_TRG.transpose(0, 1).reshape(groups_TRG.shape[1], -1)], 1)
        if maxima_RG.shape[1] < self.k:
            self.maxima_RG = maxima_RG
            return
        self.maxima_RG = _largest(maxima_RG, self.k)
        kth_R = self.maxima_RG[:, 0]
        if self.rough:
            # A rounded score stands for all values down to the middle between it and the next lower one.
            known_R = (_value(kth_R) + _value(kth_R - 1)) / 2 - self.error_R
            known_R.masked_fill_(kth_R <= 0, -torch.inf)
        else:
            known_R = kth_R.double() - self.error_R
        torch.maximum(self.least_R, known_R, out=self.least_R)

    def _threshold(self) -> tuple[Tensor, Tensor]:
        """What a score must reach to be a hit's, and queries of which all documents may."""
        return self._rounded(self.least_R - self.error_R)

    def _collect(self, lo: int, scores_TRS: Tensor, groups_TRG: Tensor) -> None:
        """Keep the pairs of this span that are open now."""
        threshold_R, unsure_R = self._threshold()
        threshold_R.masked_fill_(self.crowded_R | unsure_R, self.never)
        at_H = where(groups_TRG >= threshold_R[:, None])
        tile_H = at_H // groups_TRG[0].numel()
        query_H = at_H // groups_TRG.shape[2] % groups_TRG.shape[1]
        start_H = lo + tile_H * self.tile + at_H % groups_TRG.shape[2] * self.group
        scores_HG = scores_TRS.view(-1, self.group).index_select(0, at_H)
        at_P = where(scores_HG >= threshold_R[query_H][:, None])
        which_P = at_P // self.group
        query_P, column_P = query_H[which_P], start_H[which_P] + at_P % self.group
        score_P = scores_HG.view(-1)[at_P]
        self.pairs.append((query_P, column_P, score_P))
        self.count_R += torch.bincount(query_P, minlength=len(self.count_R))
        # A query that was passed over even once cannot be answered by this scan.
        self.crowded_R |= unsure_R | (self.count_R > 2 * self.limit)


def _value(bits_R: Tensor) -> Tensor:
    return bits_R.view(torch.bfloat16).double()


def where(mask: Tensor) -> Tensor:
    """Flat indices of what is True; numpy's search for them is the faster one on a CPU."""
    if mask.device.type != "cpu":
        return mask.view(-1).nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _order(query_P: Tensor) -> Tensor:
    """The stable order of queries' indices."""
    if query_P.device.type != "cpu":
        return query_P.argsort(stable=True)
    # Of 16 bits numpy sorts by radix; TopK scans fewer queries than they can count.
    return torch.from_numpy(np.argsort(query_P.numpy().astype(np.uint16), kind="stable"))


def _largest(values_RG: Tensor, k: int) -> Tensor:
    """The k largest of each row, the smallest of them first."""
    if values_RG.device.type != "cpu":
        return values_RG.topk(k, dim=1).values.flip(1)
    width = values_RG.shape[1]
    return torch.from_numpy(np.partition(values_RG.numpy(), width - k, axis=1)[:, width - k :].copy())
