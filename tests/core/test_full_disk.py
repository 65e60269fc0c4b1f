"""A disk that fills up while a stage writes: a real, small filesystem."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.stages.embed.stage import STAGE
from raycurate.streams.finalise import LazyParquet

BYTES = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(place)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a filesystem can be mounted by the superuser only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_file_that_does_not_fit_is_one_sentence_and_leaves_nothing(small_disk: Path) -> None:
    storage.write_text(str(small_disk / "out/before"), "whole")
    table = pa.table({"number": np.random.default_rng(0).random(BYTES // 4)})
    with (
        pytest.raises(RaycurateError, match=r"/disk/out: the disk is full \(No space left on device\)\. Make room"),
        storage.open_output(str(small_disk / "out/a.parquet")) as stream,
    ):
        pq.write_table(table, stream)
    with pytest.raises(RaycurateError, match="the disk is full"):
        storage.write_bytes(str(small_disk / "out/b"), b"x" * 2 * BYTES)
    assert [path.name for path in (small_disk / "out").iterdir()] == ["before"]


@pytest.mark.parametrize("room", [0, 8, 40, 200], ids=lambda room: f"{room} KiB")
def test_wherever_a_finished_file_stops_fitting(small_disk: Path, room: int) -> None:
    """At its beginning, among its rows, or when it is closed."""
    table = pa.table({"number": np.random.default_rng(0).random(2**15)})
    (small_disk / "filler").write_bytes(b"x" * (BYTES - (room + 4) * 1024))
    with pytest.raises(RaycurateError, match=r"the disk is full"), LazyParquet(str(small_disk / "out/a")) as file:
        for part in range(8):
            file.write(table.slice(part * 4096, 4096))
    assert not any(path.name for path in (small_disk / "out").iterdir())


@pytest.mark.usefixtures("local_ray")
def test_embed_and_kmeans_name_the_folder_and_go_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1500, 256)).astype(np.float32)
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": np.arange(len(rows)), "embeddings": list(rows)}), tmp_path / "in/a.parquet")
    out = str(small_disk / "clusters")
    with pytest.raises(RaycurateError, match=r"/disk/clusters/.*: the disk is full .* the same command goes on"):
        rc.kmeans(str(tmp_path / "in"), out, n_clusters=2)
    (tmp_path / "docs").mkdir()
    texts = [np.random.default_rng(number).bytes(600).hex() for number in range(3000)]
    pq.write_table(pa.table({"id": [str(n) for n in range(3000)], "text": texts}), tmp_path / "docs/a.parquet")
    options = {
        "input": str(tmp_path / "docs"),
        "output": str(small_disk / "emb"),
        "engine": "tests.embed.hashing:HashEncoder",
        "model": "hash",
        "keep_text": True,
    }
    with pytest.raises(RaycurateError, match=r"/disk/emb/.*: the disk is full"):
        STAGE.run(EmbedConfig.parse(options, where="embed"))
    storage.delete(str(small_disk / "emb"))
    subprocess.run(["mount", "-o", f"remount,size={64 * BYTES}", str(small_disk)], check=True)
    assert rc.kmeans(str(tmp_path / "in"), out, n_clusters=2).manifest.counts["rows"] == 1500
