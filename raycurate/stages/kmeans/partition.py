"""Staged rows -> `centroid=K/*.parquet`: about one file a centroid, whatever the number of tasks that assigned.

Centroids are dealt into buckets of about 256 MB by the row counts that the staged files hold. One task a bucket
reads its rows of every staged file (they are sorted by centroid, so most row groups are skipped) and writes each
centroid's file. A centroid larger than a bucket is written by a task of its own, file after file, without ever
being in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.clustering.assignment import CENTROID, L2
from raycurate.core import storage
from raycurate.core.manifest import REJECTS, RENAMED, OutputFile
from raycurate.ray_runtime.cluster import remote_task
from raycurate.streams.finalise import (
    REJECT_COLUMNS,
    RENAMED_COLUMNS,
    TARGET_BYTES,
    Finalised,
    LazyParquet,
    LazyText,
    SeenKeys,
    StagedFile,
    keys_to_rename,
    scan_all,
    staged_entries,
    tell_apart,
)
from raycurate.streams.repeated_ids import RepeatedIds, rename_repeated
from raycurate.streams.staging import REJECT_REASON, ROW_KEY

_SCANNED_AT_ONCE = 200


@dataclass(frozen=True)
class PartitionLayout:
    """name: of this run, part of every file's name. columns: of the output, in order. schema_metadata: of its files.

    repeated_ids: what is done when ids are not unique."""

    name: str
    columns: list[str]
    id_field: str
    schema_metadata: dict[bytes, bytes]
    repeated_ids: RepeatedIds = "error"


def partition(staging: str, output: str, layout: PartitionLayout, k: int, *, known: int) -> Finalised:
    """Write the clusters and the rejects of what is staged; `sums` has `inertia`.

    A key that two attempts committed is kept once.

    Args:
        known: how many rows the run has resumed and written.

    Raises:
        RaycurateError: the staging holds another number of rows.
        InputError: rows share an id and `layout.repeated_ids` is "error".
    """
    import ray

    entries = staged_entries(staging)
    staged = scan_all(staging, entries, known=known)
    count = remote_task(_count, name="CountClusters", num_cpus=0)
    counted = [count.remote(entries[i : i + _SCANNED_AT_ONCE], k) for i in range(0, len(entries), _SCANNED_AT_ONCE)]
    repeated = keys_to_rename(staged, layout.id_field, layout.repeated_ids)
    # One more place, in front, for the rejects, whose centroid is -1.
    bytes_K = np.sum(ray.get(counted), axis=0)
    write = remote_task(_write_bucket, name="WriteClusters", num_cpus=0.5)
    buckets = _buckets(bytes_K[1:])
    total = Finalised()
    pending = [write.remote(staged, bucket, output, layout, repeated) for bucket in buckets]
    pending.append(remote_task(_write_rejects, name="WriteRejects", num_cpus=0.5).remote(staged, output, layout))
    pending.append(
        remote_task(_write_renamed, name="WriteRenamed", num_cpus=0.5).remote(staged, output, layout, repeated)
    )
    for reference in pending:
        total.add(ray.get(reference))
    return total


def _count(entries: list[storage.FileEntry], k: int) -> np.ndarray:
    """About how many bytes each centroid has, int64 [k + 1], rejects in front."""
    total = np.zeros(k + 1, np.int64)
    for entry in entries:
        filesystem, inner = storage.filesystem(entry.path)
        file = pq.ParquetFile(inner, filesystem=filesystem)
        labels = file.read(columns=[CENTROID])[CENTROID].to_numpy()
        raw = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        total += np.bincount(labels + 1, minlength=k + 1) * (raw // max(len(labels), 1))
    return total


def _buckets(bytes_K: np.ndarray) -> list[tuple[int, int]]:
    """Runs [low, high) of centroids of at most TARGET_BYTES, or of one larger centroid."""
    buckets: list[tuple[int, int]] = []
    low, size = 0, 0
    for centroid, own in enumerate(bytes_K.tolist()):
        if centroid > low and size + own > TARGET_BYTES:
            buckets.append((low, centroid))
            low, size = centroid, 0
        size += own
    return [*buckets, (low, len(bytes_K))] if len(bytes_K) else buckets


def _write_bucket(
    staged: list[StagedFile], bucket: tuple[int, int], output: str, layout: PartitionLayout, repeated: np.ndarray
) -> Finalised:
    low, high = bucket
    result = Finalised(sums={"inertia": 0.0})
    tables = (rename_repeated(table, layout.id_field, repeated) for table in _rows(staged, low, high))
    if high - low == 1:
        _write_cluster(tables, low, output, layout, result)
        return result
    parts = [table for table in tables if table.num_rows]
    if not parts:
        return result
    whole = pa.concat_tables(parts).combine_chunks()
    whole = whole.take(np.lexsort((whole[ROW_KEY].to_numpy(), whole[CENTROID].to_numpy())))
    bounds = np.searchsorted(whole[CENTROID].to_numpy(), np.arange(low, high + 1))
    for centroid, (start, end) in enumerate(pairwise(bounds.tolist()), low):
        _write_cluster(iter([whole.slice(start, end - start)]), centroid, output, layout, result)
    return result


def _rows(staged: list[StagedFile], low: int, high: int) -> Iterator[pa.Table]:
    """The rows of centroids [low, high), a table a staged file, a key that came before left out."""
    seen = SeenKeys(staged)
    for file in staged:
        filesystem, inner = storage.filesystem(file.path)
        bounds = [(CENTROID, ">=", low), (CENTROID, "<", high)]
        yield seen.drop(pq.read_table(inner, filesystem=filesystem, filters=bounds, partitioning=None))


def _write_cluster(
    tables: Iterator[pa.Table], centroid: int, output: str, layout: PartitionLayout, result: Finalised
) -> None:
    """The files of one centroid, a new one whenever one has TARGET_BYTES."""
    number, waiting, size = 0, list[pa.Table](), 0

    def write() -> None:
        _write_file(waiting, f"centroid={centroid}/{layout.name}-{number:05d}.parquet", output, layout, result)

    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= TARGET_BYTES:
            write()
            number, waiting, size = number + 1, [], 0
    write()


def _write_file(tables: list[pa.Table], path: str, output: str, layout: PartitionLayout, result: Finalised) -> None:
    rows = sum(table.num_rows for table in tables)
    if not rows:
        return
    with LazyParquet(storage.join(output, path)) as file:
        for table in tables:
            squares = pc.sum(pc.power(table[L2].cast(pa.float64()), 2)).as_py() or 0.0
            result.sums["inertia"] += squares
            file.write(table.select(layout.columns).replace_schema_metadata(layout.schema_metadata))
    _note_file(result, output, path, rows)
    result.rows += rows


def _write_rejects(staged: list[StagedFile], output: str, layout: PartitionLayout) -> Finalised:
    """Unusable rows, as JSON Lines; counted by reason."""
    result = Finalised()
    path = f"{REJECTS}/{layout.name}.jsonl"
    columns = [layout.id_field if name == "id" else name for name in REJECT_COLUMNS]
    with LazyText(storage.join(output, path), columns) as rejects:
        for bad in _rejected(staged, columns):
            for counted in bad[REJECT_REASON].value_counts().to_pylist():
                reason = counted["values"]
                result.rejects[reason] = result.rejects.get(reason, 0) + counted["counts"]
            rejects.write(bad)
        rows = rejects.rows
    _note_file(result, output, path, rows)
    return result


def _rejected(staged: list[StagedFile], columns: list[str]) -> Iterator[pa.Table]:
    seen: set[int] = set()
    for file in staged:
        filesystem, inner = storage.filesystem(file.path)
        filters: Any = [(CENTROID, "=", -1)]
        bad = pq.read_table(inner, columns=[ROW_KEY, *columns], filesystem=filesystem, filters=filters)
        new = [key not in seen for key in bad[ROW_KEY].to_pylist()]
        seen.update(bad[ROW_KEY].to_pylist())
        yield bad.filter(pa.array(new, pa.bool_()))


def _write_renamed(staged: list[StagedFile], output: str, layout: PartitionLayout, repeated: np.ndarray) -> Finalised:
    """The rows that were told apart, as JSON Lines."""
    result, seen = Finalised(), SeenKeys(staged)
    path = f"{RENAMED}/{layout.name}.jsonl"
    with LazyText(storage.join(output, path), RENAMED_COLUMNS) as renamed:
        for file in staged if len(repeated) else []:
            filesystem, inner = storage.filesystem(file.path)
            columns = [ROW_KEY, layout.id_field, "source"]
            table = seen.drop(pq.read_table(inner, columns=columns, filesystem=filesystem))
            tell_apart(table, layout.id_field, repeated, renamed)
        result.renamed = renamed.rows
    _note_file(result, output, path, result.renamed)
    return result


def _note_file(result: Finalised, output: str, path: str, rows: int) -> None:
    """Add a file to the result, where it was written at all."""
    if rows:
        [entry] = storage.list_files(storage.join(output, path))
        result.files.append(OutputFile(path=path, size=entry.size, rows=rows))
