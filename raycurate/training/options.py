"""What the training loop is told: all that is neither the model nor the data.

Plain values, so that a recipe, a test and a benchmark say the same thing in the same words. What depends on
the data or on the number of ranks ("auto", warm-up ratios, accumulation) is worked out in optimise.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycurate.core.errors import ConfigError
from raycurate.training.loss.losses import FalseNegatives
from raycurate.training.loss.objective import Distillation, Objective

Loss = Literal["listed", "in_batch", "cross_rank"]
Schedule = Literal["linear", "cosine", "constant"]
Strategy = Literal["auto", "ddp", "fsdp2", "hsdp"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainOptions:
    """How a bi-encoder is trained.

    Raises:
        ConfigError: values that cannot be, alone or together.
    """

    loss: Loss = "listed"
    """Which passages are a question's negatives: its own listed ones, all of its rank's batch, or all ranks'."""
    temperature: float = 0.02
    contrastive_weight: float = 1.0
    """Of the contrastive part; 0 leaves the teacher alone."""
    symmetric: bool = False
    """Also each positive against all questions; not with `listed`."""
    false_negatives: FalseNegatives | None = None
    matryoshka: tuple[tuple[int, float], ...] = ()
    """(dimension, weight); empty: the whole vector."""
    distillation: tuple[Distillation, ...] = ()

    num_epochs: int = 3
    max_steps: int | None = None
    """Stop after so many steps, and let the schedule end there; None: after num_epochs."""
    learning_rate: float = 1e-5
    min_learning_rate: float = 0.0
    """What linear and cosine decay end at."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "linear"
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    """Of all steps; one of the two at most. Neither: a tenth of the steps."""
    max_grad_norm: float | None = 1.0
    """None: gradients are not clipped."""

    global_batch_size: int | Literal["auto"] = 128
    """Questions a step, over all ranks; what `auto` is, see optimise.global_batch."""
    local_batch_size: int | None = None
    """Questions that a rank has in memory at once; None: all of its share. `listed` then accumulates micro-steps,
    the others run the share through GradCache in chunks of so many questions."""
    gradcache: bool | None = None
    """None: where the loss needs it. False: never, which refuses in-batch losses with more than one micro-step."""
    chunk_tokens: int | None = None
    """GradCache's chunks hold at most so many tokens, padding included, in place of local_batch_size questions."""
    gradient_sync: Literal["last", "each"] = "last"
    """When micro-steps bring gradients together. `each` costs communication and saves a sharded strategy the memory
    of one whole gradient a rank."""
    elastic: bool = False
    """The number of ranks may change: what does not divide is shared unevenly and weighted; not with `in_batch`."""
    drop_last: bool = True
    """Leave out the questions of an incomplete last batch (others in each epoch)."""
    by_corpus: bool = False
    """Batches hold questions of one corpus only."""
    shuffle: bool = True
    """False: the questions in the order of the data, in each epoch, and unsorted by length."""
    length_window: int = 50
    """Batches among which questions are sorted by length; 0: none."""
    pad_to_multiple_of: int = 8
    seed: int = 42

    strategy: Strategy = "auto"
    precision: Precision = "float32"
    """Of the arithmetic. Parameters, gradients' sums and the optimiser's state are float32 either way."""
    reshard: bool = True
    """FSDP2 frees a layer's gathered weights after its forward."""
    cpu_offload: bool = False
    """FSDP2 keeps weights, gradients and the optimiser's state in the host's memory."""
    shard_size: int | None = None
    """HSDP: ranks that share one copy of the model; None: those of one machine."""
    tp_size: int = 1
    cp_size: int = 1
    sequence_parallel: bool = False

    checkpoint_every_steps: int | None = None
    """None: at the end of each epoch. The end of the training always makes one."""
    validate_every_steps: int | None = None
    """None: at the end of each epoch; before a checkpoint in any case."""
    validation_batch_size: int | None = None
    """Questions of a rank at once; None: as in training."""
    early_stopping: int | None = None
    """Stop after so many validations without a better val_mrr."""
    log_every_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("num_epochs", "log_every_steps", "pad_to_multiple_of", "tp_size", "cp_size"):
            self._at_least(name, 1)
        for name in ("max_steps", "local_batch_size", "chunk_tokens", "shard_size", "checkpoint_every_steps"):
            self._at_least(name, 1)
        for name in ("validate_every_steps", "validation_batch_size", "early_stopping"):
            self._at_least(name, 1)
        for name in ("warmup_steps", "weight_decay", "length_window", "seed", "min_learning_rate"):
            self._at_least(name, 0)
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} is not above 0")
        if self.global_batch_size != "auto":
            self._at_least("global_batch_size", 1)
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio} say the same thing twice",
                fix="Give one of them",
            )
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio={self.warmup_ratio} is not from 0 to below 1")
        self._check_loss()

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} is less than {least}")

    def _check_loss(self) -> None:
        if self.symmetric and self.loss == "listed":
            raise ConfigError("symmetric=true needs in-batch negatives", fix="Set loss to in_batch or cross_rank")
        if self.loss == "listed" and (self.gradcache or self.chunk_tokens):
            raise ConfigError(
                "GradCache does nothing for loss=listed: a question's loss does not depend on the others in the batch, "
                "so micro-steps give the same gradients without a second forward",
                fix="Leave gradcache and chunk_tokens out, and set local_batch_size",
            )
        if self.gradcache is False and self.chunk_tokens:
            raise ConfigError("chunk_tokens is GradCache's, and gradcache=false")
        if self.elastic and self.loss == "in_batch":
            raise ConfigError(
                "elastic=true with loss=in_batch: with another number of ranks a question has other negatives",
                fix="Set loss to cross_rank or listed",
            )

    def objective(self, *, normalised: bool) -> Objective:
        """The loss as the loop calls it.

        Args:
            normalised: the model's vectors have length one (its contract's `normalize`).
        """
        return Objective(
            self.loss,
            self.temperature,
            weight=self.contrastive_weight,
            normalised=normalised,
            symmetric=self.symmetric,
            false_negatives=self.false_negatives,
            matryoshka=self.matryoshka,
            distillation=self.distillation,
        )
