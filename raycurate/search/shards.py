"""Vectors of numbered documents on disk or in a bucket: .npy files that any numpy can read, one after the other.

The index file `shards.json` is written last: a folder without it is unfinished and is not opened. Local files are
mapped into memory, so that processes of one node share them; of remote files only the rows asked for are fetched.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError, OutputExistsError
from raycurate.search.hits import MOST_DOCUMENTS

INDEX = "shards.json"
_FORMAT = 1


@dataclass(frozen=True)
class Piece:
    """Rows lo .. hi of one shard; the document of row lo has the number `first`."""

    shard: int
    lo: int
    hi: int
    first: int

    def __len__(self) -> int:
        return self.hi - self.lo


@dataclass(frozen=True)
class VectorShards:
    """Vectors of numbered documents: float32 .npy files [rows, dimension], one after the other.

    The first row of the first file is document 0, and so on without gaps.
    """

    paths: tuple[str, ...]
    rows: tuple[int, ...]
    dimension: int

    def __len__(self) -> int:
        """Documents in all."""
        return sum(self.rows)

    @classmethod
    def write(cls, folder: str, blocks: Iterable[np.ndarray], *, shard_rows: int) -> VectorShards:
        """Write blocks of rows [any, dimension] as shards of `shard_rows` rows; one shard is held in memory.

        Raises:
            OutputExistsError: the folder has an index, so its vectors are whole.
            InputError: no rows, rows that differ in length, or more documents than can be numbered.
        """
        if shard_rows < 1:
            raise ValueError(f"shard_rows={shard_rows}")
        index = storage.join(folder, INDEX)
        if storage.exists(index):
            raise OutputExistsError("vectors are there already", where=index, fix="Delete the folder first")
        paths: list[str] = []
        rows: list[int] = []
        dimension = 0
        for parts in _cut(blocks, shard_rows, folder):
            dimension = parts[0].shape[1]
            paths.append(f"vectors-{len(paths):05d}.npy")
            rows.append(sum(len(part) for part in parts))
            write_npy(storage.join(folder, paths[-1]), parts, rows[-1])
        if not rows:
            raise InputError("there are no vectors to write", where=folder)
        if sum(rows) > MOST_DOCUMENTS:
            raise InputError(f"{sum(rows):,} documents; {MOST_DOCUMENTS:,} can be numbered", where=folder)
        table = {"format": _FORMAT, "dimension": dimension, "paths": paths, "rows": rows}
        storage.write_text(index, json.dumps(table))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str) -> VectorShards:
        """Those that `write` finished in the folder.

        Raises:
            InputError: there is no index, or it is not of this form.
        """
        index = storage.join(folder, INDEX)
        if not storage.exists(index):
            raise InputError(
                f"there is no {INDEX}, so these vectors were not written to the end",
                where=folder,
                fix="Write them anew",
            )
        try:
            table = json.loads(storage.read_text(index))
            if table["format"] != _FORMAT:
                raise InputError(f"format {table['format']}, not {_FORMAT}", where=index)
            paths = tuple(storage.join(folder, str(path)) for path in table["paths"])
            rows, dimension = tuple(int(n) for n in table["rows"]), int(table["dimension"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"it is not an index of vectors ({error!r})", where=index) from error
        if len(paths) != len(rows):
            raise InputError(f"{len(paths)} files with {len(rows)} counts", where=index)
        return cls(paths, rows, dimension)

    def pieces(self, start: int, stop: int, *, most: int | None = None) -> list[Piece]:
        """Documents start .. stop as parts of shards, of at most `most` rows each."""
        return pieces_of(self.rows, start, stop, most=most)

    def read(self, piece: Piece) -> np.ndarray:
        """float32 [rows of the piece, dimension], in the file's own memory where it is local (do not write to it).

        Raises:
            InputError: the file is not there, is cut off, or is not what the index says.
        """
        path = self.paths[piece.shard]
        shape = (self.rows[piece.shard], self.dimension)
        if storage.is_remote(path):
            return _read_range(path, shape, piece.lo, piece.hi)
        local = storage.normalise(path)
        try:
            # "c" (copy on write), because torch warns of memory that cannot be written to.
            vectors_MD = np.load(local, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"it cannot be read ({error})", where=path) from error
        _check(path, vectors_MD.shape, vectors_MD.dtype, shape)
        if not vectors_MD.flags.c_contiguous and len(vectors_MD) > 1:
            raise InputError("its rows are not stored one after the other", where=path)
        return vectors_MD.view(np.ndarray)[piece.lo : piece.hi]


@dataclass(frozen=True)
class TruncatedShards(VectorShards):
    """The first dimensions of other vectors, cut as they are read; the files hold the whole ones.

    of: where the whole ones are. unit: those of the documents are scaled to length one again.
    """

    of: VectorShards
    unit: bool

    def read(self, piece: Piece) -> np.ndarray:
        return truncate(self.of.read(piece), self.dimension, unit=self.unit)


def truncated(vectors: VectorShards, dimensions: int, *, unit: bool) -> TruncatedShards:
    """The first `dimensions` of vectors (Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147).

    Args:
        unit: scale what is left to length one, so that inner products are cosines again.

    Raises:
        ConfigError: the vectors have fewer dimensions, or none are asked for.
    """
    check_dimensions(dimensions, vectors.dimension)
    return TruncatedShards(vectors.paths, vectors.rows, dimensions, vectors, unit)


def check_dimensions(wanted: int, there: int) -> None:
    """See that vectors of `there` dimensions can be cut to `wanted`.

    Raises:
        ConfigError: they cannot.
    """
    if not 1 <= wanted <= there:
        raise ConfigError(
            f"{wanted} dimensions are asked for; the vectors have {there}",
            where="dimensions",
            fix=f"Ask for 1 to {there}",
        )


def truncate(vectors_ND: np.ndarray, dimensions: int, *, unit: bool) -> np.ndarray:
    """float32 [N, dimensions], a copy; a row whose first dimensions are all 0 stays so."""
    kept_ND = np.array(vectors_ND[:, :dimensions], np.float32, order="C")
    return to_unit(kept_ND) if unit else kept_ND


def to_unit(vectors_ND: np.ndarray) -> np.ndarray:
    """The rows scaled to length one, in place; those of length 0 stay."""
    vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors_ND


def pieces_of(rows: Sequence[int], start: int, stop: int, *, most: int | None = None) -> list[Piece]:
    """Documents start .. stop of shards with so many `rows`, as parts of at most `most` rows each."""
    found: list[Piece] = []
    first = 0
    for shard, count in enumerate(rows):
        lo, hi = max(0, start - first), min(count, stop - first)
        for at in range(lo, hi, most or max(1, hi - lo)):
            found.append(Piece(shard, at, min(hi, at + (most or count)), first + at))
        first += count
    return found


def _cut(blocks: Iterable[np.ndarray], shard_rows: int, where: str) -> Iterator[list[np.ndarray]]:
    """Parts that make up `shard_rows` rows, the last ones fewer."""
    held: list[np.ndarray] = []
    count, done, dimension = 0, 0, None
    for block in blocks:
        rest = np.asarray(block, np.float32)
        if rest.ndim != 2 or not rest.shape[1] or (dimension is not None and rest.shape[1] != dimension):
            raise InputError(
                f"vectors of shape {rest.shape} where [rows, {dimension or 'dimension'}] are wanted",
                where=f"{where}, from document {done + count}",
            )
        dimension = rest.shape[1]
        while len(rest):
            part, rest = rest[: shard_rows - count], rest[shard_rows - count :]
            held.append(part.copy())  # the caller may reuse its block
            count += len(part)
            if count == shard_rows:
                yield held
                held, count, done = [], 0, done + count
    if held:
        yield held


def write_npy(path: str, parts: Sequence[np.ndarray], rows: int) -> None:
    """Write parts [any, dimension] of float32 as one .npy file of so many rows."""
    header = io.BytesIO()
    shape = (rows, parts[0].shape[1])
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with storage.open_output(path) as stream:
        stream.write(header.getvalue())
        for part in parts:
            stream.write(np.ascontiguousarray(part, "<f4").data.cast("B"))


def _read_range(path: str, shape: tuple[int, int], lo: int, hi: int) -> np.ndarray:
    found, inner = storage.filesystem(path)
    width = 4 * shape[1]
    try:
        with found.open_input_file(inner) as file:
            head = io.BytesIO(file.read(4096))
            version = np.lib.format.read_magic(head)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            stored, fortran, dtype = read(head)
            _check(path, stored, dtype, shape)
            if fortran:
                raise InputError("its rows are not stored one after the other", where=path)
            file.seek(head.tell() + lo * width)
            vectors_MD = np.empty((hi - lo, shape[1]), np.float32)
            size = _fill(file, vectors_MD.data.cast("B"))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from error
    if size != vectors_MD.nbytes:
        raise InputError(f"it ends within row {lo + size // width:,}", where=path)
    return vectors_MD


def _fill(file: pa.NativeFile, wanted: memoryview) -> int:
    size = 0
    while size < len(wanted):
        got = file.readinto(wanted[size:])
        if not got:
            break
        size += got
    return size


def _check(path: str, shape: tuple[int, ...], dtype: np.dtype, wanted: tuple[int, int]) -> None:
    if shape != wanted or dtype != np.dtype("<f4"):
        raise InputError(f"it holds {dtype} of shape {shape}; the index says float32 of shape {wanted}", where=path)
