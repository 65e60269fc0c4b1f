"""What the training loop is told: all that is neither the model nor the data.

The groups are the recipe's own, put together here for the loop and in the finetune stage with the others. What depends
on the data or on the number of ranks ("auto", warm-up ratios, accumulation) is worked out in optimise.py. No torch is
imported, as the help of the command line reads this module.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from raycurate.core.config import StageConfig, option
from raycurate.training.loss.options import LossOptions

Positive = Annotated[int, Field(gt=0)]


class OptimiseOptions(StageConfig):
    """How it is minimised."""

    num_epochs: int = option(3, "Times the training data are gone through.", gt=0)
    max_steps: int | None = option(None, "Stop after so many steps, the schedule with it.", gt=0)
    learning_rate: float = option(1e-5, "Highest learning rate.", gt=0)
    min_learning_rate: float = option(0.0, "What the decay ends at.", ge=0)
    weight_decay: float = option(0.01, "AdamW's, not on norms and biases.", ge=0)
    schedule: Literal["linear", "cosine", "constant"] = option("linear", "Decay of the learning rate.")
    warmup_steps: int | None = option(None, "Steps of warm-up; a tenth of all by default.", ge=0)
    warmup_ratio: float | None = option(None, "Warm-up as a share of all steps.", ge=0, lt=1)
    max_grad_norm: float | None = option(1.0, "Gradients are clipped to this norm; null: not.", gt=0)
    global_batch_size: Positive | Literal["auto"] = option(
        128, "Questions a step, over all workers; auto is an eighth of a small set's questions, within 16 and 64."
    )
    local_batch_size: int | None = option(
        None,
        "Questions a worker has in memory at once; the rest of its share follows in further micro-steps. By default "
        "all of it on a GPU, and on a CPU as many as its share of half of the machine's memory holds.",
        gt=0,
    )
    gradcache: bool | Literal["auto"] = option(
        "auto",
        "GradCache runs a batch of in_batch or cross_rank negatives in chunks, with one more forward pass and the same "
        "gradients: auto where local_batch_size or chunk_tokens cut a worker's share, on always, off never (a share "
        "that is cut is then refused). With loss=listed nothing needs it.",
        operational=True,
    )
    chunk_tokens: int | None = option(
        None, "GradCache's chunks in tokens, instead of local_batch_size questions.", operational=True, gt=0
    )
    gradient_sync: Literal["last", "each"] = option(
        "last",
        "When the micro-steps of a step bring the workers' gradients together: once, in the last, or in each, which "
        "communicates more and spares a sharded model (fsdp2, hsdp) a whole float32 gradient on every worker.",
        operational=True,
    )
    by_corpus: bool = option(False, "Batches hold questions of one corpus only.")
    drop_last: bool = option(True, "Leave out the questions of an incomplete last batch (others in each epoch).")
    shuffle: bool = option(
        True, "Another order of the questions each epoch; false is that of the files, unsorted by length."
    )
    length_window: int = option(50, "Batches among which questions are sorted by length; 0: none.", ge=0)
    seed: int = option(42, "Seed of the order, of dropout and of the adapters.", ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "Of the arithmetic; weights stay float32. auto is bfloat16 where all workers' hardware multiplies it, else "
        "float32.",
    )
    early_stopping: int | None = option(None, "Stop after so many validations in a row without a better val_mrr.", gt=0)


class SpreadOptions(StageConfig):
    """Over how many ranks, and how the model is laid out on them."""

    num_workers: Positive | Literal["auto"] | list[int] = option(
        "auto",
        "Training workers: a number, [min, max] for elastic training, or auto: one a GPU, else one a core up to eight, "
        "as many as divide the batch.",
        operational=True,
    )
    strategy: Literal["auto", "ddp", "fsdp2", "hsdp"] = option(
        "auto", "How the model is shared by the workers; auto is ddp where it fits, else fsdp2.", operational=True
    )
    reshard: bool = option(True, "FSDP2 frees a layer's gathered weights after its forward.", operational=True)
    cpu_offload: bool = option(False, "FSDP2 keeps weights and optimiser in the host's memory.", operational=True)
    shard_size: int | None = option(None, "HSDP: workers that share one copy; one machine's.", operational=True, gt=0)
    tp_size: int = option(
        1,
        "Ranks that share each layer: 1, as more are refused; strategy=fsdp2 spreads the memory.",
        operational=True,
        gt=0,
    )
    cp_size: int = option(1, "Context parallelism; only 1.", operational=True, gt=0)
    sequence_parallel: bool = option(False, "Only false.", operational=True)

    @field_validator("num_workers")
    @classmethod
    def _an_interval(cls, value: int | str | list[int]) -> int | str | list[int]:
        if isinstance(value, list) and (len(value) != 2 or not 1 <= value[0] <= value[1]):
            raise ValueError("write [min, max] with 1 <= min <= max")
        return value

    @property
    def elastic(self) -> bool:
        """The number of ranks may change: what does not divide is shared unevenly and weighted."""
        return isinstance(self.num_workers, list)


class PaceOptions(StageConfig):
    """When the loop saves, validates and logs."""

    checkpoint_every_steps: int | None = option(
        None, "Steps between checkpoints; at the end of each epoch by default.", operational=True, gt=0
    )
    validate_every_steps: int | None = option(
        None, "Steps between validations; at the end of each epoch by default, and before each checkpoint.", gt=0
    )
    validation_batch_size: int | None = option(None, "Questions of a worker at once.", operational=True, gt=0)
    log_every_steps: int = option(1, "Steps between two lines of the log.", operational=True, gt=0)


class TrainOptions(PaceOptions, SpreadOptions, OptimiseOptions, LossOptions):
    """How a bi-encoder is trained."""

    @model_validator(mode="after")
    def _one_way_to_train(self) -> Self:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError(f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio}: give one of them")
        if self.elastic and self.loss == "in_batch":
            raise ValueError(
                f"num_workers={self.num_workers} is elastic, and with loss=in_batch a question's negatives depend on "
                "the number of workers; use cross_rank, listed, or a fixed number"
            )
        if self.loss == "listed" and (self.gradcache is True or self.chunk_tokens):
            raise ValueError(
                "with loss=listed GradCache does nothing: a question's loss does not depend on the others in the "
                "batch, so micro-steps give the same gradients without a second forward; leave gradcache and "
                "chunk_tokens out, and set local_batch_size"
            )
        if self.gradcache is False and self.chunk_tokens:
            raise ValueError("chunk_tokens is GradCache's, and gradcache=false")
        return self

    def settled(self, *, cuda: bool, bfloat16: bool | None = None) -> Self:
        """The same with precision=auto filled in.

        Args:
            cuda: whether it runs on GPUs.
            bfloat16: whether all ranks' hardware multiplies it; None, where no rank was asked: GPUs do, and a CPU if
                this machine's does.
        """
        if self.precision != "auto":
            return self
        import torch

        from raycurate.models.devices import multiplies_bfloat16

        here = cuda or multiplies_bfloat16(torch.device("cpu"))
        wide = here if bfloat16 is None else bfloat16
        return self.model_copy(update={"precision": "bfloat16" if wide else "float32"})
