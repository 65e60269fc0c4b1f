"""NeMo AutoModel: the YAML of a bi-encoder's training (TrainBiEncoderRecipe), of its mining, of a distillation.

The keys are those of its examples/retrieval, the defaults those of its recipes; see its documentation, "Embedding
model fine-tuning".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycurate.core.errors import ConfigError
from raycurate.import_config.rules import (
    Becomes,
    Draft,
    Left,
    Rule,
    Table,
    apply,
    finish_schedule,
    flatten,
    inverted,
    number,
    pooling,
    schedule,
    training_output,
)

TRAINING = "NeMo AutoModel, training of a bi-encoder"
MINING = "NeMo AutoModel, mining of hard negatives"
UNKNOWN = "raycurate knows no such key of AutoModel"
_THEIR_CLASS = Left("names a class of theirs")
_FAST = Left("makes a step faster there; no part of the result")
_SAME_BOTH = Left("validation is tokenised as the training is")


def is_training(values: Mapping[str, Any]) -> bool:
    """Whether a file is a training's: it names a recipe, or has the sections of one."""
    return "step_scheduler" in values or str(values.get("recipe", "")).endswith("Recipe")


def is_mining(values: Mapping[str, Any]) -> bool:
    """Whether a file is a mining's."""
    return isinstance(values.get("mining"), Mapping)


def read_training(values: Mapping[str, Any], draft: Draft) -> None:
    """Lay a training's YAML into the draft.

    Raises:
        ConfigError: the file trains something else than a bi-encoder.
    """
    recipe = str(values.get("recipe", "TrainBiEncoderRecipe"))
    kind = recipe.rpartition(".")[2]
    if kind not in ("TrainBiEncoderRecipe", "EmbeddingDistillRecipe"):
        raise ConfigError(f"raycurate trains bi-encoders; this is the configuration of a {kind}", where="recipe")
    flat = flatten(values)
    if kind == "EmbeddingDistillRecipe":
        _distillation(flat, draft)
    _sources(values, draft)
    apply(draft, flat, {**_TRAINING, **_data_rules()}, unknown=UNKNOWN)
    for side in ("query", "passage"):
        _prefix(draft, f"finetune.{side}_prefix")
    finish_schedule(draft)
    if draft.get("finetune.bidirectional") is None:
        draft.put("finetune.bidirectional", True, "AutoModel's bi-encoders attend both ways unless is_causal says so")
    defaults = {"finetune.n_passages": 5, "finetune.temperature": 0.02, "finetune.num_epochs": 1}
    for option, value in defaults.items():
        if draft.get(option) is None and not (option.endswith("epochs") and draft.get("finetune.max_steps")):
            draft.put(option, value, "AutoModel's default")


def read_mining(values: Mapping[str, Any], draft: Draft) -> None:
    """Lay a mining's YAML into the draft."""
    apply(draft, flatten(values), _MINING, unknown=UNKNOWN)


def _prefix(draft: Draft, option: str) -> None:
    """AutoModel's collator puts a space between prefix and text; here a prefix is literal."""
    value = draft.get(option)
    if not isinstance(value, str) or not value:
        return
    draft.trap(
        "a prefix is literal here, its space included; AutoModel's collator puts a space between prefix and text "
        "(a prefix that ends in a space is kept as it is: its authors then meant one space)"
    )
    if not value.endswith(" "):
        section, name = option.split(".")
        draft.values[section][name] = f"{value} "
        draft.origins[option] += "; with the space that AutoModel puts behind it"


def _model(draft: Draft, key: str, value: Any) -> None:
    draft.put("model", value, key)


def _tokenizer(draft: Draft, key: str, value: Any) -> None:
    if value == draft.get("model"):
        draft.leave(key, value, "the model's own tokenizer is taken")
    else:
        draft.put("finetune.tokenizer", value, key)


def _negatives(draft: Draft, key: str, value: Any) -> None:
    draft.put("finetune.loss", "cross_rank" if value else "listed", f"{key}: {value}")


def _precision(draft: Draft, key: str, value: Any) -> None:
    name = str(value).rpartition(".")[2]
    known = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
    if name not in known:
        draft.leave(key, value, "training here is in bfloat16 or float32 arithmetic")
        return
    draft.put("finetune.precision", known[name], f"{key}; of the arithmetic, weights stay float32")


def _modules(draft: Draft, key: str, value: Any) -> None:
    """Patterns of module names there, last parts of names here."""
    names = [str(name).rpartition(".")[2] for name in value or []]
    if any("*" in name for name in names):
        draft.leave(key, value, "names of linear layers stand here, no patterns")
    elif names:
        draft.put(f"finetune.lora.{key.rpartition('.')[2]}", names, key)


def _strategy(draft: Draft, key: str, value: Any) -> None:
    if value in ("fsdp2", "ddp"):
        draft.put("finetune.strategy", value, key)
    else:
        draft.leave(key, value, "layouts here are ddp, fsdp2 and hsdp")


def _replicas(draft: Draft, key: str, value: Any) -> None:
    if value in (None, "none", 1):
        draft.leave(key, value, "one copy, as fsdp2 has")
    else:
        draft.leave(key, value, "say finetune.strategy=hsdp and shard_size, the workers that share one copy")


def _sources(values: Mapping[str, Any], draft: Draft) -> None:
    """Training and validation data, cut to so many samples where the file says so."""
    for section, option in (("dataset", "train"), ("validation_dataset", "val")):
        loader = values.get({"dataset": "dataloader", "validation_dataset": "validation_dataloader"}[section])
        nested = loader.get("dataset") if isinstance(loader, Mapping) else None
        part, key = (values.get(section), section) if values.get(section) else (nested, f"{section} of its dataloader")
        if not isinstance(part, Mapping) or not part.get("data_dir_list"):
            continue
        listed = part["data_dir_list"]
        samples = part.get("max_train_samples")
        sources = [str(one) for one in listed] if isinstance(listed, list) else [str(listed)]
        parts: list[Any] = sources if samples is None else [{"path": one, "num_samples": samples} for one in sources]
        draft.put(
            f"finetune.{option}", parts[0] if len(parts) == 1 and samples is None else parts, f"{key}.data_dir_list"
        )
        if samples is not None and len(parts) > 1:
            draft.trap("max_train_samples counts all sources together there; num_samples is of each source here")


def _distillation(flat: dict[str, Any], draft: Draft) -> None:
    """A teacher whose vectors are followed; the student's projection has no counterpart."""
    teacher = flat.pop("teacher_model.pretrained_model_name_or_path", None)
    weight = number(flat.pop("distill_loss_weight", 1.0))
    draft.put("finetune.distillation", [{"kind": "embeddings", "weight": weight, "teacher": teacher}], "teacher_model")
    draft.put("finetune.contrastive_weight", 0.0, "EmbeddingDistillRecipe has no contrastive loss")
    draft.trap(
        "a teacher's vectors are followed here where they have the model's own dimension; there is no projection"
    )


def _data_rules() -> dict[str, Rule]:
    """Rules of the data sections, which stand in two places and for training and validation."""
    taken = Left("taken as finetune.train or finetune.val, see there")
    rules: dict[str, Rule] = {}
    for place in ("dataset", "dataloader.dataset"):
        rules |= {
            f"{place}.data_dir_list": lambda *_: None,
            f"{place}.max_train_samples": lambda *_: None,
            f"{place}.n_passages": Becomes("finetune.n_passages"),
            f"{place}.train_n_passages": Becomes("finetune.n_passages"),
            f"{place}.eval_negative_size": Becomes("finetune.eval_negative_size"),
            f"{place}.use_dataset_instruction": Becomes("finetune.dataset_instructions"),
            f"{place}.do_shuffle": Becomes("finetune.shuffle"),
            f"{place}.*": Left("which data are read, and as what, is decided by the files themselves"),
        }
    for place in ("validation_dataset", "validation_dataloader.dataset"):
        rules |= {
            f"{place}.data_dir_list": lambda *_: None,
            f"{place}.max_train_samples": lambda *_: None,
            f"{place}.eval_negative_size": Becomes("finetune.eval_negative_size"),
            f"{place}.*": taken if place.endswith("_") else _SAME_BOTH,
        }
    return rules


_TRAINING: Table = {
    "recipe": Left("a bi-encoder's training, which `raycurate finetune` is"),
    "seed": Becomes("seed"),
    "temperature": Becomes("finetune.temperature", number),
    "train_n_passages": Becomes("finetune.n_passages"),
    "eval_negative_size": Becomes("finetune.eval_negative_size"),
    "step_scheduler.global_batch_size": Becomes("finetune.global_batch_size"),
    "step_scheduler.local_batch_size": Becomes("finetune.local_batch_size"),
    "step_scheduler.ckpt_every_steps": Becomes("finetune.checkpoint_every_steps"),
    "step_scheduler.val_every_steps": Becomes("finetune.validate_every_steps"),
    "step_scheduler.num_epochs": Becomes("finetune.num_epochs"),
    "step_scheduler.max_steps": Becomes("finetune.max_steps"),
    "dist_env.timeout_minutes": Becomes("finetune.timeout_minutes"),
    "dist_env.*": Left("Ray Train joins the workers, with NCCL on GPUs and Gloo on CPUs"),
    "model.pretrained_model_name_or_path": _model,
    "model.pooling": pooling("finetune.pooling"),
    "model.l2_normalize": Becomes("finetune.normalize"),
    "model.is_causal": Becomes("finetune.bidirectional", inverted, "is_causal, inverted"),
    "model.share_encoder": Becomes("finetune.separate_encoders", inverted, "share_encoder, inverted"),
    "model.train_n_passages": Becomes("finetune.n_passages"),
    "model.eval_negative_size": Becomes("finetune.eval_negative_size"),
    "model.t": Becomes("finetune.temperature", number),
    "model.use_liger_kernel": Becomes("finetune.liger"),
    "model.torch_dtype": _precision,
    "model.dtype": _precision,
    "model.attn_implementation": Becomes("finetune.attention"),
    "model.do_gradient_checkpointing": Becomes("finetune.gradient_checkpointing"),
    "model.do_distributed_inbatch_negative": _negatives,
    "model.detach_distributed_inbatch_negatives": Left("gradients reach the passages of all workers here"),
    "model.extract_submodel": Left("the language model of a Mistral 3 is taken out by itself"),
    "model.trust_remote_code": Left("no code of a model's folder runs in a training"),
    "model.use_sdpa_patching": _FAST,
    "model._target_": _THEIR_CLASS,
    "teacher_model.*": Left("how a teacher is run is said in finetune.distillation[0].encoder"),
    "tokenizer.pretrained_model_name_or_path": _tokenizer,
    "tokenizer.add_bos_token": Becomes("finetune.add_bos"),
    "tokenizer.add_eos_token": Becomes("finetune.add_eos"),
    "tokenizer.padding_side": Left("padding changes no vector here"),
    "tokenizer._target_": _THEIR_CLASS,
    "tokenizer.*": Left("the tokenizer is loaded as its own files say"),
    "dataloader.collate_fn.q_max_len": Becomes("finetune.query_max_length"),
    "dataloader.collate_fn.p_max_len": Becomes("finetune.passage_max_length"),
    "dataloader.collate_fn.query_prefix": Becomes("finetune.query_prefix"),
    "dataloader.collate_fn.passage_prefix": Becomes("finetune.passage_prefix"),
    "dataloader.collate_fn.use_dataset_instruction": Becomes("finetune.dataset_instructions"),
    "dataloader.collate_fn.*": _FAST,
    "dataloader.shuffle": Becomes("finetune.shuffle"),
    "dataloader.num_workers": Left(
        "processes that tokenise there; finetune.num_workers here is the number of training workers"
    ),
    "dataloader._target_": _THEIR_CLASS,
    "dataloader.*": _FAST,
    "validation_dataloader.batch_size": Becomes("finetune.validation_batch_size"),
    "validation_dataloader.*": _SAME_BOTH,
    "peft.dim": Becomes("finetune.lora.dim"),
    "peft.alpha": Becomes("finetune.lora.alpha"),
    "peft.dropout": Becomes("finetune.lora.dropout"),
    "peft.use_dora": Becomes("finetune.lora.dora"),
    "peft.target_modules": _modules,
    "peft.exclude_modules": _modules,
    "peft.match_all_linear": Left("all linear layers are adapted where finetune.lora.target_modules names none"),
    "peft.*": _FAST,
    "optimizer.lr": Becomes("finetune.learning_rate", number),
    "optimizer.weight_decay": Becomes("finetune.weight_decay", number),
    "optimizer.*": Left("AdamW with float32 weights and states, torch's other defaults"),
    "lr_scheduler.lr_warmup_steps": Becomes("finetune.warmup_steps"),
    "lr_scheduler.lr_decay_style": schedule,
    "lr_scheduler.min_lr": Becomes("finetune.min_learning_rate", number),
    "lr_scheduler.*": Left("warm-up, then one decay over all steps"),
    "clip_grad_norm.max_norm": Becomes("finetune.max_grad_norm", number),
    "max_grad_norm": Becomes("finetune.max_grad_norm", number),
    "checkpoint.checkpoint_dir": Becomes("finetune.output", training_output, "the folder above `checkpoints`"),
    "checkpoint.max_recent_checkpoints": Becomes("finetune.keep_last"),
    "checkpoint.*": Left("checkpoints are always written, consolidated safetensors among them"),
    "distributed.strategy": _strategy,
    "distributed.tp_size": Becomes("finetune.tp_size"),
    "distributed.cp_size": Becomes("finetune.cp_size"),
    "distributed.sequence_parallel": Becomes("finetune.sequence_parallel"),
    "distributed.dp_replicate_size": _replicas,
    "distributed.*": Left("the workers' number is finetune.num_workers"),
    "wandb.project": Becomes("finetune.logging.wandb.project"),
    "wandb.entity": Becomes("finetune.logging.wandb.entity"),
    "wandb.name": Becomes("finetune.logging.wandb.name"),
    "wandb.*": Left("wandb's own variables of the environment say it"),
    "ci.*": Left("of AutoModel's own tests"),
    "mse_loss_weight": Left("the directions of the teacher's vectors are followed, not their lengths"),
    "nce_distill_loss_weight": Left("see finetune.distillation, kind: kl, for a teacher's scores"),
    "distill_loss.*": _THEIR_CLASS,
    "mse_loss.*": _THEIR_CLASS,
    "infonce_distill_loss.*": _THEIR_CLASS,
}

_MINING: Table = {
    "dist_env.*": Left("Ray places the encoders and the search"),
    "mining.model_name_or_path": Becomes("mine.model"),
    "mining.tokenizer_name_or_path": Left("a model's own tokenizer is taken"),
    "mining.train_qa_file_path": Becomes("mine.input"),
    "mining.train_file_output_path": Becomes(
        "mine.output", lambda value: str(value).rpartition("/")[0] or ".", "a folder here, of several files"
    ),
    "mining.cache_embeddings_dir": Becomes("mine.cache"),
    "mining.load_embeddings_from_cache": Left("what the cache holds of this model, prompt and text is always taken"),
    "mining.hard_negatives_to_mine": Becomes("mine.hard_negatives_to_mine"),
    "mining.hard_neg_margin": Becomes("mine.hard_neg_margin", number),
    "mining.hard_neg_margin_type": Becomes("mine.hard_neg_margin_type"),
    "mining.mining_batch_size": Becomes("mine.mining_batch_size"),
    "mining.query_prefix": Becomes("mine.query_prefix"),
    "mining.passage_prefix": Becomes("mine.passage_prefix"),
    "mining.query_max_length": Becomes("mine.query_max_length"),
    "mining.passage_max_length": Becomes("mine.passage_max_length"),
    "mining.use_negatives_from_file": Becomes("mine.use_negatives_from_file"),
    "mining.*": Left("how fast, not what"),
}
