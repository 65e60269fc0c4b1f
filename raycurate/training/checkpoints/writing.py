"""How a checkpoint comes to be: its contents, the files of all ranks, the record that makes it whole, what goes then.

Nothing here knows Ray. It runs within a step, or in the thread beside the training (beside.py) on copies of the
tensors; the files are the same. Whatever goes wrong on one rank is raised on all of them, and before the record is
written, so that what is there is no checkpoint and the one before stays.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.training.checkpoints import state
from raycurate.training.checkpoints.card import Origin, write_card
from raycurate.training.checkpoints.checkpoints import CONSOLIDATED, STATE, CheckpointStore, checkpoint_name
from raycurate.training.checkpoints.options import Keep
from raycurate.training.checkpoints.writer import Beside
from raycurate.training.collectives import max_over_ranks, world
from raycurate.training.model.bi_encoder import BiEncoder
from raycurate.training.model.parallelize import Parallel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Export = Callable[[BiEncoder, str, Iterable[tuple[str, Tensor]]], object]
"""(bi-encoder, folder, stream of named whole tensors); rank 0 alone calls it. It may not read the encoder's weights:
they move on while it writes."""

Write = Callable[[str], None]
"""Puts this rank's part of a checkpoint into a local folder; every rank calls it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint. tensors: of the training state. weights: of the bi-encoder's state dict.

    The tensors are the training's own, or copies that only the thread beside it uses, with its group.
    """

    encoder: BiEncoder
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    progress: state.Progress
    export: Export
    device: torch.device
    group: ProcessGroup | None = None

    @classmethod
    def of(
        cls,
        parallel: Parallel,
        optimizer: torch.optim.AdamW,
        progress: state.Progress,
        *,
        export: Export,
        beside: Beside | None = None,
    ) -> Contents:
        """Of a training as it stands; copied where it is to be written beside the training."""
        tensors: dict[str, Tensor] = state.tensors(parallel.model, optimizer, progress.step)
        weights: dict[str, Tensor] = parallel.encoder.state_dict()
        if beside is None:
            return cls(parallel.encoder, tensors, weights, progress, export, parallel.device)
        tensors, weights = beside.copies(tensors, weights)
        return cls(parallel.encoder, tensors, weights, progress, export, torch.device("cpu"), beside.group)

    @torch.no_grad()
    def write(self, folder: str) -> None:
        """This rank's part, into a local folder: of the state, and on rank 0 the model."""
        state.save(storage.join(folder, STATE), self.tensors, self.progress, self.group)
        whole = self._whole()
        failed: Exception | None = None
        if world()[0] == 0:
            try:
                self.export(self.encoder, storage.join(folder, CONSOLIDATED), whole)
            except Exception as error:  # raised below, once the other ranks, which wait in the gathers, know
                failed = error
        for _ in whole:  # to the end, as each is gathered from all ranks
            pass
        flag = torch.tensor([float(failed is not None)], device=self.device)
        if not max_over_ranks(flag, self.group).item():
            return
        raise failed if failed is not None else RaycurateError("rank 0 could not write the model", where=folder)

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """The weights one by one, each gathered from all ranks as it comes; every rank must read to the end."""
        from torch.distributed.tensor import DTensor

        for name, held in self.weights.items():
            if not isinstance(held, DTensor):
                yield name, held
                continue
            here: Any = held.to(self.device)  # offloaded shards too are gathered on the device
            yield name, here.full_tensor()


class Interim(IntEnum):
    """Whether a checkpoint is to be made out of turn: one that serves to go on from, and is not measured."""

    NO = 0
    DUE = 1
    """The last one is old enough."""
    AT_ONCE = 2
    """The workers may end any moment: the training waits until it is whole."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is to be. interim: made out of turn, and not measured."""

    epoch: int
    step: int
    metrics: dict[str, float]
    interim: bool = False

    @property
    def name(self) -> str:
        return checkpoint_name(self.epoch, self.step)


@dataclass(frozen=True)
class Maker:
    """Makes checkpoints in a store, all ranks together.

    run: name of the training, written into their records. keep: which stay. measured_later: all models stay until the
    training has ended, and only the states of older ones go. group: what the ranks meet by. origin: what the models'
    cards say; None for no cards.
    """

    store: CheckpointStore
    run: str
    keep: Keep
    measured_later: bool = False
    group: ProcessGroup | None = None
    origin: Origin | None = None

    def make(self, saved: Saved, write: Write) -> None:
        """Make a checkpoint of what all ranks write; returns when it is whole.

        Raises:
            RaycurateError: the storage is full or cannot be written; on every rank.
        """
        first = world()[0] == 0
        target = self.store.path(saved.name)
        together(lambda: self.store.clear(saved.name) if first else None, target, self.group)
        together(lambda: _write_at(target, write), target, self.group)
        together(lambda: self._commit(saved) if first else None, target, self.group)

    def _commit(self, saved: Saved) -> None:
        made = self.store.commit(saved.epoch, saved.step, saved.metrics, self.run, interim=saved.interim)
        if self.origin is not None:
            write_card(self.store, made, self.origin)
        if self.measured_later:
            self.store.drop_states(self.keep)
        else:
            self.store.prune(self.keep)


def together(work: Callable[[], object], target: str, group: ProcessGroup | None = None) -> None:
    """Run `work` on every rank, for the checkpoint at `target`, and go on when all have ended.

    Raises:
        RaycurateError, RuntimeError: it failed on some rank; on every rank.
    """
    failed: Exception | None = None
    try:
        with _explained(target):
            work()
    except Exception as error:
        failed = error
    if world()[1] > 1:
        own = failed if failed is None or isinstance(failed, RaycurateError) else RuntimeError(repr(failed))
        everywhere: list[Exception | None] = [None] * world()[1]
        dist.all_gather_object(everywhere, own, group=group)
        failed = failed or next((error for error in everywhere if error is not None), None)
    if failed is not None:
        raise failed


def _write_at(target: str, write: Write) -> None:
    """Straight to its place where that is a folder; else through a local one, each rank its own files."""
    if not storage.is_remote(target):
        write(target)
        return
    with tempfile.TemporaryDirectory(prefix="raycurate-checkpoint-") as folder:
        write(folder)
        upload(folder, target)


def upload(folder: str, target: str) -> None:
    """Copy the files of a local folder to an object store, in chunks, keeping what is there of other ranks."""
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        storage.copy_file(str(path), storage.join(target, *path.relative_to(folder).parts))


@contextmanager
def _explained(target: str) -> Iterator[None]:
    """Errors of the storage as the user's to put right, also those that torch and safetensors made of them."""
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except OSError as error:
        raise _unwritable(target, error) from error
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise _unwritable(target, OSError(int(number[1]), str(error))) from error
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
