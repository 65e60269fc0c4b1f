"""Checkpoints on an object store, written by two workers, one program killed and a second one going on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from raycurate.core import storage
from raycurate.core.manifest import missing_files, require_whole
from raycurate.models.contract import EmbeddingContract
from raycurate.models.fetch import fetch_model
from raycurate.models.options import EncoderOptions
from raycurate.training.checkpoints.checkpoints import CONSOLIDATED, CheckpointStore
from tests.finetune.runs import STEPS, small_recipe
from tests.processes import finish, start, tree, wait_until


@pytest.mark.slow
def test_finetune_on_s3_goes_on_after_a_kill(s3: str, tmp_path: Path) -> None:
    output = f"{s3}/tuned"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"finetune": {**small_recipe(tmp_path), "output": output}}))
    command = ("finetune", "-c", str(path))
    process = start(*command)
    wait_until(lambda: storage.exists(f"{output}/checkpoints/LATEST"), process, "the first checkpoint")
    for pid in list(tree(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert "going on from" in finish(start(*command))

    store, manifest = CheckpointStore(f"{output}/checkpoints"), require_whole(output)
    latest = store.latest()
    assert latest is not None and latest.step == STEPS and len(store.all()) <= 2
    assert not missing_files(output, manifest) and not storage.exists(f"{output}/_staging")
    best = fetch_model(EncoderOptions(model=f"{store.path(manifest.settings['best'])}/{CONSOLIDATED}"))
    assert EmbeddingContract.from_checkpoint(best).model_dump(mode="json") == manifest.contract
