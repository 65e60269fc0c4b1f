"""The model before training: measured as its checkpoints are, once a training, from the vectors that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.core.manifest import Manifest, StageKey
from raycurate.data.corpora.beir import write_beir
from raycurate.stages.finetune.base_eval import measure_base
from raycurate.stages.finetune.dev_eval import METRICS, DevOptions, evaluate_dev
from raycurate.stages.finetune.result import FinetuneResult
from tests.encoders.tiny import WORDS
from tests.finetune.families import save_family
from tests.finetune.runs import config_of


@pytest.mark.slow
def test_it_is_measured_once_and_by_the_length_of_the_trained_model(local_ray: None, tmp_path: Path) -> None:
    documents = {f"d{i}": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 8)) for i in range(15)}
    queries = {f"q{i}": " ".join(text.split()[:2]) for i, text in enumerate(documents.values())}
    rows = [[{"_id": name, "text": text} for name, text in texts.items()] for texts in (documents, queries)]
    data, model, cache = str(tmp_path / "beir"), save_family(tmp_path / "model", "bert"), tmp_path / "cache"
    write_beir(data, corpus=rows[0], queries=rows[1], qrels={"dev": {f"q{i}": {f"d{i}": 1} for i in range(15)}})
    recipe = {"train": "t.jsonl", "model": model, "dev": data, "encoder": {"max_length": 6}}
    assert measure_base(config_of(recipe, tmp_path / "out")) == {}
    config = config_of(recipe, tmp_path / "out", measure_base=True, cache=str(cache))
    assert config.model_options().max_length == 6  # and so will the trained model be run
    found = measure_base(config)
    short = evaluate_dev(model, DevOptions(data, str(tmp_path / "work"), {"max_length": 6}, cache=str(cache)))
    assert found == {name: short[name] for name in METRICS}  # and the cache, which both read, was made once:
    assert len(list(cache.iterdir())) == 1

    kept = tmp_path / "out" / "_staging" / "base.json"
    kept.write_text(json.dumps(found | {"dev_ndcg10": 0.125}))
    assert measure_base(config)["dev_ndcg10"] == 0.125
    assert [p.name for p in kept.parent.iterdir()] == ["base.json"] or not any((kept.parent / "base").iterdir())


def test_before_and_after_stand_in_one_table() -> None:
    settings = {
        "best": "epoch_0_step_9",
        "latest": "epoch_0_step_9",
        "metric": "dev_ndcg10",
        "metrics": {"loss": 3.0, "val_questions": 7.0, "dev_ndcg10": 0.45, "dev_recall100": 0.8},
        "base_metrics": {"dev_ndcg10": 0.4, "dev_recall100": 0.81, "dev_mrr10": 0.3},
    }
    counts = {"questions": 1000, "validation_questions": 0, "steps": 9, "epochs": 1, "workers": 2, "stopped_early": 0}
    key = StageKey(stage="finetune", algorithm_version=1, input_fingerprint="x", options={})
    result = FinetuneResult("out", Manifest(key=key, files=[], counts=counts, settings=settings))
    said = result.summary().splitlines()
    assert said[2] == "best      epoch_0_step_9 (by dev_ndcg10): dev_ndcg10 0.4500, dev_recall100 0.8000"
    assert [line.split() for line in said[-5:-1]] == [
        ["dev", "questions", "NDCG@10", "Recall@100"],
        ["before", "0.4000", "0.8100"],
        ["after", "0.4500", "0.8000"],
        ["change", "+0.0500", "-0.0100"],
    ]
    assert said[-1] == "model     out/checkpoints/epoch_0_step_9/model/consolidated"
    assert set(result.metrics) == {"val_questions", "dev_ndcg10", "dev_recall100"}
    assert pytest.approx(0.4) == result.base_metrics["dev_ndcg10"]
