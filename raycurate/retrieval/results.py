"""What an evaluation found: the names in eval_results.json, and the one reader of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from raycurate.core import storage
from raycurate.core.errors import InputError

RESULTS, PER_QUERY, CHANGES, HITS = "eval_results.json", "per_query.parquet", "changes.json", "hits"
"""Files and folders of the output."""

BASE, FINETUNED, SERVED, BM25 = "base", "finetuned", "served", "bm25"
"""Systems that have a name of their own."""

_METADATA = "_metadata"
_USUAL_METRIC = "NDCG@10"


@dataclass(frozen=True)
class Pair:
    """One system against another by one metric; differences are system minus against, over the judged questions.

    low, high: the 95% interval. p, p_holm: of the randomisation test, alone and corrected for all pairs. unit: what is
    drawn (questions or their source files), and how many there are.
    """

    system: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    unit: str
    units: int
    wins: int
    ties: int
    losses: int
    verdict: str
    says: str


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: of the output.
        content: of eval_results.json.
        systems: system -> metric ("NDCG@10") -> mean over the questions, in the order of the tables.
        pairs: every system against every one before it, by the primary metric.
    """

    folder: str
    content: dict[str, Any]
    systems: dict[str, dict[str, float]]
    pairs: list[Pair]

    @property
    def metadata(self) -> dict[str, Any]:
        """The collection, intervals, drift, and how each system was run."""
        return dict(self.content.get(_METADATA) or {})

    @property
    def primary(self) -> str:
        """The metric that systems are compared by."""
        return str(self.metadata.get("primary_metric") or _USUAL_METRIC)

    def metric(self, system: str, name: str) -> float | None:
        """One mean; None where there is no such system or metric."""
        return self.systems.get(system, {}).get(name)

    def interval(self, system: str, name: str) -> tuple[float, float] | None:
        """The 95% interval of a mean; None where it was not computed."""
        bounds = ((self.metadata.get("intervals") or {}).get(system) or {}).get(name)
        return (float(bounds[0]), float(bounds[1])) if bounds else None

    def pair(self, system: str = FINETUNED, against: str = BASE) -> Pair | None:
        """How one system compares with another; None where these two were not compared in this order."""
        return next((pair for pair in self.pairs if (pair.system, pair.against) == (system, against)), None)

    def told(self) -> list[Pair]:
        """The pairs that one asks about first: tuned against base, others against the base, the best model against
        BM25; all where these are not there."""
        best = FINETUNED if FINETUNED in self.systems else BASE
        asked = [p for p in self.pairs if p.against == BASE or (p.system, p.against) == (best, BM25)]
        return sorted(asked, key=lambda p: (p.system, p.against) != (FINETUNED, BASE)) or self.pairs


def read_evaluation(folder: str) -> Evaluation:
    """The evaluation whose output is in `folder`.

    Raises:
        InputError: eval_results.json is not there, or is not what it should be.
    """
    path = storage.join(folder, RESULTS)
    text = storage.read_text(path)
    try:
        return _evaluation(folder, json.loads(text))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"it does not hold the results of an evaluation ({error})",
            where=path,
            fix="Run `raycurate eval` again with overwrite=true",
        ) from error


def _evaluation(folder: str, content: dict[str, Any]) -> Evaluation:
    systems = {
        name: {metric: float(value) for family in families.values() for metric, value in family.items()}
        for name, families in content.items()
        if name != _METADATA
    }
    known = {field.name for field in fields(Pair)}
    rows = (content.get(_METADATA) or {}).get("comparisons") or []
    pairs = [Pair(**{name: value for name, value in row.items() if name in known}) for row in rows]
    return Evaluation(folder, content, systems, pairs)


def usual_name(metric: str) -> str:
    """A metric's name as papers write it: "nDCG@10" for "NDCG@10"."""
    return metric.replace("NDCG", "nDCG")
