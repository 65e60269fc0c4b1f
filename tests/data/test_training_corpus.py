"""Corpora: found by id without a dictionary, copied once, and the same documents that the datasets library reads."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.core.hashing import hash_strings
from raycurate.data.corpora import corpus as corpus_module
from raycurate.data.corpora.corpus import Corpus, gather
from raycurate.data.corpora.corpus_store import open_corpus
from raycurate.data.training.training import write_corpus


def table_of(ids: list, texts: list) -> pa.Table:
    return pa.table({"id": ids, "text": texts})


def write_folder(folder: Path, tables: dict[str, pa.Table], corpus_id: str = "c") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merlin_metadata.json").write_text(json.dumps({"corpus_id": corpus_id, "class": "TextQADataset"}))
    for name, table in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / name)
    return str(folder)


def in_memory(ids: list[list[str]]) -> Corpus:
    chunks = pa.chunked_array([pa.array(c, pa.string()) for c in ids], pa.string())
    return Corpus(
        "c", "", chunks, pa.chunked_array([c.cast(pa.large_string()) for c in chunks.chunks], pa.large_string())
    )


def test_rows_of_equals_a_dictionary():
    rng = np.random.default_rng(0)
    names = sorted({"".join(rng.choice(list("abcdé "), rng.integers(0, 9))) for _ in range(4000)})
    rng.shuffle(names)
    cuts = [0, 7, 7, 1000, len(names)]  # one chunk is empty
    corpus = in_memory([names[a:b] for a, b in pairwise(cuts)])
    rows = {name: row for row, name in enumerate(names)}
    wanted = [*rng.choice(names, 500).tolist(), "no such", "abc" * 50, ""]
    assert corpus.rows_of(wanted).tolist() == [rows.get(w, -1) for w in wanted]
    assert corpus.rows_of(pa.array([*wanted[:3], None])).tolist() == [rows[w] for w in wanted[:3]] + [-1]
    assert corpus.rows_of([]).tolist() == []
    assert corpus.ids_of([5, 0, 5]) == [names[5], names[0], names[5]]


def test_ids_with_the_same_hash_are_still_two_ids(monkeypatch):
    monkeypatch.setattr(corpus_module, "hash_strings", lambda column: np.full(len(column), 7, np.uint64))
    corpus = in_memory([["a", "b"], ["c"]])
    assert corpus.rows_of(["c", "a", "x", "b"]).tolist() == [2, 0, -1, 1]


def test_hashes_do_not_depend_on_slices_or_width_and_tell_strings_apart():
    names = [f"d_{i:x}" for i in range(50_000)] + ["", "\0", "\0\0", "a", "a\0"]
    column = pa.array(names)
    hashes = hash_strings(column)
    assert len(set(hashes.tolist())) == len(names)
    np.testing.assert_array_equal(hash_strings(column.slice(123, 4000)), hashes[123:4123])
    np.testing.assert_array_equal(hash_strings(column.cast(pa.large_string())), hashes)


def test_gather_refuses_rows_that_are_not_there():
    column = pa.chunked_array([["a"], ["b"]])
    assert gather(column, np.array([1, 0])).to_pylist() == ["b", "a"]
    for row in (-1, 2):
        with pytest.raises(IndexError):
            gather(column, np.array([row]))


def test_the_copy_is_made_once_mapped_and_made_anew_for_a_changed_corpus(tmp_path):
    folder, cache = (
        write_folder(tmp_path / "corpus", {"train.parquet": table_of(["x"], ["one"])}),
        str(tmp_path / "cache"),
    )
    first = open_corpus(folder, cache_dir=cache)
    before = (Path(first.store) / "documents.arrow").stat().st_mtime_ns
    again = open_corpus(folder, cache_dir=cache)
    assert again.store == first.store and (Path(first.store) / "documents.arrow").stat().st_mtime_ns == before
    write_folder(Path(folder), {"train.parquet": table_of(["x", "y"], ["one", "two"])})
    changed = open_corpus(folder, cache_dir=cache)
    assert changed.store != first.store and len(changed) == 2
    assert first.texts_of([0]) == ["one"]  # the old copy stays readable
    mapped = Path("/proc/self/maps").read_text()
    assert str(changed.store) in mapped


def test_a_corpus_travels_as_a_name_and_opens_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))
    texts = [f"text {i} " * 20 for i in range(2000)]
    folder = write_folder(tmp_path / "corpus", {"train.parquet": table_of([str(i) for i in range(2000)], texts)})
    corpus = open_corpus(folder)
    data = pickle.dumps(corpus)
    assert len(data) < 1000
    assert pickle.loads(data).texts_of([1999]) == [texts[1999]]
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "other machine"))
    Path(corpus.store).rename(tmp_path / "gone")
    assert pickle.loads(data).rows_of(["17"]).tolist() == [17]
    inline = in_memory([["a"]])
    assert pickle.loads(pickle.dumps(inline)).texts_of([0]) == ["a"]


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet"],
        ["part-0.parquet", "part-1.parquet"],
        ["train.parquet", "test.parquet", "validation.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/dev-00000-of-00001.parquet"],
        ["train/0.parquet", "test/0.parquet"],
    ],
)
def test_the_same_documents_that_the_datasets_library_calls_train(tmp_path, files):
    datasets = pytest.importorskip("datasets")
    tables = {name: table_of([f"{name} {i}" for i in range(3)], [f"text {i}" for i in range(3)]) for name in files}
    folder = write_folder(tmp_path / "corpus", tables)
    theirs = datasets.load_dataset(folder, cache_dir=str(tmp_path / "theirs"))["train"]
    ours = open_corpus(folder, cache_dir=str(tmp_path / "ours"))
    assert ours.ids.to_pylist() == list(theirs["id"])
    assert ours.texts.to_pylist() == list(theirs["text"])


def test_arrow_and_json_lines_and_number_ids(tmp_path):
    documents = table_of([3, 1], ["three", "one"])
    for name in ("arrow", "jsonl"):
        write_folder(tmp_path / name, {})
    path = tmp_path / "arrow" / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, documents.schema) as writer:
        writer.write_table(documents)  # a stream, as the datasets library writes it
    (tmp_path / "jsonl" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in documents.to_pylist()))
    for name in ("arrow", "jsonl"):
        corpus = open_corpus(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        assert corpus.ids.to_pylist() == ["3", "1"] and corpus.texts.to_pylist() == ["three", "one"]
        assert corpus.texts.type == pa.large_string()


def test_written_corpora_are_exact(tmp_path):
    files = write_corpus(str(tmp_path), "c", table_of(["b", "a"], ["x", "y"]), query_instruction="query: ")
    assert [(f.path, f.rows) for f in files] == [("train.parquet", 2), ("merlin_metadata.json", None)]
    assert all((tmp_path / f.path).stat().st_size == f.size for f in files)
    assert pq.read_table(tmp_path / "train.parquet").to_pydict() == {"id": ["b", "a"], "text": ["x", "y"]}
    metadata = json.loads((tmp_path / "merlin_metadata.json").read_text())
    assert metadata == {"corpus_id": "c", "class": "TextQADataset", "query_instruction": "query: "}
    corpus = open_corpus(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert (corpus.corpus_id, corpus.query_instruction, corpus.passage_instruction) == ("c", "query: ", "")


def test_everything_that_is_wrong_with_a_corpus_is_said_at_once(tmp_path):
    tables = {
        "part-0.parquet": table_of(["a", "b", None, "a"], ["x", None, "y", "z"]),
        "part-1.parquet": table_of(["b", "c"], ["v", "  "]),
    }
    folder = write_folder(tmp_path / "corpus", tables)
    with pytest.raises(InputError) as caught:
        open_corpus(folder, cache_dir=str(tmp_path / "cache"))
    said = str(caught.value)
    assert "5 problems" in said
    assert "part-0.parquet: row 1: its 'text' is empty (id 'b')" in said
    assert "part-0.parquet: row 2: its 'id' is empty" in said
    assert "part-1.parquet: row 1: its 'text' is empty (id 'c')" in said
    assert "part-0.parquet: row 3: the document id 'a' stands at" in said and "part-0.parquet: row 0 too" in said
    assert "part-1.parquet: row 0: the document id 'b' stands at" in said
    assert not list((tmp_path / "cache" / "corpora").iterdir())  # nothing of it was kept


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "merlin_metadata.json").unlink(), "has no merlin_metadata.json"),
        (lambda f: (f / "merlin_metadata.json").write_text("{"), "it is not JSON"),
        (lambda f: (f / "merlin_metadata.json").write_text('{"class": "TextQADataset"}'), "corpus_id"),
        (lambda f: (f / "merlin_metadata.json").write_text('{"corpus_id": "c", "class": "Images"}'), "'Images'"),
        (lambda f: (f / "train.parquet").unlink(), "no training documents"),
        (lambda f: (f / "train.parquet").write_bytes((f / "train.parquet").read_bytes()[:-40]), "cannot be read"),
        (lambda f: (f / "train.jsonl").write_text("{}"), "several formats: jsonl, parquet"),
        (lambda f: pq.write_table(pa.table({"id": ["a"]}), f / "train.parquet"), "no column 'text'"),
        (lambda f: pq.write_table(pa.table({"id": ["a"], "text": [1]}), f / "train.parquet"), "'text' is int64"),
    ],
)
def test_a_folder_that_is_no_corpus(tmp_path, break_it, said):
    folder = write_folder(tmp_path / "corpus", {"train.parquet": table_of(["a"], ["x"])})
    break_it(Path(folder))
    with pytest.raises(InputError, match=said):
        open_corpus(folder, cache_dir=str(tmp_path / "cache"))


def test_a_corpus_without_documents(tmp_path):
    empty = pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    folder = write_folder(tmp_path / "corpus", {"train.parquet": empty})
    corpus = open_corpus(folder, cache_dir=str(tmp_path / "cache"))
    assert len(corpus) == 0 and corpus.rows_of(["a"]).tolist() == [-1] and corpus.texts_of([]) == []
