"""The whole loss of a recipe: contrastive, at each Matryoshka dimension, forwards and back, and distilled.

It takes the vectors and the keys of one rank's batch and gives one loss a question. With `cross_rank` it gathers the
passages of all ranks, gradients included, so every rank must call it at the same point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from raycurate.training.collectives import gather_vectors, row_counts, world
from raycurate.training.loss import losses
from raycurate.training.loss.losses import Columns, Vectors
from raycurate.training.loss.masks import Keys, gathered_columns, own_columns, reversed_columns
from raycurate.training.loss.options import Distillation, LossOptions
from raycurate.training.model.multi_vector import MultiVectors


@dataclass(frozen=True)
class Targets:
    """What a batch says about its questions and passages, beside their tokens.

    Attributes:
        keys: for the masks.
        real_Q: bool, False at questions that only fill a rank's batch: their loss is 0, and nobody's negatives.
        teacher_scores_QN: float32, NaN where there is none.
        teacher_queries_QD, teacher_passages_PD: a teacher's vectors of the same texts.
    """

    keys: Keys
    real_Q: Tensor | None = None
    teacher_scores_QN: Tensor | None = None
    teacher_queries_QD: Tensor | None = None
    teacher_passages_PD: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A recipe's loss; called with vectors and targets it gives loss_Q.

    Attributes:
        normalised: the model gives vectors of length one, so Matryoshka prefixes are scaled to it again.
    """

    options: LossOptions
    normalised: bool = True

    def __call__(
        self, queries: Vectors, passages: Vectors, targets: Targets, group: ProcessGroup | None = None
    ) -> Tensor:
        """loss_Q of this rank's questions, computed in float32 also where autocast is on.

        Args:
            passages: [Q * N, ...], row by row, each question's positive first.
            group: whose ranks share negatives and are summed over; None: all.
        """
        device = targets.keys.documents_P.device
        loss_Q = torch.zeros(targets.keys.questions, device=device)
        with torch.autocast(device.type, enabled=False):
            if self.options.contrastive_weight:
                loss_Q = loss_Q + self.options.contrastive_weight * self._contrastive(queries, passages, targets, group)
            for part in self.options.distillation:
                loss_Q = loss_Q + part.weight * self._distilled(part, queries, passages, targets)
        return loss_Q if targets.real_Q is None else torch.where(targets.real_Q, loss_Q, 0.0)

    def _contrastive(self, queries: Vectors, passages: Vectors, targets: Targets, group: ProcessGroup | None) -> Tensor:
        board = _Board.of(self.options, queries, passages, targets, group)
        dimensions = sorted(self.options.matryoshka.items(), reverse=True) or [(_width(queries), 1.0)]
        total_Q: Tensor | None = None
        for dimension, weight in dimensions:
            loss_Q = weight * self._one(board.at(dimension, normalised=self.normalised))
            total_Q = loss_Q if total_Q is None else total_Q + loss_Q
        assert total_Q is not None
        return total_Q

    def _one(self, board: _Board) -> Tensor:
        columns, t, rule = board.columns, self.options.temperature, self.options.false_negatives
        if self.options.loss == "listed":
            forbidden_QN = columns.forbidden_QP.gather(1, columns.own_QN())
            own_QN = losses.listed_scores(board.queries, board.passages)
            return losses.listed(own_QN, temperature=t, forbidden_QN=forbidden_QN, false_negatives=rule)
        forth_QP = losses.scores(board.queries, board.passages)
        forth_Q = losses.in_batch(forth_QP, columns, temperature=t, false_negatives=rule)
        if board.back is None:
            return forth_Q
        # scores of questions with passages, turned: MaxSim is not the same the other way round
        back_QG = losses.scores(board.all_queries, board.positives).T
        return (forth_Q + losses.in_batch(back_QG, board.back, temperature=t, false_negatives=rule)) / 2

    def _distilled(self, part: Distillation, queries: Vectors, passages: Vectors, targets: Targets) -> Tensor:
        if part.kind == "embeddings":
            teacher = targets.teacher_queries_QD, targets.teacher_passages_PD
            if teacher[0] is None or teacher[1] is None:
                raise ValueError("distillation from embeddings needs the teacher's vectors of questions and passages")
            if not (isinstance(queries, Tensor) and isinstance(passages, Tensor)):
                raise ValueError("distillation from embeddings needs one vector a text")
            return losses.embeddings_to_teacher(queries, passages, teacher[0], teacher[1])
        if targets.teacher_scores_QN is None:
            raise ValueError(f"distillation by {part.kind} needs the teacher's scores")
        own_QN = losses.listed_scores(queries, passages)
        if part.kind == "margin_mse":
            return losses.margin_mse(own_QN, targets.teacher_scores_QN, teacher_scale=part.teacher_scale)
        return losses.kl_to_teacher(
            own_QN,
            targets.teacher_scores_QN,
            temperature=self.options.temperature,
            teacher_temperature=part.teacher_temperature,
        )


@dataclass(frozen=True)
class _Board:
    """Rows and columns of a contrastive loss: gathered and masked once, then cut to one dimension after another."""

    queries: Vectors
    passages: Vectors
    all_queries: Vectors
    positives: Vectors
    columns: Columns
    back: Columns | None

    @classmethod
    def of(cls, options: LossOptions, queries: Vectors, passages: Vectors, targets: Targets, group: Any) -> _Board:
        keys = targets.keys
        gathered = options.loss == "cross_rank" and world(group)[1] > 1
        columns = gathered_columns(keys, group) if gathered else own_columns(keys)
        back = None
        if options.symmetric:
            back = reversed_columns(columns, gathered=gathered, real_Q=targets.real_Q, group=group)
        every_passage, every_query = passages, queries
        if gathered:
            counts = row_counts(keys.questions, keys.documents_P.device, group)
            every_passage = gather_vectors(passages, [n * keys.listed for n in counts], group)
            every_query = gather_vectors(queries, counts, group) if options.symmetric else queries
        return cls(queries, every_passage, every_query, _every(passages, keys.listed), columns, back)

    def at(self, dimension: int, *, normalised: bool) -> _Board:
        """The same with the first `dimension` components."""
        queries, passages, all_queries, positives = (
            losses.at_dimension(vectors, dimension, normalised=normalised)
            for vectors in (self.queries, self.passages, self.all_queries, self.positives)
        )
        return _Board(queries, passages, all_queries, positives, self.columns, self.back)


def _every(vectors: Vectors, step: int) -> Vectors:
    """Rows 0, step, 2 * step, ...: the positives."""
    if isinstance(vectors, Tensor):
        return vectors[::step]
    return MultiVectors(vectors.vectors_NTD[::step], vectors.mask_NT[::step])


def _width(vectors: Vectors) -> int:
    return (vectors if isinstance(vectors, Tensor) else vectors.vectors_NTD).shape[-1]
