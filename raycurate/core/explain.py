"""What pydantic finds wrong with options, in a user's words: the option, the value, what is allowed.

Pydantic reports a union once for each alternative, under inner names (`batch_tokens.literal['auto']`). Here these are
one problem of one option. The path of an option is found by walking the values that were given.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from raycurate.core.errors import nearest
from raycurate.core.other_names import called_here
from raycurate.core.redaction import redact
from raycurate.core.typed_text import members, models_in, phrase, type_at

_MOST_SHOWN = 5
_SHOWN_CHARS = 80
# Kinds of pydantic's errors that say only that a value is of none of the types.
_WRONG_TYPE = ("_type", "_parsing", "_error", "_attributes_type", "_from_float", "_parsing_size")
_OF_THE_VALUE = ("value_error", "missing", "extra_forbidden")
Elsewhere = Callable[[str], Sequence[str]]


def explain(model: type[BaseModel], values: Mapping[str, Any], error: ValidationError, elsewhere: Elsewhere) -> str:
    """All problems in one text, one clause an option.

    Args:
        values: what was given to `model`.
        elsewhere: the other sections that know a key, for one that stands in the wrong place.
    """
    by_option: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        by_option.setdefault(".".join(_path(model, values, problem)), []).append(problem)
    return "; ".join(_clause(model, values, key, problems, elsewhere) for key, problems in by_option.items())


def _path(model: type[BaseModel], values: Any, problem: Any) -> list[str]:
    """The keys that lead to the option; pydantic's names of a union's alternatives left out."""
    path: list[str] = []
    declared: Any = model
    for step in problem["loc"]:
        known = isinstance(values, Mapping) and step in values
        listed = isinstance(values, list | tuple) and isinstance(step, int)
        if not (known or listed or any(str(step) in m.model_fields for m in _models(declared))):
            continue
        path.append(str(step))
        declared = type_at(declared, [str(step)])
        values = values[step] if known or (listed and step < len(values)) else None
    return path


def _models(declared: Any) -> list[type[BaseModel]]:
    return [one for one in members(declared) if isinstance(one, type) and issubclass(one, BaseModel)]


def _clause(model: type[BaseModel], values: Any, key: str, problems: list[Any], elsewhere: Elsewhere) -> str:
    parts = key.split(".") if key else []
    kinds = {p["type"] for p in problems}
    if "extra_forbidden" in kinds:
        if len(parts) == 1 and _is_of_the_encoder(key, model):
            return f"unknown key '{key}'; how models are run stands in encoder: write encoder.{key}=VALUE"
        return unknown_key(key, _known_at(model, parts), elsewhere(key) if len(parts) == 1 else ())
    if kinds == {"missing"}:
        return f"{key} is missing; it has no default"
    telling = [p for p in problems if not p["type"].endswith(_WRONG_TYPE) or p["type"] in _OF_THE_VALUE]
    if telling:
        message = telling[0]["msg"].removeprefix("Value error, ").replace("Input should ", "it should ")
        message = message[0].lower() + message[1:]
    else:
        message = f"write {phrase(type_at(model, parts))}"
    if not key:  # of several options together; it names them
        return message
    given = _given(values, parts, problems[0]["input"])
    if not telling and isinstance(given, int | float) and not isinstance(given, bool) and "string_type" in kinds:
        message += f", in a recipe with quotes: {parts[-1]}: '{given}'"
    elif not telling and isinstance(given, str | int | float) and kinds == {"list_type"}:
        message += f"; of one thing: {key}=[{redact(given, key)}]"
    shown = repr(redact(given, key))
    return f"{key}={shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + '...'}: {message}"


def _is_of_the_encoder(key: str, model: type[BaseModel]) -> bool:
    """Whether a stage has this option in its mapping `encoder`."""
    if "encoder" not in model.model_fields or key in ("model", "role", "prefix"):
        return False
    return key in importlib.import_module("raycurate.models.options").EncoderOptions.model_fields


def _given(values: Any, parts: list[str], otherwise: Any) -> Any:
    for part in parts:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif isinstance(values, list | tuple) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return otherwise
    return values


def _known_at(model: type[BaseModel], parts: list[str]) -> list[str]:
    """The keys that are known where an unknown one stood, with what leads there (`lora.dim`)."""
    inner = models_in(type_at(model, parts[:-1])) if len(parts) > 1 else [model]
    return [".".join([*parts[:-1], name]) for one in inner for name in one.model_fields]


def unknown_key(key: str, known: Iterable[str], sections: Sequence[str] = ()) -> str:
    """The sentence for an unknown key: the sections that know it, else what an option of that name of another tool is
    called here, else the nearest known one, else a few like it."""
    names = list(known)
    if sections:
        return f"unknown key '{key}'; it belongs to the section {' or '.join(sections)}"
    path, _, name = key.rpartition(".")
    there = called_here(name, [known.removeprefix(f"{path}.") for known in names])
    if there:
        return f"unknown key '{key}'; {there}"
    close = nearest(key, names)
    if close:
        return f"unknown key '{key}'; did you mean '{close}'?"
    likest = difflib.get_close_matches(key, names, n=_MOST_SHOWN, cutoff=0.0)
    left = len(names) - len(likest)
    more = f" and {left} more" if left > 0 else ""
    return f"unknown key '{key}'; known keys: {', '.join(sorted(likest))}{more}"
