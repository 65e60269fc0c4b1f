"""A corpus: numbered documents in Arrow, mapped into memory, found by id without a dictionary.

Ids are looked up in a sorted array of 64-bit hashes that is mapped like the texts, so that opening a corpus of ten
million documents takes no time and every process of a machine shares one copy. A hash only proposes a
row: the id itself decides, so that two ids with the same hash are still two ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.hashing import hash_strings

CORPUS_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.large_string())])


@dataclass(frozen=True)
class IdIndex:
    """uint64 hashes of the ids in rising order, and int64 the row of each; equal hashes in the order of their rows."""

    hashes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, ids: pa.ChunkedArray) -> IdIndex:
        found = [hash_strings(chunk) for chunk in ids.chunks]
        hashes = np.concatenate(found) if found else np.empty(0, np.uint64)
        rows = np.argsort(hashes, kind="stable")
        return cls(hashes[rows], rows)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of one corpus: Arrow-backed and, where they come from files, memory-mapped.

    It travels to another process as the name of its files; corpus_store.py opens them again there.
    """

    corpus_id: str
    path: str
    """Its folder as given; "" for documents that were written inline."""
    ids: pa.ChunkedArray = field(repr=False)
    """string"""
    texts: pa.ChunkedArray = field(repr=False)
    """large_string"""
    query_instruction: str = ""
    passage_instruction: str = ""
    store: str = field(default="", repr=False)
    """The local folder of its Arrow file; "" when it is only in memory."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int64 [n]: the row of each id, -1 where the corpus has no such document (a null is no document)."""
        wanted = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.string())
        if isinstance(wanted, pa.ChunkedArray):
            wanted = wanted.combine_chunks()
        wanted = wanted.cast(pa.string())
        index = self._index
        hashes = hash_strings(wanted)
        places = np.searchsorted(index.hashes, hashes, side="left")
        found = np.full(len(wanted), -1, np.int64)
        pending = np.flatnonzero(wanted.is_valid().to_numpy(zero_copy_only=False))
        while len(pending):  # once, and once more for each further id of the same hash
            pending = pending[places[pending] < len(index.hashes)]
            pending = pending[index.hashes[places[pending]] == hashes[pending]]
            if not len(pending):
                break
            rows = index.rows[places[pending]]
            same = pc.equal(gather(self.ids, rows), wanted.take(pa.array(pending))).to_numpy(zero_copy_only=False)
            found[pending[same]] = rows[same]
            pending = pending[~same]
            places[pending] += 1
        return found

    def texts_of(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The texts of `rows`, in their order.

        Raises:
            IndexError: a row that the corpus does not have.
        """
        return gather(self.texts, np.asarray(rows, np.int64)).to_pylist()

    def ids_of(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of `rows`, in their order; IndexError as for `texts_of`."""
        return gather(self.ids, np.asarray(rows, np.int64)).to_pylist()

    @cached_property
    def _index(self) -> IdIndex:
        if self.store:
            from raycurate.data.corpora.corpus_store import open_index

            return open_index(self.store)
        return IdIndex.of(self.ids)

    def __reduce__(self) -> Any:
        described = (self.corpus_id, self.path, self.query_instruction, self.passage_instruction, self.store)
        if self.store:
            from raycurate.data.corpora.corpus_store import reopen

            return (reopen, described)
        return (Corpus, (*described[:2], self.ids, self.texts, *described[2:]))


def gather(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """`column` at `rows`, in their order, reading only the chunks that hold them.

    Arrow's own `take` first joins the chunks of a string column, which copies the corpus.

    Raises:
        IndexError: a row below zero or beyond the last.
    """
    if len(rows) and (rows.min() < 0 or rows.max() >= len(column)):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(column)}")
    starts = np.cumsum([0, *(len(c) for c in column.chunks)])
    chunk_of = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(chunk_of, kind="stable")
    pieces = []
    for part in np.split(order, np.flatnonzero(np.diff(chunk_of[order])) + 1):
        if len(part):
            chunk = int(chunk_of[part[0]])
            pieces.append(column.chunk(chunk).take(pa.array(rows[part] - starts[chunk])))
    if not pieces:
        return pa.array([], column.type)
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return pa.concat_arrays(pieces).take(pa.array(back))
