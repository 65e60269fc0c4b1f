"""The embeddings that a stage is about to read: their files, pieces, dimension and contract, all checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from raycurate.core import storage
from raycurate.core.contract import EmbeddingContract, contract_from_schema
from raycurate.core.errors import InputError
from raycurate.core.manifest import STAGING, is_data, listing_fingerprint, manifest_path, require_whole
from raycurate.core.storage import FileEntry
from raycurate.kmeans.shards import (
    Footer,
    Piece,
    holds_vectors,
    parquet_pieces,
    pieces_of,
    read_columns,
    read_footers,
)

if TYPE_CHECKING:
    from raycurate.kmeans.config import VectorsOptions


@dataclass(frozen=True)
class Embeddings:
    """What is to be read.

    rows: of all files; None for JSON Lines, whose rows nobody has counted. schema: of the columns to read as they
    are stored in the first file. contract: of the vectors; None when the files come without one.
    """

    files: list[FileEntry]
    pieces: list[Piece]
    rows: int | None
    dimension: int
    schema: pa.Schema
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
    dimension = _dimension(options, footers, pieces)
    schema = pa.schema([footers[0].schema.field(name) for name in columns])
    rows = sum(piece.rows for piece in pieces)
    return Embeddings(files, pieces, rows, dimension, schema, contract_of(footers))


def _named(options: VectorsOptions) -> str:
    return options.input if isinstance(options.input, str) else ", ".join(options.input)


def _list(options: VectorsOptions) -> list[FileEntry]:
    """The data files of every input, sorted; those of an output of ours only when it is whole."""
    ending = ".jsonl" if options.input_filetype == "jsonl" else ".parquet"
    found: dict[str, FileEntry] = {}
    for path in [options.input] if isinstance(options.input, str) else options.input:
        for entry in files_of(path):
            if entry.path.endswith(ending):
                found[entry.path] = entry
    if not found:
        raise InputError(
            f"there is no {ending} file",
            where=_named(options),
            fix="Check the path" + (", or set input_filetype" if options.input_filetype == "parquet" else ""),
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
    first = read_columns(pieces[0], columns) if pieces else None
    if first is None or not first.num_rows:
        raise InputError("the first file holds no rows", where=_named(options))
    kind = first.schema.field(options.embedding_field).type
    if not holds_vectors(kind):
        raise InputError(f"'{options.embedding_field}' holds {kind}, not vectors", where=pieces[0].path)
    dimension = options.embedding_dim or len(next(v for v in first[options.embedding_field] if v.is_valid).as_py())
    return Embeddings(files, pieces, None, dimension, first.schema, None)


def _dimension(options: VectorsOptions, footers: list[Footer], pieces: list[Piece]) -> int:
    """The one dimension of all files: the schema's, else that of the first vector there is."""
    found: dict[int, str] = {}
    for footer in footers:
        kind = footer.schema.field(options.embedding_field).type
        if not holds_vectors(kind):
            raise InputError(f"'{options.embedding_field}' holds {kind}, not vectors", where=footer.path)
        if pa.types.is_fixed_size_list(kind) and footer.metadata.num_rows:
            found.setdefault(kind.list_size, footer.path)
    if len(found) > 1:
        both = " and ".join(f"{size} in {path}" for size, path in list(found.items())[:2])
        raise InputError(f"the files hold vectors of different dimensions: {both}", where=_named(options))
    if not found:
        found = {_first_vector(options, pieces): pieces[0].path}
    [(dimension, path)] = found.items()
    if options.embedding_dim is not None and options.embedding_dim != dimension:
        raise InputError(
            f"the vectors have {dimension} dimensions, embedding_dim is {options.embedding_dim}", where=path
        )
    return dimension


def _first_vector(options: VectorsOptions, pieces: list[Piece]) -> int:
    if options.embedding_dim is not None:
        return options.embedding_dim
    for piece in pieces:
        for value in read_columns(piece, [options.embedding_field])[options.embedding_field]:
            if value.is_valid:
                return len(value.as_py())
    raise InputError("every vector is null", where=_named(options))


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
