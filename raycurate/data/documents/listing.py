"""Which files an input names, what each is called from the input's root, and what its folders say of it.

A file's *name* is its path relative to the root of the input: ids made from it stay the same when a corpus is moved,
copied or mounted elsewhere. The root is the folder itself, the folder of a file that is named alone, the folder before
the first mark of a glob; of a list, the deepest folder that holds all of these.

Folders called `key=value` between root and file are partition columns, as Hive, Spark, pyarrow and Ray Data write them.
"""

from __future__ import annotations

import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import fs as pafs

from raycurate.core import storage
from raycurate.core.errors import InputError, nearest, require
from raycurate.core.manifest import is_data, listing_fingerprint
from raycurate.core.storage import FileEntry
from raycurate.data.documents.segments import (
    DocumentFile,
    Kind,
    PartitionValues,
    choose_position_bits,
    extension_of,
    is_known,
    kind_of,
)

_OTHERS_FILES = {"_SUCCESS", "_metadata", "_common_metadata"}  # what Spark and pyarrow leave beside their data
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NOT_TEXT = {".pdf", ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".epub", ".zip", ".tar", ".gz", ".bz2"}
_NOT_TEXT |= {".png", ".jpg", ".jpeg", ".gif", ".tiff", ".mp3", ".mp4", ".arrow", ".avro", ".orc", ".npy", ".bin"}


@dataclass(frozen=True)
class Listing:
    """The files of a corpus as they were when it was listed, sorted by path."""

    files: list[DocumentFile]
    position_bits: int
    unsupported: dict[str, int] = field(default_factory=dict)
    """Files that were left alone, counted by extension."""

    @property
    def total_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or written again."""
        return listing_fingerprint(list(self.files))

    @property
    def kinds(self) -> set[Kind]:
        return {kind_of(f.path)[0] for f in self.files}


@dataclass(frozen=True)
class _Found:
    """The files that one input names. named: whether by themselves, or by a pattern with their extension."""

    root: str
    files: list[FileEntry]
    named: bool


def list_inputs(inputs: Sequence[str], extensions: Collection[str], *, asked: bool) -> Listing:
    """The files of all inputs, in the order that their rows' keys follow.

    Hidden files, and the manifests, rejects and staging files of our own outputs, are left out. What is named by
    itself, or by a glob that ends in its extension, is read where its format is known, whatever `extensions` are.

    Args:
        extensions: what is read in folders; asked: whether the user chose them.

    Raises:
        InputError: a path that is not there, or no file of a supported kind.
        MissingDependencyError: .html or .rst files without the packages that read them.
    """
    found = [_list_one(path) for path in inputs]
    root = _common_folder([one.root for one in found])
    files: dict[str, DocumentFile] = {}
    unsupported: Counter[str] = Counter()
    for one in found:
        for entry in one.files:
            extension = extension_of(entry.path)
            if extension in extensions or (one.named and not asked and is_known(extension)):
                files[entry.path] = _document_file(entry, root)
            else:
                unsupported[extension] += 1
    if not files:
        raise _nothing_found(inputs, extensions, unsupported)
    listed = [files[path] for path in sorted(files)]
    _require_parsers(listed)
    return Listing(listed, choose_position_bits(listed), dict(sorted(unsupported.items())))


def _list_one(path: str) -> _Found:
    try:
        files = storage.list_files(path)
    except InputError as error:
        sibling = _nearest_sibling(path)
        raise InputError(error.what, where=error.where, fix=sibling and f"Did you mean {sibling}?") from error
    folder = storage.glob_root(path)
    if folder is not None:
        root = storage.without_options(folder)
        named = extension_of(path) != "" and not any(mark in extension_of(path) for mark in "*[?")
    else:
        root = storage.without_options(storage.normalise(path))
        if len(files) == 1 and storage.without_options(files[0].path) == root:
            return _Found(root.rpartition("/")[0], files, named=True)  # whatever it is called
        named = False
    kept = [f for f in files if not _is_ours_or_hidden(_relative(f.path, root))]
    return _Found(root, kept, named)


def _relative(path: str, root: str) -> str:
    return storage.without_options(path)[len(root) :].strip("/")


def _is_ours_or_hidden(relative: str) -> bool:
    parts = relative.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1] in _OTHERS_FILES or not is_data(relative)


def _common_folder(roots: Sequence[str]) -> str:
    """The deepest folder that holds all roots; "" where they have none in common."""
    first, *others = [root.split("/") for root in roots]
    depth = len(first)
    for other in others:
        depth = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(depth, len(other)))
        first = first[:depth]
    return "/".join(first[:depth])


def _document_file(entry: FileEntry, root: str) -> DocumentFile:
    name = _relative(entry.path, root)
    return DocumentFile(entry.path, entry.size, entry.mtime_ns, name, _partition_values(root, name))


def _partition_values(root: str, name: str) -> PartitionValues:
    """What folders called key=value say: those of the name, and those that the root itself ends in."""
    above: list[str] = []
    for part in reversed(root.split("/")):
        if not _PARTITION.fullmatch(part):
            break
        above.insert(0, part)
    values: dict[str, str | None] = {}
    for part in (*above, *name.split("/")[:-1]):
        matched = _PARTITION.fullmatch(part)
        if matched:
            value = urllib.parse.unquote(matched.group(2))
            values[urllib.parse.unquote(matched.group(1))] = None if value == _HIVE_NULL else value
    return tuple(values.items())


def partition_types(files: Iterable[DocumentFile]) -> dict[str, pa.DataType]:
    """The partition columns of these files: int64 where every value is a whole number as one writes it, else string."""
    values: dict[str, set[str]] = {}
    for file in files:
        for name, value in file.values:
            values.setdefault(name, set()).update([] if value is None else [value])
    return {name: pa.int64() if found and all(map(_is_whole, found)) else pa.string() for name, found in values.items()}


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) is not None


# --- what is said when there is nothing -----------------------------------------------------------


def _nearest_sibling(path: str) -> str | None:
    """What lies beside a missing path and is called most like it."""
    if storage.glob_root(path) is not None:
        return None
    parent, _, name = storage.normalise(path).rpartition("/")
    try:
        filesystem, inner = storage.filesystem(parent or "/")
        names = [i.base_name for i in filesystem.get_file_info(pafs.FileSelector(inner))]
    except (OSError, pa.ArrowException):
        return None  # the parent is missing too: there is nothing to suggest
    close = nearest(name, names)
    return storage.join(parent, close) if close else None


def _nothing_found(inputs: Sequence[str], wanted: Collection[str], unsupported: Counter[str]) -> InputError:
    seen = ", ".join(f"{n} {extension or 'without extension'}" for extension, n in unsupported.most_common(8))
    names = ", ".join(sorted(e or "none" for e in wanted))
    return InputError(
        f"no file to read; extensions read are {names}; there are {seen or 'no files at all'}",
        where=", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else ""),
        fix=_advice(unsupported),
    )


def _advice(unsupported: Counter[str]) -> str:
    """What to do about the files that are there; followed, it leads to documents."""
    if not unsupported:
        return "Check the path"
    readable = sorted(e for e in unsupported if e not in _NOT_TEXT)
    if not readable:
        return "Convert them to text, JSON Lines or Parquet; these formats are not read"
    plain = [e for e in readable if not is_known(e)]
    said = f"file_extensions=[{', '.join(repr(e) for e in readable[:5])}] reads them"
    return f"{said}, {', '.join(e or 'those without extension' for e in plain[:5])} as plain text" if plain else said


def _require_parsers(files: Iterable[FileEntry]) -> None:
    kinds = {kind_of(f.path)[0] for f in files}
    if Kind.HTML in kinds:
        require("bs4", "html", purpose="Reading .html files")
    if Kind.RST in kinds:
        require("docutils", "html", purpose="Reading .rst files")
