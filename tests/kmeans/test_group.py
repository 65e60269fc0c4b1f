"""The actor group on real actors: the same result on one worker, on two, and when one is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycurate.clustering import torch_engine
from raycurate.clustering.collective import Alone
from raycurate.clustering.group import GroupPlan, KMeansGroup
from raycurate.clustering.nearest import nearest
from raycurate.clustering.options import FitOptions
from raycurate.clustering.saved_centroids import load
from raycurate.clustering.shards import Piece, pieces_of
from raycurate.clustering.torch_engine import Fit, meet, see_that_labels_are_right
from raycurate.clustering.worker import KMeansWorker
from raycurate.core import storage
from raycurate.core.errors import CapacityError, ConfigError, InputError, RaycurateError
from raycurate.ray_runtime.capacity import NodeShape
from raycurate.ray_runtime.cluster import environment_versions
from tests.kmeans.test_fit import blobs
from tests.kmeans.test_shards import write
from tests.processes import PATIENCE_S

on_ray = pytest.mark.usefixtures("local_ray")


def vectors(folder: Path, rows: int = 4000, k: int = 20, *, files: int = 4, group: int = 300) -> list[Piece]:
    data, _ = blobs(rows, 16, k, 0, spread=1.5)
    for i, part in enumerate(np.array_split(data, files)):
        write(folder / f"{i}.parquet", part, group=group)
    return pieces_in(folder)


def pieces_in(folder: Path) -> list[Piece]:
    return pieces_of(storage.list_files(str(folder)), filetype="parquet", embedding_field="embeddings")


def plan(size: int, **other: Any) -> GroupPlan:
    return GroupPlan(size, **{"cpus": 0.5, "threads": 1, "timeout_s": 200.0, **other})


def alone(pieces: list[Piece], options: FitOptions) -> Fit:
    """The fit of one worker, in this process."""
    worker = KMeansWorker(threads=0)
    worker.check(environment_versions(), "torch")
    options = options.settled(cuda=False)
    worker.load(pieces, "embeddings", 16, options)
    return worker.fit(16, options)


@on_ray
@pytest.mark.parametrize(
    "fractions", [{}, {"fit_data_fraction": 0.5, "warm_start_fraction": 0.5}], ids=["all", "shares"]
)
def test_two_workers_give_what_one_gives(tmp_path: Path, fractions: dict[str, float]) -> None:
    pieces = vectors(tmp_path)
    options = FitOptions(n_clusters=20, max_iter=30, **fractions)
    one, two = alone(pieces, options), KMeansGroup(plan(2), pieces, "embeddings", 16).fit(options)
    np.testing.assert_allclose(two.centroids, one.centroids, atol=1e-5)
    assert (two.iterations, two.rows) == (one.iterations, one.rows)
    assert two.rows == 4000 or (fractions and 1800 < two.rows < 2200)
    assert two.inertia == pytest.approx(one.inertia, rel=1e-6)
    assert two.seconds_seed is not None and 0 < two.seconds_seed < two.seconds


@on_ray
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(tmp_path: Path) -> None:
    """One worker dies by kill -9 after some iterations; the new group starts from the saved ones, far from any rest,
    and ends at the same bits."""
    (tmp_path / "in").mkdir()
    pieces = vectors(tmp_path / "in", rows=20_000, k=100, group=5000)
    state = str(tmp_path / "state")
    options = FitOptions(n_clusters=100, max_iter=60, tol=0.0, checkpoint_every=1, init="random")
    undisturbed = alone(pieces, options)
    group = KMeansGroup(plan(2), pieces, "embeddings", 16)

    def disturb() -> None:
        while (saved := load(state, k=100, dim=16)) is None or saved.iteration < 5:
            time.sleep(0.02)
        os.kill(group.process_ids()[1], signal.SIGKILL)

    killer = threading.Thread(target=disturb, daemon=True)
    killer.start()
    disturbed = group.fit(options, state)
    killer.join(PATIENCE_S)
    assert group.failures == 1 and 5 <= disturbed.resumed_from < 60
    assert disturbed.iterations == undisturbed.iterations == 60
    np.testing.assert_array_equal(disturbed.centroids, undisturbed.centroids)
    assert disturbed.inertia == undisturbed.inertia


@on_ray
def test_workers_that_do_not_meet_in_time_are_tried_again_and_then_named(tmp_path: Path) -> None:
    group = KMeansGroup(plan(2, timeout_s=0.001, max_failures=1), vectors(tmp_path), "embeddings", 16)
    with pytest.raises(RaycurateError, match=r"failed 2 times: a collective failed with all workers alive") as error:
        group.fit(FitOptions(n_clusters=20))
    assert group.failures == 2 and "collective_timeout_s" in str(error.value)
    assert not group.workers


@on_ray
def test_a_worker_whose_rows_are_all_left_out_has_no_part(tmp_path: Path) -> None:
    vectors(tmp_path, files=1)
    broken = np.random.default_rng(0).normal(size=(6000, 16))
    broken[:, 0] = np.nan
    write(tmp_path / "1.parquet", broken, group=300)
    group = KMeansGroup(plan(2), pieces_in(tmp_path), "embeddings", 16)
    assert [{piece.path for piece in share} for share in group._deal()][1] == {str(tmp_path / "1.parquet")}
    assert group.fit(FitOptions(n_clusters=20, max_iter=3)).rows == 4000


@on_ray
def test_more_clusters_than_vectors_is_an_error_of_the_user(tmp_path: Path) -> None:
    pieces = vectors(tmp_path, rows=40)
    group = KMeansGroup(plan(2), pieces, "embeddings", 16)
    with pytest.raises(InputError, match="40 usable vectors cannot make 50 clusters"):
        group.fit(FitOptions(n_clusters=50))
    assert group.failures == 0 and not group.workers


@on_ray
def test_a_group_without_a_place_says_so(tmp_path: Path) -> None:
    group = KMeansGroup(plan(2, cpus=50.0, start_s=0.5), vectors(tmp_path), "embeddings", 16)
    with pytest.raises(CapacityError, match=r"no place was found in 0 s for 2 workers of \{'CPU': 50"):
        group.fit(FitOptions(n_clusters=20))


def test_kernels_that_label_wrongly_are_found_before_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    see_that_labels_are_right(torch.device("cpu"))
    monkeypatch.setattr(torch_engine, "nearest", lambda *a: (nearest(*a) + 1) % 128)
    with pytest.raises(RaycurateError, match=r"farther than its nearest centroid") as error:
        see_that_labels_are_right(torch.device("cpu"))
    assert error.value.where == "self-test of k-means on cpu"


def test_sums_that_are_wrong_are_found_when_the_workers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Alone):
        size = 2

    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: None)
    monkeypatch.setattr(torch_engine, "TorchGroup", Deaf)
    with pytest.raises(RaycurateError, match=r"the sum over 2 workers is 1\.0"):
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meet("tcp://127.0.0.1:1", 0, 2, backend="gloo", timeout_s=1.0, store=store)


def test_no_more_workers_than_shares(tmp_path: Path) -> None:
    pieces = vectors(tmp_path, files=3, group=4000)
    dealt = KMeansGroup(plan(8), pieces, "embeddings", 16)._deal()
    assert dealt == [[piece] for piece in pieces]
    assert KMeansGroup(plan(8), [], "embeddings", 16)._deal() == [[]]


def test_raft_without_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        KMeansGroup(plan(1), [], "embeddings", 16).fit(FitOptions(n_clusters=2, engine="raft"))


def test_raft_with_a_warm_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no warm start") as error:
        KMeansGroup(plan(1, gpus=1.0), [], "embeddings", 16).fit(
            FitOptions(n_clusters=5, engine="raft", warm_start_fraction=0.1)
        )
    assert error.value.where == "warm_start_fraction"


def test_after_a_loss_the_size_is_what_the_nodes_hold() -> None:
    nodes = [
        NodeShape({"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0}, {"zone": "a"}),
        NodeShape({"CPU": 1.5, "GPU": 4.0, "accelerator_type:L4": 1.0}, {"zone": "b"}),
        NodeShape({"CPU": 64.0}, {"zone": "a"}),
    ]
    gpu = {"cpus": 0.5, "gpus": 1.0}
    assert plan(9, **gpu).size_on(nodes) == 2 + 3  # the second node's CPUs are enough for three
    assert plan(4, **gpu).size_on(nodes) == 4
    assert plan(9, **gpu, remote_args={"label_selector": {"zone": "b"}}).size_on(nodes) == 3
    assert plan(9, **gpu, remote_args={"accelerator_type": "L4"}).size_on(nodes) == 5
    assert plan(9, **gpu, remote_args={"accelerator_type": "H100"}).size_on(nodes) == 1
    assert plan(9, **gpu, min_size=7).size_on(nodes) == 7
    assert [plan(size, cpus=0.1).size_on(nodes) for size in (200, 1000)] == [200, 80 + 15 + 640]
    assert plan(2, cpus=0.5, remote_args={"resources": {"disk": 1.0}}).bundle == {"CPU": 0.5, "disk": 1.0}
