"""Staging files -> finished files: nothing lost, nothing twice, whatever order they were written in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError, RaycurateError
from raycurate.streams import finalise as module
from raycurate.streams import repeated_ids
from raycurate.streams.finalise import Layout, finalise
from raycurate.streams.staging import committed, is_complete, mark_complete

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


def rows_of(folder: Path) -> int:
    """Rows of a staging folder, as a run that has written all of them knows."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def rows(output: Path, result: module.Finalised) -> list[str]:
    files = [f.path for f in result.files if f.path.endswith(".parquet")]
    return [i for path in files for i in pq.read_table(output / path)["id"].to_pylist()]


def test_input_order_counts_and_rejects(tmp_path: Path) -> None:
    staging, output = tmp_path / "s", tmp_path / "o"
    stage(staging, "b", [10, 11, 12], ["k", "l", "m"], [None, "empty_text", None])
    stage(staging, "a", [2**63 + 5, 2**63 + 9], ["y", "z"])
    stage(staging, "c", [1, 2], ["a", "b"])
    result = finalise(str(staging), str(output), LAYOUT, known=rows_of(staging))
    assert rows(output, result) == ["a", "b", "k", "m", "y", "z"]
    assert (result.rows, result.rejects, result.sums["_num_tokens"]) == (6, {"empty_text": 1}, 7)
    [reject_file] = [f for f in result.files if f.path.startswith("_rejects/")]
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
    result = finalise(str(staging), str(output), LAYOUT, known=rows_of(staging))
    assert sorted(rows(output, result)) == ["a", "b", "c", "d", "e"]
    assert result.rejects == {}
    assert result.sums["_num_tokens"] == 5


def stage_random(staging: Path) -> list[tuple[int, str, str | None]]:
    """60 rows with 25 ids in six files of mixed order; (row key, id, reject reason) in key order."""
    generator = np.random.default_rng(0)
    keys = generator.permutation(60).tolist()
    names = [f"id-{generator.integers(25)}" for _ in keys]
    reasons = ["null_text" if k % 20 == 0 else None for k in keys]
    for part in range(6):
        cut = slice(part * 10, part * 10 + 10)
        pick = [part * 10 + int(i) for i in np.argsort(keys[cut])]
        stage(staging, f"p{part}", [keys[i] for i in pick], [names[i] for i in pick], [reasons[i] for i in pick])
    return sorted(zip(keys, names, reasons, strict=True))


@pytest.mark.parametrize("rows_a_partition", [10**9, 7])
def test_repeated_ids_are_refused_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_partition: int
) -> None:
    monkeypatch.setattr(repeated_ids, "_ROWS_PER_PARTITION", rows_a_partition)
    good = [name for _, name, reason in stage_random(tmp_path / "s") if reason is None]
    with pytest.raises(InputError, match=rf"{len(good) - len(set(good))} rows have the id .*'id-\d+' in s.*rename"):
        finalise(str(tmp_path / "s"), str(tmp_path / "o"), LAYOUT, known=rows_of(tmp_path / "s"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("rows_a_partition", [10**9, 7])
def test_repeated_ids_are_told_apart_and_no_row_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_partition: int
) -> None:
    monkeypatch.setattr(repeated_ids, "_ROWS_PER_PARTITION", rows_a_partition)
    staging, output = tmp_path / "s", tmp_path / "o"
    staged = stage_random(staging)
    result = finalise(str(staging), str(output), replace(LAYOUT, repeated_ids="rename"), known=rows_of(staging))
    good = [(key, name) for key, name, reason in staged if reason is None]
    assert (result.rejects, result.rows) == ({"null_text": 3}, len(good))
    tables = [pq.read_table(output / f.path) for f in result.files if f.path.endswith(".parquet")]
    by_key = sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["value"])  # its value is its key
    got = [row["id"] for row in by_key]
    assert len(set(got)) == len(got)
    assert [name.partition("#")[0] for name in got] == [name for _, name in good]  # each under its own
    first = {name: key for key, name, _ in reversed(staged)}
    assert [name for name in got if "#" not in name] == [name for key, name in good if first[name] == key]
    listed = [f.path for f in result.files if f.path.startswith("_renamed/")]
    renamed = [json.loads(line) for path in listed for line in (output / path).read_text().splitlines()]
    assert sorted(row["_row_key"] for row in renamed) == [key for key, name, _ in staged if first[name] != key]
    assert result.renamed == len(renamed)
    # Whoever reads the same rows again, without knowing what was rejected, names them alike.
    keys = repeated_ids.renamed_keys([str(output / path) for path in listed])
    again = pa.table({"_row_key": pa.array([k for k, _, _ in staged], pa.uint64()), "id": [n for _, n, _ in staged]})
    names = repeated_ids.rename_repeated(again, "id", keys)["id"].to_pylist()
    assert [n for n, (_, _, reason) in zip(names, staged, strict=True) if reason is None] == got


def test_integers_stay_integers_until_one_is_renamed(tmp_path: Path) -> None:
    def staged(name: str, ids: list[int | None]) -> pa.Table:
        stage(tmp_path / name, "a", list(range(len(ids))), [str(i) for i in ids])
        table = pq.read_table(tmp_path / name / "a.parquet")
        reasons = pa.array(["null_text" if i is None else None for i in ids], pa.string())
        table = table.set_column(1, "id", pa.array(ids, pa.int64())).set_column(4, "reject_reason", reasons)
        pq.write_table(table, tmp_path / name / "a.parquet")
        result = finalise(
            str(tmp_path / name),
            str(tmp_path / f"{name}-out"),
            replace(LAYOUT, repeated_ids="rename"),
            known=rows_of(tmp_path / name),
        )
        [path] = [f.path for f in result.files if f.path.endswith(".parquet")]
        return pq.read_table(tmp_path / f"{name}-out" / path)

    assert staged("unique", [3, 2**62, None, None])["id"].to_pylist() == [3, 2**62]
    names = staged("repeated", [3, 5, 3, None])["id"].to_pylist()
    assert names[:2] == ["3", "5"]
    assert names[2].startswith("3#")


def test_many_small_files_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TARGET_BYTES", 20_000)
    staging, output = tmp_path / "s", tmp_path / "o"
    for part in range(30):
        stage(staging, f"p{part:02d}", list(range(part * 10, part * 10 + 10)), [f"{part}-{i}" for i in range(10)])
    result = finalise(str(staging), str(output), LAYOUT, known=rows_of(staging))
    assert 2 <= len(result.files) <= 6
    assert len(set(rows(output, result))) == 300
    keys, rejects = committed(str(staging))
    assert keys.tolist() == list(range(300))
    assert rejects == 0


@pytest.mark.parametrize("known", [2, 4])
def test_rows_that_the_run_does_not_know_of_are_no_output(tmp_path: Path, known: int) -> None:
    stage(tmp_path / "s", "a", [1, 2, 3], ["a", "b", "c"])
    with pytest.raises(RaycurateError, match=f"hold 3 rows, and this run knows of {known} "):
        finalise(str(tmp_path / "s"), str(tmp_path / "o"), LAYOUT, known=known)
    assert not (tmp_path / "o").exists() and rows_of(tmp_path / "s") == 3


def test_all_is_staged_only_as_long_as_the_rows_are_those_that_were(tmp_path: Path) -> None:
    stage(tmp_path, "a", [1, 2, 3], ["a", "b", "c"])
    assert not is_complete(str(tmp_path), 3)
    mark_complete(str(tmp_path), 3)
    assert is_complete(str(tmp_path), 3) and not is_complete(str(tmp_path), 2)
    assert len(committed(str(tmp_path))[0]) == 3  # the mark is no staged file
