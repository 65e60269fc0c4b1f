"""Where the numbers of a training go: a file of lines always, and trackers where they are asked for.

    with open_logs(output, LogOptions(wandb={"project": "search"}), total_steps=900) as logs:
        logs.log({"step": 1, "loss": 2.3, "learning_rate": 1e-6})

One process writes: rank 0. What a tracker needs is looked for when the logs are opened, so that a package or a key that
is missing stops a run before it begins; a tracker that fails later is left behind with a warning, since a training is
worth more than its picture. A run that goes on from a checkpoint goes on in the same file and in the same runs of
its trackers, and what was written after that checkpoint is taken out of the file, for it is written again.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from raycurate.core import storage
from raycurate.core.config import StageConfig, option
from raycurate.core.errors import ConfigError, RaycurateError, require
from raycurate.core.observe import Progress, get_logger
from raycurate.core.redaction import redact

FILE = "train.jsonl"
_RUNS = "trackers.json"  # the ids of the trackers' runs, to go on in them
_TENSORBOARD = "tensorboard"
_REMOTE_EVERY_S = 30.0
_PARAMS = 100  # that MLflow takes at once

_log = get_logger(__name__)


class _Tracker(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MlflowOptions(_Tracker):
    """A run in MLflow."""

    experiment: str = Field("raycurate", min_length=1, description="name of the experiment")
    tracking_uri: str | None = Field(None, description="the server; $MLFLOW_TRACKING_URI by default")
    run_name: str | None = Field(None, description="name of the run; MLflow makes one up by default")


class WandbOptions(_Tracker):
    """A run in Weights & Biases; its key is read from $WANDB_API_KEY or the login on that machine, never from here."""

    project: str = Field(..., min_length=1, description="name of the project")
    entity: str | None = Field(None, description="user or team; the key's own by default")
    name: str | None = Field(None, description="name of the run")
    mode: str | None = Field(None, pattern="^(online|offline)$", description="offline writes to a folder only")


class LogOptions(StageConfig):
    """Which trackers are written to beside `train.jsonl`; none by default."""

    tensorboard: bool | str = option(
        False, "Event files for TensorBoard: in the output, or in the folder that is named.", operational=True
    )
    mlflow: MlflowOptions | None = option(None, "{experiment, tracking_uri, run_name}", operational=True)
    wandb: WandbOptions | None = option(None, "{project, entity, name, mode: online|offline}", operational=True)


class Sink(Protocol):
    """One place that numbers go to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of a step; `metrics` does not hold the step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Send what is held back; `failed` says that the training ended with an error."""
        ...


def open_logs(
    folder: str,
    options: LogOptions | None = None,
    *,
    total_steps: int | None = None,
    first_step: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Logs:
    """The logs of the training whose output is `folder`.

    Args:
        folder: local or remote; train.jsonl and TensorBoard's files lie in it.
        total_steps: at which the progress is complete.
        first_step: steps that are done; 0 begins the file and the trackers' runs anew.
        settings: the run's options, for the trackers; no secrets.

    Raises:
        MissingDependencyError: a tracker's package is not installed.
        ConfigError: TensorBoard's files are to lie in an object store.
        RaycurateError: the file cannot be written, or a tracker refuses the run.
    """
    options = options or LogOptions()
    trackers: dict[str, Sink] = {}
    if options.tensorboard:
        named = options.tensorboard if isinstance(options.tensorboard, str) else storage.join(folder, _TENSORBOARD)
        trackers["TensorBoard"] = _TensorBoard(named, first_step)
    runs = _Runs(folder, first_step)
    if options.mlflow is not None:
        trackers["MLflow"] = _Mlflow(options.mlflow, runs, settings or {})
    if options.wandb is not None:
        trackers["Weights & Biases"] = _Wandb(options.wandb, runs, settings or {})
    return Logs(JsonLines(storage.join(folder, FILE), first_step), trackers, total_steps, first_step)


class Logs:
    """All places at once. Use as a context, or close it: trackers send what they hold back when they are closed."""

    def __init__(self, lines: JsonLines, trackers: dict[str, Sink], total: int | None, first_step: int) -> None:
        self._lines = lines
        self._trackers: dict[str, Sink] = {**trackers, "Ray's metrics": _Gauges()}
        self._step = first_step
        self._progress = Progress("finetune", None if total is None else total - first_step, unit="step")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Write the numbers of one step or validation.

        Args:
            metrics: `step`, counted over the whole training, and any further numbers by name.

        Raises:
            RaycurateError: train.jsonl cannot be written (a full disk).
        """
        step = int(metrics["step"])
        numbers = {name: float(value) for name, value in metrics.items() if name != "step"}
        self._lines.write(step, numbers)
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.write(step, numbers)
            except Exception as error:  # whatever a client library raises, the training goes on
                _log.warning("%s failed (%s: %s): the training goes on without it", name, type(error).__name__, error)
                del self._trackers[name]
        self._show(step, numbers)

    def _show(self, step: int, numbers: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if any(name.startswith(("val_", "dev_")) for name in numbers):
            _log.info("step %d: %s", step, shown)
        else:
            self._progress.label = f"finetune ({shown})"
        if step > self._step:
            self._progress.update(step - self._step)
            self._step = step

    def close(self, *, failed: bool = False) -> None:
        """Write what is held back; a second call does nothing."""
        self._progress.close()
        self._lines.close()
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:
                _log.warning("%s could not be closed (%s: %s)", name, type(error).__name__, error)
        self._trackers = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(failed=kind is not None)


class JsonLines:
    """One JSON object a line: step, time (seconds since 1970) and the numbers; null for what is not finite.

    A local file is appended to. An object cannot be, so it is written whole, every half minute and at the end.

    Raises:
        RaycurateError: it cannot be written.
    """

    def __init__(self, path: str, first_step: int) -> None:
        self._path = path
        kept = _lines_until(path, first_step) if first_step else []
        self._text = "".join(f"{line}\n" for line in kept)
        self._written = time.monotonic()
        self._stream: Any = None
        try:
            storage.write_text(path, self._text)
            found, inner = storage.filesystem(path)
            if isinstance(found, pafs.LocalFileSystem):
                self._stream = found.open_append_stream(inner)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n"
        if self._stream is None:
            self._text += line
            if time.monotonic() - self._written >= _REMOTE_EVERY_S:
                self._upload()
            return
        try:
            self._stream.write(line.encode())
            self._stream.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Bring the file up to date."""
        if self._stream is None:
            self._upload()
        else:
            self._stream.close()

    def _upload(self) -> None:
        """Later lines bring what could not be written now, so a moment without a network is worth a warning only."""
        try:
            storage.write_text(self._path, self._text)
        except RaycurateError as error:
            _log.warning("%s", error)
        self._written = time.monotonic()

    def _unwritable(self, error: OSError) -> RaycurateError:
        return RaycurateError(
            f"it cannot be written ({error})", where=self._path, fix="Make room, or name another output"
        )


def _lines_until(path: str, step: int) -> list[str]:
    """The lines of the file at `path` up to a step, in order; a line that a kill left unfinished is dropped."""
    if not storage.exists(path):
        return []
    kept = []
    for line in storage.read_text(path).splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            _log.warning("%s: dropped a line that is none of ours: %.80s", path, line)
    return kept


class _Runs:
    """The ids of the trackers' runs, in a file of the output."""

    def __init__(self, folder: str, first_step: int) -> None:
        self._path = storage.join(folder, _RUNS)
        known = first_step > 0 and storage.exists(self._path)
        self._ids: dict[str, str] = json.loads(storage.read_text(self._path)) if known else {}

    def get(self, tracker: str) -> str | None:
        return self._ids.get(tracker)

    def keep(self, tracker: str, run_id: str) -> None:
        if self._ids.get(tracker) != run_id:
            self._ids[tracker] = run_id
            storage.write_text(self._path, json.dumps(self._ids))


class _TensorBoard:
    def __init__(self, folder: str, first_step: int) -> None:
        if storage.is_remote(folder):
            raise ConfigError(
                "TensorBoard's event files are appended to, which an object store cannot",
                where=folder,
                fix="Name a local or shared folder: logging.tensorboard=/path",
            )
        writers = require("tensorboardX", "tensorboard", purpose="logging.tensorboard")
        # purge_step hides what an interrupted run wrote after the step that this one goes on from
        self._writer = writers.SummaryWriter(storage.normalise(folder), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _Mlflow:
    def __init__(self, options: MlflowOptions, runs: _Runs, settings: Mapping[str, Any]) -> None:
        tracking = require("mlflow.tracking", "mlflow", purpose="logging.mlflow")
        errors = require("mlflow.exceptions", "mlflow", purpose="logging.mlflow")
        entities = require("mlflow.entities", "mlflow", purpose="logging.mlflow")
        self._metric = entities.Metric
        try:
            self._client = tracking.MlflowClient(options.tracking_uri)
            found = runs.get("mlflow")
            if found is None:
                experiment = self._client.get_experiment_by_name(options.experiment)
                name = experiment.experiment_id if experiment else self._client.create_experiment(options.experiment)
                found = self._client.create_run(name, run_name=options.run_name).info.run_id
                params = [entities.Param(key, str(value)[:500]) for key, value in settings.items()]
                for first in range(0, len(params), _PARAMS):
                    self._client.log_batch(found, params=params[first : first + _PARAMS])
            else:
                self._client.update_run(found, status="RUNNING")
        except errors.MlflowException as error:
            where = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "MLflow's default store"
            raise RaycurateError(
                f"MLflow refuses the run ({error})", where=f"logging.mlflow: {redact(where)}"
            ) from error
        self._run: str = found
        runs.keep("mlflow", self._run)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        values = [self._metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=values)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Wandb:
    def __init__(self, options: WandbOptions, runs: _Runs, settings: Mapping[str, Any]) -> None:
        wandb = require("wandb", "wandb", purpose="logging.wandb")
        values = options.model_dump(exclude_none=True)
        try:
            self._run = wandb.init(
                **values, id=runs.get("wandb"), resume="allow", config=dict(settings), reinit="create_new"
            )
        except wandb.errors.Error as error:
            raise RaycurateError(
                f"Weights & Biases refuses the run ({error})",
                where="logging.wandb",
                fix="Set WANDB_API_KEY where rank 0 runs, or mode=offline",
            ) from error
        # a step axis of our own: W&B's own counter refuses a step that was logged before the run was interrupted
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        runs.keep("wandb", self._run.id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Gauges:
    """Each number as a gauge at Ray's metrics endpoint: ray_raycurate_finetune_loss, ..."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        from ray.util.metrics import Gauge

        for name, value in {"step": float(step), **metrics}.items():
            if name not in self._gauges:
                plain = re.sub(r"[^a-zA-Z0-9_]", "_", name)
                self._gauges[name] = Gauge(f"raycurate_finetune_{plain}", f"{name} of training", tag_keys=("stage",))
            self._gauges[name].set(value, tags={"stage": "finetune"})

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""
