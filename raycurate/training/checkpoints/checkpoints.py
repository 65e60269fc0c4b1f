"""The checkpoints of a training, on any storage: which are whole, the latest, the best, which are kept.

    checkpoints/epoch_E_step_S/{state/, model/consolidated/, checkpoint.json}   LATEST   BEST

Object stores have no links and no atomic move of a folder, so a checkpoint is whole when its `checkpoint.json`,
written after all ranks' files are there, lists files that exist with the sizes it says. `LATEST` and `BEST` are
one-line files that name a folder, for people and other programs; what a training resumes from is the newest whole
folder, so a kill between two writes costs nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.training.checkpoints.options import Keep

CHECKPOINTS = "checkpoints"
"""The folder of them in a training's output."""
RECORD = "checkpoint.json"
LATEST = "LATEST"
BEST = "BEST"
POINTER = "checkpoint.txt"
"""In what Ray Train is told of: the file that names the checkpoint."""
STATE = "state"
CONSOLIDATED = "model/consolidated"
CARD = f"{CONSOLIDATED}/README.md"
"""Of a checkpoint; not among its record's files, as it may be written anew when more was measured."""
_NAME = re.compile(r"epoch_(\d+)_step_(\d+)")
_SMALLER_IS_BETTER = ("loss", "perplexity")


def model_in(output: str, checkpoint: str) -> str:
    """The model of one of the checkpoints in a training's output, as other programs load it."""
    return storage.join(output, CHECKPOINTS, checkpoint, CONSOLIDATED)


class Checkpoint(BaseModel):
    """The record of one checkpoint: its epoch and its step, counted from the training's beginning; the training that
    made it; what was measured; a size for each path inside the folder. interim: made out of turn, because a machine was
    to be taken away or the last was old: it serves to go on from until the next one is whole, and is none of those to
    choose from."""

    model_config = ConfigDict(extra="ignore")

    epoch: int
    step: int
    run: str
    metrics: dict[str, float]
    files: dict[str, int]
    interim: bool = False

    @property
    def name(self) -> str:
        return checkpoint_name(self.epoch, self.step)


def checkpoint_name(epoch: int, step: int) -> str:
    return f"epoch_{epoch}_step_{step}"


def better_when(metric: str) -> Literal["lower", "higher"]:
    """Which way a metric is good, by its name."""
    return "lower" if any(word in metric.lower() for word in _SMALLER_IS_BETTER) else "higher"


class CheckpointStore:
    """The folder of a training's checkpoints.

    Args:
        folder: OUT/checkpoints, local or a URI.
    """

    def __init__(self, folder: str) -> None:
        self.folder = storage.normalise(folder)

    def path(self, name: str) -> str:
        return storage.join(self.folder, name)

    def all(self) -> list[Checkpoint]:
        """The whole checkpoints, the oldest first."""
        return [found for name in self._names() if (found := self._whole(name)) is not None]

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        return next((found for name in reversed(self._names()) if (found := self._whole(name)) is not None), None)

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint of this name, if it is whole."""
        return self._whole(name) if _NAME.fullmatch(name) else None

    def clear(self, name: str) -> None:
        """Remove what lies under this name, its record first, so that half of it never looks whole."""
        storage.delete(storage.join(self.path(name), RECORD))
        storage.delete(self.path(name))

    def commit(
        self, epoch: int, step: int, metrics: dict[str, float], run: str, *, interim: bool = False
    ) -> Checkpoint:
        """Declare the files that lie under this place's name a whole checkpoint, and point LATEST at it.

        To be called once, after every rank's files are there.

        Raises:
            InputError: there are none.
        """
        name = checkpoint_name(epoch, step)
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        files = {path: size for path, size in self._sizes(name).items() if path != CARD}
        made = Checkpoint(epoch=epoch, step=step, run=run, metrics=finite, files=files, interim=interim)
        self._write(made)
        self._point(LATEST, name)
        return made

    def add_metrics(self, name: str, metrics: dict[str, float]) -> Checkpoint:
        """Put what was measured afterwards into the record of a whole checkpoint.

        Raises:
            InputError: it is not whole.
        """
        found = self._whole(name)
        if found is None:
            raise InputError("this checkpoint is not whole", where=self.path(name))
        changed = found.model_copy(update={"metrics": found.metrics | metrics})
        self._write(changed)
        return changed

    def prune(self, keep: Keep) -> list[str]:
        """Delete all but the checkpoints that `keep` names, point BEST at the best of them; names of the deleted.

        A checkpoint without the metric counts as the worst. Of interim ones only the latest of all stays.
        """
        found = self.all()
        measured = [c for c in found if not c.interim]
        ranked = _ranked(measured, keep.metric)
        wanted = {c.name for c in [*measured[-keep.keep_last :], *ranked[: keep.keep_best], *found[-1:]]}
        if ranked:
            self._point(BEST, next(c.name for c in ranked if c.name in wanted))
        deleted = [c.name for c in found if c.name not in wanted]
        for name in deleted:
            self.clear(name)
        return deleted

    def drop_states(self, keep: Keep) -> None:
        """Delete the state of all but the latest checkpoints, whose models stay: they are still to be measured.

        Of interim ones only the latest of all stays.
        """
        found = self.all()
        for checkpoint in found[:-1]:
            if checkpoint.interim:
                self.clear(checkpoint.name)
        for checkpoint in [c for c in found if not c.interim][: -keep.keep_last]:
            models = {path: size for path, size in checkpoint.files.items() if not path.startswith(f"{STATE}/")}
            if len(models) < len(checkpoint.files):
                self._write(checkpoint.model_copy(update={"files": models}))
                storage.delete(storage.join(self.path(checkpoint.name), STATE))

    def discard_partial(self) -> list[str]:
        """Delete what a killed training left of checkpoints that are not whole; the names."""
        partial = [name for name in self._names() if self._whole(name) is None]
        for name in partial:
            self.clear(name)
        return partial

    def choose_best(self, metric: str | None) -> Checkpoint:
        """Point BEST at the best whole checkpoint by `metric`, the last when that is None.

        Raises:
            InputError: there is no checkpoint, or one without the metric.
        """
        found = [c for c in self.all() if not c.interim]
        if not found:
            raise InputError("there is no whole checkpoint", where=self.folder)
        missing = [c.name for c in found if metric is not None and metric not in c.metrics]
        if missing:
            raise InputError(
                f"{', '.join(missing)} of {len(found)} checkpoints has no value of '{metric}', so none is the best",
                where=self.folder,
                fix=f"Choose another best_metric; these were measured: {', '.join(sorted(_measured(found))) or 'none'}",
            )
        best = _ranked(found, metric)[0] if metric is not None else found[-1]
        self._point(BEST, best.name)
        return best

    def best(self) -> Checkpoint | None:
        """What BEST names, if it is whole."""
        return self._pointed(BEST)

    def _pointed(self, pointer: str) -> Checkpoint | None:
        path = storage.join(self.folder, pointer)
        return self._whole(storage.read_text(path).strip()) if storage.exists(path) else None

    def _point(self, pointer: str, name: str) -> None:
        storage.write_text(storage.join(self.folder, pointer), name + "\n")

    def _write(self, checkpoint: Checkpoint) -> None:
        path = storage.join(self.path(checkpoint.name), RECORD)
        storage.write_text(path, checkpoint.model_dump_json(indent=2) + "\n")

    def _names(self) -> list[str]:
        """Folders of checkpoints, whole or not, by step."""
        if not storage.exists(self.folder):
            return []
        found, inner = storage.filesystem(self.folder)
        from pyarrow.fs import FileSelector

        names = [i.base_name for i in found.get_file_info(FileSelector(inner))]
        places = sorted((int(m[2]), int(m[1])) for name in names if (m := _NAME.fullmatch(name)))
        return [checkpoint_name(epoch, step) for step, epoch in places]

    def _whole(self, name: str) -> Checkpoint | None:
        path = storage.join(self.path(name), RECORD)
        if not storage.exists(path):
            return None
        try:
            made = Checkpoint.model_validate(json.loads(storage.read_text(path)))
        except (ValueError, ValidationError) as error:
            raise InputError(f"this is no record of a checkpoint ({error})", where=path) from error
        sizes = self._sizes(name)
        return made if all(sizes.get(file) == size for file, size in made.files.items()) else None

    def _sizes(self, name: str) -> dict[str, int]:
        root = self.path(name)
        return {
            e.path[len(root) + 1 :]: e.size for e in storage.list_files(root) if e.path != storage.join(root, RECORD)
        }


def _ranked(found: list[Checkpoint], metric: str | None) -> list[Checkpoint]:
    """The best first; of equals the later one; without a metric the latest first."""
    if metric is None:
        return found[::-1]
    sign = 1 if better_when(metric) == "lower" else -1
    return sorted(found, key=lambda c: (sign * c.metrics.get(metric, sign * math.inf), -c.step))


def _measured(found: Iterable[Checkpoint]) -> set[str]:
    return {name for c in found for name in c.metrics}
