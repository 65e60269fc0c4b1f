"""How a model is run is said once and holds for mining, training, the base and eval; said in two ways it is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycurate.core.config import Recipe, load_recipe, shipped_recipes
from raycurate.core.errors import ConfigError
from raycurate.core.manifest import Manifest, StageKey, write_manifest
from raycurate.encoders.declared import OF_THE_MODEL, checked, decisive, for_role, of_the_model
from raycurate.pipeline import STAGES, config_of
from raycurate.stages.eval.config import EvalConfig
from raycurate.stages.eval.systems import as_it_was_trained
from tests.finetune.runs import config_of as training_config

PLACES = ("encoder", "mine", "prep", "finetune", "eval")  # in the order in which they are read
VALUES: dict[str, list[Any]] = {
    "query_prefix": ["query: ", ""],
    "passage_prefix": ["passage: ", ""],
    "pooling": ["mean", "cls"],
    "normalize": [True, False],
    "revision": ["main", "v2"],
    "max_length": [64, 128],
    "query_max_length": [16, 32],
    "passage_max_length": [64, 96],
}


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {"workdir": "w", "corpus": "c", "model": "a/model", "embed": {}, "mine": {}, "prep": {}}
    values |= {"finetune": {}, "eval": {}, **sections}
    values["prep"] = {"input": "i", **values["prep"]}
    return Recipe(values, "recipe.yaml")


def run_as(given: Recipe) -> dict[str, dict[str, Any]]:
    """Stage -> what it knows of how the shared model is run."""
    configs = {name: config_of(name, given) for name in ("mine", "prep", "finetune", "eval")}
    return {name: of_the_model(config.run_as) for name, config in configs.items()}


def say(sections: dict[str, Any], place: str, name: str, value: Any, draw: random.Random) -> None:
    """Say it in the shared `encoder`, in a section's `encoder`, or as an option of the section's own."""
    if place == "encoder":
        sections.setdefault("encoder", {})[name] = value
        return
    section = sections.setdefault(place, {})
    flat = ["query_prefix", "passage_prefix"]
    flat += ["pooling", "normalize", "revision"] if place == "finetune" else ["query_max_length", "passage_max_length"]
    if name in flat and draw.random() < 0.5:
        section[name] = value
    else:
        section.setdefault("encoder", {})[name] = value


@pytest.mark.parametrize("seed", range(60))
def test_what_is_said_anywhere_holds_everywhere(seed: int) -> None:
    draw = random.Random(seed)
    wanted = {name: draw.choice(values) for name, values in VALUES.items() if draw.random() < 0.5}
    sections: dict[str, Any] = {}
    for name, value in wanted.items():
        for place in draw.sample(PLACES, draw.choice([1, 1, 2])):
            say(sections, place, name, value, draw)
    for stage, known in run_as(recipe(**sections)).items():
        assert known == wanted, stage
    embed = config_of("embed", recipe(**sections))
    assert embed.prefix == wanted.get("passage_prefix")
    assert embed.max_length == wanted.get("passage_max_length", wanted.get("max_length"))
    assert (embed.pooling, embed.normalize) == (wanted.get("pooling"), wanted.get("normalize"))


@pytest.mark.parametrize("seed", range(30))
def test_two_ways_are_refused_with_the_field_and_both_places(seed: int) -> None:
    draw = random.Random(seed)
    name = draw.choice(list(VALUES))
    places = draw.sample(PLACES, 2)
    sections: dict[str, Any] = {}
    for place, value in zip(places, VALUES[name], strict=True):
        say(sections, place, name, value, draw)
    with pytest.raises(ConfigError) as error:
        run_as(recipe(**sections))
    said = str(error.value)
    by_place = sorted(zip(places, VALUES[name], strict=True), key=lambda pair: PLACES.index(pair[0]))
    assert " and ".join(f"{value!r} in {place}" for place, value in by_place) in said.replace(f"{name} is ", "")
    assert "Say it once, in the recipe's `encoder`" in said


def test_where_and_how_exactly_models_run_is_each_stages_own() -> None:
    given = recipe(encoder={"device": "cpu", "dtype": "float32"}, eval={"encoder": {"dtype": "bfloat16"}})
    assert config_of("eval", given).run_as == {"device": "cpu", "dtype": "bfloat16"}
    assert config_of("prep", given).run_as == {"device": "cpu", "dtype": "float32"}
    finetune = config_of("finetune", given)
    assert finetune.device == "cpu" and finetune.encoder == {"dtype": "float32"}
    assert config_of("embed", given).dtype == "float32"


def test_a_stage_with_another_model_is_not_told() -> None:
    given = recipe(encoder={"query_prefix": "q: ", "device": "cpu"}, prep={"model": "another", "passage_prefix": "p: "})
    assert config_of("prep", given).run_as == {"device": "cpu", "passage_prefix": "p: "}
    assert config_of("eval", given).run_as == {"device": "cpu", "query_prefix": "q: "}


def test_what_another_section_lacks_here_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    given = recipe(
        finetune={"hf_token": "${env:ABSENT}", "query_prefix": "${eval.query_prefix}"}, eval={"query_prefix": "q: "}
    )
    assert config_of("prep", given).run_as == {"query_prefix": "q: "}


def test_one_stage_alone_takes_it_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"workdir": "w", "model": "m", "encoder": {"device": "cpu"}, "eval": {}}))
    given = load_recipe(str(path), ['encoder.document_prefix="p: "'], stages=STAGES, stage="eval")
    assert config_of("eval", given).run_as == {"device": "cpu", "passage_prefix": "p: "}
    whole = load_recipe(str(path), ["encoder.pooling=avg"], stages=STAGES)
    assert config_of("embed", Recipe({**whole.values, "corpus": "c"})).pooling == "mean"


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"poolin": "mean"}, "did you mean 'pooling'"),
        ({"prefix": "x"}, "write query_prefix and passage_prefix"),
        ({"pooling": "sum"}, "'sum' is no pooling"),
        ({"query_prefix": {"query": None}}, "query_prefix={'query': None}: write text"),
        ({"dtype": "float31"}, "dtype='float31': write one of"),
        ({"query_max_length": 0}, "query_max_length=0: it should be greater than 0"),
        ({"q_max_len": 3, "query_max_length": 3}, "two names of one option"),
        ("float32", "it must be a mapping of options"),
    ],
)
def test_an_encoder_that_is_none(encoder: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_as(recipe(encoder=encoder))


def test_options_by_role() -> None:
    encoder = checked({"query_prefix": "", "document_prefix": "p: ", "q_max_len": 8, "max_length": 9, "dtype": None})
    assert for_role(encoder, "query") == {"prefix": "", "max_length": 8}
    assert for_role(encoder, "document") == {"prefix": "p: ", "max_length": 9}
    assert decisive({"dtype": "float32", "num_gpus": 1, "query_prefix": "q"}) == {
        "dtype": "float32",
        "query_prefix": "q",
    }


def trained(folder: Path, **options: Any) -> str:
    """What a fine-tuning leaves for eval to know how it ran its model."""
    config = training_config({"train": "t.jsonl", "model": "a/model", **options}, folder)
    key = StageKey(stage="finetune", algorithm_version=1, input_fingerprint="x", options={})
    write_manifest(str(folder), Manifest(key=key, files=[], settings=config.redacted()))
    return str(folder)


def asked(finetuned: str, **options: Any) -> EvalConfig:
    values = {"input": "i", "output": "o", "model": "a/model", "finetuned": finetuned, **options}
    return EvalConfig.parse(values, where="test")


def test_eval_runs_the_base_as_the_training_did(tmp_path: Path) -> None:
    """Without a recipe too: what was said to finetune is in its output."""
    told = {"query_prefix": "q: ", "l2_normalize": True, "encoder": {"max_length": 32, "dtype": "float32"}}
    place = trained(tmp_path / "tuned", **told)
    systems = {"short": {"model": "a/model", "dimensions": 4}, "other": "b/model"}
    found = as_it_was_trained(asked(place, systems=systems, encoder={"device": "cpu"}))
    base = {"device": "cpu", "query_prefix": "q: ", "normalize": True, "max_length": 32}
    assert found.options_of("base").encoder == found.options_of("short").encoder == base
    assert found.options_of("finetuned").encoder == found.options_of("other").encoder == {"device": "cpu"}
    assert as_it_was_trained(asked(place, model="b/model")).options_of("base").encoder == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_prefix": "Q: "}, "query_prefix is 'Q: ' in eval and 'q: ' in finetune"),
        ({"encoder": {"normalize": False}}, "normalize is False in eval and True in finetune"),
        ({"passage_prefix": "P", "query_prefix": ""}, "passage_prefix is 'P' in eval and 'p: ' in finetune"),
    ],
)
def test_two_numbers_of_the_base_are_impossible(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    place = trained(tmp_path / "tuned", query_prefix="q: ", passage_prefix="p: ", normalize=True)
    with pytest.raises(ConfigError, match=message):
        as_it_was_trained(asked(place, **options))


@pytest.mark.parametrize("name", ["llama3.2-1b", "llama-nemotron-embed-1b", "llama-embed-nemotron-8b", "ministral-3b"])
def test_the_decoders_recipes_judge_what_they_train(name: str) -> None:
    given = load_recipe(name, [], stages=STAGES)
    found = config_of("eval", given)
    assert name in shipped_recipes() and len(found.dense_names) == (1 if name == "llama-embed-nemotron-8b" else 2)
    for system in found.dense_names:  # each with its prefix, the tuned one with those of its own files
        told = found.options_of(system).encoder
        assert ("query_prefix" in told) == (system != "finetuned")
        assert set(told) <= {*OF_THE_MODEL, "device"}
    if "base" in found.dense_names:
        assert of_the_model(found.run_as) == of_the_model(config_of("finetune", given).run_as) != {}
