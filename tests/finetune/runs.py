"""A small training as a whole stage: a tiny BERT, 60 questions, two workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycurate.stages.finetune.config import FinetuneConfig
from tests.encoders.tiny import WORDS
from tests.finetune.families import save_family
from tests.finetune.training_sets import write_set

STEPS = 84  # 60 questions, 8 a step, 12 epochs


def small_recipe(folder: Path) -> dict[str, Any]:
    """Options of a training whose data and model are written to `folder`.

    A question is two words of its document, so that there is something to learn.
    """
    documents = {f"d{i}": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 8)) for i in range(40)}
    rows = []
    for i in range(80):
        words = documents[f"d{i % 40}"].split()
        negatives = [f"d{(i * 7 + k) % 40}" for k in (3, 5, 11) if (i * 7 + k) % 40 != i % 40]
        rows.append(
            {"question_id": f"q{i}", "question": " ".join(words[i % 3 : i % 3 + 2]), "pos_doc": [f"d{i % 40}"],
             "neg_doc": negatives}
        )  # fmt: skip
    for name, part in (("train", rows[:60]), ("val", rows[60:])):
        (folder / name).mkdir(parents=True)
        write_set(folder / name, part, documents, corpus_id=name)
    return {
        "train": str(folder / "train" / "train.json"),
        "val": str(folder / "val" / "val.json"),
        "model": save_family(folder / "model", "bert"),
        "n_passages": 3,
        "query_max_length": 16,
        "passage_max_length": 16,
        "num_epochs": 12,
        "global_batch_size": 8,
        "learning_rate": 1e-3,
        "temperature": 0.05,
        "precision": "float32",  # the same numbers on every processor
        "checkpoint_every_steps": 20,
        "num_workers": 2,
        "actors": {"num_cpus": 0.5},
        "timeout_minutes": 10,
        "data_cache": str(folder / "cache"),
    }


def config_of(recipe: dict[str, Any], output: Path | str, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig.parse({**recipe, "output": str(output), **changes}, where="test")


def losses(output: Path) -> dict[int, float]:
    """Step -> loss, from the log; a step that stands there twice is an error."""
    found: dict[int, float] = {}
    for line in (output / "train.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "loss" in values:
            assert values["step"] not in found
            found[values["step"]] = values["loss"]
    return found
