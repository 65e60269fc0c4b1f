"""What the Parquet files of a corpus hold together: each column's type over all files, read from their footers.

The type of a column is the one that every file's values fit in, with nothing dropped: null widens to any type, an
integer to a fraction, a time to the finer unit, a struct to the union of the fields. Types that no type holds together
come out as text. Files without rows decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.observe import get_logger
from raycurate.data.documents.ids import is_string_like

log = get_logger(__name__)


@dataclass(frozen=True)
class FileSchema:
    """A file's columns and number of rows. maybe_null: those of the asked columns that its statistics do not show to
    be whole."""

    path: str
    schema: pa.Schema
    rows: int
    maybe_null: frozenset[str]

    def type_of(self, name: str) -> pa.DataType | None:
        return self.schema.field(name).type if name in self.schema.names else None


def read_file_schemas(paths: Sequence[str], ids: Collection[str]) -> list[FileSchema]:
    """Of the files that can be read as Parquet; the others are rejected where their rows are read.

    Args:
        ids: columns of which it matters whether they hold nulls.

    Raises:
        InputError: a file that names a column twice.
    """
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda path: _read(path, ids), paths)
        return [one for one in found if one is not None]


def _read(path: str, ids: Collection[str]) -> FileSchema | None:
    try:
        found, inner = storage.filesystem(path)
        with found.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            metadata, schema = file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException):
        return None
    check_names(schema, path)
    return FileSchema(path, schema, metadata.num_rows, frozenset(_maybe_null(metadata, ids)))


def _maybe_null(metadata: pq.FileMetaData, names: Collection[str]) -> Iterable[str]:
    places = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for name in names:
        if name in places:
            groups = (metadata.row_group(group).column(places[name]) for group in range(metadata.num_row_groups))
            statistics = [column.statistics if column.is_stats_set else None for column in groups]
            if not all(s is not None and s.has_null_count and s.null_count == 0 for s in statistics):
                yield name


def check_names(schema: pa.Schema, path: str) -> None:
    """Raises InputError when a file has two columns of one name: which of them is meant nobody can know."""
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise InputError(
            f"the column '{twice[0]}' stands {schema.names.count(twice[0])} times; its columns are "
            f"{', '.join(schema.names)}",
            where=path,
            fix="Write the file again with a name of its own for each column",
        )


# --- types ----------------------------------------------------------------------------------------


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type a column comes out as by itself: strings of all sorts as string, dictionaries as their values."""
    if is_string_like(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def common_type(name: str, files: Iterable[FileSchema]) -> pa.DataType:
    """What the column `name` is in all of these files together; string where nothing else holds all."""
    kinds = dict.fromkeys(kind for file in files if (kind := file.type_of(name)) is not None)
    plain = list(dict.fromkeys(plain_type(kind) for kind in kinds))
    if not plain:
        return pa.string()
    together = reduce(lambda a, b: None if a is None else _wider(a, b), plain[1:], plain[0])
    if together is None or not all(can_widen(kind, together) for kind in plain):
        log.warning("column '%s' is %s in different files; it comes out as text", name, " and ".join(map(str, plain)))
        return pa.string()
    return pa.string() if pa.types.is_null(together) else together


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    try:
        both = [pa.schema([pa.field("x", kind)]) for kind in (a, b)]
        return pa.unify_schemas(both, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def can_widen(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type can become the other, as far as their types tell."""
    try:
        widen(pa.nulls(1, kind), wanted)
        return True
    except (pa.ArrowException, TypeError):
        return False


def widen(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as a wider type; struct fields that it lacks are null.

    Raises:
        pa.ArrowException: a value, or the type itself, cannot become `kind`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == kind:
        return column
    if not pa.types.is_nested(kind):
        return column.cast(kind)
    # Arrow's promotion of schemas knows how to add fields and to widen what lies inside lists.
    empty = pa.schema([pa.field("x", kind)]).empty_table()
    whole = pa.concat_tables([empty, pa.table({"x": column})], promote_options="permissive")
    if whole.schema.field("x").type != kind:
        raise pa.ArrowTypeError(f"{column.type} cannot become {kind}")
    chunks = whole["x"].combine_chunks()
    return chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks
