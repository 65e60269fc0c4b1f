"""The functions of `import raycurate as rc`, as a program of one's own calls them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import raycurate as rc
from tests.finetune.runs import losses, small_recipe


def test_every_name_is_there_and_its_import_costs_nothing() -> None:
    assert all(callable(getattr(rc, name)) for name in rc.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'finetuned'"):
        _ = rc.finetuned
    code = "import sys, raycurate; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_finetune_trains_and_its_result_can_be_asked(local_ray: None, tmp_path: Path) -> None:
    options = small_recipe(tmp_path / "given") | {"num_epochs": 1, "num_workers": 1}
    given = {name: options.pop(name) for name in ("train", "model")}
    with pytest.raises(rc.RaycurateError, match=r"rc\.finetune: unknown key 'epochs'"):
        rc.finetune(**given, output=str(tmp_path / "out"), epochs=1, **options)
    result = rc.finetune(**given, output=str(tmp_path / "out"), **options)
    assert not result.skipped
    assert result.losses == losses(tmp_path / "out") and list(result.losses) == list(range(1, 8))
    assert {"val_loss", "val_acc1", "val_mrr"} <= result.metrics.keys() and 0 < result.metrics["val_mrr"] <= 1
    assert result.best == result.latest and (Path(result.best) / "model.safetensors").is_file()
    assert result.base_metrics == {}
    assert "trained   7 steps, 1 epoch, 1 worker" in result.summary() and "before" not in result.summary()
    again = rc.finetune(**given, output=str(tmp_path / "out"), **options)
    assert again.skipped and again.losses == result.losses
