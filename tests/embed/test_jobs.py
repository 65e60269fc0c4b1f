"""The embed stage as a Ray job: submitted, followed, finished; and one with a bad option, which fails with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters import head_node
from tests.processes import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_submit_embed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text("\n".join(json.dumps({"text": f"text {i}"}) for i in range(50)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"workdir: {tmp_path}/work\ncorpus: {tmp_path}/docs\nmodel: hash\n"
        "embed:\n  engine: tests.embed.hashing:HashEncoder\n"
    )
    with head_node(tmp_path, num_cpus=2, auth="token", extra_env={"PYTHONPATH": str(ROOT)}) as head:

        def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "raycurate.cli", "submit", "embed", "-c", str(recipe), *arguments]
            command += ["--address", head.dashboard]
            env = {**os.environ, **head.env, "PYTHONPATH": str(ROOT)}
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)

        good = submit()
        assert good.returncode == 0, good.stdout + good.stderr
        assert "documents 50" in good.stdout  # the job's own log, followed
        assert json.loads((tmp_path / "work/embeddings/_manifest.json").read_text())["counts"]["documents"] == 50
        # A recipe is checked before it is sent ...
        misspelt = submit("bach_size=3")
        assert misspelt.returncode == 2 and "did you mean 'batch_size'" in misspelt.stderr
        # ... and what only the cluster can know fails there, with the error as the job's message.
        (tmp_path / "docs" / "a.jsonl").unlink()
        bad = submit(f"output={tmp_path}/other")
        assert bad.returncode == 1
        assert "no file" in bad.stdout.splitlines()[-1]
