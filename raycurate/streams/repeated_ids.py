"""Rows that share an id: found by a group-by over hashes, then refused or told apart; no row is dropped for its name.

A row whose id an earlier row has (in the order of the row keys) is *repeated*. With `repeated_ids=rename` it gets an id
of its own, made from its id and its row key, so that whoever reads the same listing again arrives at the same names;
what was renamed is listed in `_renamed/`. With `error` the run stops, and what was staged waits for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.hashing import hex_digest, keyed_hashes
from raycurate.streams.staging import REJECT_REASON, ROW_KEY

if TYPE_CHECKING:
    from raycurate.streams.finalise import StagedFile

RepeatedIds = Literal["error", "rename"]
RENAMED_TO = "renamed_to"
_ROWS_PER_PARTITION = 20_000_000
_NAMED = 5  # rows shown in an error


def repeated_keys(staged: Sequence[StagedFile], id_column: str, *, rejects_too: bool) -> Any:
    """Reference to the sorted row keys of repeated rows; made by a partitioned group-by in Ray tasks.

    Args:
        rejects_too: whether a reject's id counts. It must where rows are renamed, so that the names do not depend
            on what was rejected by one stage and is read again by another.
    """
    import ray

    from raycurate.ray_runtime.cluster import remote_task

    if not staged:
        return ray.put(np.empty(0, np.uint64))
    partitions = max(1, sum(f.rows for f in staged) // _ROWS_PER_PARTITION + 1)
    split = remote_task(_hash_ids, name="HashIds", num_cpus=0.5, num_returns=partitions)
    merge = remote_task(_find_repeated, name="FindRepeatedIds", num_cpus=0.5)
    gather = remote_task(_gather, name="GatherRepeatedIds", num_cpus=0)
    batches = [staged[i : i + 100] for i in range(0, len(staged), 100)]
    parts = [split.remote([f.path for f in batch], id_column, partitions, rejects_too) for batch in batches]
    columns = [[part] for part in parts] if partitions == 1 else parts
    merged = [merge.remote(*[column[p] for column in columns]) for p in range(partitions)]
    return gather.remote(*merged)


def _hash_ids(paths: list[str], id_column: str, partitions: int, rejects_too: bool) -> Any:
    """Rows of (hash, second hash, row key), parted by hash: 128 bits, so that no two ids are mistaken for one."""
    rows = []
    for path in paths:
        filesystem, inner = storage.filesystem(path)
        table = pq.read_table(inner, columns=[ROW_KEY, id_column, REJECT_REASON], filesystem=filesystem)
        counted = pc.is_valid(table[id_column])
        if not rejects_too:
            counted = pc.and_(counted, pc.is_null(table[REJECT_REASON]))
        table = table.filter(counted)
        ids = table[id_column].to_numpy()
        rows.append(
            np.stack(
                [
                    keyed_hashes(ids, "raycurate-first0"),
                    keyed_hashes(ids, "raycurate-second"),
                    table[ROW_KEY].to_numpy(),
                ]
            )
        )
    table_3n = np.concatenate(rows, axis=1)
    owner = table_3n[0] % np.uint64(partitions)
    parts = [table_3n[:, owner == p] for p in range(partitions)]
    return parts[0] if partitions == 1 else tuple(parts)


def _find_repeated(*parts: np.ndarray) -> np.ndarray:
    first, second, key = np.concatenate(parts, axis=1)
    order = np.lexsort((key, second, first))
    first, second, key = first[order], second[order], key[order]
    repeated = (first[1:] == first[:-1]) & (second[1:] == second[:-1]) & (key[1:] != key[:-1])
    return key[1:][repeated]


def _gather(*parts: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate(parts))


def refuse_repeated(staged: Sequence[StagedFile], keys: Any, id_column: str) -> None:
    """Raises InputError, with some of the ids and where they stand, when `keys` (a reference) has any."""
    import ray

    from raycurate.ray_runtime.cluster import remote_task

    count, examples = ray.get(
        remote_task(_examples, name="RepeatedIds", num_cpus=0).remote([f.path for f in staged], keys, id_column)
    )
    if count:
        rows = "row has" if count == 1 else "rows have"
        raise InputError(
            f"{count:,} {rows} the id of an earlier row: {'; '.join(examples)}{'; ...' if count > _NAMED else ''}",
            where=f"column '{id_column}'",
            fix="Name another id_field, or give repeated_ids=rename, which keeps each under an id of its own; "
            "what is done so far is kept",
        )


def _examples(paths: list[str], keys: np.ndarray, id_column: str) -> tuple[int, list[str]]:
    found: list[str] = []
    for path in paths if len(keys) else []:
        filesystem, inner = storage.filesystem(path)
        file = pq.ParquetFile(inner, filesystem=filesystem)
        columns = [c for c in (ROW_KEY, id_column, "source") if c in file.schema_arrow.names]
        table = file.read(columns=columns)
        for row in table.filter(pa.array(is_repeated(table, keys))).to_pylist():
            place = f" in {row['source']}" if row.get("source") else ""
            found.append(f"{row[id_column]!r}{place}")
            if len(found) == _NAMED:
                return len(keys), found
    return len(keys), found


def is_repeated(table: pa.Table, keys: np.ndarray) -> np.ndarray:
    """bool [n]: which rows of a table with row keys are among `keys`, which are sorted."""
    if not len(keys):
        return np.zeros(table.num_rows, bool)
    own = table[ROW_KEY].to_numpy()
    at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
    mask: np.ndarray = keys[at] == own
    return mask


def rename_repeated(table: pa.Table, id_column: str, keys: np.ndarray) -> pa.Table:
    """`table` with an id of its own for each repeated row; ids become strings where anything is renamed at all.

    The name is the id, `#` and 8 hex digits of the sha256 of the id, a NUL and the row key.
    """
    if not len(keys):
        return table
    at = table.schema.get_field_index(id_column)
    ids = table[id_column].cast(pa.string())
    mask = is_repeated(table, keys)
    if mask.any():
        names = np.full(table.num_rows, None, object)
        row_keys = table[ROW_KEY].to_numpy()
        for row in np.flatnonzero(mask):
            names[row] = _own_name(ids[int(row)].as_py(), int(row_keys[row]))
        ids = pc.if_else(pa.array(mask), pa.array(names, pa.string()), ids)
    return table.set_column(at, id_column, ids)


def _own_name(name: str, row_key: int) -> str:
    digest = hex_digest(f"{name}\0{row_key}", 8)
    return f"{name}#{digest}"


def renamed_keys(paths: Sequence[str]) -> np.ndarray:
    """The sorted row keys that the `_renamed/` files of an output list, for whoever reads its documents again."""
    import json

    lines = (line for path in paths for line in storage.read_bytes(path).splitlines())
    return np.unique(np.array([json.loads(line)[ROW_KEY] for line in lines], np.uint64))
