"""Each point's nearest centroid: blocked GEMM, exact also where the first pass is in bfloat16.

||x - c||^2 = ||x||^2 - 2 (x.c - ||c||^2 / 2), so the nearest centroid has the largest score x.c - ||c||^2 / 2
and one matrix product finds it. A bfloat16 product is several times faster where the hardware has it, but its
scores are off by up to 1%. How far off is bounded for each point; the centroids that the bound leaves open are
scored again in float32, so that the labels are those of float32.

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

_SCORES = 1 << 22  # scores of a block on a CPU: what fits the cache
_ROWS = 4096  # most rows of a block
_CACHED = 1024  # rows of a block that several passes read, on a CPU
_GROUP = 64  # centroids under one maximum
_FAR = -1e30  # score of what only fills a group up
_FUSED_ROWS = 1 << 17  # rows of a block where no scores are written
_MOST_OPEN = 8  # open centroids a point, on average, from which a float32 product is cheaper than scoring them


@dataclass(frozen=True)
class Centroids:
    """Centroids made ready for many blocks of points.

    centres_KD: float32. exact_KE: float64, with -||c||^2 / 2 in one further column. halves_K: ||c||^2 / 2, float32.
    rough_GE: in bfloat16, a whole number of groups, with -||c||^2 / 2 in two further columns (its bfloat16 value and
    the rest), so that one product gives the scores; None for float32 throughout. slack: (largest ||c||, largest
    ||c - rough c||, largest error of the two columns).
    """

    centres_KD: Tensor
    exact_KE: Tensor
    halves_K: Tensor
    rough_GE: Tensor | None
    slack: tuple[float, float, float]

    @classmethod
    def of(cls, centres_KD: Tensor, *, rough: bool) -> Centroids:
        k, dim = centres_KD.shape
        exact_KE = torch.empty(k, dim + 1, dtype=torch.float64, device=centres_KD.device)
        exact_KE[:, :-1] = centres_KD
        exact_KE[:, -1] = exact_KE[:, :-1].square().sum(1).div(-2)
        halves_K = -exact_KE[:, -1].float()
        if not rough or k < _GROUP:
            return cls(centres_KD, exact_KE, halves_K, None, (0.0, 0.0, 0.0))
        rough_GE = torch.zeros(-(-k // _GROUP) * _GROUP, _padded(dim), dtype=torch.bfloat16, device=centres_KD.device)
        rough_GE[:k, :dim] = centres_KD
        rough_GE[:k, dim] = -halves_K
        rough_GE[:k, dim + 1] = -halves_K - rough_GE[:k, dim].float()
        rough_GE[k:, dim] = _FAR
        lost_K = (centres_KD - rough_GE[:k, :dim].float()).norm(dim=1)
        left_K = (-halves_K - rough_GE[:k, dim : dim + 2].float().sum(1)).abs()
        slack = (float(centres_KD.norm(dim=1).max()), float(lost_K.max()), float(left_K.max()))
        return cls(centres_KD, exact_KE, halves_K, rough_GE, slack)

    def __len__(self) -> int:
        return len(self.centres_KD)


@dataclass(frozen=True)
class Rounding:
    """What the points lose in bfloat16: lost_N = ||x - rough x|| and size_N >= ||rough x||, float32.

    The same in every iteration, so it is kept between them.
    """

    lost_N: Tensor
    size_N: Tensor

    @classmethod
    def of(cls, points_ND: Tensor) -> Rounding:
        lost, size = [], []
        for part_BD in points_ND.split(_CACHED // 4):
            lost.append(part_BD.bfloat16().float().sub_(part_BD).norm(dim=1))
            size.append(part_BD.norm(dim=1) + lost[-1])
        return cls(torch.cat(lost), torch.cat(size))

    def __getitem__(self, rows: slice) -> Rounding:
        return Rounding(self.lost_N[rows], self.size_N[rows])


def assign(points_ND: Tensor, centroids: Centroids) -> tuple[Tensor, Tensor]:
    """Nearest centroid and squared distance to it.

    Args:
        points_ND: float32, on the centroids' device.

    Returns:
        labels_N int64 (the lowest index among equals, up to float32 rounding) and distances_N float32, ||x - c||^2.
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
    """Nearest centroid, int64 [N]: the lowest index among equals, up to float32 rounding.

    Args:
        points_ND: float32, on the centroids' device.
        rounding: `Rounding.of(points_ND)` where it is at hand.
        buffers: of the calls before, where there are more.
    """
    if not len(points_ND):
        return torch.empty(0, dtype=torch.int64, device=points_ND.device)
    fused = _fused_kernel() if points_ND.is_cuda else None
    rows = _FUSED_ROWS if fused else max(1, min(_ROWS, _SCORES // max(1, len(centroids))))
    if points_ND.is_cuda and not fused:
        rows = max(1, 16 * _SCORES // max(1, len(centroids)))
    if centroids.rough_GE is None:
        return torch.cat(
            [
                _fused(part_BD, centroids, fused) if fused else _exact(part_BD, centroids)
                for part_BD in points_ND.split(rows)
            ]
        )
    search, rounding = _Search(centroids, rows, buffers or Buffers()), rounding or Rounding.of(points_ND)
    parts = [slice(at, at + rows) for at in range(0, len(points_ND), rows)]
    return torch.cat([search(points_ND[part], rounding[part]) for part in parts])


def _exact(points_BD: Tensor, centroids: Centroids) -> Tensor:
    scores_BK = torch.addmm(centroids.halves_K, points_BD, centroids.centres_KD.T, beta=-1)
    return scores_BK.argmax(1)


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


def _padded(dim: int) -> int:
    """Columns of the rough product: two more than the vectors have, a whole number of the hardware's tiles."""
    return -(-(dim + 2) // 32) * 32


class Buffers:
    """What the first pass writes to, made once for many calls: the caches hold it, and no page of it is new."""

    def __init__(self) -> None:
        self._made: tuple[Tensor, Tensor] | None = None

    def of(self, rough_GE: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """(points [rows, E], scores [rows, G]), bfloat16, on the centroids' device."""
        shapes = [(rows, rough_GE.shape[1]), (rows, rough_GE.shape[0])]
        if self._made is None or [buffer.shape for buffer in self._made] != shapes:
            self._made = rough_GE.new_empty(shapes[0]), rough_GE.new_empty(shapes[1])
        return self._made


class _Search:
    """Two passes over blocks of at most `rows` points.

    The bits of positive bfloat16 numbers order as those of int16 do, so the scores are read once, as int16, for the
    maximum of each group; only groups that may hold the best are looked into.
    """

    def __init__(self, centroids: Centroids, rows: int, buffers: Buffers) -> None:
        assert centroids.rough_GE is not None  # nearest() checked
        self.centroids, self.rough_GE = centroids, centroids.rough_GE
        dim = centroids.centres_KD.shape[1]
        self.points_BE, self.scores_BG = buffers.of(self.rough_GE, rows)
        self.points_BE[:, dim:] = 0
        self.points_BE[:, dim : dim + 2] = 1

    def __call__(self, points_BD: Tensor, rounding: Rounding) -> Tensor:
        size, dim = points_BD.shape
        rough_BE = self.points_BE[:size]
        rough_BE[:, :dim] = points_BD
        scores_BG = self.scores_BG[:size]
        torch.mm(rough_BE, self.rough_GE.T, out=scores_BG)
        bits = scores_BG.view(torch.int16).view(size, -1, _GROUP)
        groups_BH = bits.amax(2)
        threshold_B, lost_B = self._threshold(rounding, groups_BH.amax(1))
        row_Q, group_Q = (groups_BH >= threshold_B[:, None]).nonzero().unbind(1)
        open_QG = (
            bits.view(-1, _GROUP).index_select(0, row_Q * groups_BH.shape[1] + group_Q) >= threshold_B[row_Q, None]
        )
        which_P, column_P = open_QG.nonzero().unbind(1)
        row_P, centre_P = row_Q[which_P], group_Q[which_P] * _GROUP + column_P
        count_B = torch.bincount(row_P, minlength=size)
        labels_B = torch.zeros(size, dtype=torch.int64, device=points_BD.device)
        labels_B[row_P] = centre_P
        crowded_B = (count_B > _MOST_OPEN) | lost_B
        if crowded_B.any():
            labels_B[crowded_B] = _exact(points_BD[crowded_B], self.centroids)
        several_P = (count_B > 1)[row_P] & ~crowded_B[row_P]
        self._decide(points_BD, row_P[several_P], centre_P[several_P], labels_B)
        return labels_B

    def _threshold(self, rounding: Rounding, top_B: Tensor) -> tuple[Tensor, Tensor]:
        """(bits of the score from which a centroid may be the best, where that says nothing).

        |x.c - r(x).r(c)| <= ||x - r(x)|| ||c|| + ||r(x)|| ||c - r(c)||, and a sum of dim products in float32 is off by
        dim * 2^-24 of their size at most. A rounded score stands for all values down to the middle between it and the
        next lower one; since rounding keeps order, the threshold is the rounded bound itself.
        """
        widest, off, left = self.centroids.slack
        lost_B, size_B = rounding.lost_N, rounding.size_N
        summed_B = 2 * self.rough_GE.shape[1] * 2.0**-24 * (size_B * widest + widest**2)
        error_B = 1.001 * (lost_B * widest + size_B * off + left) + summed_B + 1e-6
        least_B = (_value(top_B) + _value(top_B - 1)) / 2 - 2 * error_B
        unknown_B = (top_B <= 0) | (least_B <= 0)
        return least_B.bfloat16().view(torch.int16).masked_fill_(unknown_B, torch.iinfo(torch.int16).max), unknown_B

    def _decide(self, points_BD: Tensor, row_P: Tensor, centre_P: Tensor, labels_B: Tensor) -> None:
        """Float32 scores of the pairs left open, given in order of row and centroid; of equals the lowest stays."""
        if not len(row_P):
            return
        count, centroids = len(points_BD), self.centroids
        dots_P = torch.empty(len(row_P), device=points_BD.device)
        for at in range(0, len(row_P), _ROWS):
            row, centre = row_P[at : at + _ROWS], centre_P[at : at + _ROWS]
            dots_P[at : at + _ROWS] = (points_BD[row] * centroids.centres_KD[centre]).sum(1) - centroids.halves_K[
                centre
            ]
        top_B = torch.full((count,), -torch.inf, device=dots_P.device).scatter_reduce_(0, row_P, dots_P, "amax")
        winner_P = torch.where(dots_P == top_B[row_P], centre_P, len(centroids))
        first_B = torch.full_like(labels_B, len(centroids)).scatter_reduce_(0, row_P, winner_P, "amin")
        rows = first_B < len(centroids)
        labels_B[rows] = first_B[rows]


def _value(bits_B: Tensor) -> Tensor:
    return bits_B.view(torch.bfloat16).float()
