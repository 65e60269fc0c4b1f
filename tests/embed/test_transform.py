"""`rc.embed` in a Ray Data pipeline of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core.errors import CapacityError, ConfigError
from raycurate.ray_runtime.cluster import dataset_demands
from tests.embed.hashing import hash_vector

pytestmark = pytest.mark.usefixtures("local_ray")
ENGINE: dict[str, Any] = {"model": "hash", "engine": "tests.embed.hashing:HashEncoder"}


def test_on_any_data_set(tmp_path: Path) -> None:
    import ray

    rows = [{"key": i, "body": None if i == 3 else f"word{i} word"} for i in range(40)]
    dataset = rc.embed(ray.data.from_items(rows), text_field="body", **ENGINE)
    dataset.write_parquet(str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out")
    assert set(table.column_names) == {"key", "body", "embeddings", "text_cut", "reject_reason", "reject_detail"}
    got = dict(zip(table["key"].to_pylist(), table["embeddings"].to_pylist(), strict=True))
    assert got[3] is None
    np.testing.assert_array_equal(got[7], hash_vector("word7 word"))
    assert table["reject_reason"].drop_null().to_pylist() == ["null_text"]


def test_read_embed_write(tmp_path: Path) -> None:
    """README's example."""
    (tmp_path / "a.txt").write_text("first file")
    (tmp_path / "b.md").write_text("second file")
    documents = rc.read_documents(str(tmp_path))
    rc.embed(documents, **ENGINE).write_parquet(str(tmp_path / "out"))
    assert sorted(pq.read_table(tmp_path / "out")["text"].to_pylist()) == ["first file", "second file"]


def test_checkpoint_on_what_is_not_a_read_is_refused(tmp_path: Path) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    dataset = ray.data.from_items([{"id": i, "text": "x"} for i in range(3)])
    dataset.context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=str(tmp_path / "checkpoint"))
    with pytest.raises(ConfigError, match="not from a read"):
        rc.embed(dataset, **ENGINE)


def test_the_users_own_operators_count_in_the_plan() -> None:
    """Two operators of a pipeline that together want more CPUs than there are would wait for ever: refused."""
    import ray

    class Hungry:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    dataset = ray.data.range(10).map_batches(lambda batch: {"text": batch["id"].astype(str)})
    greedy = dataset.map_batches(Hungry, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=3.5)
    with pytest.raises(CapacityError, match="Hungry"):
        rc.embed(greedy, **ENGINE)


def test_options_of_files_and_unknown_ones_are_refused() -> None:
    import ray

    dataset = ray.data.from_items([{"text": "x"}])
    for name, value in {"output": "somewhere", "id_field": "text", "metadata_fields": ["text"]}.items():
        with pytest.raises(ConfigError, match=f"{name} cannot be used"):
            rc.embed(dataset, **{name: value}, **ENGINE)
    with pytest.raises(ConfigError, match="did you mean 'embedding_field'"):
        rc.embed(dataset, embeding_field="e", **ENGINE)


def test_a_field_that_is_no_text_is_refused_before_anything_runs() -> None:
    import ray

    dataset = ray.data.from_arrow(pa.table({"text": [1], "body": ["x"]}))
    with pytest.raises(ConfigError, match="'text' holds int64, not text"):
        rc.embed(dataset, **ENGINE)
    with pytest.raises(ConfigError, match=r"no column 'boddy'.*Did you mean 'body'"):
        rc.embed(dataset, text_field="boddy", **ENGINE)


def test_encoders_stay_apart_from_reading_and_tokenising(tmp_path: Path) -> None:
    """Ray Data fuses neighbours that reserve the same; an encoder that tokenises leaves its model waiting."""
    (tmp_path / "a.txt").write_text("a text")
    documents = rc.read_documents(str(tmp_path / "a.txt"))
    dataset = rc.embed(documents, **ENGINE | {"actors": {"num_cpus": 1.0}, "concurrency": 1})
    assert "MapBatches(Encode)" in [demand.name for demand in dataset_demands(dataset)]
