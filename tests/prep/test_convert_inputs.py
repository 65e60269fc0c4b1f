"""Conversion from documents with titles and from BEIR folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.data.corpora.beir import write_beir
from raycurate.retrieval.bm25 import bm25_search, english_tokenizer
from tests.prep.test_convert import converted, files, lines


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{split}.json").read_text())["data"]


def texts(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "corpus" / "train.parquet").to_pydict()
    return dict(zip(table["id"], table["text"], strict=True))


BODY = "This is what the document says about it, at some length and in words of its own: {}."


def documents(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(d) + "\n" for d in found))
    return str(path)


def titled(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"_id": f"doc{n}", "title": f"All about topic {n}", "text": BODY.format(n), **more} for n in range(count)]


def test_titles(tmp_path: Path) -> None:
    found = titled(20)
    found[0]["title"] = "short"
    found[0]["text"] = "Too short."
    found[1]["text"] = "All about topic 1. Too short."
    path = documents(tmp_path / "docs.jsonl", [*found, {"title": "no text at all"}])
    result = converted(path, tmp_path / "out", pairs_from="title")
    assert result.left_out == {"short_passage": 1, "short_question": 1}
    assert [r.reason for r in result.rejects] == ["missing_text"]
    assert result.queries == {"train": 14, "val": 1, "test": 3}  # each document is a source of its own
    assert result.documents == 20
    corpus = texts(tmp_path / "out")
    for row in rows(tmp_path / "out", "train"):
        (positive,) = row["pos_doc"]
        number = row["question"].removeprefix("All about topic ")
        assert corpus[positive["id"]] == BODY.format(number)
    assert {"Too short.", "All about topic 1. Too short."} <= set(corpus.values())
    query = lines(tmp_path / "out" / "eval_beir" / "queries.jsonl")[0]
    assert query["metadata"]["document_ids"] == [f"doc{query['text'].removeprefix('All about topic ')}"]


def test_repeated_questions(tmp_path: Path) -> None:
    found = titled(20)
    for n in (0, 1, 2):
        found[n]["title"] = "Asked by three"
    for n in (3, 4, 5, 6):
        found[n]["title"] = "Asked by four!"
    found[7]["title"] = found[8]["title"] = "Once in full"
    found[8]["text"] = "Once in full."
    path = documents(tmp_path / "docs.jsonl", found)
    result = converted(
        path, tmp_path / "out", pairs_from="title", split_strategy="grouped", test_ratio=0.0, val_ratio=0.2
    )
    assert result.left_out == {"question_in_other_document": 1, "repeated_question": 4, "short_passage": 1}
    asked = {r["question"]: r for split in ("train", "val") for r in rows(tmp_path / "out", split)}
    assert len(asked) == 12
    assert len(asked["Asked by three"]["pos_doc"]) == 3
    more = converted(path, tmp_path / "more", pairs_from="title", max_query_repeats=4)
    assert "repeated_question" not in more.left_out


def test_documentation_is_split_by_package(tmp_path: Path) -> None:
    found = [
        {
            "id": f"p{n % 5}:p{n % 5}.find_{n}",
            "title": f"p{n % 5}.find_{n}",
            "text": f"def find_{n}(x)\n\nFinds the number {n} in x.\n\nReturns where find_{n} found it, from the left.",
            "package": f"p{n % 5}",
            "source": f"p{n % 5}/m.py#L{n}",
        }
        for n in range(50)
    ]
    path = documents(tmp_path / "docs.jsonl", found)
    result = converted(path, tmp_path / "out", pairs_from="title")
    assert result.queries == {"train": 40, "val": 0, "test": 10}
    packages = Counter(
        query["metadata"]["file_name"][0].split("/")[0]
        for query in lines(tmp_path / "out" / "eval_beir" / "queries.jsonl")
    )
    assert list(packages.values()) == [10]
    assert set(texts(tmp_path / "out").values()) == {"Returns where … found it, from the left."}
    by_line = converted(path, tmp_path / "line", pairs_from="title", split_field="source")
    assert by_line.queries == {"train": 40, "val": 5, "test": 5}
    with pytest.raises(InputError, match="no document has a value in the column 'packages'"):
        converted(path, tmp_path / "no", pairs_from="title", split_field="packages")


def test_parquet_is_as_json_lines(tmp_path: Path) -> None:
    found = titled(20, package="p", own_column=[1])
    for n, document in enumerate(found):
        document["package"] = f"p{n // 2}"
    path = documents(tmp_path / "docs.jsonl", found)
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "docs.parquet")
    converted(path, tmp_path / "a", pairs_from="title")
    converted(str(tmp_path / "docs.parquet"), tmp_path / "b", pairs_from="title", split_field="package")
    assert files(tmp_path / "a")["train.json"] == files(tmp_path / "b")["train.json"]
    assert files(tmp_path / "a")["corpus/train.parquet"] == files(tmp_path / "b")["corpus/train.parquet"]


def test_text_files_are_split_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(10):
        (folder / f"{n}.md").write_text(f"This one tells about number {n}. {BODY.format(n)}")
    result = converted(str(folder), tmp_path / "out", pairs_from="title")
    assert result.queries == {"train": 8, "val": 1, "test": 1}
    again = converted([str(folder / f"{n}.md") for n in reversed(range(10))], tmp_path / "again", pairs_from="title")
    assert again.queries == result.queries
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_a_question_that_several_packages_ask(tmp_path: Path) -> None:
    """random leaves it in one split with all its answers; grouped joins the packages."""
    found = titled(20)
    for n, document in enumerate(found):
        document["package"] = f"p{n // 2}"
    found[0]["title"] = found[19]["title"] = "Asked by two packages"
    path = documents(tmp_path / "docs.jsonl", found)
    result = converted(path, tmp_path / "out", pairs_from="title", split_strategy="grouped")
    assert "9 groups" in "\n".join(result.summary)
    assert result.leak.any == 0


# --- BEIR -----------------------------------------------------------------------------------------


def beir(folder: Path, splits: dict[str, dict[str, dict[str, int]]]) -> str:
    asked = {query for judged in splits.values() for query in judged}
    write_beir(
        str(folder),
        corpus=[{"_id": f"c{n}", "title": "T" if n % 2 else "", "text": f"document {n}"} for n in range(40)],
        queries=[
            {"_id": q, "text": f"what is {q}" if q != "blank" else " ", "metadata": {"own": q}} for q in sorted(asked)
        ],
        qrels=splits,
    )
    return str(folder)


TRAIN = {f"t{n}": {f"c{n}": 1} for n in range(18)} | {"t18": {"c18": 2, "c19": 1, "c20": 0}}
TRAIN |= {"none": {"c1": 0}, "blank": {"c1": 1}}


def test_beir(tmp_path: Path) -> None:
    path = beir(tmp_path / "in", {"train": TRAIN, "dev": {"v": {"c30": 1}}, "test": {"x": {"c31": 3, "c0": 1}}})
    result = converted(path, tmp_path / "out", pairs_from="beir")
    assert result.queries == {"train": 19, "val": 1, "test": 1}
    assert result.left_out == {"empty_question": 1, "no_positive": 1}
    corpus = texts(tmp_path / "out")
    assert set(corpus.values()) == {f"T document {n}" if n % 2 else f"document {n}" for n in range(40)}
    train = {row["question"]: [corpus[p["id"]] for p in row["pos_doc"]] for row in rows(tmp_path / "out", "train")}
    assert train["what is t18"] == ["document 18", "T document 19"]
    assert lines(tmp_path / "out" / "eval_beir" / "queries.jsonl") == [
        {"_id": "q0", "text": "what is x", "metadata": {"own": "x", "original_id": "x"}},
        {"_id": "dev_q0", "text": "what is v", "metadata": {"own": "v", "original_id": "v"}},
    ]
    qrels = (tmp_path / "out" / "eval_beir" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert qrels == ["q0\td31\t3", "q0\td0\t1"]
    assert (result.leak.same_document, result.leak.any) == (1, 1)
    clean = converted(path, tmp_path / "clean", pairs_from="beir", split_strategy="grouped")
    assert clean.queries == {"train": 18, "val": 1, "test": 1}
    assert (clean.left_out["leaks_into_test"], clean.leak.any) == (1, 0)


def test_beir_without_dev(tmp_path: Path) -> None:
    path = beir(tmp_path / "in", {"train": TRAIN, "test": {"x": {"c31": 1}}})
    result = converted(path, tmp_path / "out", pairs_from="beir")
    assert result.queries == {"train": 17, "val": 2, "test": 1}  # int(19 * 0.1 / 0.9)
    again = converted(path, tmp_path / "again", pairs_from="beir")
    assert files(tmp_path / "out") == files(tmp_path / "again")
    assert again.queries == result.queries


def test_beir_without_train(tmp_path: Path) -> None:
    path = beir(tmp_path / "in", {"test": {"x": {"c31": 1}}})
    with pytest.raises(InputError, match="no judgements to train on; the splits are test"):
        converted(path, tmp_path / "out", pairs_from="beir")


def test_beir_without_test(tmp_path: Path) -> None:
    path = beir(tmp_path / "in", {"train": TRAIN})
    with pytest.raises(InputError, match="no question is left to test with"):
        converted(path, tmp_path / "out", pairs_from="beir")


# --- BM25 -----------------------------------------------------------------------------------------


def test_bm25_by_hand() -> None:
    """Lucene's form: idf ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b |d| / avg))."""
    import math

    corpus = ["red red fish", "blue fish", "a bird and the sky of it", "nothing shared"]
    words = english_tokenizer().tokenize(corpus, return_as="string", allow_empty=False, show_progress=False)
    assert words == [["red", "red", "fish"], ["blue", "fish"], ["bird", "sky"], ["noth", "share"]]
    found, scores = bm25_search(corpus, ["Red fish", "zebra", "the sky"], 3)
    mean = (3 + 2 + 2 + 2) / 4

    def score(tf: int, length: int, holders: int) -> float:
        idf = math.log(1 + (4 - holders + 0.5) / (holders + 0.5))
        return idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / mean))

    assert found.tolist() == [[0, 1, -1], [-1, -1, -1], [2, -1, -1]]
    assert scores[0].tolist() == pytest.approx([score(2, 3, 1) + score(1, 3, 2), score(1, 2, 2), -math.inf], rel=1e-5)
    assert scores[2, 0] == pytest.approx(score(1, 2, 1), rel=1e-5)


def test_bm25_finds_other_forms_of_an_english_word() -> None:
    found, _ = bm25_search(["The cells were dividing.", "a stone"], ["How does a cell divide?"], 2)
    assert found.tolist() == [[0, -1]]


def test_bm25_finds_words_of_other_languages_as_they_are() -> None:
    corpus = ["Die Häuser am Fluß", "Η γρήγορη αλεπού", "быстрая лиса прыгает", "狐狸 跳 過", "vitamin C"]
    found, _ = bm25_search(corpus, ["häuser", "ΑΛΕΠΟΎ", "Лиса", "跳", "c", "Flüsse"], 2)
    assert found.tolist() == [[0, -1], [1, -1], [2, -1], [3, -1], [4, -1], [-1, -1]]


def test_bm25_of_texts_without_words() -> None:
    asked = ["", "?!", "of the", "fish"]
    found, scores = bm25_search(["", "one fish", "?!", "the"], asked, 9)
    assert found.tolist() == [[-1] * 4, [-1] * 4, [-1] * 4, [1, -1, -1, -1]]
    assert np.isneginf(scores[:3]).all() and scores[3, 0] > 0
    assert bm25_search(["", "the"], asked, 9)[0].tolist() == [[-1, -1]] * 4  # a corpus without any word
    assert bm25_search(["fish"], [], 9)[0].shape == (0, 1)
