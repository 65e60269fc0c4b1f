"""Recipes: one YAML file, `key=value` overrides, one validated pydantic model a stage.

Precedence is command line over recipe over default. Everything is checked before any work starts, and
all problems are reported together, each with its key, its value, what is allowed and the nearest known
key. Options are declared once, with `option(...)`: the help of the command line, the check of the
recipe and the manifest's idea of what affects a result are all read from there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from raycurate.core import storage, yaml_text
from raycurate.core.errors import ConfigError, nearest
from raycurate.core.explain import Elsewhere, explain, unknown_key
from raycurate.core.hashing import hex_digest
from raycurate.core.redaction import redact
from raycurate.core.typed_text import phrase, read_typed, type_at

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_LARGEST_RECIPE = 1 << 18  # bytes; it is read by a parser that is written in Python
_INTEGER_BITS, _SEED_BITS = 63, 32  # what files and libraries hold; what every library's generator takes for a seed
_SEEDS = ("seed", "random_state")
SHARED_TYPES: dict[str, Any] = {
    "workdir": str,
    "model": str,
    "encoder": dict[str, Any],
    "corpus": str | list[str],
    "seed": int,
}
SHARED_KEYS = tuple(SHARED_TYPES)
OF_A_STAGE = ("encoder",)
"""Shared keys that a stage's own value is laid over; given for one stage, they are its own."""
MAPPINGS = {
    "encoder": ("raycurate.encoders.embed_options:EmbedConfig", "raycurate.encoders.declared:RoleOptions"),
    "document_options": ("raycurate.data.documents.documents:DocumentsOptions",),
}
"""Options that are mappings of options, wherever they stand, and the models that declare their keys."""
Place = Literal["input", "output", "model", "cache", "state"]
"""What an option's path is to a stage: what it reads; what it writes; a model, which may be no path but a name; what
runs share; a training to go on from, which may lie in the output."""


class UnsetVariableError(ConfigError):
    """A recipe names an environment variable that is not set here; it may be where the recipe is going to."""


def option(
    default: Any = ..., description: str = "", *, operational: bool = False, place: Place | None = None, **checks: Any
) -> Any:
    """A field of a stage's model.

    Args:
        default: its default, or `...` when it must be given.
        description: one sentence, shown by `--help`.
        operational: True when it changes how fast or where, never what comes out, so that it plays no
            part in deciding whether a stage is done.
        place: what it is to the stage when its value names a folder or a file (core/places.py looks after them, and a
            job on another machine is refused when they lie on this one).
        checks: pydantic's own (`ge=`, `gt=`, ...).
    """
    marks: dict[str, Any] = {"operational": operational, "place": place}
    return Field(default, description=description, json_schema_extra=marks, **checks)


class StageConfig(BaseModel):
    """What every stage's options share: unknown keys are errors, secrets print redacted."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str, elsewhere: Elsewhere = lambda _: ()) -> Self:
        """A checked config.

        Args:
            elsewhere: the other sections of a recipe that know a key.

        Raises:
            ConfigError: every unknown key and every bad value, in one message.
        """
        odd = [key for key in values if not isinstance(key, str)]
        if odd:
            raise ConfigError(f"the names of options are text, {odd[0]!r} is not", where=where)
        from raycurate.core.places import refuse_overlaps

        try:
            found = cls(**values)
        except ValidationError as error:
            raise ConfigError(explain(cls, values, error, elsewhere), where=where) from None
        refuse_overlaps(found, where=where)
        return found

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        """What no option may be, whichever it is."""
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value == "" and type(self).model_fields[name].is_required():
                raise ValueError(f"{name} is empty; give it a value")
            bits = _SEED_BITS if name in _SEEDS else _INTEGER_BITS
            for one in _leaves(value):
                if isinstance(one, int) and abs(one) >= 2**bits:
                    raise ValueError(f"{name}={one}: a whole number below 2**{bits} is needed")
                if isinstance(one, str) and not _is_clean(one):
                    raise ValueError(f"{name}={one!r}: text without null bytes, in valid UTF-8, is needed")
        return self

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
        return redact({k: v for k, v in kept.items() if not isinstance(getattr(self, k), SecretStr)})

    def redacted(self) -> dict[str, Any]:
        """All options as plain values fit for a log: no secret in them."""
        return redact(self.model_dump(mode="json"))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield key
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _is_clean(text: str) -> bool:
    """Whether text can be a path and be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of `value` written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hex_digest(text, 16)


@dataclass
class Recipe:
    """A recipe with its overrides applied, references not yet filled in.

    `values` holds the shared keys and one mapping a stage, references (`${...}`) as written, so that a
    recipe can travel to another machine without what this machine's environment holds. `outputs` says where each stage
    writes unless its section does, so that `${STAGE.output}` has a value for every stage.
    """

    values: dict[str, Any] = field(default_factory=dict)
    source: str = "(no recipe)"
    outputs: Mapping[str, str] = field(default_factory=dict)

    def root(self) -> dict[str, Any]:
        """What references are looked up in: the values, and for each stage its `output`, said in its section or not.

        The place where a stage writes by itself is known only where what it refers to is.
        """
        root = dict(self.values)
        for stage, reference in self.outputs.items():
            section = self.values.get(stage)
            own = section if isinstance(section, Mapping) else {}
            if all(name.partition(".")[0] in self.values for name in _REFERENCE.findall(reference)):
                root[stage] = {"output": reference, **own}
        return root

    def shared(self) -> dict[str, Any]:
        return {k: resolve(self.values[k], self.root(), self.source) for k in SHARED_KEYS if k in self.values}

    def has(self, stage: str) -> bool:
        """Whether the recipe has a section for `stage`; `stage: false` is none."""
        return self.values.get(stage, False) is not False

    def section(self, stage: str) -> dict[str, Any]:
        """The section of `stage`, references filled in; empty when the recipe has none, or `true` or `false`."""
        found = self.values.get(stage)
        if found is None or isinstance(found, bool):
            return {}
        if not isinstance(found, dict):
            raise ConfigError(f"'{stage}' must be a mapping of options, not {found!r}", where=self.source)
        return resolve(found, self.root(), f"{self.source}: {stage}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("raycurate") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_recipe(
    name_or_path: str | None,
    overrides: Iterable[str],
    *,
    stages: Iterable[str],
    stage: str | None = None,
    types: Callable[[str], Any] = lambda _: Any,
) -> Recipe:
    """Read a recipe and lay the overrides over it.

    Args:
        name_or_path: a shipped recipe's name, a path or a URI; None for no recipe.
        overrides: `key=value` strings, values read as the option's declared type says (core/typed_text.py). With
            `stage` given, a bare key is that stage's option (or a shared key); else keys are `stage.option` or shared.
        stages: the stages that exist.
        stage: the one stage that is run, if only one is.
        types: the name of a stage, or of a mapping of options (encoder, document_options) -> the model that declares
            them; without it values are read as YAML.

    Raises:
        ConfigError: no such recipe, bad YAML, an unknown section or a malformed override.
    """
    stages = list(stages)
    values, source = _read_recipe(name_or_path) if name_or_path else ({}, "command line")
    known = [*SHARED_KEYS, *stages]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(str(key), known, _with_option(str(key), stages, types)), where=source)
    for override in overrides:
        _apply_override(values, override, stages, stage, types)
    for key in SHARED_KEYS:
        if key in values:
            _check_shared(key, values[key], source)
    return Recipe(values, source)


def _with_option(key: str, stages: Iterable[str], types: Callable[[str], Any]) -> list[str]:
    """The sections that have an option of this name."""
    return [stage for stage in stages if key in getattr(types(stage), "model_fields", ())]


def _check_shared(key: str, value: Any, source: str) -> None:
    if key != "encoder" and (value is None or value in ("", [])):
        raise ConfigError(f"'{key}' is empty", where=source, fix="Give it a value, or leave the line out")
    if value is None or (isinstance(value, str) and _REFERENCE.search(value)):
        return
    try:
        TypeAdapter(SHARED_TYPES[key], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        quoted = f", with quotes: {key}: '{value}'" if isinstance(value, int | float) and key != "seed" else ""
        message = f"{key}={redact(value)!r}: write {phrase(SHARED_TYPES[key])}{quoted}"
        raise ConfigError(message, where=source) from None


def _read_recipe(name_or_path: str) -> tuple[dict[str, Any], str]:
    if name_or_path in shipped_recipes():
        raw = (resources.files("raycurate") / "recipes" / f"{name_or_path}.yaml").read_bytes()
    else:
        raw = _read_file(name_or_path)
    if len(raw) > _LARGEST_RECIPE:
        raise ConfigError(f"it is larger than a recipe may be ({_LARGEST_RECIPE >> 10} KiB)", where=name_or_path)
    try:
        loaded = yaml_text.load(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"it is not UTF-8 text (byte 0x{raw[error.start]:02x} in line {line})",
            where=name_or_path,
            fix="Save it as UTF-8, or check that this is the recipe",
        ) from None
    except yaml_text.YamlError as error:
        raise ConfigError(f"it is not valid YAML ({error})", where=name_or_path) from None
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict):
        raise ConfigError(f"a recipe is a mapping, this is a {type(loaded).__name__}", where=name_or_path)
    for section in (loaded, *(v for v in loaded.values() if isinstance(v, dict))):
        for key in section:
            if not isinstance(key, str):
                said = "null" if key is None else str(key).lower()
                message = f"the names of sections and options are text, and YAML reads {said} as something else"
                raise ConfigError(message, where=name_or_path, fix=f"If it is meant, put it in quotes: '{said}'")
    return loaded, name_or_path


def _read_file(path: str) -> bytes:
    """The bytes of a recipe, one more than may be at most."""
    if storage.is_remote(path):
        return storage.read_bytes(path)
    local = storage.normalise(path)
    try:
        with open(local, "rb") as file:
            return file.read(_LARGEST_RECIPE + 1)
    except IsADirectoryError:
        raise ConfigError("this is a folder; a recipe is a file", where=path) from None
    except (FileNotFoundError, NotADirectoryError):
        close = nearest(path, shipped_recipes())
        hint = f"Did you mean '{close}'? " if close else ""
        raise ConfigError(
            "there is no such recipe, neither a file nor a shipped one",
            where=path,
            fix=f"{hint}Shipped recipes: {', '.join(shipped_recipes())}",
        ) from None
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror or error})", where=path) from None


def _apply_override(
    values: dict[str, Any], override: str, stages: list[str], stage: str | None, types: Callable[[str], Any]
) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is not an override", where="command line", fix="Write key=value")
    if not _is_clean(override):
        raise ConfigError(f"{override!r} is not valid UTF-8", where="command line", fix="Rename it, or name its folder")
    parts = key.split(".")
    if stage and len(parts) > 1 and parts[0] in stages and parts[0] != stage:
        fix = f"Leave it out, or run the whole recipe: `raycurate run -c RECIPE {key}=...`"
        raise ConfigError(f"this command runs {stage} alone, not {parts[0]}", where=f"override {override}", fix=fix)
    if stage and (parts[0] in OF_A_STAGE or parts[0] not in (*SHARED_KEYS, stage)):
        parts.insert(0, stage)
    if parts[0] not in (*SHARED_KEYS, *stages):
        sections = _with_option(parts[0], stages, types)
        hint = unknown_key(parts[0], [*SHARED_KEYS, *stages], sections)
        places = [f"{section}.{parts[0]}=value" for section in sections] or ["stage.option=value"]
        fix = f"Write {' or '.join(places)}"
        raise ConfigError(hint, where=f"override {override}", fix=fix)
    try:
        value = read_typed(text, _declared(parts, types))
    except yaml_text.YamlError as error:
        message = f"it is not a value for {key} ({error})"
        raise ConfigError(
            message,
            where=f"override {override}",
            fix="Close what is open, and put names that have [ ] { } , # in them in quotes",
        ) from None
    if stage and key in SHARED_KEYS and key not in OF_A_STAGE:
        own = values.get(stage)
        if isinstance(own, dict) and key in own:  # the stage's own value would hide the shared one
            own[key] = value
    _put(values, parts, value, override)


def _declared(parts: list[str], types: Callable[[str], Any]) -> Any:
    """The declared type of the option that `parts` lead to."""
    for depth in reversed(range(len(parts))):
        if parts[depth] in MAPPINGS:
            return type_at(types(parts[depth]), parts[depth + 1 :])
    if parts[0] in SHARED_TYPES:
        return SHARED_TYPES[parts[0]]
    return type_at(types(parts[0]), parts[1:]) if len(parts) > 1 else Any


def _put(values: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    target = values
    for part in parts[:-1]:
        if target.get(part) is None or (target is values and isinstance(target[part], bool)):
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ConfigError(f"'{part}' is {redact(target)!r}, which has no keys", where=f"override {override}")
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
            close = nearest(part, [str(key) for key in named]) if isinstance(named, Mapping) else None
            fix = f"Did you mean ${{{name.replace(part, close)}}}?" if close else None
            raise ConfigError(f"${{{name}}} names nothing in the recipe", where=where, fix=fix)
        named = named[part]
    return resolve(named, root, where, (*opened, name))


Model = TypeVar("Model", bound=StageConfig)
