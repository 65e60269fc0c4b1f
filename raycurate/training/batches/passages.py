"""Which passages a question is trained with: one positive, then negatives as the file lists them.

The first positive, or the next one each epoch if asked; negatives in file order, from the first again where there are
too few. Only documents that can come up get a place here, numbered over all corpora, so that what
is tokenized and kept is what training reads and not the whole corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.errors import InputError
from raycurate.data.training.training import TrainingData
from raycurate.training.batches.known_positives import offsets_of, spread
from raycurate.training.batches.options import PassageOptions

_NAMED = 5


@dataclass(frozen=True)
class DocumentLists:
    """One list of documents a question: question i has the members offsets[i] to offsets[i + 1].

    offsets: int64 [n + 1]; members: int64 [total]; scores: float32 [total], NaN where the file gives none.
    """

    offsets: np.ndarray
    members: np.ndarray
    scores: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64 [n]: members of each list."""
        return np.diff(self.offsets)

    def counts_of(self, questions: np.ndarray) -> np.ndarray:
        """`counts` of some, without those of all."""
        return self.offsets[questions + 1] - self.offsets[questions]

    @classmethod
    def of(cls, members: pa.ChunkedArray, scores: pa.ChunkedArray) -> DocumentLists:
        """From two list columns of a training table; a null list of scores is a NaN for each document."""
        counts = _lengths(members)
        offsets = offsets_of(counts)
        found = np.full(offsets[-1], np.nan, np.float32)
        scored = _lengths(scores) == counts
        # a list of another length cannot be told which document is which: all its scores are unknown
        kept = spread(offsets[:-1][scored], counts[scored])
        given = scores.filter(pa.array(scored))
        found[kept] = pc.list_flatten(given).to_numpy(zero_copy_only=False) if len(kept) else []
        return cls(offsets, pc.list_flatten(members).to_numpy().astype(np.int64), found)

    def first(self, most: int) -> DocumentLists:
        """At most `most` members of each list."""
        counts = np.minimum(self.counts, most)
        kept = spread(self.offsets[:-1], counts)
        return DocumentLists(offsets_of(counts), self.members[kept], self.scores[kept])


@dataclass(frozen=True)
class Passages:
    """The documents that training can meet, and each question's lists of them.

    corpus_of, row_of: int32 and int64 [documents], where each is; positives and negatives hold numbers of documents.
    """

    options: PassageOptions
    corpus_of: np.ndarray
    row_of: np.ndarray
    positives: DocumentLists
    negatives: DocumentLists

    def __len__(self) -> int:
        """Questions."""
        return len(self.positives.offsets) - 1

    def pick(self, questions: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The passages of `questions` in `epoch`.

        Returns:
            int64 [Q, n_passages] documents, the positive first, and their teacher scores float32 of the same shape;
            None unless they were asked for.
        """
        pos, neg = self.positives, self.negatives
        turn = epoch % pos.counts_of(questions) if self.options.cycle_positives else 0
        first = (pos.offsets[questions] + turn)[:, None]
        counts = np.maximum(neg.counts_of(questions), 1)  # 0 only where no negative is wanted
        slots = np.arange(self.options.n_passages - 1)[None, :] % counts[:, None]
        rest = neg.offsets[questions][:, None] + slots
        documents = np.concatenate([pos.members[first], neg.members[rest]], axis=1)
        if not self.options.teacher_scores:
            return documents, None
        return documents, np.concatenate([pos.scores[first], neg.scores[rest]], axis=1)


def choose_passages(data: TrainingData, options: PassageOptions) -> Passages:
    """The passages of every question.

    Raises:
        InputError: questions without a positive, without negatives when n_passages > 1, or without the teacher's
            scores when those are asked for; the first of them are named.
    """
    positives = DocumentLists.of(data.table["pos"], data.table["pos_score"])
    negatives = DocumentLists.of(data.table["neg"], data.table["neg_score"])
    _refuse(data, positives.counts == 0, "no positive document", "Remove them or give them one")
    if options.n_passages > 1:
        none = "Mine negatives first (`raycurate prep`), remove these questions, or set n_passages=1"
        _refuse(data, negatives.counts == 0, f"no negative document, and n_passages is {options.n_passages}", none)
    positives = positives if options.cycle_positives else positives.first(1)
    negatives = negatives.first(options.n_passages - 1)
    if options.teacher_scores:
        unscored = np.zeros(len(data), bool)
        for lists in (positives, negatives):
            unscored[np.repeat(np.arange(len(data)), lists.counts)[~np.isfinite(lists.scores)]] = True
        _refuse(data, unscored, "documents without a score", "Score them with the teacher (`raycurate prep`)")
    return _numbered(data, options, positives, negatives)


def _numbered(
    data: TrainingData, options: PassageOptions, positives: DocumentLists, negatives: DocumentLists
) -> Passages:
    """Row numbers of the corpora become numbers of the documents that are used."""
    bases = offsets_of(np.array([len(c) for c in data.corpora], np.int64))
    base = bases[data.table["corpus"].to_numpy()]
    places = np.concatenate([np.repeat(base, lists.counts) + lists.members for lists in (positives, negatives)])
    used, numbers = np.unique(places, return_inverse=True)
    corpus_of = np.searchsorted(bases, used, side="right") - 1
    split = len(positives.members)
    return Passages(
        options,
        corpus_of.astype(np.int32),
        used - bases[corpus_of],
        replace(positives, members=numbers[:split]),
        replace(negatives, members=numbers[split:]),
    )


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: members of each list, 0 for a null."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _refuse(data: TrainingData, bad: np.ndarray, what: str, fix: str) -> None:
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    shown = data.table.take(pa.array(rows[:_NAMED]))
    named = [f"{q!r} ({o})" for q, o in zip(shown["question_id"].to_pylist(), shown["origin"].to_pylist(), strict=True)]
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    raise InputError(f"{len(rows):,} of {len(data):,} questions have {what}: {', '.join(named)}{more}", fix=fix)
