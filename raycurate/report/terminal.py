"""The end of `raycurate run`: what a run came to, as one table for the terminal, and where its report lies."""

from __future__ import annotations

import importlib.util

from raycurate.core.errors import InputError
from raycurate.report.evaluation import evaluation_of
from raycurate.report.runs import Run, open_run
from raycurate.retrieval.results import BASE, FINETUNED, usual_name


def closing(workdir: str) -> str:
    """The table of what is in `workdir`, and the path of its report, written where matplotlib is installed; empty
    where no stage has left an output there, as when a recipe puts them elsewhere."""
    try:
        run = open_run(workdir)
    except InputError:
        return ""
    rows = table(run)
    if importlib.util.find_spec("matplotlib") is None:
        rows.append(("report", f"raycurate report {workdir}, once pip install 'raycurate[report]' is done"))
    else:
        from raycurate.report.page import write_report

        written = write_report(workdir)
        rows += [("report", written.path), *(("not in it", problem) for problem in written.problems)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}   {value}" for name, value in rows)


def table(run: Run) -> list[tuple[str, str]]:
    """(name, value) of what has been made so far: documents, duplicates, pairs, nDCG@10 before and after."""
    rows: list[tuple[str, str]] = []
    embed, dedup, made = run.of("embed"), run.of("dedup"), run.of("prep", "convert")
    if embed is not None:
        rows.append(("documents", f"{embed.count('documents'):,}"))
    if dedup is not None and dedup.options["eps"] is not None:
        removed, total = dedup.count("removed"), dedup.count("rows")
        rows.append(("duplicates", f"{removed:,} removed ({removed / max(1, total):.1%})"))
    if made is not None:
        train, val, test = (made.count(f"{split}_questions") for split in ("train", "val", "test"))
        rows.append(("pairs", f"{train:,} to train, {val:,} to choose, {test:,} to test"))
    return rows + _retrieval(run)


def _retrieval(run: Run) -> list[tuple[str, str]]:
    found = evaluation_of(run)
    if found is None:
        return []
    base, tuned = found.metric(BASE, found.primary), found.metric(FINETUNED, found.primary)
    compared = found.pair(FINETUNED, BASE)
    name = f"{usual_name(found.primary)} of test"
    if base is None or tuned is None or compared is None:
        return [(name, f"{system} {found.systems[system][found.primary]:.4f}") for system in found.systems]
    change = f"{compared.difference:+.4f}, 95% {compared.low:+.4f} to {compared.high:+.4f}"
    return [(name, f"{base:.4f} -> {tuned:.4f} ({change}): {compared.verdict}")]
