"""Staging files -> the finished output: a few large files, rejects beside them, every count from the files.

The input's order is kept: staging files are taken in the order of their smallest row key and packed into
outputs of about 256 MB. Nothing here runs on the driver but the plan; scans and rewrites are Ray tasks, and
each holds one staging file at a time. Killed half-way, it starts over from the staging files, which are
deleted only after the manifest that makes the output whole has been written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.manifest import REJECTS, RENAMED, OutputFile
from raycurate.ray_runtime.cluster import remote_task
from raycurate.streams.repeated_ids import (
    RENAMED_TO,
    RepeatedIds,
    is_repeated,
    refuse_repeated,
    rename_repeated,
    repeated_keys,
)
from raycurate.streams.staging import REJECT_REASON, ROW_KEY, require_known

_SCANNED_AT_ONCE = 200
TARGET_BYTES = 256 * 1024 * 1024
REJECT_COLUMNS = ["id", "source", REJECT_REASON, "reject_detail"]
RENAMED_COLUMNS = ["id", RENAMED_TO, "source", ROW_KEY]


@dataclass(frozen=True)
class StagedFile:
    """A staging file's footer: path, bytes, rows, smallest and largest row key."""

    path: str
    size: int
    rows: int
    first_key: int
    last_key: int


@dataclass
class Finalised:
    """What the committed files hold."""

    files: list[OutputFile] = field(default_factory=list)
    rows: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    renamed: int = 0

    def add(self, other: Finalised) -> None:
        self.files += other.files
        self.rows += other.rows
        self.renamed += other.renamed
        for reason, count in other.rejects.items():
            self.rejects[reason] = self.rejects.get(reason, 0) + count
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


@dataclass(frozen=True)
class Layout:
    """How staged rows become output rows.

    Args:
        name: first part of the output files' names; unique to this run, so that an overwritten output's
            files stay readable until the manifest changes.
        columns: the columns of the output, in order.
        sums: working columns (dropped from the output) that are added up and reported.
        unique_id: the id column when the user chose the ids, so that they must be checked; else None.
        repeated_ids: what is done when they are not unique (streams/repeated_ids.py).
        schema: of the output, where the staged files do not all have its columns; None when they do.
        left_out: a working column whose rows, where it is not null, are not written.
    """

    name: str
    columns: list[str]
    sums: list[str]
    unique_id: str | None = None
    repeated_ids: RepeatedIds = "error"
    schema: pa.Schema | None = None
    left_out: str | None = None


def staged_entries(staging: str) -> list[storage.FileEntry]:
    return [entry for entry in storage.list_files(staging) if entry.path.endswith(".parquet")]


def scan_all(staging: str, entries: list[storage.FileEntry], *, known: int) -> list[StagedFile]:
    """The staged files in the order of their rows.

    Raises:
        RaycurateError: they hold another number of rows than are `known` to the run.
    """
    import ray

    scan = remote_task(scan_staging, name="ScanStaging", num_cpus=0)
    batches = [entries[i : i + _SCANNED_AT_ONCE] for i in range(0, len(entries), _SCANNED_AT_ONCE)]
    staged = [file for part in ray.get([scan.remote(batch) for batch in batches]) for file in part]
    require_known(staging, sum(file.rows for file in staged), known)
    return sorted(staged, key=lambda file: (file.first_key, file.path))


def finalise(
    staging: str, output: str, layout: Layout, *, known: int, progress: Callable[[int, int], None] | None = None
) -> Finalised:
    """Rewrite the staged rows of `staging` as the finished files of `output` (its manifest is the caller's).

    A key that two attempts committed is kept once.

    Args:
        known: how many rows the run has resumed and written.

    Raises:
        RaycurateError: the staging holds another number of rows.
        InputError: rows share an id and `layout.repeated_ids` is "error".
    """
    import ray

    staged = scan_all(staging, staged_entries(staging), known=known)
    groups = list(_groups(staged))
    repeated = keys_to_rename(staged, layout.unique_id, layout.repeated_ids)
    rewrite = remote_task(_rewrite, name="Finalise", num_cpus=0.5)
    pending = [rewrite.remote(g, output, layout, number, repeated) for number, g in enumerate(groups)]
    total = Finalised()
    results: dict[Any, Finalised] = {}
    waiting = list(pending)
    while waiting:
        ready, waiting = ray.wait(waiting)
        results[ready[0]] = ray.get(ready[0])
        if progress:
            progress(len(results), len(pending))
    for reference in pending:
        total.add(results[reference])
    return total


def keys_to_rename(staged: list[StagedFile], id_column: str | None, repeated_ids: RepeatedIds) -> Any:
    """Reference to the keys of the rows to rename; none where `id_column` is None.

    Raises:
        InputError: rows share an id and `repeated_ids` is "error".
    """
    import ray

    if id_column is None:
        return ray.put(np.empty(0, np.uint64))
    keys = repeated_keys(staged, id_column, rejects_too=repeated_ids == "rename")
    if repeated_ids == "error":
        refuse_repeated(staged, keys, id_column)
    return keys


def scan_staging(entries: list[storage.FileEntry]) -> list[StagedFile]:
    found = []
    for entry in entries:
        filesystem, inner = storage.filesystem(entry.path)
        keys = pq.read_table(inner, columns=[ROW_KEY], filesystem=filesystem)[ROW_KEY].to_numpy()
        found.append(StagedFile(entry.path, entry.size, len(keys), int(keys.min()), int(keys.max())))
    return found


def _groups(staged: list[StagedFile]) -> Iterator[list[StagedFile]]:
    """Consecutive files of about TARGET_BYTES together; files whose key ranges overlap are never parted.

    Overlap is how rows committed twice can arise, so that a group sees every copy of its rows.
    """
    group: list[StagedFile] = []
    size, last = 0, -1
    for staged_file in staged:
        if group and size >= TARGET_BYTES and staged_file.first_key > last:
            yield group
            group, size = [], 0
        group.append(staged_file)
        size += staged_file.size
        last = max(last, staged_file.last_key)
    if group:
        yield group


def _rewrite(group: list[StagedFile], output: str, layout: Layout, number: int, repeated: np.ndarray) -> Finalised:
    """One output file (and one of rejects, if there are any) from consecutive staging files."""
    result = Finalised()
    seen = SeenKeys(group)
    name = f"{layout.name}-{number:05d}"
    data_path, rejects_path, renamed_path = f"{name}.parquet", f"{REJECTS}/{name}.jsonl", f"{RENAMED}/{name}.jsonl"
    with (
        LazyParquet(storage.join(output, data_path)) as data,
        LazyText(storage.join(output, rejects_path)) as rejects,
        LazyText(storage.join(output, renamed_path), RENAMED_COLUMNS) as renamed,
    ):
        for staged in group:
            filesystem, inner = storage.filesystem(staged.path)
            table = seen.drop(pq.read_table(inner, filesystem=filesystem))
            if layout.left_out in table.column_names:
                table = table.filter(pc.is_null(table[layout.left_out]))
            for column in (c for c in layout.sums if c in table.column_names):
                result.sums[column] = result.sums.get(column, 0) + (pc.sum(table[column]).as_py() or 0)
            if layout.unique_id is not None:
                table = tell_apart(table, layout.unique_id, repeated, renamed)
            good = pc.is_null(table[REJECT_REASON])
            bad = table.filter(pc.invert(good))
            for counted in bad[REJECT_REASON].value_counts().to_pylist():
                reason = counted["values"]
                result.rejects[reason] = result.rejects.get(reason, 0) + counted["counts"]
            rejects.write(bad)
            data.write(_conform(table.filter(good), layout))
        result.rows, result.renamed = data.rows, renamed.rows
    for path, rows in ((data_path, data.rows), (rejects_path, rejects.rows), (renamed_path, renamed.rows)):
        if rows:
            [entry] = storage.list_files(storage.join(output, path))
            result.files.append(OutputFile(path=path, size=entry.size, rows=rows))
    return result


def tell_apart(table: pa.Table, id_column: str, repeated: np.ndarray, log: LazyText) -> pa.Table:
    """`table` with its repeated ids told apart; what was renamed goes to `log`."""
    if not len(repeated):
        return table
    renamed = rename_repeated(table, id_column, repeated)
    mask = pa.array(is_repeated(table, repeated))
    names = renamed[id_column].filter(mask)
    log.write(table.rename_columns({id_column: "id"}).filter(mask).append_column(RENAMED_TO, names))
    return renamed


def _conform(table: pa.Table, layout: Layout) -> pa.Table:
    """The output's columns; what this file has none of is null."""
    if layout.schema is None:
        return table.select(layout.columns)
    for column in layout.schema:
        if column.name not in table.column_names:
            table = table.append_column(column.name, pa.nulls(table.num_rows, column.type))
    return table.select(layout.columns).cast(layout.schema)


class SeenKeys:
    """Drops rows whose key came before; costs nothing when no two files of the group overlap."""

    def __init__(self, group: list[StagedFile]) -> None:
        last = np.maximum.accumulate([f.last_key for f in group])
        self.overlap = any(f.first_key <= before for f, before in zip(group[1:], last, strict=False))
        self.keys = np.empty(0, np.uint64)

    def drop(self, table: pa.Table) -> pa.Table:
        if not self.overlap:
            return table
        keys = table[ROW_KEY].to_numpy()
        new = ~np.isin(keys, self.keys)
        self.keys = np.union1d(self.keys, keys)
        return table if new.all() else table.filter(pa.array(new))


class LazyParquet:
    """A Parquet file that is made when its first row comes."""

    def __init__(self, path: str) -> None:
        self.path, self.rows = path, 0
        self.stream: Any = None
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> LazyParquet:
        return self

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self.writer is None:
            self.stream = storage.open_output(self.path)
            self.writer = pq.ParquetWriter(self.stream.__enter__(), table.schema, compression="zstd")
        self.writer.write_table(table.cast(self.writer.schema))
        self.rows += table.num_rows

    def __exit__(self, *error: Any) -> None:
        if self.stream is None:
            return
        try:
            if self.writer is not None:
                self.writer.close()
        except OSError:  # the end did not fit; the stream says why, and takes its temporary file away
            error = sys.exc_info()
        self.stream.__exit__(*error)


class LazyText:
    """Rejected rows as JSON Lines, a file a person can read; made when its first row comes."""

    def __init__(self, path: str, columns: list[str] | None = None) -> None:
        self.path, self.rows = path, 0
        self.columns = REJECT_COLUMNS if columns is None else columns
        self.stream: Any = None
        self.out: Any = None

    def __enter__(self) -> LazyText:
        return self

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self.out is None:
            self.stream = storage.open_output(self.path)
            self.out = self.stream.__enter__()
        columns = [c for c in self.columns if c in table.column_names]
        for row in table.select(columns).to_pylist():
            self.out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.rows += table.num_rows

    def __exit__(self, *error: Any) -> None:
        if self.out is not None:
            self.stream.__exit__(*error)
