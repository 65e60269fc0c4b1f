"""BEIR folders: as BEIR's own loader reads them, and nothing judged that is not there."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from raycurate.core.errors import InputError
from raycurate.data.corpora.beir import read_beir, require_judgements, splits_of, write_beir

CORPUS = [{"_id": "d0", "title": "T", "text": "zero"}, {"_id": "d1", "text": "öne\u2028"}, {"_id": "d2", "text": "two"}]
QUERIES = [{"_id": "q0", "text": "what?", "metadata": {"hop_count": 2}}, {"_id": "q1", "text": "who?"}]
QRELS = {"test": {"q0": {"d1": 1, "d0": 2}}, "dev": {"q1": {"d2": 1}}, "train": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_beir(str(tmp_path / "beir"), corpus=CORPUS, queries=QUERIES, qrels=QRELS)
    return tmp_path / "beir"


def test_what_is_written(folder):
    lines = [json.loads(s) for s in (folder / "corpus.jsonl").read_text().split("\n")[:-1]]
    assert lines[0] == {"_id": "d0", "title": "T", "text": "zero", "metadata": {}}
    assert lines[1] == {"_id": "d1", "title": "", "text": "öne\u2028", "metadata": {}}
    assert list(lines[1]) == ["_id", "title", "text", "metadata"]
    queries = [json.loads(s) for s in (folder / "queries.jsonl").read_text().split("\n")[:-1]]
    assert queries == [QUERIES[0], {**QUERIES[1], "metadata": {}}]
    assert (folder / "qrels" / "test.tsv").read_text() == "query-id\tcorpus-id\tscore\nq0\td1\t1\nq0\td0\t2\n"
    assert (folder / "qrels" / "train.tsv").read_text() == "query-id\tcorpus-id\tscore\n"


def test_files_are_listed_with_their_sizes_and_rows(tmp_path):
    files = write_beir(str(tmp_path), corpus=iter(CORPUS), queries=iter(QUERIES), qrels=QRELS)
    assert {f.path: f.rows for f in files} == {
        "corpus.jsonl": 3,
        "queries.jsonl": 2,
        "qrels/test.tsv": 2,
        "qrels/dev.tsv": 1,
        "qrels/train.tsv": 0,
    }
    assert all((tmp_path / f.path).stat().st_size == f.size for f in files)


def test_read_back(folder):
    assert splits_of(str(folder)) == ["dev", "test", "train"]
    data = read_beir(str(folder))
    assert data.corpus.to_pylist() == [
        {"_id": r["_id"], "title": r.get("title", ""), "text": r["text"]} for r in CORPUS
    ]
    assert data.queries.to_pylist() == [{"_id": "q0", "text": "what?", "metadata": '{"hop_count": 2}'}]
    assert data.qrels == QRELS["test"]
    assert read_beir(str(folder), "dev").queries["_id"].to_pylist() == ["q1"]


@pytest.mark.parametrize("name", ["scifact", "nl2bash"])
def test_as_beirs_own_loader_reads_it(shared_data, name):
    loader = pytest.importorskip("beir.datasets.data_loader").GenericDataLoader(str(shared_data / "beir" / name))
    corpus, queries, qrels = loader.load(split="test")
    data = read_beir(str(shared_data / "beir" / name))
    ours = {r["_id"]: {"text": r["text"], "title": r["title"]} for r in data.corpus.to_pylist()}
    assert ours == {k: {"text": v["text"], "title": v.get("title", "")} for k, v in corpus.items()}
    assert {r["_id"]: r["text"] for r in data.queries.to_pylist()} == queries
    assert data.qrels == qrels


def test_beirs_own_loader_reads_what_is_written(folder):
    loader = pytest.importorskip("beir.datasets.data_loader").GenericDataLoader(str(folder))
    corpus, queries, qrels = loader.load(split="test")
    assert corpus["d1"] == {"text": "öne\u2028", "title": ""} and queries == {"q0": "what?"} and qrels == QRELS["test"]


@pytest.mark.parametrize(
    "text", ["q0\td0\t1\n", "a\tb\tc\nq0\td0\t1", "\ufeffquery-id\tcorpus-id\tscore\r\nq0\td0\t1\r\n"]
)
def test_headers_are_tolerated(folder, text):
    (folder / "qrels" / "test.tsv").write_bytes(text.encode())
    assert read_beir(str(folder)).qrels == {"q0": {"d0": 1}}


JUDGED = {"q0": {"d1": 1, "d0": 2}, "q1": {"d2": 0}}


@pytest.mark.parametrize("separator", ["\t", " ", "   "])
@pytest.mark.parametrize("between", [None, "0", "Q0"])
@pytest.mark.parametrize("header", [None, "query-id corpus-id score", "a b c"])
def test_one_set_of_judgements_in_every_spelling(folder, separator, between, header):
    """Scores as whole numbers or fractions, either kind of line end, a mark at the file's begin, an end or none."""
    for scored, newline, mark, end in itertools.product(
        ("{}", "{}.0", "+{}"), ("\n", "\r\n"), ("", "\ufeff"), ("", "\n\n", "\r\n \r\n")
    ):
        lines = [] if header is None else [header.split()]
        lines += [[q, d, scored.format(score)] for q, judged in JUDGED.items() for d, score in judged.items()]
        if between is not None:
            lines = [[first, between, *rest] for first, *rest in lines]
        text = mark + newline.join(separator.join(line) for line in lines) + end
        (folder / "qrels" / "test.tsv").write_bytes(text.encode())
        assert read_beir(str(folder)).qrels == JUDGED, repr(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0\td0\tx", "its first line has ids that are there, and the score 'x' is no number"),
        ("q0 0 d0 high", "its first line has ids that are there"),
        ("q1\td0\t0.5", "the score '0.5' is no whole number"),
        ("q1 d0", "a row is query-id, corpus-id and score"),
        ("q1 0 d0 1 tag", "a row is query-id, corpus-id and score"),
        ("\td0\t1", "an id is empty"),
    ],
)
def test_a_line_is_used_or_named(folder, line, message):
    (folder / "qrels" / "test.tsv").write_text(f"{line}\nq0\td0\t1\n")
    with pytest.raises(InputError, match=message):
        read_beir(str(folder))


@pytest.mark.parametrize("text", ["", "query-id\tcorpus-id\tscore\n", "\n\n"])
def test_without_a_judgement_nothing_is_judged(folder, text):
    (folder / "qrels" / "test.tsv").write_text(text)
    data = read_beir(str(folder))  # a split may be empty, as that of a set that is not trained on
    with pytest.raises(InputError, match=r"test.tsv: there is no judgement"):
        require_judgements(data, str(folder), "test")


def test_the_small_sets_that_went_wrong(shared_cases):
    assert read_beir(str(shared_cases / "qrels" / "noheader")).qrels == {"q1": {"d2": 1}, "q2": {"d2": 1}}
    assert read_beir(str(shared_cases / "qrels" / "trec-one")).qrels == {"q1": {"d1": 1}}
    assert read_beir(str(shared_cases / "qrels" / "header-only")).qrels == {}


def test_everything_wrong_is_said_at_once(folder):
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td9\t1\nq7\td0\t1\nq0 d0\nq0\td0\t0.5\n")
    with (folder / "corpus.jsonl").open("a") as out:
        out.write('{"_id": "d0", "text": "again"}\n{"_id": "d5"}\n[]\n')
    with pytest.raises(InputError) as caught:
        read_beir(str(folder))
    said = str(caught.value)
    assert "has 7 problems" in said
    assert "test.tsv:4:" in said and "test.tsv:5:" in said
    assert "corpus.jsonl:5: 'text' must be a string" in said and "corpus.jsonl:6: a row must be an object" in said
    assert "the _id 'd0' stands more than once" in said
    assert "corpus.jsonl lacks 'd9'" in said and "queries.jsonl lacks 'q7'" in said


def test_missing_splits_and_files(folder):
    with pytest.raises(InputError, match="Did you mean 'test'"):
        read_beir(str(folder), "tests")
    with pytest.raises(InputError, match=r"there is no split 'test' .*Splits: none"):
        read_beir(str(folder / "qrels"))
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match="there is no such file"):
        read_beir(str(folder))


def test_ids_that_a_table_of_tabs_cannot_carry(tmp_path):
    with pytest.raises(InputError, match="has a tab"):
        write_beir(str(tmp_path), corpus=CORPUS, queries=QUERIES, qrels={"test": {"q\t0": {"d0": 1}}})
