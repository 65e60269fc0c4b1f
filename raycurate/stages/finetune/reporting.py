"""What a training tells the outside, from a Ray Train worker, and what the outside tells it.

A checkpoint goes to its final place directly and Ray Train is told of it afterwards, by a folder with one file that
names it: which checkpoints exist is then decided by their own records (checkpoints.py), so the one that was made last
is found again even where the report of it was lost with the controller, and a second run name does not hide it.

Reports are made by the thread that trains, in the order of the checkpoints: Ray Train's own collectives are counted,
and a second thread would upset the count.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raycurate.core.observe import get_logger
from raycurate.training.checkpoints.checkpoints import POINTER
from raycurate.training.checkpoints.writer import Beside, gloo_group
from raycurate.training.checkpoints.writing import Interim, Maker, Saved, Write
from raycurate.training.collectives import max_over_ranks, world

if TYPE_CHECKING:
    from raycurate.training.logs import Logs

_ASK_EVERY_S = float(os.environ.get("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "5"))  # as often as Ray Train itself looks

log = get_logger(__name__)


class RayReporter:
    """The loop's Reporter over Ray Train. Every rank makes one at the same place.

    Args:
        maker: makes the checkpoints.
        logs: what takes the metrics; None on all ranks but the first.
        beside: the thread that writes them; None: they are written within the step.
        interim_s: seconds after a checkpoint from which one is made out of turn; None: only when a node is to go.
    """

    def __init__(
        self, maker: Maker, *, logs: Logs | None, beside: Beside | None = None, interim_s: float | None = None
    ) -> None:
        self.beside = beside
        self._interim_s = math.inf if interim_s is None else interim_s
        self._began = time.monotonic()  # the last checkpoint, or the training
        self._maker, self._logs = maker, logs
        self._group = gloo_group()  # the loop's own: the thread beside it has another
        self._untold: Saved | None = None
        self._asked = time.monotonic()
        self._leaving: list[str] = []

    def log(self, metrics: dict[str, float]) -> None:
        """Rank 0's metrics to the logs."""
        if self._logs is not None:
            self._logs.log(metrics)

    def save(self, saved: Saved, write: Write) -> None:
        """Make a checkpoint of what all ranks write; returns when it is whole, or is being written beside the training.

        Raises:
            RaycurateError: the storage is full or cannot be written, now or for the checkpoint before.
        """
        self.settle()
        self._untold = saved
        self._began = time.monotonic()
        if self.beside is None:
            self._maker.make(saved, write)
            self.settle()
        else:
            self.beside.start(lambda: self._maker.make(saved, write))

    def settle(self) -> None:
        """Wait until the last checkpoint is whole, and tell Ray Train of it.

        Raises:
            RaycurateError: the storage is full or cannot be written.
        """
        saved, self._untold = self._untold, None
        if saved is None:
            return
        if self.beside is not None:
            self.beside.settle()
        self._tell(saved)

    def after_step(self) -> Interim:
        """Settle a checkpoint that is written; whether to make one now, because a node is to go or the last is old.

        Raises:
            RaycurateError: it could not be written.
        """
        over = self.beside is not None and self.beside.over
        first, now = world()[0] == 0, time.monotonic()
        ask = first and now - self._asked >= _ASK_EVERY_S
        old = first and self._untold is None and now - self._began >= self._interim_s
        over, ask, old = self._anywhere(over, ask, old)
        if over:
            self.settle()
        if ask and self._is_leaving():
            return Interim.AT_ONCE
        return Interim.DUE if old else Interim.NO

    def _anywhere(self, *said: bool) -> list[bool]:
        """What any rank says, so that all do the same: each of them waits for the others in what follows."""
        import torch

        return [bool(value) for value in max_over_ranks(torch.tensor(said, dtype=torch.int32), self._group).tolist()]

    def _is_leaving(self) -> bool:
        """Whether Ray says, for the first time, that nodes of this training will be taken away."""
        from ray import train

        self._asked = time.monotonic()
        told = train.get_preemption_info()
        nodes = [] if told is None else told.preempted_node_ids
        new = [node for node in nodes if node not in self._leaving]
        self._leaving += new
        if new and world()[0] == 0:
            log.warning("finetune: %s nodes of this training will be taken away: a checkpoint is made now", len(new))
        return bool(new)

    def _tell(self, saved: Saved) -> None:
        from ray import train

        metrics = {**saved.metrics, "epoch": saved.epoch, "step": saved.step}
        later = train.CheckpointUploadMode.ASYNC
        if world()[0] != 0:
            train.report(metrics, checkpoint_upload_mode=later)
            return
        folder = tempfile.mkdtemp(prefix="raycurate-report-")  # Ray Train deletes it
        Path(folder, POINTER).write_text(f"{saved.name}\n", encoding="utf-8")
        made = train.Checkpoint.from_directory(folder)
        measure = self._maker.measured_later and not saved.interim
        train.report(
            metrics,
            checkpoint=made,
            checkpoint_dir_name=saved.name,
            checkpoint_upload_mode=later,
            validation=measure,
        )
