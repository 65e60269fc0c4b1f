"""Documents as a Ray Data datasource: read tasks made of segments, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycurate.data.reading import read_segments
from raycurate.data.rows import ReadPlan
from raycurate.data.segments import MIN_SEGMENT_BYTES, SEGMENT_BYTES, Kind, Segment, cut, kind_of, pack

if TYPE_CHECKING:
    from ray.data import DataContext

    from raycurate.core.storage import FileEntry
    from raycurate.data.documents import Listing

_GROWTH = {"gzip": 4, "zstd": 4, Kind.PARQUET: 3}
"""How many bytes of rows a byte of a file becomes, about: only Ray's choice of parallelism rests on it."""


class DocumentsDatasource(Datasource):
    """The rows of a listing.

    Args:
        listing: the files.
        plan: fields, columns and limits.
        files_per_partition: most files in a read task; 0 for no limit.
        done_keys: reference to a sorted uint64 array of `_row_key`s to leave out, or None.
    """

    def __init__(
        self, listing: Listing, plan: ReadPlan, files_per_partition: int = 0, done_keys: ray.ObjectRef | None = None
    ) -> None:
        super().__init__()
        self._listing = listing
        self._plan = plan
        self._files_per_partition = files_per_partition
        self._done_keys = done_keys

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
        """About `parallelism` tasks of equal bytes; more when `files_per_partition` asks for more."""
        share = math.ceil(self._listing.total_bytes / max(parallelism, 1))
        segments = cut(self._listing.files, min(max(share, MIN_SEGMENT_BYTES), SEGMENT_BYTES))
        growth = self._rows_bytes / max(self._listing.total_bytes, 1)
        tasks = []
        for group in pack(segments, parallelism, self._files_per_partition):
            read_bytes = sum((s.size if s.end is None else s.end) - s.start for s in group)
            metadata = BlockMetadata(None, int(read_bytes * growth), None)
            read = read_function(group, self._plan, self._done_keys)
            tasks.append(ReadTask(read, metadata, self._plan.schema, per_task_row_limit))
        return tasks


def _grown(file: FileEntry) -> int:
    kind, compression = kind_of(file.path)
    return file.size * _GROWTH.get(compression or kind, 1)


def read_function(
    segments: list[Segment], plan: ReadPlan, done_keys: ray.ObjectRef | None
) -> Callable[[], Iterator[pa.Table]]:
    """What a read task runs. The done keys come from the object store, once a task and without a copy."""

    def documents() -> Iterator[pa.Table]:
        done = None if done_keys is None else ray.get(done_keys)
        yield from read_segments(segments, plan, done)

    return documents
