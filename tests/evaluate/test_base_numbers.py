"""One number of the base: measured before a training and by eval, under what was said to the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycurate.core.manifest import Manifest, StageKey, write_manifest
from raycurate.data.corpora.beir import write_beir
from raycurate.stages.eval.stage import STAGE as evaluate
from raycurate.stages.finetune.base_eval import measure_base
from tests.encoders.tiny import WORDS
from tests.finetune.families import save_family
from tests.finetune.runs import config_of


@pytest.mark.usefixtures("local_ray")
def test_before_the_training_and_in_eval(tmp_path: Path) -> None:
    """Prefixes of a model that knows none change its ranking, so they would show."""
    documents = {f"d{i}": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 8)) for i in range(25)}
    queries = {f"q{i}": " ".join(text.split()[:2]) for i, text in enumerate(documents.values())}
    rows = [[{"_id": name, "text": text} for name, text in texts.items()] for texts in (documents, queries)]
    data, model, cache = str(tmp_path / "beir"), save_family(tmp_path / "model", "bert"), str(tmp_path / "cache")
    write_beir(data, corpus=rows[0], queries=rows[1], qrels={"dev": {f"q{i}": {f"d{i}": 1} for i in range(25)}})
    told: dict[str, Any] = {"query_prefix": "the old bridge ", "passage_prefix": "rain "}
    recipe = {"train": "t.jsonl", "model": model, "dev": data, "query_max_length": 6, "cache": cache, "device": "cpu"}
    config = config_of(recipe, tmp_path / "out", measure_base=True, normalize=True, **told)
    before = measure_base(config)
    key = StageKey(stage="finetune", algorithm_version=1, input_fingerprint="x", options={})
    write_manifest(config.output, Manifest(key=key, files=[], settings=config.redacted()))

    def base(**options: Any) -> tuple[float, int]:
        name = f"eval{len(list(tmp_path.iterdir()))}"
        asked = {"split": "dev", "model": model, "bm25": False, "cache": cache, "encoder": {"device": "cpu"}, **options}
        found = evaluate(data, str(tmp_path / name), **asked)
        return found.metric("base", "NDCG@10"), found.metadata["systems"]["base"]["embedded_now"]

    # Told by the training's output, or by the options themselves; and what was embedded before is not again.
    assert base(finetuned=config.output, eval_finetuned=False) == (before["dev_ndcg10"], 0)
    assert base(**told, encoder={"device": "cpu", "normalize": True}) == (before["dev_ndcg10"], 0)
    assert base()[0] != before["dev_ndcg10"]
