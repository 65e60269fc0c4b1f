"""The order of a cluster's rows, and which of them are copies of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.hashing import keyed_hashes
from raycurate.data.documents.ids import id_strings

OLD = "_old"
DISTANCE = "cosine_dist_to_cent"
_DRAW = "_draw"
_COEFFICIENTS_SEED = 0x5EED


def ranking_columns(which_to_keep: str | Sequence[str]) -> list[str]:
    """The columns that a ranking reads."""
    if isinstance(which_to_keep, str):
        return [] if which_to_keep == "random" else [DISTANCE]
    return [name.removeprefix("-") for name in which_to_keep]


def rank(rows: pa.Table, *, which_to_keep: str | Sequence[str], id_field: str, seed: int) -> np.ndarray:
    """Places of the rows in order of rank, int64 [n]: rows of an earlier corpus first, then by key, ties by id.

    Args:
        rows: id, `ranking_columns(which_to_keep)` and, where there are any, `_old` (bool).
    """
    keys = [(OLD, "descending")] if OLD in rows.column_names else []
    if which_to_keep == "random":
        rows = rows.append_column(_DRAW, pa.array(hashed(id_strings(rows[id_field]), f"random-{seed:016x}")))
        keys.append((_DRAW, "ascending"))
    elif isinstance(which_to_keep, str):
        keys.append((DISTANCE, "descending" if which_to_keep == "hard" else "ascending"))
    else:
        keys += [
            (name.removeprefix("-"), "descending" if name.startswith("-") else "ascending") for name in which_to_keep
        ]
    if OLD in rows.column_names:
        rows = rows.set_column(rows.column_names.index(OLD), OLD, rows[OLD].cast(pa.int8()))
    order = pc.sort_indices(rows, sort_keys=[(*key, "at_end") for key in [*keys, (id_field, "ascending")]])
    return order.to_numpy().astype(np.int64)


def hashed(strings: pa.ChunkedArray | pa.Array, key: str = "raycurate-key-00") -> np.ndarray:
    """64-bit hashes of strings, uint64 [n]; `key` has at least 16 characters."""
    return keyed_hashes(strings.to_numpy(zero_copy_only=False), key[-16:].ljust(16, "0"))


def hashed_ids(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """64-bit hashes of ids, uint64 [n]: the same for an id however a file keeps it."""
    return hashed(id_strings(ids).fill_null(""))


def content_hashes(rows_ND: np.ndarray) -> np.ndarray:
    """Two 64-bit hashes of each row's bytes, uint64 [n, 2]: multilinear hashing, so vectors differ in them with
    probability 1 - 2^-128, about."""
    words = np.ascontiguousarray(rows_ND, np.float32).view(np.uint32)
    factors = np.random.default_rng(_COEFFICIENTS_SEED).integers(0, 2**64, (words.shape[1], 2), np.uint64) | np.uint64(
        1
    )
    out = np.empty((len(words), 2), np.uint64)
    step = max(1, (1 << 22) // max(1, words.shape[1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(words), step):
            part = words[start : start + step].astype(np.uint64)
            for column in range(2):
                out[start : start + step, column] = (part * factors[:, column]).sum(1, dtype=np.uint64)
    return out


def roots(hashes_N2: np.ndarray, texts_N: np.ndarray | None = None) -> np.ndarray:
    """For each row, in rank order, the rank of the first row that it is a copy of; its own if it is none's.

    Args:
        hashes_N2: `content_hashes` in rank order.
        texts_N: hashes of the rows' texts in rank order; rows of equal text are copies too.
    """
    root = _first(np.ascontiguousarray(hashes_N2).view("V16")[:, 0])
    if texts_N is None:
        return root
    root = np.minimum(root, _first(texts_N))
    while not np.array_equal(root, root[root]):
        root = root[root]
    return root


def _first(values: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]
