"""First centroids: k-means|| [Bahmani et al. 2012] or random rows; the same whatever the number of ranks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raycurate.clustering.collective import Collective
from raycurate.clustering.nearest import Centroids, assign
from raycurate.clustering.points import Points, uniform

_ROUNDS = 8  # most rounds of k-means||, as RAFT
_RECLUSTER_ITERATIONS = 20
_RECLUSTERINGS = 10
_RECLUSTER_OPERATIONS = 2e11  # that clustering the candidates may take beyond the first try


def random_rows(points: Points, k: int, group: Collective, *, seed: int, stream: int = 0) -> Tensor:
    """`k` different rows, each set of k equally likely; float32 [k, dim], in the order of their draws."""
    draws = uniform(seed, stream, points.numbers)
    own = np.argsort(draws, kind="stable")[:k]
    all_draws = group.gather(torch.from_numpy(draws[own])).numpy()
    all_rows = group.gather(points.rows(own))
    return all_rows[torch.from_numpy(np.argsort(all_draws, kind="stable")[:k]).to(all_rows.device)]


def scalable_kmeans(
    points: Points, k: int, group: Collective, *, seed: int, oversampling: float, rough: bool
) -> Tensor:
    """k-means||: in each round every row becomes a candidate with probability oversampling * k * d^2 / cost.

    The candidates, weighted by how many rows are nearest to them, are then reduced to k by weighted k-means++
    and a few weighted Lloyd iterations, on every rank alike. A round may draw nobody; what is missing in the end is
    drawn at random.

    Returns:
        float32 [k, dim].
    """
    candidates = random_rows(points, 1, group, seed=seed, stream=0)
    nearest_N = np.full(len(points), np.inf, np.float32)
    fresh = candidates
    rounds = None
    number = 0
    while True:
        if len(fresh):
            _shorten(nearest_N, points, Centroids.of(fresh, rough=rough))
        cost = float(group.sum(torch.tensor([nearest_N.sum(dtype=np.float64)], dtype=torch.float64)))
        rounds = min(_ROUNDS, math.ceil(math.log(cost))) if rounds is None and cost > math.e else (rounds or 1)
        if number >= rounds or cost == 0.0:
            break
        number += 1
        draws = uniform(seed, number, points.numbers)
        drawn = np.flatnonzero(draws < oversampling * k * nearest_N / cost)
        fresh = group.gather(points.rows(drawn))
        candidates = torch.cat([candidates, fresh])
    if len(candidates) < k:
        more = random_rows(points, k - len(candidates), group, seed=seed, stream=_ROUNDS + 1)
        candidates = torch.cat([candidates, more])
    if len(candidates) == k:
        return candidates
    weights = _weights(points, candidates, group, rough=rough)
    return _reduce(candidates, weights, k, seed)


def _shorten(nearest_N: np.ndarray, points: Points, centroids: Centroids) -> None:
    """Lower each row's squared distance to that of the nearest of `centroids`."""
    for start, chunk in points.chunks():
        _, distances = assign(chunk, centroids)
        view = nearest_N[start : start + len(chunk)]
        np.minimum(view, distances.cpu().numpy(), out=view)


def _weights(points: Points, candidates: Tensor, group: Collective, *, rough: bool) -> Tensor:
    counts = torch.zeros(len(candidates), dtype=torch.int64)
    centroids = Centroids.of(candidates, rough=rough)
    for _, chunk in points.chunks():
        labels, _ = assign(chunk, centroids)
        counts += torch.bincount(labels, minlength=len(candidates)).cpu()
    return group.sum(counts).double()


def _reduce(candidates: Tensor, weights_C: Tensor, k: int, seed: int) -> Tensor:
    """The candidates clustered by themselves: weighted greedy k-means++ and weighted Lloyd, the best of a few tries."""
    points_CD, weights_C = candidates.cpu(), weights_C.cpu()
    trials = 2 + int(math.log(k))
    operations = 2 * k * points_CD.numel() * (trials + _RECLUSTER_ITERATIONS)
    random = np.random.default_rng(seed)
    best, least = points_CD[:k], math.inf
    for _ in range(max(1, min(_RECLUSTERINGS, int(_RECLUSTER_OPERATIONS / operations)))):
        first = _plus_plus(points_CD, weights_C, k, random, trials=trials)
        centres, inertia = _weighted_lloyd(points_CD, weights_C, first)
        if inertia < least:
            best, least = centres, inertia
    return best.to(candidates.device)


def _plus_plus(points_CD: Tensor, weights_C: Tensor, k: int, random: np.random.Generator, *, trials: int) -> Tensor:
    """Weighted greedy k-means++ [Arthur and Vassilvitskii 2007]: each centroid is the best of a few draws."""
    squares_C = points_CD.square().sum(1)
    distances_C = torch.full((len(points_CD),), torch.inf, dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(k):
        mass_C = (weights_C if not chosen else weights_C * distances_C).numpy()
        cumulated = np.cumsum(mass_C)
        if cumulated[-1] > 0:
            picks = np.searchsorted(cumulated, random.random(trials) * cumulated[-1], side="right")
            picks = np.minimum(picks, len(points_CD) - 1)
        else:  # fewer distinct candidates than clusters: any that is left
            picks = np.setdiff1d(np.arange(len(points_CD)), chosen)[:1]
        dots_TC = points_CD[picks] @ points_CD.T
        away_TC = (squares_C[picks, None] + squares_C - 2 * dots_TC).clamp_min_(0).double()
        left_TC = torch.minimum(distances_C, away_TC)
        best = int((left_TC @ weights_C).argmin())
        chosen.append(int(picks[best]))
        distances_C = left_TC[best]
    return points_CD[chosen]


def _weighted_lloyd(points_CD: Tensor, weights_C: Tensor, centres_KD: Tensor) -> tuple[Tensor, float]:
    """(centroids, inertia of those before the last move) after a few iterations over weighted points."""
    k, inertia = len(centres_KD), math.inf
    for _ in range(_RECLUSTER_ITERATIONS):
        labels, distances_C = assign(points_CD, Centroids.of(centres_KD, rough=False))
        inertia = float(distances_C.double() @ weights_C)
        mass = torch.zeros(k, dtype=torch.float64).index_add_(0, labels, weights_C)
        sums = torch.zeros(k, points_CD.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, points_CD.double() * weights_C[:, None])
        moved = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-300)[:, None], centres_KD.double()).float()
        shift = (moved - centres_KD).square().sum()
        centres_KD = moved
        if shift < 1e-8:
            break
    return centres_KD, inertia
