"""What a user can say about a fine-tuning beside the loop's own options (training/options.py), by group.

The names are those of NeMo's embed recipes where these have one. config.py puts the groups together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SecretStr

from raycurate.core.config import StageConfig, option
from raycurate.ray_runtime.cluster import ActorGroupOptions
from raycurate.training.model.options import LoraOptions

Sources = str | list[str | dict[str, Any]]


class DataConfig(StageConfig):
    """What is trained on."""

    train: Sources = option(
        ...,
        "Training data: a file (inline JSONL or corpus-ID JSON), hf://..., or a list of them, {path, num_samples} too.",
        place="input",
    )
    val: Sources | None = option(None, "Validation data of the same forms; null for none.", place="input")
    on_bad_rows: Literal["error", "drop"] = option(
        "error",
        "What a row that cannot be used does: stop the training before it begins, or be left out, counted, and "
        "written to _rejects/ of the output.",
    )
    query_prefix: str | None = option(None, "Literal text before every question instead of the model's own prompt.")
    passage_prefix: str | None = option(None, "Literal text before every passage instead of the model's own prompt.")


class ModelConfig(StageConfig):
    """The model that is trained, and from where. Null leaves the choice to the checkpoint's own files."""

    model: str = option(
        ..., "The model to start from: a folder, a Hugging Face id or `python:MODULE`.", min_length=1, place="model"
    )
    revision: str | None = option(None, "Branch, tag or commit of a Hugging Face model.")
    tokenizer: str | None = option(
        None, "A model whose tokenizer is taken in place of the model's own, and exported.", place="model"
    )
    add_bos: bool | None = option(
        None, "Whether a text begins with the tokenizer's token for that; by default as it does."
    )
    add_eos: bool | None = option(
        None, "Whether a text ends with the tokenizer's token for that; by default as it does."
    )
    export_max_length: int | None = option(
        None,
        "Tokens at which the trained model cuts a text when it is used; by default those of `encoder`, or the model's "
        "own, whatever it was trained with.",
        gt=0,
    )
    lora: LoraOptions | None = option(
        None,
        "Train low-rank adapters only: {dim: 8, alpha: 32, dropout: 0, dora: false, target_modules: [], "
        "exclude_modules: []}.",
    )
    cache_dir: str | None = option(
        None, "Where downloaded models are kept; the Hugging Face cache by default.", operational=True, place="cache"
    )
    hf_token: SecretStr | None = option(
        None, "Token for gated models; the hub's own environment by default.", operational=True
    )
    local_files_only: bool = option(False, "Never ask the network for a model.", operational=True)


class ScalingOptions(StageConfig):
    """What the workers are."""

    actors: ActorGroupOptions = option(
        ActorGroupOptions(),
        "Placement and environment of a worker: num_cpus, num_gpus, resources, accelerator_type, label_selector, "
        "runtime_env.",
        operational=True,
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to train; auto is CUDA where the cluster has GPUs.", operational=True
    )
    timeout_minutes: float = option(30.0, "Minutes after which a collective counts as failed.", operational=True, gt=0)
    max_failures: int = option(
        3, "Times a dead worker is replaced and the training goes on from its last checkpoint; -1: always.",
        operational=True, ge=-1,
    )  # fmt: skip


class CheckpointOptions(StageConfig):
    """What is saved and measured on the way."""

    interim_every_minutes: float | None = option(
        30.0,
        "Minutes after a checkpoint until one is made that only serves to go on from: it is not measured, and gone "
        "with the next; null for none.",
        operational=True, gt=0,
    )  # fmt: skip
    dev: str | None = option(
        None,
        "A BEIR folder whose DEV split is searched, over the whole corpus, for each checkpoint (dev_ndcg10, "
        "dev_recall100, ...); never its test split. The models of all checkpoints then stay until the training ends.",
        place="input",
    )
    measure_base: bool = option(
        False, "Search the dev questions with the model as it is too, before the training, and show both.",
        operational=True,
    )  # fmt: skip
    cache: str | None = option(
        None,
        "Folder or URI of the vectors that mining keeps from run to run; what measure_base finds there is not embedded "
        "again.",
        operational=True,
        place="cache",
    )
    best_metric: Literal[
        "auto", "val_mrr", "val_acc1", "val_loss", "dev_ndcg10", "dev_recall10", "dev_recall100", "dev_mrr10"
    ] = option(
        "auto",
        "What BEST is chosen by; auto is dev_ndcg10 where there is dev, val_mrr where there are only validation data, "
        "else the last checkpoint.",
    )
    asynchronous_checkpoints: bool | None = option(
        None,
        "Write checkpoints while the steps go on, from a copy of what is trained in the host's memory (12 bytes a "
        "parameter, shared by the workers where they shard); by default, unless cpu_offload has that memory full.",
        operational=True,
    )
    resume: str = option(
        "auto",
        "auto goes on with an unfinished training of this output, never begins anew, a path goes on from that "
        "checkpoint.",
        place="state",
    )
