"""Recipes: one YAML file, `key=value` overrides, one validated pydantic model a stage.

Precedence is command line over recipe over default. Everything is checked before any work starts, and
all problems are reported together, each with its key, its value, what is allowed and the nearest known
key. Options are declared once, with `option(...)`: the help of the command line, the check of the
recipe and the manifest's idea of what affects a result are all read from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from raycurate.core import storage
from raycurate.core.errors import ConfigError, nearest

REDACTED = "**********"
_SECRET_NAME = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?)($|_)", re.I)
_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
SHARED_KEYS = ("workdir", "model", "encoder", "corpus", "seed")
OF_A_STAGE = ("encoder",)
"""Shared keys that a stage's own value is laid over; given for one stage, they are its own."""


class UnsetVariableError(ConfigError):
    """A recipe names an environment variable that is not set here; it may be where the recipe is going to."""


def option(default: Any = ..., description: str = "", *, operational: bool = False, **checks: Any) -> Any:
    """A field of a stage's model.

    Args:
        default: its default, or `...` when it must be given.
        description: one sentence, shown by `--help`.
        operational: True when it changes how fast or where, never what comes out, so that it plays no
            part in deciding whether a stage is done.
        checks: pydantic's own (`ge=`, `gt=`, ...).
    """
    return Field(default, description=description, json_schema_extra={"operational": operational}, **checks)


class StageConfig(BaseModel):
    """What every stage's options share: unknown keys are errors, secrets print redacted."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """A checked config.

        Raises:
            ConfigError: every unknown key and every bad value, in one message.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [_explain(cls, p) for p in error.errors(include_url=False)]
            raise ConfigError("; ".join(problems), where=where) from None

    @classmethod
    def operational_keys(cls) -> set[str]:
        return {
            name
            for name, info in cls.model_fields.items()
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("operational")
        }

    def result_keys(self) -> dict[str, Any]:
        """The options that decide what comes out, as plain JSON values; secrets never among them."""
        kept = self.model_dump(mode="json", exclude=self.operational_keys())
        return {k: v for k, v in kept.items() if not isinstance(getattr(self, k), SecretStr)}

    def redacted(self) -> dict[str, Any]:
        """All options as plain values fit for a log: no secret in them."""
        return redact(self.model_dump(mode="json"))


def redact(value: Any, name: str = "") -> Any:
    """`value` with everything that looks like a secret, by its key's name, masked."""
    if isinstance(value, Mapping):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v, name) for v in value]
    if value is not None and value != "" and not isinstance(value, bool | int | float) and _SECRET_NAME.search(name):
        text = str(value)
        return text if _REFERENCE.fullmatch(text) else REDACTED
    if isinstance(value, str):
        return re.sub(r"(://)[^/@\s]+:[^/@\s]+@", r"\1" + REDACTED + "@", value)
    return value


def _explain(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(p) for p in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_key(key, _known_at(model, problem["loc"]))
    if problem["type"] == "missing":
        return f"{key} is missing; it has no default"
    shown = redact(problem["input"], key)
    message = problem["msg"].removeprefix("Value error, ")
    if not key:  # of several options together; it names them
        return message
    return f"{key}={shown!r}: {message[0].lower()}{message[1:]}"


def _known_at(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """The keys that are known where an unknown one stood, with what leads there (`lora.dim`)."""
    inner, path = model, list[str]()
    for part in place[:-1]:
        path.append(str(part))
        if part in inner.model_fields:
            found = _models_in(inner.model_fields[str(part)].annotation)
            if len(found) != 1:
                return list(model.model_fields)
            inner = found[0]
    return [".".join([*path, name]) for name in inner.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation allows: `LoraConfig | None`, `list[Part]`, ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key nobody knows, with the nearest one that somebody does."""
    names = list(known)
    close = nearest(key, names)
    return f"unknown key '{key}'" + (
        f"; did you mean '{close}'?" if close else f"; known keys: {', '.join(sorted(names))}"
    )


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of `value` written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Recipe:
    """A recipe with its overrides applied, references not yet filled in.

    `values` holds the shared keys and one mapping a stage, references (`${...}`) as written, so that a
    recipe can travel to another machine without what this machine's environment holds.
    """

    values: dict[str, Any] = field(default_factory=dict)
    source: str = "(no recipe)"

    def shared(self) -> dict[str, Any]:
        return {k: resolve(self.values[k], self.values, self.source) for k in SHARED_KEYS if k in self.values}

    def section(self, stage: str) -> dict[str, Any]:
        """The section of `stage`, references filled in; empty when the recipe has none."""
        found = self.values.get(stage) or {}
        if not isinstance(found, dict):
            raise ConfigError(f"'{stage}' must be a mapping of options, not {found!r}", where=self.source)
        return resolve(found, self.values, f"{self.source}: {stage}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("raycurate") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_recipe(
    name_or_path: str | None, overrides: Iterable[str], *, stages: Iterable[str], stage: str | None = None
) -> Recipe:
    """Read a recipe and lay the overrides over it.

    Args:
        name_or_path: a shipped recipe's name, a path or a URI; None for no recipe.
        overrides: `key=value` strings, values read as YAML. With `stage` given, a bare key is that stage's
            option (or a shared key); else keys are `stage.option` or shared.
        stages: the stages that exist.
        stage: the one stage that is run, if only one is.

    Raises:
        ConfigError: no such recipe, bad YAML, an unknown section or a malformed override.
    """
    stages = list(stages)
    values, source = _read_recipe(name_or_path) if name_or_path else ({}, "command line")
    known = [*SHARED_KEYS, *stages]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(str(key), known), where=source)
    for override in overrides:
        _apply_override(values, override, stages, stage)
    return Recipe(values, source)


def _read_recipe(name_or_path: str) -> tuple[dict[str, Any], str]:
    if name_or_path in shipped_recipes():
        text = (resources.files("raycurate") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif storage.is_remote(name_or_path) or Path(name_or_path).expanduser().is_file():
        text = storage.read_text(name_or_path)
    else:
        close = nearest(name_or_path, shipped_recipes())
        hint = f"Did you mean '{close}'? " if close else ""
        raise ConfigError(
            "there is no such recipe, neither a file nor a shipped one",
            where=name_or_path,
            fix=f"{hint}Shipped recipes: {', '.join(shipped_recipes())}",
        )
    try:
        loaded = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not valid YAML ({error})", where=name_or_path) from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"a recipe is a mapping, this is a {type(loaded).__name__}", where=name_or_path)
    return loaded, name_or_path


def _apply_override(values: dict[str, Any], override: str, stages: list[str], stage: str | None) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is not an override", where="command line", fix="Write key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    parts = key.split(".")
    if stage and (parts[0] in OF_A_STAGE or parts[0] not in (*SHARED_KEYS, stage)):
        parts.insert(0, stage)
    if stage and key in SHARED_KEYS and key not in OF_A_STAGE:
        own = values.get(stage)
        if isinstance(own, dict) and key in own:  # the stage's own value would hide the shared one
            own[key] = value
    if parts[0] not in (*SHARED_KEYS, *stages):
        hint = unknown_key(parts[0], [*SHARED_KEYS, *stages])
        raise ConfigError(hint, where=f"override {override}", fix="Write stage.option=value")
    target = values
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ConfigError(f"'{part}' is {target!r}, which has no keys", where=f"override {override}")
    target[parts[-1]] = value


def resolve(value: Any, root: Mapping[str, Any], where: str, _open: tuple[str, ...] = ()) -> Any:
    """`value` with its references filled in.

    `${a.b}` is the recipe's own value at a.b; `${env:NAME}` and `${env:NAME,default}` are environment
    variables. A string that is one reference alone keeps the type of what it names.

    Raises:
        ConfigError: an unknown reference, an unset variable without default, or a circle.
    """
    if isinstance(value, Mapping):
        return {k: resolve(v, root, f"{where}.{k}", _open) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, root, where, _open) for v in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return _look_up(whole.group(1), root, where, _open)
    return _REFERENCE.sub(lambda m: str(_look_up(m.group(1), root, where, _open)), value)


def _look_up(name: str, root: Mapping[str, Any], where: str, opened: tuple[str, ...]) -> Any:
    name = name.strip()
    if name.startswith("env:"):
        variable, comma, default = name[4:].partition(",")
        found = os.environ.get(variable.strip())
        if found is None and not comma:
            raise UnsetVariableError(
                f"environment variable {variable} is not set", where=where, fix="Set it, or write ${env:NAME,default}"
            )
        return found if found is not None else default.strip()
    if name in opened:
        raise ConfigError(f"the references {' -> '.join((*opened, name))} go round in a circle", where=where)
    named: Any = root
    for part in name.split("."):
        if not isinstance(named, Mapping) or part not in named:
            raise ConfigError(f"${{{name}}} names nothing in the recipe", where=where)
        named = named[part]
    return resolve(named, root, where, (*opened, name))


Model = TypeVar("Model", bound=StageConfig)
