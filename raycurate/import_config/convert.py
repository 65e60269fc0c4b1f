"""Files of other tools -> one recipe, checked as `raycurate run` would check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycurate.core.errors import ConfigError, OutputExistsError
from raycurate.import_config import automodel, curator, nemotron
from raycurate.import_config.read import read_file
from raycurate.import_config.rules import Draft
from raycurate.import_config.writing import recipe_text

KINDS = "a NeMo AutoModel YAML, a stage's file of the nemotron embed recipe, or the arguments of a Curator call"


@dataclass(frozen=True)
class Imported:
    """A recipe made from other tools' files.

    Attributes:
        text: the recipe as YAML, with comments.
        values: the same, as a mapping.
        left: (key, value, reason) of what has no counterpart.
        traps: what is easily taken for the same and is not.
        problem: why the recipe cannot be used as it stands, None where it can.
    """

    text: str
    values: dict[str, Any]
    left: list[tuple[str, Any, str]]
    traps: list[str]
    problem: str | None

    def write(self, path: str) -> None:
        """Write the text to a new file.

        Raises:
            OutputExistsError: there is one of that name.
        """
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(self.text)
        except FileExistsError:
            raise OutputExistsError("the file is there already", where=path, fix="Give another --out") from None

    def summary(self) -> str:
        """One line of what was taken over and what was not."""
        options = sum(len(part) if isinstance(part, dict) else 1 for part in self.values.values())
        return f"{options} options, {len(self.left)} keys left out, {len(self.traps)} things to mind"


def import_config(files: str | Sequence[str]) -> Imported:
    """The recipe that files of other tools stand for.

    Args:
        files: one file or several that make one recipe: YAML or JSON, or a Python file that calls Curator.

    Raises:
        InputError: a file cannot be read.
        ConfigError: a file is none of the kinds that are known, or trains something else than a bi-encoder.
    """
    paths = [files] if isinstance(files, str) else list(files)
    draft, sources = Draft(), list[str]()
    for path in paths:
        sources.append(f"{Path(path).name} ({_read(path, draft)})")
    if "workdir" not in draft.values:
        draft.values = {"workdir": f"runs/{Path(paths[0]).stem}", **draft.values}
    first = [key for key in ("workdir", "corpus", "model", "seed") if key in draft.values]
    draft.values = {key: draft.values[key] for key in dict.fromkeys([*first, *draft.values])}
    text = recipe_text(draft, source=", ".join(sources))
    return Imported(text, draft.values, draft.left, draft.traps, _problem(draft.values))


def _read(path: str, draft: Draft) -> str:
    """Lay one file into the draft; what kind of file it is."""
    values = read_file(path)
    stage = nemotron.stage_of(values)
    if automodel.is_mining(values):
        automodel.read_mining(values, draft)
        return automodel.MINING
    if automodel.is_training(values):
        automodel.read_training(values, draft)
        return automodel.TRAINING
    if stage is not None:
        nemotron.read(values, draft, stage)
        return f"nemotron embed, {stage}"
    if curator.is_arguments(values):
        curator.read(values, draft)
        return "NeMo Curator, semantic deduplication"
    raise ConfigError(f"it is not {KINDS}", where=path, fix=f"Its keys are {', '.join(list(values)[:8])}")


def _problem(values: Mapping[str, Any]) -> str | None:
    """What `raycurate run` would refuse of the recipe, if anything."""
    from raycurate.core.config import Recipe, UnsetVariableError
    from raycurate.pipeline import STAGES, config_of

    recipe = Recipe(dict(values), "the recipe")
    try:
        for name in values:
            if name in STAGES:
                config_of(name, recipe)
    except UnsetVariableError:
        return None  # set where the recipe will run, perhaps
    except ConfigError as error:
        return str(error)
    return None
