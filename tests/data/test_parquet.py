"""Reading Parquet segments, without Ray."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core import storage
from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.rows import BASE_NAMES, ReadPlan
from raycurate.data.documents.segments import choose_position_bits, cut


def tables(path, *, segment_bytes=1 << 24, done=None, **plan) -> list[pa.Table]:
    files = storage.list_files(str(path))
    options = {"position_bits": choose_position_bits(files), **plan}
    return list(read_segments(cut(files, segment_bytes), ReadPlan(**options), done))


def read(path, **options) -> list[dict]:
    rows = [row for table in tables(path, **options) for row in table.to_pylist()]
    return sorted(rows, key=lambda r: r["_row_key"])


@pytest.fixture
def corpus(tmp_path):
    """1,000 rows in row groups of 100, each a few kilobytes."""
    texts = [
        None if i % 97 == 0 else f"text {i} " + hashlib.sha256(str(i).encode()).hexdigest() * 20 for i in range(1000)
    ]
    table = pa.table({"id": [f"d{i}" for i in range(1000)], "text": texts, "year": pa.array(range(1000), pa.int32())})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    return tmp_path / "x.parquet"


def test_each_row_group_is_read_once_whatever_the_cut(corpus):
    whole = read(corpus, columns=(("year", pa.int32()),))
    assert [r["_row_key"] for r in whole] == list(range(1000))
    assert [r["year"] for r in whole] == list(range(1000))
    assert sum(r["reject_reason"] == "null_text" for r in whole) == 11
    assert whole[97]["reject_detail"] == "row 97"
    for size in (1000, 4096, 33_333):
        assert read(corpus, segment_bytes=size, columns=(("year", pa.int32()),)) == whole


def test_done_rows_are_left_out_and_whole_row_groups_are_not_opened(corpus):
    whole = read(corpus)
    rng = np.random.default_rng(1)
    done = np.sort(np.concatenate([np.arange(200, 500), rng.choice(200, 77, replace=False)])).astype(np.uint64)
    rest = [r for r in whole if r["_row_key"] not in set(done.tolist())]
    assert read(corpus, done=done) == rest
    damage(corpus, group=3)  # all of its rows are done, so that it is damaged makes no difference
    assert read(corpus, done=done) == rest


def damage(path, group: int) -> None:
    column = pq.ParquetFile(path).metadata.row_group(group).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)


def test_of_a_damaged_row_group_each_row_is_a_reject_and_the_others_are_read(corpus):
    whole = read(corpus)
    damage(corpus, group=3)
    got = read(corpus)
    lost = range(300, 400)
    assert [r["_row_key"] for r in got] == [r["_row_key"] for r in whole]
    assert [r for r in got if r["_row_key"] not in lost] == [r for r in whole if r["_row_key"] not in lost]
    bad = [r for r in got if r["_row_key"] in lost]
    assert {r["reject_reason"] for r in bad} == {"unreadable_file"}
    assert bad[7]["reject_detail"].startswith("row 307, with rows 300 to 399: ")
    done = np.array([*range(200), *range(320, 330)], np.uint64)
    assert [r["_row_key"] for r in read(corpus, done=done)] == sorted({*range(1000)} - set(done.tolist()))


def test_what_is_no_parquet_is_a_reject_with_a_key_of_its_own(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet" * 100)
    rows = read(tmp_path, segment_bytes=500)
    assert [r["reject_reason"] for r in rows] == ["unreadable_file"] * 3
    assert len({r["_row_key"] for r in rows}) == 3
    assert read(tmp_path, segment_bytes=500, done=np.array([r["_row_key"] for r in rows], np.uint64)) == []


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_all_sorts_of_strings_are_text(tmp_path, kind):
    values = ["one", "zwei größe", None, "one", " "]
    column = pa.array(values).cast(kind) if not pa.types.is_dictionary(kind) else pa.array(values).dictionary_encode()
    pq.write_table(pa.table({"text": column, "tag": column}), tmp_path / "x.parquet")
    [table] = tables(tmp_path, columns=None)
    assert table.schema.field("text").type == table.schema.field("tag").type == pa.string()
    assert table["text"].to_pylist() == values == table["tag"].to_pylist()
    assert table["reject_reason"].to_pylist() == [None, None, "null_text", None, "empty_text"]


def test_reject_reasons_of_strings(tmp_path):
    raw = [b"fine", b"bad \xff", "ééé".encode(), "éééé".encode() * 10, b"\xe2\x80\x83\n", b"", None]
    binary = pa.array(raw, pa.binary())
    bad = pa.Array.from_buffers(pa.string(), len(raw), binary.buffers(), null_count=1)
    pq.write_table(pa.table({"text": bad}), tmp_path / "x.parquet")
    cut = read(tmp_path, max_chars=10)
    assert [r["text_cut"] for r in cut] == [False, False, False, True, False, False, False]
    assert (cut[3]["text"], cut[3]["reject_reason"]) == ("é" * 10, None)
    rows = read(tmp_path, max_chars=10, over_long="reject")
    reasons = [None, "undecodable", None, "too_long", "empty_text", "empty_text", "null_text"]
    assert [r["reject_reason"] for r in rows] == reasons
    assert rows[1]["reject_detail"] == "row 1: bad \ufffd"
    assert [r["text"] for r in rows] == ["fine", None, "ééé", None, "\u2003\n", "", None]


def test_ids_and_sources(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table(
        {"_id": pa.array([5, None], pa.int64()), "text": ["a", "b"], "source": ["web", None], "title": ["", "T"]}
    )
    pq.write_table(table, path)
    first, second = read(path)
    assert (first["id"], first["source"], first["title"]) == ("5", "web", None)
    assert second["id"] == hashlib.sha256(f"{path}\x001".encode()).hexdigest()[:20]
    assert (second["source"], second["title"], second["reject_reason"]) == (str(path), "T", None)
    second = read(path, id_field="_id")[1]
    assert (second["reject_reason"], second["text"]) == ("missing_id", "b")


def test_metadata_keep_their_types_and_others_are_dropped(tmp_path):
    tags = pa.array([["a"], None], pa.list_(pa.string()))
    pq.write_table(pa.table({"text": ["a", "b"], "tags": tags, "n": [1.5, 2.5], "m": [1, 2]}), tmp_path / "x.parquet")
    [table] = tables(tmp_path, columns=(("tags", tags.type), ("n", pa.float64())))
    assert table.column_names == [*BASE_NAMES, "tags", "n"]
    assert table["tags"].type == tags.type
    [everything] = tables(tmp_path, columns=None)
    assert everything.column_names == [*BASE_NAMES, "tags", "n", "m"]
    [as_text] = tables(tmp_path, columns=None, metadata_as_text=True)
    assert as_text["tags"].to_pylist() == ['["a"]', None]
    assert as_text["n"].to_pylist() == ["1.5", "2.5"]


def test_files_with_other_columns_become_rejects_not_errors(tmp_path):
    columns = (("year", pa.int32()),)
    write = {
        "a": {"text": ["x"], "year": pa.array([2000], pa.int64())},  # fits
        "b": {"body": ["x"]},
        "c": {"text": [5]},
        "d": {"text": ["x", "y", "z"], "year": ["1999", "soon", None]},  # some values fit
        "e": {"text": ["x"], "year": [["1999"]]},  # nothing can
        "f": {"text": ["x"]},  # absent is null
    }
    for name, content in write.items():
        pq.write_table(pa.table(content), tmp_path / f"{name}.parquet")
    rows = read(tmp_path, columns=columns)
    got = [(r["source"][-9], r["year"], r["reject_reason"]) for r in rows]
    assert got == [
        ("a", 2000, None),
        ("b", None, "missing_text"),
        ("c", None, "wrong_type"),
        ("d", 1999, None),
        ("d", None, "wrong_type"),
        ("d", None, None),
        ("e", None, "wrong_type"),
        ("f", None, None),
    ]
    assert all(t.schema == ReadPlan(columns=columns).schema for t in tables(tmp_path, columns=columns))
    assert [r["reject_reason"] for r in read(tmp_path / "b.parquet", columns=())] == ["missing_text"]
