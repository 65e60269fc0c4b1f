"""Every row's most similar earlier row, and every pair above a floor: all pairs of a cluster, exactly.

The products of n rows with each other cost n^2 * dim operations whatever is done, so the rate of the matrix product
is what counts. Three things make it fast: columns that are not earlier than a row are not computed (but for the tiles
on the diagonal); a first pass runs in bfloat16 where the hardware multiplies it; and the scores, n^2 / 2 of them, are
read once, for the maximum of each group of 64. Groups that cannot matter are never looked at again.

A bfloat16 score is wrong by up to 1%, but by how much is bounded for each row. Pairs that the bound leaves open, for
the row's maximum or for the floor, are scored again, one by one, in float64 and rounded to float32. Rows with so many
open pairs in a span that a product is cheaper (near copies throughout, or scores about zero) get a float32 product of
that span; rows that even float32 leaves open in many places a float64 product. Every score given out is therefore the
float32 value nearest to the true cosine, whichever way it went, and among equals the lowest rank wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raycurate.models.devices import bfloat16_is_faster, true_float32

_SCORES = 1 << 22  # scores held at a time: 8 MiB of bfloat16, which a large cache keeps
_ROWS = 2048  # rows of a block: the more, the less often the columns are repacked for the product
_TILE = 1024  # columns of one bfloat16 product on a CPU: oneDNN is slower with more, and fewer mean more calls
_GROUP = 64  # columns under one maximum
_PLAIN_ROWS = 512  # rows of one float32 product
_SMALL = 512  # rows up to which the bfloat16 pass costs more than it saves
_GATHERED = 1 << 17  # elements gathered at a time to score single pairs: the cache's size
_PER_OPEN = 128  # one pair scored by itself costs about what this many scores of a float32 product do
_NEVER = 0x7FFF  # above the bits of every score


@dataclass(frozen=True)
class Found:
    """What `compare` found, rows in the order given, as ranks of the cluster.

    scores_N: float32, the largest cosine to an earlier row, clipped to [0, 1]; 0 for the cluster's first row.
    earlier_N: int64, that row's rank (the most similar one even where the cosine is negative); the first row's own.
    later_E, first_E: int64, ranks of the pairs with a cosine of at least the floor, sorted by (later, first).
    cosines_E: float32, at most 1.
    """

    scores_N: np.ndarray
    earlier_N: np.ndarray
    later_E: np.ndarray
    first_E: np.ndarray
    cosines_E: np.ndarray


def compare(
    rows_ND: np.ndarray,
    first: int,
    columns: Iterable[tuple[int, np.ndarray]],
    *,
    floor: float,
    device: torch.device,
    rough: bool | None = None,
    block: int = _SCORES,
) -> Found:
    """Compare rows of one cluster with all rows that rank before them.

    Memory: the rows, one chunk of columns, and a few times `block` scores; never the cluster's square. A whole small
    cluster is `compare(rows, 0, [(0, rows)], ...)`; of a large one each task takes a range of rows.

    Args:
        rows_ND: float32 unit vectors of the ranks first, first + 1, ...
        columns: (rank of the first row, float32 rows [m, dim]) in ascending order, together the ranks from 0 to the
            last of rows_ND (which itself may be left out: no row is compared with it).
        floor: least cosine of the pairs returned; those within 1e-6 of it may go either way.
        rough: a first pass in bfloat16; None: where the hardware multiplies it and there are rows enough.
        block: scores held at a time.

    Raises:
        ValueError: the columns leave out a rank.
    """
    if rough is None:
        rough = bfloat16_is_faster(device) and first + len(rows_ND) > _SMALL
    with torch.inference_mode(), true_float32():
        search = _Search(_tensor(rows_ND, device), first, floor, rough=rough, block=block)
        covered = 0
        for start, chunk_MD in columns:
            if start != covered:
                raise ValueError(f"columns from rank {start} where rank {covered} is next")
            covered += len(chunk_MD)
            if len(chunk_MD) and start < first + len(rows_ND) - 1:
                search.add(_Columns.of(start, _tensor(chunk_MD, device), pad=search.tile if rough else 0))
        if covered < first + len(rows_ND) - 1:
            raise ValueError(f"columns end before rank {covered}, the rows end at {first + len(rows_ND) - 1}")
        return search.found()


@dataclass(frozen=True)
class _Columns:
    """A chunk of earlier rows.

    exact_MD: float32. rough_MD: bfloat16, zeros added to a whole number of tiles; None for float32 throughout.
    widest, off: largest ||c|| and largest ||c - rough c||.
    """

    start: int
    exact_MD: Tensor
    rough_MD: Tensor | None
    widest: float
    off: float

    @classmethod
    def of(cls, start: int, exact_MD: Tensor, *, pad: int) -> _Columns:
        widest = float(exact_MD.norm(dim=1).max())
        if not pad:
            return cls(start, exact_MD, None, widest, 0.0)
        rough_MD = exact_MD.new_empty((-(-len(exact_MD) // pad) * pad, exact_MD.shape[1]), dtype=torch.bfloat16)
        rough_MD[: len(exact_MD)] = exact_MD
        rough_MD[len(exact_MD) :] = 0
        return cls(start, exact_MD, rough_MD, widest, float(_lost(exact_MD, rough_MD[: len(exact_MD)]).max()))


@dataclass(frozen=True)
class _Block:
    """Rows at .. at + size of those given, against one chunk of columns. error_B: bound of the first pass's errors."""

    at: int
    size: int
    rank: int
    columns: _Columns
    error_B: Tensor
    plain_error_B: Tensor

    @property
    def rows(self) -> slice:
        return slice(self.at, self.at + self.size)


@dataclass(frozen=True)
class _Pairs:
    """Single pairs of a block: row in the block, column in the chunk, bits of the bfloat16 score."""

    row_P: Tensor
    column_P: Tensor
    bits_P: Tensor


class _Search:
    """State of one `compare`: what is known of each row after the columns seen so far.

    best_N: score of the best earlier row among those settled. lower_N: a value that the best score is known to reach.
    """

    def __init__(self, exact_ND: Tensor, first: int, floor: float, *, rough: bool, block: int) -> None:
        n, device = len(exact_ND), exact_ND.device
        self.exact_ND, self.first, self.floor = exact_ND, first, floor
        self.rows = max(1, min(n, _ROWS, math.isqrt(block)))
        whole = -(-(first + n) // _GROUP) * _GROUP
        span = max(_GROUP, min(block // self.rows, whole) // _GROUP * _GROUP)
        self.tile = min(_TILE, span) if device.type == "cpu" else span
        self.span = span // self.tile * self.tile
        self.norms_N = exact_ND.norm(dim=1)
        self.rough_ND = exact_ND.bfloat16() if rough else None
        self.lost_N = _lost(exact_ND, self.rough_ND) if self.rough_ND is not None else torch.zeros_like(self.norms_N)
        self.scores = torch.empty(self.rows * self.span if rough else 0, dtype=torch.bfloat16, device=device)
        shape = (max(1, _GATHERED // exact_ND.shape[1]), exact_ND.shape[1])
        self.work = [torch.empty(shape, dtype=t, device=device) for t in (torch.float32, torch.float64, torch.float64)]
        self.best_N = torch.full((n,), -torch.inf, device=device)
        self.lower_N = self.best_N.clone()
        self.earlier_N = torch.arange(first, first + n, device=device)
        self.edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, columns: _Columns) -> None:
        error_N, plain_error_N = self._errors(columns)
        for at in range(0, len(self.exact_ND), self.rows):
            size = min(self.rows, len(self.exact_ND) - at)
            rank, rows = self.first + at, slice(at, at + size)
            block = _Block(at, size, rank, columns, error_N[rows], plain_error_N[rows])
            stop = min(len(columns.exact_MD), rank + size - 1 - columns.start)
            if stop <= 0:
                continue
            spans = [(lo, min(lo + self.span, stop)) for lo in range(0, stop, self.span)]
            if self.rough_ND is None:
                every_R = torch.arange(size, device=self.exact_ND.device)
                for lo, hi in spans:
                    self._plain(block, every_R, lo, hi)
            else:
                self._score_open(block, [self._rough(block, lo, hi) for lo, hi in spans])

    def found(self) -> Found:
        scores_N = torch.where(self.best_N == -torch.inf, 0.0, self.best_N.clamp(0, 1))
        empty = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
        later_E, first_E, cosines_E = (np.concatenate(part) for part in zip(empty, *self.edges, strict=True))
        self.edges.clear()
        order = np.lexsort((first_E, later_E))
        return Found(
            scores_N.cpu().numpy(),
            self.earlier_N.cpu().numpy(),
            later_E[order].astype(np.int64),
            first_E[order].astype(np.int64),
            np.minimum(cosines_E[order], np.float32(1)),
        )

    def _errors(self, columns: _Columns) -> tuple[Tensor, Tensor]:
        """Bounds of |score - cosine| in the first pass, before its scores are rounded, and in a float32 product.

        |x.c - r(x).r(c)| <= ||x - r(x)|| ||c|| + ||r(x)|| ||c - r(c)||. A sum of dim products in float32 is off by at
        most dim * 2^-24 * ||x|| ||c||, in any order. 1e-6 covers the rounding of these bounds and of thresholds.
        """
        size_N = (self.norms_N + self.lost_N) * columns.widest
        summed_N = 2 * self.exact_ND.shape[1] * 2.0**-24 * size_N + 1e-6
        lost_N = self.lost_N * columns.widest + (self.norms_N + self.lost_N) * columns.off
        return 1.001 * lost_N + summed_N, summed_N

    def _rough(self, block: _Block, lo: int, hi: int) -> _Pairs:
        """Pairs that bfloat16 scores of columns lo .. hi leave open; rows with too many of them are done at once."""
        bits_TBS, groups_TBK = self._first_pass(block, range(lo, hi, self.tile))
        lower_B = self.lower_N[block.rows]
        # A rounded score stands for all values down to the middle between it and the next lower one.
        top_B = groups_TBK.amax((0, 2))
        least_B = (_value(top_B) + _value(top_B - 1)) / 2 - block.error_B
        torch.where(top_B > 0, torch.maximum(lower_B, least_B), lower_B, out=lower_B)
        threshold_B = self._threshold(block)
        # Bits order only positive scores: a row whose threshold is not positive is all open.
        crowded_B = threshold_B <= 0
        threshold_B.masked_fill_(crowded_B, _NEVER)
        tile_Q, row_Q, group_Q = (groups_TBK >= threshold_B[:, None]).nonzero().unbind(1)
        at_Q = (tile_Q * block.size + row_Q) * groups_TBK.shape[2] + group_Q
        bits_QG = bits_TBS.view(-1, _GROUP).index_select(0, at_Q)
        open_QG = bits_QG >= threshold_B[row_Q][:, None]
        count_B = torch.zeros(block.size, dtype=torch.int64, device=row_Q.device).index_add_(0, row_Q, open_QG.sum(1))
        crowded_B |= count_B > _most_open(hi - lo)
        if crowded_B.any():
            open_QG &= ~crowded_B[row_Q][:, None]
            self._plain(block, crowded_B.nonzero()[:, 0], lo, hi)
        which_P, column_P = open_QG.nonzero().unbind(1)
        bits_P = bits_QG[which_P, column_P]
        column_P = column_P + (lo + tile_Q * self.tile + group_Q * _GROUP)[which_P]
        return _Pairs(row_Q[which_P], column_P, bits_P)

    def _first_pass(self, block: _Block, tiles: range) -> tuple[Tensor, Tensor]:
        """Bits of the bfloat16 scores, [tiles, rows, columns of a tile], and their maxima by group, -1 where none.

        The bits of positive bfloat16 numbers order as int16 do, and int16 is compared several times faster. Negative
        scores have negative bits, whose order does not matter: they never reach a threshold.
        """
        assert self.rough_ND is not None and block.columns.rough_MD is not None  # add() checked
        scores_TBS = self.scores[: len(tiles) * block.size * self.tile].view(len(tiles), block.size, self.tile)
        bits_TBS = scores_TBS.view(torch.int16)
        groups_TBK = bits_TBS.new_empty((len(tiles), block.size, self.tile // _GROUP))
        for t, column in enumerate(tiles):
            ahead = block.rank - block.columns.start - column  # row b is later than the tile's first ahead + b columns
            skip = max(0, 1 - ahead)
            groups_TBK[t, :skip] = -1
            rows_BD = self.rough_ND[block.at + skip : block.at + block.size]
            torch.mm(rows_BD, block.columns.rough_MD[column : column + self.tile].T, out=scores_TBS[t, skip:])
            bits_BS = bits_TBS[t, skip:]
            _mask(bits_BS, ahead + skip, -1)
            torch.amax(bits_BS.view(len(bits_BS), -1, _GROUP), 2, out=groups_TBK[t, skip:])
        return bits_TBS, groups_TBK

    def _threshold(self, block: _Block) -> Tensor:
        """Bits of the bfloat16 score from which a pair may be its row's best, or reach the floor.

        Rounding keeps order, so the bound's own rounded value is the threshold: no room for the rounding is needed.
        """
        return (self.lower_N[block.rows].clamp(max=self.floor) - block.error_B).bfloat16().view(torch.int16)

    def _score_open(self, block: _Block, found: list[_Pairs]) -> None:
        """Score the pairs that are still open now that the maxima of all spans are known."""
        threshold_B = self._threshold(block)
        still = [p.bits_P >= threshold_B[p.row_P] for p in found]
        row_P = torch.cat([p.row_P[keep] for p, keep in zip(found, still, strict=True)])
        column_P = torch.cat([p.column_P[keep] for p, keep in zip(found, still, strict=True)])
        self._score(block, row_P, column_P)

    def _plain(self, block: _Block, rows_R: Tensor, lo: int, hi: int) -> None:
        """Score columns lo .. hi for some rows of the block (ascending) by a float32 product."""
        start = block.columns.start
        rows_R = rows_R[rows_R > start + lo - block.rank]  # the others have no earlier row there
        for part_R in rows_R.split(_PLAIN_ROWS) if len(rows_R) else ():
            stop = min(hi, block.rank + int(part_R[-1]) - start)
            own_R = part_R + block.at
            scores_RS = self.exact_ND[own_R] @ block.columns.exact_MD[lo:stop].T
            ahead_R = block.rank + part_R - start - lo
            _mask_rows(scores_RS, ahead_R)
            error_R = block.plain_error_B[part_R]
            self.lower_N[own_R] = torch.maximum(self.lower_N[own_R], scores_RS.amax(1) - error_R)
            least_R = self.lower_N[own_R].clamp(max=self.floor) - error_R
            open_RS = scores_RS >= least_R[:, None]
            many_R = open_RS.sum(1) > _most_open(stop - lo)
            if many_R.any():
                self._double(block, part_R[many_R], lo, stop)
                open_RS &= ~many_R[:, None]
            which_P, column_P = open_RS.nonzero().unbind(1)
            self._score(block, part_R[which_P], column_P + lo)

    def _double(self, block: _Block, rows_R: Tensor, lo: int, hi: int) -> None:
        """Score columns lo .. hi for rows that float32 leaves open, by a float64 product."""
        values_RS = (self.exact_ND[rows_R + block.at].double() @ block.columns.exact_MD[lo:hi].double().T).float()
        _mask_rows(values_RS, block.rank + rows_R - block.columns.start - lo)
        values_R, columns_R = values_RS.max(1)
        self._settle(block, rows_R, columns_R + lo, values_R)
        which_P, column_P = (values_RS >= self.floor).nonzero().unbind(1)
        self._keep_edges(block, rows_R[which_P], column_P + lo, values_RS[which_P, column_P])

    def _score(self, block: _Block, row_P: Tensor, column_P: Tensor) -> None:
        """Score single pairs: the ones left open by a product."""
        values_P = self._cosines(block, row_P, column_P)
        above_P = values_P >= self.floor
        self._keep_edges(block, row_P[above_P], column_P[above_P], values_P[above_P])
        self._settle(block, row_P, column_P, values_P)

    def _cosines(self, block: _Block, row_P: Tensor, column_P: Tensor) -> Tensor:
        """float32 cosines of single pairs, summed in float64: the same wherever the pair was found."""
        values_P = torch.empty(len(row_P), dtype=torch.float32, device=row_P.device)
        gathered_PD, rows_PD, columns_PD = self.work
        for at in range(0, len(row_P), step := len(gathered_PD)):
            row, column = row_P[at : at + step] + block.at, column_P[at : at + step]
            part = slice(len(row))
            rows_PD[part] = torch.index_select(self.exact_ND, 0, row, out=gathered_PD[part])
            columns_PD[part] = torch.index_select(block.columns.exact_MD, 0, column, out=gathered_PD[part])
            values_P[at : at + step] = rows_PD[part].mul_(columns_PD[part]).sum(1)
        return values_P

    def _keep_edges(self, block: _Block, row_E: Tensor, column_E: Tensor, values_E: Tensor) -> None:
        if len(row_E):
            later_E, first_E = (row_E + block.rank).int(), (column_E + block.columns.start).int()
            self.edges.append((later_E.cpu().numpy(), first_E.cpu().numpy(), values_E.cpu().numpy()))

    def _settle(self, block: _Block, row_P: Tensor, column_P: Tensor, values_P: Tensor) -> None:
        """Take final scores into the best known; of equal scores the lowest rank stays."""
        best_B, earlier_B = self.best_N[block.rows], self.earlier_N[block.rows]
        top_B = torch.full_like(best_B, -torch.inf).scatter_reduce_(0, row_P, values_P, "amax")
        last = torch.iinfo(torch.int64).max
        rank_P = torch.where(values_P == top_B[row_P], column_P + block.columns.start, last)
        rank_B = torch.full_like(earlier_B, last).scatter_reduce_(0, row_P, rank_P, "amin")
        better_B = (top_B > best_B) | ((top_B == best_B) & (rank_B < earlier_B) & (top_B > -torch.inf))
        best_B[better_B], earlier_B[better_B] = top_B[better_B], rank_B[better_B]
        lower_B = self.lower_N[block.rows]
        torch.maximum(lower_B, best_B, out=lower_B)


def _tensor(rows_ND: np.ndarray, device: torch.device) -> Tensor:
    # Arrow's memory is read-only, which torch warns of even where nothing is written.
    return torch.from_numpy(np.require(rows_ND, np.float32, ["C", "W"])).to(device)


def _lost(exact_ND: Tensor, rough_ND: Tensor) -> Tensor:
    """||x - rough x|| of each row, a few rows at a time."""
    step = max(1, _GATHERED // exact_ND.shape[1])
    work_BD = torch.empty_like(exact_ND[:step])  # one for all parts: fresh memory costs more than the arithmetic
    lost_N = torch.empty_like(exact_ND[:, 0])
    for at in range(0, len(exact_ND), step):
        exact_BD = exact_ND[at : at + step]
        lost_BD = work_BD[: len(exact_BD)].copy_(rough_ND[at : at + step]).sub_(exact_BD)
        lost_N[at : at + step] = lost_BD.norm(dim=1)
    return lost_N


def _most_open(columns: int) -> int:
    """Open pairs of a row above which a product of that many columns is cheaper than scoring them singly."""
    return max(8, columns // _PER_OPEN)


def _value(bits_B: Tensor) -> Tensor:
    return bits_B.view(torch.bfloat16).float()


def _mask(scores_BS: Tensor, ahead: int, value: int) -> None:
    """Fill in place the columns that are not earlier: row b has ahead + b earlier ones, ahead >= 1."""
    rows = min(len(scores_BS), scores_BS.shape[1] - ahead)
    if rows > 0:
        _fill_from(scores_BS[:rows], torch.arange(ahead, ahead + rows, device=scores_BS.device), value)


def _mask_rows(scores_RS: Tensor, ahead_R: Tensor) -> None:
    """The same for any ascending rows: row r has ahead_R[r] earlier columns."""
    if int(ahead_R[0]) < scores_RS.shape[1]:
        _fill_from(scores_RS, ahead_R, -torch.inf)


def _fill_from(scores_RS: Tensor, ahead_R: Tensor, value: float) -> None:
    columns_S = torch.arange(scores_RS.shape[1], device=scores_RS.device)
    scores_RS.masked_fill_(columns_S >= ahead_R[:, None], value)
