"""What a training tells the outside, from a Ray Train worker: numbers, and checkpoints that are whole or not there.

A checkpoint goes to its final place directly and Ray Train is told of it afterwards, by a folder with one file that
names it: which checkpoints exist is then decided by their own records (checkpoints.py), so the one that was made last
is found again even where the report of it was lost with the controller, and a second run name does not hide it.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.core.observe import get_logger
from raycurate.finetune.checkpoints import CheckpointStore, Keep, checkpoint_name

if TYPE_CHECKING:
    from raycurate.finetune.logs import Logs

POINTER = "checkpoint.txt"
_FULL = (errno.ENOSPC, errno.EDQUOT)

log = get_logger(__name__)


class RayReporter:
    """The loop's Reporter over Ray Train.

    Args:
        store: where the checkpoints go.
        run: name of the training, written into their records.
        keep: which stay; None leaves all models until the training has ended, and drops the states of older ones.
        logs: what takes the metrics; None on all ranks but the first.
        validate: ask Ray Train to validate each checkpoint beside the training.
    """

    def __init__(
        self, store: CheckpointStore, run: str, keep: Keep, *, logs: Logs | None, validate: bool = False
    ) -> None:
        self._store, self._run, self._keep = store, run, keep
        self._logs, self._validate = logs, validate
        self._rank = _rank()

    def log(self, metrics: dict[str, float]) -> None:
        """Rank 0's metrics to the logs."""
        if self._logs is not None:
            self._logs.log(metrics)

    def save(self, metrics: dict[str, float], *, epoch: int, step: int, write: Callable[[str], None]) -> None:
        """Make a checkpoint of what all ranks write; returns when it is whole.

        Raises:
            RaycurateError: the storage is full or cannot be written.
        """
        name = checkpoint_name(epoch, step)
        target = self._store.path(name)
        with _explained(target):
            if self._rank == 0:
                self._store.clear(name)
            _barrier()
            self._write(target, write)
            _barrier()
            if self._rank == 0:
                self._store.commit(epoch, step, metrics, self._run)
                if self._validate:
                    self._store.drop_states(self._keep)
                else:
                    self._store.prune(self._keep)
        self._tell(name, {**metrics, "epoch": epoch, "step": step})

    def _write(self, target: str, write: Callable[[str], None]) -> None:
        """Straight to its place where that is a folder; else through a local one, each rank its own files."""
        if not storage.is_remote(target):
            write(target)
            return
        with tempfile.TemporaryDirectory(prefix="raycurate-checkpoint-") as folder:
            write(folder)
            upload(folder, target)

    def _tell(self, name: str, metrics: dict[str, float]) -> None:
        from ray import train

        if self._rank != 0:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="raycurate-report-") as folder:
            Path(folder, POINTER).write_text(f"{name}\n", encoding="utf-8")
            made = train.Checkpoint.from_directory(folder)
            train.report(metrics, checkpoint=made, checkpoint_dir_name=name, validation=self._validate)


def upload(folder: str, target: str) -> None:
    """Copy the files of a local folder to an object store, in chunks, keeping what is there of other ranks."""
    import shutil

    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        found, inner = storage.filesystem(storage.join(target, *path.relative_to(folder).parts))
        if storage.scheme_of(target) != "s3":  # where folders are but prefixes
            found.create_dir(inner.rpartition("/")[0], recursive=True)
        with path.open("rb") as source, found.open_output_stream(inner, compression=None) as out:
            shutil.copyfileobj(source, out, 16 * 2**20)


def _rank() -> int:
    from ray import train

    return train.get_context().get_world_rank()


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


@contextmanager
def _explained(target: str) -> Iterator[None]:
    """Errors of the storage as the user's to put right, also those that torch's checkpointing collected."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except OSError as error:
        raise _unwritable(target, error) from error
    except CheckpointException as error:  # it is no Exception, and holds one (and its stack) for each rank that failed
        causes = [failure[0] for failure in error.failures.values()]
        found = next((cause for cause in causes if isinstance(cause, OSError)), None)
        if found is None:
            raise RuntimeError(f"the checkpoint {target} could not be written: {error}") from error
        raise _unwritable(target, found) from error


def _unwritable(target: str, error: OSError) -> RaycurateError:
    if error.errno in _FULL:
        return RaycurateError(
            "the storage is full",
            where=target,
            fix="Free some space, or keep fewer checkpoints (keep_last, keep_best); then give the same command again",
        )
    return RaycurateError(f"it cannot be written ({error})", where=target, fix="Check the path and its permissions")
