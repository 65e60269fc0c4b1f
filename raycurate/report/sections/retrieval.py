"""Retrieval: metrics of each system with their intervals, verdicts, and the questions that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.evaluation import evaluation_of, with_interval
from raycurate.report.html import (
    Card,
    Html,
    Section,
    badge,
    card,
    counted,
    cut,
    details,
    element,
    file_size,
    grid,
    number,
    paragraph,
    signed,
    table,
)
from raycurate.report.sampling import parquet_rows, read_json
from raycurate.retrieval.results import CHANGES, PER_QUERY, Evaluation, Pair, usual_name

_SHOWN = ("NDCG@10", "Recall@10", "Recall@100", "MRR@10", "MAP@10", "P@10", "NDCG@1")
_CHARTED = 3  # metrics
_DIFFERENCES = 10  # comparisons in one chart
_CHANGED = 3  # comparisons that are shown question by question
_SAME = 1e-9
_PER_QUERY_ROWS = 2_000_000
_CHANGES = 6  # questions shown of those that gained, and of those that lost
_VERDICTS = {"improved": "good", "worse": "bad"}


def section(context: Context) -> Section | None:
    """None where nothing was evaluated."""
    found = evaluation_of(context.run)
    if found is None or not found.systems:
        return None
    cards = [
        *_interval_cards(found),
        *_difference_cards(found),
        *_change_cards(found),
        _metrics_card(found),
        *_comparison_card(found),
        *_drift_card(found),
        *_examples_cards(found),
    ]
    return Section("retrieval", "Retrieval", _lead(found), grid(*cards))


def _lead(found: Evaluation) -> Html:
    about = found.metadata.get("collection") or {}
    name, split = about.get("name", "the collection"), about.get("split", "test")
    grades = ", in grades" if about.get("graded") else ""
    says = [
        f"{about.get('queries', 0):,} questions of {name} ({split}) were searched in {about.get('documents', 0):,} "
        f"documents; {about.get('judgements', 0):,} judgements say which are right{grades}. Every metric lies between "
        "0 and 1, and more is better: nDCG@10 is 1 where the right documents come first, recall@10 where all of them "
        "are among the first ten. A question that a system did not answer counts as 0.",
    ]
    if found.metadata.get("ignore_identical_ids"):
        says.append(" A document with the id of the question is not counted as found.")
    missing = found.metadata.get("missing") or {}
    left = [element("p", f"Left out: {name}, {reason}.") for name, reason in missing.items()]
    return Html.join_all([paragraph("".join(says)), *left])


# --- systems --------------------------------------------------------------------------------------


def _metrics_shown(found: Evaluation) -> list[str]:
    """The primary metric and the usual ones, as far as there are any."""
    names = dict.fromkeys([found.primary, *_SHOWN])
    return [name for name in names if any(name in metrics for metrics in found.systems.values())]


def _interval_cards(found: Evaluation) -> list[Card]:
    """A chart for each of the first metrics."""
    cards = []
    for metric in _metrics_shown(found)[:_CHARTED]:
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
        cards.append(card(f"{usual_name(metric)} by system", charts.intervals(words, rows)))
    return cards


def _with_interval(system: str, value: float, low: float | None, high: float | None) -> str:
    return f"{system} {value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _metrics_card(found: Evaluation) -> Card:
    k_values = [int(k) for k in found.metadata.get("k_values") or (1, 5, 10, 100)]
    names = _metrics_shown(found)
    about: Mapping[str, Mapping[str, Any]] = found.metadata.get("systems") or {}

    def cells(system: str, metrics: Sequence[str]) -> list[str]:
        values_of = [found.metric(system, m) for m in metrics]
        return ["" if v is None else f"{v:.4f}" for v in values_of]

    costs = {name: [of(about.get(system, {})) for system in found.systems] for name, of in _COSTS.items()}
    costs = {name: column for name, column in costs.items() if any(column)}
    rows = [
        [system, _kind(about.get(system, {})), *cells(system, names), *(column[place] for column in costs.values())]
        for place, system in enumerate(found.systems)
    ]
    caption = "Means over all judged questions; seconds of embedding and search, with what was cached left out."
    head = ["System", "Kind", *map(usual_name, names), *costs]
    whole = table(caption, head, rows, text_columns=(0, 1), stacked=True)
    families = {"NDCG": "NDCG@", "MAP": "MAP@", "Recall": "Recall@", "Precision": "P@", "MRR": "MRR@"}
    full = [
        [system, family, *cells(system, [f"{begin}{k}" for k in k_values])]
        for family, begin in families.items()
        for system in found.systems
    ]
    title = "Every metric at every k"
    every = table(title, ["System", "Metric", *(f"@{k}" for k in k_values)], full, text_columns=(0, 1))
    named = [[name, cut(str(about[name]["model"]))] for name in found.systems if about.get(name, {}).get("model")]
    models = (
        [details("Models", table("The model of each system.", ["System", "Model"], named, text_columns=(0, 1)))]
        if named
        else []
    )
    return card("All systems", whole, *models, details(title, every), wide=True)


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
"""Columns that are shown where a system has said something of it."""


# --- comparisons ----------------------------------------------------------------------------------


def _difference_cards(found: Evaluation) -> list[Card]:
    compared = found.told()[:_DIFFERENCES]
    if not compared:
        return []
    metric = usual_name(found.primary)
    rows = [(f"{c.system} − {c.against}", c.difference, c.low, c.high) for c in compared]
    listed = "; ".join(f"{c.system} against {c.against} {with_interval(c)}: {c.verdict}" for c in compared)
    says = f"{listed}. Where the interval does not hold 0, chance alone is an unlikely reason."
    title = f"Differences in {metric} with their 95% intervals"
    words = charts.Words("differences", title, says, x=f"difference in {metric}")
    return [card(f"Differences in {metric}", charts.intervals(words, rows, zero=True))]


_COMPARED = ("Comparison", "Verdict", "Difference", "95% interval", "p (Holm)", "Wins / ties / losses", "In words")


def _comparison_card(found: Evaluation) -> list[Card]:
    """What one asks first; every other pair on request."""
    if not found.pairs:
        return []
    told = found.told()
    rest = [c for c in found.pairs if c not in told]
    caption = (
        f"In {usual_name(found.primary)}. Intervals by a paired bootstrap over {told[0].units:,} {told[0].unit}; p of "
        "a sign-flip randomisation test, corrected for the number of comparisons."
    )

    def compared(title: str, pairs: Sequence[Pair]) -> Html:
        return table(title, _COMPARED, map(_comparison_row, pairs), text_columns=(0, 1, 6), stacked=True)

    parts = [compared(caption, told)]
    if rest:
        parts.append(details(f"The other pairs ({len(rest)})", compared("All other pairs of systems", rest)))
    return [card("Comparisons", *parts, wide=True)]


def _comparison_row(c: Pair) -> list[str]:
    p = "" if c.p_holm is None else ("< 0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}")
    return [
        f"{c.system} against {c.against}",
        verdict(c),
        signed(c.difference),
        f"{signed(c.low, 3)} to {signed(c.high, 3)}",
        p,
        f"{c.wins:,} / {c.ties:,} / {c.losses:,}",
        c.says,
    ]


def verdict(compared: Pair) -> Html:
    """The verdict as a badge."""
    return badge(compared.verdict, _VERDICTS.get(compared.verdict, "neutral"))


def _drift_card(found: Evaluation) -> list[Card]:
    """Systems that are to find what another finds: those metrics that do not, or the one that differs most."""
    drift = found.metadata.get("drift") or []
    if not drift:
        return []
    chosen: list[Mapping[str, Any]] = []
    for pair in dict.fromkeys((d["system"], d["against"]) for d in drift):
        mine = [d for d in drift if (d["system"], d["against"]) == pair]
        chosen += [d for d in mine if not d["ok"]] or [max(mine, key=_of_tolerance)]
    caption = (
        "Whether a system still finds what the one finds that it was made from. Shown are the metrics that drifted, "
        "of a system without any the one that differs most."
    )
    parts = [_drift_table(caption, chosen)]
    if len(drift) > len(chosen):
        parts.append(details(f"Every metric ({len(drift)})", _drift_table("Every metric", drift)))
    return [card("Drift", *parts, wide=True)]


def _of_tolerance(drift: Mapping[str, Any]) -> float:
    return abs(float(drift["difference"])) / max(float(drift["tolerance"]), 1e-12)


def _drift_table(caption: str, drift: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [
            f"{d['system']} against {d['against']}",
            badge("within", "good") if d["ok"] else badge("drifted", "bad"),
            usual_name(str(d["metric"])),
            signed(float(d["difference"])),
            f"{float(d['tolerance']):g}",
        ]
        for d in drift
    ]
    head = ["Comparison", "Verdict", "Metric", "Difference", "Tolerance"]
    return table(caption, head, rows, text_columns=(0, 1, 2), stacked=True)


# --- questions ------------------------------------------------------------------------------------


def _change_cards(found: Evaluation) -> list[Card]:
    """How each question changed, one card a comparison, the first few."""
    path = storage.join(found.folder, PER_QUERY)
    compared = found.told()[:_CHANGED]
    if not compared or not storage.exists(path):
        return []
    rows, whole = parquet_rows([path], ["system", "query_id", found.primary], _PER_QUERY_ROWS)
    if rows is None or not whole:
        return []
    metric = usual_name(found.primary)
    cards = []
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
        named = f"Question by question: {c.system} against {c.against}"
        cards.append(card(named, charts.differences(words, numbers)))
    return cards


def _paired(rows: pa.Table, system: str, against: str) -> np.ndarray:
    """The third column of one system's rows minus that of another's, for the queries that both have."""
    names, ids, scores = (column.to_pylist() for column in rows.columns)
    of: dict[str, dict[str, float]] = {system: {}, against: {}}
    for name, query, score in zip(names, ids, scores, strict=True):
        if name in of:
            of[name][query] = score
    return np.array([of[system][query] - of[against][query] for query in of[system] if query in of[against]])


def _examples_cards(found: Evaluation) -> list[Card]:
    """The questions that changed most, with the documents found before and after."""
    path = storage.join(found.folder, CHANGES)
    if not storage.exists(path):
        return []
    changes = sorted(read_json(path), key=lambda change: -float(change["difference"]))
    gains = [c for c in changes if float(c["difference"]) > 0][:_CHANGES]
    losses = [c for c in reversed(changes) if float(c["difference"]) < 0][:_CHANGES]
    cards = []
    for title, chosen in (("Questions that gained most", gains), ("Questions that lost most", losses)):
        if chosen:
            cards.append(card(title, *(_change(c, usual_name(found.primary)) for c in chosen), wide=True))
    return cards


def _change(change: Mapping[str, Any], metric: str) -> Html:
    values = f"{float(change['from']):.2f} → {float(change['to']):.2f}"
    head = f"{metric} {values}, {change['against']} → {change['system']}"
    return element(
        "details",
        element("summary", element("strong", cut(str(change["question"]), 200)), " ", head),
        element(
            "div",
            _hits(f"Found by {change['against']}", change.get("before") or []),
            _hits(f"Found by {change['system']}", change.get("after") or []),
            class_="pair",
        ),
    )


def _hits(title: str, hits: Sequence[Mapping[str, Any]]) -> Html:
    items = []
    for hit in hits:
        relevant = float(hit.get("relevant") or 0) > 0
        name = cut(str(hit.get("title") or hit.get("id") or ""), 120)
        says = [element("span", name, class_="name"), " ", badge("relevant", "good") if relevant else ""]
        items.append(element("li", *says, element("div", cut(str(hit.get("text") or "")), class_="text")))
    found = element("ol", *items, class_="hits") if items else element("p", "Nothing.", class_="note")
    return element("div", element("h4", title), found, class_="quote")
