"""A whole recipe, from documents to documents without near-duplicates, as one Ray job on two CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycurate.core.manifest import require_whole
from tests.clusters import head_node
from tests.processes import PATIENCE_S, ROOT


@pytest.mark.slow
def test_submit_a_whole_recipe(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    lines = [json.dumps({"text": f"text {i % 40}"}) for i in range(50)]
    (tmp_path / "docs/a.jsonl").write_text("\n".join(lines))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"workdir: {tmp_path}/work\ncorpus: {tmp_path}/docs\nmodel: hash\n"
        "embed:\n  engine: tests.embed.hashing:HashEncoder\nkmeans:\n  num_workers: 2\ndedup: {}\n"
    )
    with head_node(tmp_path, num_cpus=2, extra_env={"PYTHONPATH": str(ROOT)}) as head:
        command = [sys.executable, "-m", "raycurate.cli", "submit", "run", "-c", str(recipe)]
        command += ["--address", head.dashboard]
        env = {**os.environ, **head.env, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "== dedup" in done.stdout
    counts = require_whole(str(tmp_path / "work/dedup")).counts
    assert (counts["rows"], counts["documents"]) == (50, 50 - counts["removed"]) and counts["removed"] >= 8
