"""k-means against scikit-learn, and against itself on another number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from raycurate.clustering.collective import Alone
from raycurate.clustering.lloyd import Iteration, Labelled
from raycurate.clustering.lloyd import lloyd as lloyd_of
from raycurate.clustering.nearest import Centroids, assign
from raycurate.clustering.points import Points, uniform
from raycurate.clustering.seeding import random_rows, scalable_kmeans
from tests.processes import PATIENCE_S

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several ranks are threads here already; more threads for products this small cost time only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(rows: int, dim: int, k: int, seed: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(k, dim)))
    labels = random.integers(0, k, rows)
    return unit(centres[labels] + spread * random.normal(size=(rows, dim)) / np.sqrt(dim)), labels


def points_of(rows: np.ndarray, *, parts: int = 1, first: int = 0, chunk: int = 1000) -> Points:
    numbers = np.arange(first, first + len(rows))
    return Points([np.ascontiguousarray(p) for p in np.array_split(rows, parts)], numbers, CPU, chunk)


def lloyd(points: Points, first: torch.Tensor, group: Any, *, rough: bool, **options: Any) -> Iteration:
    return lloyd_of(Labelled(points, len(first), rough=rough), first, group, **options)


class Threads:
    """Ranks as threads of this process: the group's protocol with nothing but a barrier."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        self.shared["rows"][self.rank] = rows
        self.shared["barrier"].wait()
        whole = torch.cat([self.shared["rows"][r] for r in range(self.size)])
        self.shared["barrier"].wait()
        return whole

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.gather(tensor[None]).sum(0)


def on_ranks(rows: np.ndarray, size: int, work: Callable[[Points, Any], Any]) -> list[Any]:
    """What `work(points, group)` gives on each of `size` ranks that share the rows unevenly."""
    if size == 1:
        return [work(points_of(rows), Alone())]
    cuts = np.linspace(0, 1, size + 1) ** 2 * len(rows)
    bounds = cuts.astype(int)
    shared = {"rows": [None] * size, "barrier": threading.Barrier(size)}
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        points = points_of(rows[bounds[rank] : bounds[rank + 1]], parts=2, first=int(bounds[rank]))
        results[rank] = work(points, Threads(rank, size, shared))

    workers = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE_S)
        assert not worker.is_alive(), "a rank did not finish"
    return results


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_assignment_is_that_of_float64(rough: bool, clustered: bool) -> None:
    random = np.random.default_rng(0)
    rows = blobs(3000, 48, 20, 0)[0] if clustered else unit(random.normal(size=(3000, 48)))
    centres = rows[random.choice(3000, 200, replace=False)] * random.uniform(0.5, 1, (200, 1)).astype(np.float32)
    labels, distances = assign(torch.from_numpy(rows), Centroids.of(torch.from_numpy(centres), rough=rough))
    exact = ((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(2)
    np.testing.assert_array_equal(labels.numpy(), exact.argmin(1))
    np.testing.assert_allclose(distances.numpy(), exact.min(1), atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_labels_are_those_of_float64_however_near_the_centroids_are(seed: int) -> None:
    """Centroids in pairs a few of float32's steps apart, and some of them twice: of equals the lowest is the label."""
    random = np.random.default_rng(seed)
    n, k, dim = int(random.integers(1, 600)), int(random.integers(1, 200)), int(random.integers(1, 70))
    length = np.float32(10.0 ** random.uniform(-1, 1))
    centres = unit(random.normal(size=(k, dim))) * length
    centres[k // 3 : 2 * (k // 3)] = centres[: k // 3] * (1 + 2.0**-22 * random.integers(0, 3, (k // 3, 1)))
    rows = (unit(centres[random.integers(0, k, n)] + 0.2 * length * random.normal(size=(n, dim))) * length).astype("f4")
    exact = rows.astype(np.float64) @ centres.T.astype(np.float64) - (centres.astype(np.float64) ** 2).sum(1) / 2
    equal = exact >= exact.max(1, keepdims=True) - 1e-14 * length**2 * dim
    for rough in (False, True):
        ready = Centroids.of(torch.from_numpy(centres), rough=rough)
        whole = assign(torch.from_numpy(rows), ready)[0].numpy()
        np.testing.assert_array_equal(whole, equal.argmax(1))
        cut = int(random.integers(0, n))
        parts = [assign(torch.from_numpy(part), ready)[0].numpy() for part in (rows[:cut], rows[cut:]) if len(part)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_lloyd_is_scikit_learns() -> None:
    rows, _ = blobs(4000, 24, 30, 1, spread=0.9)
    first = rows[:30].copy()
    ours = lloyd(points_of(rows), torch.from_numpy(first), Alone(), max_iter=12, tol=0.0, rough=False)
    theirs = KMeans(30, init=first, n_init=1, max_iter=12, tol=0.0, algorithm="lloyd").fit(rows)
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=1e-5)
    _, _, inertia = Labelled(points_of(rows), 30, rough=False).move_to(ours.centroids, Alone())
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_sums_counts_and_inertia_stay_exact_while_points_move(rough: bool, size: int) -> None:
    """What is kept from iteration to iteration is what counting anew gives, to the last bit, on any number of ranks;
    far off unit length too."""
    rows = blobs(3000, 24, 90, 1, spread=0.9)[0] * np.float32(37)
    centres = rows[:80].copy()

    def wander(points: Points, group: Any) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        random, labelled = np.random.default_rng(3), Labelled(points, 80, rough=rough)
        steps = [centres + 20 * random.normal(size=centres.shape).astype(np.float32) for _ in range(12)]
        return [labelled.move_to(torch.from_numpy(step), group) for step in [*steps, centres]]

    labels, distances = assign(torch.from_numpy(rows), Centroids.of(torch.from_numpy(centres), rough=rough))
    sums = np.zeros((80, 24))
    np.add.at(sums, labels.numpy(), np.round(rows.astype(np.float64) * 2**30) / 2**30)
    for steps in on_ranks(rows, size, wander):
        sums_KD, counts_K, inertia = steps[-1]
        np.testing.assert_array_equal(sums_KD.numpy(), sums)
        assert counts_K.tolist() == np.bincount(labels.numpy(), minlength=80).tolist()
        assert inertia == pytest.approx(float(distances.double().sum()), rel=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_the_result_does_not_depend_on_the_number_of_ranks(size: int) -> None:
    rows, _ = blobs(3000, 16, 12, 2, spread=0.8)

    def fit(points: Points, group: Any) -> Iteration:
        first = scalable_kmeans(points, 12, group, seed=7, oversampling=2.0, rough=False)
        return lloyd(points, first, group, max_iter=50, tol=1e-4, rough=False)

    [alone] = on_ranks(rows, 1, fit)
    together = on_ranks(rows, size, fit)
    for result in together:
        assert (result.number, result.inertia) == (alone.number, alone.inertia)
        assert torch.equal(result.centroids, alone.centroids)


def test_scalable_seeding_finds_separate_blobs() -> None:
    rows, labels = blobs(2000, 32, 8, 3, spread=0.2)
    first = scalable_kmeans(points_of(rows), 8, Alone(), seed=0, oversampling=2.0, rough=False)
    done = lloyd(points_of(rows), first, Alone(), max_iter=100, tol=1e-4, rough=False)
    found, _ = assign(torch.from_numpy(rows), Centroids.of(done.centroids, rough=False))
    assert adjusted_rand_score(labels, found.numpy()) > 0.99


@pytest.mark.parametrize("size", [1, 3])
def test_random_rows_are_rows_of_the_data_and_all_different(size: int) -> None:
    rows = np.arange(500, dtype=np.float32)[:, None].repeat(2, 1)
    for chosen in on_ranks(rows, size, lambda points, group: random_rows(points, 20, group, seed=5)):
        values = chosen[:, 0].numpy()
        assert len(set(values)) == 20
        assert set(values) == set(on_ranks(rows, 1, lambda p, g: random_rows(p, 20, g, seed=5))[0][:, 0].numpy())


@pytest.mark.parametrize("size", [1, 2])
def test_an_empty_cluster_takes_the_farthest_point(size: int) -> None:
    rows = np.array([[0, 0], [0, 1], [1, 0], [9, 9]], np.float32)
    first = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    for done in on_ranks(rows, size, lambda p, g: lloyd(p, first, g, max_iter=5, tol=1e-6, rough=False)):
        got = sorted(done.centroids.tolist())
        np.testing.assert_allclose(got, [[1 / 3, 1 / 3], [9, 9]], atol=1e-6)
        assert done.stopped and done.number < 5


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_going_on_from_saved_centroids_is_the_undisturbed_run(rough: bool, size: int) -> None:
    """To the last bit, on another number of ranks too, where nothing has come to rest and each step feeds the next."""
    rows, _ = blobs(6000, 16, 80, 4, spread=1.5)
    first = torch.from_numpy(rows[:80].copy())
    options: dict[str, Any] = {"tol": 0.0, "rough": rough}
    whole = lloyd(points_of(rows), first, Alone(), max_iter=40, **options)
    half = lloyd(points_of(rows, parts=3, chunk=700), first, Alone(), max_iter=5, **options)

    def rest(points: Points, group: Any) -> Iteration:
        return lloyd(points, half.centroids, group, max_iter=40, start=5, last_inertia=half.inertia, **options)

    for done in on_ranks(rows, size, rest):
        assert torch.equal(done.centroids, whole.centroids) and done.number == whole.number == 40


@pytest.mark.parametrize("seed", range(60))
def test_any_number_of_clusters_is_fitted_with_any_seed_and_oversampling(seed: int) -> None:
    """From one cluster to as many as there are distinct rows, where each row is its own centroid; and beyond."""
    random = np.random.default_rng(seed)
    n, dim = int(random.integers(1, 300)), int(random.integers(1, 12))
    distinct = int(random.integers(1, n + 1))
    data = unit(random.normal(size=(distinct, max(2, dim))))
    rows = data[np.concatenate([np.arange(distinct), random.integers(0, distinct, n - distinct)])]
    distinct = len(np.unique(rows, axis=0))
    k = int(random.choice([1, distinct, random.integers(1, distinct + 1), random.integers(1, n + 1)]))
    oversampling = float(random.choice([1e-9, 0.01, 0.5, 2.0, 1e9]))
    size = int(random.integers(1, 3))

    def fit(points: Points, group: Any) -> tuple[torch.Tensor, Iteration]:
        first = scalable_kmeans(points, k, group, seed=seed, oversampling=oversampling, rough=False)
        return first, lloyd(points, first, group, max_iter=300, tol=1e-4, rough=False)

    for first, done in on_ranks(rows, size, fit):
        assert first.shape == done.centroids.shape == (k, rows.shape[1])
        assert torch.isfinite(done.centroids).all() and done.stopped
        if k == 1:
            np.testing.assert_allclose(done.centroids[0].numpy(), rows.mean(0), atol=1e-6)
        if k >= distinct:
            assert assign(torch.from_numpy(rows), Centroids.of(done.centroids, rough=False))[1].max() < 1e-6


def test_draws_depend_on_the_row_alone_and_are_uniform() -> None:
    rows = np.arange(100_000)
    whole = uniform(3, 1, rows)
    np.testing.assert_array_equal(np.concatenate([uniform(3, 1, rows[:777]), uniform(3, 1, rows[777:])]), whole)
    assert whole.min() >= 0 and whole.max() < 1
    counts = np.histogram(whole, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 100  # chi-square with 49 degrees of freedom: 1 in 50,000
    for other in (uniform(3, 2, rows), uniform(4, 1, rows)):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.015


@pytest.mark.parametrize("rough", [False, True])
def test_four_blobs_on_one_rank_on_three_and_on_half_of_the_rows(rough: bool) -> None:
    """40,000 x 1,024: the blobs are found, by several ranks as by one, and from half of the rows."""
    rows, labels = blobs(40_000, 1024, 4, 6, spread=1.0)

    def found(points: Points, group: Any) -> np.ndarray:
        first = scalable_kmeans(points, 4, group, seed=42, oversampling=2.0, rough=rough)
        done = lloyd(points, first, group, max_iter=20, tol=1e-4, rough=rough)
        return assign(torch.from_numpy(rows), Centroids.of(done.centroids, rough=rough))[0].numpy()

    [alone] = on_ranks(rows, 1, found)
    together = on_ranks(rows, 3, found)[0]
    assert adjusted_rand_score(labels, alone) > 0.99
    assert adjusted_rand_score(alone, together) > 0.99
    half = rows[uniform(42, 1, np.arange(len(rows))) < 0.5]
    assert adjusted_rand_score(labels, on_ranks(half, 1, found)[0]) > 0.95
