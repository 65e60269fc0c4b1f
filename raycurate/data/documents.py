"""Documents in: text, JSON Lines and Parquet files, local or remote, as a Ray Data data set.

    ds = read_documents("s3://bucket/docs")            # a file, a folder, a glob, a list, hf://org/dataset

The driver lists the files and cuts the listing into segments (segments.py); read tasks read them
(reading.py, parquet.py). Reading is a datasource of our own because rows must carry a key that is made
where they are read: it is what lets a killed run go on without losing a row or writing one twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import field_validator

from raycurate.core import storage
from raycurate.core.config import StageConfig, option
from raycurate.core.errors import InputError, nearest, require
from raycurate.core.manifest import is_data, listing_fingerprint
from raycurate.core.storage import FileEntry
from raycurate.data import segments as cutting
from raycurate.data.rows import BASE_NAMES, ReadPlan
from raycurate.data.segments import DEFAULT_EXTENSIONS, Kind, extension_of, kind_of

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset

_OTHERS_FILES = {"_SUCCESS", "_metadata", "_common_metadata"}  # what Spark and pyarrow leave beside their data
_FOOTERS_TRIED = 8


class DocumentsOptions(StageConfig):
    """Where documents are and what their fields are called."""

    input: str | list[str] = option(..., "File, folder, glob, hf://org/dataset, or a list of them.")
    file_extensions: list[str] | None = option(
        None,
        "Extensions to read instead of .txt .md .jsonl .jsonl.gz .jsonl.zst .parquet and none ('' stands for none); "
        ".html and .rst are reduced to text, unknown ones are read as text.",
    )
    text_field: str = option("text", "Column that holds the text (JSON Lines, Parquet); it comes out as `text`.")
    title_field: str = option("title", "Column that holds the title, where there is one; it comes out as `title`.")
    id_field: str | None = option(
        None,
        "Column that holds the id; by default `id` or `_id` where there is one, else made from source and position.",
    )
    metadata_fields: list[str] = option([], "Further columns to pass through.")
    max_chars: int = option(1_000_000, "Longer texts are rejected.", gt=0, le=500_000_000)
    files_per_partition: int = option(0, "Most files in one read task; 0 for no limit.", operational=True, ge=0)
    block_bytes: int = option(1 << 20, "Text in one block, in bytes, about.", operational=True, gt=0)

    @field_validator("file_extensions")
    @classmethod
    def _with_dots(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("name at least one extension; '' stands for files without one")
        return [v.lower() if v.startswith(".") or not v else f".{v.lower()}" for v in value]

    @field_validator("metadata_fields")
    @classmethod
    def _not_ours(cls, value: list[str]) -> list[str]:
        reserved = {"_row_key", "reject_reason", "reject_detail"} & set(value)
        if reserved:
            raise ValueError(f"{', '.join(sorted(reserved))}: these names are our own")
        return value


@dataclass(frozen=True)
class Listing:
    """The files of a corpus as they were when it was listed, sorted by path."""

    files: list[FileEntry]
    position_bits: int
    unsupported: dict[str, int] = field(default_factory=dict)
    """Files that were left alone, counted by extension."""

    @property
    def total_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or written again."""
        return listing_fingerprint(self.files)


def list_documents(options: DocumentsOptions) -> Listing:
    """The files that `options.input` names, in the order that their rows' keys follow.

    Hidden files, and the manifests, rejects and staging files of our own outputs, are left out.

    Raises:
        InputError: a path that is not there, or no file of a supported kind.
        MissingDependencyError: .html or .rst files without the packages that read them.
    """
    wanted = set(DEFAULT_EXTENSIONS if options.file_extensions is None else options.file_extensions)
    inputs = [options.input] if isinstance(options.input, str) else options.input
    if not inputs:
        raise InputError("no input was given", fix="Name a file, a folder, a glob or hf://org/dataset")
    found: dict[str, FileEntry] = {}
    unsupported: Counter[str] = Counter()
    for path in inputs:
        for file in _list_one(path):
            if extension_of(file.path) in wanted:
                found[file.path] = file
            else:
                unsupported[extension_of(file.path)] += 1
    if not found:
        raise _nothing_found(inputs, wanted, unsupported)
    files = [found[path] for path in sorted(found)]
    _require_parsers(files)
    return Listing(files, cutting.choose_position_bits(files), dict(sorted(unsupported.items())))


def _list_one(path: str) -> list[FileEntry]:
    try:
        files = storage.list_files(path)
    except InputError as error:
        sibling = _nearest_sibling(path)
        raise InputError(error.what, where=error.where, fix=sibling and f"Did you mean {sibling}?") from error
    root = storage.normalise(path)
    if len(files) == 1 and files[0].path == root:
        return files  # named by itself: whatever it is called
    folder = root[: min((root.find(m) for m in "*[" if m in root), default=len(root))].rpartition("/")[0]
    depth = len(folder) if "*" in root or "[" in root else len(root)
    return [f for f in files if not _is_ours_or_hidden(f.path[depth:].strip("/"))]


def _is_ours_or_hidden(relative: str) -> bool:
    *folders, name = relative.split("/")
    return any(part.startswith(".") for part in (*folders, name)) or name in _OTHERS_FILES or not is_data(relative)


def _nearest_sibling(path: str) -> str | None:
    """What lies beside a missing path and is called most like it."""
    if any(mark in path for mark in "*["):
        return None
    parent, _, name = storage.normalise(path).rpartition("/")
    try:
        filesystem, inner = storage.filesystem(parent or "/")
        names = [i.base_name for i in filesystem.get_file_info(pafs.FileSelector(inner))]
    except (OSError, pa.ArrowException):
        return None  # the parent is missing too: there is nothing to suggest
    close = nearest(name, names)
    return storage.join(parent, close) if close else None


def _nothing_found(inputs: Sequence[str], wanted: set[str], unsupported: Counter[str]) -> InputError:
    seen = ", ".join(f"{n} {extension or 'without extension'}" for extension, n in unsupported.most_common(8))
    names = ", ".join(sorted(e or "none" for e in wanted))
    return InputError(
        f"no file to read; extensions read are {names}; there are {seen or 'no files at all'}",
        where=", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else ""),
        fix="Set file_extensions to read others" if unsupported else "Check the path",
    )


def _require_parsers(files: Iterable[FileEntry]) -> None:
    kinds = {kind_of(f.path)[0] for f in files}
    if Kind.HTML in kinds:
        require("bs4", "html", purpose="Reading .html files")
    if Kind.RST in kinds:
        require("docutils", "html", purpose="Reading .rst files")


# --- what is checked and decided before any work -------------------------------------------------


def make_plan(options: DocumentsOptions, columns: Sequence[str] | None, listing: Listing) -> ReadPlan:
    """What the read tasks need, checked against the first Parquet file's footer.

    Args:
        columns: metadata columns to pass through; None for whatever each file has.

    Raises:
        InputError: a Parquet corpus without the text column or another column that was asked for.
    """
    kinds = {kind_of(f.path)[0] for f in listing.files}
    as_text = Kind.JSONL in kinds
    path, schema = _first_parquet_schema(listing.files) if Kind.PARQUET in kinds else ("", None)
    wanted = None if columns is None else [c for c in dict.fromkeys(columns) if c not in BASE_NAMES]
    if schema is not None:
        _check_parquet(path, schema, options, wanted or [], only_parquet=kinds == {Kind.PARQUET})
    return ReadPlan(
        text_field=options.text_field,
        title_field=options.title_field,
        id_field=options.id_field,
        columns=None if wanted is None else tuple((n, _column_type(n, schema, as_text)) for n in wanted),
        max_chars=options.max_chars,
        block_bytes=options.block_bytes,
        position_bits=listing.position_bits,
        metadata_as_text=as_text,
    )


def _first_parquet_schema(files: Iterable[FileEntry]) -> tuple[str, pa.Schema | None]:
    """The first Parquet file that can be opened; those that cannot are rejected where they are read."""
    from raycurate.data.parquet import read_schema

    paths = [f.path for f in files if kind_of(f.path)[0] is Kind.PARQUET]
    for path in paths[:_FOOTERS_TRIED]:
        try:
            return path, read_schema(path)
        except (OSError, pa.ArrowException):
            continue
    return "", None


def _check_parquet(
    path: str, schema: pa.Schema, options: DocumentsOptions, wanted: list[str], only_parquet: bool
) -> None:
    from raycurate.data.parquet import is_scalar_id, is_string_like

    asked = [("text_field", options.text_field), ("id_field", options.id_field)]
    if options.title_field != "title":
        asked.append(("title_field", options.title_field))
    if only_parquet:
        asked += [("metadata_fields", name) for name in wanted]
    for key, name in asked:
        if name is not None and name not in schema.names:
            close = nearest(name, schema.names)
            hint = f"Did you mean '{close}'? " if close else ""
            raise InputError(
                f"there is no column '{name}' ({key})",
                where=path,
                fix=f"{hint}Set {key}; the columns are {', '.join(schema.names)}",
            )
    kind = schema.field(options.text_field).type
    if not is_string_like(kind):
        raise InputError(
            f"column '{options.text_field}' holds {kind}, not text",
            where=path,
            fix="Set text_field to a column of strings",
        )
    if options.id_field is not None and not is_scalar_id(schema.field(options.id_field).type):
        raise InputError(
            f"column '{options.id_field}' holds {schema.field(options.id_field).type}, which cannot be an id",
            where=path,
            fix="Set id_field to a column of strings or integers",
        )


def _column_type(name: str, schema: pa.Schema | None, as_text: bool) -> pa.DataType:
    from raycurate.data.parquet import plain_type

    if schema is None or as_text or name not in schema.names:
        return pa.string()
    return plain_type(schema.field(name).type)


# --- Ray Data -------------------------------------------------------------------------------------


def read_documents(
    options_or_paths: DocumentsOptions | str | list[str],
    *,
    columns: Sequence[str] | None = None,
    done_keys: ray.ObjectRef | None = None,
    listing: Listing | None = None,
    seconds_column: str | None = None,
    num_cpus: float = 1.0,
    **options: Any,
) -> Dataset:
    """A lazy Ray Data data set with one row a document.

    Columns: `_row_key` uint64 (unique; where the row is in the corpus), `id`, `text`, `title`, `source`,
    `reject_reason` and `reject_detail` (strings; null for a good row), then the metadata columns. Metadata
    from JSON Lines are strings, other values than strings as JSON text, so that every task gives the same
    types; Parquet columns keep the type they have in the first file, unless the corpus has JSON Lines too.
    A row that cannot be used comes out with its `reject_reason` (rows.REJECT_REASONS), never as an error.

    Args:
        options_or_paths: options, or just the input, with further options by keyword.
        columns: metadata columns to pass through. By default those that `metadata_fields` names; when
            only paths are given and no `metadata_fields`, all that each file has.
        done_keys: a sorted uint64 array in the object store: `_row_key`s of rows to leave out.
        listing: a listing made before, so that it is not made twice.
        seconds_column: name of a column that tells what reading took (data/datasource.py); none by default.
        num_cpus: CPUs that a read task reserves.

    Raises:
        ConfigError: an unknown or bad option.
        InputError: no such input, or a Parquet corpus without the columns that were asked for.
    """
    if isinstance(options_or_paths, DocumentsOptions):
        given = {name: getattr(options_or_paths, name) for name in DocumentsOptions.model_fields} | options
        everything = False
    else:
        given = {"input": options_or_paths} | options
        everything = "metadata_fields" not in options
    checked = DocumentsOptions.parse(given, where="read_documents")
    if columns is None and not everything:
        columns = checked.metadata_fields
    listing = list_documents(checked) if listing is None else listing
    plan = make_plan(checked, columns, listing)

    import ray.data

    from raycurate.data.datasource import DocumentsDatasource

    # Twice as many tasks as CPUs, so that the last ones to end do not leave the others idle for long.
    wanted = int(2 * ray.cluster_resources().get("CPU", 4)) if ray.is_initialized() else 8
    source = DocumentsDatasource(
        listing, plan, checked.files_per_partition, done_keys, tasks=wanted, seconds_column=seconds_column
    )
    return ray.data.read_datasource(source, override_num_blocks=source.num_tasks, num_cpus=num_cpus)
