"""Keys of strings. Outputs, caches and seeds keep these values, so what a function here returns never changes.

hex_digest       a name for a text or a value, as hexadecimal digits: no two are mistaken for one
hash_strings     64 bits of each string of a column, fast; who needs certainty compares the strings
keyed_hashes     64 bits of each value under a key: independent draws, and two keys together are 128 bits
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

_PIECE = 512  # strings hashed at once; that takes 40 bytes a byte of text


def hex_digest(content: str | bytes, digits: int = 64) -> str:
    """The first hexadecimal digits of the sha256 of `content`, a string in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:digits]


def hash_strings(column: pa.Array) -> np.ndarray:
    """uint64 [n]: a hash of the UTF-8 bytes of each string; the same on every machine. A null hashes as "".

    Multilinear: the sum over positions of (byte + 1) times a fixed 64-bit weight of the position, mixed at
    the end (Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
    """
    column = column.fill_null("") if column.null_count else column
    wide = pa.types.is_large_string(column.type)
    _, offset_buffer, data_buffer = column.buffers()
    if len(column) == 0:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets = offsets[column.offset : column.offset + len(column) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last] if data_buffer is not None else np.empty(0, np.uint8)
    starts = offsets - first
    lengths = np.diff(starts)
    positions = np.arange(last - first, dtype=np.int64) - np.repeat(starts[:-1], lengths)
    sums = np.zeros(last - first + 1, np.uint64)
    with np.errstate(over="ignore"):
        weights = _mix(np.arange(1, int(lengths.max()) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        np.cumsum((data.astype(np.uint64) + np.uint64(1)) * weights[positions], out=sums[1:])
        return _mix(sums[starts[1:]] - sums[starts[:-1]])


def hash_column(column: pa.ChunkedArray) -> np.ndarray:
    """`hash_strings` of a column of long texts, a piece of it at a time."""
    found = [
        hash_strings(chunk.slice(first, _PIECE)) for chunk in column.chunks for first in range(0, len(chunk), _PIECE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def keyed_hashes(values: Any, key: str) -> np.ndarray:
    """uint64 [n]: pandas' hash (SipHash of a string under `key`, 16 characters; a number's does not depend on it)."""
    from pandas.util import hash_array

    return hash_array(values, hash_key=key, categorize=False)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
