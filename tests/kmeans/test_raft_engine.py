"""The engine `raft` without a GPU: RAPIDS' own API is stood in for, all of ours is real.

The stand-in of cuML's KMeansMG takes the arguments of cuML 26.10 and does real Lloyd iterations in numpy by RAFT's
rules over the parts of one rank. That NCCL and cuML do what it does is the affair of tests/gpu.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raycurate.clustering import raft_engine, torch_engine
from raycurate.clustering.collective import Alone
from raycurate.clustering.engine import CollectiveError
from raycurate.clustering.options import FitOptions
from raycurate.clustering.points import Points
from raycurate.clustering.saved_centroids import load
from raycurate.clustering.worker import KMeansWorker
from raycurate.core.errors import ConfigError, InputError, MissingDependencyError, RaycurateError
from tests.kmeans.test_fit import blobs, on_ranks, points_of

MODULES = (
    "raft_dask.common.nccl",
    "raft_dask.common.comms_utils",
    "pylibraft.common.handle",
    "cuml.cluster.kmeans_mg",
    "cupy",
)


class OnDevice(np.ndarray):
    """An array that cupy.asarray made."""


class Nccl:
    """raft_dask's nccl; `calls` of all objects."""

    calls: list[Any] = []

    @staticmethod
    def get_unique_id() -> bytes:
        return b"unique"

    def init(self, nranks: int, commId: bytes, rank: int) -> None:
        self.calls.append(("init", nranks, commId, rank))

    def destroy(self) -> None:
        self.calls.append("destroy")

    def abort(self) -> None:
        self.calls.append("abort")


class KMeansMG:
    """cuML's, for one rank. `made`: the arguments of each. `broken_at`: of the fits, the one that NCCL fails in."""

    made: list[dict[str, Any]] = []
    broken_at: int | None = None

    def __init__(
        self,
        *,
        handle: Any,
        n_clusters: int = 8,
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: bool = False,
        random_state: int | None = None,
        init: Any = "scalable-k-means++",
        n_init: int | str = "auto",
        oversampling_factor: float = 2.0,
        max_samples_per_batch: int = 1 << 15,
        device_buffer_samples: int = 0,
        init_size: int = 0,
        output_type: str | None = None,
    ) -> None:
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        self.made.append({**self.__dict__})

    def validate(self, X: list[np.ndarray], rank: int, n_workers: int) -> None:
        rows, needed = sum(map(len, X)), self.n_clusters // n_workers
        if isinstance(self.init, str) and self.init == "random" and rows < needed:
            raise ValueError(f"rank {rank} has {rows} row(s), {needed} are needed")

    def fit(self, X: list[np.ndarray]) -> KMeansMG:
        assert X and len({type(part) for part in X}) == 1 and all(part.dtype == np.float32 for part in X)
        if self.broken_at is not None and len(self.made) > self.broken_at:
            raise RuntimeError("NCCL error encountered at: unhandled system error")
        rows = np.concatenate([np.asarray(part) for part in X]).astype(np.float64)
        random = np.random.default_rng(self.random_state)
        centres = (
            rows[random.choice(len(rows), self.n_clusters, replace=False)]
            if isinstance(self.init, str)
            else np.asarray(self.init, np.float64)
        )
        before = 0.0
        self.n_iter_ = 1
        while self.n_iter_ <= self.max_iter:
            labels, inertia = nearest(rows, centres)
            moved = np.stack(
                [rows[labels == j].mean(0) if (labels == j).any() else centres[j] for j in range(len(centres))]
            )
            shift = ((moved - centres) ** 2).sum()
            settled = shift < self.tol or (before > 0 and inertia / before > 1 - self.tol)
            centres, before = moved, inertia
            if settled:
                break
            self.n_iter_ += 1
        self.cluster_centers_ = centres.astype(np.float32)
        self.inertia_ = nearest(rows, centres)[1]
        return self


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    distances = ((rows[:, None] - centres[None]) ** 2).sum(2)
    return distances.argmin(1), float(distances.min(1).sum())


@pytest.fixture
def rapids(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """RAPIDS' modules; `free` bytes on the device, and what the self-test says."""
    state = SimpleNamespace(free=1 << 30, right=True)
    monkeypatch.setattr(Nccl, "calls", [])
    monkeypatch.setattr(KMeansMG, "made", [])
    monkeypatch.setattr(KMeansMG, "broken_at", None)
    runtime = SimpleNamespace(memGetInfo=lambda: (state.free, 2 * state.free))
    contents = (
        {"nccl": Nccl},
        {
            "inject_comms_on_handle_coll_only": lambda handle, nccl, size, rank, verbose: Nccl.calls.append(
                ("inject", size, rank)
            ),
            "perform_test_comms_allreduce": lambda handle, root: state.right,
        },
        {"Handle": lambda n_streams: SimpleNamespace(n_streams=n_streams)},
        {"KMeansMG": KMeansMG},
        {"asarray": lambda rows: rows.view(OnDevice), "cuda": SimpleNamespace(runtime=runtime)},
    )
    for name, found in zip(MODULES, contents, strict=True):
        module = ModuleType(name)
        module.__dict__.update(found)
        monkeypatch.setitem(sys.modules, name, module)
    return state


def fit(points: Points, options: FitOptions, group: Any = None, state: str | None = None) -> torch_engine.Fit:
    rapids = raft_engine.Rapids.installed()
    return raft_engine.fit(points, options, group or Alone(), rapids, "handle", state=state)


def data(k: int = 12) -> np.ndarray:
    return blobs(1500, 8, k, 3, spread=2.5)[0]


@pytest.fixture
def first() -> np.ndarray:
    """Centroids to begin with."""
    return data()[:12]


@pytest.mark.usefixtures("rapids")
def test_slices_come_to_the_torch_engines_centroids(first: np.ndarray) -> None:
    options = FitOptions(n_clusters=12, init=first, tol=1e-9, checkpoint_every=4)
    ours = fit(points_of(data(), parts=3), options)
    theirs = torch_engine.fit(points_of(data()), options, Alone())
    np.testing.assert_allclose(ours.centroids, theirs.centroids, atol=1e-4)
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-5) and ours.rows == 1500
    assert abs(ours.iterations - theirs.iterations) <= 2  # a slice's first iteration knows no inertia before it
    assert ours.seconds_seed is None and ours.centroids.dtype == np.float32


@pytest.mark.usefixtures("rapids")
@pytest.mark.parametrize("every", [1, 7, 100])
def test_slices_stop_by_the_rules_and_at_max_iter(first: np.ndarray, every: int) -> None:
    whole = fit(points_of(data()), FitOptions(n_clusters=12, init=first, tol=1e-3, checkpoint_every=every))
    assert 5 < whole.iterations < 100
    short = fit(points_of(data()), FitOptions(n_clusters=12, init=first, tol=1e-3, checkpoint_every=every, max_iter=5))
    assert short.iterations == 5 and short.inertia > whole.inertia
    assert KMeansMG.made[-1]["max_iter"] == {1: 1, 7: 5, 100: 5}[every]


def test_going_on_after_a_failure_is_the_undisturbed_fit(
    rapids: SimpleNamespace, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FitOptions(n_clusters=12, init=first, tol=1e-6, checkpoint_every=3)
    undisturbed = fit(points_of(data()), options)
    slices = len(KMeansMG.made)
    assert slices > 3
    KMeansMG.made.clear()
    monkeypatch.setattr(KMeansMG, "broken_at", 2)
    with pytest.raises(CollectiveError, match="NCCL error"):
        fit(points_of(data()), options, state=str(tmp_path))
    saved = load(str(tmp_path), k=12, dim=8)
    assert saved is not None and saved.iteration == 6
    KMeansMG.made.clear()
    monkeypatch.setattr(KMeansMG, "broken_at", None)
    resumed = fit(points_of(data()), options, state=str(tmp_path))
    assert resumed.resumed_from == 6 and len(KMeansMG.made) == slices - 2
    np.testing.assert_array_equal(resumed.centroids, undisturbed.centroids)
    assert (resumed.iterations, resumed.inertia) == (undisturbed.iterations, undisturbed.inertia)


@pytest.mark.usefixtures("rapids")
def test_of_trials_the_best_is_kept_and_each_has_its_seed() -> None:
    options = FitOptions(n_clusters=12, init="random", n_init=3, random_state=7, tol=1e-6, checkpoint_every=100)
    best = fit(points_of(data()), options)
    assert [made["random_state"] for made in KMeansMG.made if isinstance(made["init"], str)] == [7, 8, 9]
    alone = [fit(points_of(data()), FitOptions(**{**vars(options), "n_init": 1, "random_state": s})) for s in (7, 8, 9)]
    assert best.inertia == min(one.inertia for one in alone) < max(one.inertia for one in alone)


@pytest.mark.parametrize(
    ("init", "theirs"), [("k-means||", "scalable-k-means++"), ("random", "random")], ids=["scalable", "random"]
)
@pytest.mark.usefixtures("rapids")
def test_options_become_cumls(init: str, theirs: str) -> None:
    options = FitOptions(
        n_clusters=12,
        init=init,
        tol=0.01,
        max_iter=25,
        random_state=3,
        oversampling_factor=4.0,
        max_samples_per_batch=100,
    )
    fit(points_of(data()), options)
    made, *later = KMeansMG.made
    assert made["init"] == theirs and all(isinstance(m["init"], np.ndarray) for m in later)
    expected = {
        "handle": "handle",
        "n_clusters": 12,
        "max_iter": 10,
        "tol": 0.01,
        "random_state": 3,
        "n_init": 1,
        "oversampling_factor": 4.0,
        "max_samples_per_batch": 100,
        "device_buffer_samples": 0,
        "output_type": "numpy",
    }
    assert {name: made[name] for name in expected} == expected


def test_vectors_are_on_the_device_only_when_every_ranks_fit_there(rapids: SimpleNamespace) -> None:
    cupy = sys.modules["cupy"]
    options = FitOptions(n_clusters=12, device_memory_fraction=0.5)
    parts, buffered = raft_engine.place(points_of(data(), parts=2), options, Alone(), cupy)
    assert buffered == 0 and [type(part) for part in parts] == [OnDevice, OnDevice]
    rapids.free = 2 * 1000 * 8 * 4  # its half has room for 1,000 rows of 8 float32
    parts, buffered = raft_engine.place(points_of(data(), parts=2), options, Alone(), cupy)
    assert buffered == 500 and [type(part) for part in parts] == [np.ndarray, np.ndarray]
    # Two ranks with 375 and 1,125 rows: the first one's would fit.
    both = on_ranks(data(), 2, lambda points, group: raft_engine.place(points, options, group, cupy))
    assert [(type(parts[0]), buffered) for parts, buffered in both] == [(np.ndarray, 500)] * 2


@pytest.mark.usefixtures("rapids")
def test_a_rank_with_too_few_rows_stops_all_with_the_same_error() -> None:
    def refused(points: Points, group: Any) -> str:
        with pytest.raises(InputError) as error:
            fit(points, FitOptions(n_clusters=60, init="random"), group)
        return error.value.what

    said = on_ranks(data()[:100], 2, refused)  # 25 and 75 rows, 30 centroids are drawn on each
    assert all("workers [0] of 2 hold too few rows" in what for what in said)
    with pytest.raises(InputError, match="10 usable vectors cannot make 12 clusters"):
        fit(points_of(data()[:10]), FitOptions(n_clusters=12))


def worker_with(rows: np.ndarray) -> KMeansWorker:
    worker = KMeansWorker(threads=1)
    worker.engine = raft_engine.RaftEngine()
    worker.parts, worker.numbers = [rows], [np.arange(len(rows))]
    return worker


def test_a_worker_joins_fits_and_destroys_or_aborts(rapids: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FitOptions(n_clusters=12, engine="raft").settled(cuda=False)
    worker = worker_with(data())
    meeting = worker.rendezvous()
    assert meeting.unique_id == b"unique" and meeting.address.startswith("tcp://")
    worker.join(meeting, 0, 1, "cuda", 5.0)
    assert worker.fit(8, options).rows == 1500
    assert Nccl.calls == [("init", 1, b"unique", 0), ("inject", 1, 0), "destroy"]
    worker = worker_with(data())
    worker.join(meeting, 0, 1, "cuda", 5.0)
    monkeypatch.setattr(KMeansMG, "broken_at", 0)
    with pytest.raises(CollectiveError):
        worker.fit(8, options)
    assert Nccl.calls[3:] == [("init", 1, b"unique", 0), ("inject", 1, 0), "abort"]


def test_a_wrong_sum_is_refused_and_aborted(rapids: SimpleNamespace) -> None:
    rapids.right = False
    worker = worker_with(data())
    with pytest.raises(RaycurateError, match="NCCL's sum over 1 workers is wrong"):
        worker.join(worker.rendezvous(), 0, 1, "cuda", 5.0)
    assert Nccl.calls[-1] == "abort"


@pytest.mark.parametrize("missing", MODULES)
@pytest.mark.usefixtures("rapids")
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=r"raycurate\[rapids\]") as error:
        KMeansWorker(threads=1).check(_versions(), "raft")
    assert missing in error.value.what


def _versions() -> dict[str, str]:
    from raycurate.ray_runtime.cluster import environment_versions

    return environment_versions()


def test_a_worker_of_other_versions_is_refused() -> None:
    with pytest.raises(RaycurateError, match=r"the driver has 0\.1\.2"):
        KMeansWorker(threads=1).check({**_versions(), "ray": "0.1.2"}, "torch")


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"oversampling_factor": 0.0}, "oversampling_factor"),
        ({"warm_start_fraction": 0.0}, "warm_start_fraction"),
        ({"device_memory_fraction": 1.5}, "device_memory_fraction"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        FitOptions.parse({"n_clusters": 5, **wrong}, where="kmeans")


@pytest.mark.parametrize("size", [1, 3])
def test_a_warm_start_is_fitted_to_a_share_and_does_not_depend_on_ranks(size: int) -> None:
    """The torch engine's: it ends where the sample's centroids lead to, by the same rules."""
    rows = blobs(3000, 16, 12, 2, spread=0.8)[0]
    options = FitOptions(n_clusters=12, warm_start_fraction=0.2)
    sample = torch_engine.drawn_share(points_of(rows, parts=3), 0.2, options.random_state)
    assert 500 < len(sample) < 700 and np.array_equal(sample.parts[0], rows[sample.numbers])
    warmed = torch_engine.fit(sample, FitOptions(n_clusters=12), Alone())
    labelled = torch_engine.Labelled(points_of(rows), 12, rough=False)
    expected = torch_engine.lloyd(labelled, torch.from_numpy(warmed.centroids), Alone(), max_iter=300, tol=1e-4)
    for found in on_ranks(rows, size, lambda points, group: torch_engine.fit(points, options, group)):
        np.testing.assert_allclose(found.centroids, expected.centroids.numpy(), atol=1e-4)
        assert found.iterations == expected.number and found.rows == 3000
        assert 0 < found.seconds_seed < found.seconds


def test_a_warm_start_on_too_few_rows_is_refused() -> None:
    with pytest.raises(InputError, match="warm_start_fraction"):
        torch_engine.fit(points_of(data()), FitOptions(n_clusters=500, warm_start_fraction=0.1), Alone())
