"""Comparisons of systems whose answers are known: pairs, verdicts, changes, drift, fusion."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from raycurate.data.corpora.beir import BeirData
from raycurate.retrieval.lexical import fuse, ranked, retrieve_bm25
from raycurate.retrieval.retrieve import Retrieved
from raycurate.stages.eval.compare import CompareOptions, compare, sources_of


def data_of(questions: int, *, files: int = 0) -> BeirData:
    """Question i has the one relevant document d<i>; with `files`, it is known which of so many files it came from."""
    names = [f"q{i}" for i in range(questions)]
    corpus = pa.table(
        {
            "_id": [f"d{i}" for i in range(questions + 2)],
            "title": [""] * (questions + 2),
            "text": [f"text {i}" for i in range(questions + 2)],
        }
    )
    metadata = [json.dumps({"file_name": [f"file{i % files}"]} if files else {}) for i in range(questions)]
    queries = pa.table({"_id": names, "text": [f"question {i}" for i in range(questions)], "metadata": metadata})
    return BeirData(corpus, queries, {name: {f"d{i}": 1} for i, name in enumerate(names)})


def answers(data: BeirData, right: list[bool]) -> Retrieved:
    """Two hits a question: the relevant document first, or one that is not and then it."""
    other = f"d{len(right)}"
    names = [[f"d{i}", other] if good else [other, f"d{i}"] for i, good in enumerate(right)]
    scores = np.tile(np.float32([2, 1]), (len(right), 1))
    return Retrieved(data.queries["_id"].to_pylist(), np.array(names, object), scores)


def test_one_is_better() -> None:
    data = data_of(60, files=30)
    before, after = [i >= 40 for i in range(60)], [i >= 10 or i == 3 for i in range(60)]
    after[50] = False
    found = compare(data, {"base": answers(data, before), "finetuned": answers(data, after)}, CompareOptions(changes=6))
    [pair] = found.pairs
    step = 1 - 1 / np.log2(3)  # what a question loses when its document is second
    assert (pair.system, pair.against, pair.metric) == ("finetuned", "base", "NDCG@10")
    assert (pair.wins, pair.ties, pair.losses) == (31, 28, 1)
    assert pair.difference == pytest.approx(30 * step / 60, abs=1e-6)
    assert (pair.unit, pair.units, pair.verdict) == ("sources", 30, "improved")
    assert 0 < pair.low < pair.difference < pair.high
    assert pair.p == pair.p_holm < 0.001
    assert pair.says.startswith("finetuned is better than base: nDCG@10 +0.18")
    changed = [(one["query_id"], round(one["difference"], 3)) for one in found.changes]
    assert changed == [("q3", 0.369), ("q10", 0.369), ("q11", 0.369), ("q50", -0.369)]
    first = found.changes[0]
    assert [hit["id"] for hit in first["before"]] == ["d60", "d3"]
    assert first["after"][0] == {"id": "d3", "title": "", "text": "text 3", "relevant": 1, "score": 2.0}


def test_too_few_questions_and_no_difference() -> None:
    few, many = data_of(49), data_of(80)
    runs = {"base": answers(few, [False] * 49), "finetuned": answers(few, [True] * 49)}
    assert compare(few, runs, CompareOptions()).pairs[0].verdict == "undetermined"
    same = {"base": answers(many, [True] * 80), "finetuned": answers(many, [True] * 80)}
    [pair] = compare(many, same, CompareOptions()).pairs
    assert (pair.verdict, pair.p, pair.unit) == ("no difference", 1.0, "queries")
    assert "base leaves little room above 1.000" in pair.says


def test_results_have_the_agreed_form() -> None:
    data = data_of(55)
    runs = {name: answers(data, [True] * 55) for name in ("bm25", "base", "finetuned")}
    found = compare(data, runs, CompareOptions(k_values=[1, 10]))
    results = found.results(collection={"name": "x"})
    assert list(results) == ["bm25", "base", "finetuned", "_metadata"]
    assert results["base"] == {
        "NDCG": {"NDCG@1": 1.0, "NDCG@10": 1.0},
        "MAP": {"MAP@1": 1.0, "MAP@10": 1.0},
        "Recall": {"Recall@1": 1.0, "Recall@10": 1.0},
        "Precision": {"P@1": 1.0, "P@10": pytest.approx(0.1)},
        "MRR": {"MRR@1": 1.0, "MRR@10": 1.0},
    }
    assert len(results["_metadata"]["comparisons"]) == 3
    assert results["_metadata"]["intervals"]["base"]["NDCG@10"] == [1.0, 1.0]
    assert found.per_query().num_rows == 3 * 55
    json.dumps(results)


def test_drift_has_two_tolerances() -> None:
    """One question of 50 that is answered second: nDCG@1 and MRR@1 fall by 0.02, which is let pass below k = 5;
    nDCG@10 by 0.0074; MRR@10 by 0.01, the tolerance itself."""
    data = data_of(50)
    one, two = [i > 0 for i in range(50)], [i > 1 for i in range(50)]
    runs = {name: answers(data, good) for name, good in (("base", [True] * 50), ("near", one), ("off", two))}
    found = compare(data, runs, CompareOptions(same_as={"near": "base", "off": "base"}))
    bad = {(d.system, d.metric) for d in found.drift if not d.ok}
    assert {metric for system, metric in bad if system == "near"} == set()
    assert {"NDCG@5", "NDCG@10", "NDCG@100", "MRR@10", "NDCG@1"} <= {
        metric for system, metric in bad if system == "off"
    }
    tolerances = {d.metric: d.tolerance for d in found.drift}
    assert (tolerances["NDCG@1"], tolerances["NDCG@5"]) == (0.03, 0.01)


def test_files_are_units_only_where_all_are_known() -> None:
    data = data_of(4, files=2)
    unit, names = sources_of(data, ["q0", "q1", "q2", "q3"])
    assert unit == "sources"
    assert names[0] == names[2] != names[1]
    metadata = ["{}", *data.queries["metadata"].to_pylist()[1:]]
    lacking = BeirData(data.corpus, data.queries.set_column(2, "metadata", pa.array(metadata)), data.qrels)
    assert sources_of(lacking, ["q0", "q1"]) == ("queries", ["q0", "q1"])


def test_fusion_by_hand() -> None:
    """a: 1/61 + 1/63; b: 1/62 + 1/61; c: 1/62; equal scores are ranked by the larger id, as the metrics do."""
    names = [np.array([["a", "b", None]], object), np.array([["b", "c", "a"]], object)]
    scores = [np.array([[2, 1, -np.inf]], np.float32), np.array([[3, 2, 1]], np.float32)]
    fused = fuse([Retrieved(["q"], n, s) for n, s in zip(names, scores, strict=True)], 3)
    assert fused.document_ids_QK[0].tolist() == ["b", "a", "c"]
    expected = [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62]
    assert fused.scores_QK[0] == pytest.approx(expected)
    assert ranked(np.array(["a", "b", None], object), np.float32([1, 1, 5])) == ["b", "a"]
    with pytest.raises(ValueError, match="different questions"):
        fuse([fused, Retrieved(["other"], fused.document_ids_QK, fused.scores_QK)], 3)


def test_bm25_finds_the_word() -> None:
    data = data_of(5)
    found = retrieve_bm25(data, 3)
    assert found.document_ids_QK[4, 0] == "d4"  # "question 4" shares one word with "text 4" alone
    assert found.document_ids_QK[4, 1] is None
