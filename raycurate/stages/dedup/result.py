"""A finished deduplication as an object that can be asked."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import ConfigError
from raycurate.core.manifest import OutputFile, require_whole
from raycurate.ray_runtime.cluster import remote_task
from raycurate.stage import Result
from raycurate.stages.dedup.decide import SWEEP, Counted, Rule, decide_files

_EDGE_BYTES = 64 * 1024 * 1024  # of stored pairs that one task decides over


@dataclass(frozen=True)
class Decision:
    """What a rule removes of the stored pairs."""

    eps: float
    decision: str
    rows: int
    removed: int

    @property
    def duplicate_ratio(self) -> float:
        return self.removed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class DedupResult(Result):
    """A finished deduplication."""

    @classmethod
    def open(cls, output: str) -> DedupResult:
        """A finished output. Raises InputError when it is not whole or of another stage."""
        manifest = require_whole(output)
        if manifest.key.stage != "dedup":
            raise ConfigError(f"this is an output of {manifest.key.stage}, not of dedup", where=output)
        return cls(output, manifest)

    @property
    def duplicate_ratio(self) -> float:
        """Share of the rows that are removed."""
        return self.manifest.counts["removed"] / max(1, self.manifest.counts["rows"])

    @property
    def eps(self) -> float | None:
        """None when pairs were found and nothing was decided."""
        found = self.manifest.key.options["eps"]
        return None if found is None else float(found)

    @property
    def sweep(self) -> dict[float, float]:
        """Share of the rows that each eps removes."""
        rows = max(1, self.manifest.counts["rows"])
        return {float(eps): count / rows for eps, count in self.manifest.settings["sweep"].items()}

    def rethreshold(self, *eps: float, decision: str | None = None) -> list[Decision]:
        """What other values of eps would remove, from the stored pairs; needs a running Ray, writes nothing.

        Raises:
            ConfigError: an eps that needs pairs below `score_floor`, which were not stored.
        """
        floor = float(self.manifest.key.options["score_floor"])
        for value in eps:
            if not 0 <= value <= 1 - floor + 1e-9:
                raise ConfigError(
                    f"eps={value:g}: pairs below score_floor={floor:g} were not stored",
                    where=self.output,
                    fix=f"Use an eps of {1 - floor:.6g} or less, or deduplicate again with a lower score_floor",
                )
        rule = Rule(self.eps or 0.0, decision or self.manifest.key.options["decision"])
        probe = int(self.manifest.key.options["probe"])
        counted = decide_all(self.output, self.manifest.files, rule, list(eps), probe=probe, write=None)
        return [Decision(value, rule.decision, counted.rows, (counted.sweep or {})[value]) for value in eps]

    def examples(self, count: int = 5, near: float | None = None) -> list[dict[str, Any]]:
        """Removed rows whose score is nearest to 1 - `near` (default: this run's eps): where the decision is closest.

        Returns:
            id, kept_id and cosine_sim_score of each.
        """
        target = 1 - ((self.eps or 0.0) if near is None else near)
        best: list[tuple[float, int, dict[str, Any]]] = []
        for file in self.manifest.files:
            if not file.path.startswith("duplicates/"):
                continue
            filesystem, inner = storage.filesystem(storage.join(self.output, file.path))
            with filesystem.open_input_file(inner) as source:
                for batch in pq.ParquetFile(source).iter_batches():
                    rows = (
                        (abs(row["cosine_sim_score"] - target), place, row)
                        for place, row in enumerate(batch.to_pylist())
                    )
                    best = heapq.nsmallest(count, [*best, *rows], key=lambda found: (found[0], found[2]["id"]))
        return [row for _, _, row in best]

    def summary(self) -> str:
        """The run in a few lines: rows, removed, what other eps would remove, some duplicates, seconds by part."""
        counts, settings, timings = self.manifest.counts, self.manifest.settings, self.manifest.timings
        options = self.manifest.key.options
        lines = [
            f"rows      {counts['rows']:,} in {counts['clusters']:,} clusters; {counts['edges']:,} pairs of cosine >= "
            f"{options['score_floor']:g}",
            "removed   nothing: eps is null, so pairs were found and not decided on"
            if self.eps is None
            else f"removed   {counts['removed']:,} ({self.duplicate_ratio:.2%}) at eps {self.eps:g}, decision "
            f"{options['decision']}",
            "eps       " + "  ".join(f"{eps:g}: {share:.2%}" for eps, share in sorted(self.sweep.items())),
        ]
        if "recall" in settings:
            found = settings["recall"]
            lines.append(
                f"recall    {found['found']:,} of {found['pairs']:,} exact pairs of {found['sampled']:,} sampled rows"
            )
        if "documents" in counts:
            lines.append(f"documents {counts['documents']:,} kept in {storage.join(self.output, 'documents')}")
        parts = ", ".join(
            f"{name} {timings[name]:.1f}" for name in ("pairwise", "decide", "documents") if name in timings
        )
        if not self.skipped:
            lines.append(f"seconds in {parts}; wall {timings['wall']:.1f}")
        lines.append(f"output {self.output}")
        shown = self.examples(SHOWN)
        if shown:
            lines.append("removed, nearest to the threshold (id, kept, cosine):")
            lines += [f"  {row['cosine_sim_score']:.4f}  {row['id']}  ~  {row['kept_id']}" for row in shown]
        return "\n".join(lines)


SHOWN = 5


def default_sweep(floor: float) -> list[float]:
    """The usual eps that the stored pairs suffice for."""
    return [eps for eps in SWEEP if eps <= 1 - floor + 1e-9]


def decide_all(
    output: str, files: list[OutputFile], rule: Rule, sweep: list[float], *, probe: int, write: str | None
) -> Counted:
    """Decide over all stored pairs: clusters by themselves, in parallel; all at once where rows were compared in
    several (`probe` > 1), because then one cluster's removals decide another's.

    Args:
        files: the output's, of which those in `neighbors` and `edges` count.
        write: first part of the names of the duplicates' files, or None to count only.
    """
    import ray

    task = remote_task(decide_files, name="Decide", num_cpus=0.5)
    references = []
    for number, names in enumerate(_groups(files, probe)):
        path = f"duplicates/{write}-{number:05d}.parquet" if write else None
        references.append(task.remote(output, names, rule, sweep, path))
    total = Counted(sweep={})
    for reference in references:
        total.add(ray.get(reference))
    return total


def _groups(files: list[OutputFile], probe: int) -> list[list[str]]:
    pairs = [file for file in files if file.path.startswith("edges/")]
    names = [file.path.removeprefix("edges/").removesuffix(".parquet") for file in pairs]
    if probe > 1:
        return [names]
    groups: list[list[str]] = []
    size = _EDGE_BYTES
    for name, file in zip(names, pairs, strict=True):
        if size >= _EDGE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += file.size
    return groups
