"""BEIR's metrics of a search: nDCG, MAP, Recall and precision by trec_eval (through pytrec_eval), and MRR.

    metrics = evaluate_hits(qrels, query_ids, document_ids_QK, scores_QK)
    metrics.scores["NDCG"]["NDCG@10"], metrics.per_query["Recall@10"]

Two things differ from BEIR's own `EvaluateRetrieval.evaluate`. A judged query without any hits counts as 0, where
BEIR divides by the queries that have hits, so that failing to answer would raise the mean. And nothing is rounded,
unless asked for (`rounded`). Documents of equal score are ranked as trec_eval does, by the larger id, for all metrics
(BEIR's MRR alone takes them in the order given: `mrr_ties="given"`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

K_VALUES = (1, 5, 10, 100)

Qrels = Mapping[str, Mapping[str, int]]

_TREC = {"NDCG": ("ndcg_cut", "NDCG@"), "MAP": ("map_cut", "MAP@"), "Recall": ("recall", "Recall@")}
_TREC["Precision"] = ("P", "P@")
_FAMILIES = (*_TREC, "MRR")
_BLOCK_QUERIES = 1024


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of one search.

    Attributes:
        scores: by family (NDCG, MAP, Recall, Precision, MRR) and name ("NDCG@10", "P@5"), over all judged queries.
        per_query: `query_id` and one float64 column a name, in the order of the qrels; `answered` is false for a
            query without hits, whose metrics are 0.
    """

    scores: dict[str, dict[str, float]]
    per_query: pa.Table

    @property
    def queries(self) -> int:
        return self.per_query.num_rows

    def rounded(self, digits: int = 5) -> dict[str, dict[str, float]]:
        """`scores` with so many decimals; BEIR's are 5."""
        return {
            family: {name: round(value, digits) for name, value in found.items()}
            for family, found in self.scores.items()
        }

    def __getitem__(self, name: str) -> float:
        """The mean called `name`, such as "NDCG@10"."""
        for found in self.scores.values():
            if name in found:
                return found[name]
        raise KeyError(name)


def evaluate_hits(
    qrels: Qrels,
    query_ids: Sequence[str],
    document_ids_QK: Sequence[Sequence[str | None]] | np.ndarray,
    scores_QK: np.ndarray,
    *,
    k_values: Sequence[int] = K_VALUES,
    ignore_identical_ids: bool = True,
    mrr_ties: str = "trec",
) -> Metrics:
    """Judge the hits of a search.

    Args:
        qrels: judgements by query and document; above 0 is relevant, graded for nDCG (gain = judgement).
        query_ids: [Q]; queries without judgements are passed over.
        document_ids_QK: ids of the hits, best first; None where there are fewer than K.
        scores_QK: their scores, -inf where there are fewer than K.
        k_values: the cuts.
        ignore_identical_ids: pass over a hit that has the query's own id, as BEIR does. Search for one hit more than
            the largest cut where that can be.
        mrr_ties: documents of equal score in the order of "trec" (as the other metrics have them) or "given" (BEIR's).

    Returns:
        Metrics over all queries with a judgement.

    Raises:
        ValueError: no judged query, arrays that do not fit together, a query twice, NaN as a score, or a bad cut.
    """
    scores_QK = np.asarray(scores_QK)
    cuts = _checked(query_ids, document_ids_QK, scores_QK, k_values, mrr_ties)
    judged = {query: dict(documents) for query, documents in qrels.items() if documents}
    if not judged:
        raise ValueError("there is no judged query")
    names = {family: [f"{_prefix(family)}{k}" for k in cuts] for family in _FAMILIES}
    place = {query: number for number, query in enumerate(judged)}
    values = {name: np.zeros(len(judged)) for found in names.values() for name in found}
    answered = np.zeros(len(judged), bool)
    for start in range(0, len(query_ids), _BLOCK_QUERIES):
        run: dict[str, dict[str, float]] = {}
        for row in range(start, min(start + _BLOCK_QUERIES, len(query_ids))):
            query = query_ids[row]
            if query in judged:
                excluded = query if ignore_identical_ids else None
                hits = _hits(document_ids_QK[row], scores_QK[row], excluded)
                if hits:
                    run[query] = hits
        for query, found in _judge_block(judged, run, cuts, mrr_ties).items():
            answered[place[query]] = True
            for name, value in found.items():
                values[name][place[query]] = value
    scores = {
        family: {name: math.fsum(values[name]) / len(judged) for name in found} for family, found in names.items()
    }
    columns = {"query_id": pa.array(list(judged), pa.string()), "answered": pa.array(answered)}
    return Metrics(scores, pa.table(columns | {name: pa.array(found) for name, found in values.items()}))


def _prefix(family: str) -> str:
    return "MRR@" if family == "MRR" else _TREC[family][1]


def _checked(
    query_ids: Sequence[str],
    document_ids_QK: Sequence[Sequence[str | None]] | np.ndarray,
    scores_QK: np.ndarray,
    k_values: Sequence[int],
    mrr_ties: str,
) -> list[int]:
    """The cuts, sorted, each once."""
    if mrr_ties not in ("trec", "given"):
        raise ValueError(f"mrr_ties is {mrr_ties!r}; it is 'trec' or 'given'")
    if scores_QK.ndim != 2 or not len(query_ids) == len(document_ids_QK) == len(scores_QK):
        raise ValueError(
            f"{len(query_ids)} query ids, {len(document_ids_QK)} rows of document ids and scores of shape "
            f"{scores_QK.shape} do not fit together"
        )
    if len(set(query_ids)) < len(query_ids):
        raise ValueError("a query id is there twice")
    if np.isnan(scores_QK).any():
        raise ValueError("a score is NaN")
    cuts = sorted(set(k_values))
    if not cuts or cuts[0] < 1:
        raise ValueError(f"k_values are {list(k_values)}; they are whole numbers from 1")
    return cuts


def _hits(document_ids_K: Sequence[str | None] | np.ndarray, scores_K: np.ndarray, excluded: str | None) -> dict:
    """Score by document, in the order given; of a document that is there twice the first."""
    if len(document_ids_K) != len(scores_K):
        raise ValueError(f"{len(document_ids_K)} document ids have {len(scores_K)} scores")
    hits: dict[str, float] = {}
    for document, score in zip(document_ids_K, scores_K.tolist(), strict=True):
        if document is not None and score != -math.inf and document != excluded:
            hits.setdefault(str(document), score)
    return hits


def _judge_block(
    qrels: Mapping[str, dict[str, int]], run: dict[str, dict[str, float]], cuts: list[int], mrr_ties: str
) -> dict[str, dict[str, float]]:
    """Metrics by query and name."""
    import pytrec_eval

    if not run:
        return {}
    listed = ",".join(map(str, cuts))
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: qrels[query] for query in run}, {f"{measure}.{listed}" for measure, _ in _TREC.values()}
    )
    found: dict[str, dict[str, float]] = {}
    for query, scores in evaluator.evaluate(run).items():
        found[query] = {f"{prefix}{k}": scores[f"{measure}_{k}"] for measure, prefix in _TREC.values() for k in cuts}
        rank = first_relevant(run[query], qrels[query], ties=mrr_ties)
        found[query] |= {f"MRR@{k}": 1 / rank if rank is not None and rank <= k else 0.0 for k in cuts}
    return found


def first_relevant(hits: Mapping[str, float], judged: Mapping[str, int], *, ties: str = "trec") -> int | None:
    """The rank, from 1, of the first hit that is judged relevant; None when no hit is."""
    if ties == "trec":
        order = sorted(hits, key=lambda document: (hits[document], document), reverse=True)
    else:
        order = sorted(hits, key=lambda document: -hits[document])
    return next((rank for rank, document in enumerate(order, 1) if judged.get(document, 0) > 0), None)
