"""The stages in order: what each reads, writes and is called, and running them with what is done skipped.

    sample-corpus ─ embed ─ kmeans ─ dedup ─ prep (convert ─ mine ─ unroll) ─ finetune ─ eval

`raycurate run -c RECIPE` goes through this list in one Ray program. A stage's options come from its section
of the recipe; what the section leaves out is a shared key (`corpus`, `model`, `seed`) or another stage's output,
wherever that stage's own section puts it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Union

from raycurate.core.config import MAPPINGS, SHARED_KEYS, Recipe, resolve
from raycurate.core.errors import ConfigError, nearest
from raycurate.core.redaction import redact
from raycurate.stage import Output, Stage

_LIST = {
    "sample-corpus": "make a corpus from the documentation of installed Python packages",
    "embed": "documents -> embeddings",
    "kmeans": "embeddings -> clusters",
    "dedup": "clusters -> documents without near-duplicates",
    "convert": "question/answer records, titles or BEIR data -> training data and splits",
    "mine": "training data -> the same with mined hard negatives",
    "unroll": "mined training data -> one positive a row",
    "prep": "convert, mine and unroll in one: training, validation and test data",
    "finetune": "training data -> a fine-tuned embedding model",
    "eval": "a test set and systems -> retrieval metrics, intervals and comparisons",
}
"""The stages in order, each with a line for the help; a stage is the folder of its name in `stages/`."""


class Stages(Mapping[str, Stage[Any, Any]]):
    """name -> stage, imported when it is asked for."""

    def __init__(self, helps: Mapping[str, str]) -> None:
        self.helps = helps

    def __getitem__(self, name: str) -> Stage[Any, Any]:
        if name not in self.helps:
            raise KeyError(name)
        return stage_in(f"raycurate.stages.{name.replace('-', '_')}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.helps)

    def __len__(self) -> int:
        return len(self.helps)

    def __contains__(self, name: object) -> bool:
        return name in self.helps


STAGES = Stages(_LIST)


def stage_in(package: str) -> Stage[Any, Any]:
    """The stage of a package: STAGE in its module `stage`."""
    found = importlib.import_module(f"{package}.stage").STAGE
    assert isinstance(found, Stage)
    return found


def _outputs() -> dict[str, str]:
    """Where each stage writes unless its section says so, as a recipe would write it."""
    return {name: f"${{workdir}}/{s.folder}" if s.folder else "${corpus}" for name, s in STAGES.items()}


def values_of(name: str, recipe: Recipe) -> dict[str, Any]:
    """The options that `recipe` gives a stage, unchecked: its section, shared keys, other stages' outputs."""
    stage, recipe = STAGES[name], replace(recipe, outputs=_outputs())
    values, root = recipe.section(stage.name), recipe.root()
    said = set(values)
    for option, source in {"output": Output(stage.name), **stage.inputs}.items():
        left_open = option not in said and getattr(source, "beside", "") not in said
        reference = source.reference(recipe) if left_open else None
        if reference is not None:
            values[option] = resolve(reference, root, recipe.source)
    if not stage.encodes:
        return values
    from raycurate.encoders.declared import laid_under, of_any_model, runs_the_model, said_in

    said_of_models = said_in(root, recipe.source, [other for other, one in STAGES.items() if one.encodes])
    same = runs_the_model(root, recipe.source, stage.name)
    return laid_under(values, said_of_models if same else of_any_model(said_of_models), stage.name)


def config_of(name: str, recipe: Recipe) -> Any:
    """The checked options of a stage under `recipe`.

    Raises:
        ConfigError: every unknown key and every bad value.
    """
    others = lambda key: sections_with(key, STAGES.keys() - {name})  # noqa: E731
    return STAGES[name].Config.parse(values_of(name, recipe), where=f"{recipe.source}: {name}", elsewhere=others)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def options_of(name: str) -> Any:
    """The model that declares the options of a stage, or those that declare the keys of a mapping of options."""
    if name not in MAPPINGS:
        return STAGES[name].Config
    return Union[tuple(_load(path) for path in MAPPINGS[name])]  # noqa: UP007  # as many as there are


def sections_with(key: str, stages: Iterable[str]) -> list[str]:
    """Those of the stages, in order, that have an option of this name."""
    return [name for name in STAGES if name in stages and key in options_of(name).model_fields]


def stage_named(name: str) -> Stage[Any, Any]:
    """The stage called `name`. Raises ConfigError with the nearest name there is."""
    if name not in STAGES:
        close = nearest(name, STAGES)
        hint = f"Did you mean '{close}'?" if close else f"The stages are {', '.join(STAGES)}"
        raise ConfigError(f"there is no stage '{name}'", fix=hint)
    return STAGES[name]


def selected(recipe: Recipe, first: str | None = None, last: str | None = None) -> list[Stage[Any, Any]]:
    """The stages that `raycurate run` goes through, in order, `first` and `last` included.

    A stage that is not optional runs without a section too, where there are documents.
    """
    names = list(STAGES)
    begin = names.index(stage_named(first).name) if first else 0
    end = names.index(stage_named(last).name) if last else len(names) - 1
    if begin > end:
        raise ConfigError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    chosen = [STAGES[name] for name in names[begin : end + 1]]
    documents = "corpus" in recipe.values or not any(recipe.has(name) for name in STAGES)
    implied = {s.name for s in chosen if not s.optional and s.name not in recipe.values} if documents else set()
    return [s for s in chosen if recipe.has(s.name) or s.name in implied]


def run(
    recipe: Recipe,
    *,
    first: str | None = None,
    last: str | None = None,
    force: str | None = None,
    start_ray: Callable[[], object],
) -> Iterator[tuple[Stage[Any, Any], Any]]:
    """Run the selected stages; yields each with its result.

    The options of all stages are checked before the first one starts. `force` runs that stage and all after
    it anew, although their outputs are there. `start_ray` is called by the first stage that has work to do on Ray.
    """
    from raycurate.ray_runtime.cluster import start_on_demand

    start_on_demand(start_ray)
    stages = selected(recipe, first, last)
    if force is not None and stage_named(force) not in stages:
        raise ConfigError(
            f"--force {force}: that stage is not among those to run ({', '.join(s.name for s in stages)})"
        )
    configs = [(stage, config_of(stage.name, recipe)) for stage in stages]
    forced = False
    for stage, config in configs:
        forced = forced or stage.name == force
        if forced:
            _forget(config.output)
        yield stage, stage.run(config.model_copy(update={"overwrite": True}) if forced else config)


def _forget(output: str) -> None:
    """Change an output's manifest so that a forced stage takes neither it nor a part of it for done."""
    from raycurate.core.manifest import read_manifest, write_manifest

    manifest = read_manifest(output)
    if manifest is not None:
        manifest.key.input_fingerprint = "(forced)"
        manifest.settings = {}
        write_manifest(output, manifest)


def info(recipe: Recipe) -> str:
    """The stages, their inputs, outputs and state, as a table."""
    rows = [("stage", "input", "output", "state")]
    for stage in STAGES.values():
        if stage not in selected(recipe):
            continue
        config = config_of(stage.name, recipe)
        source = getattr(config, "input", "")
        rows.append(
            (stage.name, source if isinstance(source, str) else ", ".join(source), config.output, stage.state(config))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
    ]
    shared = ", ".join(f"{key}={redact(recipe.values[key])}" for key in SHARED_KEYS if key in recipe.values)
    return "\n".join([f"recipe {recipe.source}" + (f"  ({shared})" if shared else ""), *lines])
