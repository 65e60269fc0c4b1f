"""All sections of a run on one page, written to one file that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from raycurate.core import storage
from raycurate.core.errors import RaycurateError, require
from raycurate.report.context import Context, SectionMaker
from raycurate.report.rendering import Section, render
from raycurate.report.runs import open_run
from raycurate.report.sections import clusters, corpus, duplicates, headline, pairs, pipeline, retrieval, training

SECTIONS: tuple[tuple[str, SectionMaker], ...] = (
    ("Results", headline.section),
    ("Pipeline", pipeline.section),
    ("Corpus", corpus.section),
    ("Clusters", clusters.section),
    ("Duplicates", duplicates.section),
    ("Training pairs", pairs.section),
    ("Training", training.section),
    ("Retrieval", retrieval.section),
    # What is made of the model afterwards comes here: exported models, then serving.
)
"""The page from top to bottom. A section is shown where its maker finds something to show."""

FILE = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """The page that was written.

    Attributes:
        path: file or URI.
        sections: titles, from top to bottom.
        problems: sections that could not be made, and why; the page says so too.
    """

    path: str
    sections: tuple[str, ...]
    problems: tuple[str, ...]
    size: int

    def summary(self) -> str:
        lines = [f"sections  {', '.join(self.sections)}"]
        lines += [f"not made  {problem}" for problem in self.problems]
        return "\n".join([*lines, f"report    {self.path} ({self.size / 1000:,.0f} KB)"])


def write_report(workdir: str, out: str | None = None, title: str | None = None) -> ReportResult:
    """Write the page about the stages whose outputs are in `workdir`. The same outputs give the same bytes.

    Args:
        workdir: the `workdir` of a recipe, or one stage's output; local or remote.
        out: the file; `report.html` in `workdir` by default.
        title: of the page; names the folder by default.

    Raises:
        InputError: no stage has left an output there.
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", "report", purpose="drawing the report's figures")
    run = open_run(workdir)
    context = Context(run)
    sections, problems = [], []
    for name, maker in SECTIONS:
        try:
            made = maker(context)
        except RaycurateError as error:
            problems.append(f"{name}: {error}")
            made = _not_made(name, error)
        if made is not None:
            sections.append(made)
    style = resources.files("raycurate.report").joinpath("style.css").read_text(encoding="utf-8")
    title = title or f"Report of the run {run.name}"
    page = render("page.html", title=title, run=run, sections=sections, style=Markup(style))
    path = storage.normalise(out) if out else storage.join(run.workdir, FILE)
    data = page.encode("utf-8")
    storage.write_bytes(path, data)
    return ReportResult(path, tuple(s.title for s in sections), tuple(problems), len(data))


def _not_made(title: str, error: RaycurateError) -> Section:
    key = title.lower().replace(" ", "-")
    return Section(key, title, render("not_made.html", key=key, title=title, error=str(error)))
