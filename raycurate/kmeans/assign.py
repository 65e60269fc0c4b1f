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

_UNIT = 2.0**-8  # bfloat16's unit roundoff
_SCORES = 1 << 24  # scores of a block: 64 MiB of float32
_FUSED_ROWS = 1 << 17  # rows of a block where no scores are written
_MOST_OPEN = 8  # open centroids a point, on average, from which a float32 product is cheaper than scoring them


@dataclass(frozen=True)
class Centroids:
    """Centroids made ready for many blocks of points.

    centres_KD: float32. halves_K: ||c||^2 / 2. rough_KD: in bfloat16, or None for float32 throughout.
    slack: (largest ||c||, largest ||c - rough c||).
    """

    centres_KD: Tensor
    halves_K: Tensor
    rough_KD: Tensor | None
    slack: tuple[float, float]

    @classmethod
    def of(cls, centres_KD: Tensor, *, rough: bool) -> Centroids:
        halves_K = centres_KD.double().square().sum(1).div(2).float()
        if not rough:
            return cls(centres_KD, halves_K, None, (0.0, 0.0))
        rough_KD = centres_KD.bfloat16()
        slack = (float(centres_KD.norm(dim=1).max()), float((centres_KD - rough_KD.float()).norm(dim=1).max()))
        return cls(centres_KD, halves_K, rough_KD, slack)

    def __len__(self) -> int:
        return len(self.centres_KD)


def rough_is_faster(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 in units of its own (CPU with AMX or AVX512-BF16)."""
    if device.type != "cpu":
        return False  # on CUDA the product is not what bounds the assignment
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def assign(points_ND: Tensor, centroids: Centroids) -> tuple[Tensor, Tensor]:
    """Nearest centroid and squared distance to it.

    Args:
        points_ND: float32, on the centroids' device.

    Returns:
        labels_N int64 (the lowest index among equals, up to float32 rounding) and distances_N float32, ||x - c||^2.
    """
    fused = _fused_kernel() if points_ND.is_cuda else None
    rows = _FUSED_ROWS if fused else max(1, _SCORES // max(1, len(centroids)))
    labels_N = torch.empty(len(points_ND), dtype=torch.int64, device=points_ND.device)
    distances_N = torch.empty(len(points_ND), dtype=torch.float32, device=points_ND.device)
    for start in range(0, len(points_ND), rows):
        part_BD = points_ND[start : start + rows]
        if fused:
            labels_B = _fused(part_BD, centroids, fused)
        else:
            labels_B = _exact(part_BD, centroids) if centroids.rough_KD is None else _two_passes(part_BD, centroids)
        labels_N[start : start + rows] = labels_B
        distances_N[start : start + rows] = (part_BD - centroids.centres_KD[labels_B]).square_().sum(1)
    return labels_N, distances_N


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


def _two_passes(points_BD: Tensor, centroids: Centroids) -> Tensor:
    assert centroids.rough_KD is not None  # assign() checked
    rough_BD = points_BD.bfloat16()
    products_BK = (rough_BD @ centroids.rough_KD.T).float()
    scores_BK = products_BK - centroids.halves_K
    best_B, labels_B = scores_BK.max(1)
    # |x.c - r(x).r(c)| <= ||x - r(x)|| ||c|| + ||r(x)|| ||c - r(c)||; the product itself is rounded once more.
    widest, off = centroids.slack
    lost_B = (points_BD - rough_BD.float()).norm(dim=1)
    size_B = points_BD.norm(dim=1) + lost_B
    error_B = lost_B * widest + size_B * off + _UNIT * size_B * widest
    open_BK = scores_BK >= (best_B - 2 * error_B)[:, None]
    several_B = open_BK.sum(1) > 1
    rows = several_B.nonzero()[:, 0]
    if not len(rows):
        return labels_B
    open_RK = open_BK[rows]
    pairs = open_RK.nonzero()
    if len(pairs) > _MOST_OPEN * len(points_BD):
        labels_B[rows] = _exact(points_BD[rows], centroids)
        return labels_B
    which, centre = pairs[:, 0], pairs[:, 1]
    dots = (points_BD[rows[which]] * centroids.centres_KD[centre]).sum(1) - centroids.halves_K[centre]
    top = torch.full((len(rows),), -torch.inf, device=dots.device).scatter_reduce_(0, which, dots, "amax")
    # Pairs are in order of row and centroid: of equal scores the lowest centroid stays.
    winners = torch.where(dots == top[which], centre, len(centroids))
    first = torch.full((len(rows),), len(centroids), device=dots.device).scatter_reduce_(0, which, winners, "amin")
    labels_B[rows] = first
    return labels_B
