"""One optimiser step: forward and backward of its micro-steps, and what must be known before weights are moved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from raycurate.core.errors import RaycurateError
from raycurate.training.batches.batches import Batch, TokenInputs
from raycurate.training.collectives import sum_over_ranks, world
from raycurate.training.loss.gradcache import Role, cached_backward, plain_backward
from raycurate.training.loss.losses import Vectors, backward_scale, reduce
from raycurate.training.loss.objective import Objective, Targets
from raycurate.training.model.parallelize import Parallel
from raycurate.training.options import TrainOptions
from raycurate.training.plan import Plan

_SHOWN = 20  # question ids in a message


class NotANumberError(RaycurateError):
    """The loss or the gradients are no numbers any more; the weights are those before the step."""


@dataclass(frozen=True)
class Totals:
    """Of a step, over all ranks and micro-steps. loss: the mean over its questions. tokens: real ones, of questions and
    passages."""

    loss: float
    questions: int
    tokens: int


@dataclass
class _Held:
    """Of one micro-step, for messages: which questions have a loss or a vector that is no number."""

    question_ids: list[str]
    sound_Q: Tensor
    finite_Q: Tensor


@dataclass
class Stepper:
    """Runs micro-steps, whose gradients pile up in the parameters, and adds up what they say."""

    parallel: Parallel
    objective: Objective
    options: TrainOptions
    plan: Plan
    _held: list[_Held] = field(default_factory=list)
    _sums: Tensor | None = None

    def micro_step(self, batch: Batch) -> None:
        """Forward and backward of a batch that is on the device; gradients come together as the options say."""
        model = self.parallel.model
        synchronise = batch.place.last or self.options.gradient_sync == "each"
        passages = len(batch.passages) // len(batch)
        roles = [self._role("query", batch.queries, 1), self._role("document", batch.passages, passages)]
        run = cached_backward if self.plan.cached else plain_backward
        run(roles, lambda q, p: self._loss(batch, q, p), model, synchronise=synchronise)

    def _role(self, name: str, tokens: TokenInputs, per_question: int) -> Role:
        def encode(some: TokenInputs) -> Vectors:
            with self.parallel.arithmetic():
                return self.parallel.model(some, name)

        rows = self.plan.chunk_rows(tokens, per_question) if self.plan.cached else 0
        return Role(encode, tokens, rows, frozen=name in self._frozen)

    @property
    def _frozen(self) -> set[str]:
        encoder = self.parallel.encoder
        roles = ("query", "document")
        return {role for role in roles if not any(p.requires_grad for p in encoder.tower(role).parameters())}

    def _loss(self, batch: Batch, queries: Vectors, passages: Vectors) -> Tensor:
        teacher = (batch.teacher_QN, batch.teacher_queries_QD, batch.teacher_passages_PD)
        loss_Q = self.objective(queries, passages, Targets(batch.keys, batch.real_Q, *teacher))
        total = reduce(loss_Q, batch.real_Q).total
        with torch.no_grad():
            self._note(batch, loss_Q, queries, passages)
        return total * backward_scale(batch.place.questions, world()[1])

    def _note(self, batch: Batch, loss_Q: Tensor, queries: Vectors, passages: Vectors) -> None:
        tokens = batch.queries.attention_mask.sum() + batch.passages.attention_mask.sum()
        counts = torch.stack([loss_Q.sum().double(), batch.real_Q.sum().double(), tokens.double()])
        self._sums = counts if self._sums is None else self._sums + counts
        sound_Q = _finite_rows(queries) & _finite_rows(passages).view(len(batch), -1).all(1)
        self._held.append(_Held(batch.question_ids, sound_Q, loss_Q.isfinite()))

    def totals(self) -> Totals:
        """Of the micro-steps since `clear`; every rank must call it."""
        assert self._sums is not None, "no micro-step was run"
        loss, questions, tokens = sum_over_ranks(self._sums).tolist()
        return Totals(loss / questions, int(questions), int(tokens))

    def clear(self) -> None:
        """Begin the next step."""
        self._held, self._sums = [], None

    def failure(self, totals: Totals, norm: float | None, where: str) -> NotANumberError:
        """The error of a step whose loss or gradients are not finite, with its questions; every rank must call it.

        Named are the questions with a text whose vector is no number; if there is none, those whose loss is none; if
        there is none either, all of the step.
        """
        kinds = [
            [i for held in self._held for i, ok in zip(held.question_ids, flags(held).tolist(), strict=True) if not ok]
            for flags in (lambda h: h.sound_Q, lambda h: h.finite_Q, lambda h: torch.zeros_like(h.finite_Q))
        ]
        everywhere = [kinds] if world()[1] == 1 else [[]] * world()[1]
        if world()[1] > 1:
            dist.all_gather_object(everywhere, kinds)
        joined = [list(dict.fromkeys(i for rank in everywhere for i in rank[kind])) for kind in range(len(kinds))]
        named = next(ids for ids in joined if ids)
        what = f"the loss is {totals.loss}" if norm is None else f"the gradients' length is {norm}"
        shown = ", ".join(named[:_SHOWN]) + (", ..." if len(named) > _SHOWN else "")
        return NotANumberError(
            f"{what}, because of {len(named)} of {totals.questions} questions: {shown}",
            where=where,
            fix="The weights before this step were saved. Look at the texts of these questions and at the loss before; "
            "a lower learning_rate, a longer warm-up, a higher temperature or precision=float32 may help",
        )


def _finite_rows(vectors: Vectors) -> Tensor:
    """bool [n]."""
    values = vectors if isinstance(vectors, Tensor) else vectors.vectors_NTD
    return values.isfinite().flatten(1).all(1)
