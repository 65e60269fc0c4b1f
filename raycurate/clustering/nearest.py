"""Each point's nearest centroid: blocked GEMM, and exact, whatever precision the first pass has.

||x - c||^2 = ||x||^2 - 2 (x.c - ||c||^2 / 2), so the nearest centroid has the largest score x.c - ||c||^2 / 2
and one matrix product finds it. A bfloat16 product is several times faster where the hardware has it, but its
scores are off by up to 1%; those of a float32 product by less, yet by something that depends on the processor and on
how the rows are cut into blocks. How far off is bounded for each point; the centroids that the bound leaves open are
scored again, those that are open still in float64. So the labels are those of float64 on every processor, for every
number of workers and whatever is remembered from the iteration before.

On CUDA, where flash-kmeans [Yang et al.] is installed, its Triton kernel does product and minimum in one pass without
writing the scores. Its float32 products are those of three TF32 ones (3xTF32, see `_fused_kernel`), about as exact as
float32; distances are computed anew for the label that was found, so that they are exact for it in any case.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_SCORES = {torch.bfloat16: 1 << 22, torch.float32: 1 << 21}  # scores of a block on a CPU: what fits the cache
_ROWS = 4096  # most rows of a block
_CACHED = 1024  # rows of a block that several passes read, on a CPU
_GROUP = 64  # centroids under one maximum
_FAR = -1e30  # score of what only fills a group up
_FUSED_ROWS = 1 << 17  # rows of a block where no scores are written
_MOST_OPEN = 8  # open centroids a point, on average, from which a product in the next precision is cheaper


def first_dtype(k: int, *, rough: bool) -> torch.dtype:
    """The precision of the first pass over k centroids: few do not repay one in bfloat16."""
    return torch.bfloat16 if rough and k >= _GROUP else torch.float32


@dataclass(frozen=True)
class Centroids:
    """Centroids made ready for many blocks of points.

    centres_KD: float32. exact_KE: float64, with -||c||^2 / 2 in one further column. halves_K: ||c||^2 / 2, float32.
    first_GE: what the first pass multiplies, bfloat16 or float32: a whole number of groups, with -||c||^2 / 2 in two
    further columns (its own value and the rest), so that one product gives the scores. group: centroids under one
    maximum. slack: (largest ||c||, largest ||c - first c||, largest error of the two columns).
    """

    centres_KD: Tensor
    exact_KE: Tensor
    halves_K: Tensor
    first_GE: Tensor
    group: int
    slack: tuple[float, float, float]

    @classmethod
    def of(cls, centres_KD: Tensor, *, rough: bool) -> Centroids:
        """`rough`: a first pass in bfloat16 where there are centroids enough, else in float32."""
        k, dim = centres_KD.shape
        group = min(_GROUP, k)
        exact_KE = torch.empty(k, dim + 1, dtype=torch.float64, device=centres_KD.device)
        exact_KE[:, :-1] = centres_KD
        exact_KE[:, -1] = exact_KE[:, :-1].square().sum(1).div(-2)
        dtype = first_dtype(k, rough=rough)
        first_GE = torch.zeros(-(-k // group) * group, _padded(dim, dtype), dtype=dtype, device=centres_KD.device)
        first_GE[:k, :dim] = centres_KD
        first_GE[:k, dim] = exact_KE[:, -1]
        first_GE[:k, dim + 1] = exact_KE[:, -1] - first_GE[:k, dim].double()
        first_GE[k:, dim] = _FAR
        lost_K = (centres_KD - first_GE[:k, :dim].float()).norm(dim=1)
        left_K = (exact_KE[:, -1] - first_GE[:k, dim : dim + 2].double().sum(1)).abs()
        slack = (float(centres_KD.norm(dim=1).max()), float(lost_K.max()), float(left_K.max()))
        return cls(centres_KD, exact_KE, -exact_KE[:, -1].float(), first_GE, group, slack)

    @functools.cached_property
    def finer(self) -> Centroids:
        """The same with a first pass in float32."""
        return Centroids.of(self.centres_KD, rough=False)

    def __len__(self) -> int:
        return len(self.centres_KD)


@dataclass(frozen=True)
class Rounding:
    """What the points lose in the first pass's precision: lost_N = ||x - first x|| and size_N >= ||first x||, float32.

    The same in every iteration, so it is kept between them.
    """

    lost_N: Tensor
    size_N: Tensor

    @classmethod
    def of(cls, points_ND: Tensor, dtype: torch.dtype) -> Rounding:
        if dtype == torch.float32:
            size_N = torch.cat([part_BD.norm(dim=1) for part_BD in points_ND.split(_CACHED)])
            return cls(torch.zeros_like(size_N), size_N)
        lost, size = [], []
        for part_BD in points_ND.split(_CACHED // 4):
            lost.append(part_BD.to(dtype).float().sub_(part_BD).norm(dim=1))
            size.append(part_BD.norm(dim=1) + lost[-1])
        return cls(torch.cat(lost), torch.cat(size))

    def __getitem__(self, rows: slice) -> Rounding:
        return Rounding(self.lost_N[rows], self.size_N[rows])


def assign(points_ND: Tensor, centroids: Centroids) -> tuple[Tensor, Tensor]:
    """Nearest centroid and squared distance to it.

    Args:
        points_ND: float32, on the centroids' device.

    Returns:
        labels_N int64 (the lowest index among equals, up to float64 rounding) and distances_N float32, ||x - c||^2.
    """
    labels_N = nearest(points_ND, centroids)
    return labels_N, distances(points_ND, centroids.centres_KD, labels_N)


def distances(points_ND: Tensor, centres_KD: Tensor, labels_N: Tensor) -> Tensor:
    """||x - c||^2 of each point to the centroid that its label names; float32 [N]."""
    rows = _FUSED_ROWS if points_ND.is_cuda else _CACHED
    parts = zip(points_ND.split(rows), labels_N.split(rows), strict=True)
    return torch.cat([(centres_KD[labels_B].sub_(part_BD)).square_().sum(1) for part_BD, labels_B in parts])


def nearest(
    points_ND: Tensor, centroids: Centroids, rounding: Rounding | None = None, buffers: Buffers | None = None
) -> Tensor:
    """Nearest centroid, int64 [N]: the lowest index among equals, up to float64 rounding.

    Args:
        points_ND: float32, on the centroids' device.
        rounding: `Rounding.of(points_ND, centroids.first_GE.dtype)` where it is at hand.
        buffers: of the calls before, where there are more.
    """
    if not len(points_ND):
        return torch.empty(0, dtype=torch.int64, device=points_ND.device)
    fused = _fused_kernel() if points_ND.is_cuda else None
    if fused:
        return torch.cat([_fused(part_BD, centroids, fused) for part_BD in points_ND.split(_FUSED_ROWS)])
    dtype, wide = centroids.first_GE.dtype, len(centroids.first_GE)
    rows = 16 * _SCORES[dtype] // wide if points_ND.is_cuda else min(_ROWS, _SCORES[dtype] // wide)
    rows = max(1, min(rows, len(points_ND)))
    search = _Search(centroids, rows, buffers or Buffers())
    rounding = rounding or Rounding.of(points_ND, dtype)
    parts = [slice(at, at + rows) for at in range(0, len(points_ND), rows)]
    return torch.cat([search(points_ND[part], rounding[part]) for part in parts])


@functools.cache
def _fused_kernel() -> Callable[..., Tensor] | None:
    """flash-kmeans' kernel: (x [1, N, D], c [1, K, D], |x|^2 [1, N], c_sq=|c|^2 [1, K]) -> labels [1, N] int32.

    None where the package is not installed. Triton multiplies float32 as TF32 (10 bits) unless told otherwise before
    the kernel is compiled; with `tf32x3` the three largest of the four products of halves are summed.
    """
    try:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
    except ImportError:
        return None
    os.environ.setdefault("TRITON_F32_DEFAULT", "tf32x3")
    return euclid_assign_triton


def _fused(points_BD: Tensor, centroids: Centroids, kernel: Callable[..., Tensor]) -> Tensor:
    """Labels by one kernel, which is compiled for each shape: so both counts are rounded up, by an eighth at most.

    What is added to the centroids is infinitely far away.
    """
    rows, k = (_rounded_up(count) - count for count in (len(points_BD), len(centroids)))
    padded_BD, padded_KD = pad(points_BD, (0, 0, 0, rows)), pad(centroids.centres_KD, (0, 0, 0, k))
    squares_K = pad(2 * centroids.halves_K, (0, k), value=torch.inf)
    labels_B = kernel(padded_BD[None], padded_KD[None], padded_BD.square().sum(1)[None], c_sq=squares_K[None])[0]
    return labels_B[: len(points_BD)].long()


def _rounded_up(count: int) -> int:
    step = 1 << max(5, count.bit_length() - 4)
    return -(-count // step) * step


def _padded(dim: int, dtype: torch.dtype) -> int:
    """Columns of the first product: two more than the vectors have, a whole number of the hardware's tiles."""
    tile = 32 if dtype == torch.bfloat16 else 8
    return -(-(dim + 2) // tile) * tile


class Buffers:
    """What the first pass writes to, made once for many calls: the caches hold it, and no page of it is new."""

    def __init__(self) -> None:
        self._made: tuple[Tensor, Tensor] | None = None

    def of(self, first_GE: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """(points [rows, E], scores [rows, G]) of the first pass's type, on the centroids' device."""
        wanted = [((rows, width), first_GE.dtype) for width in reversed(first_GE.shape)]
        if self._made is None or [(tuple(buffer.shape), buffer.dtype) for buffer in self._made] != wanted:
            self._made = first_GE.new_empty(wanted[0][0]), first_GE.new_empty(wanted[1][0])
        return self._made


class _Search:
    """Passes over blocks of at most `rows` points, each in more precision, over what the one before left open.

    Scores are read once, for the maximum of each group; only groups that may hold the best are looked into. The bits
    of positive bfloat16 numbers order as those of int16 do, which is compared several times faster.
    """

    def __init__(self, centroids: Centroids, rows: int, buffers: Buffers) -> None:
        self.centroids, self.first_GE, self.group = centroids, centroids.first_GE, centroids.group
        self.rough = self.first_GE.dtype == torch.bfloat16
        dim = centroids.centres_KD.shape[1]
        self.points_BE, self.scores_BG = buffers.of(self.first_GE, rows)
        self.points_BE[:, dim:] = 0
        self.points_BE[:, dim : dim + 2] = 1

    def __call__(self, points_BD: Tensor, rounding: Rounding) -> Tensor:
        size, dim = points_BD.shape
        first_BE = self.points_BE[:size]
        first_BE[:, :dim] = points_BD
        scores_BG = self.scores_BG[:size]
        torch.mm(first_BE, self.first_GE.T, out=scores_BG)
        values_BG = scores_BG.view(torch.int16) if self.rough else scores_BG
        groups_BH = values_BG.view(size, -1, self.group).amax(2)
        threshold_B, lost_B = self._threshold(rounding, groups_BH.amax(1))
        row_Q, group_Q = (groups_BH >= threshold_B[:, None]).nonzero().unbind(1)
        at_Q = row_Q * groups_BH.shape[1] + group_Q
        open_QG = values_BG.view(-1, self.group).index_select(0, at_Q) >= threshold_B[row_Q, None]
        which_P, column_P = open_QG.nonzero().unbind(1)
        row_P, centre_P = row_Q[which_P], group_Q[which_P] * self.group + column_P
        count_B = torch.bincount(row_P, minlength=size)
        labels_B = torch.zeros(size, dtype=torch.int64, device=points_BD.device)
        labels_B[row_P] = centre_P
        crowded_B = (count_B > _MOST_OPEN) | lost_B
        if crowded_B.any():
            labels_B[crowded_B] = self._crowded(points_BD[crowded_B])
        several_P = (count_B > 1)[row_P] & ~crowded_B[row_P]
        row_P, centre_P = row_P[several_P], centre_P[several_P]
        if self.rough:
            row_P, centre_P = self._still_open(points_BD, row_P, centre_P, rounding, labels_B)
        self._decide(points_BD, row_P, centre_P, labels_B)
        return labels_B

    def _threshold(self, rounding: Rounding, top_B: Tensor) -> tuple[Tensor, Tensor]:
        """(score from which a centroid may be the best, where nothing is known), the score as bits in bfloat16.

        |x.c - r(x).r(c)| <= ||x - r(x)|| ||c|| + ||r(x)|| ||c - r(c)||. A rounded score stands for all values down to
        the middle between it and the next lower one; since rounding keeps order, the threshold is the rounded bound
        itself.
        """
        widest, off, left = self.centroids.slack
        lost_B, size_B = rounding.lost_N, rounding.size_N
        error_B = 1.001 * (lost_B * widest + size_B * off + left) + self._summed(size_B)
        if not self.rough:
            return top_B - 2 * error_B, torch.zeros_like(top_B, dtype=torch.bool)
        least_B = (_value(top_B) + _value(top_B - 1)) / 2 - 2 * error_B - 2e-6
        unknown_B = (top_B <= 0) | (least_B <= 0)
        return least_B.bfloat16().view(torch.int16).masked_fill_(unknown_B, torch.iinfo(torch.int16).max), unknown_B

    def _summed(self, size_B: Tensor) -> Tensor:
        """Bound of the error of a sum of E products in float32: E * 2^-24 of their size; twice that."""
        widest = self.centroids.slack[0]
        return 2 * self.first_GE.shape[1] * 2.0**-24 * (size_B * widest + widest**2)

    def _crowded(self, points_BD: Tensor) -> Tensor:
        """Labels of points with many open centroids: by a product in the next precision."""
        if self.rough:
            return nearest(points_BD, self.centroids.finer)
        labels = []
        exact_KE = self.centroids.exact_KE
        for part_BD in points_BD.split(max(1, _SCORES[torch.float32] // len(self.centroids))):
            scores_BK = torch.addmm(exact_KE[:, -1], part_BD.double(), exact_KE[:, :-1].T)
            least_B = scores_BK.amax(1) - self._tie(part_BD)
            labels.append((scores_BK >= least_B[:, None]).to(torch.int8).argmax(1))  # the first of the largest
        return torch.cat(labels)

    def _still_open(
        self, points_BD: Tensor, row_P: Tensor, centre_P: Tensor, rounding: Rounding, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of several open pairs a point, those that float32 leaves open; where it is one, it is the label."""
        dots_P = torch.empty(len(row_P), device=points_BD.device)
        centres_KD, halves_K = self.centroids.centres_KD, self.centroids.halves_K
        for at in range(0, len(row_P), _ROWS):
            row, centre = row_P[at : at + _ROWS], centre_P[at : at + _ROWS]
            dots_P[at : at + _ROWS] = (points_BD[row] * centres_KD[centre]).sum(1) - halves_K[centre]
        least_B = _largest(dots_P, row_P, len(points_BD)) - 2 * self._summed(rounding.size_N)
        open_P = dots_P >= least_B[row_P]
        row_P, centre_P = row_P[open_P], centre_P[open_P]
        labels_B[row_P] = centre_P
        several_P = torch.bincount(row_P, minlength=len(points_BD))[row_P] > 1
        return row_P[several_P], centre_P[several_P]

    def _decide(self, points_BD: Tensor, row_P: Tensor, centre_P: Tensor, labels_B: Tensor) -> None:
        """Float64 scores of the pairs left open; of equals the lowest centroid is the label."""
        if not len(row_P):
            return
        exact_KE, count = self.centroids.exact_KE, len(self.centroids)
        dots_P = torch.empty(len(row_P), dtype=torch.float64, device=points_BD.device)
        for at in range(0, len(row_P), _ROWS):
            row, centre_PE = row_P[at : at + _ROWS], exact_KE[centre_P[at : at + _ROWS]]
            dots_P[at : at + _ROWS] = (points_BD[row].double() * centre_PE[:, :-1]).sum(1) + centre_PE[:, -1]
        least_B = _largest(dots_P, row_P, len(points_BD)) - self._tie(points_BD)
        winner_P = torch.where(dots_P >= least_B[row_P], centre_P, count)
        first_B = torch.full_like(labels_B, count).scatter_reduce_(0, row_P, winner_P, "amin")
        rows = first_B < count
        labels_B[rows] = first_B[rows]

    def _tie(self, points_BD: Tensor) -> Tensor:
        """Scores nearer to each other than this, float64 [B], are equal: what float64 sums may be off by."""
        widest = self.centroids.slack[0]
        return self.first_GE.shape[1] * 2.0**-52 * (points_BD.norm(dim=1).double() * widest + widest**2)


def _largest(values_P: Tensor, row_P: Tensor, rows: int) -> Tensor:
    """The largest value of each row; -inf where it has none."""
    return values_P.new_full((rows,), -torch.inf).scatter_reduce_(0, row_P, values_P, "amax")


def _value(bits_B: Tensor) -> Tensor:
    return bits_B.view(torch.bfloat16).float()
