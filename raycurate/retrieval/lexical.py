"""BM25 as a system beside the models, and rankings fused: the floor, and what both kinds of search find together."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from raycurate.data.corpora.beir import BeirData
from raycurate.retrieval.bm25 import K1, B, bm25_search
from raycurate.retrieval.retrieve import Retrieved, names_of, searchable

FUSION_CONSTANT = 60
"""k of reciprocal rank fusion, as in Cormack, Clarke and Buettcher (2009)."""

_TITLE_AND_TEXT = "{title} {text}"


def retrieve_bm25(data: BeirData, depth: int) -> Retrieved:
    """The `depth` best documents of each question by BM25 over title and text."""
    ids, texts = searchable(data.corpus, _TITLE_AND_TEXT)
    started = time.monotonic()
    questions = data.queries["text"].to_pylist()
    rows_QK, scores_QK = bm25_search(texts.to_pylist(), questions, min(depth, len(ids)))
    about = {"k1": K1, "b": B, "search_seconds": round(time.monotonic() - started, 2)}
    return Retrieved(data.queries["_id"].to_pylist(), names_of(ids, rows_QK), scores_QK, about)


def fuse(runs: Sequence[Retrieved], depth: int) -> Retrieved:
    """Reciprocal rank fusion: a document's score is the sum over runs of 1 / (60 + its rank there).

    Ranks are those of the metrics: by score, equal ones by the larger id. All runs answer the same questions in one
    order.

    Raises:
        ValueError: runs of other questions.
    """
    query_ids = runs[0].query_ids
    if any(run.query_ids != query_ids for run in runs):
        raise ValueError("runs of different questions cannot be fused")
    names_QK = np.full((len(query_ids), depth), None, object)
    scores_QK = np.full((len(query_ids), depth), -np.inf, np.float32)
    for row in range(len(query_ids)):
        fused: dict[str, float] = {}
        for run in runs:
            for rank, name in enumerate(ranked(run.document_ids_QK[row], run.scores_QK[row]), 1):
                fused[name] = fused.get(name, 0.0) + 1 / (FUSION_CONSTANT + rank)
        best = sorted(fused.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:depth]
        for place, (name, score) in enumerate(best):
            names_QK[row, place], scores_QK[row, place] = name, score
    return Retrieved(query_ids, names_QK, scores_QK, {"fusion_constant": FUSION_CONSTANT})


def ranked(names_K: np.ndarray, scores_K: np.ndarray) -> list[str]:
    """The ids of one question's hits in trec_eval's order."""
    hits = [(float(s), str(n)) for n, s in zip(names_K, scores_K, strict=True) if n is not None and s != -np.inf]
    return [name for _, name in sorted(hits, reverse=True)]
