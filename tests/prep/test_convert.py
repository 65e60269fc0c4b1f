"""Conversion of question/answer records, against the format's own words; and errors of every kind of input."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.pairs.convert import Converted, advice, convert
from raycurate.pairs.convert_options import ConvertOptions
from tests.prep.sdg_records import corpus, pair, record, write_jsonl


def converted(path: str | list[str], folder: Path, **options: Any) -> Converted:
    return convert(ConvertOptions.parse({"input": path, **options}, where="test"), str(folder))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def document_id(text: str) -> str:
    return "d_" + hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Twenty good files; one more of each pair that is left out."""
    found = corpus(20)
    shared = "A chunk that two files have in common, word for word."
    found[3]["chunks"][0]["text"] = found[4]["chunks"][0]["text"] = shared
    found.append(
        record(
            "docs/zz.txt",
            [f"chunk {n} of the last file" for n in range(7)],
            [
                pair("good?", [1, 2]),
                pair("too many?", [1, 2, 3, 4, 5, 6]),
                pair("missing?", [1, 99]),
                pair("no segments?", []),
                pair("  ", [1]),
                pair("low?", [1]),
                pair("Chunk 2 of the LAST file.", [3]),
            ],
            [7.0, 9, 9, 9, 9, 6.9, 9],
        )
    )
    return found


def test_everything_as_the_format_says(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """The split, the rows, the ids and the test set, worked out again from the format's words."""
    out = tmp_path / "out"
    result = converted(write_jsonl(tmp_path / "sdg.jsonl", records), out, corpus_id="mine")

    texts = list(dict.fromkeys(c["text"] for r in records for c in r["chunks"]))
    table = pq.read_table(out / "corpus" / "train.parquet").to_pydict()
    assert table == {"id": [document_id(t) for t in texts], "text": texts}
    assert json.loads((out / "corpus" / "merlin_metadata.json").read_text()) == {
        "corpus_id": "mine",
        "class": "TextQADataset",
    }

    order = sorted(tuple(r["file_name"]) for r in records)
    random.Random(42).shuffle(order)
    assigned = {name: "train" if n < 16 else "val" if n < 18 else "test" for n, name in enumerate(order)}
    expected: dict[str, list[tuple[str, list[str], dict[str, Any], dict[str, Any]]]] = {
        "train": [],
        "val": [],
        "test": [],
    }
    for r in records:
        chunk = {c["chunk_id"]: c["text"] for c in r["chunks"]}
        for asked in r["deduplicated_qa_pairs"]:
            if r["file_name"] != ["docs/zz.txt"] or asked["question"] == "good?":
                positives = [chunk[s] for s in asked["segment_ids"]]
                expected[assigned[tuple(r["file_name"])]].append((asked["question"], positives, asked, r))

    for split in ("train", "val"):
        written = json.loads((out / f"{split}.json").read_text())
        assert list(written) == ["corpus", "data"]
        assert written["corpus"] == {"path": "./corpus/"}
        assert written["data"] == [
            {
                "question_id": f"q{n}",
                "question": question,
                "corpus_id": "mine",
                "pos_doc": [{"id": document_id(t)} for t in positives],
                "neg_doc": [],
            }
            for n, (question, positives, _, _) in enumerate(expected[split])
        ]

    beir = out / "eval_beir"
    assert lines(beir / "corpus.jsonl") == [
        {"_id": f"d{n}", "title": "", "text": text, "metadata": {}} for n, text in enumerate(texts)
    ]
    judged = [("test", f"q{n}", *found) for n, found in enumerate(expected["test"])]
    judged += [("dev", f"dev_q{n}", *found) for n, found in enumerate(expected["val"])]
    queries = lines(beir / "queries.jsonl")
    assert [(q["_id"], q["text"]) for q in queries] == [(name, question) for _, name, question, *_ in judged]
    for query, (_, _, _, _, asked, r) in zip(queries, judged, strict=True):
        known = ("query_type", "reasoning_type", "hop_count", "question_complexity", "answer", "hop_contexts")
        place = r["deduplicated_qa_pairs"].index(asked)
        assert query["metadata"] == {
            **{name: asked[name] for name in known},
            "quality_score": r["qa_evaluations"]["evaluations"][place]["overall"]["score"],
            "file_name": r["file_name"],
            "segment_ids": asked["segment_ids"],
        }
    for split in ("test", "dev"):
        rows = [f"{name}\td{texts.index(t)}\t1" for own, name, _, ts, *_ in judged if own == split for t in ts]
        assert (beir / "qrels" / f"{split}.tsv").read_text() == "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"

    assert result.queries == {split: len(found) for split, found in expected.items()}
    assert result.left_out == {
        "empty_question": 1,
        "low_score": 1,
        "missing_segment": 2,
        "question_is_its_document": 1,
        "too_many_positives": 1,
    }
    assert (result.documents, result.sources, result.counts["pairs"]) == (len(texts), 21, 47)
    assert sum(result.queries.values()) + sum(result.left_out.values()) == result.counts["pairs"]
    sizes = {name: len(data) for name, data in files(out).items()}
    assert {f.path: f.size for f in result.files} == sizes


def test_the_split_counts_files_whose_pairs_scored_but_failed_otherwise(tmp_path: Path) -> None:
    """Tools that split after the quality filter alone give the same test set."""
    records = corpus(9)
    records.append(record("docs/bad.txt", ["one chunk"], [pair("missing?", [5])], [9]))
    converted(write_jsonl(tmp_path / "sdg.jsonl", records), tmp_path / "out")
    order = sorted(tuple(r["file_name"]) for r in records)
    random.Random(42).shuffle(order)
    trained = {
        name for r in json.loads((tmp_path / "out" / "train.json").read_text())["data"] for name in [r["question"]]
    }
    assert trained == {
        asked["question"]
        for r in records
        if tuple(r["file_name"]) in order[:8]
        for asked in r["deduplicated_qa_pairs"]
        if asked["question"] != "missing?"
    }


def test_the_same_bytes_in_whatever_order_files_are_given(records: list[dict[str, Any]], tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / "in" / f"{n}.jsonl", records[n::3]) for n in range(3)]
    converted(str(tmp_path / "in"), tmp_path / "a")
    converted(paths[::-1], tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    converted(str(tmp_path / "in"), tmp_path / "c", seed=1)
    assert files(tmp_path / "a")["train.json"] != files(tmp_path / "c")["train.json"]


def test_a_bundle_stays_together(tmp_path: Path) -> None:
    records = corpus(10)
    for r in records[:4]:
        r["file_name"] = ["docs/a.txt", "docs/b.txt"]
    converted(write_jsonl(tmp_path / "sdg.jsonl", records), tmp_path / "out")
    by_split = [
        {row["question"] for row in json.loads((tmp_path / "out" / f"{split}.json").read_text())["data"]}
        for split in ("train", "val")
    ]
    bundle = {asked["question"] for r in records[:4] for asked in r["deduplicated_qa_pairs"]}
    assert all(bundle <= found or not bundle & found for found in by_split)


def test_positives_with_the_same_text_are_one(tmp_path: Path) -> None:
    records = [
        record(f"f{n}", ["the same", "the same", f"other {n}"], [pair(f"q {n}", [1, 2, 3])], [9]) for n in range(10)
    ]
    converted(write_jsonl(tmp_path / "sdg.jsonl", records), tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "train.json").read_text())["data"]
    assert all(len(row["pos_doc"]) == 2 for row in rows)


def test_scores(tmp_path: Path) -> None:
    records = corpus(10)
    del records[0]["qa_evaluations"]
    records[1]["qa_evaluations"]["evaluations"].pop()
    path = write_jsonl(tmp_path / "sdg.jsonl", records)
    result = converted(path, tmp_path / "a")
    assert result.left_out == {"misaligned_evaluations": 2, "no_score": 2}
    assert [(r.line, r.reason, r.detail) for r in result.rejects] == [
        (2, "misaligned_evaluations", "1 evaluations for 2 pairs")
    ]
    assert result.documents == 30
    assert converted(path, tmp_path / "b", quality_threshold=None).left_out == {}
    assert converted(path, tmp_path / "c", quality_threshold=8.0).queries == result.queries


def test_questions_that_are_documents_are_told(tmp_path: Path) -> None:
    records = corpus(10)
    records[0]["deduplicated_qa_pairs"][0]["question"] = records[5]["chunks"][0]["text"]
    result = converted(write_jsonl(tmp_path / "sdg.jsonl", records), tmp_path / "out")
    assert result.counts["questions_that_are_documents"] == 1
    assert any("1 questions are documents" in line for line in result.summary)


def test_rejects_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "sdg.jsonl"
    write_jsonl(path, corpus(10))
    path.write_text(path.read_text() + "{broken\n")
    result = converted(str(path), tmp_path / "out")
    assert [(r.file, r.line, r.reason) for r in result.rejects] == [(str(path), 11, "invalid_json")]
    assert any("sdg.jsonl:11: invalid_json" in line for line in result.summary)


def test_random_leaks_and_grouped_does_not(tmp_path: Path) -> None:
    """Every second file repeats the one before: the same questions, the same chunks but for case."""
    records = corpus(30)
    for first, second in zip(records[::2], records[1::2], strict=True):
        second["chunks"] = [{**c, "text": c["text"].upper()} for c in first["chunks"]]
        second["deduplicated_qa_pairs"] = [
            {**p, "question": p["question"] + "!"} for p in first["deduplicated_qa_pairs"]
        ]
    path = write_jsonl(tmp_path / "sdg.jsonl", records)
    leaky = converted(path, tmp_path / "random")
    assert leaky.leak.any > 0
    assert leaky.leak.same_question > 0 and leaky.leak.same_document > 0
    assert any("split_strategy=grouped leaves none" in line for line in leaky.summary)
    clean = converted(path, tmp_path / "grouped", split_strategy="grouped")
    assert (clean.leak.any, clean.leak.queries) == (0, clean.queries["test"])
    assert clean.queries == {"train": 48, "val": 8, "test": 4}  # 15 groups of 4 questions
    converted(path, tmp_path / "again", split_strategy="grouped")
    assert files(tmp_path / "grouped") == files(tmp_path / "again")


def test_near_duplicates_by_file_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sdg.jsonl", corpus(30))
    groups = tmp_path / "groups.csv"
    rows = [f"docs/{n:03}.txt,{n // 2}" for n in range(30)]
    groups.write_text("\n".join(["id,group", *rows]) + "\n")
    leaky = converted(path, tmp_path / "random", groups=str(groups))
    assert leaky.leak.near and leaky.leak.same_document == 0
    clean = converted(path, tmp_path / "grouped", groups=str(groups), split_strategy="grouped")
    assert (clean.leak.near, clean.leak.any) == (0, 0)
    assert "15 groups" in "\n".join(clean.summary)


# --- what cannot be converted ---------------------------------------------------------------------


def test_ratios_that_do_not_sum_to_one() -> None:
    with pytest.raises(ConfigError, match=r"sum to 0\.9; they must sum to 1"):
        ConvertOptions.parse({"input": "x", "train_ratio": 0.7}, where="test")
    assert ConvertOptions(input="x", train_ratio=0.8, val_ratio=0.0, test_ratio=0.2).ratios["test"] == 0.2


def test_one_document(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sdg.jsonl", corpus(1))
    with pytest.raises(InputError, match="no question is left to train on: 2 questions of 1 source"):
        converted(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_scores_well_enough(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sdg.jsonl", corpus(5))
    with pytest.raises(
        InputError, match=r"none of 10 pairs can be used .*10 low_score.*Lower quality_threshold \(9.5\)"
    ):
        converted(path, tmp_path / "out", quality_threshold=9.5)


def test_no_good_record_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sdg.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(InputError, match=r"1 bad records.*sdg.jsonl:1: invalid_json"):
        converted(str(path), tmp_path / "out")


def test_everything_in_one_group(tmp_path: Path) -> None:
    records = corpus(10)
    for r in records:
        r["deduplicated_qa_pairs"][0]["question"] = "What is it?"
    path = write_jsonl(tmp_path / "sdg.jsonl", records)
    with pytest.raises(InputError, match=r"no question is left to test with.*near-duplicates joined the sources"):
        converted(path, tmp_path / "out", split_strategy="grouped")
    only_train = {"train_ratio": 1.0, "val_ratio": 0.0, "test_ratio": 0.0}
    result = converted(path, tmp_path / "out", split_strategy="grouped", **only_train)
    assert result.queries == {"train": 20, "val": 0, "test": 0}


def test_advice() -> None:
    assert "too few" in advice(49)
    assert "the least that helps" in advice(50)
    assert "a small corpus" in advice(499)
    assert "recommended size" in advice(500)
    assert advice(1000) == "1,000 source documents: enough"
