"""A finished evaluation, for programs and for the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raycurate.core import storage
from raycurate.retrieval.results import BASE, CHANGES, FINETUNED, PER_QUERY, Evaluation, read_evaluation
from raycurate.stage import Result

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = ("NDCG@10", "Recall@10", "Recall@100", "MRR@10")


@dataclass(frozen=True)
class EvalResult(Result):
    """A finished evaluation: `.metric("finetuned", "NDCG@10")`, `.comparison()`, `.per_query`, `.changes`."""

    @cached_property
    def evaluation(self) -> Evaluation:
        """Means, intervals and pairs of systems, as the report reads them too."""
        return read_evaluation(self.output)

    @property
    def results(self) -> dict[str, Any]:
        """The content of eval_results.json."""
        return self.evaluation.content

    @property
    def metadata(self) -> dict[str, Any]:
        return self.evaluation.metadata

    @property
    def systems(self) -> list[str]:
        return list(self.evaluation.systems)

    @property
    def per_query(self) -> pa.Table:
        """system, query_id, answered, and one float64 column a metric."""
        import pyarrow.parquet as pq

        filesystem, inner = storage.filesystem(storage.join(self.output, PER_QUERY))
        return pq.read_table(inner, filesystem=filesystem)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The questions that changed most, with their first documents before and after."""
        return list(json.loads(storage.read_text(storage.join(self.output, CHANGES))))

    @property
    def drifted(self) -> list[dict[str, Any]]:
        """The metrics that differ by more than their tolerance from those they must reproduce."""
        return [one for one in self.metadata["drift"] if not one["ok"]]

    def metric(self, system: str, name: str) -> float:
        """One mean, such as ("finetuned", "NDCG@10").

        Raises:
            KeyError: no such system or metric.
        """
        return self.evaluation.systems[system][name]

    def comparison(self, system: str = FINETUNED, against: str = BASE) -> dict[str, Any] | None:
        """How one system compares with another; None where these two were not compared in this order."""
        pair = self.evaluation.pair(system, against)
        return asdict(pair) if pair is not None else None

    def summary(self) -> str:
        """The table of systems, what the comparisons say, drift, and where it all lies."""
        about, collection = self.metadata, self.metadata["collection"]
        names = [name for name in _SHOWN if name in self.evaluation.systems[self.systems[0]]]
        primary = about["primary_metric"]
        if primary not in names:
            names = [primary, *names]
        width = max(len(name) for name in self.systems)
        lines = [
            f"{collection['name']}, {collection['split']}: {collection['queries']:,} questions over "
            f"{collection['documents']:,} documents",
            " " * width + "".join(name.rjust(12) for name in names) + f"   95% of {primary}",
        ]
        for system in self.systems:
            low, high = about["intervals"][system][primary]
            cells = "".join(f"{self.metric(system, name):.4f}".rjust(12) for name in names)
            lines.append(f"{system.ljust(width)}{cells}   {low:.4f} to {high:.4f}")
        lines += [pair.says for pair in self.evaluation.told()]
        lines += [f"left out {name}: {reason}" for name, reason in about["missing"].items()]
        lines += drift_lines(about["drift"])
        return "\n".join([*lines, f"output {self.output}"])


def drift_lines(drift: list[dict[str, Any]]) -> list[str]:
    """One line for each system that must reproduce another."""
    lines = []
    for system, against in dict.fromkeys((one["system"], one["against"]) for one in drift):
        mine = [one for one in drift if (one["system"], one["against"]) == (system, against)]
        worst = max(mine, key=lambda one: abs(one["difference"]) / one["tolerance"])
        bad = [one for one in mine if not one["ok"]]
        said = f"{len(bad)} of {len(mine)} metrics differ" if bad else f"all {len(mine)} metrics agree"
        lines.append(
            f"drift of {system} from {against}: {said}; most {worst['metric']} {worst['difference']:+.4f} "
            f"(tolerance {worst['tolerance']})"
        )
    return lines
