"""From what a user names as training data to the files that are read.

A source is a file, a folder, a URI of an object store or `hf://org/repo/subset`, alone or as `{"path", "num_samples"}`.
A folder is never guessed at: it holds one form, or the error lists what is there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError, nearest
from raycurate.core.manifest import OWN_FILES
from raycurate.core.storage import FileEntry
from raycurate.data.training.training_lines import holds_array

SUBSET_METADATA = "dataset_metadata.json"
SUBSET_QUERIES = "queries.parquet"
SUBSET_CORPUS = "corpus.parquet"

_INLINE = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst")
_OWN = OWN_FILES | {"merlin_metadata.json", "generation_result.json", SUBSET_METADATA}

SourceSpec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


class Source(NamedTuple):
    """A source as the user named it; `num_samples` None for all of it."""

    path: str
    num_samples: int | None = None


class Form(StrEnum):
    """How a file of training data is written."""

    INLINE = "inline JSONL"
    CORPUS_ID = "corpus-ID JSON"
    SUBSET = "hub sub-set"


class TrainingFile(NamedTuple):
    """One file of questions; of a sub-set its queries.parquet, beside which its corpus lies."""

    form: Form
    entry: FileEntry

    @property
    def label(self) -> str:
        """The start of the ids of questions that have none."""
        if self.form is Form.SUBSET:
            return posixpath.basename(posixpath.dirname(self.entry.path))
        return posixpath.basename(self.entry.path)


def parse_sources(sources: SourceSpec) -> list[Source]:
    """Sources as given by a user, checked.

    Raises:
        ConfigError: an unknown key, a bad value, or none at all.
    """
    listed = [sources] if isinstance(sources, str | Mapping) else list(sources)
    if not listed:
        raise ConfigError("name at least one source of training data")
    return [_parse(s) for s in listed]


def _parse(source: str | Mapping[str, Any]) -> Source:
    if isinstance(source, str):
        return Source(source)
    if not isinstance(source, Mapping):
        raise ConfigError(f'a source is a path or {{"path", "num_samples"}}, not {source!r}')
    known = ("path", "num_samples")
    for key in source:
        if key not in known:
            close = nearest(str(key), known)
            hint = f"; did you mean '{close}'?" if close else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key '{key}' of a source{hint}", where=str(source.get("path", "")) or None)
    path, samples = source.get("path"), source.get("num_samples")
    if not isinstance(path, str) or not path:
        raise ConfigError(f"a source needs a 'path' that is a string, this is {path!r}")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ConfigError(f"num_samples={samples!r}: it must be a whole number from 1", where=path)
    return Source(path, samples)


def find_files(path: str) -> list[TrainingFile]:
    """The files of questions that a source's path stands for, in order.

    A file by its name; of a folder: a hub sub-set (it has dataset_metadata.json), or its .jsonl files, or its one .json
    file; else all its sub-folders that hold a sub-set or a file of their own name (`FEVER/FEVER.json`).

    Raises:
        InputError: nothing is there, or it cannot be told what of a folder is meant.
    """
    if storage.scheme_of(path) == "hf":
        from raycurate.data.hub import fetch_dataset

        path = fetch_dataset(path)
    if not storage.exists(path):
        raise storage.not_there(path)
    if storage.is_dir(path):
        return _in_folder(storage.normalise(path))
    return [TrainingFile(_form_of(path), storage.list_files(path)[0])]


def _form_of(path: str) -> Form:
    if path.lower().endswith(_INLINE):
        return Form.INLINE
    if path.lower().endswith(".json"):
        return Form.INLINE if holds_array(path) else Form.CORPUS_ID
    raise InputError(
        "training data is .jsonl (.jsonl.gz, .jsonl.zst) or an array in .json with the texts inline, or an object in "
        ".json with document ids",
        where=path,
        fix="Name such a file, or a folder of them",
    )


def _in_folder(folder: str) -> list[TrainingFile]:
    entries = storage.list_files(folder)
    depth = len(folder) + 1
    here = {e.path[depth:]: e for e in entries if "/" not in e.path[depth:]}
    if SUBSET_METADATA in here:
        return [_subset(folder, here)]
    inline = [e for name, e in here.items() if name.lower().endswith(_INLINE)]
    by_id = [e for name, e in here.items() if name.lower().endswith(".json") and name not in _OWN]
    if (inline and by_id) or len(by_id) > 1:
        names = ", ".join(posixpath.basename(e.path) for e in [*inline, *by_id])
        raise InputError(f"the folder holds several files of training data: {names}", where=folder, fix="Name one")
    if inline or by_id:
        return [TrainingFile(_form_of(e.path), e) for e in inline or by_id]
    nested = _in_sub_folders(entries, folder, depth)
    if not nested:
        hint = "it is a corpus; name the training file" if "merlin_metadata.json" in here else "no .jsonl, no .json"
        raise InputError(f"the folder holds no training data ({hint})", where=folder)
    return nested


def _in_sub_folders(entries: list[FileEntry], folder: str, depth: int) -> list[TrainingFile]:
    found = []
    for name in sorted({e.path[depth:].split("/")[0] for e in entries if "/" in e.path[depth:]}):
        sub_folder = storage.join(folder, name)
        here = {e.path[len(sub_folder) + 1 :]: e for e in entries if e.path.startswith(sub_folder + "/")}
        if SUBSET_METADATA in here:
            found.append(_subset(sub_folder, here))
        elif f"{name}.json" in here:
            found.append(TrainingFile(Form.CORPUS_ID, here[f"{name}.json"]))
    return found


def _subset(folder: str, here: Mapping[str, FileEntry]) -> TrainingFile:
    for name in (SUBSET_QUERIES, SUBSET_CORPUS):
        if name not in here:
            raise InputError(
                f"this sub-set has {SUBSET_METADATA} but no {name}; its files: {', '.join(sorted(here))}", where=folder
            )
    return TrainingFile(Form.SUBSET, here[SUBSET_QUERIES])
