"""Staging files -> finished files: nothing lost, nothing twice, whatever order they were written in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core import finalise as module
from raycurate.core.finalise import Layout, finalise
from raycurate.core.staging import committed

pytestmark = pytest.mark.usefixtures("local_ray")

LAYOUT = Layout("out", ["id", "value"], ["_num_tokens"], unique_id="id")


def stage(folder: Path, name: str, keys: list[int], ids: list[str], reasons: list[str | None] | None = None) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    table = pa.table(
        {
            "_row_key": pa.array(keys, pa.uint64()),
            "id": ids,
            "value": pa.array([float(k % 97) for k in keys], pa.float32()),
            "source": ["s"] * len(keys),
            "reject_reason": pa.array(reasons or [None] * len(keys), pa.string()),
            "reject_detail": pa.nulls(len(keys), pa.string()),
            "_num_tokens": pa.array([1] * len(keys), pa.int32()),
        }
    )
    table = table.replace_schema_metadata({b"k": b"v"})
    pq.write_table(table, folder / f"{name}.parquet")


def rows(output: Path, result: module.Finalised) -> list[str]:
    files = [f.path for f in result.files if f.path.endswith(".parquet")]
    return [i for path in files for i in pq.read_table(output / path)["id"].to_pylist()]


def test_input_order_counts_and_rejects(tmp_path: Path) -> None:
    staging, output = tmp_path / "s", tmp_path / "o"
    stage(staging, "b", [10, 11, 12], ["k", "l", "m"], [None, "empty_text", None])
    stage(staging, "a", [2**63 + 5, 2**63 + 9], ["y", "z"])
    stage(staging, "c", [1, 2], ["a", "b"])
    result = finalise(str(staging), str(output), LAYOUT)
    assert rows(output, result) == ["a", "b", "k", "m", "y", "z"]
    assert (result.rows, result.rejects, result.sums["_num_tokens"]) == (6, {"empty_text": 1}, 7)
    [reject_file] = [f for f in result.files if f.path.startswith("rejects/")]
    [reject] = [json.loads(line) for line in (output / reject_file.path).read_text().splitlines()]
    assert (reject["id"], reject["reject_reason"], reject["source"]) == ("l", "empty_text", "s")
    [data_file] = [f for f in result.files if f.path.endswith(".parquet")]
    schema = pq.read_schema(output / data_file.path)
    assert schema.names == ["id", "value"]
    assert schema.metadata[b"k"] == b"v"
    assert (output / data_file.path).stat().st_size == data_file.size


def test_a_row_two_attempts_wrote_is_kept_once(tmp_path: Path) -> None:
    staging, output = tmp_path / "s", tmp_path / "o"
    stage(staging, "attempt1", [1, 2, 3], ["a", "b", "c"])
    stage(staging, "attempt2", [2, 3, 4], ["b", "c", "d"])
    stage(staging, "attempt3", [5], ["e"])
    result = finalise(str(staging), str(output), LAYOUT)
    assert sorted(rows(output, result)) == ["a", "b", "c", "d", "e"]
    assert result.rejects == {}
    assert result.sums["_num_tokens"] == 5


@pytest.mark.parametrize("rows_a_partition", [10**9, 7])
def test_the_first_row_of_an_id_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_partition: int) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_PARTITION", rows_a_partition)
    staging, output = tmp_path / "s", tmp_path / "o"
    generator = np.random.default_rng(0)
    keys = generator.permutation(60).tolist()
    names = [f"id-{generator.integers(25)}" for _ in keys]
    reasons = ["null_text" if k % 20 == 0 else None for k in keys]
    for part in range(6):
        cut = slice(part * 10, part * 10 + 10)
        order = np.argsort(keys[cut])
        pick = [part * 10 + int(i) for i in order]
        stage(staging, f"p{part}", [keys[i] for i in pick], [names[i] for i in pick], [reasons[i] for i in pick])
    result = finalise(str(staging), str(output), LAYOUT)
    expected: dict[str, int] = {}
    for k, name, reason in sorted(zip(keys, names, reasons, strict=True)):
        if reason is None:
            expected.setdefault(name, k)
    got = {}
    for f in result.files:
        if f.path.endswith(".parquet"):
            table = pq.read_table(output / f.path)
            got.update(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert got == {name: float(k) for name, k in expected.items()}
    assert result.rejects == {"null_text": 3, "duplicate_id": 60 - 3 - len(expected)}


def test_many_small_files_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TARGET_BYTES", 20_000)
    staging, output = tmp_path / "s", tmp_path / "o"
    for part in range(30):
        stage(staging, f"p{part:02d}", list(range(part * 10, part * 10 + 10)), [f"{part}-{i}" for i in range(10)])
    result = finalise(str(staging), str(output), LAYOUT)
    assert 2 <= len(result.files) <= 6
    assert len(set(rows(output, result))) == 300
    keys, rejects = committed(str(staging))
    assert keys.tolist() == list(range(300))
    assert rejects == 0
