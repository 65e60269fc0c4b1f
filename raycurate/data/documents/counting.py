"""How many documents a listing holds, where that is cheap to know: for the progress of a run, never for its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage

if TYPE_CHECKING:
    from raycurate.data.documents.documents import Listing

_FOOTERS = 2000  # files whose footers are read
_LINES_BYTES = 4_000_000_000  # of JSON Lines in which lines are counted, on a local disk
_REMOTE_LINES_BYTES = 20_000_000
_CHUNK = 1 << 22


def count_documents(listing: Listing) -> int | None:
    """Rows of all files, or None where counting would take long (compressed, many remote files) or cannot be done."""
    parquet = [file for file in listing.files if file.path.endswith(".parquet")]
    lines = [file for file in listing.files if file.path.lower().endswith((".jsonl", ".ndjson"))]
    whole = len(listing.files) - len(parquet) - len(lines)  # one document a file
    packed = any(file.path.lower().endswith((".gz", ".zst", ".json")) for file in listing.files)
    room = _REMOTE_LINES_BYTES if any(storage.is_remote(file.path) for file in lines) else _LINES_BYTES
    if packed or len(parquet) > _FOOTERS or sum(file.size for file in lines) > room:
        return None
    try:
        return whole + sum(_rows(file.path) for file in parquet) + sum(_lines(file.path) for file in lines)
    except (OSError, pa.ArrowException):  # damaged, or gone: the reading says so
        return None


def _rows(path: str) -> int:
    filesystem, inner = storage.filesystem(path)
    return int(pq.read_metadata(inner, filesystem=filesystem).num_rows)


def _lines(path: str) -> int:
    """Lines that are not empty, the last one with or without its end."""
    filesystem, inner = storage.filesystem(path)
    count, end = 0, b"\n"
    with filesystem.open_input_stream(inner) as stream:
        while chunk := stream.read(_CHUNK):
            count += chunk.count(b"\n") - chunk.count(b"\n\n")
            end = chunk[-1:]
    return count + (end != b"\n")
