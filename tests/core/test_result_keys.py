"""What a stage's options are in the key of its output: a change here makes every output of before be made anew."""

from __future__ import annotations

from typing import Any

from raycurate.pipeline import options_of

KMEANS = {
    "input": "i",
    "input_filetype": "parquet",
    "id_field": "id",
    "embedding_field": "embeddings",
    "metadata_fields": [],
    "embedding_dim": None,
    "n_clusters": "auto",
    "max_iter": 300,
    "tol": 0.0001,
    "random_state": 42,
    "init": "k-means||",
    "n_init": 1,
    "oversampling_factor": 2.0,
    "fit_data_fraction": None,
    "warm_start_fraction": None,
    "centroids": None,
    "engine": "auto",
    "repeated_ids": "error",
}
FINETUNE = {
    "train": "t",
    "val": None,
    "on_bad_rows": "error",
    "n_passages": 5,
    "cycle_positives": False,
    "eval_negative_size": None,
    "query_max_length": 512,
    "passage_max_length": 512,
    "query_prefix": None,
    "passage_prefix": None,
    "dataset_instructions": False,
    "pad_token": None,
    "model": "m",
    "revision": None,
    "tokenizer": None,
    "add_bos": None,
    "add_eos": None,
    "pooling": None,
    "normalize": None,
    "document_template": None,
    "matryoshka": {},
    "bidirectional": None,
    "export_max_length": None,
    "separate_encoders": False,
    "dropout": None,
    "lora": None,
    "loss": "listed",
    "temperature": 0.02,
    "contrastive_weight": 1.0,
    "symmetric": False,
    "false_negatives": None,
    "distillation": [],
    "num_epochs": 3,
    "max_steps": None,
    "learning_rate": 1e-05,
    "min_learning_rate": 0.0,
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup_steps": None,
    "warmup_ratio": None,
    "max_grad_norm": 1.0,
    "global_batch_size": 128,
    "local_batch_size": None,
    "by_corpus": False,
    "drop_last": True,
    "shuffle": True,
    "length_window": 50,
    "seed": 42,
    "precision": "auto",
    "early_stopping": None,
    "validate_every_steps": None,
    "dev": None,
    "best_metric": "auto",
    "resume": "auto",
    "encoder": {},
}
LORA = {"dim": 8, "alpha": 32.0, "dropout": 0.0, "dora": False, "target_modules": [], "exclude_modules": []}
TEACHER = {"weight": 1.0, "teacher_temperature": 1.0, "teacher_scale": 1.0, "teacher": None, "encoder": {}}


def keys(stage: str, **options: Any) -> dict[str, Any]:
    kept: dict[str, Any] = options_of(stage)(**options).result_keys()
    return kept


def test_kmeans() -> None:
    assert keys("kmeans", input="i", output="o") == KMEANS


def test_finetune() -> None:
    given: dict[str, Any] = {"train": "t", "model": "m", "output": "o"}
    assert keys("finetune", **given) == FINETUNE
    teachers = [{"kind": "kl"}, {"kind": "embeddings", "teacher": "T"}]
    groups = {"lora": {}, "false_negatives": {}, "distillation": teachers, "matryoshka": {64: 1, 128: 0.5}}
    assert keys("finetune", **given, **groups) == FINETUNE | {
        "lora": LORA,
        "false_negatives": {"kind": "perc", "margin": 0.95, "listed_too": False},
        "distillation": [TEACHER | part for part in teachers],
        "matryoshka": {"64": 1.0, "128": 0.5},
    }
