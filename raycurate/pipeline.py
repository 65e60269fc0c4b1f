"""The stages in order: what each reads, writes and is called, and running them with what is done skipped.

    sample-corpus ─ embed ─ kmeans ─ dedup ─ prep (convert ─ mine ─ unroll) ─ finetune ─ eval

`raycurate run -c RECIPE` goes through this list in one Ray program. A stage's options come from its section
of the recipe; what the section leaves out is a shared key (`corpus`, `model`, `seed`) or another stage's output,
wherever that stage's own section puts it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Union

from raycurate.core.config import MAPPINGS, SHARED_KEYS, Recipe, StageConfig, resolve
from raycurate.core.errors import ConfigError, nearest
from raycurate.core.redaction import redact


@dataclass(frozen=True)
class Shared:
    """The value of a shared key of the recipe.

    made_by: a stage that writes it, and says where, when the recipe has that stage.
    part: a folder in it; all by default.
    """

    key: str
    made_by: str | None = None
    part: str = ""

    def reference(self, recipe: Recipe) -> str | None:
        """How the recipe would refer to it; None where there is no such thing."""
        if self.made_by is not None and recipe.has(self.made_by):
            return _reference(f"{self.made_by}.output", self.part)
        return _reference(self.key, self.part) if self.key in recipe.values else None


@dataclass(frozen=True)
class Output:
    """What another stage writes.

    part: a file or folder of it; all by default.
    if_run: only when the recipe has that stage.
    """

    stage: str
    part: str = ""
    if_run: bool = False

    def reference(self, recipe: Recipe) -> str | None:
        """How the recipe would refer to it; None where there is no such thing."""
        root = recipe.root()
        if (self.if_run and not recipe.has(self.stage)) or "output" not in (root.get(self.stage) or {}):
            return None
        return _reference(f"{self.stage}.output", self.part)


def _reference(name: str, part: str) -> str:
    return f"${{{name}}}/{part}" if part else f"${{{name}}}"


@dataclass(frozen=True)
class Stage:
    """One stage as the pipeline sees it.

    Args:
        name: as on the command line and in recipes.
        help: one line.
        config_path, run_path, state_path, plan_path: "module:name", imported when needed; plan_path is what
            `--dry-run` prints for a stage that is laid out over a cluster.
        check_path: what is looked at before Ray is started, and refused.
        folder: where in the recipe's workdir it writes unless its section says so; None: to its shared key.
        inputs: option -> what it is when the recipe's section has no value for it.
        encodes: True when it runs a model, so that what the recipe says of its shared `model` reaches it.
        optional: True when it runs as part of `raycurate run` only if the recipe has its section. `NAME: false` leaves
            any stage out.
        needs_ray: False when it runs on the driver alone.
    """

    name: str
    help: str
    config_path: str
    run_path: str
    state_path: str
    plan_path: str | None = None
    check_path: str | None = None
    folder: str = ""
    inputs: dict[str, Output | Shared] = field(default_factory=dict)
    encodes: bool = False
    optional: bool = False
    needs_ray: bool = True

    @property
    def config_class(self) -> type[StageConfig]:
        return _load(self.config_path)

    def values(self, recipe: Recipe) -> dict[str, Any]:
        """The options that `recipe` gives this stage, wired ones included, unchecked."""
        recipe = replace(recipe, outputs=OUTPUTS)
        values = self._wired(recipe)
        if not self.encodes:
            return values
        from raycurate.encoders.declared import laid_under, of_any_model, runs_the_model, said_in

        root = recipe.root()
        said = said_in(root, recipe.source, [stage.name for stage in STAGES.values() if stage.encodes])
        same = runs_the_model(root, recipe.source, self.name)
        return laid_under(values, said if same else of_any_model(said), self.name)

    def _wired(self, recipe: Recipe) -> dict[str, Any]:
        values = recipe.section(self.name)
        root = recipe.root()
        for option, source in {"output": Output(self.name), **self.inputs}.items():
            reference = None if option in values else source.reference(recipe)
            if reference is not None:
                values[option] = resolve(reference, root, recipe.source)
        return values

    def config(self, recipe: Recipe) -> Any:
        """The checked options of this stage under `recipe`."""
        others = lambda key: sections_with(key, STAGES.keys() - {self.name})  # noqa: E731
        return self.config_class.parse(self.values(recipe), where=f"{recipe.source}: {self.name}", elsewhere=others)

    def run(self, config: Any) -> Any:
        """Run the stage; its result has `.skipped` and `.summary()`."""
        return _load(self.run_path)(config)

    def check(self, config: Any) -> None:
        """Refuse what is wrong with the inputs, where that can be told without Ray.

        Raises:
            RaycurateError: what is wrong.
        """
        if self.check_path:
            _load(self.check_path)(config)

    def state(self, config: Any) -> str:
        """One phrase: done, changed (and how), interrupted, not run."""
        return _load(self.state_path)(config)

    def plan(self, config: Any) -> str:
        """How the stage would be laid out on the cluster that is connected; empty when it does not use one."""
        return _load(self.plan_path)(config) if self.plan_path else ""


CORPUS, MODEL, SEED = Shared("corpus", made_by="sample-corpus"), Shared("model"), Shared("seed")
CACHE = Shared("workdir", part="cache")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "sample-corpus",
            "make a corpus from the documentation of installed Python packages",
            "raycurate.data.sample_stage:SampleCorpusConfig",
            "raycurate.data.sample_stage:run",
            "raycurate.data.sample_stage:state",
            folder="",
            optional=True,
            needs_ray=False,
        ),
        Stage(
            "embed",
            "documents -> embeddings",
            "raycurate.embed.config:EmbedConfig",
            "raycurate.embed.stage:run",
            "raycurate.embed.stage:state",
            "raycurate.embed.stage:describe_plan",
            encodes=True,
            folder="embeddings",
            inputs={"input": CORPUS, "model": MODEL},
        ),
        Stage(
            "kmeans",
            "embeddings -> clusters",
            "raycurate.kmeans.config:KMeansConfig",
            "raycurate.kmeans.stage:run",
            "raycurate.kmeans.stage:state",
            "raycurate.kmeans.stage:describe_plan",
            folder="clusters",
            inputs={"input": Output("embed"), "random_state": SEED},
            optional=True,
        ),
        Stage(
            "dedup",
            "clusters -> documents without near-duplicates",
            "raycurate.dedup.config:DedupConfig",
            "raycurate.dedup.stage:run",
            "raycurate.dedup.stage:state",
            "raycurate.dedup.stage:describe_plan",
            folder="dedup",
            inputs={"input": Output("kmeans"), "documents": CORPUS, "random_state": SEED},
            optional=True,
        ),
        Stage(
            "convert",
            "question/answer records, titles or BEIR data -> training data and splits",
            "raycurate.prep.config:ConvertConfig",
            "raycurate.prep.convert_stage:run",
            "raycurate.prep.convert_stage:state",
            folder="converted",
            inputs={"seed": SEED},
            optional=True,
            needs_ray=False,
        ),
        Stage(
            "mine",
            "training data -> the same with mined hard negatives",
            "raycurate.prep.config:MineConfig",
            "raycurate.prep.mine_stage:run",
            "raycurate.prep.mine_stage:state",
            encodes=True,
            folder="mined",
            inputs={"input": Output("convert", "train.json"), "model": MODEL, "cache": CACHE, "seed": SEED},
            optional=True,
        ),
        Stage(
            "unroll",
            "mined training data -> one positive a row",
            "raycurate.prep.config:UnrollConfig",
            "raycurate.prep.unroll:run",
            "raycurate.prep.unroll:state",
            folder="unrolled",
            inputs={"input": Output("mine")},
            optional=True,
            needs_ray=False,
        ),
        Stage(
            "prep",
            "convert, mine and unroll in one: training, validation and test data",
            "raycurate.prep.config:PrepConfig",
            "raycurate.prep.stage:run",
            "raycurate.prep.stage:state",
            encodes=True,
            folder="prep",
            inputs={"model": MODEL, "cache": CACHE, "seed": SEED},
            optional=True,
        ),
        Stage(
            "finetune",
            "training data -> a fine-tuned embedding model",
            "raycurate.finetune.config:FinetuneConfig",
            "raycurate.finetune.stage:run",
            "raycurate.finetune.stage:state",
            "raycurate.finetune.stage:describe_plan",
            "raycurate.finetune.check:check",
            encodes=True,
            folder="finetune",
            inputs={
                "train": Output("prep", "train_mined.automodel_unrolled.json"),
                "val": Output("prep", "val_mined.automodel.json"),
                "model": MODEL,
                "cache": CACHE,
                "seed": SEED,
            },
            optional=True,
        ),
        Stage(
            "eval",
            "a test set and systems -> retrieval metrics, intervals and comparisons",
            "raycurate.evaluate.config:EvalConfig",
            "raycurate.evaluate.stage:run",
            "raycurate.evaluate.stage:state",
            encodes=True,
            folder="eval",
            inputs={
                "input": Output("prep", "eval_beir"),
                "model": MODEL,
                "finetuned": Output("finetune", if_run=True),
                "cache": CACHE,
                "seed": SEED,
            },
            optional=True,
        ),
    )
}


OUTPUTS = {name: f"${{workdir}}/{stage.folder}" if stage.folder else "${corpus}" for name, stage in STAGES.items()}
"""Where each stage writes unless its section says so, as a recipe would write it."""


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def options_of(name: str) -> Any:
    """The model that declares the options of a stage, or those that declare the keys of a mapping of options."""
    if name not in MAPPINGS:
        return STAGES[name].config_class
    return Union[tuple(_load(path) for path in MAPPINGS[name])]  # noqa: UP007  # as many as there are


def sections_with(key: str, stages: Iterable[str]) -> list[str]:
    """Those of the stages, in order, that have an option of this name."""
    return [name for name in STAGES if name in stages and key in options_of(name).model_fields]


def stage_named(name: str) -> Stage:
    """The stage called `name`. Raises ConfigError with the nearest name there is."""
    if name not in STAGES:
        close = nearest(name, STAGES)
        hint = f"Did you mean '{close}'?" if close else f"The stages are {', '.join(STAGES)}"
        raise ConfigError(f"there is no stage '{name}'", fix=hint)
    return STAGES[name]


def selected(recipe: Recipe, first: str | None = None, last: str | None = None) -> list[Stage]:
    """The stages that `raycurate run` goes through, in order, `first` and `last` included."""
    names = list(STAGES)
    begin = names.index(stage_named(first).name) if first else 0
    end = names.index(stage_named(last).name) if last else len(names) - 1
    if begin > end:
        raise ConfigError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    chosen = [STAGES[name] for name in names[begin : end + 1]]
    return [s for s in chosen if recipe.has(s.name) or not (s.optional or s.name in recipe.values)]


def run(
    recipe: Recipe,
    *,
    first: str | None = None,
    last: str | None = None,
    force: str | None = None,
    start_ray: Callable[[], object],
) -> Iterator[tuple[Stage, Any]]:
    """Run the selected stages; yields each with its result.

    The options of all stages are checked before the first one starts. `force` runs that stage and all after
    it anew, although their outputs are there. `start_ray` is called by the first stage that has work to do on Ray.
    """
    from raycurate.core.cluster import start_on_demand

    start_on_demand(start_ray)
    stages = selected(recipe, first, last)
    if force is not None and stage_named(force) not in stages:
        raise ConfigError(
            f"--force {force}: that stage is not among those to run ({', '.join(s.name for s in stages)})"
        )
    configs = [(stage, stage.config(recipe)) for stage in stages]
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
        config = stage.config(recipe)
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
