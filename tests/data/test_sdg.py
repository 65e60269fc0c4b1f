"""Question/answer records in every form they come in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.data.training.sdg import Reject, SdgRecord, read_sdg
from tests.prep.sdg_records import corpus, pair, record, write_jsonl


def one(value: Any, tmp_path: Path) -> SdgRecord | Reject:
    (found,) = read_sdg(write_jsonl(tmp_path / "one.jsonl", [value]))
    return found


def good(value: Any, tmp_path: Path) -> SdgRecord:
    found = one(value, tmp_path)
    assert isinstance(found, SdgRecord), found
    return found


def test_a_record(tmp_path: Path) -> None:
    found = good(record(["b.txt", "a.txt"], ["one", "two"], [pair("Q?", [2, 1, 2])], [9.5]), tmp_path)
    assert found.file_name == ("b.txt", "a.txt")
    assert found.chunks == {1: "one", 2: "two"}
    (asked,) = found.pairs
    assert (asked.question, asked.segment_ids, asked.score, asked.hop_count) == ("Q?", (2, 1), 9.5, 3)
    assert found.origin.endswith("one.jsonl:1")
    assert found.misaligned is None


@pytest.mark.parametrize("form", ["jsonl", "array", "array called jsonl", "gzip", "json lines called json", "parquet"])
def test_forms_are_the_same_records(form: str, tmp_path: Path) -> None:
    records = corpus(5)
    lines = "".join(json.dumps(r) + "\n" for r in records)
    names = {"jsonl": "a.jsonl", "array called jsonl": "a.jsonl", "gzip": "a.jsonl.gz", "parquet": "a.parquet"}
    path = tmp_path / names.get(form, "a.json")
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif form == "gzip":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(records, indent=1) if "array" in form else lines)
    expected = list(read_sdg(write_jsonl(tmp_path / "expected" / "e.jsonl", records)))
    found = list(read_sdg(str(path)))
    assert [(r.file_name, r.chunks, r.pairs) for r in found] == [(r.file_name, r.chunks, r.pairs) for r in expected]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    first, second, third = corpus(3)
    write_jsonl(tmp_path / "in" / "b.jsonl", [second])
    write_jsonl(tmp_path / "in" / "a.jsonl", [first])
    write_jsonl(tmp_path / "in" / "_rejects" / "r.jsonl", [{"no": "record"}])
    (tmp_path / "in" / "_manifest.json").write_text("{}")
    (tmp_path / "in" / "notes.txt").write_text("not read")
    (tmp_path / "in" / "generation_result.json").write_text('{"schema_version": 1}')
    write_jsonl(tmp_path / "c.jsonl", [third])
    found = list(read_sdg([str(tmp_path / "in"), str(tmp_path / "c.jsonl"), str(tmp_path / "in" / "a.jsonl")]))
    assert [r.file_name for r in found] == [("docs/002.txt",), ("docs/000.txt",), ("docs/001.txt",)]


def test_generation_result_names_the_records(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "out" / "data.jsonl", corpus(2))
    result = tmp_path / "generation_result.json"
    result.write_text(json.dumps({"schema_version": 1, "dataset_name": "d", "output_path": "out/data.jsonl"}))
    assert len(list(read_sdg(str(result)))) == 2
    result.write_text("{}")
    with pytest.raises(InputError, match="names no output_path"):
        list(read_sdg(str(result)))


def test_leniencies(tmp_path: Path) -> None:
    value = record("a.txt", ["one", "two"], [pair("Q?", ["8"], query_type="made up", hop_contexts="a string")], [7], 7)
    del value["source_id"], value["text"]
    value["file_name"] = "a.txt"
    value["qa_evaluations"]["evaluations"][0]["overall"]["score"] = "7.5"
    found = good(value, tmp_path)
    assert found.file_name == ("a.txt",)
    assert found.chunks == {7: "one", 8: "two"}
    (asked,) = found.pairs
    assert (asked.segment_ids, asked.score, asked.query_type, asked.hop_contexts) == ((8,), 7.5, "made up", "a string")


def test_deduplicated_pairs_come_before_generated_ones(tmp_path: Path) -> None:
    value = record("a.txt", ["one"], [pair("kept", [1])], [8])
    value["qa_generation"] = {"pairs": [pair("kept", [1]), pair("dropped", [1])]}
    assert [p.question for p in good(value, tmp_path).pairs] == ["kept"]
    value["deduplicated_qa_pairs"] = []
    value["qa_evaluations"]["evaluations"] = []
    assert good(value, tmp_path).pairs == ()
    value["deduplicated_qa_pairs"] = None
    value["qa_evaluations"] = None
    found = good(value, tmp_path)
    assert [(p.question, p.score) for p in found.pairs] == [("kept", None), ("dropped", None)]
    assert found.misaligned is None


def test_evaluations_of_another_number_are_nobodys(tmp_path: Path) -> None:
    found = good(record("a.txt", ["one"], [pair("Q", [1]), pair("R", [1])], [8]), tmp_path)
    assert found.misaligned == "1 evaluations for 2 pairs"
    assert [p.score for p in found.pairs] == [None, None]


def test_nested_columns_as_json_text(tmp_path: Path) -> None:
    value = record("a.txt", ["one"], [pair("Q", [1])], [8])
    flat = {key: json.dumps(content) if isinstance(content, list | dict) else content for key, content in value.items()}
    assert good(flat, tmp_path).pairs == good(value, tmp_path).pairs


def test_not_a_number_is_no_score(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record("a", ["one"], [pair("Q", [1])], [float("nan")])) + "\n")
    (found,) = read_sdg(str(path))
    assert isinstance(found, SdgRecord)
    assert found.pairs[0].score is None


def test_bad_lines_are_told_with_file_line_and_reason(tmp_path: Path) -> None:
    value = record("a.txt", ["one"], [pair("Q", [1]), "no object", pair("R", ["x"])], [8, 8, 8])
    clash = record("b.txt", ["one", "two"], [], [])
    clash["chunks"][1]["chunk_id"] = 1
    path = tmp_path / "a.jsonl"
    lines = [b"{broken", b"", b"[1]", b'"\xff"', json.dumps({"chunks": []}).encode(), json.dumps(clash).encode()]
    path.write_bytes(b"\n".join([json.dumps(value).encode(), *lines]) + b"\n")
    found = list(read_sdg(str(path)))
    assert isinstance(found[0], SdgRecord)
    assert [p.question for p in found[0].pairs] == ["Q"]
    assert [(r.line, r.reason, r.detail[:7]) for r in found[0].problems] == [
        (1, "bad_pair", "pair 2:"),
        (1, "bad_id", "pair 3:"),
    ]
    assert all(isinstance(r, Reject) and r.file == str(path) for r in found[1:])
    assert [(r.line, r.reason) for r in found[1:] if isinstance(r, Reject)] == [
        (2, "invalid_json"),
        (4, "not_an_object"),
        (5, "undecodable"),
        (6, "missing_file_name"),
        (7, "bad_chunks"),
    ]


def test_a_truncated_parquet_is_one_reject(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(corpus(3)), path)
    path.write_bytes(path.read_bytes()[:-20])
    write_jsonl(tmp_path / "in" / "b.jsonl", corpus(1))
    broken, whole = read_sdg(str(tmp_path / "in"))
    assert isinstance(broken, Reject) and broken.reason == "unreadable_file"
    assert isinstance(whole, SdgRecord)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no file of question/answer records"):
        list(read_sdg(str(tmp_path)))
    with pytest.raises(InputError, match="no such file"):
        list(read_sdg(str(tmp_path / "missing.jsonl")))
