"""The stages: their state, when they ran, how long they took, what they counted and turned away."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import StageOutput
from raycurate.report.text import duration, named

_COUNTED = {
    "sample-corpus": ("documents", "packages"),
    "embed": ("documents", "tokens", "truncated"),
    "kmeans": ("rows", "clusters", "iterations"),
    "dedup": ("rows", "removed", "documents", "edges"),
    "convert": ("documents_read", "pairs", "corpus_documents", "train_questions", "val_questions", "test_questions"),
    "prep": ("documents_read", "pairs", "corpus_documents", "train_questions", "val_questions", "test_questions"),
    "eval": ("systems", "queries", "documents"),
    "finetune": ("questions", "steps", "epochs", "checkpoints", "workers"),
}
_FIRST = 6  # counts of a stage that is not among these


@dataclass(frozen=True)
class Row:
    """A stage in the table. `state`: done, or how far from it; `reason`: why it is not simply done."""

    output: StageOutput
    state: str
    reason: str = ""
    finished: str = ""
    took: str = ""
    counts: str = ""


def section(context: Context) -> Section:
    """Always there: a run has at least one stage."""
    outputs = context.run.outputs
    versions = _versions(outputs)
    return make_section(
        "pipeline",
        "Pipeline",
        stages=[_row(output) for output in outputs],
        left_out=_left_out(outputs),
        time=_time(outputs),
        parts=_parts(outputs),
        versions=versions,
        mixed_versions=[package for package, of_stages in versions.items() if len(of_stages) > 1],
    )


def _row(output: StageOutput) -> Row:
    state, reason = _state(output)
    manifest = output.manifest
    if manifest is None:
        return Row(output, state, reason)
    wall = manifest.timings.get("wall")
    took = duration(wall) if wall is not None else "–"
    return Row(output, state, reason, manifest.created[:16].replace("T", " "), took, _counts(output))


def _state(output: StageOutput) -> tuple[str, str]:
    if not output.whole:
        ended = output.manifest is not None or "unreadable" in output.problem
        return "not whole" if ended else "not finished", output.problem
    return "done, but older" if output.remark else "done", output.remark


def _counts(output: StageOutput) -> str:
    counts = output.manifest.counts if output.manifest else {}
    names = _COUNTED.get(output.stage, tuple(counts)[:_FIRST])
    parts = [_counted(counts[name], name) for name in names if name in counts]
    rejects = sum(output.manifest.rejects.values()) if output.manifest else 0
    return ", ".join([*parts, *([f"{rejects:,} rejected"] if rejects else [])])


def _counted(count: int, name: str) -> str:
    said = named(name)
    return f"{count:,} {said.removesuffix('s') if count == 1 else said}"


def _left_out(outputs: tuple[StageOutput, ...]) -> list[tuple[str, str, str, int]]:
    """Rejects and pairs that were left out: (stage, what became of them, reason, rows)."""
    rows = []
    for output in outputs:
        if output.manifest is None:
            continue
        rows += [(output.stage, "rejected", reason, n) for reason, n in output.manifest.rejects.items()]
        rows += [
            (output.stage, "left out", name.removeprefix("left_out_"), n)
            for name, n in output.manifest.counts.items()
            if name.startswith("left_out_") and n
        ]
    return rows


def _timed(outputs: tuple[StageOutput, ...]) -> list[tuple[StageOutput, dict[str, float]]]:
    """The stages whose time is known, with the seconds of their parts."""
    return [(o, o.manifest.timings) for o in outputs if o.manifest and "wall" in o.manifest.timings]


def _time(outputs: tuple[StageOutput, ...]) -> charts.Chart | None:
    timed = [(output, timings["wall"]) for output, timings in _timed(outputs)]
    if not timed:
        return None
    total = sum(seconds for _, seconds in timed)
    longest, most = max(timed, key=lambda pair: pair[1])
    several = len({o.stage for o, _ in timed}) < len(timed)
    labels = [o.name if several else o.stage for o, _ in timed]
    says = (
        f"{duration(total)} in all, as the clock on the wall went; {longest.stage} took {duration(most)}, "
        f"{most / total:.0%} of it."
    )
    words = charts.Words("time", "Time by stage", says)
    return charts.bars(words, labels, [s for _, s in timed], [duration(s) for _, s in timed])


def _parts(outputs: tuple[StageOutput, ...]) -> list[tuple[str, str, float]]:
    """(stage, part, seconds)."""
    return [
        (output.stage, part, value)
        for output, timings in _timed(outputs)
        for part, value in timings.items()
        if not part.endswith("_per_second")
    ]


def _versions(outputs: tuple[StageOutput, ...]) -> dict[str, list[str]]:
    """The versions of each package that stages ran with, each once."""
    seen: dict[str, dict[str, None]] = {}
    for output in outputs:
        for package, version in (output.manifest.versions if output.manifest else {}).items():
            seen.setdefault(package, {})[version] = None
    return {package: list(versions) for package, versions in seen.items()}
