"""Which columns must not count as negatives of a question.

A batch brings documents together by chance, and some that were drawn for one question are right answers to another.
A column is forbidden in a row if it is a known positive of the row's question anywhere in the training data, or the
same document as the row's positive, by id or by text. All of it is compared as 64-bit keys, so that columns gathered
from other ranks, whose texts are not here, are judged like a rank's own. The row's own positive is never
forbidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from raycurate.training.collectives import gather_rows, row_counts, world
from raycurate.training.loss.losses import Columns


@dataclass(frozen=True)
class Keys:
    """64-bit hashes (int64) of what a rank's questions and passages are.

    Attributes:
        documents_P: of (corpus, document id), for each passage; they lie row by row, each question's positive first.
        texts_P: of the passage's text.
        known_K: of all known positives of each question, as document keys, text keys or both; row q's are
            known_K[known_offsets_Q1[q] : known_offsets_Q1[q + 1]]. Questions of one text and corpus share theirs.
        known_offsets_Q1: int64 [Q + 1].
    """

    documents_P: Tensor
    texts_P: Tensor
    known_K: Tensor
    known_offsets_Q1: Tensor

    @property
    def questions(self) -> int:
        return len(self.known_offsets_Q1) - 1

    @property
    def listed(self) -> int:
        """Passages of a question."""
        if not self.questions or len(self.documents_P) % self.questions:
            raise ValueError(f"{len(self.documents_P)} passages are not the same number for {self.questions} questions")
        return len(self.documents_P) // self.questions


def own_columns(keys: Keys) -> Columns:
    """The columns are this rank's own passages."""
    first = torch.arange(0, len(keys.documents_P), keys.listed, device=keys.documents_P.device)
    forbidden_QP = forbidden_columns(keys, first, keys.documents_P, keys.texts_P)
    return Columns(first, forbidden_QP, keys.listed)


def gathered_columns(keys: Keys, group: ProcessGroup | None = None) -> Columns:
    """The columns are the passages of all ranks, one rank after the other, as `gather_vectors` puts them.

    Every rank must call it, with the same number of passages a question.
    """
    rank, ranks = world(group)
    if ranks == 1:
        return own_columns(keys)
    counts = row_counts(len(keys.documents_P), keys.documents_P.device, group)
    everywhere_P2 = gather_rows(torch.stack([keys.documents_P, keys.texts_P], 1), counts, group)
    first = sum(counts[:rank])
    positive_Q = torch.arange(first, first + counts[rank], keys.listed, device=keys.documents_P.device)
    forbidden_QP = forbidden_columns(keys, positive_Q, everywhere_P2[:, 0], everywhere_P2[:, 1])
    return Columns(positive_Q, forbidden_QP, keys.listed)


def forbidden_columns(keys: Keys, positive_Q: Tensor, documents_P: Tensor, texts_P: Tensor) -> Tensor:
    """bool [Q, P] over any columns.

    Args:
        keys: of the questions; only the known positives are used.
        positive_Q: the column of each question's positive.
        documents_P, texts_P: keys of the columns.
    """
    forbidden_QP = documents_P[positive_Q][:, None] == documents_P
    forbidden_QP |= texts_P[positive_Q][:, None] == texts_P
    for columns_P in (documents_P, texts_P):
        forbidden_QP |= _known(keys, columns_P)
    return forbidden_QP.scatter(1, positive_Q[:, None], False)


def _known(keys: Keys, columns_P: Tensor) -> Tensor:
    """bool [Q, P]: the column's key is among the row's known positives."""
    unique_U, place_P = columns_P.unique(return_inverse=True)
    rows_Q = torch.arange(keys.questions, device=columns_P.device)
    rows_K = rows_Q.repeat_interleave(keys.known_offsets_Q1.diff(), output_size=len(keys.known_K))
    found_K = torch.searchsorted(unique_U, keys.known_K.contiguous()).clamp(max=len(unique_U) - 1)
    # keys that are no column add 0, wherever they point: to pick out the others would wait for a GPU
    hits_QU = torch.zeros((keys.questions, len(unique_U)), dtype=torch.int32, device=columns_P.device)
    hits_QU.index_put_((rows_K, found_K), (unique_U[found_K] == keys.known_K).int(), accumulate=True)
    return hits_QU.bool()[:, place_P]


def reversed_columns(
    columns: Columns, *, gathered: bool, real_Q: Tensor | None = None, group: ProcessGroup | None = None
) -> Columns:
    """For the way back: rows are this rank's positives, columns the questions.

    A question is forbidden in a positive's row if that positive is forbidden in the question's row.

    Args:
        columns: of `gathered_columns` if `gathered` (then every rank must call this, and the columns are the questions
            of all ranks), else of `own_columns`.
        real_Q: bool, False at questions that are fillers, which are forbidden in every row but their own.
    """
    own_Q = columns.positive_Q // columns.listed
    forbidden_QG = columns.forbidden_QP[:, :: columns.listed]  # each group's first is its question's positive
    if real_Q is not None:
        forbidden_QG = (forbidden_QG | ~real_Q[:, None]).scatter(1, own_Q[:, None], False)
    forbidden_GG = gather_rows(forbidden_QG.contiguous(), group=group) if gathered else forbidden_QG
    return Columns(own_Q, forbidden_GG[:, own_Q].T.contiguous())
