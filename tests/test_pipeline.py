"""What a stage reads follows the stage that writes it, wherever a recipe puts that output."""

from __future__ import annotations

from typing import Any

import pytest

from raycurate.core.config import load_recipe, shipped_recipes
from raycurate.core.places import kind_at, kind_of
from raycurate.pipeline import STAGES, config_of, options_of, selected
from raycurate.stage import Output

NEEDED = ["convert.input=pairs.jsonl", "prep.input=pairs.jsonl"]
READS = [
    (stage.name, option, source)
    for stage in STAGES.values()
    for option, source in stage.inputs.items()
    if isinstance(source, Output)
]


def value(stage: str, option: str, overrides: list[str]) -> Any:
    everything = [f"{name}.overwrite=true" for name in STAGES]  # the recipe has all stages
    shared = ["workdir=/w", "model=m", "corpus=/docs", "seed=3", "sample-corpus.output=/docs"]
    recipe = load_recipe(None, [*shared, *everything, *NEEDED, *overrides], stages=STAGES, types=options_of)
    return getattr(config_of(stage, recipe), option)


@pytest.mark.parametrize(("stage", "option", "source"), READS)
def test_a_reader_moves_with_what_it_reads(stage: str, option: str, source: Output) -> None:
    own = f"/{source.part}" if source.part else ""
    assert value(stage, option, []) == f"/w/{STAGES[source.stage].folder}{own}"
    assert value(stage, option, [f"{source.stage}.output=s3://b/moved"]) == f"s3://b/moved{own}"
    said = value(stage, option, [f"{source.stage}.output=s3://b/moved", f"{stage}.{option}=/own"])
    assert said == "/own"


def test_the_corpus_is_where_the_sample_is_written() -> None:
    for stage, option in (("embed", "input"), ("dedup", "documents")):
        assert value(stage, option, []) == "/docs"
        assert value(stage, option, ["sample-corpus.output=/moved"]) == "/moved"


def test_every_stage_reads_or_says_that_it_reads_nothing() -> None:
    """A new stage that reads a folder declares whose it is, or is one of those that begin a recipe."""
    begin = {"sample-corpus", "convert", "prep"}
    assert {name for name, stage in STAGES.items() if not {"input", "train"} & stage.inputs.keys()} == begin


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_readers_of_a_shipped_recipe_move_too(name: str) -> None:
    """No recipe writes out a path that is another stage's output."""
    recipe = load_recipe(name, ["workdir=/w"], stages=STAGES, types=options_of)
    stages = selected(recipe)
    moved = load_recipe(
        name, ["workdir=/w", *(f"{stage.name}.output=/moved/{stage.name}" for stage in stages)],
        stages=STAGES, types=options_of,
    )  # fmt: skip
    old = [f"/w/{stage.folder}" for stage in stages if stage.folder]
    for stage in stages:
        written = config_of(stage.name, moved).redacted()
        left = [text for text in _texts(written) for path in old if text == path or text.startswith(f"{path}/")]
        assert not left, (stage.name, left)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def test_a_path_in_a_recipe_is_known_wherever_it_stands() -> None:
    known = {
        "workdir": "output", "corpus": "input", "model": "model", "seed": None,
        "finetune.train": "input", "finetune.train.path": "input", "finetune.train.num_samples": None,
        "finetune.dev": "input", "finetune.resume": "state", "finetune.distillation.teacher": "model",
        "dedup.groups": None, "prep.groups": "input", "prep.cache": "cache", "embed.prefix": None,
        "eval.systems.mine.model": "model", "eval.systems.mine.dimensions": None,
        "encoder.tokenizer": "model", "encoder.cache_dir": "cache", "mine.encoder.tokenizer": "model",
        "dedup.document_options.input": "input", "embed.not_there": None,
    }  # fmt: skip
    assert {key: kind_at(key.split("."), options_of) for key in known} == known


def test_every_stage_marks_its_output() -> None:
    assert {name: kind_of(stage.Config.model_fields["output"]) for name, stage in STAGES.items()} == dict.fromkeys(
        STAGES, "output"
    )


def test_a_recipe_without_documents_runs_what_it_names() -> None:
    """As `import-config` makes one of a training."""
    recipe = load_recipe(None, ["workdir=/w", "model=m", "finetune.train=t.jsonl"], stages=STAGES, types=options_of)
    assert [stage.name for stage in selected(recipe)] == ["finetune"]
    assert config_of("finetune", recipe).val is None  # the data are not prep's
    recipe = load_recipe(None, ["corpus=docs", "model=m", "kmeans.n_clusters=2"], stages=STAGES, types=options_of)
    assert [stage.name for stage in selected(recipe)] == ["embed", "kmeans"]
