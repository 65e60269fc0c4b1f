"""The loss functions: pure functions of tensors, one value a question.

Every loss is a vector loss_Q, so losses add up, a NaN has a row, and the mean over ranks and accumulated micro-steps
is exact whatever their sizes: `reduce` gives a sum and a count, and `backward_scale` what to multiply the sum by.
Scores come first (`scores` for every column, `listed_scores` for a question's own passages) and losses are functions
of scores.

Shape suffixes: Q questions of this rank, P passage columns (of this rank or gathered from all), N passages listed
for a question (its positive first), M its negatives, D dimensions, S and T tokens of a question and of a passage.

The contrastive losses are InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with columns masked out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from raycurate.training.loss.options import FalseNegatives
from raycurate.training.model.multi_vector import MultiVectors, maxsim

Vectors: TypeAlias = Tensor | MultiVectors  # one vector a text, [n, D], or one a token


@dataclass(frozen=True)
class Columns:
    """What the columns of a row are.

    Attributes:
        positive_Q: int64, the column of each question's positive.
        forbidden_QP: bool, columns that must not count as negatives of the row; never the row's own positive.
        listed: columns positive_Q ... positive_Q + listed - 1 are the row's own passages, positive first.
    """

    positive_Q: Tensor
    forbidden_QP: Tensor
    listed: int = 1

    def own_QN(self) -> Tensor:
        """int64 [Q, listed], the columns of each question's own passages."""
        return self.positive_Q[:, None] + torch.arange(self.listed, device=self.positive_Q.device)


class LossSum(NamedTuple):
    """What adds up over ranks and micro-steps: the sum of the losses (float), and of how many questions (int64)."""

    total: Tensor
    questions: Tensor


def reduce(loss_Q: Tensor, real_Q: Tensor | None = None) -> LossSum:
    """The sum and the count of losses by question.

    Args:
        real_Q: bool, False at fillers, which do not count.
    """
    real_Q = torch.ones_like(loss_Q, dtype=torch.bool) if real_Q is None else real_Q
    return LossSum(torch.where(real_Q, loss_Q, 0.0).sum(), real_Q.sum())


def backward_scale(questions: int, ranks: int) -> float:
    """What to multiply a rank's loss sum by before backward, so that the gradients are those of the mean over all.

    DDP and FSDP2 average the gradients over the ranks. Each rank's sum is therefore multiplied by the ranks and
    divided by the questions of the whole optimiser step, over all ranks and accumulated micro-steps.
    """
    return ranks / questions


# Scores


def scores(queries: Vectors, passages: Vectors) -> Tensor:
    """float32 [Q, P]: the dot product of every question with every passage; MaxSim for multi-vectors."""
    if isinstance(queries, Tensor) and isinstance(passages, Tensor):
        return queries.float() @ passages.float().T
    return maxsim(*_both_multi(queries, passages))


def listed_scores(queries: Vectors, passages: Vectors) -> Tensor:
    """float32 [Q, N]: as `scores`, each question with its own passages, which lie row by row in [Q * N, ...]."""
    if isinstance(queries, Tensor) and isinstance(passages, Tensor):
        return torch.einsum("qd,qnd->qn", queries.float(), _by_question(passages.float(), len(queries)))
    (values_QSD, real_QS), (values_PTD, real_PT) = _both_multi(queries, passages)
    values_QNTD, real_QNT = (_by_question(part, len(values_QSD)) for part in (values_PTD, real_PT))
    every_QNST = torch.einsum("qsd,qntd->qnst", values_QSD, values_QNTD)
    best_QNS = every_QNST.masked_fill(~real_QNT[:, :, None], -math.inf).max(-1).values
    return best_QNS.masked_fill(~real_QS[:, None], 0).sum(-1)


def _both_multi(queries: Vectors, passages: Vectors) -> tuple[MultiVectors, MultiVectors]:
    if isinstance(queries, Tensor) or isinstance(passages, Tensor):
        raise ValueError("questions and passages must both have one vector a text, or both one a token")
    return queries, passages


def _by_question(rows: Tensor, questions: int) -> Tensor:
    """[Q * N, ...] as [Q, N, ...]."""
    if not questions or len(rows) % questions:
        raise ValueError(f"{len(rows)} passages are not the same number for each of {questions} questions")
    return rows.unflatten(0, (questions, -1))


def at_dimension(vectors: Vectors, dimension: int, *, normalised: bool) -> Vectors:
    """The first `dimension` components, scaled to length one again where the model's vectors are.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147) sums the loss over such prefixes.
    """
    if not isinstance(vectors, Tensor):
        cut = at_dimension(vectors.vectors_NTD, dimension, normalised=normalised)
        assert isinstance(cut, Tensor)  # as what it was given
        return MultiVectors(cut, vectors.mask_NT)
    if not 0 < dimension <= vectors.shape[-1]:
        raise ValueError(f"vectors have {vectors.shape[-1]} dimensions, so no prefix of {dimension}")
    if dimension == vectors.shape[-1]:
        return vectors
    prefix = vectors[..., :dimension]
    return F.normalize(prefix, dim=-1) if normalised else prefix


# Contrastive losses


def in_batch(
    scores_QP: Tensor, columns: Columns, *, temperature: float, false_negatives: FalseNegatives | None = None
) -> Tensor:
    """loss_Q: each question's positive against all columns that are not masked, -log softmax of scores / temperature.

    A row of which every negative is masked has loss 0 and no gradient.
    """
    masked_QP = columns.forbidden_QP
    if false_negatives is not None:
        masked_QP = masked_QP | false_negative_columns(scores_QP, columns, false_negatives)
    logits_QP = (scores_QP / temperature).masked_fill(masked_QP, -math.inf)
    return F.cross_entropy(logits_QP, columns.positive_Q, reduction="none")


def listed(
    scores_QN: Tensor,
    *,
    temperature: float,
    forbidden_QN: Tensor | None = None,
    false_negatives: FalseNegatives | None = None,
) -> Tensor:
    """loss_Q: each question's positive (column 0) against its own listed negatives.

    Args:
        forbidden_QN: bool, listed negatives that are none (known positives, copies of the positive); column 0 is False.
    """
    forbidden_QN = torch.zeros_like(scores_QN, dtype=torch.bool) if forbidden_QN is None else forbidden_QN
    positive_Q = torch.zeros(len(scores_QN), dtype=torch.int64, device=scores_QN.device)
    columns = Columns(positive_Q, forbidden_QN, scores_QN.shape[1])
    return in_batch(scores_QN, columns, temperature=temperature, false_negatives=false_negatives)


@torch.no_grad()
def false_negative_columns(scores_QP: Tensor, columns: Columns, rule: FalseNegatives) -> Tensor:
    """bool [Q, P]: columns above the bound that the row's positive sets; never the positive itself."""
    positive_Q1 = scores_QP.gather(1, columns.positive_Q[:, None])
    if rule.kind == "perc":
        bound_Q1 = positive_Q1 - (1 - rule.margin) * positive_Q1.abs()
    elif rule.kind == "abs":
        bound_Q1 = positive_Q1 - rule.margin
    else:
        raise ValueError(f"no margin of kind {rule.kind!r}: perc or abs")
    spared_QN = columns.positive_Q[:, None] if rule.listed_too else columns.own_QN()
    return (scores_QP > bound_Q1).scatter(1, spared_QN, False)


# Distillation


def kl_to_teacher(
    scores_QN: Tensor, teacher_QN: Tensor, *, temperature: float, teacher_temperature: float = 1.0
) -> Tensor:
    """loss_Q: Kullback-Leibler divergence KL(teacher || student) over a question's own passages.

    Both are softmaxes, of scores / temperature each with its own (Hinton et al. 2015, arXiv:1503.02531, without its
    factor of T squared: the weight of this loss is an option). A passage without a teacher score (NaN) takes no
    part; a question with fewer than two such scores has loss 0.
    """
    there_QN = ~teacher_QN.isnan()
    there_QN &= there_QN.sum(1, keepdim=True) >= 2
    # a row left out whole keeps its columns, as there is no softmax of none
    left_out_QN = ~there_QN & there_QN.any(1, keepdim=True)
    student_QN = (scores_QN / temperature).masked_fill(left_out_QN, -math.inf).log_softmax(1)
    teacher_QN = torch.where(there_QN, teacher_QN.float() / teacher_temperature, 0.0)
    wanted_QN = teacher_QN.masked_fill(left_out_QN, -math.inf).log_softmax(1)
    # chosen before they meet: 0 * (-inf - -inf) would be NaN, and so would its gradient
    ratio_QN = torch.where(there_QN, wanted_QN, 0.0) - torch.where(there_QN, student_QN, 0.0)
    return (wanted_QN.exp() * ratio_QN).sum(1)


def margin_mse(scores_QN: Tensor, teacher_QN: Tensor, *, teacher_scale: float = 1.0) -> Tensor:
    """loss_Q: squared error of positive-minus-negative margins, mean over the negatives.

    Hofstaetter et al. 2020, arXiv:2010.02666. Margins are of the scores themselves, no temperature; where the teacher's
    scores have another range (logits against cosines), `teacher_scale` brings them to the student's. A negative
    without a teacher score (NaN) takes no part; a question without any, or without its positive's, has loss 0.
    """
    if scores_QN.shape[1] < 2:
        raise ValueError("margins need at least one negative for each question")
    student_QM = scores_QN[:, :1] - scores_QN[:, 1:]
    wanted_QM = (teacher_QN[:, :1] - teacher_QN[:, 1:]).float() * teacher_scale
    there_QM = ~wanted_QM.isnan()
    errors_QM = (student_QM - torch.where(there_QM, wanted_QM, 0.0)) ** 2
    return torch.where(there_QM, errors_QM, 0.0).sum(1) / there_QM.sum(1).clamp(min=1)


def cosine_to_teacher(vectors_nD: Tensor, teacher_nD: Tensor) -> Tensor:
    """float32 [n]: 1 - cosine of each vector with the teacher's of the same text (zero is a perfect copy)."""
    if vectors_nD.shape != teacher_nD.shape:
        raise ValueError(f"vectors are {tuple(vectors_nD.shape)}, the teacher's {tuple(teacher_nD.shape)}")
    return 1 - F.cosine_similarity(vectors_nD.float(), teacher_nD.float(), dim=-1)


def embeddings_to_teacher(
    queries_QD: Tensor, passages_PD: Tensor, teacher_queries_QD: Tensor, teacher_passages_PD: Tensor
) -> Tensor:
    """loss_Q: mean of `cosine_to_teacher` over a question and its own passages, which lie row by row."""
    of_query_Q1 = cosine_to_teacher(queries_QD, teacher_queries_QD)[:, None]
    of_passages_QN = _by_question(cosine_to_teacher(passages_PD, teacher_passages_PD), len(queries_QD))
    return torch.cat([of_query_Q1, of_passages_QN], 1).mean(1)
