"""The table that `raycurate run` ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.report.terminal import closing
from tests.report.evaluations import write_evaluation
from tests.report.outputs import write_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run / "eval")
    said = dict(line.split("   ", 1) for line in closing(str(run)).splitlines())
    names = [name.strip() for name in said]
    assert names == ["documents", "duplicates", "pairs", "nDCG@10 of test", "report"]
    results = json.loads((run / "eval" / "eval_results.json").read_text())
    base, tuned = (results[name]["NDCG"]["NDCG@10"] for name in ("base", "finetuned"))
    assert f"{base:.4f} -> {tuned:.4f}" in said["nDCG@10 of test"]
    assert (run / "report.html").exists()


def test_without_outputs_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert closing(str(tmp_path)) == ""


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'raycurate[report]'" in closing(str(run))
    assert not (run / "report.html").exists()
