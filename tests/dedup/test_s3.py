"""Clusters, visitors, tiles, edges and documents on an S3-compatible server: the result is that on a local disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core import storage
from raycurate.core.manifest import require_whole
from tests.dedup.test_stage import near_copies
from tests.kmeans.test_stage import write
from tests.processes import finish, start


def rows_of(folder: str, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in require_whole(folder).files:
        if file.path.startswith(f"{part}/"):
            filesystem, inner = storage.filesystem(storage.join(folder, file.path))
            found += pq.read_table(inner, filesystem=filesystem, partitioning=None).to_pylist()
    return sorted(found, key=lambda row: row["id"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_from_bucket_to_bucket(s3: str, tmp_path: Path) -> None:
    write(tmp_path / "in/a.parquet", near_copies(4))
    storage.write_bytes(f"{s3}/in/a.parquet", (tmp_path / "in/a.parquet").read_bytes())
    lines = "\n".join(json.dumps({"id": f"d{i}", "text": f"text {i}"}) for i in range(400))
    storage.write_text(f"{s3}/docs/a.jsonl", lines)
    storage.write_text(str(tmp_path / "docs/a.jsonl"), lines)
    options = {"eps": 0.05, "probe": 2, "tile_rows": 60}
    here, there = str(tmp_path), s3
    rc.kmeans(f"{here}/in", f"{here}/clusters", n_clusters=4)
    rc.deduplicate(f"{here}/clusters", f"{here}/out", documents=f"{here}/docs", **options)
    # A Ray of its own: the workers of the tests' Ray were started without the server's address.
    finish(start("kmeans", f"input={there}/in", f"output={there}/clusters", "n_clusters=4"))
    given = [f"{name}={value}" for name, value in options.items()]
    finish(start("dedup", f"input={there}/clusters", f"output={there}/out", f"documents={there}/docs", *given))
    for part in ("duplicates", "neighbors"):
        assert [(r["id"], round(r["cosine_sim_score"], 5)) for r in rows_of(f"{here}/out", part)] == [
            (r["id"], round(r["cosine_sim_score"], 5)) for r in rows_of(f"{there}/out", part)
        ]
    kept = [row["id"] for row in rows_of(f"{there}/out", "documents")]
    assert kept == [row["id"] for row in rows_of(f"{here}/out", "documents")] and 0 < len(kept) < 400
    assert not storage.exists(f"{there}/out/_staging")
