"""The embeddings that a stage is about to read: their files, pieces, dimension and contract, all checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raycurate.clustering.shards import (
    Footer,
    Piece,
    one_array,
    parquet_pieces,
    pieces_of,
    read_columns,
    read_footers,
)
from raycurate.clustering.vectors import commonest, fixed_dimension, holds_vectors, lengths_of
from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import STAGING, is_data, listing_fingerprint, manifest_path, require_whole
from raycurate.core.storage import FileEntry
from raycurate.data.documents.ids import common_id_type, is_id_type
from raycurate.data.documents.segments import Kind, kind_of
from raycurate.models.contract import EmbeddingContract, contract_from_schema

if TYPE_CHECKING:
    from raycurate.clustering.options import VectorsOptions

_SAMPLED_FILES = 8  # whose first vectors say the dimension, where no type does


@dataclass(frozen=True)
class Embeddings:
    """What is to be read.

    rows: of all files; None for JSON Lines, whose rows nobody has counted. id_type: what the ids come out as,
    integers where all files have them, else strings. contract: of the vectors; None when the files come without one.
    """

    files: list[FileEntry]
    pieces: list[Piece]
    rows: int | None
    dimension: int
    id_type: pa.DataType
    contract: EmbeddingContract | None

    @property
    def fingerprint(self) -> str:
        return listing_fingerprint(self.files)

    @property
    def vector_bytes(self) -> int:
        """Of all vectors as float32; for JSON Lines, what the text suggests (10 characters a number)."""
        if self.rows is None:
            return sum(f.size for f in self.files) * 4 // 10
        return self.rows * self.dimension * 4


def open_embeddings(options: VectorsOptions) -> Embeddings:
    """List and check the input.

    Raises:
        InputError: a path that is not there, an output that is not whole, no rows, a column that is missing or
            holds something else, vectors of several dimensions.
        ContractError: files whose vectors were made in different ways.
    """
    files = _list(options)
    columns = [options.id_field, options.embedding_field, *options.metadata_fields]
    if options.input_filetype == "jsonl":
        return _jsonl(options, files, columns)
    footers = read_footers(files, columns)
    pieces = parquet_pieces(footers)
    if not pieces:
        raise InputError("the files hold no rows", where=_named(options))
    dimension = dimension_of(
        footers, options.embedding_field, where=_named(options), embedding_dim=options.embedding_dim
    )
    rows = sum(piece.rows for piece in pieces)
    return Embeddings(files, pieces, rows, dimension, id_type_of(footers, options.id_field), contract_of(footers))


def _named(options: VectorsOptions) -> str:
    return options.input if isinstance(options.input, str) else ", ".join(options.input)


def _list(options: VectorsOptions) -> list[FileEntry]:
    """The data files of every input, sorted; those of an output of ours only when it is whole."""
    wanted = Kind.JSONL if options.input_filetype == "jsonl" else Kind.PARQUET
    found: dict[str, FileEntry] = {}
    for path in [options.input] if isinstance(options.input, str) else options.input:
        for entry in files_of(path):
            if kind_of(entry.path)[0] is wanted:
                found[entry.path] = entry
    if not found:
        raise InputError(
            f"there is no .{options.input_filetype} file",
            where=_named(options),
            fix="Check the path, or set input_filetype=" + ("jsonl" if wanted is Kind.PARQUET else "parquet"),
        )
    return [found[path] for path in sorted(found)]


def files_of(path: str) -> list[FileEntry]:
    """Files at or under a path. Of an output of ours: what its manifest lists, without the rejects.

    Raises:
        InputError: nothing is there, or it is an output that is not whole.
    """
    if manifest_path(path) is not None or storage.exists(storage.join(path, STAGING)):
        listed = {storage.join(storage.normalise(path), f.path) for f in require_whole(path).files if is_data(f.path)}
        return [e for e in storage.list_files(path) if e.path in listed]
    return storage.list_files(path)


def _jsonl(options: VectorsOptions, files: list[FileEntry], columns: list[str]) -> Embeddings:
    pieces = pieces_of(files, filetype="jsonl", embedding_field=options.embedding_field)
    dimension = options.embedding_dim or _sampled_dimension(pieces, options.embedding_field, where=_named(options))
    return Embeddings(files, pieces, None, dimension, pa.string(), None)


def id_type_of(footers: list[Footer], id_field: str) -> pa.DataType:
    """The one type that the ids of all files come out as; raises InputError for what cannot be an id."""
    kinds = []
    for footer in footers:
        kind = footer.schema.field(id_field).type
        if not is_id_type(kind):
            raise InputError(
                f"'{id_field}' holds {kind}, which cannot be an id",
                where=footer.path,
                fix="Name another column with id_field",
            )
        kinds.append(kind)
    return common_id_type(kinds)


def dimension_of(footers: list[Footer], embedding_field: str, *, where: str, embedding_dim: int | None = None) -> int:
    """The one dimension of all files: the schema's, else `embedding_dim`, else the commonest among their first vectors.

    Raises:
        InputError: there are several, or none, or it is not `embedding_dim`.
    """
    found: dict[int, str] = {}
    for footer in footers:
        kind = footer.schema.field(embedding_field).type
        if not holds_vectors(kind):
            raise InputError(f"'{embedding_field}' holds {kind}, not vectors", where=footer.path)
        size = fixed_dimension(kind)
        if size is not None and footer.metadata.num_rows:
            found.setdefault(size, footer.path)
    if len(found) > 1:
        both = " and ".join(f"{size} in {path}" for size, path in list(found.items())[:2])
        raise InputError(f"the files hold vectors of different dimensions: {both}", where=where)
    if not found:
        return embedding_dim or _sampled_dimension(parquet_pieces(footers), embedding_field, where=where)
    [(dimension, path)] = found.items()
    if embedding_dim is not None and embedding_dim != dimension:
        raise InputError(f"the vectors have {dimension} dimensions, embedding_dim is {embedding_dim}", where=path)
    return dimension


def _sampled_dimension(pieces: list[Piece], embedding_field: str, *, where: str) -> int:
    """The length that most vectors have in the first pieces of the first files with any.

    One vector that was cut short, or is empty, must not make rejects of all others.
    """
    lengths: list[np.ndarray] = []
    sampled: set[str] = set()
    rows = 0
    for piece in pieces:
        if piece.path in sampled:
            continue
        table = read_columns(piece, [embedding_field])
        rows += table.num_rows
        column = one_array(table[embedding_field])
        if not holds_vectors(column.type):
            raise InputError(f"'{embedding_field}' holds {column.type}, not vectors", where=piece.path)
        own = lengths_of(column)
        if (own > 0).any():
            lengths.append(own)
            sampled.add(piece.path)
        if len(sampled) == _SAMPLED_FILES:
            break
    dimension = commonest(np.concatenate(lengths)) if lengths else None
    if dimension is None:
        raise InputError("every vector is null or empty" if rows else "the files hold no rows", where=where)
    return dimension


def contract_of(footers: list[Footer]) -> EmbeddingContract | None:
    """The contract that all files share; None when none has one."""
    found = [(footer.path, contract_from_schema(footer.schema)) for footer in footers if footer.metadata.num_rows]
    first_path, first = found[0]
    seen = {first.fingerprint() if first else ""}
    for path, contract in found[1:]:
        if contract is None or first is None:
            if contract is not first:
                raise InputError(f"it has no contract, {first_path} has one (or the other way round)", where=path)
            continue
        if contract.fingerprint() not in seen:
            first.require_same(contract, here=first_path, there=path)
            seen.add(contract.fingerprint())
    return first
