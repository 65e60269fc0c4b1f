"""The whole program killed or stopped in the middle of an epoch; the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.finetune.runs import STEPS, losses, small_recipe
from tests.processes import PATIENCE_S, finish, start, tree, wait_until


@pytest.mark.slow
@pytest.mark.parametrize(("how", "workers"), [("killed", 2), ("killed", 1), ("stopped", 2)])
def test_the_same_command_goes_on(tmp_path: Path, how: str, workers: int) -> None:
    """With the same number of workers and with another one; after SIGKILL and after Ctrl-C: the same curve.

    Dropout is drawn by rank, so with other workers it would be another one.
    """
    path = tmp_path / "recipe.yaml"
    recipe = small_recipe(tmp_path) | ({} if workers == 2 else {"dropout": 0.0})
    path.write_text(yaml.safe_dump({"finetune": recipe}))

    def command(output: Path, count: int) -> list[str]:
        return ["finetune", "-c", str(path), f"output={output}", f"num_workers={count}"]

    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    finish(start(*command(whole, 2)))
    process = start(*command(disturbed, 2))
    log = disturbed / "train.jsonl"
    wait_until(lambda: log.exists() and '"step": 33,' in log.read_text(), process, "step 33")
    if how == "stopped":
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130 and "give the same command again to go on" in said, said
    else:
        for pid in list(tree(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not (disturbed / "_manifest.json").exists()
    assert "going on from" in finish(start(*command(disturbed, workers)))
    curve, undisturbed = losses(disturbed), losses(whole)
    assert list(curve) == list(range(1, STEPS + 1))
    tolerance = 1e-6 if workers == 2 else 1e-4
    np.testing.assert_allclose(list(curve.values()), list(undisturbed.values()), rtol=tolerance, atol=tolerance)
