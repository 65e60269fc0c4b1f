"""What all stages have in common, written once: a stage itself says only what it reads, makes and calls things.

    open (list and check the inputs) -> key -> done? -> lock -> work -> manifest -> commit

A stage is an object with a name that is its folder, its command, its recipe's section and `rc.NAME` alike. Nothing
heavy is imported by a stage's own module: what works is imported by `open`, `work` and `plan`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from raycurate.core import storage
from raycurate.core.config import Recipe, StageConfig
from raycurate.core.manifest import (
    Manifest,
    OutputFile,
    StageKey,
    commit,
    one_writer,
    package_versions,
    staging_folder,
    state_of,
)
from raycurate.core.observe import Clock


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
    beside: only when the recipe's section leaves that option open too, which is of the same output.
    """

    stage: str
    part: str = ""
    if_run: bool = False
    beside: str = ""

    def reference(self, recipe: Recipe) -> str | None:
        """How the recipe would refer to it; None where there is no such thing."""
        root = recipe.root()
        if (self.if_run and not recipe.has(self.stage)) or "output" not in (root.get(self.stage) or {}):
            return None
        return _reference(f"{self.stage}.output", self.part)


def _reference(name: str, part: str) -> str:
    return f"${{{name}}}/{part}" if part else f"${{{name}}}"


CORPUS, MODEL, SEED = Shared("corpus", made_by="sample-corpus"), Shared("model"), Shared("seed")
CACHE = Shared("workdir", part="cache")


class Opened(Protocol):
    """What `open` gives: inputs that were listed and checked."""

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Listed:
    """Inputs of which nothing but their fingerprint is handed on."""

    fingerprint: str


@dataclass(frozen=True)
class Run:
    """One run of a stage's work: where it writes, what decides the result, and its clock."""

    output: str
    key: StageKey
    clock: Clock = field(default_factory=Clock)

    def staging(self, name: str | None = None) -> str:
        """The folder, made if it is not there, where unfinished work waits; deleted once the output is whole."""
        folder = staging_folder(self.output, name or f"{self.key.stage}-{self.key.fingerprint()}")
        storage.make_dir(folder)
        return folder


@dataclass
class Made:
    """What came of a stage's work: all in which one manifest differs from another."""

    files: list[OutputFile]
    counts: dict[str, int]
    rejects: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    contract: dict[str, Any] | None = None
    inputs: list[str] | None = None  # where `input` does not name them all


@dataclass(frozen=True)
class Asked:
    """A command as it was typed.

    flags: all of them. values: the stage's options under the recipe, unchecked. connect: reaches Ray or starts it.
    """

    flags: argparse.Namespace
    values: Callable[[], dict[str, Any]]
    connect: Callable[[], object]


@dataclass(frozen=True)
class Result:
    """A finished output: where it lies, what its manifest says, and whether it was there before."""

    output: str
    manifest: Manifest
    skipped: bool = False

    def summary(self) -> str:
        """What a person reads at the end of the run."""
        return f"output {self.output}  ({len(self.manifest.files)} files)"


C = TypeVar("C", bound=StageConfig)
I = TypeVar("I", bound=Opened)  # noqa: E741


class Stage(Generic[C, I]):
    """One stage; `run`, `state` and calling it are the same for all.

    Attributes:
        name: of the command, the recipe's section, the manifests.
        version: raised when the same inputs and options would give another result.
        Config: the options; their only declaration.
        Result: what a run returns.
        folder: where in the recipe's workdir it writes unless told otherwise; empty: to the shared key `corpus`.
        inputs: option -> what it is when the recipe's section has no value for it.
        places: the options that `rc.NAME(...)` takes by position.
        packages: those whose versions the manifest records.
        encodes: True when it runs a model, so that what the recipe says of its shared `model` reaches it.
        optional: True when it runs as part of `raycurate run` only if the recipe has its section.
        needs_ray: False when it runs on the driver alone.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    Config: ClassVar[type[StageConfig]]
    Result: ClassVar[type[Result]] = Result
    folder: ClassVar[str] = ""
    inputs: ClassVar[Mapping[str, Output | Shared]] = {}
    places: ClassVar[tuple[str, ...]] = ("input", "output")
    packages: ClassVar[tuple[str, ...]] = ()
    encodes: ClassVar[bool] = False
    optional: ClassVar[bool] = True
    needs_ray: ClassVar[bool] = True

    # What each stage says of itself

    def open(self, config: C) -> I:
        """List and check the inputs; no work.

        Raises:
            RaycurateError: what is wrong with them.
        """
        raise NotImplementedError

    def work(self, config: C, inputs: I, run: Run) -> Made:
        """Make the output's files; a killed run goes on from its staging.

        Raises:
            RaycurateError: an input, an option, the storage or the cluster cannot be used.
        """
        raise NotImplementedError

    def phrase(self, manifest: Manifest) -> str:
        """What `raycurate info` says of a finished output, behind "done"."""
        raise NotImplementedError

    def plan(self, config: C) -> str:
        """How it would be laid out on the cluster that is connected; empty when it does not use one."""
        return ""

    def check(self, config: C) -> None:
        """Refuse what is wrong with the inputs, where that can be told before Ray is started.

        Raises:
            RaycurateError: what is wrong.
        """

    def key_options(self, config: C, inputs: I) -> dict[str, Any]:
        """The options that decide the result; what of the inputs is one, too."""
        return config.result_keys()

    def again(self, inputs: I) -> bool:
        """Whether the work is to be done although its result is there."""
        return False

    def result(self, config: C, manifest: Manifest, *, skipped: bool) -> Any:
        """What a run returns.

        Raises:
            RaycurateError: the output is whole, and yet a failure.
        """
        return self.Result(config.output, manifest, skipped)  # type: ignore[attr-defined]

    def add_flags(self, command: argparse.ArgumentParser) -> None:
        """Flags of the command that have it do something else than run."""

    def instead(self, asked: Asked) -> str | None:
        """Do what such a flag says, and what there is to print; None when none was given.

        Raises:
            RaycurateError: what is wrong with it.
        """
        return None

    # Written once

    def key(self, config: C, inputs: I) -> StageKey:
        """What decides the result: the inputs' listing, the options that affect it and the version."""
        return StageKey(
            stage=self.name,
            algorithm_version=self.version,
            input_fingerprint=inputs.fingerprint,
            options=self.key_options(config, inputs),
        )

    def run(self, config: C) -> Any:
        """Work into `config.output`; a finished output is left alone, a killed run goes on.

        Raises:
            RaycurateError: an input, an option, the storage or the cluster cannot be used.
        """
        inputs = self.open(config)
        key = self.key(config, inputs)
        output, overwrite = config.output, config.overwrite  # type: ignore[attr-defined]
        with one_writer(output, key, overwrite=overwrite, again=self.again(inputs)) as done:
            manifest = self._make(config, inputs, key) if done is None else done
        return self.result(config, manifest, skipped=done is not None)

    def _make(self, config: C, inputs: I, key: StageKey) -> Manifest:
        if self.needs_ray:
            from raycurate.ray_runtime.cluster import ensure_ray

            ensure_ray(self.name)
        run = Run(config.output, key)  # type: ignore[attr-defined]
        made = self.work(config, inputs, run)
        manifest = Manifest(
            key=key,
            inputs=_inputs_of(config) if made.inputs is None else made.inputs,
            files=made.files,
            counts=made.counts,
            rejects=made.rejects,
            timings=run.clock.timings() | made.timings,
            settings={**config.redacted(), **made.settings},
            contract=made.contract,
            versions=package_versions("raycurate", *self.packages),
        )
        commit(run.output, manifest, tasks=_checksum_tasks() if self.needs_ray else None)
        return manifest

    def state(self, config: C) -> str:
        """One phrase for `raycurate info`: done, changed (and how), interrupted, not run, what is in the way."""
        output = config.output  # type: ignore[attr-defined]
        return state_of(output, lambda: self.key(config, self.open(config)), self.phrase)

    def state_line(self, config: C, inputs: I) -> str:
        """The last line of a plan."""
        return f"state    {self.state(config)}  (key {self.key(config, inputs).fingerprint()})"

    def __call__(self, *places: Any, **options: Any) -> Any:
        """Run the stage: `rc.kmeans("emb", "clusters", n_clusters=100)`; needs a running Ray if the stage does.

        Args:
            places: where it reads and writes, in the order of `places`.
            options: any option of the command (`raycurate NAME --help`).

        Returns:
            The finished output; the same call again returns it at once, and one that was stopped goes on.

        Raises:
            TypeError: more arguments by position than there are places.
            RaycurateError: an option, an input or the cluster cannot be used.
        """
        called = f"rc.{self.name.replace('-', '_')}"
        if len(places) > len(self.places):
            raise TypeError(f"{called} takes {', '.join(self.places)} by position, and all else by name")
        if self.needs_ray:
            from raycurate.ray_runtime.cluster import require_ray

            require_ray(called)
        values = {**dict(zip(self.places, places, strict=False)), **options}
        return self.run(self.Config.parse(values, where=called))  # type: ignore[arg-type]


def _inputs_of(config: Any) -> list[str]:
    """What a config's `input` names, as a manifest lists it."""
    named = getattr(config, "input", [])
    return [str(one) for one in named] if isinstance(named, list | tuple) else [str(named)]


def _checksum_tasks() -> Any:
    from raycurate.ray_runtime.cluster import map_in_tasks

    return partial(map_in_tasks, name="Checksums")
