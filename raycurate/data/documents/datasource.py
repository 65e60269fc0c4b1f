"""Documents as a Ray Data datasource: read tasks made of segments, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.rows import ReadPlan
from raycurate.data.documents.segments import MIN_SEGMENT_BYTES, SEGMENT_BYTES, Kind, Segment, cut, kind_of, pack

if TYPE_CHECKING:
    from ray.data import DataContext

    from raycurate.core.storage import FileEntry
    from raycurate.data.documents.documents import Listing

_GROWTH = {"gzip": 4, "zstd": 4, Kind.PARQUET: 3}
"""How many bytes of rows a byte of a file becomes, about: only Ray's choice of parallelism rests on it."""


class DocumentsDatasource(Datasource):
    """The rows of a listing.

    Args:
        listing: the files.
        plan: fields, columns and limits.
        files_per_partition: most files in a read task; 0 for no limit.
        done_keys: reference to a sorted uint64 array of `_row_key`s to leave out, or None.
        tasks: about how many read tasks are wanted; each holds at most SEGMENT_BYTES of a large file.
        seconds_column: name of a float32 column that tells what reading a block took (its first row has
            the seconds, the others 0), or None for no such column.
    """

    def __init__(
        self,
        listing: Listing,
        plan: ReadPlan,
        files_per_partition: int = 0,
        done_keys: ray.ObjectRef | None = None,
        *,
        tasks: int = 1,
        seconds_column: str | None = None,
    ) -> None:
        super().__init__()
        self._listing = listing
        self._plan = plan
        self._done_keys = done_keys
        self._seconds_column = seconds_column
        tasks = max(tasks, math.ceil(listing.total_bytes / SEGMENT_BYTES))
        share = math.ceil(listing.total_bytes / max(tasks, 1))
        segments = cut(listing.files, min(max(share, MIN_SEGMENT_BYTES), SEGMENT_BYTES))
        self._groups = pack(segments, tasks, files_per_partition)

    @property
    def num_tasks(self) -> int:
        """How many read tasks there are. Ray cuts the blocks of fewer tasks than it asked for into slivers,
        so this is to be given as `override_num_blocks`."""
        return len(self._groups)

    def get_name(self) -> str:
        return "Documents"

    def estimate_inmemory_data_size(self) -> int:
        return self._rows_bytes

    @cached_property
    def _rows_bytes(self) -> int:
        return sum(_grown(f) for f in self._listing.files)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The read tasks, fixed when the datasource was made; `parallelism` is not looked at."""
        growth = self._rows_bytes / max(self._listing.total_bytes, 1)
        tasks = []
        for group in self._groups:
            read_bytes = sum((s.size if s.end is None else s.end) - s.start for s in group)
            metadata = BlockMetadata(None, int(read_bytes * growth), None)
            read = read_function(group, self._plan, self._done_keys, self._seconds_column)
            tasks.append(ReadTask(read, metadata, self._schema(), per_task_row_limit))
        return tasks

    def _schema(self) -> pa.Schema | None:
        schema = self._plan.schema
        if schema is None or self._seconds_column is None:
            return schema
        return schema.append(pa.field(self._seconds_column, pa.float32()))


def _grown(file: FileEntry) -> int:
    kind, compression = kind_of(file.path)
    return file.size * _GROWTH.get(compression or kind, 1)


def read_function(
    segments: list[Segment], plan: ReadPlan, done_keys: ray.ObjectRef | None, seconds_column: str | None = None
) -> Callable[[], Iterator[pa.Table]]:
    """What a read task runs. The done keys come from the object store, once a task and without a copy."""

    def documents() -> Iterator[pa.Table]:
        started = time.perf_counter()
        done = None if done_keys is None else ray.get(done_keys)
        for table in read_segments(segments, plan, done):
            if seconds_column is None:
                yield table
                continue
            seconds = np.zeros(table.num_rows, np.float32)
            seconds[:1] = time.perf_counter() - started
            yield table.append_column(seconds_column, pa.array(seconds))
            started = time.perf_counter()

    return documents
