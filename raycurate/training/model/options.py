"""What a user can say about the model that is trained. No torch is imported, as the command line's help reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from raycurate.core.config import StageConfig, option
from raycurate.models.contract import pooling_name


class LoraOptions(StageConfig):
    """Low-rank adapters (PEFT)."""

    dim: int = option(8, "rank of the update", gt=0)
    alpha: float = option(32, "the update is scaled by alpha / dim", gt=0)
    dropout: float = option(0.0, "on the adapters' input", ge=0, lt=1)
    dora: bool = option(False, "learn the length of each row of a weight apart from its direction")
    target_modules: list[str] = option([], "last parts of the names of linear layers; all by default")
    exclude_modules: list[str] = option([], "of these, layers that get no adapter, named alike or in full")

    @property
    def scale(self) -> float:
        return self.alpha / self.dim


class ArchitectureOptions(StageConfig):
    """What the model becomes, and how it is computed. Null leaves the choice to the checkpoint's own files."""

    pooling: str | None = option(None, "mean, cls, last, weighted_mean or multi_vector; the model's own by default.")
    normalize: bool | None = option(None, "Scale vectors to length one; the model's own habit by default.")
    document_template: str | None = option(None, "How title and text make a document, e.g. '{title} {text}'.")
    bidirectional: bool | None = option(
        None,
        "Whether a decoder attends both ways: by default it does, unless its own files say how it is pooled (it is an "
        "embedding model already); false keeps it causal. With pooling=last it must be said.",
    )
    separate_encoders: bool = option(False, "One encoder for questions and one for documents, which start alike.")
    attention: Literal["sdpa", "flash_attention_2", "eager", "unpadded"] | None = option(
        None,
        "How attention is computed; unpadded lays texts end to end (3-4x faster on a CPU where the model can).",
        operational=True,
    )
    dropout: float | None = option(None, "Every dropout of the model in training; its own by default.", ge=0, lt=1)
    gradient_checkpointing: bool = option(False, "Compute activations twice to keep few of them.", operational=True)
    compile: bool = option(False, "torch.compile each layer.", operational=True)
    liger: bool = option(False, "Liger's fused kernels (CUDA).", operational=True)

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, value: str | None) -> str | None:
        return None if value is None else pooling_name(value)


class ModelOptions(ArchitectureOptions):
    """How a checkpoint becomes a bi-encoder: what the user says, and what follows from the data and other options."""

    max_length: int | None = None
    """Tokens at which the exported model cuts a text, special ones included."""
    trained_length: int | None = None
    """Tokens of the longest text in training, by which `unpadded` is checked; `max_length` when None."""
    prompts: dict[str, str] | None = None
    """By role ("query", "document", ...); replaces the checkpoint's prompts as a whole."""
    matryoshka_dims: tuple[int, ...] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the parameters. Mixed precision is the training loop's: it keeps float32 parameters."""
