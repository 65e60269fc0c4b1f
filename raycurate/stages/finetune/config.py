"""The options of the finetune stage: the groups of the loop, the model and the data, each declared beside the code
that uses it (training/**/options.py), and the stage's own (config_groups.py), put together.

The loop takes them as they are. What the model and the data need beside them, which follows from several options or
from the checkpoint's files, is added here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator, model_validator

from raycurate.core import storage
from raycurate.core.config import option
from raycurate.core.manifest import STAGING
from raycurate.stages.finetune.config_groups import (
    CheckpointOptions,
    DataConfig,
    ModelConfig,
    ScalingOptions,
)
from raycurate.training.batches.options import ListOptions, PassageOptions, TextOptions
from raycurate.training.checkpoints.options import KeepOptions
from raycurate.training.logs import LogOptions
from raycurate.training.model.options import ArchitectureOptions, ModelOptions
from raycurate.training.options import TrainOptions

if TYPE_CHECKING:
    from raycurate.data.training.training import TrainingData
    from raycurate.models.options import EncoderOptions
    from raycurate.training.batches.prepared import PrepareOptions
    from raycurate.training.batches.teacher import TeacherOptions

ALGORITHM_VERSION = 1

ALIASES = {
    "train_n_passages": "n_passages",
    "l2_normalize": "normalize",
    "attn_implementation": "attention",
    "lr": "learning_rate",
    "lr_warmup_steps": "warmup_steps",
    "lr_decay_style": "schedule",
    "ckpt_every_steps": "checkpoint_every_steps",
    "val_every_steps": "validate_every_steps",
}
"""Other tools' names -> ours; not for options that `raycurate run` wires, which would then be given twice."""
_SAID_OF_THE_MODEL = (
    "query_prefix", "passage_prefix", "pooling", "normalize", "revision", "tokenizer", "add_bos", "add_eos",
)  # fmt: skip
"""What `encoder` may say too: it is trained as it is run. Lengths are not among it."""


class FinetuneConfig(
    CheckpointOptions,
    KeepOptions,
    ScalingOptions,
    TrainOptions,
    ArchitectureOptions,
    ModelConfig,
    TextOptions,
    ListOptions,
    DataConfig,
):
    """Training data and a model in; checkpoints in Hugging Face format out."""

    output: str = option(..., "Folder or URI the checkpoints are written to.", operational=True, place="output")
    logging: LogOptions = option(
        LogOptions(),
        "Trackers beside train.jsonl: {tensorboard: true, mlflow: {experiment}, wandb: {project}}.",
        operational=True,
    )
    encoder: dict[str, Any] = option(
        {},
        "How dev questions are searched: options of `raycurate embed` (engine, dtype, num_gpus, ...) for all models, "
        "and max_length, query_max_length, passage_max_length for the model as it is; a checkpoint has its own.",
    )
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        renamed = _lifted(values)
        for name, ours in ALIASES.items():
            if name in renamed:
                if ours in renamed:
                    raise ValueError(f"{name} and {ours} are two names of one option; give one")
                renamed[ours] = renamed.pop(name)
        return renamed

    @field_validator("resume")
    @classmethod
    def _some_place(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("write auto, never or the path of a checkpoint")
        return value

    @model_validator(mode="after")
    def _together(self) -> FinetuneConfig:
        if self.loss == "listed" and self.n_passages == 1 and self.contrastive_weight > 0:
            raise ValueError(
                "n_passages=1 with loss=listed: a positive alone has nothing to be told from; give n_passages=2 or "
                "more, or loss=cross_rank, which takes the other questions' passages for negatives"
            )
        if self.early_stopping is not None and self.val is None:
            raise ValueError(f"early_stopping={self.early_stopping} needs val")
        if self.best_metric.startswith("val_") and self.val is None:
            raise ValueError(f"best_metric={self.best_metric} needs val")
        if self.best_metric.startswith("dev_") and self.dev is None:
            raise ValueError(f"best_metric={self.best_metric} needs dev")
        if self.measure_base and self.dev is None:
            raise ValueError("measure_base=true needs dev, the questions to search with")
        if self.measure_base and self.bidirectional:
            raise ValueError(
                "measure_base=true with bidirectional=true: a causal decoder that has not been trained to attend both "
                "ways has no vectors worth comparing; leave measure_base out"
            )
        return self

    @property
    def input(self) -> list[str]:
        """The paths of the training data, as `raycurate info` shows them."""
        sources = [self.train] if isinstance(self.train, str) else self.train
        return [s if isinstance(s, str) else str(s.get("path", "")) for s in sources]

    @property
    def metric(self) -> str | None:
        """What BEST is chosen by; None: the last checkpoint."""
        if self.best_metric != "auto":
            return self.best_metric
        if self.dev is not None:  # a search of the whole corpus says more than a ranking of a few listed passages
            return "dev_ndcg10"
        return "val_mrr" if self.val is not None else None

    def result_keys(self) -> dict[str, Any]:
        """A path to go on from decides the result; whether an interrupted run is taken up does not."""
        from raycurate.encoders.declared import decisive, of_any_model

        kept = super().result_keys()
        kept["encoder"] = decisive(of_any_model(self.encoder))
        return kept | {"resume": "auto" if self.resume in ("auto", "never") else self.resume}

    def absolute(self) -> FinetuneConfig:
        """The same with absolute local paths: a training worker has a working folder of its own."""
        update: dict[str, Any] = {"output": storage.normalise(self.output)}
        for name in ("train", "val"):
            update[name] = _absolute_sources(getattr(self, name))
        for name in ("dev", "data_cache", "cache_dir", "cache"):
            value = getattr(self, name)
            update[name] = storage.normalise(value) if value is not None else None
        update["model"] = _absolute_model(self.model)
        if self.resume not in ("auto", "never"):
            update["resume"] = storage.normalise(self.resume)
        update["distillation"] = [
            part if part.teacher is None else part.model_copy(update={"teacher": _absolute_model(part.teacher)})
            for part in self.distillation
        ]
        return self.model_copy(update=update)

    def encoder_options(self) -> EncoderOptions:
        """The model as the readers of model folders take it."""
        from raycurate.models.options import EncoderOptions

        names = ("model", "revision", "tokenizer", "add_bos", "add_eos", "cache_dir", "hf_token", "local_files_only")
        return EncoderOptions(**{name: getattr(self, name) for name in names})

    @property
    def run_as(self) -> dict[str, Any]:
        """How the model is run as it is, before it is trained: `encoder` as eval and mining take it."""
        from raycurate.encoders.declared import merged

        return merged({**self.encoder, **self._machine()}, {n: getattr(self, n) for n in _SAID_OF_THE_MODEL})

    @property
    def checkpoints_run_as(self) -> dict[str, Any]:
        """How a checkpoint is run: its own files say what decides its vectors."""
        from raycurate.encoders.declared import of_any_model

        machine = {name: value for name, value in self._machine().items() if name != "hf_token"}  # it is not on the hub
        return {**of_any_model(self.encoder), **machine}

    def _machine(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("cache_dir", "hf_token", "local_files_only", "device")}
        return {name: value for name, value in given.items() if value is not None}

    def model_options(self) -> ModelOptions:
        """How the checkpoint becomes a bi-encoder."""
        return ModelOptions(
            **{name: getattr(self, name) for name in ArchitectureOptions.model_fields},
            max_length=self.export_max_length or self.encoder.get("max_length"),
            trained_length=max(self.query_max_length, self.passage_max_length),
            prompts=self._prompts(),
            matryoshka_dims=tuple(sorted(self.matryoshka, reverse=True)) or None,
        )

    def _prompts(self) -> dict[str, str] | None:
        """None where the model's own are kept, both of them."""
        if self.query_prefix is None and self.passage_prefix is None:
            return None
        if self.query_prefix is None or self.passage_prefix is None:
            from raycurate.models.contract import EmbeddingContract
            from raycurate.models.fetch import fetch_encoder

            own = EmbeddingContract.from_checkpoint(fetch_encoder(self.encoder_options()))
            query, document = own.prompt_for("query"), own.prompt_for("document")
        given = (self.query_prefix, self.passage_prefix)
        return {
            "query": given[0] if given[0] is not None else query,
            "document": given[1] if given[1] is not None else document,
        }

    def read_data(self, *, validation: bool = False) -> TrainingData | None:
        """The training data, or the validation data; None where there are none of these.

        Raises:
            InputError: everything that is wrong with them.
        """
        from raycurate.data.training.training import read_training_data

        sources = self.val if validation else self.train
        if sources is None:
            return None
        return read_training_data(
            sources,
            require_negatives=self.passage_options(validation=validation).n_passages > 1,
            cache_dir=self.data_cache,
            seed=self.seed,
            on_bad_rows=self.on_bad_rows,
        )

    def passage_options(self, *, validation: bool = False) -> PassageOptions:
        """Which passages a question has, in training or in validation."""
        scores = any(part.kind != "embeddings" for part in self.distillation)
        said = {name: getattr(self, name) for name in ListOptions.model_fields}
        passages = PassageOptions(**said, teacher_scores=scores)
        return passages.for_validation() if validation else passages

    def prepare_options(self, *, validation: bool = False) -> PrepareOptions:
        """What is made of the training data, or of the validation data."""
        from raycurate.training.batches.prepared import PrepareOptions

        return PrepareOptions(
            **{name: getattr(self, name) for name in TextOptions.model_fields},
            passages=self.passage_options(validation=validation),
            teacher=None if validation else self.teacher_options(),
        )

    def teacher_options(self) -> TeacherOptions | None:
        """Whose vectors are followed, if any are; they are laid out in the output's staging, which all machines see."""
        from raycurate.training.batches.teacher import TEACHER, TeacherOptions

        names = ("cache_dir", "hf_token", "local_files_only", "device")
        for part in self.distillation:
            if part.teacher is not None:
                encoder = {name: getattr(self, name) for name in names} | part.encoder
                work = storage.join(storage.normalise(self.output), STAGING, TEACHER)
                return TeacherOptions(_absolute_model(part.teacher), encoder, work)
        return None


def _lifted(values: dict[str, Any]) -> dict[str, Any]:
    """The options with those of `encoder` that are options of the training itself in their own places.

    Raises:
        ValueError: a key of `encoder` that nobody knows, or one that is said differently beside it.
    """
    from raycurate.encoders.declared import checked

    encoder = values.get("encoder")
    if not isinstance(encoder, dict):
        return dict(values)
    found, encoder = dict(values), checked(encoder)
    for name in (*_SAID_OF_THE_MODEL, "cache_dir", "hf_token", "local_files_only", "device"):
        if name not in encoder:
            continue
        said = encoder.pop(name)
        beside = next((found[n] for n in (name, *_names_of(name)) if found.get(n) is not None), None)
        if beside is None:
            found[name] = said
        elif name in _SAID_OF_THE_MODEL and checked({name: beside}) != {name: said}:
            raise ValueError(f"{name}={beside!r} and encoder.{name}={said!r}: say it once")
    return found | {"encoder": encoder}


def _names_of(ours: str) -> list[str]:
    return [name for name, meant in ALIASES.items() if meant == ours]


def _absolute_model(name: str) -> str:
    """A folder's absolute path; any other name of a model as it is."""
    from pathlib import Path

    return storage.normalise(name) if Path(name).expanduser().is_dir() else name


def _absolute_sources(sources: Any) -> Any:
    if isinstance(sources, str):
        return storage.normalise(sources)
    if isinstance(sources, list):
        return [_absolute_sources(each) for each in sources]
    if isinstance(sources, dict) and "path" in sources:
        return sources | {"path": storage.normalise(str(sources["path"]))}
    return sources
