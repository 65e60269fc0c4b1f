"""The results of `raycurate eval`, read for the sections that show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raycurate.core.errors import InputError
from raycurate.report.html import signed
from raycurate.report.runs import Run, StageOutput
from raycurate.report.sampling import read_json

BASE, TUNED, LEXICAL = "base", "finetuned", "bm25"
_USUAL_METRIC = "NDCG@10"


@dataclass(frozen=True)
class Comparison:
    """A system against another in one metric: the difference with its 95% interval, and what it amounts to."""

    system: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    verdict: str
    says: str = ""
    p: float | None = None
    p_holm: float | None = None
    unit: str = "queries"
    units: int = 0
    wins: int = 0
    ties: int = 0
    losses: int = 0

    def interval(self) -> str:
        """The difference and its interval in words."""
        return f"{signed(self.difference, 3)} (95%: {signed(self.low, 3)} to {signed(self.high, 3)})"


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        systems: system -> metric ("NDCG@10") -> mean over the queries.
        primary: the metric that systems are compared by.
        metadata: `_metadata` of eval_results.json.
    """

    output: StageOutput
    systems: dict[str, dict[str, float]]
    comparisons: list[Comparison]
    primary: str = _USUAL_METRIC
    metadata: dict[str, Any] = field(default_factory=dict)

    def metric(self, system: str, name: str) -> float | None:
        return self.systems.get(system, {}).get(name)

    def interval(self, system: str, name: str) -> tuple[float, float] | None:
        found = ((self.metadata.get("intervals") or {}).get(system) or {}).get(name)
        return (float(found[0]), float(found[1])) if found else None

    def comparison(self, system: str, against: str) -> Comparison | None:
        """In the primary metric."""
        asked = (system, against, self.primary)
        return next((c for c in self.comparisons if (c.system, c.against, c.metric) == asked), None)

    def told(self) -> list[Comparison]:
        """What one asks first: tuned against base, others against the base, and the best model against BM25."""
        best = TUNED if TUNED in self.systems else BASE
        found = [
            c
            for c in self.comparisons
            if c.metric == self.primary and (c.against == BASE or {c.system, c.against} == {best, LEXICAL})
        ]
        return sorted(found, key=lambda c: (c.system, c.against) != (TUNED, BASE)) or self.comparisons


def read_evaluation(run: Run) -> Evaluation | None:
    """The run's evaluation, None where there is none.

    Raises:
        InputError: eval_results.json is not what it should be.
    """
    output = run.of("eval")
    if output is None:
        return None
    path = output.path("eval_results.json")
    try:
        return _evaluation(output, read_json(path))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"it does not hold the results of an evaluation ({error})", where=path) from error


def _evaluation(output: StageOutput, given: Mapping[str, Any]) -> Evaluation:
    metadata = dict(given.get("_metadata", {}))
    systems = {
        name: {metric: float(value) for family in families.values() for metric, value in family.items()}
        for name, families in given.items()
        if name != "_metadata"
    }
    known = Comparison.__dataclass_fields__
    compared = [
        Comparison(**{name: value for name, value in one.items() if name in known})
        for one in metadata.get("comparisons") or []
    ]
    return Evaluation(output, systems, compared, str(metadata.get("primary_metric") or _USUAL_METRIC), metadata)


def shown(metric: str) -> str:
    """A metric's name as it is usually written."""
    return metric.replace("NDCG", "nDCG")
