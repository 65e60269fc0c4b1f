"""Metrics by hand, against BEIR's own, and on a real test set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from raycurate.retrieval.metrics import Metrics, evaluate_hits

LOG3 = math.log2(3)
NO = -np.inf


def judged(hits: dict[str, list[tuple[str | None, float]]], qrels: dict[str, dict[str, int]], **options) -> Metrics:
    depth = max((len(found) for found in hits.values()), default=1)
    padded = [found + [(None, NO)] * (depth - len(found)) for found in hits.values()]
    ids = [[document for document, _ in found] for found in padded]
    scores = np.array([[score for _, score in found] for found in padded], np.float32).reshape(len(hits), depth)
    return evaluate_hits(qrels, list(hits), ids, scores, **options)


QRELS = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1, "d": 0}, "q3": {"e": 1}, "q4": {"f": 0}, "q5": {}}
HITS: dict[str, list[tuple[str | None, float]]] = {
    "q2": [("d", 0.9), ("c", 0.8)],
    "q1": [("x", 0.9), ("a", 0.8), ("b", 0.8)],  # b and a tie: trec_eval puts the larger id first
    "q4": [("f", 1.0)],
    "nobody asked": [("a", 1.0)],
}


def test_by_hand() -> None:
    found = judged(HITS, QRELS)
    assert found.queries == 4  # q5 has no judgement
    table = {row["query_id"]: row for row in found.per_query.to_pylist()}
    assert list(table) == ["q1", "q2", "q3", "q4"]
    assert [row["answered"] for row in table.values()] == [True, True, False, True]
    one = table["q1"]
    assert one["NDCG@10"] == pytest.approx((1 / LOG3 + 2 / 2) / (2 + 1 / LOG3), abs=1e-6)
    assert one["NDCG@1"] == 0
    assert one["MAP@10"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-6)
    assert (one["MRR@1"], one["MRR@5"]) == (0, 0.5)
    assert (one["P@1"], one["P@5"], one["P@10"]) == (0, pytest.approx(0.4), pytest.approx(0.2))
    assert (one["Recall@1"], one["Recall@5"]) == (0, 1)
    two = table["q2"]
    assert two["NDCG@5"] == pytest.approx(1 / LOG3, abs=1e-6)
    assert (two["MAP@5"], two["MRR@5"], two["Recall@100"]) == (0.5, 0.5, 1)
    for query in ("q3", "q4"):
        assert all(value in (query, 0, True, False) for value in table[query].values())


def test_the_mean_is_over_all_judged_queries() -> None:
    found = judged(HITS, QRELS)
    assert found.scores["MRR"]["MRR@10"] == pytest.approx((0.5 + 0.5) / 4)
    assert found["Recall@5"] == pytest.approx(2 / 4)
    assert set(found.scores) == {"NDCG", "MAP", "Recall", "Precision", "MRR"}
    assert list(found.scores["Precision"]) == ["P@1", "P@5", "P@10", "P@100"]
    with pytest.raises(KeyError):
        found["P@7"]


def test_rounding_is_asked_for() -> None:
    found = judged({"q": [("a", 1.0)]}, {"q": {"a": 1, "b": 1, "c": 1}})
    assert found["Recall@10"] == pytest.approx(1 / 3, abs=1e-7)
    assert found.rounded()["Recall"]["Recall@10"] == 0.33333
    assert found.rounded(2)["Recall"]["Recall@10"] == 0.33


def test_ties() -> None:
    hits: dict[str, list[tuple[str | None, float]]] = {"q": [("a", 0.5), ("b", 0.5)]}
    assert judged(hits, {"q": {"a": 1}})["MRR@10"] == 0.5
    assert judged(hits, {"q": {"a": 1}}, mrr_ties="given")["MRR@10"] == 1


def test_a_document_with_the_querys_own_id() -> None:
    hits: dict[str, list[tuple[str | None, float]]] = {"q": [("q", 0.9), ("a", 0.5)]}
    assert judged(hits, {"q": {"a": 1}})["NDCG@1"] == 1
    assert judged(hits, {"q": {"a": 1}}, ignore_identical_ids=False)["NDCG@1"] == 0


def test_no_hits_at_all() -> None:
    found = judged({}, {"q": {"a": 1}})
    assert found["NDCG@10"] == 0
    found = judged({"q": [(None, NO)]}, {"q": {"a": 1}})
    assert found.per_query["answered"].to_pylist() == [False]


def test_other_cuts() -> None:
    found = judged(HITS, QRELS, k_values=[3, 2, 3])
    assert list(found.scores["NDCG"]) == ["NDCG@2", "NDCG@3"]


def test_what_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="no judged query"):
        judged(HITS, {"q5": {}})
    with pytest.raises(ValueError, match="NaN"):
        judged({"q": [("a", float("nan"))]}, QRELS)
    with pytest.raises(ValueError, match="do not fit together"):
        evaluate_hits(QRELS, ["q1"], [["a"], ["b"]], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="twice"):
        evaluate_hits(QRELS, ["q1", "q1"], [["a"], ["b"]], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="whole numbers from 1"):
        judged(HITS, QRELS, k_values=[0])


def random_case(seed: int) -> tuple[dict[str, dict[str, int]], list[str], np.ndarray, np.ndarray]:
    """Graded judgements, many ties, more queries than a block of pytrec_eval takes at once."""
    random = np.random.default_rng(seed)
    queries = [f"q{n}" for n in range(1500)]
    qrels = {
        query: {f"d{d}": int(random.integers(0, 4)) for d in random.choice(40, random.integers(1, 6), replace=False)}
        for query in queries
    }
    ids = np.array([[f"d{d}" for d in random.choice(40, 20, replace=False)] for _ in queries], object)
    scores = -np.sort(-np.round(random.normal(size=(len(queries), 20)), 1).astype(np.float32), axis=1)
    return qrels, queries, ids, scores


def test_equals_beir() -> None:
    evaluation = pytest.importorskip("beir.retrieval.evaluation", reason="the package beir is not installed")
    cuts = [1, 5, 10, 100]
    qrels, queries, ids, scores = random_case(3)
    results = {
        query: dict(zip(found, map(float, values), strict=True))
        for query, found, values in zip(queries, ids, scores, strict=True)
    }
    ours = evaluate_hits(qrels, queries, ids, scores, k_values=cuts, mrr_ties="given").rounded()
    theirs = evaluation.EvaluateRetrieval.evaluate(qrels, results, cuts)
    for family, expected in zip(("NDCG", "MAP", "Recall", "Precision"), theirs, strict=True):
        assert ours[family] == pytest.approx(expected, abs=1.01e-5)
    mrr = evaluation.EvaluateRetrieval.evaluate_custom(qrels, results, cuts, "mrr")
    assert ours["MRR"] == pytest.approx(mrr, abs=1.01e-5)


def test_order_of_queries_does_not_matter() -> None:
    qrels, queries, ids, scores = random_case(4)
    order = np.random.default_rng(0).permutation(len(queries))
    mixed = evaluate_hits(qrels, [queries[i] for i in order], ids[order], scores[order])
    assert mixed.scores == evaluate_hits(qrels, queries, ids, scores).scores


def test_bm25_on_a_real_test_set(shared_data: Path) -> None:
    from raycurate.data.corpora.beir import read_beir
    from raycurate.retrieval.lexical import retrieve_bm25

    data = read_beir(str(shared_data / "beir" / "scifact"), "test")
    run = retrieve_bm25(data, 101)  # one more than the largest cut: a document with the query's own id is passed over
    found = evaluate_hits(data.qrels, run.query_ids, run.document_ids_QK, run.scores_QK)
    assert found.queries == 300
    # Anserini has 0.6789 and 0.9253 with Lucene's English analyser and one field of title and text
    # (docs/reproduce/from-document-collection/beir-v1.0.0-scifact.flat.md there); its stemmer is Porter's older one.
    assert found["NDCG@10"] == pytest.approx(0.6789, abs=0.003)
    assert found["Recall@100"] == pytest.approx(0.9253, abs=0.005)
