"""The stages of NVIDIA's `nemotron embed` recipe: one YAML a stage, flat keys.

Several files of one run make one recipe; `artifact_root` is its workdir. Where theirs leave the choice open, their
training takes AutoModel's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycurate.import_config.rules import (
    Becomes,
    Draft,
    Left,
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

STAGES = {
    "prep": "sdg_input_path", "finetune": "train_data_path", "eval": "eval_data_path", "export": "onnx_export_path",
    "deploy": "host_port", "sdg": "corpus_dir",
}  # fmt: skip
"""Stage -> a key that its file has and no other's."""
UNKNOWN = "raycurate knows no such key of this stage"


def stage_of(values: Mapping[str, Any]) -> str | None:
    """Which stage's file it is, None where it is none."""
    if "train_input_file" in values:
        return "prep"
    return next((stage for stage, key in STAGES.items() if key in values), None)


def read(values: Mapping[str, Any], draft: Draft, stage: str) -> None:
    """Lay a stage's file into the draft."""
    kept = {key: value for key, value in values.items() if value is not None or key in ("hard_neg_margin_type",)}
    apply(draft, flatten(kept), {**_COMMON, **_TABLES[stage]}, unknown=UNKNOWN)
    if stage == "finetune":
        finish_schedule(draft)
        if draft.get("finetune.bidirectional") is None:
            draft.put("finetune.bidirectional", True, "is_causal is false there by default")
    if stage in ("sdg", "export", "deploy"):
        draft.trap(f"`{stage}` is not among raycurate's stages yet: its options are left out")


def _own_pairs(draft: Draft, key: str, value: Any) -> None:
    draft.put("mine.input", value, key)
    draft.trap(f"{key} names training data of your own: they are mined by the stage mine, not by prep")


def _loss(draft: Draft, key: str, value: Any) -> None:
    draft.put("finetune.loss", "cross_rank" if value else "listed", f"{key}: {value}")


def _output(section: str) -> Becomes:
    return Becomes(f"{section}.output")


_FAST = Left("how fast, not what")
_NOT_YET = Left("raycurate has no such stage yet")
_EVAL_SPEED = (
    "batch_size", "corpus_chunk_size", "nim_batch_size", "nim_timeout", "nim_invalid_embedding_retries",
    "nim_embedding_dimension",
)  # fmt: skip
_COMMON: Table = {
    "artifact_root": Becomes("workdir"),
    "base_model": Becomes("model"),
    "run.*": Left("where a job runs is said to `raycurate submit`"),
    "trust_remote_code": Left("models are loaded without their own code; embed.trust_remote_code is for others"),
    "attn_implementation": _FAST,
    "log_level": Left("-v shows more"),
}
_TABLES: dict[str, Table] = {
    "sdg": {"corpus_dir": Becomes("corpus"), "*": _NOT_YET},
    "prep": {
        "output_dir": _output("prep"),
        "sdg_input_path": Becomes("prep.input"),
        "train_input_file": _own_pairs,
        "corpus_id": Becomes("prep.corpus_id"),
        "conversion_seed": Becomes("prep.seed"),
        "groups_json": Becomes("prep.groups"),
        "use_group_id_in_eval": Left("questions have ids of their own here; their files are in eval_beir's metadata"),
        "hard_neg_margin": Becomes("prep.hard_neg_margin", number),
        **{
            name: Becomes(f"prep.{name}")
            for name in (
                "quality_threshold",
                "train_ratio",
                "val_ratio",
                "test_ratio",
                "max_pos_docs",
                "split_strategy",
                "hard_negatives_to_mine",
                "hard_neg_margin_type",
                "mining_batch_size",
                "query_max_length",
                "passage_max_length",
                "query_prefix",
                "passage_prefix",
            )
        },
    },
    "finetune": {
        "train_data_path": Becomes("finetune.train"),
        "val_data_path": Becomes("finetune.val"),
        "checkpoint_dir": Becomes("finetune.output", training_output, "the folder above `checkpoints`"),
        "lr_warmup_steps": Becomes("finetune.warmup_steps"),
        "lr_decay_style": schedule,
        "learning_rate": Becomes("finetune.learning_rate", number),
        "weight_decay": Becomes("finetune.weight_decay", number),
        "temperature": Becomes("finetune.temperature", number),
        "train_n_passages": Becomes("finetune.n_passages"),
        "l2_normalize": Becomes("finetune.normalize"),
        "pooling": pooling("finetune.pooling"),
        "is_causal": Becomes("finetune.bidirectional", inverted, "is_causal, inverted"),
        "val_every_steps": Becomes("finetune.validate_every_steps"),
        "attn_implementation": Becomes("finetune.attention"),
        "do_distributed_inbatch_negative": _loss,
        "detach_distributed_inbatch_negatives": Left("gradients reach the passages of all workers here"),
        "auto_scale_checkpoint_intervals": Left("a checkpoint is written at the end of each epoch in any case"),
        "optimizer_backend": _FAST,
        "flash_adamw_master_weight_bits": _FAST,
        **{
            name: Becomes(f"finetune.{name}")
            for name in (
                "num_epochs",
                "max_steps",
                "global_batch_size",
                "local_batch_size",
                "query_max_length",
                "passage_max_length",
                "query_prefix",
                "passage_prefix",
                "checkpoint_every_steps",
            )
        },
    },
    "eval": {
        "output_dir": _output("eval"),
        "eval_data_path": Becomes("eval.input"),
        "finetuned_model_path": Becomes("eval.finetuned", training_output, "the training's output"),
        "max_length": Becomes("eval.encoder.max_length"),
        "pooling": pooling("eval.encoder.pooling"),
        "normalize": Becomes("eval.encoder.normalize"),
        "embedding_api_backend": Left("any server that speaks OpenAI's /v1/embeddings is judged alike"),
        **{
            name: Becomes(f"eval.{name}")
            for name in (
                "k_values",
                "eval_base",
                "eval_finetuned",
                "eval_nim",
                "nim_url",
                "nim_model",
                "query_prefix",
                "passage_prefix",
            )
        },
        **dict.fromkeys(_EVAL_SPEED, _FAST),
    },
    "export": {"*": _NOT_YET},
    "deploy": {"*": _NOT_YET},
}
