"""A stage that was done before tells what it holds, not how fast another day was."""

from __future__ import annotations

import pytest

from raycurate.core.manifest import Manifest, StageKey
from raycurate.stages.embed.stage import EmbedResult
from raycurate.stages.finetune.result import FinetuneResult
from raycurate.stages.kmeans.stage import KMeansResult
from raycurate.stages.mine.stage import MineResult

RESULTS = {
    "embed": (
        EmbedResult,
        {"documents": 9, "tokens": 90, "truncated": 0, "resumed_rows": 0},
        {"stream": 2.0, "wall": 3.0, "steady_rows_per_second": 4.5},
        {},
    ),
    "kmeans": (
        KMeansResult,
        {"rows": 9, "clusters": 2, "empty_clusters": 0, "largest_cluster": 5, "dimension": 4, "iterations": 3},
        {"wall": 3.0},
        {"inertia": 1.0},
    ),
    "mine": (
        MineResult,
        {
            "questions": 3,
            "negatives": 6,
            "questions_with_fewer": 0,
            "questions_without": 0,
            "dropped": 0,
            "excluded": 0,
        },
        {"search": 1.0},
        {"scores": {}},
    ),
    "finetune": (
        FinetuneResult,
        {"questions": 3, "validation_questions": 0, "steps": 2, "epochs": 1, "workers": 1, "stopped_early": 0},
        {"train": 1.0},
        {"best": "epoch_0_step_1", "metric": None, "metrics": {}, "base_metrics": {}},
    ),
}


@pytest.mark.parametrize("stage", RESULTS)
def test_times_and_rates_are_told_once(stage):
    kind, counts, timings, settings = RESULTS[stage]
    key = StageKey(stage=stage, algorithm_version=1, input_fingerprint="x", options={})
    manifest = Manifest(key=key, files=[], counts=counts, timings=timings, settings=settings)
    first, again = (kind("out", manifest, skipped=skipped).summary() for skipped in (False, True))
    assert "seconds" in first
    for word in ("seconds", "wall", "/s", "rate"):
        assert word not in again
    assert set(again.splitlines()) <= set(first.splitlines())
