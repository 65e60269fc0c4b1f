"""A training laid out before it begins: which batches, how many steps, and how a rank's share is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycurate.core.errors import ConfigError
from raycurate.training import optimise
from raycurate.training.batches.batches import Feed, TokenInputs
from raycurate.training.batches.order import OrderOptions, QuestionOrder, split_batch
from raycurate.training.batches.prepared import Prepared
from raycurate.training.options import TrainOptions


@dataclass(frozen=True)
class Plan:
    """What a rank does in a training.

    Attributes:
        feed: its batches. steps: optimiser steps in all. steps_per_epoch. warmup: steps.
        cached: the backward is GradCache's.
        chunk_questions, chunk_tokens: what GradCache's chunks hold at most; 0 for no bound.
    """

    feed: Feed
    steps: int
    steps_per_epoch: int
    warmup: int
    cached: bool
    chunk_questions: int
    chunk_tokens: int

    def chunk_rows(self, tokens: TokenInputs, per_question: int) -> int:
        """Rows of a chunk of `tokens`, of which a question has so many; 0: all at once."""
        if self.chunk_tokens:
            return max(1, self.chunk_tokens // tokens.input_ids.shape[1])
        return self.chunk_questions * per_question

    def identity(self) -> dict[str, Any]:
        """What decides which questions a step has: a state is of this training only if these are equal."""
        order = self.feed.order.options
        return {
            "questions": len(self.feed.order.lengths),
            "seed": order.seed,
            "global_batch_size": order.global_batch,
            "length_window": order.window,
            "drop_last": order.drop_last,
            "shuffle": order.shuffle,
            "by_corpus": len(self.feed.order.members) > 1,
        }


def plan_training(data: Prepared, options: TrainOptions, *, rank: int, ranks: int) -> Plan:
    """How `rank` of `ranks` trains on `data`.

    Raises:
        ConfigError: batch sizes that do not divide, too few questions, negatives that depend on the layout, a teacher
            whose vectors are not there.
    """
    if data.teacher_questions is None and any(part.kind == "embeddings" for part in options.distillation):
        raise ConfigError(
            "distillation from embeddings needs the teacher's vectors, and the data were prepared without a teacher",
            where=data.folder,
            fix="Name the teacher when preparing them (PrepareOptions.teacher)",
        )
    size = optimise.global_batch(options, questions=len(data), ranks=ranks)
    listed = options.loss == "listed"
    local = options.local_batch_size if listed else None
    split = split_batch(size, ranks=ranks, local_batch=local, uneven=options.elastic)
    cached = not listed and _needs_chunks(options, split.local, ranks)
    order = QuestionOrder(
        data.lengths,
        OrderOptions(
            seed=options.seed,
            global_batch=size,
            window=options.length_window if options.shuffle else 0,
            drop_last=options.drop_last,
            shuffle=options.shuffle,
        ),
        groups=data.corpus_of if options.by_corpus else None,
    )
    steps = len(order) * options.num_epochs
    steps = steps if options.max_steps is None else min(steps, options.max_steps)
    return Plan(
        feed=Feed(data, order, split, rank),
        steps=steps,
        steps_per_epoch=len(order),
        warmup=optimise.warmup(options, steps),
        cached=cached,
        chunk_questions=(options.local_batch_size or 0) if cached else 0,
        chunk_tokens=(options.chunk_tokens or 0) if cached else 0,
    )


def _needs_chunks(options: TrainOptions, share: int, ranks: int) -> bool:
    """Whether a rank's share of a batch, `share` questions, goes through GradCache.

    Raises:
        ConfigError: it would have to, and must not.
    """
    local = options.local_batch_size
    micro_steps = 1 if local is None else -(-share // local)
    if options.gradcache is False and micro_steps > 1:
        raise ConfigError(
            f"loss={options.loss} with {micro_steps} micro-steps of {local} questions and gradcache=false: plain "
            "accumulation would give a question only the negatives of its micro-step, so the loss would depend on how "
            "the batch is cut",
            fix=f"Set gradcache=true, or local_batch_size={share} (of {ranks} ranks each its whole share)",
        )
    return options.gradcache is True or bool(options.chunk_tokens) or micro_steps > 1
