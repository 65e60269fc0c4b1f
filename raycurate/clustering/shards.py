"""The vectors of an embeddings folder, cut into pieces that workers read themselves.

A piece is a Parquet row group or a JSONL file. Pieces stay in the listing's order and each worker takes a
run of them, balanced by bytes. A row's number is its file's place in the listing and its place in the file, so
it does not depend on how pieces are dealt out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.clustering.vectors import Vectors, unit_vectors
from raycurate.core import storage
from raycurate.core.errors import InputError, nearest
from raycurate.core.storage import FileEntry
from raycurate.data.documents.ids import id_text
from raycurate.data.documents.segments import kind_of

_FILE_BITS = 40  # a row's number: file << 40 | row


@dataclass(frozen=True)
class Piece:
    """What is read at once. number: of its first row. group: Parquet row group, None for a whole JSONL file."""

    path: str
    number: int
    rows: int
    size: int
    group: int | None


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself."""

    path: str
    metadata: pq.FileMetaData
    schema: pa.Schema


def read_footers(files: list[FileEntry], columns: list[str]) -> list[Footer]:
    """The footers of Parquet files, several at once.

    Raises:
        InputError: a file cannot be read, or lacks one of `columns`.
    """
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda file: _footer(file.path, columns), files))


def pieces_of(files: list[FileEntry], *, filetype: str, embedding_field: str) -> list[Piece]:
    """All pieces of the files, in order; empty ones left out.

    Raises:
        InputError: a file cannot be read, or has no such column.
    """
    if filetype == "jsonl":
        found = [Piece(f.path, place << _FILE_BITS, -1, f.size, None) for place, f in enumerate(files)]
        return [piece for piece in found if piece.size]
    return parquet_pieces(read_footers(files, [embedding_field]))


def parquet_pieces(footers: list[Footer]) -> list[Piece]:
    """A piece a row group that has rows."""
    pieces = []
    for place, footer in enumerate(footers):
        first = place << _FILE_BITS
        for group in range(footer.metadata.num_row_groups):
            described = footer.metadata.row_group(group)
            if described.num_rows:
                pieces.append(Piece(footer.path, first, described.num_rows, described.total_byte_size, group))
            first += described.num_rows
    return pieces


def _footer(path: str, columns: list[str]) -> Footer:
    found, inner = storage.filesystem(path)
    try:
        with found.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            footer = Footer(path, file.metadata, file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read as Parquet ({error})", where=path) from error
    names = footer.schema.names
    for column in columns:
        if column not in names:
            close = nearest(column, names)
            raise InputError(
                f"there is no column '{column}'; the columns are {', '.join(names)}",
                where=path,
                fix=f"Did you mean '{close}'?" if close else "Name the column with embedding_field or id_field",
            )
    return footer


def shares(pieces: list[Piece], workers: int) -> list[list[Piece]]:
    """`workers` runs of the pieces, in order, of about equal bytes; a run may be empty when pieces are few."""
    ends = np.cumsum([piece.size for piece in pieces], dtype=np.float64)
    total = ends[-1] if len(pieces) else 0.0
    middles = ends - np.array([piece.size for piece in pieces]) / 2
    owner = np.minimum((middles * workers / max(total, 1)).astype(int), workers - 1)
    return [[p for p, o in zip(pieces, owner, strict=True) if o == worker] for worker in range(workers)]


def read_piece(piece: Piece, *, embedding_field: str, dimension: int | None) -> Vectors:
    """The piece's vectors, each divided by its length; rows without a usable vector are in `rejects`.

    Raises:
        InputError: the file cannot be read, or the column holds no vectors.
    """
    column = read_columns(piece, [embedding_field])[embedding_field]
    return unit_vectors(one_array(column), dimension, where=piece.path)


def read_columns(piece: Piece, columns: list[str], *, id_field: str | None = None) -> pa.Table:
    """These columns of a piece; in JSON Lines what a row lacks is null, and `id_field` is text.

    Raises:
        InputError: the file cannot be read, or (JSON Lines) a column's values are not of one type.
    """
    if piece.group is None:
        return _jsonl(piece.path, columns, id_field)
    found, inner = storage.filesystem(piece.path)
    try:
        with found.open_input_file(inner) as source:
            return pq.ParquetFile(source).read_row_group(piece.group, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read ({error})", where=piece.path) from error


def one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _jsonl(path: str, columns: list[str], id_field: str | None) -> pa.Table:
    rows = list(read_jsonl(path))
    made = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if name == id_field:
            made[name] = pa.array([id_text(value) for value in values], pa.string())
            continue
        try:
            made[name] = pa.array(values)
        except (pa.ArrowException, TypeError) as error:
            raise InputError(f"'{name}' does not hold values of one type ({error})", where=path) from error
    return pa.table(made)


def read_jsonl(path: str) -> Iterator[dict[str, object]]:
    """The objects of a JSON Lines file, compressed or not. Raises InputError with the line that is not one."""
    found, inner = storage.filesystem(path)
    try:
        with found.open_input_stream(inner, compression=kind_of(path)[1]) as stream:
            lines = stream.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"line {number} is not JSON ({error})", where=path) from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} is not a JSON object", where=path)
        yield row
