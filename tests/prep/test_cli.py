"""prep's and mine's own flags on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycurate.cli import main
from raycurate.core.config import load_recipe
from raycurate.pipeline import STAGES, config_of, selected


def test_a_data_set_needs_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prep", "--dataset", "nvidia/embed-nemotron-dataset-v1"]) == 2
    assert "Add --download-path DIR" in capsys.readouterr().err


def test_a_data_set_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prep", "--dataset", str(tmp_path / "nothing"), "--download-path", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_show_needs_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine", "--show", "q1"]) == 2
    assert "Add output=FOLDER" in capsys.readouterr().err


def test_prep_of_the_shipped_recipe_is_wired_to_what_comes_before() -> None:
    recipe = load_recipe("quickstart", [], stages=STAGES, stage=None)
    names = [stage.name for stage in selected(recipe)]
    assert names == ["sample-corpus", "embed", "kmeans", "dedup", "prep", "finetune", "eval"]
    config = config_of("prep", recipe)
    assert (config.output, config.cache) == ("runs/quickstart/prep", "runs/quickstart/cache")
    assert config.groups == "runs/quickstart/dedup" and config.model == config_of("embed", recipe).model
    assert (
        config.hard_negatives_to_mine == 5
        and STAGES["mine"].Config.model_fields["hard_negatives_to_mine"].default == 20
    )


def test_eval_takes_the_recipes_own_training() -> None:
    recipe = load_recipe("quickstart", ["finetune.output=elsewhere/tuned"], stages=STAGES, stage=None)
    assert config_of("eval", recipe).dense_names == ["base", "finetuned"]
    assert config_of("eval", recipe).finetuned == "elsewhere/tuned"
    del recipe.values["finetune"]
    assert config_of("eval", recipe).dense_names == ["base"]
