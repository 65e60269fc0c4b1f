"""Lloyd's iterations over points that are spread over ranks, with RAFT's two rules of stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raycurate.kmeans.assign import Centroids, assign
from raycurate.kmeans.collective import Collective
from raycurate.kmeans.points import Points


@dataclass(frozen=True)
class Iteration:
    """One iteration done: the centroids it led to, the inertia of those it began with, and how far they moved.

    inertia: sum of squared distances to the nearest centroid. shift: sum of squared moves of the centroids.
    """

    number: int
    centroids: Tensor
    inertia: float
    shift: float
    stopped: bool


def lloyd(
    points: Points,
    centroids_KD: Tensor,
    group: Collective,
    *,
    max_iter: int,
    tol: float,
    rough: bool,
    start: int = 0,
    last_inertia: float = math.nan,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> Iteration:
    """Iterate until the centroids move less than `tol` in all (sum of squares), the inertia falls by less than
    the share `tol`, or iteration `max_iter` is done.

    A cluster that lost all its points takes the farthest point instead.

    Args:
        start, last_inertia: of the iteration that `centroids_KD` came from, to go on where a run ended.

    Returns:
        The last iteration; inertia is over all ranks.
    """
    done = Iteration(start, centroids_KD, last_inertia, 0.0, False)
    for number in range(start + 1, max_iter + 1):
        sums_KD, counts_K, inertia, distances_N = _accumulate(points, done.centroids, rough=rough)
        sums_KD, counts_K = group.sum(sums_KD), group.sum(counts_K)
        inertia = float(group.sum(torch.tensor([inertia], dtype=torch.float64)))
        moved_KD = (sums_KD / counts_K.clamp_min(1)[:, None]).float()
        empty_K = counts_K == 0
        if empty_K.any():
            moved_KD[empty_K] = done.centroids[empty_K]
            farthest = _farthest(points, distances_N, int(empty_K.sum()), group)
            moved_KD[empty_K.nonzero()[: len(farthest), 0]] = farthest
        shift = float((moved_KD - done.centroids).double().square().sum())
        settled = done.inertia > 0 and inertia / done.inertia > 1 - tol  # False for the NaN before the first
        stopped = not bool(empty_K.any()) and (shift < tol or settled)
        done = Iteration(number, moved_KD, inertia, shift, stopped)
        if on_iteration is not None:
            on_iteration(done)
        if stopped:
            break
    return done


def inertia_of(points: Points, centroids_KD: Tensor, group: Collective, *, rough: bool) -> float:
    """Sum of squared distances to the nearest of these centroids, over all ranks."""
    ready, total = Centroids.of(centroids_KD, rough=rough), 0.0
    for _, chunk in points.chunks():
        total += float(assign(chunk, ready)[1].double().sum())
    return float(group.sum(torch.tensor([total], dtype=torch.float64)))


def _accumulate(points: Points, centroids_KD: Tensor, *, rough: bool) -> tuple[Tensor, Tensor, float, np.ndarray]:
    """Sums [K, D] (float64) and counts [K] of the points by nearest centroid, their inertia, and their distances.

    Sums are float32 within a chunk and float64 over the chunks, so that their order hardly matters.
    """
    ready = Centroids.of(centroids_KD, rough=rough)
    k, dim = centroids_KD.shape
    sums_KD = torch.zeros(k, dim, dtype=torch.float64, device=centroids_KD.device)
    counts_K = torch.zeros(k, dtype=torch.int64, device=centroids_KD.device)
    distances_N = np.empty(len(points), np.float32)
    inertia = 0.0
    for start, chunk_BD in points.chunks():
        labels_B, distances_B = assign(chunk_BD, ready)
        sums_KD += torch.zeros(k, dim, device=chunk_BD.device).index_add_(0, labels_B, chunk_BD)
        counts_K += torch.bincount(labels_B, minlength=k)
        inertia += float(distances_B.double().sum())
        distances_N[start : start + len(chunk_BD)] = distances_B.cpu().numpy()
    return sums_KD, counts_K, inertia, distances_N


def _farthest(points: Points, distances_N: np.ndarray, count: int, group: Collective) -> Tensor:
    """The `count` points farthest from their centroids (of equals, those that come first), none at distance 0."""
    own = np.argsort(-distances_N, kind="stable")[:count]
    own = own[distances_N[own] > 0]
    distances = group.gather(torch.from_numpy(distances_N[own])).numpy()
    numbers = group.gather(torch.from_numpy(points.numbers[own])).numpy()
    rows = group.gather(points.rows(own))
    order = np.lexsort((numbers, -distances))[:count]
    return rows[torch.from_numpy(order).to(rows.device)]
