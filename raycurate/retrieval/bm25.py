"""BM25 over the corpus: the score that a model has to beat before it is worth its price."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

K1, B = 0.9, 0.4
"""As in Anserini's BEIR baselines."""

_WORD = re.compile(r"\w+")
_ENGLISH = """a an and are as at be but by for if in into is it no not of on or such that the their then there these
they this to was will with"""  # Lucene's stop words
_STOP_WORDS = frozenset(_ENGLISH.split())


def tokens(text: str) -> list[str]:
    """Words in lower case as Lucene's English analyser has them before stemming; there is none here."""
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]


def bm25_search(corpus_texts: Sequence[str], queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best documents of each query by BM25 (k1 0.9, b 0.4, Lucene's variant).

    Returns:
        rows int64 [Q, k], best first, equal scores by the lower row, -1 where no more documents share a word with the
        query; scores float32 [Q, k], there -inf.
    """
    import bm25s

    k = min(k, len(corpus_texts))
    rows_QK = np.full((len(queries), k), -1, np.int64)
    scores_QK = np.full((len(queries), k), -np.inf, np.float32)
    vocabulary: dict[str, int] = {}
    corpus = [[vocabulary.setdefault(t, len(vocabulary)) for t in tokens(text)] for text in corpus_texts]
    asked = [[vocabulary[t] for t in tokens(text) if t in vocabulary] for text in queries]
    known = [place for place, words in enumerate(asked) if words]
    if not known:
        return rows_QK, scores_QK
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((corpus, vocabulary), show_progress=False)
    found, scores = index.retrieve([asked[p] for p in known], k=k, show_progress=False, n_threads=1)
    order = np.lexsort((found, -scores))
    found, scores = np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
    rows_QK[known] = np.where(scores > 0, found, -1)
    scores_QK[known] = np.where(scores > 0, scores, -np.inf)
    return rows_QK, scores_QK
