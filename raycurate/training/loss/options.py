"""What a user can say about the loss. It imports no torch, as the help of the command line reads it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from raycurate.core.config import StageConfig, option


class FalseNegatives(StageConfig):
    """Negatives that score too near to the positive, or above it, are taken for unlabelled positives and masked.

    The bound is the one of hard-negative mining (de Souza P. Moreira et al. 2024, NV-Retriever, arXiv:2407.15831):
    with the positive's score p, `perc`: p - (1 - margin) * |p|; `abs`: p - margin. A column above it is masked.
    """

    kind: Literal["perc", "abs"] = "perc"
    margin: float = option(0.95, ge=0)
    listed_too: bool = False
    """Off by default: they were chosen on purpose, by a better judge than the model in training, and those above the
    positive are what is to be learnt."""


class Distillation(StageConfig):
    """What is learnt from a teacher: its scores of the passages (kl, margin_mse), as mining with a teacher writes them,
    or the directions of its vectors (embeddings), which are made before the training."""

    kind: Literal["kl", "margin_mse", "embeddings"]
    weight: float = option(1.0, ge=0)
    teacher_temperature: float = option(1.0, "of the teacher's scores (kl)", gt=0)
    teacher_scale: float = option(1.0, "brings the teacher's margins to the model's range (margin_mse)")
    teacher: str | None = option(
        None, "the model whose vectors are followed, of the same dimension (embeddings)", place="model", min_length=1
    )
    encoder: dict[str, Any] = option({}, "how that model is run: options of `raycurate embed`")

    @model_validator(mode="after")
    def _a_teacher(self) -> Self:
        if self.kind == "embeddings" and self.teacher is None:
            raise ValueError("kind=embeddings follows the vectors of a model: name it with teacher")
        if self.kind != "embeddings" and (self.teacher is not None or self.encoder):
            raise ValueError(
                f"kind={self.kind} follows the scores that stand in the training data; teacher and encoder are for "
                "kind=embeddings"
            )
        return self


class LossOptions(StageConfig):
    """What is minimised."""

    loss: Literal["listed", "in_batch", "cross_rank"] = option(
        "listed", "A question's negatives: its own listed ones, those of its rank's batch, or of all ranks'."
    )
    temperature: float = option(0.02, "Scores are divided by it.", gt=0)
    contrastive_weight: float = option(1.0, "Of the contrastive loss; 0 leaves the teacher alone.", ge=0)
    symmetric: bool = option(False, "Also each positive against all questions (in_batch, cross_rank).")
    false_negatives: FalseNegatives | None = option(
        None, "Mask negatives that score too near the positive: {kind: perc|abs, margin: 0.95, listed_too: false}."
    )
    distillation: list[Distillation] = option(
        [],
        "Follow a teacher: its scores in the training data [{kind: kl|margin_mse, weight: 1, teacher_temperature: 1, "
        "teacher_scale: 1}] or its vectors [{kind: embeddings, weight: 1, teacher: MODEL, encoder: {}}].",
    )
    matryoshka: dict[int, float] = option({}, "Dimension -> weight of its loss; the whole vector alone by default.")

    @field_validator("distillation")
    @classmethod
    def _one_teacher_of_vectors(cls, parts: list[Distillation]) -> list[Distillation]:
        if sum(part.kind == "embeddings" for part in parts) > 1:
            raise ValueError("vectors of one teacher only can be followed; leave one kind=embeddings")
        return parts

    @model_validator(mode="after")
    def _symmetric_needs_a_batch(self) -> Self:
        if self.symmetric and self.loss == "listed":
            raise ValueError("symmetric=true needs in-batch negatives: set loss to in_batch or cross_rank")
        return self
