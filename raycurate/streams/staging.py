"""Resumable row streams: staging files that are their own checkpoint.

A stage's rows travel with `_row_key`, a uint64 that the reader makes from source file and position. Each
block that reaches the end of the pipeline becomes one Parquet file in `OUT/_staging/<key>/`, which appears
under its name whole or not at all. The keys inside the files are therefore exactly what is committed: a
second run reads that one column, hands it to the reader, and the reader skips those rows. No separate
checkpoint can disagree with the data, no filter operator takes a CPU from the plan, and a row that two
attempts both wrote is found (its key is there twice) and kept once by streams/finalise.py.

Ray Data has checkpointing of its own; it adds a filter actor (1 CPU, 1 GiB each) to every resumed plan,
which two CPUs cannot hold beside an encoder, and writes the keys a second time.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult

from raycurate.core import storage
from raycurate.core.errors import RaycurateError

if TYPE_CHECKING:
    import ray

    from raycurate.ray_runtime.private import TaskContext

ROW_KEY = "_row_key"
COMPLETE = "complete.json"
MADE_AT = "_made_at"  # when a block was made (seconds since the epoch); not staged
REJECT_REASON = "reject_reason"
_SORTED_GROUP_ROWS = 4096


class TooManyRejectsError(RaycurateError):
    """More rows were rejected than `max_rejects` allows."""


class Written(NamedTuple):
    """What one write task did: wall-clock times (seconds since the epoch), rows, and when they had been made."""

    started: float
    ended: float
    rows: int
    made_at: float


def steady_rows_per_second(written: list[Written], *, parallel: int) -> float:
    """Rows a second once all workers are at work: from block number `parallel` being made to the last.

    The first `parallel` blocks were worked on before that moment, one by each worker, so their rows do not
    count. 0.0 when there were too few blocks to tell.
    """
    ordered = sorted(written, key=lambda w: w.made_at)
    if len(ordered) <= 2 * parallel:
        return 0.0
    seconds = ordered[-1].made_at - ordered[parallel - 1].made_at
    return sum(w.rows for w in ordered[parallel:]) / seconds if seconds > 0 else 0.0


class StagingSink(Datasink[Written]):
    """Writes each block as one staging file; counts rejects across the cluster when there is a limit.

    Args:
        folder: the staging folder of this run.
        counter: actor that adds up rejects (`RejectCounter`), or None when any number is fine.
        sorted_by: a column that the blocks are sorted by; its row groups are kept small and their ranges written
            down, so that a reader of one range skips the others.
        columns: what is written, of those that a block has; all by default.
    """

    def __init__(
        self,
        folder: str,
        counter: ray.actor.ActorHandle | None = None,
        *,
        name: str = "Stage",
        sorted_by: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.counter = counter
        self.name = name
        self.sorted_by = sorted_by
        self.columns = columns
        self.attempt = uuid.uuid4().hex[:8]
        self.written: list[Written] = []

    def get_name(self) -> str:
        return self.name

    @property
    def rows(self) -> int:
        """How many rows this attempt wrote, as its tasks say."""
        return sum(w.rows for w in self.written)

    def on_write_complete(self, write_result: WriteResult[Written]) -> None:
        self.written = [w for w in write_result.write_returns if w.rows]

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> Written:
        """Write one file."""
        started = time.time()
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return Written(started, started, 0, started)
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        made_at = started
        if MADE_AT in table.column_names:
            made_at = pc.max(table[MADE_AT]).as_py()
            table = table.drop_columns([MADE_AT])
        if self.columns is not None:
            table = table.select([name for name in self.columns if name in table.column_names])
        # A retried write task has the same index, so it replaces its own file.
        path = storage.join(self.folder, f"{self.attempt}-{ctx.task_idx:08d}.parquet")
        statistics, group_rows = [ROW_KEY, REJECT_REASON], None
        if self.sorted_by is not None:
            statistics, group_rows = [*statistics, self.sorted_by], _SORTED_GROUP_ROWS
        with storage.open_output(path) as stream:
            pq.write_table(table, stream, compression="zstd", write_statistics=statistics, row_group_size=group_rows)
        self._count_rejects(table)
        return Written(started, time.time(), table.num_rows, made_at)

    def _count_rejects(self, table: pa.Table) -> None:
        if self.counter is None or REJECT_REASON not in table.column_names:
            return
        rejects = table.num_rows - table[REJECT_REASON].null_count
        if rejects:
            import ray

            ray.get(self.counter.add.remote(rejects))


class RejectCounter:
    """Ray actor that stops a run once too many rows have been rejected, over all attempts of the run."""

    def __init__(self, limit: int, already: int) -> None:
        self.limit = limit
        self.total = already

    def add(self, rejects: int) -> int:
        """The total so far. Raises TooManyRejectsError past the limit."""
        self.total += rejects
        if self.total > self.limit:
            raise TooManyRejectsError(
                f"{self.total} rows were rejected, max_rejects is {self.limit}",
                where="max_rejects",
                fix="Look at the reasons in the log, correct the input or raise max_rejects; "
                "the finished rows are kept and are not done again",
            )
        return self.total


def committed(folder: str) -> tuple[np.ndarray, int]:
    """What earlier attempts have written to a staging folder.

    Returns:
        The sorted row keys (uint64, duplicates kept) and how many of these rows are rejects.
    """
    from concurrent.futures import ThreadPoolExecutor

    if not storage.exists(folder):
        return np.empty(0, np.uint64), 0

    def read(path: str) -> tuple[np.ndarray, int]:
        found, inner = storage.filesystem(path)
        table = pq.read_table(inner, columns=[ROW_KEY, REJECT_REASON], filesystem=found)
        return table[ROW_KEY].to_numpy(), table.num_rows - table[REJECT_REASON].null_count

    paths = [entry.path for entry in storage.list_files(folder) if entry.path.endswith(".parquet")]
    if not paths:
        return np.empty(0, np.uint64), 0
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(read, paths))
    return np.sort(np.concatenate([keys for keys, _ in parts])), sum(rejects for _, rejects in parts)


def mark_complete(folder: str, rows: int) -> None:
    """Note that no row is missing in a staging folder, so that a run killed after this goes on with finalise."""
    storage.write_text(storage.join(folder, COMPLETE), json.dumps({"rows": rows}) + "\n")


def is_complete(folder: str, rows: int) -> bool:
    """Whether the `rows` rows that a staging folder holds are all that there will be."""
    path = storage.join(folder, COMPLETE)
    return storage.exists(path) and json.loads(storage.read_text(path)) == {"rows": rows}


def require_known(folder: str, found: int, known: int) -> None:
    """Refuse to make an output of rows that this run did not resume or write, or without some of those.

    Raises:
        RaycurateError: another run has written to the folder or deleted from it.
    """
    if found != known:
        raise RaycurateError(
            f"the staging files hold {found:,} rows, and this run knows of {known:,} that it resumed or wrote: another "
            "run has worked here, or somebody deleted files",
            where=folder,
            fix="Nothing was committed; give the same command again, and it goes on from what is staged",
        )


def committed_ref(folder: str) -> tuple[Any, int, int]:
    """`committed`, done by a Ray task so that the keys stay off the driver.

    Returns:
        (reference to the sorted keys in the object store, number of rows, number of rejects)
    """
    import ray

    from raycurate.ray_runtime.cluster import remote_task

    keys_ref, sizes_ref = remote_task(_load, name="CommittedRows", num_cpus=0, num_returns=2).remote(folder)
    rows, rejects = ray.get(sizes_ref)
    return keys_ref, rows, rejects


def _load(folder: str) -> tuple[np.ndarray, tuple[int, int]]:
    keys, rejects = committed(folder)
    return keys, (len(keys), rejects)
