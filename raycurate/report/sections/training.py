"""The training: its curves, and the checkpoints against the model it started from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.report import charts
from raycurate.report.charts import Chart
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import Run, StageOutput
from raycurate.report.sampling import read_json
from raycurate.report.text import counted

_LOG_LINES = 100_000  # that are read of a log
_POINTS = 500  # of a curve
_SMOOTH = 0.9  # weight of what went before, in the exponential mean of the loss
_DEV = {
    "dev_ndcg10": "nDCG@10",
    "dev_recall10": "recall@10",
    "dev_recall100": "recall@100",
    "dev_mrr10": "MRR@10",
}
_VAL = {"val_loss": "loss", "val_acc1": "accuracy at 1", "val_mrr": "MRR"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with what was measured of it."""

    name: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Training:
    """What a training has written, ended or not.

    Attributes:
        rows: of train.jsonl, in order; numbers by name, `step` among them.
        best: name of the best checkpoint, by `metric`; "" while it is not chosen.
        base: dev metrics of the model before.
    """

    output: StageOutput
    rows: list[dict[str, Any]]
    checkpoints: list[Checkpoint]
    best: str
    metric: str
    base: dict[str, float]


def section(context: Context) -> Section | None:
    """None where no training has begun."""
    found = _read(context.run)
    if found is None:
        return None
    output = found.output
    return make_section(
        "training",
        "Training",
        output=output,
        seconds=output.manifest.timings.get("train") if output.manifest else None,
        best=found.best,
        metric=found.metric,
        last_step=max((int(row["step"]) for row in found.rows), default=0),
        loss=_loss_chart(found),
        dev=_dev(found),
        curves={**_validation_charts(found), **_curve_charts(found)},
    )


def _read(run: Run) -> Training | None:
    output = run.of("finetune") or next((o for o in run.outputs if o.stage == "finetune"), None)
    if output is None:
        return None
    log = output.path("train.jsonl")
    rows = _log_rows(log) if storage.exists(log) else []
    if not rows and not output.whole:
        return None
    options = output.options
    return Training(
        output,
        rows,
        _checkpoints(output),
        str(options.get("best") or ""),
        str(options.get("metric") or ""),
        dict(options.get("base_metrics") or {}),
    )


def _log_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a log, validations all, of a very long one's steps every n-th."""
    lines = storage.read_text(path).split("\n")[:-1]  # what follows the last line's end is being written right now
    every = -(-len(lines) // _LOG_LINES)
    return [_row(line, path) for place, line in enumerate(lines) if place % max(1, every) == 0 or '"val_' in line]


def _row(line: str, path: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"a line of it is not JSON ({error})", where=path) from error
    return found


def _checkpoints(output: StageOutput) -> list[Checkpoint]:
    """Those that are still there and list what was measured, by step."""
    found = []
    for path in output.files("checkpoints/", "/checkpoint.json"):
        said = read_json(path)
        numbers = {k: float(v) for k, v in (said.get("metrics") or {}).items() if isinstance(v, int | float)}
        found.append(Checkpoint(path.split("/")[-2], int(said["step"]), numbers))
    return sorted(found, key=lambda c: c.step)


def _series(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values that are numbers."""
    kept = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return np.array([s for s, _ in kept], float), np.array([v for _, v in kept], float)


def _thinned(steps: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_POINTS` points, each the mean of its neighbours'."""
    if len(steps) <= _POINTS:
        return steps, numbers
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return np.array([steps[p].mean() for p in parts]), np.array([numbers[p].mean() for p in parts])


def _loss_chart(found: Training) -> Chart | None:
    """None where no step has a loss."""
    steps, losses = _series(found.rows, "loss")
    if not len(steps):
        return None
    smooth = np.empty_like(losses)
    mean = 0.0
    for place, loss in enumerate(losses):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        smooth[place] = mean / (1 - _SMOOTH ** (place + 1))  # without the pull of the first value's zero
    tenth = max(1, len(losses) // 10)
    skipped = sum(1 for row in found.rows if "loss" in row and row["loss"] is None)
    says = (
        f"From {losses[:tenth].mean():.3f} (mean of the first tenth of the steps) to {losses[-tenth:].mean():.3f} "
        "(of the last). Faint: every step; strong: their running mean."
        + (f" {counted(skipped, 'step')} had no finite loss." if skipped else "")
    )
    words = charts.Words("loss", "Training loss by step", says, x="step", y="loss")
    series = [
        charts.Line("every step", *_thinned(steps, losses), faint=True),
        charts.Line("running mean", *_thinned(steps, smooth)),
    ]
    return charts.lines(words, series)


@dataclass(frozen=True)
class Dev:
    """The dev questions, searched in the whole corpus.

    Attributes:
        metrics: their names, those that were measured.
        rows: (metric, before training, of the best checkpoint).
        checkpoints: (step, its metrics) of each.
        chart: of the first metric; None where there is one value only.
    """

    metrics: list[str]
    rows: list[tuple[str, float | None, float | None]]
    checkpoints: list[tuple[int, list[float | None]]]
    chart: Chart | None


def _dev(found: Training) -> Dev | None:
    """None where no checkpoint was measured by dev questions."""
    keys = [key for key in _DEV if any(key in c.metrics for c in found.checkpoints)]
    if not keys:
        return None
    best = next((c for c in found.checkpoints if c.name == found.best), found.checkpoints[-1])
    measured = [c for c in found.checkpoints if keys[0] in c.metrics]
    drawn = measured and (len(measured) > 1 or keys[0] in found.base)
    return Dev(
        [_DEV[key] for key in keys],
        [(_DEV[key], found.base.get(key), best.metrics.get(key)) for key in keys],
        [(c.step, [c.metrics.get(key) for key in keys]) for c in found.checkpoints],
        _dev_chart(found, keys[0], measured, best) if drawn else None,
    )


def _dev_chart(found: Training, name: str, shown: Sequence[Checkpoint], best: Checkpoint) -> Chart:
    before = found.base.get(name)
    steps = [c.step for c in shown]
    measured = [c.metrics[name] for c in shown]
    says = f"{_DEV[name]} is {best.metrics[name]:.4f} at the best checkpoint, step {best.step:,}" + (
        f", and was {before:.4f} before training." if before is not None else "."
    )
    words = charts.Words("dev", f"{_DEV[name]} on the dev questions by checkpoint", says, x="step", y=_DEV[name])
    if before is not None:
        steps, measured = [0, *steps], [before, *measured]
    line = charts.Line(_DEV[name], steps, measured, dots=True)
    levels = [charts.Mark(before, "before")] if before is not None else []
    return charts.lines(words, [line], levels=levels, star=(best.step, best.metrics[name]))


def _validation_charts(found: Training) -> dict[str, Chart]:
    """Title -> chart."""
    drawn = {}
    for name, said in _VAL.items():
        steps, numbers = _series(found.rows, name)
        if not len(steps):
            continue
        place = int(numbers.argmin() if name == "val_loss" else numbers.argmax())
        says = f"{counted(len(steps), 'validation')}; best {numbers[place]:.4f} at step {steps[place]:,.0f}."
        words = charts.Words(name, f"Validation {said} by step", says, x="step", y=f"validation {said}")
        dots = len(steps) <= 40
        line = charts.Line(said, *_thinned(steps, numbers), dots=dots)
        drawn[f"Validation {said}"] = charts.lines(words, [line], star=(float(steps[place]), float(numbers[place])))
    return drawn


_CURVES = {
    "learning_rate": ("Learning rate", "", "At most {high}, {last} at the end."),
    "grad_norm": ("Gradient norm", "before clipping", "For half of the steps below {middle}, at most {high}."),
    "tokens_per_s": ("Speed", "tokens a second", "Half of the steps went at {middle} tokens a second or more."),
}
"""Name in the log -> title, label of the axis, what is said of it."""


def _curve_charts(found: Training) -> dict[str, Chart]:
    """Title -> chart."""
    drawn = {}
    for name, (title, axis, pattern) in _CURVES.items():
        steps, numbers = _series(found.rows, name)
        if len(steps) < 2:
            continue
        said = {"high": numbers.max(), "last": numbers[-1], "middle": np.median(numbers)}
        says = pattern.format(**{key: charts.short(float(value)) for key, value in said.items()})
        limit = found.output.options.get("max_grad_norm")
        if name == "grad_norm" and limit:
            says += f" Clipping to {limit:g} changed {float(np.mean(numbers > limit)):.0%} of the steps."
        words = charts.Words(name.replace("_", "-"), f"{title} by step", says, x="step", y=axis)
        drawn[title] = charts.lines(words, [charts.Line(title, *_thinned(steps, numbers))])
    return drawn
