"""Lloyd's iterations over points that are spread over ranks, with RAFT's two rules of stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raycurate.clustering.collective import Collective
from raycurate.clustering.nearest import Buffers, Centroids, Rounding, distances, nearest
from raycurate.clustering.points import Points

_BLOCK = 1024  # rows in float64 at once
_HERE = 1e-13  # squared distance, for points of about unit length, that is no more than a centroid's own rounding
_GRID = 2.0**-30  # what is summed is a multiple of this, for points of about unit length


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
    points: Labelled,
    centroids_KD: Tensor,
    group: Collective,
    *,
    max_iter: int,
    tol: float,
    start: int = 0,
    last_inertia: float = math.nan,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> Iteration:
    """Iterate until the centroids move less than `tol` in all (sum of squares), the inertia falls by less than
    the share `tol`, or iteration `max_iter` is done.

    A cluster that lost all its points takes the farthest point instead, and stays empty when every point lies on its
    centroid.

    Args:
        start, last_inertia: of the iteration that `centroids_KD` came from, to go on where a run ended.

    Returns:
        The last iteration; inertia is over all ranks.
    """
    done = Iteration(start, centroids_KD, last_inertia, 0.0, False)
    for number in range(start + 1, max_iter + 1):
        sums_KD, counts_K, inertia = points.move_to(done.centroids, group)
        moved_KD = (sums_KD / counts_K.clamp_min(1)[:, None]).float()
        empty_K = counts_K == 0
        refilled = 0
        if empty_K.any():
            moved_KD[empty_K] = done.centroids[empty_K]
            farthest = points.farthest(done.centroids, int(empty_K.sum()), group)
            refilled = len(farthest)
            moved_KD[empty_K.nonzero()[:refilled, 0]] = farthest
        shift = float(torch.linalg.vector_norm(moved_KD - done.centroids, dtype=torch.float64)) ** 2
        settled = done.inertia > 0 and inertia / done.inertia > 1 - tol  # False for the NaN before the first
        stopped = not refilled and (shift < tol or settled)
        done = Iteration(number, moved_KD, inertia, shift, stopped)
        if on_iteration is not None:
            on_iteration(done)
        if stopped:
            break
    return done


class Labelled:
    """A rank's points, each with the centroid nearest to it, and the sums that follow from that.

    From one iteration to the next most labels stay, so the sums are not made anew: a point whose label changes is
    taken from one and added to the other. What is added are multiples of 2^-30 (a hundredth of float32's own step at
    the components of a unit vector), whose sums float64 holds exactly up to 2^23 in size. So neither the order, nor
    how the points are spread over ranks, nor what was added and taken away before makes any difference, not even in
    the last bit: a group that goes on from saved centroids does what the one before it would have done.
    """

    def __init__(self, points: Points, k: int, *, rough: bool) -> None:
        self._points, self._rough = points, rough
        self._labels: list[Tensor] = []
        self._rounding: list[Rounding] = []
        self._buffers = Buffers()
        # One column more than the vectors have: the number of points.
        self._sums_KE = torch.zeros(k, points.dim + 1, dtype=torch.float64, device=points.device)
        self._exact_BE = self._sums_KE.new_ones(_BLOCK, points.dim + 1)
        self._squares: float | None = None  # of all ranks' points

    def move_to(self, centroids_KD: Tensor, group: Collective) -> tuple[Tensor, Tensor, float]:
        """Each point to the nearest of these centroids.

        Returns:
            Over all ranks, in float64: sums [K, D] and counts [K] of the points by centroid, and the inertia,
            sum ||x||^2 - 2 sum_k (c_k . sum_k - n_k ||c_k||^2 / 2).
        """
        ready, own = Centroids.of(centroids_KD, rough=self._rough), 0.0
        for number, (_, chunk_BD) in enumerate(self._points.chunks()):
            if number == len(self._labels):
                own += self._add(chunk_BD, ready)
            else:
                self._update(number, chunk_BD, ready)
        if self._squares is None:
            self._squares = float(group.sum(torch.tensor([own], dtype=torch.float64)))
        sums_KE = group.sum(self._sums_KE)
        nearness = torch.dot(ready.exact_KE.view(-1), sums_KE.view(-1))
        return sums_KE[:, :-1], sums_KE[:, -1], max(0.0, self._squares - 2 * float(nearness))

    def farthest(self, centroids_KD: Tensor, count: int, group: Collective) -> Tensor:
        """The `count` points farthest from the centroids they were last moved to (of equals, those that come first),
        none that lies on its centroid."""
        distances_N = np.empty(len(self._points), np.float32)
        for (start, chunk_BD), labels_B in zip(self._points.chunks(), self._labels, strict=True):
            distances_N[start : start + len(chunk_BD)] = distances(chunk_BD, centroids_KD, labels_B).cpu().numpy()
        return _farthest(self._points, distances_N, count, group)

    def _add(self, chunk_BD: Tensor, ready: Centroids) -> float:
        """A chunk seen for the first time; returns the sum of its points' squared lengths."""
        self._rounding.append(Rounding.of(chunk_BD, ready.first_GE.dtype))
        labels_B = nearest(chunk_BD, ready, self._rounding[-1], self._buffers)
        self._labels.append(labels_B)
        squares = 0.0
        for labels, rows_BD in zip(labels_B.split(_BLOCK), chunk_BD.split(_BLOCK), strict=True):
            exact_BE = self._exact(rows_BD)
            self._sums_KE.index_add_(0, labels, exact_BE)
            squares += float(_on_grid(exact_BE[:, :-1].square().sum(1)).sum())
        return squares

    def _update(self, number: int, chunk_BD: Tensor, ready: Centroids) -> None:
        before_B = self._labels[number]
        labels_B = nearest(chunk_BD, ready, self._rounding[number], self._buffers)
        for rows in (labels_B != before_B).nonzero()[:, 0].split(_BLOCK):
            exact_BE = self._exact(chunk_BD[rows])
            self._sums_KE.index_add_(0, before_B[rows], exact_BE, alpha=-1)
            self._sums_KE.index_add_(0, labels_B[rows], exact_BE)
        self._labels[number] = labels_B

    def _exact(self, rows_BD: Tensor) -> Tensor:
        """At most `_BLOCK` rows in float64, on the grid, with a column of ones; until the next call."""
        exact_BE = self._exact_BE[: len(rows_BD)]
        exact_BE[:, :-1] = rows_BD
        _on_grid(exact_BE[:, :-1])
        return exact_BE


def _on_grid(values: Tensor) -> Tensor:
    """Float64 values as the nearest multiples of the grid, in place."""
    return values.mul_(1 / _GRID).round_().mul_(_GRID)


def _farthest(points: Points, distances_N: np.ndarray, count: int, group: Collective) -> Tensor:
    """The `count` points farthest from their centroids (of equals, those that come first), none that lies on its."""
    own = np.argsort(-distances_N, kind="stable")[:count]
    own = own[distances_N[own] > _HERE]
    distances = group.gather(torch.from_numpy(distances_N[own])).numpy()
    numbers = group.gather(torch.from_numpy(points.numbers[own])).numpy()
    rows = group.gather(points.rows(own))
    order = np.lexsort((numbers, -distances))[:count]
    return rows[torch.from_numpy(order).to(rows.device)]
