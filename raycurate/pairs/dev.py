"""How the model and BM25 do on the validation questions, before anything is trained."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raycurate.core.observe import get_logger
from raycurate.data.training.training import TrainingData
from raycurate.pairs.mining import Ready, load_vectors
from raycurate.retrieval.metrics import evaluate_hits

log = get_logger(__name__)

_DEPTH = 10
_MOST_TEXTS = 500_000  # that BM25 indexes in one process


def dev_scores(data: TrainingData, ready: list[Ready]) -> dict[str, float]:
    """nDCG@10 of `base` (the first mining model) and `bm25` over all validation questions.

    BM25 is left out where the corpora are too large for one process.
    """
    found: dict[str, list[tuple[float, int]]] = {"base": [], "bm25": []}
    for part in ready:
        table = data.table.take(pa.array(part.at))
        found["base"].append((_ndcg(table, _dense(part)), len(table)))
        if len(part.corpus) <= _MOST_TEXTS:
            found["bm25"].append((_ndcg(table, _bm25(table, part)), len(table)))
        else:
            log.info("prep: %s documents are too many for BM25 in one process", f"{len(part.corpus):,}")
    return {
        name: round(sum(value * rows for value, rows in values) / sum(rows for _, rows in values), 5)
        for name, values in found.items()
        if len(values) == len(ready)
    }


def _dense(ready: Ready) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the corpus [Q, 10] and scores, of the exact search."""
    from raycurate.search import search

    rows, scores = [], []
    for path in ready.questions[0].vectors.paths:
        for _, hits in search(load_vectors(path), ready.documents[0].vectors, min(_DEPTH, len(ready.corpus))):
            rows.append(ready.order[hits.rows_QK])
            scores.append(hits.scores_QK)
    return np.concatenate(rows), np.concatenate(scores)


def _bm25(table: pa.Table, ready: Ready) -> tuple[np.ndarray, np.ndarray]:
    from raycurate.retrieval.bm25 import bm25_search

    k = min(_DEPTH, len(ready.corpus))
    return bm25_search(ready.corpus.texts.to_pylist(), table["question"].to_pylist(), k)


def _ndcg(table: pa.Table, found: tuple[np.ndarray, np.ndarray]) -> float:
    questions = table["question_id"].to_pylist()
    qrels = {
        question: {str(row): 1 for row in positives}
        for question, positives in zip(questions, table["pos"].to_pylist(), strict=True)
    }
    rows_QK, scores_QK = found
    names_QK = rows_QK.astype(str).astype(object)
    names_QK[rows_QK < 0] = None
    return evaluate_hits(qrels, questions, names_QK, scores_QK, k_values=[_DEPTH], ignore_identical_ids=False)[
        f"NDCG@{_DEPTH}"
    ]
