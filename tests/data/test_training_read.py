"""Training data in every form: what a file says is what comes out, and what was written reads back."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.training import training_lines
from raycurate.data.training.training import (
    TABLE_SCHEMA,
    TrainingData,
    document_id,
    read_training_data,
    write_corpus,
    write_corpus_id_json,
    write_inline_jsonl,
)

DOCUMENTS = {f"d{i}": f"text of document {i}" for i in range(20)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))


def corpus_at(folder: Path, corpus_id: str = "c", documents: dict[str, str] | None = None) -> None:
    chosen = documents or DOCUMENTS
    write_corpus(str(folder), corpus_id, pa.table({"id": list(chosen), "text": list(chosen.values())}))


def rows_of(count: int, corpus_id: str = "c", start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{i}",
            "question": f"question {i}?",
            "corpus_id": corpus_id,
            "pos_doc": [{"id": f"d{i % 10}"}],
            "neg_doc": [{"id": f"d{10 + i % 7}"}, f"d{10 + (i + 1) % 7}"],
        }
        for i in range(start, start + count)
    ]


def spelled_out(data: TrainingData) -> list[tuple[str, str, list[str], list[str]]]:
    """(question_id, question, texts of positives, texts of negatives) of each row."""
    found = []
    for row in data.table.to_pylist():
        corpus = data.corpora[row["corpus"]]
        found.append((row["question_id"], row["question"], corpus.texts_of(row["pos"]), corpus.texts_of(row["neg"])))
    return found


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return str(path)


# --- inline ---------------------------------------------------------------------------------------


def test_inline_rows_of_every_documented_shape(tmp_path):
    path = lines(
        tmp_path / "train.jsonl",
        {"query": "one", "pos_doc": "x", "neg_doc": "y"},
        {"question": "two", "pos_doc": {"text": "y"}, "neg_doc": {"text": "z"}, "question_id": 17},
        {"query": "three", "pos_doc": ["x", {"text": "é\u2028é"}], "neg_doc": [], "id": "mine", "other": None},
        {"query": "four", "pos_doc": ["z"], "neg_doc": None},
    )
    data = read_training_data(path)
    assert spelled_out(data) == [
        ("train.jsonl:1", "one", ["x"], ["y"]),
        ("17", "two", ["y"], ["z"]),
        ("mine", "three", ["x", "é\u2028é"], []),
        ("train.jsonl:4", "four", ["z"], []),
    ]
    assert data.table.schema == TABLE_SCHEMA
    assert [o.rpartition(":")[2] for o in data.table["origin"].to_pylist()] == ["1", "2", "3", "4"]
    [corpus] = data.corpora
    assert corpus.path == "" and corpus.texts.to_pylist() == ["x", "y", "z", "é\u2028é"]  # each once, as they appear
    assert corpus.ids.to_pylist() == [document_id(t) for t in corpus.texts.to_pylist()]


def test_an_array_of_inline_rows_is_read_as_its_lines_are(tmp_path):
    rows = [{"query": f"q{i}", "pos_doc": f"p{i}", "neg_doc": ["n", {"text": f"n{i}"}]} for i in range(3)]
    flat = read_training_data(lines(tmp_path / "rows.jsonl", *rows))
    (tmp_path / "sub").mkdir()
    for text in (json.dumps(rows), "\ufeff\n " + json.dumps(rows, indent=2)):
        (tmp_path / "sub" / "rows.json").write_text(text, encoding="utf-8")
        for place in (tmp_path / "sub" / "rows.json", tmp_path / "sub"):
            data = read_training_data(str(place))
            assert data.table.drop_columns(["question_id", "origin"]) == flat.table.drop_columns(
                ["question_id", "origin"]
            )
            assert data.corpora[0].texts == flat.corpora[0].texts


def test_inline_again_from_the_cache_and_after_a_change(tmp_path):
    path = lines(tmp_path / "t.jsonl", {"query": "a", "pos_doc": "x", "neg_doc": "y"})
    first, again = read_training_data(path), read_training_data(path)
    assert spelled_out(first) == spelled_out(again) and first.corpora[0].store == again.corpora[0].store
    lines(tmp_path / "t.jsonl", {"query": "a", "pos_doc": "changed", "neg_doc": "y"})
    assert spelled_out(read_training_data(path)) == [("t.jsonl:1", "a", ["changed"], ["y"])]


def test_inline_of_many_batches_keeps_each_text_once(tmp_path):
    rng = random.Random(0)
    rows = [
        {
            "query": f"q {i}",
            "pos_doc": f"p{rng.randrange(3000)}",
            "neg_doc": [f"n{rng.randrange(3000)}" for _ in range(3)],
        }
        for i in range(5000)
    ]
    data = read_training_data(lines(tmp_path / "t.jsonl", *rows))
    texts = data.corpora[0].texts.to_pylist()
    seen = dict.fromkeys(t for r in rows for t in [r["pos_doc"], *r["neg_doc"]])
    assert texts == list(seen)
    assert [(q, p, n) for _, q, p, n in spelled_out(data)] == [(r["query"], [r["pos_doc"]], r["neg_doc"]) for r in rows]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_inline_written_and_read_back(tmp_path, name):
    rows = [{"query": "ä", "pos_doc": ["x"], "neg_doc": ["y"]}, {"query": "b", "pos_doc": ["y"], "neg_doc": ["x"]}]
    assert write_inline_jsonl(str(tmp_path / name), rows) == 2
    assert [(q, p, n) for _, q, p, n in spelled_out(read_training_data(str(tmp_path / name)))] == [
        ("ä", ["x"], ["y"]),
        ("b", ["y"], ["x"]),
    ]
    if name.endswith(".gz"):
        assert [json.loads(s) for s in gzip.decompress((tmp_path / name).read_bytes()).splitlines()] == rows


# --- corpus-ID JSON -------------------------------------------------------------------------------


def test_corpus_id_json_written_and_read_back(tmp_path):
    corpus_at(tmp_path / "data" / "corpus")
    rows = rows_of(5)
    rows[2] |= {
        "pos_doc": [{"id": "d3", "score": 0.5}, {"id": "d4", "score": -0.25}],
        "neg_doc": ["d1", {"id": "d2", "score": 1}],
    }
    path = tmp_path / "data" / "train.json"
    assert write_corpus_id_json(str(path), {"path": "./corpus"}, rows, extra={"mining": {"margin": 0.95}}) == 5
    whole = json.loads(path.read_text())
    assert whole == {"corpus": {"path": "./corpus"}, "data": rows, "mining": {"margin": 0.95}}
    data = read_training_data(str(path))
    assert [r["pos"] for r in data.table.to_pylist()] == [[0], [1], [3, 4], [3], [4]]
    assert [r["neg"] for r in data.table.to_pylist()][:3] == [[10, 11], [11, 12], [1, 2]]
    assert data.table["pos_score"].to_pylist() == [None, None, [0.5, -0.25], None, None]
    assert data.table["neg_score"].to_pylist()[2] == [None, 1.0]
    assert [o.rpartition(":")[2] for o in data.table["origin"].to_pylist()] == ["4", "5", "6", "7", "8"]
    assert path.read_text().splitlines()[3].rstrip(",") == json.dumps(rows[0])
    [corpus] = data.corpora
    assert (corpus.corpus_id, corpus.path) == ("c", str(tmp_path / "data" / "corpus"))


def test_the_same_however_the_json_is_laid_out_and_cut(tmp_path, monkeypatch):
    corpus_at(tmp_path / "corpus")
    rows = [{**r, "question": r["question"] + ' äöü€😀\n"{[' * 3} for r in rows_of(40)]
    value = {"data": rows, "note": {"data": [1, 2]}, "corpus": [{"path": "corpus"}], "score": 1.5e3}
    expected = None
    for indent, chunk in ((None, 1 << 20), (2, 7), (None, 3), (1, 1)):
        monkeypatch.setattr(training_lines, "_CHUNK_BYTES", chunk)
        path = tmp_path / f"{indent}-{chunk}.json"
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=chunk == 7))
        data = read_training_data(str(path))
        found = spelled_out(data)
        assert expected in (None, found)
        expected = found
        if indent:
            numbers = [int(o.rpartition(":")[2]) for o in data.table["origin"].to_pylist()]
            text = path.read_text().splitlines()
            assert all(text[n - 1].strip() == "{" and '"question_id"' in text[n] for n in numbers)
    assert len(expected) == 40


def test_lenient_forms_of_corpus_id_json(tmp_path):
    corpus_at(tmp_path / "corpus", documents={"1": "one", "2": "two", "3": "three"})
    rows = [
        {"question": "a", "corpus_id": "c", "pos_doc": "1", "neg_doc": {"id": "2"}},
        {"question": "b", "corpus_id": "c", "pos_doc": {"id": 3}, "neg_doc": [1, 2], "question_id": 8},
    ]
    path = tmp_path / "t.json"
    path.write_text("\ufeff" + json.dumps({"corpus": {"path": str(tmp_path / "corpus")}, "data": rows}))
    assert spelled_out(read_training_data(str(path))) == [
        ("t.json:1", "a", ["one"], ["two"]),
        ("8", "b", ["three"], ["one", "two"]),
    ]


def test_several_corpora_in_one_file(tmp_path):
    corpus_at(tmp_path / "x", "first")
    corpus_at(tmp_path / "y", "second", {"d0": "another text", "d10": "n", "d11": "m"})
    rows = [*rows_of(1, "second"), *rows_of(2, "first", start=1)]
    write_corpus_id_json(str(tmp_path / "t.json"), [{"path": "x"}, {"path": "./y"}], rows)
    data = read_training_data(str(tmp_path / "t.json"))
    assert [c.corpus_id for c in data.corpora] == ["first", "second"]
    assert data.table["corpus"].to_pylist() == [1, 0, 0]
    assert spelled_out(data)[0] == ("q0", "question 0?", ["another text"], ["n", "m"])


# --- several sources, samples, folders ------------------------------------------------------------


def test_mixed_sources_share_a_corpus_and_keep_their_order(tmp_path):
    corpus_at(tmp_path / "corpus")
    for name, start in (("train.json", 0), ("val.json", 3)):
        write_corpus_id_json(str(tmp_path / name), {"path": "./corpus"}, rows_of(3, start=start))
    inline = lines(tmp_path / "more.jsonl", {"query": "inline", "pos_doc": "x", "neg_doc": "y"})
    data = read_training_data([str(tmp_path / "train.json"), inline, {"path": str(tmp_path / "val.json")}])
    assert [c.corpus_id for c in data.corpora] == ["c", f"inline:{inline}"]
    assert data.table["corpus"].to_pylist() == [0, 0, 0, 1, 0, 0, 0]
    assert data.table["question_id"].to_pylist() == ["q0", "q1", "q2", "more.jsonl:1", "q3", "q4", "q5"]


def test_a_sample_is_drawn_without_replacement_and_by_seed(tmp_path):
    corpus_at(tmp_path / "corpus")
    path = str(tmp_path / "train.json")
    write_corpus_id_json(path, {"path": "./corpus"}, rows_of(50))
    drawn = read_training_data({"path": path, "num_samples": 12})
    ids = drawn.table["question_id"].to_pylist()
    assert ids == random.Random(42).sample([f"q{i}" for i in range(50)], 12)  # as NeMo AutoModel draws them
    assert ids == read_training_data({"path": path, "num_samples": 12}).table["question_id"].to_pylist()
    assert ids != read_training_data({"path": path, "num_samples": 12}, seed=1).table["question_id"].to_pylist()
    assert len(read_training_data({"path": path, "num_samples": 500})) == 50


def test_generated_ids_are_unique_and_the_same_again(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lines(
            tmp_path / folder / "t.jsonl", *[{"query": f"{folder}{i}", "pos_doc": "x", "neg_doc": []} for i in range(3)]
        )
    clash = lines(tmp_path / "u.jsonl", {"query": "z", "pos_doc": "x", "neg_doc": [], "question_id": "v.jsonl:1"})
    other = lines(tmp_path / "v.jsonl", {"query": "w", "pos_doc": "x", "neg_doc": []})
    sources = [str(tmp_path / "a/t.jsonl"), str(tmp_path / "b/t.jsonl"), str(tmp_path / "a/t.jsonl"), clash, other]
    ids = read_training_data(sources).table["question_id"].to_pylist()
    assert len(set(ids)) == len(ids) == 11 and None not in ids
    assert ids == read_training_data(sources).table["question_id"].to_pylist()


def test_folders(tmp_path):
    corpus_at(tmp_path / "prep" / "corpus")
    write_corpus_id_json(str(tmp_path / "prep" / "train.json"), {"path": "./corpus"}, rows_of(3))
    (tmp_path / "prep" / "_manifest.json").write_text("{}")
    assert len(read_training_data(str(tmp_path / "prep"))) == 3
    write_corpus_id_json(str(tmp_path / "prep" / "val.json"), {"path": "./corpus"}, rows_of(2))
    with pytest.raises(InputError, match=r"several files of training data: train\.json, val\.json"):
        read_training_data(str(tmp_path / "prep"))
    (tmp_path / "lines").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        lines(tmp_path / "lines" / name, {"query": name, "pos_doc": "x", "neg_doc": "y"})
    assert read_training_data(str(tmp_path / "lines")).table["question"].to_pylist() == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match="it is a corpus"):
        read_training_data(str(tmp_path / "prep" / "corpus"))


def subset_at(folder: Path, corpus_id: str, **metadata: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "dataset_metadata.json").write_text(json.dumps({"corpus_id": corpus_id, **metadata}))
    pq.write_table(pa.table({"id": list(DOCUMENTS), "text": list(DOCUMENTS.values())}), folder / "corpus.parquet")
    rows = [{**r, "neg_doc": [{"id": d["id"] if isinstance(d, dict) else d} for d in r["neg_doc"]]} for r in rows_of(4)]
    pq.write_table(pa.Table.from_pylist([r | {"corpus_id": corpus_id} for r in rows]), folder / "queries.parquet")


def test_a_sub_set_as_the_hub_has_it(tmp_path):
    subset_at(tmp_path / "FEVER", "fever", query_instruction="Find: ", ids_only=False)
    subset_at(tmp_path / "SciFact", "scifact")
    data = read_training_data(str(tmp_path / "FEVER"))
    assert data.corpora[0].query_instruction == "Find: "
    assert spelled_out(data)[1] == ("q1", "question 1?", [DOCUMENTS["d1"]], [DOCUMENTS["d11"], DOCUMENTS["d12"]])
    both = read_training_data({"path": str(tmp_path), "num_samples": 6})
    assert [c.corpus_id for c in both.corpora] == ["fever", "scifact"] and len(both) == 6
    subset_at(tmp_path / "PAQ", "paq", ids_only=True)
    with pytest.raises(InputError, match="PAQ: this sub-set has ids only"):
        read_training_data(str(tmp_path / "PAQ"))
    (tmp_path / "SciFact" / "corpus.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"2 problems: 1 unusable sources, 1 unreadable files"):
        read_training_data(str(tmp_path))


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="not in the cache and the hub was not reached"):
        read_training_data("hf://no-such-org-here/no-such-set/FEVER")
    with pytest.raises(InputError, match="is named hf://org/repo"):
        read_training_data("hf://just-one-name")


def test_from_an_object_store(s3, tmp_path):
    corpus_at(f"{s3}/set/corpus")  # type: ignore[arg-type]
    write_corpus_id_json(f"{s3}/set/train.json", {"path": "./corpus"}, rows_of(4))
    data = read_training_data([f"{s3}/set/train.json", {"path": f"{s3}/set", "num_samples": 2}])
    assert len(data) == 6 and len(data.corpora) == 1
    assert spelled_out(data)[0][2] == ["text of document 0"]
    assert pc.sum(pc.list_value_length(data.table["neg"])).as_py() == 12


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "at least one source"),
        ({"path": "x", "num_sample": 3}, "did you mean 'num_samples'"),
        ({"path": "x", "num_samples": 0}, "whole number from 1"),
        ({"path": "x", "num_samples": True}, "whole number from 1"),
        ({"num_samples": 3}, "needs a 'path'"),
        ([3], "a source is a path"),
    ],
)
def test_sources_that_are_none(source, said):
    with pytest.raises(ConfigError, match=said):
        read_training_data(source)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 6:
        scalars = [
            None,
            True,
            rng.randrange(-(10**6), 10**6),
            rng.uniform(-1, 1) * 10 ** rng.randrange(-9, 9),
            "",
            'a"\\é😀\n',
        ]
        return scalars[kind]
    values = [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind == 6 else {f"k{i}": v for i, v in enumerate(values)}


def test_the_streaming_reader_equals_the_json_module_whole_or_cut(tmp_path, monkeypatch):
    rng = random.Random(1)
    path = tmp_path / "t.json"
    for _ in range(150):
        value = {
            "x": random_value(rng),
            "data": [random_value(rng) for _ in range(rng.randrange(6))],
            "y": random_value(rng),
        }
        text = json.dumps(value, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
        monkeypatch.setattr(training_lines, "_CHUNK_BYTES", rng.randrange(1, 20))
        for cut in (len(text), rng.randrange(len(text))):
            path.write_text(text[:cut])
            found: dict[str, Any] = {"data": []}
            try:
                for member in training_lines.JsonObjectReader(str(path), "data"):
                    if member.element >= 0:
                        found["data"].append(member.value)
                    else:
                        found[member.name] = member.value
                assert cut == len(text) and found == value
            except training_lines.JsonStreamError as error:
                assert cut < len(text) and 1 <= error.line <= text[:cut].count("\n") + 1
