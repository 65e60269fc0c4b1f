"""How much of the test set a model has seen in training: the same question, or an answer that is a copy or a
near-duplicate of one that it is tested with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycurate.pairs.pairs import Query, normalised


@dataclass(frozen=True)
class Leak:
    """Test questions that were trained on in some form. `near` is None where near-duplicates are not known."""

    queries: int
    same_question: int
    same_document: int
    near: int | None
    any: int

    @property
    def share(self) -> float:
        return self.any / self.queries if self.queries else 0.0

    def __str__(self) -> str:
        near = "near-duplicates not known (set groups)" if self.near is None else f"{self.near:,} near-duplicate answer"
        return (
            f"{self.share:.2%} of {self.queries:,} test questions were trained on in some form: {self.same_question:,} "
            f"same question, {self.same_document:,} same answer, {near}"
        )


def measure_leak(train: Sequence[Query], test: Sequence[Query], copies: np.ndarray, near: np.ndarray | None) -> Leak:
    """What `train` gives away of `test`.

    Args:
        copies, near: int64 [documents]: labels of documents that are copies, near-duplicates; near-duplicates
            include copies, None where they are not known.
    """
    asked = {normalised(query.text) for query in train}
    same_question = [normalised(query.text) in asked for query in test]
    same_document = _shared(test, train, copies)
    near_document = same_document if near is None else _shared(test, train, near)
    hit = [any(flags) for flags in zip(same_question, same_document, near_document, strict=True)]
    return Leak(
        queries=len(test),
        same_question=sum(same_question),
        same_document=sum(same_document),
        near=None if near is None else sum(near_document),
        any=sum(hit),
    )


def leaking(queries: Sequence[Query], others: Sequence[Query], labels: np.ndarray) -> list[bool]:
    """Which of `queries` share a question or an answer's label with one of `others`."""
    asked = {normalised(query.text) for query in others}
    return [
        shared or normalised(query.text) in asked
        for query, shared in zip(queries, _shared(queries, others, labels), strict=True)
    ]


def _shared(queries: Sequence[Query], others: Sequence[Query], labels: np.ndarray) -> list[bool]:
    known = {int(labels[row]) for query in others for row in query.positives}
    return [any(int(labels[row]) in known for row in query.positives) for query in queries]
