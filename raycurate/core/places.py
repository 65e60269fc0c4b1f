"""Where a stage reads and where it writes: an output that overlaps an input is refused before any work.

An output inside an input would be read as input by the next run, and one that is an input, or lies above it, is
what `overwrite` replaces. Paths are compared by what they lead to: links, `..`, `file://` and `~` are followed.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from raycurate.core import storage
from raycurate.core.errors import ConfigError

INPUTS = frozenset(
    {
        "input",
        "documents",
        "against",
        "groups",
        "centroids",
        "exclude_positives_of",
        "train",
        "val",
        "dev",
        "finetuned",
    }
)
"""Options that name what a stage reads."""
MODELS = frozenset({"model", "mining_models", "teacher", "init", "tokenizer"})
"""Options that name a folder or a file if there is such a one, else something of another kind."""
CACHES = frozenset({"cache", "cache_path", "cache_dir", "data_cache"})
"""Options that name what runs share; one's own output is no such place."""
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
    for key, path in _places(config):
        name = key.rpartition(".")[2]
        said = _overlap(output, path, may_hold=name in CACHES) if _is_place(name, path) else ""
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


def _places(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(option, path) of every option that may name a place, those of nested sections too."""
    for name in type(config).model_fields:
        yield from _named(name, getattr(config, name), prefix)


def _named(name: str, value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if name in INPUTS | MODELS | CACHES:
        yield from ((prefix + name, path) for path in _strings(value))
    elif isinstance(value, BaseModel):
        yield from _places(value, f"{prefix}{name}.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(str(key), inner, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, BaseModel | Mapping):
                yield from _named(name, inner, prefix)


def _strings(value: Any) -> Iterator[str]:
    """The paths in an option: one, a list, {path, num_samples}, a list of those."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name in ("path", "model"):
            yield from _strings(value.get(name))
    elif isinstance(value, BaseModel):
        yield from _strings(value.model_dump(include={"path", "model"}))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _is_place(name: str, path: str) -> bool:
    if not path or _NOT_A_PATH.match(path):
        return False
    if name not in MODELS or storage.is_remote(path):
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
