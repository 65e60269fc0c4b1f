"""Documents in: text, JSON Lines and Parquet files, local or remote, as a Ray Data data set.

    ds = read_documents("s3://bucket/docs")            # a file, a folder, a glob, a list, hf://org/dataset

The driver lists the files and cuts the listing into segments (segments.py); read tasks read them
(reading.py, parquet.py). Reading is a datasource of our own because rows must carry a key that is made
where they are read: it is what lets a killed run go on without losing a row or writing one twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import field_validator

from raycurate.core.config import StageConfig, option
from raycurate.core.errors import InputError, nearest
from raycurate.core.observe import get_logger
from raycurate.data.documents.ids import common_id_type, is_id_type, is_string_like
from raycurate.data.documents.listing import Listing, list_inputs, partition_types
from raycurate.data.documents.parquet_schema import FileSchema, common_type, read_file_schemas
from raycurate.data.documents.rows import BASE_NAMES, TEXT_CUT, OverLong, ReadPlan
from raycurate.data.documents.segments import DEFAULT_EXTENSIONS, Kind, kind_of

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset

log = get_logger(__name__)

LONGEST_TEXT = 500_000_000
"""Characters that `max_chars` can be at most: what one string of Arrow's holds, whatever the characters."""


class DocumentsOptions(StageConfig):
    """Where documents are and what their fields are called."""

    input: str | list[str] = option(..., "File, folder, glob, hf://org/dataset, or a list of them.", place="input")
    file_extensions: list[str] | None = option(
        None,
        "Extensions to read instead of .txt .md .jsonl .ndjson (these two also .gz, .zst) .parquet and none ('' stands "
        "for none); .json is read as what it holds, .html and .rst are reduced to text, unknown ones are read as text.",
    )
    text_field: str = option("text", "Column that holds the text (JSON Lines, Parquet); it comes out as `text`.")
    title_field: str = option("title", "Column that holds the title, where there is one; it comes out as `title`.")
    id_field: str | None = option(
        None,
        "Column that holds the id; by default `id` or `_id` where there is one, else made from source and position.",
    )
    metadata_fields: list[str] = option([], "Further columns to pass through.")
    id_type: Literal["auto", "text", "integer"] = option(
        "auto",
        "Type that ids come out as: auto keeps integers where all files are Parquet with an id column of integers; "
        "integer rejects rows whose id is no whole number, also in JSON Lines.",
    )
    max_chars: int = option(1_000_000, "Characters kept of a text; see over_long.", gt=0, le=LONGEST_TEXT)
    over_long: OverLong = option("truncate", "What is done with longer texts: truncate (counted) or reject.")
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
        reserved = {"_row_key", TEXT_CUT, "reject_reason", "reject_detail"} & set(value)
        if reserved:
            raise ValueError(f"{', '.join(sorted(reserved))}: these names are our own")
        return value


def list_documents(options: DocumentsOptions) -> Listing:
    """The files that `options.input` names, in the order that their rows' keys follow (listing.py).

    Raises:
        InputError: a path that is not there, or no file of a supported kind.
        MissingDependencyError: .html or .rst files without the packages that read them.
    """
    inputs = [options.input] if isinstance(options.input, str) else options.input
    if not inputs:
        raise InputError("no input was given", fix="Name a file, a folder, a glob or hf://org/dataset")
    asked = options.file_extensions
    return list_inputs(inputs, set(DEFAULT_EXTENSIONS if asked is None else asked), asked=asked is not None)


# --- what is checked and decided before any work -------------------------------------------------


def make_plan(options: DocumentsOptions, columns: Sequence[str] | None, listing: Listing) -> ReadPlan:
    """What the read tasks need, checked against the footers of all Parquet files.

    Args:
        columns: metadata columns to pass through; None for all.

    Raises:
        InputError: a Parquet corpus without the text column or another column that was asked for, a column that
            cannot be what it is asked to be, or one that stands twice in a file.
    """
    kinds = listing.kinds
    as_text = not kinds.isdisjoint({Kind.JSON, Kind.JSONL})
    files = _schemas(options, listing)
    folders = partition_types(listing.files)
    if columns is None:
        wanted = None if as_text else _all_columns(options, files, folders)
    else:
        wanted = [c for c in dict.fromkeys(columns) if c not in BASE_NAMES]
    if files:
        asked = [name for name in wanted or [] if name not in folders]
        _check_parquet(options, files, asked if kinds == {Kind.PARQUET} else [], only_parquet=kinds == {Kind.PARQUET})
    return ReadPlan(
        text_field=options.text_field,
        title_field=options.title_field,
        id_field=options.id_field,
        columns=None if wanted is None else tuple((n, _type_of(n, files, folders, as_text)) for n in wanted),
        id_type=_id_type(options, files, kinds),
        max_chars=options.max_chars,
        over_long=options.over_long,
        block_bytes=options.block_bytes,
        position_bits=listing.position_bits,
        metadata_as_text=as_text,
    )


def _schemas(options: DocumentsOptions, listing: Listing) -> list[FileSchema]:
    """Of the Parquet files that have rows, or of all where none has."""
    paths = [f.path for f in listing.files if kind_of(f.path)[0] is Kind.PARQUET]
    files = read_file_schemas(paths, ids=[options.id_field] if options.id_field else ["id", "_id"])
    return [file for file in files if file.rows] or files


def _all_columns(
    options: DocumentsOptions, files: Iterable[FileSchema], folders: Mapping[str, pa.DataType]
) -> list[str]:
    """The columns of all files and folders that are not ours, in the order in which they come."""
    ours = {*BASE_NAMES, options.text_field, options.title_field, options.id_field or "_id"}
    named = (name for file in files for name in file.schema.names)
    return [name for name in dict.fromkeys([*named, *folders]) if name not in ours]


def _check_parquet(
    options: DocumentsOptions, files: Sequence[FileSchema], metadata: Sequence[str], *, only_parquet: bool
) -> None:
    asked = [("text_field", options.text_field), ("id_field", options.id_field)]
    if options.title_field != "title":
        asked.append(("title_field", options.title_field))
    asked += [("metadata_fields", name) for name in metadata]
    names = list(dict.fromkeys(name for file in files for name in file.schema.names))
    for key, name in asked:
        if name is not None and name not in names and (only_parquet or key != "id_field"):
            close = nearest(name, names)
            hint = f"Did you mean '{close}'? " if close else ""
            raise InputError(
                f"there is no column '{name}' ({key})",
                where=files[0].path,
                fix=f"{hint}Set {key}; the columns are {', '.join(names)}",
            )
    _require(options.text_field, files, _can_be_text, "not text", "Set text_field to a column of strings")
    if options.id_field is not None:
        fix = "Set id_field to a column of strings, integers or other single values"
        _require(options.id_field, files, is_id_type, "which cannot be an id", fix)


def _can_be_text(kind: pa.DataType) -> bool:
    return is_string_like(kind) or pa.types.is_null(kind)


def _require(name: str, files: Sequence[FileSchema], fits: Callable[[pa.DataType], bool], why: str, fix: str) -> None:
    """Raises InputError when a column fits in none of the files; where it fits in some, the rows of others are
    rejected."""
    kinds = [(file.path, kind) for file in files if (kind := file.type_of(name)) is not None]
    if kinds and not any(fits(kind) for _, kind in kinds):
        raise InputError(f"column '{name}' holds {kinds[0][1]}, {why}", where=kinds[0][0], fix=fix)


def _type_of(name: str, files: Sequence[FileSchema], folders: Mapping[str, pa.DataType], as_text: bool) -> pa.DataType:
    if as_text:
        return pa.string()
    if not any(name in file.schema.names for file in files):
        return folders.get(name, pa.string())
    kind = common_type(name, files)
    return kind if name not in folders or kind == folders[name] else pa.string()


def _id_type(options: DocumentsOptions, files: Sequence[FileSchema], kinds: set[Kind]) -> pa.DataType:
    """Integers where the user says so, or where all files are Parquet and none can have another id."""
    if options.id_type == "integer":
        return pa.int64()
    if options.id_type == "text" or kinds != {Kind.PARQUET}:
        return pa.string()
    found = []
    for file in files:
        names = [options.id_field] if options.id_field else ["id", "_id"]
        name = next((n for n in names if n in file.schema.names and is_id_type(file.schema.field(n).type)), None)
        if name is None or (options.id_field is None and name in file.maybe_null):
            if options.id_field is None and file.rows:
                return pa.string()  # ids are made up for what has none, and those are text
            continue
        found.append(file.schema.field(name).type)
    kind = common_id_type(found)
    if pa.types.is_string(kind) and any(pa.types.is_integer(k) for k in found):
        log.info("ids are %s in different files; they come out as text", " and ".join(sorted({str(k) for k in found})))
    return kind


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

    Columns: `_row_key` uint64 (unique; where the row is in the corpus), `id` (string; int64 or uint64 where all files
    are Parquet with integer ids), `text`, `title`, `source`, `text_cut` (bool: the text is the beginning of one longer
    than `max_chars`), `reject_reason` and `reject_detail` (strings; null for a good row), then the metadata columns.
    Metadata from JSON are strings, other values than strings as JSON text, so that every task gives the same types;
    Parquet columns have the type that holds the values of all files, unless the corpus has JSON too. Folders called
    `key=value` are columns. A row that cannot be used comes out with its `reject_reason` (rows.REJECT_REASONS), never
    as an error.

    Args:
        options_or_paths: options, or just the input, with further options by keyword.
        columns: metadata columns to pass through. By default those that `metadata_fields` names; when
            only paths are given and no `metadata_fields`, all that each file has.
        done_keys: a sorted uint64 array in the object store: `_row_key`s of rows to leave out.
        listing: a listing made before, so that it is not made twice.
        seconds_column: name of a column that tells what reading took (data/documents/datasource.py); none by default.
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

    from raycurate.data.documents.datasource import DocumentsDatasource

    # Twice as many tasks as CPUs, so that the last ones to end do not leave the others idle for long.
    wanted = int(2 * ray.cluster_resources().get("CPU", 4)) if ray.is_initialized() else 8
    source = DocumentsDatasource(
        listing, plan, checked.files_per_partition, done_keys, tasks=wanted, seconds_column=seconds_column
    )
    return ray.data.read_datasource(source, override_num_blocks=source.num_tasks, num_cpus=num_cpus)
