"""Where a stage reads and where it writes: an output that overlaps an input is refused before any work.

An output inside an input would be read as input by the next run, and one that is an input, or lies above it, is
what `overwrite` replaces. Paths are compared by what they lead to: links, `..`, `file://` and `~` are followed.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raycurate.core import storage
from raycurate.core.config import MAPPINGS, SHARED_KEYS, Place
from raycurate.core.errors import ConfigError
from raycurate.core.typed_text import models_in

SHARED_PLACES: dict[str, Place] = {"workdir": "output", "corpus": "input", "model": "model"}
_WITHIN = ("path", "model")  # of {path: ..., num_samples: ...} and the like, what names the place
_NOT_A_PATH = re.compile(r"(python|beir):|https?://")
_MARKS = "*[?"
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}


def refuse_overlaps(config: BaseModel, *, where: str) -> None:
    """Look at all options of a stage that name a place.

    Raises:
        ConfigError: the output is an input, lies inside one or above one, or is a cache.
    """
    output = getattr(config, "output", None)
    if not isinstance(output, str) or not output:
        return
    for key, path, kind in places(config):
        said = _overlap(output, path, may_hold=kind == "cache") if _is_place(kind, path) else ""
        if said:
            raise ConfigError(
                f"the output ({output}) {said} {key}={path}: a run would read what it writes, and overwrite=true "
                "would replace what it reads",
                where=where,
                fix="Use another output folder, beside the input",
            )


def resolved(path: str) -> str:
    """What a path leads to: a local one without links, `..` and `~`; a URI without `..`, options and other names."""
    if not storage.is_remote(path):
        return os.path.realpath(storage.normalise(path))
    scheme, _, rest = path.partition("?")[0].partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    return f"{scheme}://{posixpath.normpath(rest).strip('/')}"


def kind_of(info: FieldInfo) -> str | None:
    """What the path that an option names is to its stage; None when it names none."""
    marks = info.json_schema_extra
    kind = marks.get("place") if isinstance(marks, dict) else None
    return kind if isinstance(kind, str) else None


def places(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(option, path, kind) of every option that may name a place but the output; of options within options too."""
    for name, info in type(config).model_fields.items():
        yield from _named(prefix + name, kind_of(info), getattr(config, name))


def _named(key: str, kind: str | None, value: Any) -> Iterator[tuple[str, str, str]]:
    if kind in ("input", "model", "cache"):
        yield from ((key, path, kind) for path in _strings(value))
    elif isinstance(value, BaseModel):
        yield from places(value, f"{key}.")
    elif isinstance(value, Mapping):
        declared = options_in(key.rpartition(".")[2])
        for name, inner in value.items():
            yield from _named(f"{key}.{name}", kind_of(declared[name]) if name in declared else None, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, BaseModel | Mapping):
                yield from _named(key, None, inner)


def kind_at(parts: Sequence[str], types: Callable[[str], Any]) -> str | None:
    """What the option is to its stage that `parts` lead to in a recipe; None where it names no place.

    Args:
        types: the name of a stage -> the model that declares its options.
    """
    first, *rest = parts
    if first in SHARED_KEYS and first not in MAPPINGS:
        return None if rest else SHARED_PLACES.get(first)
    known = options_in(first) or _options_of(types(first))
    for at, part in enumerate(rest):
        if part not in known:  # the name that a user gave to one of several
            continue
        kind = kind_of(known[part])
        if kind is not None:
            return kind if at + 1 == len(rest) or rest[-1] in _WITHIN else None
        known = options_in(part) or _options_of(known[part].annotation)
    return None


def _options_of(declared: Any) -> dict[str, FieldInfo]:
    return {name: info for model in models_in(declared) for name, info in model.model_fields.items()}


def options_in(mapping: str) -> dict[str, FieldInfo]:
    """The options that a mapping of options (`encoder`, `document_options`) may hold."""
    from importlib import import_module

    found: dict[str, FieldInfo] = {}
    for path in MAPPINGS.get(mapping, ()):
        module, _, name = path.partition(":")
        found |= getattr(import_module(module), name).model_fields
    return found


def _strings(value: Any) -> Iterator[str]:
    """The paths in an option: one, a list, {path, num_samples}, a list of those."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name in _WITHIN:
            yield from _strings(value.get(name))
    elif isinstance(value, BaseModel):
        yield from _strings(value.model_dump(include=set(_WITHIN)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def is_no_path(value: str) -> bool:
    """Whether what stands where a path may stand is known to be none: a package's model, a test set's name, a URL."""
    return bool(_NOT_A_PATH.match(value))


def _is_place(kind: str, path: str) -> bool:
    if not path or is_no_path(path):
        return False
    if kind != "model" or storage.is_remote(path):
        return True
    return os.path.exists(resolved(path))


def _overlap(output: str, path: str, *, may_hold: bool) -> str:
    """How an output lies to another place, as the middle of a sentence; empty when they are apart."""
    path = path.removeprefix("mteb:")
    target = resolved(output)
    base, pattern = _glob_base(path)
    place = resolved(base)
    if _within(target, place) and _within(place, target):
        return "is"
    if may_hold:
        return ""
    if _within(place, target):
        return "lies above"
    if _within(target, place) and (pattern is None or _reaches(pattern, os.path.relpath(target, place))):
        return "lies inside"
    return ""


def _glob_base(path: str) -> tuple[str, str | None]:
    """The folder above the first mark of a glob, and the rest; a path that is there, or has no mark, and None."""
    bare = path.partition("?")[0] if storage.is_remote(path) else path
    first = min((bare.find(mark) for mark in _MARKS if mark in bare), default=-1)
    if first < 0 or (not storage.is_remote(path) and os.path.exists(storage.normalise(path))):
        return path, None
    cut = bare.rfind("/", 0, first)
    return bare[:cut] or "/" if cut >= 0 else ".", bare[cut + 1 :]


def _reaches(pattern: str, folder: str) -> bool:
    """Whether a glob, relative to its base, can name something inside `folder`, relative to the same."""
    parts, into = pattern.split("/"), folder.split("/")
    for at, part in enumerate(parts):
        if part == "**":
            return True
        if at == len(into):
            return True
        if not fnmatch.fnmatchcase(into[at], part):
            return False
    return False


def _within(inner: str, outer: str) -> bool:
    """Whether `inner` is `outer` or lies in it; local folders that are mounted twice are one."""
    if inner == outer or inner.startswith(outer.rstrip("/") + "/"):
        return True
    if storage.is_remote(inner) or storage.is_remote(outer) or not os.path.exists(outer):
        return False
    while inner != "/":
        if os.path.exists(inner) and os.path.samefile(inner, outer):
            return True
        inner = os.path.dirname(inner)
    return False
