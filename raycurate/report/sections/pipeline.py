"""The stages: their state, when they ran, how long they took, what they counted and turned away."""

from __future__ import annotations

from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.html import (
    Card,
    Html,
    Section,
    badge,
    card,
    details,
    duration,
    element,
    grid,
    number,
    paragraph,
    table,
)
from raycurate.report.runs import StageOutput

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


def section(context: Context) -> Section | None:
    """Always there: a run has at least one stage."""
    outputs = context.run.outputs
    stages = table(
        "Every stage that has left an output, in the order of the pipeline.",
        ["Stage", "State", "Finished (UTC)", "Took", "Counts"],
        [_row(output) for output in outputs],
        text_columns=(0, 1, 2, 4),
        stacked=True,
    )
    cards = [card("Stages", stages, *_left_out(outputs), wide=True), *_seconds(outputs), _versions(outputs)]
    lead = "What has run, in order. A stage is done when every file that its manifest lists is there."
    return Section("pipeline", "Pipeline", paragraph(lead), grid(*(c for c in cards if c)))


def _row(output: StageOutput) -> list[str | Html]:
    manifest = output.manifest
    name = Html.join_all([output.stage, element("div", output.name, class_="unit")])
    if manifest is None:
        return [name, _state(output), "", "", ""]
    return [
        name,
        _state(output),
        element("span", manifest.created[:16].replace("T", " "), class_="time"),
        _took(output),
        _counts(output),
    ]


def _state(output: StageOutput) -> Html:
    if not output.whole:
        word = "not finished" if output.manifest is None and "unreadable" not in output.problem else "not whole"
        return Html.join_all([badge(word, "bad"), element("div", output.problem, class_="unit")])
    remark = [element("div", output.remark, class_="unit")] if output.remark else []
    return Html.join_all([badge("done", "good") if not remark else badge("done, but older", "neutral"), *remark])


def _took(output: StageOutput) -> str:
    wall = output.manifest.timings.get("wall") if output.manifest else None
    return duration(wall) if wall is not None else "–"


def _counts(output: StageOutput) -> str:
    counts = output.manifest.counts if output.manifest else {}
    names = _COUNTED.get(output.stage, tuple(counts)[:_FIRST])
    parts = [_counted(counts[name], name) for name in names if name in counts]
    rejects = sum(output.manifest.rejects.values()) if output.manifest else 0
    return ", ".join([*parts, *([f"{rejects:,} rejected"] if rejects else [])])


def _counted(count: int, name: str) -> str:
    said = _words(name)
    return f"{count:,} {said.removesuffix('s') if count == 1 else said}"


def _left_out(outputs: tuple[StageOutput, ...]) -> list[Html]:
    """Rejects and pairs that were left out, by stage and reason."""
    rows = []
    for output in outputs:
        if output.manifest is None:
            continue
        rows += [[output.stage, "rejected", _words(reason), number(n)] for reason, n in output.manifest.rejects.items()]
        rows += [
            [output.stage, "left out", _words(name.removeprefix("left_out_")), number(n)]
            for name, n in output.manifest.counts.items()
            if name.startswith("left_out_") and n
        ]
    if not rows:
        return [element("p", "No stage has rejected or left out anything.", class_="note")]
    caption = "Rejected rows are listed with their reason in the folder rejects of the stage's output."
    whole = table(caption, ["Stage", "What", "Reason", "Rows"], rows, text_columns=(0, 1, 2))
    return [details(f"What was rejected or left out, by reason ({len(rows)})", whole)]


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _seconds(outputs: tuple[StageOutput, ...]) -> list[Card]:
    timed = [(o, o.manifest.timings["wall"]) for o in outputs if o.manifest and "wall" in o.manifest.timings]
    if not timed:
        return []
    total = sum(seconds for _, seconds in timed)
    longest, most = max(timed, key=lambda pair: pair[1])
    several = len({o.stage for o, _ in timed}) < len(timed)
    labels = [o.name if several else o.stage for o, _ in timed]
    says = (
        f"{duration(total)} in all, as the clock on the wall went; {longest.stage} took {duration(most)}, "
        f"{most / total:.0%} of it."
    )
    words = charts.Words("time", "Time by stage", says)
    drawn = charts.bars(words, labels, [s for _, s in timed], [duration(s) for _, s in timed])
    parts = [
        [o.stage, part.replace("_", " "), f"{value:,.1f}"]
        for o, _ in timed
        for part, value in (o.manifest.timings if o.manifest else {}).items()
        if not part.endswith("_per_second")
    ]
    caption = "Seconds of the parts; parts that ran side by side add up to more than the wall clock."
    whole = table(caption, ["Stage", "Part", "Seconds"], parts, text_columns=(0, 1))
    return [card("Time by stage", drawn, details("Parts of each stage", whole))]


def _versions(outputs: tuple[StageOutput, ...]) -> Card | None:
    seen: dict[str, dict[str, None]] = {}
    for output in outputs:
        for name, version in (output.manifest.versions if output.manifest else {}).items():
            seen.setdefault(name, {})[version] = None
    if not seen:
        return None
    mixed = [name for name, versions in seen.items() if len(versions) > 1]
    note = f"Stages ran with different versions of {', '.join(mixed)}." if mixed else "The same in every stage."
    rows = [[name, ", ".join(versions)] for name, versions in seen.items()]
    return card("Versions", table(note, ["Package", "Version"], rows, text_columns=(0, 1)))
