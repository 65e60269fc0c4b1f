"""Keys: 64-bit names of questions and documents by which a batch knows what must not be a negative.

Another question's passage is a good negative unless it answers this question too. Whether it does is looked up among
all positives that the training set gives to the same question (same corpus, same text, in whatever row it
stands), and a document counts as the same by its id within its corpus or by its text. Texts are the same that differ in
case or white space only, as in mining (data/documents/same_text.py). All three are hashes, so
that masks need neither strings nor the training set, also for the columns of other ranks: two different
things share a key with probability 2^-64 a pair, and then a negative is left out, no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raycurate.core.hashing import hash_column, hash_strings
from raycurate.data.corpora.corpus import Corpus, gather
from raycurate.data.documents.same_text import folded_column

_CHUNK = 512  # texts hashed at once; that takes 40 bytes a byte of text
# What a key is about goes into it, so that an id and a text that are spelled alike are two keys.
_DOCUMENT, _TEXT, _QUESTION = (np.uint64(n) for n in (0xD0C, 0x7E87, 0x9E5))


def question_keys(corpora: Sequence[Corpus], corpus_of: np.ndarray, questions: pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: of (corpus id, question text).

    Args:
        corpus_of: int [n], the place of each question's corpus in `corpora`.
    """
    return _key(hash_column(folded_column(questions)), _corpus_salts(corpora)[corpus_of], _QUESTION)


def document_keys(corpora: Sequence[Corpus], corpus_of: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [n]: of (corpus id, document id), for `rows` of the corpora `corpus_of`."""
    salts = _corpus_salts(corpora)
    hashes = np.empty(len(rows), np.uint64)
    for place, mine, chunk in _chunks(corpora, corpus_of, rows):
        hashes[mine] = hash_strings(gather(corpora[place].ids, chunk))
    return _key(hashes, salts[corpus_of], _DOCUMENT)


def text_keys(corpora: Sequence[Corpus], corpus_of: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [n]: of the text alone, so that copies under other ids and in other corpora have the same key."""
    hashes = np.empty(len(rows), np.uint64)
    for place, mine, chunk in _chunks(corpora, corpus_of, rows):
        texts = pa.chunked_array([gather(corpora[place].texts, chunk)])
        hashes[mine] = hash_column(folded_column(texts))
    return _key(hashes, np.zeros(len(rows), np.uint64), _TEXT)


@dataclass(frozen=True)
class KnownPositives:
    """For each row of a training table, the keys of every positive of its question, by id and by text.

    Compressed sparse rows over distinct questions: row i's keys are keys[offsets[g]:offsets[g + 1]] with g = group[i],
    rising. group: int64 [n]; offsets: int64 [groups + 1]; keys: int64 [total].
    """

    group: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(
        cls, questions: np.ndarray, pos_offsets: np.ndarray, documents: np.ndarray, texts: np.ndarray
    ) -> KnownPositives:
        """Unite the positives of equal questions.

        Args:
            questions: int64 [n], `question_keys`.
            pos_offsets: int64 [n + 1]: row i has the positives pos_offsets[i] to pos_offsets[i + 1].
            documents, texts: int64 [total], the keys of these positives.
        """
        distinct, group = np.unique(questions, return_inverse=True)
        owner = np.repeat(group, np.diff(pos_offsets))
        owners, keys = np.concatenate([owner, owner]), np.concatenate([documents, texts])
        order = np.lexsort((keys, owners))
        owners, keys = owners[order], keys[order]
        fresh = np.ones(len(keys), bool)
        fresh[1:] = (owners[1:] != owners[:-1]) | (keys[1:] != keys[:-1])
        counts = np.bincount(owners[fresh], minlength=len(distinct))
        return cls(group.astype(np.int64), offsets_of(counts), keys[fresh])

    def __len__(self) -> int:
        return len(self.group)

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [len(rows) + 1], keys int64 [total]) of these rows of the table, in their order."""
        groups = self.group[rows]
        starts, counts = self.offsets[groups], self.offsets[groups + 1] - self.offsets[groups]
        return offsets_of(counts), self.keys[spread(starts, counts)]


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: where each of n runs of `counts` members begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: the numbers starts[i], starts[i] + 1, ... (counts[i] of them) for each i, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(np.asarray(starts) - (ends - counts), counts)


def _chunks(
    corpora: Sequence[Corpus], corpus_of: np.ndarray, rows: np.ndarray
) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
    """(corpus, positions, rows) in pieces small enough to hash at once."""
    for place in range(len(corpora)):
        mine = np.flatnonzero(corpus_of == place)
        for first in range(0, len(mine), _CHUNK):
            piece = mine[first : first + _CHUNK]
            yield place, piece, rows[piece]


def _corpus_salts(corpora: Sequence[Corpus]) -> np.ndarray:
    return hash_strings(pa.array([c.corpus_id for c in corpora], pa.string()))


def _key(hashes: np.ndarray, salts: np.ndarray, kind: np.uint64) -> np.ndarray:
    """int64 (what torch can hold): the three mixed, so that equal hashes under two salts are two keys."""
    with np.errstate(over="ignore"):
        mixed = (hashes ^ (salts + kind) * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed ^ (mixed >> np.uint64(29))).view(np.int64)
