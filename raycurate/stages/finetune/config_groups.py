"""What a user can say about a fine-tuning, by group: data, model, loss, optimisation, workers, checkpoints.

The names are those of NeMo's embed recipes where these have one. config.py puts the groups together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from raycurate.core.config import StageConfig, option
from raycurate.models.contract import pooling_name
from raycurate.ray_runtime.cluster import ActorGroupOptions

Sources = str | list[str | dict[str, Any]]
Positive = Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraConfig(_Part):
    """Low-rank adapters (PEFT)."""

    dim: int = Field(8, gt=0, description="rank of the update")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / dim")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input")
    dora: bool = Field(False, description="learn the length of each row of a weight apart from its direction")
    target_modules: list[str] = Field([], description="last parts of the names of linear layers; all by default")
    exclude_modules: list[str] = Field([], description="of these, layers that get no adapter, named alike or in full")


class FalseNegativesConfig(_Part):
    """Negatives that score too near the positive are masked; the margins are those of mining."""

    kind: Literal["perc", "abs"] = "perc"
    margin: float = Field(0.95, ge=0)
    listed_too: bool = False


class DistillationConfig(_Part):
    """What is learnt from a teacher: its scores of the passages (kl, margin_mse), as mining with a teacher writes them,
    or the directions of its vectors (embeddings), which are made before the training."""

    kind: Literal["kl", "margin_mse", "embeddings"]
    weight: float = Field(1.0, ge=0)
    teacher_temperature: float = Field(1.0, gt=0, description="of the teacher's scores (kl)")
    teacher_scale: float = Field(1.0, description="brings the teacher's margins to the model's range (margin_mse)")
    teacher: str | None = option(
        None, "the model whose vectors are followed, of the same dimension (embeddings)", place="model", min_length=1
    )
    encoder: dict[str, Any] = Field({}, description="how that model is run: options of `raycurate embed`")

    @model_validator(mode="after")
    def _a_teacher(self) -> DistillationConfig:
        if self.kind == "embeddings" and self.teacher is None:
            raise ValueError("kind=embeddings follows the vectors of a model: name it with teacher")
        if self.kind != "embeddings" and (self.teacher is not None or self.encoder):
            raise ValueError(
                f"kind={self.kind} follows the scores that stand in the training data; teacher and encoder are for "
                "kind=embeddings"
            )
        return self


class DataConfig(StageConfig):
    """What is trained on, and how much of it."""

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
    n_passages: int = option(5, "Passages a question: its positive and n_passages - 1 negatives.", gt=0)
    cycle_positives: bool = option(False, "Another positive of the question each epoch; else always the first.")
    eval_negative_size: int | None = option(
        None, "Negatives a question in validation; as many as in training by default.", ge=0
    )
    query_max_length: int = option(512, "Tokens kept of a question, its prefix and special tokens included.", gt=0)
    passage_max_length: int = option(512, "Tokens kept of a passage, likewise.", gt=0)
    query_prefix: str | None = option(None, "Literal text before every question instead of the model's own prompt.")
    passage_prefix: str | None = option(None, "Literal text before every passage instead of the model's own prompt.")
    dataset_instructions: bool = option(
        False, "Put the instructions of each corpus's metadata before questions and passages, in place of prompts."
    )
    pad_token: str | None = option(
        None, "What pads where the tokenizer has no padding token: a token, or `eos` for its end token."
    )
    data_cache: str | None = option(
        None,
        "Folder on every machine for tokens and corpora; $RAYCURATE_CACHE or the user's cache by default.",
        operational=True,
        place="cache",
    )


class ModelConfig(StageConfig):
    """The model that is trained. Null leaves the choice to the checkpoint's own files."""

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
    pooling: str | None = option(None, "mean, cls, last, weighted_mean or multi_vector; the model's own by default.")
    normalize: bool | None = option(None, "Scale vectors to length one; the model's own habit by default.")
    document_template: str | None = option(None, "How title and text make a document, e.g. '{title} {text}'.")
    matryoshka: dict[int, float] = option({}, "Dimension -> weight of its loss; the whole vector alone by default.")
    bidirectional: bool | None = option(
        None,
        "Whether a decoder attends both ways: by default it does, unless its own files say how it is pooled (it is an "
        "embedding model already); false keeps it causal. With pooling=last it must be said.",
    )
    export_max_length: int | None = option(
        None,
        "Tokens at which the trained model cuts a text when it is used; by default those of `encoder`, or the model's "
        "own, whatever it was trained with.",
        gt=0,
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
    lora: LoraConfig | None = option(
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

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, value: str | None) -> str | None:
        return None if value is None else pooling_name(value)


class LossConfig(StageConfig):
    """What is minimised."""

    loss: Literal["listed", "in_batch", "cross_rank"] = option(
        "listed", "A question's negatives: its own listed ones, those of its rank's batch, or of all ranks'."
    )
    temperature: float = option(0.02, "Scores are divided by it.", gt=0)
    contrastive_weight: float = option(1.0, "Of the contrastive loss; 0 leaves the teacher alone.", ge=0)
    symmetric: bool = option(False, "Also each positive against all questions (in_batch, cross_rank).")
    false_negatives: FalseNegativesConfig | None = option(
        None, "Mask negatives that score too near the positive: {kind: perc|abs, margin: 0.95, listed_too: false}."
    )
    distillation: list[DistillationConfig] = option(
        [],
        "Follow a teacher: its scores in the training data [{kind: kl|margin_mse, weight: 1, teacher_temperature: 1, "
        "teacher_scale: 1}] or its vectors [{kind: embeddings, weight: 1, teacher: MODEL, encoder: {}}].",
    )

    @field_validator("distillation")
    @classmethod
    def _one_teacher_of_vectors(cls, parts: list[DistillationConfig]) -> list[DistillationConfig]:
        if sum(part.kind == "embeddings" for part in parts) > 1:
            raise ValueError("vectors of one teacher only can be followed; leave one kind=embeddings")
        return parts


class OptimiseConfig(StageConfig):
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


class ScalingOptions(StageConfig):
    """Over which workers, and how the model is laid out on them."""

    num_workers: Positive | Literal["auto"] | list[int] = option(
        "auto",
        "Training workers: a number, [min, max] for elastic training, or auto: one a GPU, else one a core up to eight, "
        "as many as divide the batch.",
        operational=True,
    )
    actors: ActorGroupOptions = option(
        ActorGroupOptions(),
        "Placement and environment of a worker: num_cpus, num_gpus, resources, accelerator_type, label_selector, "
        "runtime_env.",
        operational=True,
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to train; auto is CUDA where the cluster has GPUs.", operational=True
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
    timeout_minutes: float = option(30.0, "Minutes after which a collective counts as failed.", operational=True, gt=0)
    max_failures: int = option(
        3, "Times a dead worker is replaced and the training goes on from its last checkpoint; -1: always.",
        operational=True, ge=-1,
    )  # fmt: skip


class CheckpointOptions(StageConfig):
    """What is saved and measured on the way."""

    checkpoint_every_steps: int | None = option(
        None, "Steps between checkpoints; at the end of each epoch by default.", operational=True, gt=0
    )
    interim_every_minutes: float | None = option(
        30.0,
        "Minutes after a checkpoint until one is made that only serves to go on from: it is not measured, and gone "
        "with the next; null for none.",
        operational=True, gt=0,
    )  # fmt: skip
    validate_every_steps: int | None = option(
        None, "Steps between validations; at the end of each epoch by default, and before each checkpoint.", gt=0
    )
    validation_batch_size: int | None = option(None, "Questions of a worker at once.", operational=True, gt=0)
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
    keep_last: int = option(1, "Latest checkpoints that are kept.", operational=True, gt=0)
    keep_best: int = option(1, "Best checkpoints that are kept besides.", operational=True, ge=0)
    log_every_steps: int = option(1, "Steps between two lines of the log.", operational=True, gt=0)
    resume: str = option(
        "auto",
        "auto goes on with an unfinished training of this output, never begins anew, a path goes on from that "
        "checkpoint.",
        place="state",
    )
