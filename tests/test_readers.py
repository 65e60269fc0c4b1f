"""The outputs open in everybody's tools: a folder of Parquet files is read by its folder's name alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray

import raycurate as rc
from raycurate.core.manifest import require_whole
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.stages.embed.stage import STAGE as EMBED

DOCUMENTS = 40
PARTS = [("embed", ""), ("kmeans", "")]
PARTS += [("dedup", part) for part in ("neighbors", "edges", "duplicates", "documents")]


def _by_ray(folder: str) -> int:
    return int(ray.data.read_parquet(folder).count())


def _by_datasets(folder: str) -> int:
    # By the files' names: a folder's own name it takes for a data set of the ending that most of its files have.
    files = [str(path) for path in Path(folder).rglob("*.parquet")]
    return int(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=f"{folder}-cache").num_rows)


READERS: dict[str, Callable[[str], int]] = {
    "pandas": lambda folder: len(pd.read_parquet(folder)),
    "pyarrow.parquet": lambda folder: pq.read_table(folder).num_rows,
    "pyarrow.dataset": lambda folder: ds.dataset(folder, format="parquet", partitioning="hive").count_rows(),
    "ray.data": _by_ray,
    "datasets": _by_datasets,
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Every stage that writes folders of Parquet files, with rejected rows in each."""
    root = tmp_path_factory.mktemp("outputs")
    lines = [f'{{"id": "d{i}", "text": "text number {i % (DOCUMENTS - 1)}"}}' for i in range(DOCUMENTS)]
    (root / "docs.jsonl").write_text("\n".join([*lines, '{"id": "empty", "text": ""}', "no JSON"]) + "\n")
    options = {"model": "hash", "engine": "tests.embed.hashing:HashEncoder"}
    options |= {"input": str(root / "docs.jsonl"), "output": str(root / "embed")}
    EMBED.run(EmbedConfig.parse(options, where="test"))
    rows = pq.read_table(root / "embed").slice(0, 1).to_pylist()[0]
    zero = {"id": "zero", "embeddings": [0.0] * len(rows["embeddings"])}
    schema = pq.read_schema(next((root / "embed").glob("*.parquet")))
    shutil.copytree(root / "embed", root / "vectors", ignore=shutil.ignore_patterns("_*"))
    pq.write_table(pa.Table.from_pylist([zero], schema), root / "vectors/zero.parquet")
    rc.kmeans(str(root / "vectors"), str(root / "kmeans"), n_clusters=3)
    rc.deduplicate(str(root / "kmeans"), str(root / "dedup"), documents=str(root / "docs.jsonl"), eps=0.01)
    return root


@pytest.mark.parametrize("reader", READERS)
def test_the_folders_of_parquet_files_open_by_name(outputs: Path, reader: str) -> None:
    read = READERS[reader]
    rejects = {p.parent.parent.name for p in outputs.rglob("_rejects/*.jsonl")}
    assert rejects == {"embed", "kmeans", "documents"}
    for folder, part in PARTS:
        listed = [file for file in require_whole(str(outputs / folder)).files if file.path.endswith(".parquet")]
        rows = sum(file.rows or 0 for file in listed if file.path.startswith(part))
        assert rows and read(str(outputs / folder / part)) == rows, (folder, part)
