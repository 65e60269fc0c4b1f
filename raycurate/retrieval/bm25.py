"""BM25 over the corpus: the score that a model has to beat before it is worth its price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenizer

K1, B = 0.9, 0.4
"""As in Anserini's BEIR baselines."""

_WORD = r"\w+"  # bm25s' own pattern leaves out words of one letter, which Lucene keeps


def english_tokenizer() -> Tokenizer:
    """Words in lower case without Lucene's English stop words, stemmed by Snowball's English stemmer.

    Words of other languages are stemmed alike in questions and documents, so equal words stay equal.
    """
    import Stemmer
    from bm25s.tokenization import Tokenizer

    return Tokenizer(splitter=_WORD, stopwords="english", stemmer=Stemmer.Stemmer("english"))


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
    tokenizer = english_tokenizer()
    # A text without words has no tokens: bm25s would give it an empty one, which all such texts share.
    corpus = tokenizer.tokenize(
        corpus_texts, update_vocab=True, return_as="tuple", allow_empty=False, show_progress=False
    )
    asked = tokenizer.tokenize(queries, update_vocab=False, allow_empty=False, show_progress=False)
    known = [place for place, words in enumerate(asked) if words]
    if not known:
        return rows_QK, scores_QK
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(corpus, show_progress=False)
    found, scores = index.retrieve([asked[p] for p in known], k=k, show_progress=False, n_threads=1)
    order = np.lexsort((found, -scores))
    found, scores = np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
    rows_QK[known] = np.where(scores > 0, found, -1)
    scores_QK[known] = np.where(scores > 0, scores, -np.inf)
    return rows_QK, scores_QK
