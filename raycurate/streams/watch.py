"""How far a row stream is, read off its staging files: they are the only record of it, on every cluster.

A thread lists the staging folder and reads the footers of files that are new, so that nothing is counted that is not
committed, and no worker has to report.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.observe import Progress, get_logger
from raycurate.ray_runtime.cluster import raise_user_error
from raycurate.streams.staging import REJECT_REASON, StagingSink

if TYPE_CHECKING:
    from ray.data import Dataset

log = get_logger(__name__)


class StagingWatch:
    """Shows the progress of the stream that writes to a staging folder, from entering to leaving the block.

    Args:
        folder: the staging folder.
        resumes: whether what lies in it when the block begins counts as done, else it is another's.
        label, unit: of the progress.
        total: rows there will be with those done before, None where nobody knows; a function is asked in the thread.
        every_s: seconds between two looks.
    """

    def __init__(
        self,
        folder: str,
        label: str,
        *,
        unit: str = "document",
        total: int | Callable[[], int | None] | None = None,
        resumes: bool = True,
        every_s: float | None = None,
    ) -> None:
        self._resumes = resumes
        self._folder = folder
        self._label, self._unit, self._total = label, unit, total
        self._every_s = every_s if every_s is not None else (10.0 if storage.is_remote(folder) else 1.0)
        self._seen: set[str] = set()
        self._rejects = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            before = self._look()
            with Progress(self._label, unit=self._unit, done=before if self._resumes else 0) as progress:
                progress.update(0, total=self._total() if callable(self._total) else self._total)
                while not self._end.wait(self._every_s):
                    progress.update(self._look(), note=self._note())
                progress.update(self._look(), note=self._note())
        except Exception as error:  # a picture of the work is not worth the work
            log.debug("%s: its progress cannot be read (%s)", self._label, error)

    def _note(self) -> str:
        return f"{self._rejects:,} rejected" if self._rejects else ""

    def _look(self) -> int:
        """Rows of the files that are new."""
        rows = 0
        listed = storage.list_files(self._folder) if storage.exists(self._folder) else []
        for entry in listed:
            if entry.path in self._seen or not entry.path.endswith(".parquet"):
                continue
            self._seen.add(entry.path)
            filesystem, inner = storage.filesystem(entry.path)
            footer = pq.read_metadata(inner, filesystem=filesystem)
            rows += footer.num_rows
            self._rejects += _rejects(footer)
        return rows


def write_staged(
    dataset: Dataset,
    sink: StagingSink,
    *,
    label: str,
    num_cpus: float,
    unit: str = "document",
    total: int | Callable[[], int | None] | None = None,
    resumes: bool = True,
) -> None:
    """Run a data set's stream into its staging folder, with its progress in sight.

    Args:
        label, unit, total, resumes: of the progress, as `StagingWatch` takes them.
        num_cpus: of a write task.

    Raises:
        RaycurateError: the one that a worker raised.
    """
    storage.make_dir(sink.folder)
    try:
        with StagingWatch(sink.folder, label, unit=unit, total=total, resumes=resumes):
            dataset.write_datasink(sink, ray_remote_args={"num_cpus": num_cpus})
    except Exception as error:
        raise_user_error(error)
        raise


def _rejects(footer: pq.FileMetaData) -> int:
    """Rows with a reject_reason, by the column's statistics."""
    count = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema == REJECT_REASON and column.statistics is not None:
                count += group.num_rows - (column.statistics.null_count or 0)
    return count
