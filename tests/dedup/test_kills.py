"""Clustering and deduplication that are really killed: a second run goes on, and ends where an undisturbed one does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.dedup.test_stage import table_of
from tests.kmeans.test_fit import blobs, unit
from tests.kmeans.test_stage import read, write
from tests.processes import MemoryOf, finish, start, title, tree, wait_until

pytestmark = pytest.mark.slow


def staged(folder: Path, pattern: str) -> int:
    return len(list((folder / "_staging").rglob(pattern)))


def kmeans(folder: Path, name: str, *more: str) -> list[str]:
    return ["kmeans", f"input={folder / 'in'}", f"output={folder / name}", "metadata_fields=[length]", *more]


def kill(process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_kmeans_killed_in_the_fit_and_in_the_assignment(tmp_path: Path) -> None:
    data, _ = blobs(60_000, 64, 50, 0, spread=2.0)
    for part in range(6):
        write(tmp_path / f"in/{part}.parquet", data[part * 10_000 : (part + 1) * 10_000], first=part * 10_000)
    options = ("n_clusters=200", "tol=0", "max_iter=40", "checkpoint_every=1", "num_workers=2")
    finish(start(*kmeans(tmp_path, "calm", *options)))
    output = tmp_path / "killed"
    process = start(*kmeans(tmp_path, "killed", *options))
    wait_until(lambda: staged(output, "kmeans_state.npz") > 0, process, "centroids were saved")
    kill(process)
    process = start(*kmeans(tmp_path, "killed", *options))
    wait_until(lambda: staged(output, "rows/*.parquet") > 0, process, "rows were assigned")
    kill(process)
    assert not (output / "_manifest.json").exists()
    finish(start(*kmeans(tmp_path, "killed", *options)))
    np.testing.assert_allclose(
        np.load(output / "_kmeans_centroids.npy"), np.load(tmp_path / "calm/_kmeans_centroids.npy"), atol=1e-4
    )
    places = []
    for folder in (tmp_path / "calm", output):
        table = read(folder).sort_by("length")
        assert table["length"].to_pylist() == list(range(60_000))
        places.append(table["centroid"].to_numpy())
    assert (places[0] == places[1]).mean() > 0.9999
    assert not (output / "_staging").exists()
    assert "nothing to do" in finish(start(*kmeans(tmp_path, "killed", *options)))


def test_dedup_killed_between_tiles_and_one_comparing_worker_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    seeds = unit(random.normal(size=(4000, 64)))
    data = unit(seeds[random.integers(0, 4000, 30_000)] + 0.03 * random.normal(size=(30_000, 64)))
    write(tmp_path / "in/a.parquet", data)
    finish(start(*kmeans(tmp_path, "clusters", "n_clusters=2")))

    def dedup(name: str) -> list[str]:
        return ["dedup", f"input={tmp_path / 'clusters'}", f"output={tmp_path / name}", "eps=0.05", "tile_rows=1500"]

    finish(start(*dedup("calm")))
    output = tmp_path / "killed"
    process = start(*dedup("killed"))
    wait_until(lambda: staged(output, "found-*.npz") >= 3, process, "three tiles were compared")
    kill(process)
    done = staged(output, "found-*.npz")
    process = start(*dedup("killed"))

    def comparing() -> list[int]:
        return [pid for pid in tree(process.pid) if title(pid).startswith("ray::Pairwise")]

    wait_until(lambda: bool(comparing()), process, "a worker compared")
    os.kill(comparing()[0], signal.SIGKILL)
    finish(process)
    assert done >= 3
    for part in ("neighbors", "edges", "duplicates"):
        calm, disturbed = table_of(tmp_path / "calm", part), table_of(output, part)
        assert calm.keys() == disturbed.keys() and calm == disturbed
    assert not (output / "_staging").exists()


def test_a_million_vectors_within_six_gigabytes(tmp_path: Path) -> None:
    """1,000,000 x 64, near-duplicates among them, through both stages; sizes are printed."""
    random = np.random.default_rng(0)
    seeds = unit(random.normal(size=(200_000, 64)))
    for part in range(10):
        rows = unit(seeds[random.integers(0, 200_000, 100_000)] + 0.02 * random.normal(size=(100_000, 64)))
        write(tmp_path / f"in/{part}.parquet", rows, first=part * 100_000)
    process = start(*kmeans(tmp_path, "clusters", "n_clusters=500", "max_iter=20"))
    memory = MemoryOf(process.pid)
    finish(process)
    clustering = memory.peak
    process = start("dedup", f"input={tmp_path / 'clusters'}", f"output={tmp_path / 'out'}", "eps=0.05")
    memory = MemoryOf(process.pid)
    said = finish(process)
    print(f"\npeak memory: kmeans {clustering / 2**30:.2f} GiB, dedup {memory.peak / 2**30:.2f} GiB\n{said}")
    assert max(clustering, memory.peak) < 6e9
    kept = 1_000_000 - len(table_of(tmp_path / "out", "duplicates"))
    # Each of the 198,700 seeds that were drawn leaves one, or, where a border parts its rows, two or three.
    assert 198_000 < kept < 350_000
