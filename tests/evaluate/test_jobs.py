"""jobs/eval.py as the entrypoint of `ray job submit`, and a driver that is killed between two systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raycurate.core.manifest import require_whole
from raycurate.stages.eval.result import EvalResult
from tests.clusters import head_node
from tests.evaluate.test_stage import write_set
from tests.processes import PATIENCE_S, ROOT, finish, start, wait_until

HASHED = ["encoder.engine=tests.embed.hashing:HashEncoder", "encoder.concurrency=1"]


@pytest.mark.slow
def test_submit_an_evaluation(tmp_path: Path) -> None:
    beir = write_set(tmp_path)
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    assert ray is not None
    with head_node(tmp_path, num_cpus=2, auth="token", extra_env={"PYTHONPATH": str(ROOT)}) as head:

        def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [ray, "job", "submit", "--address", head.dashboard, "--", sys.executable]
            command += [str(ROOT / "jobs/eval.py"), f"input={beir}", f"output={tmp_path / 'eval'}", *HASHED, *arguments]
            env = {**os.environ, **head.env, "PYTHONPATH": str(ROOT)}
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

        first = submit("model=hash")
        assert first.returncode == 0, first.stdout + first.stderr
        assert "60 questions over 71 documents" in first.stdout
        assert require_whole(str(tmp_path / "eval")).counts["systems"] == 3
        wrong = submit("model=hash", "split=tets", "overwrite=true")
        assert wrong.returncode != 0
        assert "Did you mean 'test'?" in wrong.stdout


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    """Killed while the second system embeds; then the first is not embedded again, and all is as if undisturbed."""
    beir, logs = write_set(tmp_path), [tmp_path / "first.txt", tmp_path / "second.txt"]
    slow = f"{{slow: {{model: hash, encoder: {{engine_kwargs: {{log: {logs[1]}, delay: 5}}}}}}}}"
    said = [f"input={beir}", f"output={tmp_path / 'eval'}", "model=hash", *HASHED, f"systems={slow}"]
    command = ["eval", *said, f"encoder.engine_kwargs.log={logs[0]}"]
    run = start(*command)
    staging = tmp_path / "eval" / "_staging"
    wait_until(lambda: any(staging.rglob("base.parquet")), run, "the first system's answers")
    run.kill()
    run.communicate()
    encoded = logs[0].read_text()
    finish(start(*command))
    assert logs[0].read_text() == encoded
    result = EvalResult(str(tmp_path / "eval"), require_whole(str(tmp_path / "eval")))
    pair = result.comparison("slow", "base")
    assert pair is not None
    assert (pair["wins"], pair["losses"], pair["ties"]) == (0, 0, 60)
