"""Listing, the checks before any work, and reading through Ray Data."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.documents.documents import DocumentsOptions, list_documents, make_plan, read_documents
from raycurate.data.documents.rows import BASE_NAMES


def names(path, **options) -> list[str]:
    listing = list_documents(DocumentsOptions(input=path, **options))
    return [f.path.rpartition("/")[2] for f in listing.files]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    (root / "sub" / ".git").mkdir(parents=True)
    (root / "rejects").mkdir()
    (root / "_rejects").mkdir()
    for name in (
        "b.txt",
        "a.md",
        "README",
        "sub/c.jsonl",
        "sub/d.jsonl.gz",
        "sub/e.parquet",
        "x.pdf",
        "y.pdf",
        "z.html",
    ):
        (root / name).write_text("{}")
    for name in (
        ".hidden.txt",
        "sub/.git/config.txt",
        "_manifest.json",
        "manifest.json",
        "_contract.json",
        "contract.json",
        "_SUCCESS",
        "_rejects/r.jsonl",
        "rejects/r.jsonl",
    ):
        (root / name).write_text("{}")
    return root


def test_listing_is_sorted_and_leaves_out_what_is_hidden_ours_or_unknown(folder):
    listing = list_documents(DocumentsOptions(input=str(folder)))
    paths = [os.path.relpath(f.path, folder) for f in listing.files]
    assert paths == ["README", "a.md", "b.txt", "sub/c.jsonl", "sub/d.jsonl.gz", "sub/e.parquet"]
    assert listing.unsupported == {".html": 1, ".pdf": 2}
    assert listing.total_bytes == 12


def test_inputs_may_be_files_globs_and_lists_and_overlap(folder):
    assert names(str(folder / "b.txt")) == ["b.txt"]
    assert names(str(folder / ".hidden.txt")) == [".hidden.txt"]  # named by itself
    assert names(str(folder / "*.md")) == ["a.md"]
    assert names([str(folder / "sub"), str(folder / "sub" / "c.jsonl"), str(folder / "a.md")]) == [
        "a.md",
        "c.jsonl",
        "d.jsonl.gz",
        "e.parquet",
    ]
    assert names(str(folder), file_extensions=["md", ""]) == ["README", "a.md"]
    assert names(str(folder), file_extensions=[".PDF"]) == ["x.pdf", "y.pdf"]


def test_the_fingerprint_follows_the_files(folder):
    def fingerprint():
        return list_documents(DocumentsOptions(input=str(folder))).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    (folder / "x.pdf").write_text("not read, so no matter")
    assert fingerprint() == before
    os.utime(folder / "b.txt", ns=(1, 1))
    assert fingerprint() != before


def test_a_missing_path_names_its_nearest_sibling(folder):
    with pytest.raises(InputError, match=r"no such file or folder.*Did you mean .*/docs\?"):
        names(str(folder.parent / "dosc"))
    with pytest.raises(InputError, match="no such file or folder"):
        names(str(folder / "no" / "such" / "place"))


def test_a_folder_with_nothing_to_read_says_what_is_there(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files at all"):
        names(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"2 \.pdf.*Convert them"):
        names(str(folder / "*.pdf"))
    with pytest.raises(InputError, match="no file matches"):
        names(str(folder / "*.nothing"))


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="did you mean 'text_field'"):
        read_documents("/x", text_fields="a")
    with pytest.raises(ConfigError, match="reject_reason"):
        read_documents("/x", metadata_fields=["reject_reason"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_field": "txt"}, r"no column 'txt' \(text_field\).*Did you mean 'text'"),
        ({"text_field": "n"}, "column 'n' holds int64, not text"),
        ({"id_field": "key"}, "no column 'key'"),
        ({"id_field": "tags"}, "cannot be an id"),
        ({"title_field": "titel"}, r"no column 'titel'.*Did you mean 'title'"),
        ({"metadata_fields": ["m"]}, r"no column 'm' \(metadata_fields\)"),
    ],
)
def test_a_parquet_corpus_without_the_columns_is_refused_before_any_work(tmp_path, options, message):
    table = pa.table({"text": ["a"], "n": [1], "title": ["t"], "tags": [["x"]]})
    pq.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "a.parquet").write_bytes(b"damaged: the next one is looked at")
    checked = DocumentsOptions(input=str(tmp_path), **options)
    with pytest.raises(InputError, match=message):
        make_plan(checked, checked.metadata_fields, list_documents(checked))


def write_corpus(root) -> None:
    """Files of every format, with good and bad rows."""
    root.mkdir()
    for i in range(20):
        (root / f"t{i:02d}.txt").write_text(f"text file {i}")
    lines = [json.dumps({"id": f"j{i}", "text": f"größe {i}" if i % 9 else None, "n": i}) for i in range(500)]
    (root / "a.jsonl").write_text("\n".join(lines))
    table = pa.table({"id": [f"p{i}" for i in range(300)], "text": [f"row {i}" for i in range(300)], "n": range(300)})
    pq.write_table(table, root / "z.parquet", row_group_size=50)


def test_every_row_once_with_one_schema_and_done_keys_leave_the_remainder(tmp_path, local_ray):
    import ray

    write_corpus(tmp_path / "c")
    options = DocumentsOptions(input=str(tmp_path / "c"), metadata_fields=["n"], files_per_partition=4)
    dataset = read_documents(options)
    assert dataset.schema().names == [*BASE_NAMES, "n"]
    whole = sorted(dataset.take_all(), key=lambda r: r["_row_key"])
    assert len(whole) == 820
    assert len({r["_row_key"] for r in whole}) == len({r["id"] for r in whole}) == 820
    assert sum(r["reject_reason"] == "null_text" for r in whole) == 56
    assert {type(r["n"]) for r in whole} == {str, type(None)}  # JSON Lines are among the files
    assert "Documents" in dataset.stats()

    done = np.array([r["_row_key"] for r in whole[::3]], np.uint64)
    rest = read_documents(options, done_keys=ray.put(done)).take_all()
    assert sorted(rest, key=lambda r: r["_row_key"]) == [r for i, r in enumerate(whole) if i % 3]
    everything = np.array([r["_row_key"] for r in whole], np.uint64)
    assert read_documents(options, done_keys=ray.put(everything)).take_all() == []


def test_paths_alone_pass_every_column_through(tmp_path, local_ray):
    pq.write_table(pa.table({"text": ["a", "b"], "year": [1, 2], "tags": [["x"], []]}), tmp_path / "x.parquet")
    rows = read_documents(str(tmp_path)).take_all()
    assert [(r["year"], list(r["tags"])) for r in rows] == [(1, ["x"]), (2, [])]
    assert set(read_documents(str(tmp_path), metadata_fields=["year"]).take_all()[0]) == {*BASE_NAMES, "year"}
    assert set(read_documents(str(tmp_path), columns=[]).take_all()[0]) == set(BASE_NAMES)


def test_keys_and_ids_do_not_depend_on_how_many_tasks_read(tmp_path, local_ray):
    from raycurate.data.documents.datasource import DocumentsDatasource

    lines = [json.dumps({"text": f"{i} " * 400}) for i in range(1500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = DocumentsOptions(input=str(tmp_path))
    listing = list_documents(options)
    found = []
    for parallelism in (1, 2, 7):
        source = DocumentsDatasource(listing, make_plan(options, [], listing), tasks=parallelism)
        tasks = source.get_read_tasks(99)
        assert len(tasks) == source.num_tasks
        blocks = [block for task in tasks for block in task()]
        table = pa.concat_tables(blocks)
        found.append((len(tasks), sorted(zip(table["_row_key"].to_pylist(), table["id"].to_pylist(), strict=True))))
    assert [tasks for tasks, _ in found] == [1, 2, 7]
    assert found[0][1] == found[1][1] == found[2][1]
    assert len(found[0][1]) == 1500


def test_a_real_corpus_is_read_whole(shared_data, local_ray):
    path = shared_data / "beir" / "scifact" / "corpus.jsonl"
    with path.open(encoding="utf-8") as lines:
        expected = {json.loads(line)["_id"]: json.loads(line) for line in lines}
    rows = read_documents(str(path)).take_all()
    assert len(rows) == len(expected) == 5183
    for row in rows:
        assert row["reject_reason"] is None
        assert (row["title"], row["text"]) == (expected[row["id"]]["title"], expected[row["id"]]["text"])
