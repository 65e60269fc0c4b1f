"""jobs/finetune.py as the entrypoint of `ray job submit`: trains, is done the second time, fails with what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raycurate.core.manifest import require_whole
from tests.clusters import head_node
from tests.finetune.runs import losses, small_recipe
from tests.processes import PATIENCE_S, ROOT


@pytest.mark.slow
def test_submit_a_training(tmp_path: Path) -> None:
    options = small_recipe(tmp_path / "given") | {"num_epochs": 1, "output": str(tmp_path / "tuned")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"finetune": options}))
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    assert ray is not None
    with head_node(tmp_path, num_cpus=2, auth="token", extra_env={"PYTHONPATH": str(ROOT)}) as head:

        def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [ray, "job", "submit", "--address", head.dashboard, "--"]
            command += [sys.executable, str(ROOT / "jobs/finetune.py"), "-c", str(recipe), *arguments]
            env = {**os.environ, **head.env, "PYTHONPATH": str(ROOT)}
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

        first = submit()
        assert first.returncode == 0, first.stdout + first.stderr
        assert "trained   7 steps, 1 epoch, 2 workers" in first.stdout
        counts = require_whole(str(tmp_path / "tuned")).counts
        assert (counts["steps"], list(losses(tmp_path / "tuned"))) == (7, list(range(1, 8)))
        again = submit()
        assert again.returncode == 0 and "is done, nothing to do" in again.stdout
        wrong = submit("learning_rat=1e-5")
        assert wrong.returncode != 0 and "did you mean 'learning_rate'?" in wrong.stdout
