"""Retrieval: metrics of each system with their intervals, verdicts, and the questions that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.report import charts
from raycurate.report.charts import Chart
from raycurate.report.context import Context
from raycurate.report.evaluation import evaluation_of, with_interval
from raycurate.report.rendering import Section, make_section
from raycurate.report.sampling import parquet_rows, read_json
from raycurate.report.text import counted, file_size, number
from raycurate.retrieval.results import CHANGES, PER_QUERY, Evaluation, Pair, usual_name

_SHOWN = ("NDCG@10", "Recall@10", "Recall@100", "MRR@10", "MAP@10", "P@10", "NDCG@1")
_CHARTED = 3  # metrics
_DIFFERENCES = 10  # comparisons in one chart
_CHANGED = 3  # comparisons that are shown question by question
_SAME = 1e-9
_PER_QUERY_ROWS = 2_000_000
_EXAMPLES = 6  # questions shown of those that gained, and of those that lost
_FAMILIES = {"NDCG": "NDCG@", "MAP": "MAP@", "Recall": "Recall@", "Precision": "P@", "MRR": "MRR@"}
_NO_COLLECTION = {
    "name": "the collection",
    "split": "test",
    "queries": 0,
    "documents": 0,
    "judgements": 0,
    "graded": False,
}


def section(context: Context) -> Section | None:
    """None where nothing was evaluated."""
    found = evaluation_of(context.run)
    if found is None or not found.systems:
        return None
    about, metrics = found.metadata, _metrics_shown(found)
    drift, told = about.get("drift") or [], found.told()
    run_as: Mapping[str, Mapping[str, Any]] = about.get("systems") or {}
    cuts = [int(k) for k in about.get("k_values") or (1, 5, 10, 100)]
    costs = _costs(found, run_as)
    gains, losses = _changes(found)
    return make_section(
        "retrieval",
        "Retrieval",
        collection={**_NO_COLLECTION, **(about.get("collection") or {})},
        ignore_identical_ids=about.get("ignore_identical_ids"),
        missing=about.get("missing") or {},
        primary=usual_name(found.primary),
        by_system={usual_name(metric): _system_chart(found, metric) for metric in metrics[:_CHARTED]},
        differences=_difference_chart(found, told[:_DIFFERENCES]),
        by_question=_question_charts(found, told[:_CHANGED]),
        metrics=[usual_name(metric) for metric in metrics],
        costs=costs,
        systems=[_system(found, name, run_as.get(name, {}), metrics, costs) for name in found.systems],
        models={name: str(run_as[name]["model"]) for name in found.systems if run_as.get(name, {}).get("model")},
        cuts=[f"@{k}" for k in cuts],
        every_metric=[
            (system, family, [found.metric(system, f"{begin}{k}") for k in cuts])
            for family, begin in _FAMILIES.items()
            for system in found.systems
        ],
        told=told,
        not_told=[pair for pair in found.pairs if pair not in told],
        drift=drift,
        drift_told=_drift_told(drift),
        gains=gains,
        losses=losses,
    )


# --- systems --------------------------------------------------------------------------------------


def _metrics_shown(found: Evaluation) -> list[str]:
    """The primary metric and the usual ones, as far as there are any."""
    names = dict.fromkeys([found.primary, *_SHOWN])
    return [name for name in names if any(name in metrics for metrics in found.systems.values())]


def _system_chart(found: Evaluation, metric: str) -> Chart:
    rows = []
    for system in found.systems:
        value, interval = found.metric(system, metric), found.interval(system, metric)
        if value is not None:
            rows.append((system, value, *(interval or (None, None))))
    best = max(rows, key=lambda row: row[1])
    listed = "; ".join(_with_interval(*row) for row in rows)
    bars = " Bars: 95% intervals of the mean." if any(row[2] is not None for row in rows) else ""
    says = f"{best[0]} is highest. {listed}.{bars}"
    name = f"system-{metric.lower().replace('@', '-')}"
    words = charts.Words(name, f"{usual_name(metric)} of each system", says, x=usual_name(metric))
    return charts.intervals(words, rows)


def _with_interval(system: str, value: float, low: float | None, high: float | None) -> str:
    return f"{system} {value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


@dataclass(frozen=True)
class System:
    """A row of the table of systems. `means`, `costs`: a value for each column, nothing where it is not known."""

    name: str
    kind: str
    means: list[float | None]
    costs: list[str]


def _system(
    found: Evaluation, name: str, about: Mapping[str, Any], metrics: Sequence[str], costs: Sequence[str]
) -> System:
    return System(
        name, _kind(about), [found.metric(name, metric) for metric in metrics], [_COSTS[cost](about) for cost in costs]
    )


def _costs(found: Evaluation, run_as: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The costs of which some system has said something."""
    return [cost for cost, of in _COSTS.items() if any(of(run_as.get(name, {})) for name in found.systems)]


def _kind(about: Mapping[str, Any]) -> str:
    """What a system is: its kind, and how its vectors are made smaller."""
    kind = str(about.get("kind") or "").replace("_", " ")
    smaller = [f"{about['dimensions']} dimensions"] if about.get("dimensions") else []
    smaller += [str(about["quantization"])] if about.get("quantization", "none") != "none" else []
    return ", ".join([kind, *smaller])


def _seconds(about: Mapping[str, Any]) -> str:
    return "" if about.get("seconds") is None else number(float(about["seconds"]), 1)


def _bytes(about: Mapping[str, Any]) -> str:
    return "" if about.get("bytes_per_document") is None else file_size(float(about["bytes_per_document"]))


_COSTS = {"Seconds": _seconds, "Bytes a document": _bytes}
"""What a system costs, in words; empty where it is not known."""


# --- comparisons ----------------------------------------------------------------------------------


def _difference_chart(found: Evaluation, compared: Sequence[Pair]) -> Chart | None:
    """None where nothing was compared."""
    if not compared:
        return None
    metric = usual_name(found.primary)
    rows = [(f"{c.system} − {c.against}", c.difference, c.low, c.high) for c in compared]
    listed = "; ".join(f"{c.system} against {c.against} {with_interval(c)}: {c.verdict}" for c in compared)
    says = f"{listed}. Where the interval does not hold 0, chance alone is an unlikely reason."
    title = f"Differences in {metric} with their 95% intervals"
    words = charts.Words("differences", title, says, x=f"difference in {metric}")
    return charts.intervals(words, rows, zero=True)


def _drift_told(drift: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each system that must find what another finds the metrics that drifted, or the one that differs most."""
    told: list[Mapping[str, Any]] = []
    for pair in dict.fromkeys((d["system"], d["against"]) for d in drift):
        mine = [d for d in drift if (d["system"], d["against"]) == pair]
        told += [d for d in mine if not d["ok"]] or [max(mine, key=_of_tolerance)]
    return told


def _of_tolerance(drift: Mapping[str, Any]) -> float:
    return abs(float(drift["difference"])) / max(float(drift["tolerance"]), 1e-12)


# --- questions ------------------------------------------------------------------------------------


def _question_charts(found: Evaluation, compared: Sequence[Pair]) -> list[tuple[Pair, Chart]]:
    """How each question changed in a comparison."""
    path = storage.join(found.folder, PER_QUERY)
    if not compared or not storage.exists(path):
        return []
    rows, whole = parquet_rows([path], ["system", "query_id", found.primary], _PER_QUERY_ROWS)
    if rows is None or not whole:
        return []
    metric = usual_name(found.primary)
    drawn = []
    for place, c in enumerate(compared):
        numbers = _paired(rows, c.system, c.against)
        if not len(numbers):
            continue
        gains, losses = int((numbers > _SAME).sum()), int((numbers < -_SAME).sum())
        says = (
            f"Of {counted(len(numbers), 'question')}, {gains:,} are answered better by {c.system} than by {c.against}, "
            f"{losses:,} worse, {len(numbers) - gains - losses:,} the same."
        )
        title = f"Difference in {metric} of each question, {c.system} minus {c.against}"
        words = charts.Words(
            f"changes-{place}", title, says, "questions, largest gain first", f"difference in {metric}"
        )
        drawn.append((c, charts.differences(words, numbers)))
    return drawn


def _paired(rows: pa.Table, system: str, against: str) -> np.ndarray:
    """The third column of one system's rows minus that of another's, for the queries that both have."""
    names, ids, scores = (column.to_pylist() for column in rows.columns)
    of: dict[str, dict[str, float]] = {system: {}, against: {}}
    for name, query, score in zip(names, ids, scores, strict=True):
        if name in of:
            of[name][query] = score
    return np.array([of[system][query] - of[against][query] for query in of[system] if query in of[against]])


@dataclass(frozen=True)
class Hit:
    """A document that was found. `name`: its title, or its id where it has none."""

    name: str
    text: str
    relevant: bool


@dataclass(frozen=True)
class Change:
    """A question that changed, with the documents found before and after."""

    question: str
    system: str
    against: str
    before: float
    after: float
    found_before: list[Hit]
    found_after: list[Hit]


def _changes(found: Evaluation) -> tuple[list[Change], list[Change]]:
    """The questions that gained most, and those that lost most."""
    path = storage.join(found.folder, CHANGES)
    if not storage.exists(path):
        return [], []
    rows = sorted(read_json(path), key=lambda row: -float(row["difference"]))
    gains = [row for row in rows if float(row["difference"]) > 0][:_EXAMPLES]
    losses = [row for row in reversed(rows) if float(row["difference"]) < 0][:_EXAMPLES]
    return [_change(row) for row in gains], [_change(row) for row in losses]


def _change(row: Mapping[str, Any]) -> Change:
    return Change(
        question=str(row["question"]),
        system=str(row["system"]),
        against=str(row["against"]),
        before=float(row["from"]),
        after=float(row["to"]),
        found_before=[_hit(hit) for hit in row.get("before") or []],
        found_after=[_hit(hit) for hit in row.get("after") or []],
    )


def _hit(row: Mapping[str, Any]) -> Hit:
    name = str(row.get("title") or row.get("id") or "")
    return Hit(name, str(row.get("text") or ""), float(row.get("relevant") or 0) > 0)
