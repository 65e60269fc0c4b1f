"""Systems side by side: their metrics with intervals, every pair compared, and the questions that changed most.

comparison = compare(data, {"base": found, "finetuned": found2}, CompareOptions())
comparison.results()            # eval_results.json
comparison.pairs[0].says        # "finetuned improved nDCG@10 by 0.14 ..."
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.data.corpora.beir import BeirData
from raycurate.retrieval.lexical import ranked
from raycurate.retrieval.metrics import K_VALUES, Metrics, evaluate_hits
from raycurate.retrieval.results import BASE, BM25, FINETUNED, Pair, usual_name
from raycurate.retrieval.retrieve import Retrieved
from raycurate.retrieval.statistics import LEAST_QUERIES, Comparer, holm, units_of, verdict

TOLERANCE, TOLERANCE_EARLY = 0.01, 0.03
"""How far a metric may be from that of the system it must reproduce: from k = 5 on, and below."""

_EARLY = 5
_SHOWN_DOCUMENTS, _SHOWN_CHARACTERS = 3, 300
_SAME = 1e-9  # metrics that differ by less are the same
_SATURATED, _FEW_UNITS = 0.95, 20


@dataclass(frozen=True)
class CompareOptions:
    """k_values: the cuts. ignore_identical_ids: as `evaluate_hits` has it. changes: questions shown that changed most.
    seed: of the draws. same_as: system -> the one whose metrics it must reproduce."""

    k_values: Sequence[int] = K_VALUES
    ignore_identical_ids: bool = True
    changes: int = 20
    seed: int = 0
    same_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What differences are judged by."""
        return "NDCG@10" if 10 in self.k_values else f"NDCG@{max(self.k_values)}"


@dataclass(frozen=True)
class Drift:
    """One metric of a system beside that of the one it must reproduce."""

    system: str
    against: str
    metric: str
    difference: float
    tolerance: float
    ok: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that `raycurate eval` found. `intervals` and `metrics` are by system, in the order of the tables."""

    metrics: dict[str, Metrics]
    intervals: dict[str, dict[str, list[float]]]
    pairs: list[Pair]
    drift: list[Drift]
    changes: list[dict[str, Any]]

    def results(self, **metadata: Any) -> dict[str, Any]:
        """The content of eval_results.json; `metadata` joins `_metadata`."""
        own = {
            "intervals": self.intervals,
            "comparisons": [asdict(pair) for pair in self.pairs],
            "drift": [asdict(one) for one in self.drift],
        }
        scores = {name: found.scores for name, found in self.metrics.items()}
        return {**scores, "_metadata": {"format": 1, **metadata, **own}}

    def per_query(self) -> pa.Table:
        """One row a system and question."""
        tables = [
            found.per_query.add_column(0, "system", pa.array([name] * found.queries, pa.string()))
            for name, found in self.metrics.items()
        ]
        return pa.concat_tables(tables)


def compare(data: BeirData, runs: Mapping[str, Retrieved], options: CompareOptions) -> Comparison:
    """Judge and compare what systems answered."""
    metrics = {
        name: evaluate_hits(
            data.qrels,
            run.query_ids,
            run.document_ids_QK,
            run.scores_QK,
            k_values=options.k_values,
            ignore_identical_ids=options.ignore_identical_ids,
        )
        for name, run in runs.items()
    }
    judged = next(iter(metrics.values())).per_query["query_id"].to_pylist()
    unit, names = sources_of(data, judged)
    comparer = Comparer(units_of(names), options.seed)
    return Comparison(
        metrics,
        {name: _intervals(found, comparer) for name, found in metrics.items()},
        _pairs(metrics, comparer, unit, options.metric),
        _drift(metrics, options),
        _changes(data, runs, metrics, options),
    )


def sources_of(data: BeirData, judged: Sequence[str]) -> tuple[str, list[str]]:
    """("sources", the source files of each judged question) where all are known, else ("queries", their ids)."""
    known: dict[str, str] = {}
    for name, metadata in zip(data.queries["_id"].to_pylist(), data.queries["metadata"].to_pylist(), strict=True):
        files = json.loads(metadata or "{}").get("file_name")
        if files:
            known[name] = json.dumps(sorted(files) if isinstance(files, list) else [files])
    if any(name not in known for name in judged):
        return "queries", list(judged)
    return "sources", [known[name] for name in judged]


def _columns(found: Metrics) -> tuple[list[str], np.ndarray]:
    names = [name for name in found.per_query.column_names if name not in ("query_id", "answered")]
    return names, np.stack([found.per_query[name].to_numpy() for name in names], axis=1)


def _intervals(found: Metrics, comparer: Comparer) -> dict[str, list[float]]:
    names, values_QM = _columns(found)
    return {name: pair.tolist() for name, pair in zip(names, comparer.intervals(values_QM), strict=True)}


def _pairs(metrics: Mapping[str, Metrics], comparer: Comparer, unit: str, metric: str) -> list[Pair]:
    """Every system against every one before it."""
    if len(metrics) < 2:
        return []
    values = {name: found.per_query[metric].to_numpy() for name, found in metrics.items()}
    named = [(system, against) for against, system in combinations(metrics, 2)]
    differences_QP = np.stack([values[system] - values[against] for system, against in named], axis=1)
    intervals_P2, p_P = comparer.intervals(differences_QP), comparer.p_values(differences_QP)
    pairs = []
    for place, corrected in enumerate(holm(p_P.tolist())):
        system, against = named[place]
        differences_Q = differences_QP[:, place]
        low, high = intervals_P2[place].tolist()
        wins, losses = int((differences_Q > _SAME).sum()), int((differences_Q < -_SAME).sum())
        pair = Pair(
            system=system,
            against=against,
            metric=metric,
            difference=float(differences_Q.mean()),
            low=low,
            high=high,
            p=float(p_P[place]),
            p_holm=corrected,
            unit=unit,
            units=comparer.units,
            wins=wins,
            ties=len(differences_Q) - wins - losses,
            losses=losses,
            verdict=verdict(low, high, len(differences_Q)),
            says="",
        )
        said = _in_words(pair, float(values[against].mean()))
        pairs.append(Pair(**{**asdict(pair), "says": said}))
    return pairs


def _in_words(pair: Pair, before: float) -> str:
    """What the comparison says, and what likely stands behind it."""
    queries = pair.wins + pair.ties + pair.losses
    name = usual_name(pair.metric)
    change = f"{name} {pair.difference:+.4f} (95% interval {pair.low:+.4f} to {pair.high:+.4f})"
    moved = f"{pair.wins:,} questions better, {pair.losses:,} worse, {pair.ties:,} the same"
    reasons = []
    if pair.verdict == "undetermined":
        reasons.append(f"{queries} judged questions are too few to tell; {LEAST_QUERIES} are needed")
    elif pair.unit == "sources" and pair.units < _FEW_UNITS:
        reasons.append(f"the questions come from {pair.units} source files only, so the interval is rough")
    if pair.verdict == "no difference":
        if before >= _SATURATED:
            reasons.append(f"{pair.against} leaves little room above {before:.3f}")
        elif pair.ties >= 0.9 * queries:
            reasons.append("nearly all questions have the same result")
        elif pair.high - pair.low > 0.05:
            reasons.append("the interval is wide; more judged questions would tell")
    if pair.verdict == "worse" and pair.ties < 0.5 * queries:
        reasons.append("most questions moved, as after a training that is too long or has too large a learning rate")
    lead = {
        "improved": f"{pair.system} is better than {pair.against}",
        "worse": f"{pair.system} is worse than {pair.against}",
        "no difference": f"no difference between {pair.system} and {pair.against} was found",
        "undetermined": f"{pair.system} against {pair.against} is undetermined",
    }[pair.verdict]
    return "; ".join([f"{lead}: {change}; {moved}", *reasons])


def _drift(metrics: Mapping[str, Metrics], options: CompareOptions) -> list[Drift]:
    """Each metric of each system that must reproduce another."""
    found = []
    for system, against in options.same_as.items():
        if system not in metrics or against not in metrics:
            continue
        for family in metrics[system].scores.values():
            for name, value in family.items():
                difference = value - metrics[against][name]
                tolerance = TOLERANCE if int(name.partition("@")[2]) >= _EARLY else TOLERANCE_EARLY
                found.append(Drift(system, against, name, difference, tolerance, abs(difference) <= tolerance + _SAME))
    return found


def _changes(
    data: BeirData, runs: Mapping[str, Retrieved], metrics: Mapping[str, Metrics], options: CompareOptions
) -> list[dict[str, Any]]:
    """The questions whose metric rose or fell most from the first model to the second, gains first."""
    known = [name for name in (BASE, FINETUNED) if name in runs]
    others = [name for name in runs if name not in (BM25, *known) and "+" not in name]
    if len(models := known + others) < 2 or not options.changes:
        return []
    against, system = models[:2]
    before_Q, after_Q = (metrics[name].per_query[options.metric].to_numpy() for name in (against, system))
    judged = metrics[system].per_query["query_id"].to_pylist()
    differences_Q = after_Q - before_Q
    order = np.argsort(-differences_Q, kind="stable")
    half = -(-options.changes // 2)
    gains = [row for row in order[:half] if differences_Q[row] > _SAME]
    losses = [row for row in order[::-1][: options.changes - half] if differences_Q[row] < -_SAME]
    show = _Shown(data, options.ignore_identical_ids)
    return [
        {
            "system": system,
            "against": against,
            "query_id": judged[row],
            "question": show.question(judged[row]),
            "from": float(before_Q[row]),
            "to": float(after_Q[row]),
            "difference": float(differences_Q[row]),
            "before": show.top(runs[against], judged[row]),
            "after": show.top(runs[system], judged[row]),
        }
        for row in [*gains, *losses]
    ]


class _Shown:
    """Texts of questions and of the documents that were found for them."""

    def __init__(self, data: BeirData, ignore_identical_ids: bool) -> None:
        self.data, self.ignore = data, ignore_identical_ids
        self.questions = dict(zip(data.queries["_id"].to_pylist(), data.queries["text"].to_pylist(), strict=True))
        self.rows = {name: row for row, name in enumerate(data.corpus["_id"].to_pylist())}

    def question(self, name: str) -> str:
        return self.questions[name][:_SHOWN_CHARACTERS]

    def top(self, run: Retrieved, query: str) -> list[dict[str, Any]]:
        """The first documents of one question."""
        if query not in run.query_ids:
            return []
        place = run.query_ids.index(query)
        scores = dict(zip(run.document_ids_QK[place], run.scores_QK[place].tolist(), strict=True))
        names = [n for n in ranked(run.document_ids_QK[place], run.scores_QK[place]) if not self.ignore or n != query]
        found = []
        for name in names[:_SHOWN_DOCUMENTS]:
            row = self.rows[name]
            title, text = (self.data.corpus[column][row].as_py() for column in ("title", "text"))
            found.append(
                {
                    "id": name,
                    "title": title[:_SHOWN_CHARACTERS],
                    "text": text[:_SHOWN_CHARACTERS],
                    "relevant": self.data.qrels[query].get(name, 0),
                    "score": scores[name],
                }
            )
        return found
