"""A node is taken away, with notice: a checkpoint is made at once, and the training goes on from it elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finetune.preemption import STEPS
from tests.processes import PATIENCE_S, ROOT


@pytest.mark.slow
def test_a_checkpoint_is_made_before_the_node_goes(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    command = [sys.executable, "-m", "tests.finetune.preemption", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID "))[5:])
    assert said["accepted"], said["refusal"]
    first = said["first"]
    assert first["interim"] and 5 <= first["step"] < STEPS and "loss" in first["metrics"]
    assert f"going on from {tmp_path}/out/checkpoints/epoch_" in output
    assert said["steps"] == list(range(1, STEPS + 1))
    assert said["left"] == [{"step": STEPS, "interim": False}]
